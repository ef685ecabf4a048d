"""Labels of upsampled scores: what argmax and confusion have in common.

A pixel is a convex combination of its cell's corners. So a class that is largest at all four is
largest in the whole cell, and nothing needs to be interpolated there; and where the winners of the
corners differ, a class below the mean of two of them at all four is nowhere the largest. A tie
goes to the first class, at the corners as anywhere, and a NaN wins over every number.

Lanes are patches (see `patches`), and a program a rectangle of them, so that its lanes see much
the same classes; but what becomes of a pixel depends on its own cell alone. A patch, along either
axis, is a tuple (see `axis_patch`):

    0, 1: its first output and their number
    2: the coarse value before it, from -2, where there is none
    3, 4: whether that value and the next are read; others count as 0
    5: how many of its outputs see but zeros: all, the first or none
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import MOST, accumulator
from .patches import axis_patches, columns_of, joined, longest
from .winners import LOW, SPECIAL, tables

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

# Sizes differ from picture to picture: no kernel of its own for a 1 or a multiple of 16 among them.
SIZES = ["images", "channels", "height", "width", "row_size", "column_size"]
SIZES += ["row_patches", "column_patches"]
# Lanes of a program, as many as a warp's, and how many rows of patches they are.
LANES, TILE_ROWS = 64 if torch.version.hip else 32, 4
# Outputs of a patch along either axis: the best score and class of each stay in registers.
PATCH, PATCH_ROWS_FLOAT64 = 8, 4


@triton.jit
def axis_patch(table, fractions, patch, patches, n, CLAMP: tl.constexpr):
    """A patch along an axis of n coarse values, as `table_kernel` tabulates it."""
    start = tl.load(table + patch)
    count = tl.load(table + patch + 1) - start
    cell = tl.load(table + patches + 1 + patch)
    if CLAMP:
        return start, count, cell, cell < n, (cell >= 0) & (cell < n - 1), 0 * cell
    else:
        before = cell - 1  # without the ring of zeros
        first, second = (before >= 0) & (before < n), (before >= -1) & (before < n - 1)
        on_ring = tl.load(fractions + start, mask=count > 0, other=0.0) == 0
        dark = tl.where(second, on_ring.to(tl.int32), count)
        return start, count, before, first, second, tl.where(first, 0, dark)


@triton.jit
def lane_patches(
    table_ptr, fraction_ptr,
    images, height, width, row_size, column_size, row_patches, column_patches,
    CLAMP: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program's patches: the image, the patch along either axis, and whether there is one.

    The columns of patches are counted on from image to image.
    """
    tile_columns: tl.constexpr = BLOCK // TILE_ROWS
    blocks = tl.cdiv(images * column_patches, tile_columns)
    lane = tl.arange(0, BLOCK)
    row = tl.program_id(0) // blocks * TILE_ROWS + lane // tile_columns
    column = tl.program_id(0) % blocks * tile_columns + lane % tile_columns
    there = (row < row_patches) & (column < images * column_patches)
    row = tl.minimum(row, row_patches - 1)
    column = tl.minimum(column, images * column_patches - 1)
    down = axis_patch(table_ptr, fraction_ptr, row, row_patches, height, CLAMP)
    across = axis_patch(
        table_ptr + 2 * row_patches + 1, fraction_ptr + row_size,
        column % column_patches, column_patches, width, CLAMP,
    )  # fmt: skip
    there = there & (down[1] > 0) & (across[1] > 0)
    return (column // column_patches).to(tl.int64), down, across, there


@triton.jit
def corner_winners(winner_ptr, image, row, column, height, width):
    """The winners of the points nearest to the corners of a cell.

    Returns them, whether they differ, and whether only exact weights will do for the pixels.
    """
    plane = winner_ptr + image * height * width
    upper = plane + tl.minimum(tl.maximum(row, 0), height - 1) * width
    lower = plane + tl.minimum(tl.maximum(row + 1, 0), height - 1) * width
    left = tl.minimum(tl.maximum(column, 0), width - 1)
    right = tl.minimum(tl.maximum(column + 1, 0), width - 1)
    a, b = tl.load(upper + left), tl.load(upper + right)
    c, d = tl.load(lower + left), tl.load(lower + right)
    least, bits = tl.minimum(tl.minimum(a, b), tl.minimum(c, d)), a | b | c | d
    a, b, c, d = a & (LOW - 1), b & (LOW - 1), c & (LOW - 1), d & (LOW - 1)
    differ = (a != b) | (a != c) | (a != d)
    # A class that is ruled out at a corner cannot win where all agree.
    return (a, b, c, d), differ, (least == SPECIAL) | (differ & (bits >= LOW))


@triton.jit
def offset_of(origin, down, across, xh, xw, CLAMP: tl.constexpr):
    """Where the upper left corners lie (or would lie, beyond a zero border), int64."""
    top, left = down[2].to(tl.int64), across[2].to(tl.int64)
    if CLAMP:
        top, left = tl.maximum(top, 0), tl.maximum(left, 0)
    return origin + top * xh + left * xw


@triton.jit
def corner_scores(upper, lower, xw, read, LEFT: tl.constexpr, ACC: tl.constexpr):
    """A class's scores at four corners, from pointers to the left ones.

    Those that are not read are 0; but with LEFT the left ones are read, whatever `read` says.
    """
    if LEFT:
        a, c = tl.load(upper), tl.load(lower)
    else:
        a, c = tl.load(upper, mask=read[0], other=0.0), tl.load(lower, mask=read[2], other=0.0)
    b = tl.load(upper + xw, mask=read[1], other=0.0)
    d = tl.load(lower + xw, mask=read[3], other=0.0)
    return a.to(ACC), b.to(ACC), c.to(ACC), d.to(ACC)


@triton.jit
def bar(corner, winner, other, read, ACC: tl.constexpr):
    """The mean of two winners at one corner; infinity where it is not read."""
    a = tl.load(corner + winner, mask=read, other=0.0).to(ACC)
    b = tl.load(corner + other, mask=read, other=0.0).to(ACC)
    return tl.where(read, (a + b) * 0.5, float("inf"))


@triton.jit
def bars_of(upper, lower, winners, read, lanes, xc, xw, ACC: tl.constexpr):
    """What a class has to reach at some corner to be the largest of a pixel; in other lanes, none
    can. At its own corner a winner is not below the mean, also when that is rounded.
    """
    a, b, c, d = winners
    other = tl.where(b != a, b, tl.where(c != a, c, d)).to(tl.int64) * xc
    a = a.to(tl.int64) * xc
    return (
        bar(upper, a, other, read[0] & lanes, ACC),
        bar(upper + xw, a, other, read[1] & lanes, ACC),
        bar(lower, a, other, read[2] & lanes, ACC),
        bar(lower + xw, a, other, read[3] & lanes, ACC),
    )


@triton.jit
def fractions_of(fractions, start, size, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """How far into their cell LENGTH outputs from `start` look: a tuple."""
    output = start[:, None] + tl.arange(0, LENGTH)[None, :]
    return columns_of(tl.load(fractions + output, mask=output < size, other=0.0), BLOCK, LENGTH)


@triton.jit
def largest_classes(
    upper, lower, xc, xw, read, bars, rows, columns, channels,
    CLAMP: tl.constexpr, FAR: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest class of each pixel of the patches, row by row: a tuple.

    A class below the bars takes no part in a patch, and no time if that is so in all lanes. rows,
    columns: how far into its cell each row and column looks.
    """
    best, label = (), ()
    for _ in tl.static_range(ROWS * COLUMNS):
        best = best + (tl.full([BLOCK], float("-inf"), ACC),)
        label = label + (tl.zeros([BLOCK], tl.int32),)
    step = channels * 0
    if FAR:
        step = step.to(tl.int64)
    for channel in range(channels):
        a, b, c, d = corner_scores(upper + step, lower + step, xw, read, CLAMP, ACC)
        step += xc
        # In a chain: four conditions at once would take twice the instructions.
        last = tl.where(a < bars[0], b, float("inf"))
        last = tl.where(last < bars[1], c, float("inf"))
        last = tl.where(last < bars[2], d, float("inf"))
        rival = last >= bars[3]
        if tl.max(rival.to(tl.int32), 0) > 0:
            a = tl.where(rival, a, float("nan"))  # which is not larger than any
            left_down, right_down = c - a, d - b
            new_best, new_label = (), ()
            for i in tl.static_range(ROWS):
                left = a + left_down * rows[i]
                slope = b + right_down * rows[i] - left
                for j in tl.static_range(COLUMNS):
                    score = left + slope * columns[j]
                    larger = score > best[i * COLUMNS + j]
                    new_best = new_best + (tl.where(larger, score, best[i * COLUMNS + j]),)
                    new_label = new_label + (tl.where(larger, channel, label[i * COLUMNS + j]),)
            best, label = new_best, new_label
    return label


@triton.jit
def mixed_labels(
    scores_ptr, origin, fraction_ptr, channels, row_size, column_size, down, across, winners,
    mixed, xc, xh, xw,
    CLAMP: tl.constexpr, FAR: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Labels, ROWS x BLOCK x COLUMNS: of `mixed` patches pixel by pixel, else the winner."""
    offset = offset_of(origin, down, across, xh, xw, CLAMP)
    read = (down[3] & across[3], down[3] & across[4], down[4] & across[3], down[4] & across[4])
    upper = scores_ptr + offset
    if CLAMP:  # the left corners are there; below the last row, it is that again
        lower = scores_ptr + (offset + tl.where(down[4], xh, 0))
    else:
        lower = scores_ptr + (offset + xh)
    bars = bars_of(upper, lower, winners, read, mixed, xc, xw, ACC)
    rows = fractions_of(fraction_ptr, down[0], row_size, ROWS, BLOCK)
    columns = fractions_of(fraction_ptr + row_size, across[0], column_size, COLUMNS, BLOCK)
    found = largest_classes(
        upper, lower, xc, xw, read, bars, rows, columns, channels,
        CLAMP, FAR, ACC, ROWS, COLUMNS, BLOCK,
    )  # fmt: skip
    labels = tl.reshape(joined(found, BLOCK, ROWS * COLUMNS), [BLOCK, ROWS, COLUMNS])
    labels = tl.where(mixed[:, None, None], labels, winners[0][:, None, None])
    return tl.permute(labels, [1, 0, 2])


@triton.jit
def row_taps(
    scores_ptr, origin, fraction_ptr, row, row_size, column_size, down, across, lanes, xh, xw,
    CLAMP: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where a row of the patches looks, tap by tap: a tap of weight 0 is not read.

    Returns pointers to the upper left corners of the first class, which of the four corners are
    read, and how far into the cell the row and each column look.
    """
    lanes = lanes & (row < down[1])
    y = tl.load(fraction_ptr + down[0] + row, mask=lanes, other=0.0)
    x = fractions_of(fraction_ptr + row_size, across[0], column_size, COLUMNS, BLOCK)
    # Only the first of several columns can look at the left corners alone.
    right = across[4] & ((x[0] != 0) | (across[1] > 1))
    corner = scores_ptr + offset_of(origin, down, across, xh, xw, CLAMP)
    above, below = lanes & down[3], lanes & down[4] & (y != 0)
    read = (above & across[3], above & right, below & across[3], below & right)
    return corner, read, y, x


@triton.jit
def row_scores(corner, read, y, x, xh, xw, ACC: tl.constexpr, COLUMNS: tl.constexpr):
    """A class's scores along a row, as `row_taps` says; corner: pointers to the upper left."""
    a, b, c, d = corner_scores(corner, corner + xh, xw, read, False, ACC)
    left, right = a * (1 - y) + c * y, b * (1 - y) + d * y
    scores = (left * (1 - x[0]) + tl.where(x[0] == 0, 0.0, right * x[0]),)
    for j in tl.static_range(1, COLUMNS):
        scores = scores + (left * (1 - x[j]) + right * x[j],)
    return scores


@triton.jit
def row_labels(
    taps, channels, xc, xh, xw, ACC: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    """Labels of a row, 1 x BLOCK x COLUMNS: a NaN is larger than any number."""
    corner, read, y, x = taps
    best, label = (), ()
    for _ in tl.static_range(COLUMNS):
        best = best + (tl.full([BLOCK], float("-inf"), ACC),)
        label = label + (tl.zeros([BLOCK], tl.int32),)
    for channel in range(channels):
        scores = row_scores(corner, read, y, x, xh, xw, ACC, COLUMNS)
        corner += xc
        new_best, new_label = (), ()
        for j in tl.static_range(COLUMNS):
            larger = ~(scores[j] <= best[j]) & (best[j] == best[j])
            new_best = new_best + (tl.where(larger, scores[j], best[j]),)
            new_label = new_label + (tl.where(larger, channel, label[j]),)
        best, label = new_best, new_label
    return tl.reshape(joined(label, BLOCK, COLUMNS), [1, BLOCK, COLUMNS])


@triton.jit
def pixels(first, rows, columns, COUNT: tl.constexpr, COLUMNS: tl.constexpr):
    """Row and column in their patch of COUNT rows from `first`, and which of them exist."""
    i, j = first + tl.arange(0, COUNT)[:, None, None], tl.arange(0, COLUMNS)[None, None, :]
    return i, j, (i < rows[None, :, None]) & (j < columns[None, :, None])


@triton.jit
def darkened(
    labels, first, down, across, CLAMP: tl.constexpr, COUNT: tl.constexpr, COLUMNS: tl.constexpr
):
    """Labels of COUNT rows from `first`, with the first class at pixels that see but zeros."""
    if CLAMP:
        return labels
    else:
        i, j = first + tl.arange(0, COUNT)[:, None, None], tl.arange(0, COLUMNS)[None, None, :]
        return tl.where((i < down[5][None, :, None]) | (j < across[5][None, :, None]), 0, labels)


class Tiles(NamedTuple):
    """How programs share a label map.

    programs: how many. arrays: what `tables` returns. sizes: SIZES, then strides. options: a
    kernel's others.
    """

    programs: int
    arrays: tuple[Tensor, Tensor, Tensor]
    sizes: tuple[int, ...]
    options: dict[str, Any]


def tiles(scores: Tensor, grid: SamplingGrid) -> Tiles:
    """How programs share the labels of `scores` at `grid`; launches the kernel that prepares it.

    Raises:
        ValueError: when there are more than 2**30 patches, or points of the coarse map.
    """
    most = (PATCH_ROWS_FLOAT64 if scores.dtype == torch.float64 else PATCH, PATCH)
    lengths = tuple(min(triton.next_power_of_2(longest(grid, k)), most[k]) for k in (0, 1))
    rows, columns = (axis_patches(grid, k, lengths[k]) for k in (0, 1))
    images, channels, height, width = scores.shape
    if rows.patches * images * columns.patches > MOST:
        raise ValueError(f"{images} maps of {grid.size} are more than {MOST} patches")
    arrays = tables(scores, grid, rows, columns, lengths)
    blocks = triton.cdiv(images * columns.patches, LANES // TILE_ROWS)
    programs = triton.cdiv(rows.patches, TILE_ROWS) * blocks
    sizes = (images, channels, height, width, *grid.size, rows.patches, columns.patches)
    options = {
        "CLAMP": grid.border == "clamp",
        "FAR": channels * scores.stride(1) >= 2**31,
        "ACC": accumulator(scores.dtype),
        "ROWS": lengths[0],
        "COLUMNS": lengths[1],
        "TILE_ROWS": TILE_ROWS,
        "BLOCK": LANES,
        "num_warps": 1,
    }
    return Tiles(programs, arrays, (*sizes, *scores.stride()), options)


def aligned(grid: SamplingGrid, length: int) -> int:
    """A power of two, `length` at most, that the patches' first columns and the width are multiples
    of."""
    num, off, den = grid.num[1], grid.off[1], grid.den[1]
    if num == 0 or den % num:
        return 1
    return gcd(-(off // num), den // num, grid.size[1], length)
