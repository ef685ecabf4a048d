"""crop_add: a map plus a window of a finer one, and the gradient of the finer one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import (
    Plan,
    alignment,
    best_block,
    check_rows,
    check_supported,
    dense_block,
    empty_like,
    in_row,
    is_channels_last,
    on_device,
    warps,
)

# Sizes differ from picture to picture: no kernel of its own for a 1 or for multiples of 16.
SIZES = ["images", "channels", "height", "width", "grad_height", "grad_width", "oy", "ox"]
# Values of a tile.
TILE = 1024


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x_ptr, skip_ptr, out_ptr,
    images, channels, height, width, oy, ox,
    xn, xc, xh, xw, sn, sc, sh, sw,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK contiguous values of each of ROWS rows of the result.

    x_ptr: images x channels x height x width, strides xn, xc, xh, xw.
    skip_ptr: the same of at least oy + height rows and ox + width columns, strides sn, sc, sh, sw.
    out_ptr: images x channels x height x width, dense: see `dense_block`.
    """
    at = dense_block(images, channels, height, width, CHANNELS_LAST, ALIGN, ROWS, BLOCK)
    x_ptr += at.y.to(tl.int64) * xh + in_row(at.n, at.c, at.x, xn, xc, xw)
    skip_ptr += (at.y + oy).to(tl.int64) * sh + in_row(at.n, at.c, at.x + ox, sn, sc, sw)
    coarse, fine = tl.load(x_ptr, mask=at.inside), tl.load(skip_ptr, mask=at.inside)
    result = coarse.to(tl.float32) + fine.to(tl.float32)
    tl.store(out_ptr + at.offset, result.to(out_ptr.dtype.element_ty), mask=at.inside)


@triton.jit(do_not_specialize=SIZES)
def backward_skip_kernel(
    grad_ptr, out_ptr,
    images, channels, height, width, grad_height, grad_width, oy, ox,
    gn, gc, gh, gw,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK contiguous values of each of ROWS rows of the result.

    grad_ptr: images x channels x grad_height x grad_width, strides gn, gc, gh, gw.
    out_ptr: images x channels x height x width, dense (see `dense_block`); `grad_ptr` from
        (oy, ox) on, zeros elsewhere.
    """
    at = dense_block(images, channels, height, width, CHANNELS_LAST, ALIGN, ROWS, BLOCK)
    y, x = at.y - oy, at.x - ox  # in the gradient
    window = (y >= 0) & (y < grad_height) & (x >= 0) & (x < grad_width)
    grad_ptr += y.to(tl.int64) * gh + in_row(at.n, at.c, x, gn, gc, gw)
    result = tl.load(grad_ptr, mask=at.inside & window, other=0.0)
    tl.store(out_ptr + at.offset, result, mask=at.inside)


@lru_cache(maxsize=1024)
def plan(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Plan:
    """How a kernel that makes a dense tensor block by block (see `dense_block`) shares it out."""
    total, length = check_rows(shape, channels_last)
    block = best_block(length, TILE)
    rows = min(TILE // block, triton.next_power_of_2(total))
    options = {
        "CHANNELS_LAST": channels_last, "ALIGN": alignment(length, dtype), "ROWS": rows,
        "BLOCK": block, "num_warps": warps(rows * block, 1),
    }  # fmt: skip
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
        ValueError: as `check_rows` of x, and for float64.
    """
    check_supported(x)
    out = empty_like(x, x.shape)
    if out.numel():
        programs, _, options = plan(tuple(out.shape), out.dtype, is_channels_last(x))
        sizes = (*out.shape, *offset, *x.stride(), *skip.stride())
        with on_device(x):
            forward_kernel[(programs,)](x, skip, out, *sizes, **options)
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
        ValueError: as `check_rows` of the result, and for float64.
    """
    check_supported(grad)
    out = empty_like(grad, skip_shape)
    if out.numel():
        programs, _, options = plan(tuple(out.shape), out.dtype, is_channels_last(grad))
        sizes = (*out.shape, *grad.shape[2:], *offset, *grad.stride())
        with on_device(grad):
            backward_skip_kernel[(programs,)](grad, out, *sizes, **options)
    return out
