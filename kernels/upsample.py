"""upsample: a coarse map sampled bilinearly at a grid of exact positions; its skip fusion, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    GRID_SIZES,
    Plan,
    accumulator,
    alignment,
    best_block,
    dense_rows,
    empty_like,
    gathering_warps,
    grid_arguments,
    is_channels_last,
    is_wide,
    on_device,
)
from .geometry import (
    clamped,
    floor_divide,
    in_row,
    inverse,
    located,
    share,
    taps,
    widened,
)
from .upsample_adjoint import adjoint as adjoint

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

# Values of a block; many, to share the work on a row's position.
TILE = 1024
# Rows of a strip, at most. They share coarse rows that are read once; shorter strips keep a GPU
# busy with small results.
STRIP = 32
PROGRAMS = 2048


@triton.jit
def sampled_row(
    x_ptr, row, height, stride, segment, known, left, right, w_left, w_right,
    SEGMENT: tl.constexpr,
):  # fmt: skip
    """Coarse row `row` sampled at a block of values; zeros where it is outside the map.

    left, right: where the two taps of each value are: places in a segment of the row, which is
    loaded from the offsets `segment` where it is `known`; with a SEGMENT of 0 offsets themselves.
    w_left, w_right: the weights of the taps, 0 for one that is not to be read.
    """
    inside = (row >= 0) & (row < height)
    row_ptr = x_ptr + row.to(tl.int64) * stride
    if SEGMENT:
        coarse = tl.load(row_ptr + segment, mask=known & inside, other=0.0)
        a = tl.gather(coarse, left, 0)  # whose weight is 0 only beyond the map
        b = tl.where(w_right == 0, 0.0, tl.gather(coarse, right, 0))
    else:
        a = tl.load(row_ptr + left, mask=inside & (w_left != 0), other=0.0)
        b = tl.load(row_ptr + right, mask=inside & (w_right != 0), other=0.0)
    return a.to(w_left.dtype) * w_left + b.to(w_right.dtype) * w_right


@triton.jit(do_not_specialize=["strip", "channels", *GRID_SIZES, "oy", "ox"])
def forward_kernel(
    x_ptr, skip_ptr, out_ptr,
    strip, channels, in_height, in_width, height, width,
    row_num, row_off, row_den, column_num, column_off, column_den, oy, ox,
    xn, xc, xh, xw, sn, sc, sh, sw,
    CLAMP: tl.constexpr, WIDE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr,
    SEGMENT: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK contiguous values of each of `strip` rows of a plane of the result.

    x_ptr: N x channels x in_height x in_width, strides xn, xc, xh, xw.
    skip_ptr: None, or what to add from (oy, ox) on: N x channels x rows x columns, strides sn, sc,
        sh, sw.
    out_ptr: N x channels x height x width, dense. A row holds one channel, or all of them
        interleaved if CHANNELS_LAST, and starts at a multiple of ALIGN.

    The taps of a block are SEGMENT values of a coarse row at most. They are loaded once and handed
    on to where they are needed; if SEGMENT is 0 they are too many, and loaded where needed.
    """
    length = (width * channels if CHANNELS_LAST else width) // ALIGN * ALIGN
    blocks, strips = tl.cdiv(length, BLOCK), tl.cdiv(height, strip)
    plane = tl.program_id(0) // blocks // strips
    first_row = tl.program_id(0) // blocks % strips * strip
    first = tl.program_id(0) % blocks * BLOCK
    value = first + tl.arange(0, BLOCK)
    step = channels if CHANNELS_LAST else 1
    x = tl.arange(0, PIXELS)  # the block's columns
    start = widened(column_num, WIDE) * (first // step) + column_off
    cell, w_left, w_right = taps(start, x, in_width, column_num, column_den, CLAMP, ACC, WIDE)
    first_cell, _ = clamped(floor_divide(start, column_den), 0, in_width, CLAMP)
    if CHANNELS_LAST:
        x = value // step - first // step
        cell = tl.gather(cell, x, 0)
        w_left, w_right = tl.gather(w_left, x, 0), tl.gather(w_right, x, 0)
    x += first // step
    n, c, _ = located(plane, value, channels, CHANNELS_LAST)
    if SEGMENT:
        left = (cell - first_cell) * step + (value - x * step)
        left = tl.where(value < length, left, 0).to(tl.int32)
        right = left + step
        n, c, j = located(plane, tl.arange(0, SEGMENT), channels, CHANNELS_LAST)
        known = (first_cell + j >= 0) & (first_cell + j < in_width)
        segment = in_row(n, c, first_cell + j, xn, xc, xw)
    else:
        left = in_row(n, c, cell, xn, xc, xw)
        right = left + xw
        known, segment = True, 0
    if skip_ptr is not None:
        n, c, _ = located(plane, value, channels, CHANNELS_LAST)
        skipped = in_row(n, c, x + ox, sn, sc, sw)

    # From row to row a position grows by num / den: whole cells, and a rest that may carry over.
    position = widened(row_num, WIDE) * first_row + row_off
    cell = floor_divide(position, row_den)
    rest = position - cell * row_den
    cells = row_num // row_den
    over = inverse(row_den, ACC, WIDE)
    row, part = clamped(cell, rest, in_height, CLAMP)
    held = row - 2  # top and bottom are the coarse rows `held` and `held + 1`: none yet
    top = tl.zeros([BLOCK], ACC)
    bottom = top
    for y in range(first_row, tl.minimum(first_row + strip, height)):
        row, part = clamped(cell, rest, in_height, CLAMP)
        if row != held:
            if row == held + 1:
                top = bottom
            else:
                top = sampled_row(
                    x_ptr, row, in_height, xh,
                    segment, known, left, right, w_left, w_right, SEGMENT,
                )  # fmt: skip
            bottom = sampled_row(
                x_ptr, row + 1, in_height, xh,
                segment, known, left, right, w_left, w_right, SEGMENT,
            )  # fmt: skip
            held = row
        below = tl.where(part == 0, 0.0, bottom) * share(part, over, ACC)
        result = top * share(row_den - part, over, ACC) + below
        if skip_ptr is not None:
            source = skip_ptr + (y + oy).to(tl.int64) * sh + skipped
            result += tl.load(source, mask=value < length, other=0.0).to(ACC)
        target = out_ptr + (plane.to(tl.int64) * height + y) * length + value
        tl.store(target, result.to(out_ptr.dtype.element_ty), mask=value < length)
        rest += row_num - cells * row_den
        cell += tl.where(rest >= row_den, cells + 1, cells)
        rest = tl.where(rest >= row_den, rest - row_den, rest)


def segment_length(pixels: int, step: int, grid: SamplingGrid) -> int:
    """Values of a coarse row, `step` in a column, that hold the taps of as many columns."""
    return (grid.num[1] * (pixels - 1) // grid.den[1] + 3) * step


def forward_plan(out: Tensor, grid: SamplingGrid, channels_last: bool) -> Plan:
    """How the kernel makes the dense result `out`."""
    rows, length = dense_rows(out, channels_last)
    block, height = best_block(length, TILE), out.shape[2]
    blocks = triton.cdiv(length, block)
    strip = min(max(rows * blocks // PROGRAMS, 4), STRIP)
    step = out.shape[1] if channels_last else 1
    pixels = block if step == 1 else (block - 1) // step + 2
    segment = segment_length(pixels, step, grid)
    options = {
        "CLAMP": grid.border == "clamp",
        "WIDE": is_wide(grid, TILE),
        "CHANNELS_LAST": channels_last,
        "ACC": accumulator(out.dtype),
        "ALIGN": alignment(length, out.dtype),
        "BLOCK": block,
        "PIXELS": triton.next_power_of_2(pixels),
        "SEGMENT": triton.next_power_of_2(segment) if segment <= 2 * block else 0,
        "num_warps": gathering_warps(block),
    }
    return Plan(rows // height * triton.cdiv(height, strip) * blocks, strip, options)


def _launch(x: Tensor, skip: Tensor | None, grid: SamplingGrid, offset: Sequence[int]) -> Tensor:
    out = empty_like(x, (*x.shape[:2], *grid.size))
    if out.numel():
        programs, strip, options = forward_plan(out, grid, is_channels_last(x))
        strides = (*x.stride(), *(x if skip is None else skip).stride())
        sizes = (strip, x.shape[1], *grid_arguments(grid), *offset)
        with on_device(x):
            forward_kernel[(programs,)](x, skip, out, *sizes, *strides, **options)
    return out


def forward(x: Tensor, grid: SamplingGrid) -> Tensor:
    """`x` sampled at every position of `grid`; a tap of weight 0 is not read.

    Args:
        x: N x C x h x w, any strides, h x w being the grid's in_size (not checked).
        grid: exact positions of H x W pixels.

    Returns:
        N x C x H x W of the dtype and in the memory format of `x`.

    Raises:
        ValueError: when the result has more than 2**30 rows, or values in one.
    """
    return _launch(x, None, grid, (0, 0))


def forward_add(x: Tensor, skip: Tensor, grid: SamplingGrid, offset: Sequence[int]) -> Tensor:
    """``forward(x, grid) + skip[..., oy:oy+H, ox:ox+W]``, rounded once.

    Args:
        x: N x C x h x w, any strides, h x w being the grid's in_size (not checked).
        skip: N x C x H' x W' of the same dtype, with H' >= oy + H and W' >= ox + W (not checked),
            any strides.
        grid: exact positions of H x W pixels.
        offset: (oy, ox), not negative.

    Returns:
        N x C x H x W of the dtype and in the memory format of `x`.

    Raises:
        ValueError: when the result has more than 2**30 rows, or values in one.
    """
    return _launch(x, skip, grid, offset)
