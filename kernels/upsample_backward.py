"""The gradient of upsample: every coarse value gathers from the pixels that read it."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .grid import (
    GRID_SIZES,
    Plan,
    check_rows,
    check_supported,
    clamped_position,
    empty_like,
    fast_weight,
    first_at,
    grid_arguments,
    inverse,
    is_channels_last,
    on_device,
    outputs_before,
    readers,
    row_alignment,
    warps,
    window_sums,
)

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

# Values that a program takes of a row of the gradient, at most; and how many of the channels that
# lie interleaved, where it cannot take them all.
TILE, CHANNELS = 2048, 32
# Coarse rows of a strip, at most, and programs to aim at: short strips keep a GPU busy.
STRIP, PROGRAMS = 16, 2048


@triton.jit
def cell_sums(
    row_ptr, stride, values, valid, first, last, row, height, size, num, off, den, inverse_den,
    CLAMP: tl.constexpr,
):  # fmt: skip
    """Rows first to last - 1 of a gradient, which look between coarse rows `row` and `row + 1`.

    row_ptr: row 0 of `size`, which are `stride` apart. values, valid: offsets in a row, and a
    mask, TILE each. The coarse map has `height` rows; inverse_den: 1 / den.

    Returns the sums with the weights of the upper and of the lower coarse row.
    """
    upper = tl.zeros(values.shape, tl.float32)
    lower = upper
    row_ptr += first.to(tl.int64) * stride
    between = outputs_before(row * den + 1, size, num, off)  # rows before look at `row` itself
    if CLAMP:
        between = tl.where(row == height - 1, last, between)
    for _ in range(first, between):
        upper += tl.load(row_ptr + values, mask=valid, other=0.0).to(tl.float32)
        row_ptr += stride
    for y in range(between, last):
        part = num * y + off - row * den  # how far below the upper row, in 1 / den
        grad = tl.load(row_ptr + values, mask=valid, other=0.0).to(tl.float32)
        upper += grad * fast_weight(den - part, inverse_den)
        lower += grad * fast_weight(part, inverse_den)
        row_ptr += stride
    return upper, lower


@triton.jit
def windows(
    first, last, j, x_first, x_last, begin, channel, n, num, off, den,
    CLAMP: tl.constexpr, GROUP: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Where the columns `first` to `last` - 1 that coarse values read are in a tile: indices.

    j, x_first, x_last, channel: the columns of the values, their readers, and their channels in
    the tile, which begins at value `begin` of a row.

    Returns WINDOW x as many indices and weights, 0 for an index that is not to be read.
    """
    # Each window in an order of its own, so that their places lie in different banks of memory.
    order = (tl.arange(0, WINDOW)[:, None] + (x_first * GROUP // 32)[None, :]) % WINDOW
    x = tl.maximum(x_first, first)[None, :] + order
    distance = tl.abs(clamped_position(x, n, num, off, den, CLAMP) - j[None, :] * den)
    inside = x < tl.minimum(x_last, last)[None, :]
    w = tl.where(inside, fast_weight(den - distance, inverse(den)), 0.0)
    return tl.where(inside, x * GROUP + channel[None, :] - begin, 0), w


@triton.jit(do_not_specialize=["strip", "channels", *GRID_SIZES, "columns", "chunks"])
def adjoint_kernel(
    grad_ptr, out_ptr,
    strip, channels, in_height, in_width, height, width,
    row_num, row_off, row_den, column_num, column_off, column_den,
    gn, gc, gh, gw, columns, chunks,
    CLAMP: tl.constexpr, CHANNELS_LAST: tl.constexpr, GROUP: tl.constexpr,
    DENSE: tl.constexpr, ALIGN: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One program: `columns` columns of `strip` rows of a plane of the coarse map.

    grad_ptr: N x channels x height x width, strides gn, gc, gh, gw. If DENSE the values of a row
        are contiguous, and rows start at multiples of ALIGN.
    out_ptr: N x channels x in_height x in_width, dense. A row holds one channel, or all of them
        interleaved if CHANNELS_LAST: of these the program takes GROUP.

    The gradient's rows, TILE values of them, are summed cell by cell, and of these sums those of
    the columns that read each of BLOCK results, at most WINDOW: always in the same order. Columns
    that no tile holds come in `chunks`; that needs a strip of 1. Every other strip is walked
    upwards, so that neighbors read the cells that they share at about the same time, and only
    one of them from memory.
    """
    groups = tl.cdiv(channels, GROUP) if CHANNELS_LAST else 1
    blocks, strips = tl.cdiv(in_width, columns) * groups, tl.cdiv(in_height, strip)
    block = tl.program_id(0) % blocks
    plane = tl.program_id(0) // blocks // strips
    strip_number = tl.program_id(0) // blocks % strips
    first_row = strip_number * strip
    rows, upwards = tl.minimum(in_height - first_row, strip), strip_number % 2
    n, c = plane, block % groups * GROUP
    if not CHANNELS_LAST:
        n, c = plane // channels, plane % channels
    grad_ptr += (n.to(tl.int64) * gn + c.to(tl.int64) * gc) // ALIGN * ALIGN
    out_ptr += plane.to(tl.int64) * in_height * in_width * (channels if CHANNELS_LAST else 1)
    num, off, den = column_num, column_off, column_den
    inverse_row_den = inverse(row_den)

    j_first = block // groups * columns
    j_last = tl.minimum(j_first + columns, in_width)
    channel = tl.arange(0, BLOCK) % GROUP
    j = j_first + tl.arange(0, BLOCK) // GROUP
    valid_results = (j < j_last) & (c + channel < channels)
    results = j * channels + c + channel if CHANNELS_LAST else j
    j = tl.minimum(j, j_last - 1)
    x_first, x_last = readers(j, in_width, width, num, off, den, CLAMP)
    first, _ = readers(j_first, in_width, width, num, off, den, CLAMP)
    _, end = readers(j_last - 1, in_width, width, num, off, den, CLAMP)

    total = tl.zeros([BLOCK], tl.float32)
    for chunk in range(0, chunks):
        begin = first * GROUP // ALIGN * ALIGN
        last = tl.minimum(end, (begin + TILE) // GROUP)
        index, w = windows(
            first, last, j, x_first, x_last, begin, channel, in_width, num, off, den,
            CLAMP, GROUP, WINDOW,
        )  # fmt: skip
        first = last
        values = begin + tl.arange(0, TILE)
        valid = values < width * GROUP // ALIGN * ALIGN
        if not DENSE:
            valid &= c + values % GROUP < channels
            x, channel_of_x = values // GROUP, values % GROUP
            values = x.to(tl.int64) * gw + channel_of_x.to(tl.int64) * gc

        row = first_row - 1 + upwards * rows
        edge = first_at(row + upwards, in_height, height, row_num, row_off, row_den, CLAMP)
        held = tl.zeros([TILE], tl.float32)
        for step in range(0, rows + 1):
            next_edge = first_at(
                row + 1 - upwards, in_height, height, row_num, row_off, row_den, CLAMP
            )
            upper, lower = cell_sums(
                grad_ptr, gh // ALIGN * ALIGN, values, valid,
                tl.minimum(edge, next_edge), tl.maximum(edge, next_edge),
                row, in_height, height, row_num, row_off, row_den, inverse_row_den, CLAMP,
            )  # fmt: skip
            if step > 0:
                part = window_sums(held + tl.where(upwards == 1, lower, upper), index, w)
                total = tl.where(chunk == 0, part, total + part)
                start = (row + upwards).to(tl.int64) * in_width * (channels if CHANNELS_LAST else 1)
                value = total.to(out_ptr.dtype.element_ty)
                tl.store(out_ptr + start + results, value, mask=valid_results)
            held = tl.where(upwards == 1, upper, lower)
            edge = next_edge
            row += 1 - 2 * upwards


class Shares(NamedTuple):
    """How the columns of the coarse map are shared out.

    group: channels that a program takes of those that lie interleaved. columns: coarse columns of
    a program. blocks: programs for a strip. tile, block, window: values of a row of the gradient,
    results, and columns that a result gathers from, at once. chunks: how often, to get them all.
    """

    group: int
    columns: int
    blocks: int
    tile: int
    block: int
    window: int
    chunks: int


def longest_window(
    n: int, size: int, num: int, off: int, den: int, clamp: bool, columns: int = 1
) -> int:
    """At least as many as the outputs of an axis that read any of `columns` neighboring values."""
    if num == 0 or columns >= n:
        return size
    longest = triton.cdiv((columns + 1) * den, num)
    if clamp:  # an edge is read from all places beyond it, too
        first = triton.cdiv(columns * den - off, num)
        last = size + (off - (n - 1 - columns) * den) // num
        longest = max(longest, first, last)
    return min(longest, size)


def _shares(grid: SamplingGrid, channels: int, group: int, align: int, tile: int) -> Shares:
    """The most coarse columns whose readers fit into a tile."""
    n, size = grid.in_size[1], grid.size[1]
    axis = n, size, grid.num[1], grid.off[1], grid.den[1], grid.border == "clamp"

    def needed(columns: int) -> int:
        return min(longest_window(*axis, columns) * group + align - 1, size * group)

    window = triton.next_power_of_2(min(longest_window(*axis), tile // group))
    block = 4 * tile // window  # results at most, so that indices fit in registers
    columns = max(min(bisect_right(range(1, n + 1), tile, key=needed), block // group), 1)
    columns = triton.cdiv(n, triton.cdiv(n, columns))
    chunks = 1
    if needed(columns) > tile:
        chunks = triton.cdiv(longest_window(*axis, columns), (tile - align + 1) // group)
    block = triton.next_power_of_2(columns * group)
    blocks = triton.cdiv(n, columns) * triton.cdiv(channels, group)
    return Shares(group, columns, blocks, tile, block, window, chunks)


def shares(grid: SamplingGrid, channels: int, align: int, most: int) -> Shares:
    """The way with the fewest values in all tiles together: at most `most` values in one.

    channels: how many lie interleaved.
    """
    sizes = [min(most, max(triton.next_power_of_2(grid.size[1] * channels), 64))]
    while sizes[-1] > 64:
        sizes.append(sizes[-1] // 2)
    groups = [(channels, align)] + [(CHANNELS, 1)] * (channels > CHANNELS)
    fitting = [(*group, size) for group in groups for size in sizes if size >= 2 * group[0]]
    ways = [_shares(grid, channels, *way) for way in fitting]
    return min(ways, key=lambda way: (way.blocks * way.chunks * way.tile, -way.tile))


@lru_cache(maxsize=1024)
def plan(shape: tuple[int, ...], grid: SamplingGrid, channels_last: bool, align: int) -> Plan:
    """How the kernel makes a dense coarse gradient of `shape`.

    channels_last, align: of the fine gradient, as `row_alignment`.
    """
    rows, _ = check_rows(shape, channels_last)
    check_rows((*shape[:2], *grid.size), channels_last)
    interleaved = shape[1] if channels_last else 1
    # Registers hold four values of a tile for each thread, or eight where these are easily got at.
    few = align <= 1 or interleaved > CHANNELS
    way = shares(grid, interleaved, max(align, 1), TILE // 2 if few else TILE)
    values = max(way.tile, way.block * max(way.window // 2, 4))
    num_warps = warps(values * 2 if few else values)
    programs = PROGRAMS // max(num_warps // 4, 1)
    strip = min(max(rows * way.blocks // programs, 2), STRIP) if way.chunks == 1 else 1
    strips = triton.cdiv(shape[2], strip)
    dense = align > 0 and way.group == interleaved
    options = {
        "columns": way.columns, "chunks": way.chunks, "CLAMP": grid.border == "clamp",
        "CHANNELS_LAST": channels_last, "GROUP": way.group, "DENSE": dense,
        "ALIGN": align if dense else 1, "TILE": way.tile, "BLOCK": way.block, "WINDOW": way.window,
        "num_warps": num_warps,
    }  # fmt: skip
    programs = rows // shape[2] * strips * way.blocks
    return Plan(programs, triton.cdiv(shape[2], strips), options)


def adjoint(grad: Tensor, grid: SamplingGrid) -> Tensor:
    """The gradient of `x`, given that of ``upsample.forward(x, grid)``: the same in every run.

    Args:
        grad: N x C x H x W, any strides, H x W being the grid's size (not checked).
        grid: exact positions of H x W pixels.

    Returns:
        N x C x h x w of the dtype and in the memory format of `grad`; 0 where no pixel reads.

    Raises:
        ValueError: as `check_rows` of `grad` or the result, and as `check_supported`.
    """
    check_supported(grad, grid)
    out = empty_like(grad, (*grad.shape[:2], *grid.in_size))
    if grad.numel() == 0:
        return out
    channels_last = is_channels_last(grad)
    align = row_alignment(grad, channels_last)
    programs, strip, options = plan(tuple(out.shape), grid, channels_last, align)
    sizes = (strip, grad.shape[1], *grid_arguments(grid), *grad.stride())
    with on_device(grad):
        adjoint_kernel[(programs,)](grad, out, *sizes, **options)
    return out
