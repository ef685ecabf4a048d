"""upsample: a coarse map sampled bilinearly at a grid of exact positions; its skip fusion, too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import (
    GRID_SIZES,
    Plan,
    alignment,
    best_block,
    check_rows,
    check_supported,
    clamped,
    empty_like,
    fast_weight,
    floor_divide,
    grid_arguments,
    in_row,
    inverse,
    is_channels_last,
    located,
    on_device,
    taps,
    warps,
)
from .upsample_backward import adjoint as adjoint

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

# Values of a block; many, to share the work on a row's position.
TILE = 1024
# Rows of a strip, at most. They share coarse rows that are read once; shorter strips keep a GPU
# busy with small results.
STRIP = 32
PROGRAMS = 2048


class Taps(NamedTuple):
    """The two coarse values of a row that each of a block's BLOCK values is made of.

    left, right: where they are: places in a segment of the row, or offsets if there is none.
    w_left, w_right: their weights, 0 for one that is not to be read.
    segment, valid: the offsets of the segment's SEGMENT values, and which are in the map.
    """

    left: tl.tensor
    right: tl.tensor
    w_left: tl.tensor
    w_right: tl.tensor
    segment: tl.tensor
    valid: tl.tensor


@triton.jit
def sampled_row(x_ptr, row, height, stride, at, SEGMENT: tl.constexpr):
    """Coarse row `row` sampled at a block of values; zeros where it is outside the map.

    at: Taps, with a SEGMENT of 0 without a segment. The values of a segment are loaded once and
    handed on to where they are needed.
    """
    inside = (row >= 0) & (row < height)
    row_ptr = x_ptr + row.to(tl.int64) * stride
    if SEGMENT:
        coarse = tl.load(row_ptr + at.segment, mask=at.valid & inside, other=0.0)
        a = tl.gather(coarse, at.left, 0)  # whose weight is 0 only beyond the map
        b = tl.where(at.w_right == 0, 0.0, tl.gather(coarse, at.right, 0))
    else:
        a = tl.load(row_ptr + at.left, mask=inside & (at.w_left != 0), other=0.0)
        b = tl.load(row_ptr + at.right, mask=inside & (at.w_right != 0), other=0.0)
    return a.to(tl.float32) * at.w_left + b.to(tl.float32) * at.w_right


@triton.jit
def block_taps(
    first, plane, length, channels, in_width, column_num, column_off, column_den, xn, xc, xw,
    CLAMP: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr, PIXELS: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """The Taps of the BLOCK values of a row from `first` on, and the column of each value.

    PIXELS: columns that a block may touch, a power of two. All arithmetic on positions is done
    once a column, and handed on to the channels that lie interleaved there.
    """
    value = first + tl.arange(0, BLOCK)
    step = channels if CHANNELS_LAST else 1  # values of a row in one column
    x = tl.arange(0, PIXELS)  # columns, from the block's first on
    start = column_num * (first // step) + column_off
    cell, w_left, w_right = taps(start, x, in_width, column_num, column_den, CLAMP)
    first_cell, _ = clamped(floor_divide(start, column_den), 0, in_width, CLAMP)
    if CHANNELS_LAST:
        x = value // step - first // step
        cell = tl.gather(cell, x, 0)
        w_left, w_right = tl.gather(w_left, x, 0), tl.gather(w_right, x, 0)
    x += first // step
    if SEGMENT:
        left = (cell - first_cell) * step + (value - x * step)
        left = tl.where(value < length, left, 0)
        right = left + step
        n, c, j = located(plane, tl.arange(0, SEGMENT), channels, CHANNELS_LAST)
        valid = (first_cell + j >= 0) & (first_cell + j < in_width)
        segment = in_row(n, c, first_cell + j, xn, xc, xw)
    else:
        n, c, _ = located(plane, value, channels, CHANNELS_LAST)
        left = in_row(n, c, cell, xn, xc, xw)
        right = left + xw
        valid, segment = left, left  # unused
    return Taps(left, right, w_left, w_right, segment, valid), x


@triton.jit(do_not_specialize=["strip", "channels", *GRID_SIZES, "oy", "ox"])
def forward_kernel(
    x_ptr, skip_ptr, out_ptr,
    strip, channels, in_height, in_width, height, width,
    row_num, row_off, row_den, column_num, column_off, column_den, oy, ox,
    xn, xc, xh, xw, sn, sc, sh, sw,
    CLAMP: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK: tl.constexpr, PIXELS: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK contiguous values of each of `strip` rows of a plane of the result.

    x_ptr: N x channels x in_height x in_width, strides xn, xc, xh, xw.
    skip_ptr: None, or what to add from (oy, ox) on: N x channels x rows x columns, strides sn, sc,
        sh, sw.
    out_ptr: N x channels x height x width, dense. A row holds one channel, or all of them
        interleaved if CHANNELS_LAST, and starts at a multiple of ALIGN.

    The taps of a block are SEGMENT values of a coarse row at most; if SEGMENT is 0 they are too
    many, and each is loaded where it is needed. The program walks down the strip and keeps the two
    coarse rows, sampled at its columns, between which the current row lies.
    """
    length = (width * channels if CHANNELS_LAST else width) // ALIGN * ALIGN
    blocks, strips = tl.cdiv(length, BLOCK), tl.cdiv(height, strip)
    plane = tl.program_id(0) // blocks // strips
    first_row = tl.program_id(0) // blocks % strips * strip
    first = tl.program_id(0) % blocks * BLOCK
    value = first + tl.arange(0, BLOCK)
    at, x = block_taps(
        first, plane, length, channels, in_width, column_num, column_off, column_den, xn, xc, xw,
        CLAMP, CHANNELS_LAST, BLOCK, PIXELS, SEGMENT,
    )  # fmt: skip
    if skip_ptr is not None:
        n, c, _ = located(plane, value, channels, CHANNELS_LAST)
        skipped = in_row(n, c, x + ox, sn, sc, sw)

    # From row to row a position grows by num / den: whole cells, and a rest that may carry over.
    position = row_num * first_row + row_off
    cell = floor_divide(position, row_den)
    rest = position - cell * row_den
    cells = row_num // row_den
    inverse_den = inverse(row_den)
    row, part = clamped(cell, rest, in_height, CLAMP)
    held = row - 2  # top and bottom are the coarse rows `held` and `held + 1`: none yet
    top = tl.zeros([BLOCK], tl.float32)
    bottom = top
    for y in range(first_row, tl.minimum(first_row + strip, height)):
        row, part = clamped(cell, rest, in_height, CLAMP)
        if row != held:
            if row == held + 1:  # noqa: SIM108 - a branch on a GPU
                top = bottom
            else:
                top = sampled_row(x_ptr, row, in_height, xh, at, SEGMENT)
            bottom = sampled_row(x_ptr, row + 1, in_height, xh, at, SEGMENT)
            held = row
        lower = tl.where(part == 0, 0.0, bottom) * fast_weight(part, inverse_den)
        result = top * fast_weight(row_den - part, inverse_den) + lower
        if skip_ptr is not None:
            source = skip_ptr + (y + oy).to(tl.int64) * sh + skipped
            result += tl.load(source, mask=value < length, other=0.0).to(tl.float32)
        target = out_ptr + (plane.to(tl.int64) * height + y) * length + value
        tl.store(target, result.to(out_ptr.dtype.element_ty), mask=value < length)
        rest += row_num - cells * row_den
        cell += tl.where(rest >= row_den, cells + 1, cells)
        rest = tl.where(rest >= row_den, rest - row_den, rest)


