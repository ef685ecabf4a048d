"""crop_add: a map plus a window of a finer one, and the gradient of the finer one."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    Plan,
    accumulator,
    alignment,
    best_block,
    dense_rows,
    empty_like,
    is_channels_last,
    on_device,
    warps,
)
from .geometry import in_row, located

# Sizes differ from picture to picture: no kernel of its own for a 1 or for multiples of 16.
SIZES = ["images", "channels", "height", "width", "grad_height", "grad_width", "oy", "ox"]
# Values of a tile.
TILE = 1024


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x_ptr, skip_ptr, out_ptr,
    images, channels, height, width, oy, ox,
    xn, xc, xh, xw, sn, sc, sh, sw,
    CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK contiguous values of each of ROWS rows of the result.

    x_ptr: images x channels x height x width, strides xn, xc, xh, xw.
    skip_ptr: the same of at least oy + height rows and ox + width columns, strides sn, sc, sh, sw.
    out_ptr: images x channels x height x width, dense. A row holds one channel, or all of them
        interleaved if CHANNELS_LAST, and starts at a multiple of ALIGN.
    """
    length = (width * channels if CHANNELS_LAST else width) // ALIGN * ALIGN
    rows = images * height if CHANNELS_LAST else images * channels * height
    blocks = tl.cdiv(length, BLOCK)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)[:, None]
    value = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (value < length)

    y = (row % height).to(tl.int64)
    n, c, x = located(row // height, value, channels, CHANNELS_LAST)
    coarse = tl.load(x_ptr + y * xh + in_row(n, c, x, xn, xc, xw), mask=inside)
    fine = tl.load(skip_ptr + (y + oy) * sh + in_row(n, c, x + ox, sn, sc, sw), mask=inside)
    result = (coarse.to(ACC) + fine.to(ACC)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row.to(tl.int64) * length + value, result, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def backward_skip_kernel(
    grad_ptr, out_ptr,
    images, channels, height, width, grad_height, grad_width, oy, ox,
    gn, gc, gh, gw,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK contiguous values of each of ROWS rows of the result.

    grad_ptr: images x channels x grad_height x grad_width, strides gn, gc, gh, gw.
    out_ptr: images x channels x height x width, dense; `grad` from (oy, ox) on, zeros elsewhere.
        A row holds one channel, or all of them interleaved if CHANNELS_LAST, and starts at a
        multiple of ALIGN.
    """
    length = (width * channels if CHANNELS_LAST else width) // ALIGN * ALIGN
    rows = images * height if CHANNELS_LAST else images * channels * height
    blocks = tl.cdiv(length, BLOCK)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)[:, None]
    value = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (value < length)

    n, c, x = located(row // height, value, channels, CHANNELS_LAST)
    y, x = (row % height - oy).to(tl.int64), x - ox
    window = (y >= 0) & (y < grad_height) & (x >= 0) & (x < grad_width)
    source = grad_ptr + y * gh + in_row(n, c, x, gn, gc, gw)
    result = tl.load(source, mask=inside & window, other=0.0)
    tl.store(out_ptr + row.to(tl.int64) * length + value, result, mask=inside)


def plan(out: Tensor, channels_last: bool) -> Plan:
    """How either kernel makes the dense tensor `out`."""
    total, length = dense_rows(out, channels_last)
    block = best_block(length, TILE)
    rows = min(TILE // block, triton.next_power_of_2(total))
    options = {
        "CHANNELS_LAST": channels_last,
        "ALIGN": alignment(length, out.dtype),
        "ROWS": rows,
        "BLOCK": block,
        "num_warps": warps(rows * block),
    }
    return Plan(triton.cdiv(total, rows) * triton.cdiv(length, block), rows, options)


def forward(x: Tensor, skip: Tensor, offset: Sequence[int]) -> Tensor:
    """``x + skip[..., oy:oy+h, ox:ox+w]``.

    Args:
        x: N x C x h x w, any strides.
        skip: N x C x h' x w' of the same dtype, with h' >= oy + h and w' >= ox + w (not checked),
            any strides.
        offset: (oy, ox), not negative.

    Returns:
        N x C x h x w of the dtype and in the memory format of `x`.

    Raises:
        ValueError: when x has more than 2**30 rows, or values in one.
    """
    out = empty_like(x, x.shape)
    if out.numel():
        programs, _, options = plan(out, is_channels_last(x))
        sizes = (*out.shape, *offset, *x.stride(), *skip.stride())
        with on_device(x):
            forward_kernel[(programs,)](x, skip, out, *sizes, ACC=accumulator(x.dtype), **options)
    return out


def backward_skip(grad: Tensor, skip_shape: Sequence[int], offset: Sequence[int]) -> Tensor:
    """The gradient of `skip`: `grad` at the window, zeros around it, in one pass.

    Args:
        grad: N x C x h x w, the gradient of the result (and so that of `x`), any strides.
        skip_shape: N, C, h', w' with h' >= oy + h and w' >= ox + w (not checked).
        offset: (oy, ox), not negative.

    Returns:
        N x C x h' x w' of the dtype and in the memory format of `grad`.

    Raises:
        ValueError: when the result has more than 2**30 rows, or values in one.
    """
    out = empty_like(grad, skip_shape)
    if out.numel():
        programs, _, options = plan(out, is_channels_last(grad))
        sizes = (*out.shape, *grad.shape[2:], *offset, *grad.stride())
        with on_device(grad):
            backward_skip_kernel[(programs,)](grad, out, *sizes, **options)
    return out
