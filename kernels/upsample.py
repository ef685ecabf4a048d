"""upsample: a coarse map sampled bilinearly at a grid of exact positions, and its adjoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from .geometry import (
    clamped,
    clamped_position,
    first_at,
    floor_divide,
    in_row,
    located,
    readers,
    taps,
    weight,
    widened,
)

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

# Sizes and positions differ from picture to picture: no kernel of its own for a 1 or a multiple of
# 16 among them.
SIZES = ["strip", "channels", "in_height", "in_width", "height", "width"]
SIZES += [f"{axis}_{part}" for axis in ("row", "column") for part in ("num", "off", "den")]
# Values of a block or tile; many, to share the work on a row's position.
TILE = 1024
# Rows of a strip, at most. They share coarse rows that are read once; shorter strips keep a GPU
# busy with small results.
FORWARD_STRIP, ADJOINT_STRIP = 32, 8
PROGRAMS = 2048


@triton.jit
def sampled_row(x_ptr, left, w_left, right, w_right, row, height, stride):
    """Coarse row `row` sampled at a block of columns; zeros where it is outside the map.

    left, right: offsets of the two taps of each column; w_left, w_right: their weights, 0 for a
    tap that is not to be read.
    """
    inside = (row >= 0) & (row < height)
    start = x_ptr + row.to(tl.int64) * stride
    a = tl.load(start + left, mask=inside & (w_left != 0), other=0.0)
    b = tl.load(start + right, mask=inside & (w_right != 0), other=0.0)
    return a.to(w_left.dtype) * w_left + b.to(w_right.dtype) * w_right


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x_ptr, out_ptr,
    strip, channels, in_height, in_width, height, width,
    row_num, row_off, row_den, column_num, column_off, column_den,
    xn, xc, xh, xw,
    CLAMP: tl.constexpr, WIDE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK contiguous values of each of `strip` rows of a plane of the result.

    x_ptr: N x channels x in_height x in_width, strides xn, xc, xh, xw.
    out_ptr: N x channels x height x width, dense. A row holds one channel, or all of them
        interleaved if CHANNELS_LAST, and starts at a multiple of ALIGN.
    """
    length = (width * channels if CHANNELS_LAST else width) // ALIGN * ALIGN
    blocks, strips = tl.cdiv(length, BLOCK), tl.cdiv(height, strip)
    plane = tl.program_id(0) // blocks // strips
    first_row = tl.program_id(0) // blocks % strips * strip
    value = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    n, c, x = located(plane, value, channels, CHANNELS_LAST)
    cell, w_left, w_right = taps(x, in_width, column_num, column_off, column_den, CLAMP, ACC, WIDE)
    left = in_row(n, c, cell, xn, xc, xw)
    right = left + xw

    # From row to row a position grows by num / den: whole cells, and a rest that may carry over.
    position = widened(row_num, WIDE) * first_row + row_off
    cell = floor_divide(position, row_den)
    rest = position - cell * row_den
    cells = row_num // row_den
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
                top = sampled_row(x_ptr, left, w_left, right, w_right, row, in_height, xh)
            bottom = sampled_row(x_ptr, left, w_left, right, w_right, row + 1, in_height, xh)
            held = row
        below = tl.where(part == 0, 0.0, bottom) * weight(part, row_den, ACC, WIDE)
        result = top * weight(row_den - part, row_den, ACC, WIDE) + below
        start = (plane.to(tl.int64) * height + y) * length
        tl.store(out_ptr + start + value, result.to(out_ptr.dtype.element_ty), mask=value < length)
        rest += row_num - cells * row_den
        cell += tl.where(rest >= row_den, cells + 1, cells)
        rest = tl.where(rest >= row_den, rest - row_den, rest)