@lru_cache(maxsize=1024)
def plan(
    shape: tuple[int, ...], dtype: torch.dtype, grid: SamplingGrid, channels_last: bool
) -> Plan:
    """How the kernel makes its dense result."""
    rows, length = check_rows(shape, channels_last)
    block, height = best_block(length, TILE), shape[2]
    blocks = triton.cdiv(length, block)
    strip = min(max(rows * blocks // PROGRAMS, 4), STRIP)
    step = shape[1] if channels_last else 1
    pixels = block if step == 1 else (block - 1) // step + 2
    segment = (grid.num[1] * (pixels - 1) // grid.den[1] + 3) * step  # values of a coarse row
    options = {
        "CLAMP": grid.border == "clamp", "CHANNELS_LAST": channels_last,
        "ALIGN": alignment(length, dtype), "BLOCK": block, "PIXELS": triton.next_power_of_2(pixels),
        "SEGMENT": triton.next_power_of_2(segment) if segment <= 2 * block else 0,
        "num_warps": warps(block),
    }  # fmt: skip
    return Plan(rows // height * triton.cdiv(height, strip) * blocks, strip, options)


def _launch(x: Tensor, skip: Tensor | None, grid: SamplingGrid, offset: Sequence[int]) -> Tensor:
    check_supported(x, grid)
    out = empty_like(x, (*x.shape[:2], *grid.size))
    if out.numel():
        programs, strip, options = plan(tuple(out.shape), x.dtype, grid, is_channels_last(x))
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
        ValueError: as `check_rows` of the result, and as `check_supported`.
    """
    return _launch(x, None, grid, (0, 0))


def forward_add(x: Tensor, skip: Tensor, grid: SamplingGrid, offset: Sequence[int]) -> Tensor:
    """``forward(x, grid) + skip[..., oy:oy+H, ox:ox+W]``, rounded once.

    Args:
        x, grid: as for `forward`.
        skip: N x C x H' x W' of the same dtype, with H' >= oy + H and W' >= ox + W (not checked),
            any strides.
        offset: (oy, ox), not negative.

    Returns:
        N x C x H x W of the dtype and in the memory format of `x`.

    Raises:
        ValueError: as `check_rows` of the result, and as `check_supported`.
    """
    return _launch(x, skip, grid, offset)
