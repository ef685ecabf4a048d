"""Labels of upsampled scores: what argmax and confusion have in common.

A pixel is a convex combination of its cell's corners. So a class that is largest at all four is
largest in the whole cell, and nothing needs to be interpolated there. Where the winners of the
corners differ, `rivals` looks on. A tie goes to the first class, at the corners as anywhere, and a
NaN wins over every number; but cells with one take every tap with its exact weight, row by row.

Lanes are patches (see `patches`), and a program a rectangle of them, so that its lanes see much
the same classes; but what becomes of a pixel depends on its own cell alone. A patch, along either
axis, is a tuple (see `axis_patch`):

    0, 1: its first output and their number
    2: the coarse value before it, from -2, where there is none
    3, 4: whether that value and the next are read; others count as 0
    5: whether the first output looks at the ring of zeros, between it and the map
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
        return start, count, cell, cell < n, (cell >= 0) & (cell < n - 1), cell < -1
    else:
        before = cell - 1  # without the ring
        fraction = tl.load(fractions + start)  # the last patch has outputs, so there is one
        first, second = (before >= 0) & (before < n), (before >= -1) & (before < n - 1)
        return start, count, before, first, second, ~first & second & (fraction == 0)


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
def corner_winners(winner_ptr, image, down, across, there, height, width):
    """The winners of the points nearest to the corners of a cell.

    Returns them, and of which patches, of those that are there, the pixels are to be looked at: in
    which the winners differ, or where only exact weights will do.
    """
    plane = winner_ptr + image * height * width
    upper = plane + tl.maximum(down[2], 0) * width
    lower = plane + tl.minimum(down[2] + 1, height - 1) * width
    left, right = tl.maximum(across[2], 0), tl.minimum(across[2] + 1, width - 1)
    # Pixels that see but zeros are of the first class; others have a point on one side at least.
    bright = (down[3] | down[4]) & (across[3] | across[4])
    a, b = tl.load(upper + left, mask=bright, other=0), tl.load(upper + right, mask=bright, other=0)
    c, d = tl.load(lower + left, mask=bright, other=0), tl.load(lower + right, mask=bright, other=0)
    least, bits = tl.minimum(tl.minimum(a, b), tl.minimum(c, d)), a | b | c | d
    a, b, c, d = a & (LOW - 1), b & (LOW - 1), c & (LOW - 1), d & (LOW - 1)
    differ = there & ((a != b) | (a != c) | (a != d))
    # A class that is ruled out at a corner cannot win where all agree.
    special = (least == SPECIAL) | (differ & (bits >= LOW)) | (bright & (down[5] | across[5]))
    return (a, b, c, d), differ & ~special, there & special


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
def fractions_of(fractions, start, size, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """How far into their cell LENGTH outputs from `start` look: a tuple."""
    output = start[:, None] + tl.arange(0, LENGTH)[None, :]
    return columns_of(tl.load(fractions + output, mask=output < size, other=0.0), BLOCK, LENGTH)


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


class Tiles(NamedTuple):
    """How programs share a label map.

    programs: how many. arrays: what `tables` returns. sizes: SIZES, then strides. options: those
    of every kernel; of_labels: those that `mixed_labels` needs besides.
    """

    programs: int
    arrays: tuple[Tensor, Tensor, Tensor]
    sizes: tuple[int, ...]
    options: dict[str, Any]
    of_labels: dict[str, Any]


def tiles(scores: Tensor, grid: SamplingGrid) -> Tiles:
    """How programs share the labels of `scores` at `grid`; launches the kernel that prepares it.

    Raises:
        ValueError: when there are more than 2**30 patches, or points of the coarse map, or 2**27
            pixels along an axis.
    """
    most = (PATCH_ROWS_FLOAT64 if scores.dtype == torch.float64 else PATCH, PATCH)
    lengths = tuple(min(triton.next_power_of_2(longest(grid, k)), most[k]) for k in (0, 1))
    rows, columns = (axis_patches(grid, k, lengths[k]) for k in (0, 1))
    images, channels, height, width = scores.shape
    if rows.patches * images * columns.patches > MOST:
        raise ValueError(f"{images} maps of {grid.size} are more than {MOST} patches")
    if max(rows.patches, columns.patches, *grid.size) > MOST // PATCH:
        raise ValueError(f"{grid.size} has an axis of more than {MOST // PATCH} pixels or patches")
    arrays = tables(scores, grid, rows, columns, lengths)
    blocks = triton.cdiv(images * columns.patches, LANES // TILE_ROWS)
    programs = triton.cdiv(rows.patches, TILE_ROWS) * blocks
    sizes = (images, channels, height, width, *grid.size, rows.patches, columns.patches)
    options = {
        "CLAMP": grid.border == "clamp",
        "ACC": accumulator(scores.dtype),
        "COLUMNS": lengths[1],
        "TILE_ROWS": TILE_ROWS,
        "BLOCK": LANES,
        "num_warps": 1,
    }
    of_labels = {
        "ROWS": lengths[0],
        "SPLIT": max(rows.inner, columns.inner) > 1,
        "FAR": channels * scores.stride(1) >= 2**31,
    }
    return Tiles(programs, arrays, (*sizes, *scores.stride()), options, of_labels)


def aligned(grid: SamplingGrid, length: int) -> int:
    """A power of two, `length` at most, that the patches' first columns and the width are multiples
    of."""
    num, off, den = grid.num[1], grid.off[1], grid.den[1]
    if num == 0 or den % num:
        return 1
    return gcd(-(off // num), den // num, grid.size[1], length)