@triton.jit
def cell_sums(
    source, stride, first, last, row, height, num, off, den,
    CLAMP: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Rows first to last - 1 of a gradient, which look between coarse rows `row` and `row + 1`.

    source: pointers to a tile of row `first`; rows are `stride` apart. The coarse map has `height`.

    Returns the tiles' sums with the weights of either coarse row, and pointers to row `last`.
    """
    upper = tl.zeros(source.shape, ACC)
    lower = upper
    for y in range(first, last):
        part = clamped_position(y, height, num, off, den, CLAMP) - row * den
        grad = tl.load(source).to(ACC)
        upper += grad * weight(den - part, den, ACC, WIDE)
        lower += tl.where(part == 0, 0.0, grad) * weight(part, den, ACC, WIDE)
        source += stride
    return upper, lower, source


@triton.jit(do_not_specialize=SIZES)
def adjoint_kernel(
    grad_ptr, out_ptr,
    strip, channels, in_height, in_width, height, width,
    row_num, row_off, row_den, column_num, column_off, column_den,
    gn, gc, gh, gw,
    CLAMP: tl.constexpr, WIDE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK contiguous values of each of `strip` rows of a plane of the coarse map.

    grad_ptr: N x channels x height x width, strides gn, gc, gh, gw.
    out_ptr: N x channels x in_height x in_width, dense. A row holds one channel, or all of them
        interleaved if CHANNELS_LAST.

    The rows of the gradient are summed cell by cell, then the columns that read each coarse one,
    WINDOW of them at a time: always in the same order. More than WINDOW need a strip of 1.
    """
    length = in_width * channels if CHANNELS_LAST else in_width
    blocks, strips = tl.cdiv(length, BLOCK), tl.cdiv(in_height, strip)
    plane = tl.program_id(0) // blocks // strips
    first_row = tl.program_id(0) // blocks % strips * strip
    value = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    n, c, j = located(plane, value[:, None], channels, CHANNELS_LAST)

    row_num, row_den = widened(row_num, WIDE), widened(row_den, WIDE)
    num, den = widened(column_num, WIDE), widened(column_den, WIDE)
    x_first, x_last = readers(j, in_width, width, num, column_off, den, CLAMP)
    total = tl.zeros([BLOCK], ACC)
    for k in range(0, tl.maximum(tl.max(x_last - x_first), 1), WINDOW):
        x = x_first + k + tl.arange(0, WINDOW)[None, :]
        distance = tl.abs(clamped_position(x, in_width, num, column_off, den, CLAMP) - j * den)
        w = weight(den - distance, den, ACC, WIDE)
        y = first_at(first_row - 1, in_height, height, row_num, row_off, row_den, CLAMP)
        # A tile reaches beyond the windows, but never beyond the row; the sum leaves that out.
        source = grad_ptr + in_row(n, c, tl.minimum(x, width - 1), gn, gc, gw)
        source += y.to(tl.int64) * gh
        above = tl.zeros([BLOCK, WINDOW], ACC)
        for row in range(first_row - 1, tl.minimum(first_row + strip, in_height)):
            last = first_at(row + 1, in_height, height, row_num, row_off, row_den, CLAMP)
            upper, lower, source = cell_sums(
                source, gh, y, last, row, in_height, row_num, row_off, row_den, CLAMP, ACC, WIDE
            )
            if row >= first_row:
                part = tl.sum(tl.where(x < x_last, (above + upper) * w, 0.0), axis=1)
                total = tl.where(k == 0, part, total + part)
                start = (plane.to(tl.int64) * in_height + row) * length
                result = total.to(out_ptr.dtype.element_ty)
                tl.store(out_ptr + start + value, result, mask=value < length)
            y, above = last, lower


def is_wide(grid: SamplingGrid) -> bool:
    """Whether positions need int64, or their remainders more than float32's 24 bits."""
    axes = zip(grid.in_size, grid.size, grid.num, grid.off, grid.den, strict=True)
    # A block may reach TILE beyond the end of an axis, a window as far as it is long, too.
    return any(
        den > 2**24 or num * (2 * size + TILE) + abs(off) + (n + TILE) * den >= 2**31
        for n, size, num, off, den in axes
    )


def longest_window(n: int, size: int, num: int, off: int, den: int, clamp: bool) -> int:
    """At least as many as the outputs of an axis that read the same coarse value."""
    if num == 0 or n == 1:
        return size
    longest = triton.cdiv(2 * den, num)
    if clamp:  # an edge is read from all places beyond it, too
        longest = max(longest, triton.cdiv(den - off, num), size + (off - (n - 2) * den) // num)
    return min(longest, size)


def forward_plan(out: Tensor, grid: SamplingGrid, channels_last: bool) -> Plan:
    """How the kernel makes the dense result `out`."""
    rows, length = dense_rows(out, channels_last)
    block, height = best_block(length, TILE), out.shape[2]
    blocks = triton.cdiv(length, block)
    strip = min(max(rows * blocks // PROGRAMS, 4), FORWARD_STRIP)
    options = {
        "CLAMP": grid.border == "clamp",
        "WIDE": is_wide(grid),
        "CHANNELS_LAST": channels_last,
        "ACC": accumulator(out.dtype),
        "ALIGN": alignment(length, out.dtype),
        "BLOCK": block,
        "num_warps": warps(block),
    }
    return Plan(rows // height * triton.cdiv(height, strip) * blocks, strip, options)


def adjoint_plan(out: Tensor, grid: SamplingGrid, channels_last: bool) -> Plan:
    """How the kernel makes the dense coarse gradient `out`."""
    rows, length = dense_rows(out, channels_last)
    height, width = out.shape[2:]
    axis = (width, grid.size[1], grid.num[1], grid.off[1], grid.den[1])
    # Neighbouring threads take neighbouring columns of a window, or neighbouring channels.
    window = min(triton.next_power_of_2(longest_window(*axis, clamp=False)), TILE)
    window = 1 if channels_last else window
    block = best_block(length, TILE // window)
    blocks = triton.cdiv(length, block)
    strip = min(max(rows * blocks // PROGRAMS, 1), ADJOINT_STRIP)
    strip = strip if longest_window(*axis, clamp=grid.border == "clamp") <= window else 1
    options = {
        "CLAMP": grid.border == "clamp",
        "WIDE": is_wide(grid),
        "CHANNELS_LAST": channels_last,
        "ACC": accumulator(out.dtype),
        "BLOCK": block,
        "WINDOW": window,
        "num_warps": warps(block * window),
    }
    return Plan(rows // height * triton.cdiv(height, strip) * blocks, strip, options)


def arguments(grid: SamplingGrid) -> tuple[int, ...]:
    """The grid as the kernels take it: sizes, then num, off and den of each axis."""
    rows, columns = zip(grid.num, grid.off, grid.den, strict=True)
    return (*grid.in_size, *grid.size, *rows, *columns)


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
    out = empty_like(x, (*x.shape[:2], *grid.size))
    if out.numel():
        programs, strip, options = forward_plan(out, grid, is_channels_last(x))
        sizes = (strip, x.shape[1], *arguments(grid), *x.stride())
        with on_device(x):
            forward_kernel[(programs,)](x, out, *sizes, **options)
    return out


def adjoint(grad: Tensor, grid: SamplingGrid) -> Tensor:
    """The gradient of `x`, given that of `forward(x, grid)`: gathered, the same from run to run.

    Args:
        grad: N x C x H x W, any strides, H x W being the grid's size (not checked).
        grid: exact positions of H x W pixels.

    Returns:
        N x C x h x w of the dtype and in the memory format of `grad`; 0 where no pixel reads.

    Raises:
        ValueError: when the result has more than 2**30 rows, or values in one.
    """
    out = empty_like(grad, (*grad.shape[:2], *grid.in_size))
    if out.numel():
        programs, strip, options = adjoint_plan(out, grid, is_channels_last(grad))
        sizes = (strip, grad.shape[1], *arguments(grid), *grad.stride())
        with on_device(grad):
            adjoint_kernel[(programs,)](grad, out, *sizes, **options)
    return out
