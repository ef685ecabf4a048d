"""Labels of upsampled scores, for argmax and confusion: winners of points, of cells, of pixels.

A pixel is a convex combination of its cell's corners. So a class that is largest at all four is
largest in the whole cell, and nothing needs to be interpolated there. Where the winners of the
corners differ, only the candidates are interpolated: a class that lies below a convex combination
of others at all corners of a patch is nowhere its largest. A tie goes to the first class, at the
corners as anywhere, and a NaN wins over every number; but cells with one take every tap with its
exact weight, row by row.

`table_kernel` finds the winner of each coarse point, and tabulates the patches of either axis (see
`grid`), so that the kernels that label pixels neither divide nor compare it all again. In these a
lane is a patch, and a program a rectangle of TILE_ROWS rows of patches, BLOCK in all: its lanes see
much the same classes. What becomes of a pixel depends on its own cell alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import (
    MOST,
    Axis,
    Corners,
    Strided,
    axis_patches,
    cell_start,
    clamped,
    columns_of,
    floor_divide,
    joined,
    longest,
    patch_at,
    weight,
)

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

STRIDES = ["xn", "xc", "xh"]
# Sizes and strides differ from picture to picture: no kernel of its own for a 1 or a multiple of 16
# among them. (A stride of 1 from column to column is worth one.)
SIZES = ["images", "num_classes", "height", "width", "row_size", "column_size"]
SIZES += ["row_patches", "column_patches", *STRIDES]
AXIS = ["n", "size", "num", "off", "den", "first", "cells", "head", "inner", "patches"]
TABLE_SIZES = ["num_classes", "height", "width", "point_programs", *STRIDES]
TABLE_SIZES += [f"{axis}_{part}" for axis in ("row", "column") for part in AXIS]
# Lanes of a program, as many as a warp's, and how many rows of patches they are.
LANES, TILE_ROWS = 64 if torch.version.hip else 32, 4
# Outputs of a patch along either axis: the best score and class of each stay in registers.
PATCH = 8
# Points of a program of `table_kernel`, and classes whose scores it asks for at once.
POINTS, UNROLL = 128, 8
# Beyond, sums of two scores and differences may overflow: such points are SPECIAL, or LOW.
LARGE = tl.constexpr(2.0**124)
# Instead of a winner: the point has a NaN, or a score of LARGE or more.
SPECIAL = tl.constexpr(-1)
# Added to the winner of any other point that has a score of -LARGE or less: a masked class.
LOW = tl.constexpr(2**30)


# ---- the winner of each coarse point, and the tables of both axes


@triton.jit
def with_classes(
    place, stride, first, num_classes, best, winner, size,
    COUNT: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The largest score, its class and the sum of all magnitudes, with COUNT classes more.

    place: pointers to class `first`; returned, moved on. MASK: whether there may be fewer.
    """
    scores = ()
    for k in tl.static_range(COUNT):
        mask = first + k < num_classes if MASK else None
        score = tl.load(place, mask=mask, other=0.0 if MASK else None)
        scores = scores + (score.to(tl.float32),)
        place += stride
    for k in tl.static_range(COUNT):
        larger = scores[k] > best
        if MASK:
            larger = larger & (first + k < num_classes)
        best = tl.where(larger, scores[k], best)
        winner = tl.where(larger, first + k, winner)
        size += tl.abs(scores[k])
    return place, best, winner, size


@triton.jit
def point_winners(
    program, scores, winner_ptr, num_classes, height, width,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Store the first largest class of BLOCK points of an image's coarse map, SPECIAL or LOW."""
    blocks = tl.cdiv(height * width, BLOCK)
    image = (program // blocks).to(tl.int64)
    point = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = point < height * width
    point = tl.where(inside, point, 0)
    row, column = (point // width).to(tl.int64), (point % width).to(tl.int64)
    place = scores.ptr + (image * scores.n + row * scores.h + column * scores.w)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    winner, size = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.float32)
    whole = num_classes // UNROLL * UNROLL
    for first in range(0, whole, UNROLL):
        place, best, winner, size = with_classes(
            place, scores.c, first, num_classes, best, winner, size, UNROLL, False
        )
    if whole < num_classes:
        place, best, winner, size = with_classes(
            place, scores.c, whole, num_classes, best, winner, size, UNROLL, True
        )
    masked = (best < LARGE) & (size == size)  # by -inf, say, but there is no NaN
    code = tl.where(size < LARGE, winner, tl.where(masked, winner + LOW, SPECIAL))
    tl.store(winner_ptr + (image * height * width + point), code, mask=inside)


@triton.jit
def tabulate(item, table_ptr, fraction_ptr, axis, patches, LENGTH: tl.constexpr):
    """Store of patches `item`, at most LENGTH outputs each, the first output and the cell; of
    outputs `item`, how far into their cell they look.

    axis: an Axis of scalars, which has `patches`.
    """
    cell, which = patch_at(item, axis)
    start = cell_start(cell, axis) + which * LENGTH
    start = tl.minimum(start, cell_start(cell + 1, axis))
    tl.store(table_ptr + item, tl.where(item < patches, start, axis.size), mask=item <= patches)
    tl.store(table_ptr + patches + 1 + item, cell, mask=item < patches)
    position = axis.num * item + axis.off
    cell = floor_divide(position, axis.den)
    _, part = clamped(cell, position - cell * axis.den, axis.n, True)
    # Never rounded to 1, which would say that the cell's first value is not read: den <= 2**24.
    tl.store(fraction_ptr + item, weight(part, axis.den), mask=item < axis.size)


@triton.jit(do_not_specialize=TABLE_SIZES)
def table_kernel(
    scores_ptr, winner_ptr, table_ptr, fraction_ptr,
    num_classes, height, width, point_programs,
    row_n, row_size, row_num, row_off, row_den,
    row_first, row_cells, row_head, row_inner, row_patches,
    column_n, column_size, column_num, column_off, column_den,
    column_first, column_cells, column_head, column_inner, column_patches,
    xn, xc, xh, xw,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK points of the coarse map, or BLOCK entries of the tables of either axis.

    scores_ptr: N x num_classes x height x width, strides xn, xc, xh, xw.
    winner_ptr: N x height x width, int32: of each point the first largest class, SPECIAL or LOW.
    table_ptr: int32, of the rows, then of the columns: the first output of each patch, how many
        outputs there are, the cell of each patch (of the extended map): 2 * patches + 1 each.
    fraction_ptr: of each row, then of each column, how far into its cell it looks: from 0, as
        those that were clamped, to less than 1.
    """
    program = tl.program_id(0)
    if program < point_programs:
        scores = Strided(scores_ptr, xn, xc, xh, xw)
        point_winners(program, scores, winner_ptr, num_classes, height, width, BLOCK, UNROLL)
    else:
        item = (program - point_programs) * BLOCK + tl.arange(0, BLOCK)
        rows = Axis(
            row_n, row_size, row_num, row_off, row_den,
            row_first, row_cells, row_head, row_inner, 0,
        )  # fmt: skip
        tabulate(item, table_ptr, fraction_ptr, rows, row_patches, ROWS)
        columns = Axis(
            column_n, column_size, column_num, column_off, column_den,
            column_first, column_cells, column_head, column_inner, 0,
        )  # fmt: skip
        table_ptr, fraction_ptr = table_ptr + 2 * row_patches + 1, fraction_ptr + row_size
        tabulate(item, table_ptr, fraction_ptr, columns, column_patches, COLUMNS)


# ---- lanes: which patch each has, and where its corners are


class Span(NamedTuple):
    """A lane's patch along one axis.

    start, length: its first output, and how many it has.
    corner: the coarse value before it, from -2, where there is none.
    first, second: whether that value and the next are in the map; others count as 0.
    on_border: whether the first output looks at the ring of zeros, between it and the map.
    """

    start: tl.tensor
    length: tl.tensor
    corner: tl.tensor
    first: tl.tensor
    second: tl.tensor
    on_border: tl.tensor


class Patch(NamedTuple):
    """A lane's patch: its image (int64), its spans of rows and columns, whether there is one."""

    image: tl.tensor
    rows: Span
    columns: Span
    valid: tl.tensor


@triton.jit
def span_of(table, fractions, patch, patches, n, CLAMP: tl.constexpr):
    """A patch along an axis of n coarse values, as `table_kernel` tabulates it."""
    start = tl.load(table + patch)
    length = tl.load(table + patch + 1) - start
    cell = tl.load(table + patches + 1 + patch)
    if CLAMP:
        return Span(start, length, cell, cell < n, (cell >= 0) & (cell < n - 1), cell < -1)
    else:
        corner = cell - 1  # without the ring
        fraction = tl.load(fractions + start)  # the last patch has outputs, so there is one
        first, second = (corner >= 0) & (corner < n), (corner >= -1) & (corner < n - 1)
        return Span(start, length, corner, first, second, ~first & second & (fraction == 0))


@triton.jit
def lane_patches(
    table_ptr, fraction_ptr,
    images, height, width, row_size, row_patches, column_patches,
    CLAMP: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The Patch of each of this program's BLOCK lanes.

    Lanes are TILE_ROWS rows of patches; columns of patches are counted on from image to image.
    """
    tile_columns: tl.constexpr = BLOCK // TILE_ROWS
    blocks = tl.cdiv(images * column_patches, tile_columns)
    lane = tl.arange(0, BLOCK)
    row = tl.program_id(0) // blocks * TILE_ROWS + lane // tile_columns
    column = tl.program_id(0) % blocks * tile_columns + lane % tile_columns
    valid = (row < row_patches) & (column < images * column_patches)
    row = tl.minimum(row, row_patches - 1)
    column = tl.minimum(column, images * column_patches - 1)
    rows = span_of(table_ptr, fraction_ptr, row, row_patches, height, CLAMP)
    columns = span_of(
        table_ptr + 2 * row_patches + 1, fraction_ptr + row_size,
        column % column_patches, column_patches, width, CLAMP,
    )  # fmt: skip
    valid = valid & (rows.length > 0) & (columns.length > 0)
    return Patch((column // column_patches).to(tl.int64), rows, columns, valid)


@triton.jit
def corner_winners(winner_ptr, patch, height, width):
    """The winners of the points nearest to the corners of each lane's cell.

    Returns them, as Corners, and two masks of the patches whose pixels are to be looked at: in
    which the winners differ, and where only exact weights will do.
    """
    rows, columns = patch.rows, patch.columns
    plane = winner_ptr + patch.image * height * width
    upper = plane + tl.maximum(rows.corner, 0) * width
    lower = plane + tl.minimum(rows.corner + 1, height - 1) * width
    left, right = tl.maximum(columns.corner, 0), tl.minimum(columns.corner + 1, width - 1)
    # Pixels that see but zeros are of the first class; others have a point on one side at least.
    seen = (rows.first | rows.second) & (columns.first | columns.second)
    a, b = tl.load(upper + left, mask=seen, other=0), tl.load(upper + right, mask=seen, other=0)
    c, d = tl.load(lower + left, mask=seen, other=0), tl.load(lower + right, mask=seen, other=0)
    least, bits = tl.minimum(tl.minimum(a, b), tl.minimum(c, d)), a | b | c | d
    a, b, c, d = a & (LOW - 1), b & (LOW - 1), c & (LOW - 1), d & (LOW - 1)
    differ = patch.valid & ((a != b) | (a != c) | (a != d))
    # A class that is masked at a corner cannot win where all agree.
    special = (least == SPECIAL) | (differ & (bits >= LOW))
    special = special | (seen & (rows.on_border | columns.on_border))
    return Corners(a, b, c, d), differ & ~special, patch.valid & special


@triton.jit
def offset_of(scores, patch, CLAMP: tl.constexpr):
    """Where the upper left corners lie (or would lie, beyond a zero border), int64."""
    top, left = patch.rows.corner.to(tl.int64), patch.columns.corner.to(tl.int64)
    if CLAMP:
        top, left = tl.maximum(top, 0), tl.maximum(left, 0)
    return patch.image * scores.n + top * scores.h + left * scores.w


@triton.jit
def corner_scores(upper, lower, stride, valid, LEFT: tl.constexpr):
    """A class's scores at the corners, from pointers to the left ones; stride: of columns.

    valid: Corners of masks: others are 0; but with LEFT the left ones are read whatever it says.
    """
    if LEFT:
        a, c = tl.load(upper), tl.load(lower)
    else:
        a, c = tl.load(upper, mask=valid.a, other=0.0), tl.load(lower, mask=valid.c, other=0.0)
    b = tl.load(upper + stride, mask=valid.b, other=0.0)
    d = tl.load(lower + stride, mask=valid.d, other=0.0)
    return Corners(a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32))


@triton.jit
def fractions_of(fractions, start, size, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """How far into their cell LENGTH outputs from `start` look: a tuple."""
    output = start[:, None] + tl.arange(0, LENGTH)[None, :]
    return columns_of(tl.load(fractions + output, mask=output < size, other=0.0), BLOCK, LENGTH)


# ---- mixed cells: the candidates, pixel by pixel


class Ends(NamedTuple):
    """How far into the cell the first and last row, the first and last column of a patch look."""

    top: tl.tensor
    bottom: tl.tensor
    left: tl.tensor
    right: tl.tensor


@triton.jit
def patch_ends(fraction_ptr, patch, row_size):
    """The Ends of each lane's patch."""
    rows, columns = fraction_ptr + patch.rows.start, fraction_ptr + row_size + patch.columns.start
    # Of a patch without outputs the last is the one before it: it is not the first of its axis.
    bottom, right = rows + patch.rows.length - 1, columns + patch.columns.length - 1
    return Ends(tl.load(rows), tl.load(bottom), tl.load(columns), tl.load(right))


@triton.jit
def at_ends(s, ends):
    """A class's scores at the four corner pixels of a patch, from those at the cell's corners."""
    left, right = s.a + (s.c - s.a) * ends.top, s.b + (s.d - s.b) * ends.top
    low_left, low_right = s.a + (s.c - s.a) * ends.bottom, s.b + (s.d - s.b) * ends.bottom
    slope, low_slope = right - left, low_right - low_left
    return Corners(
        left + slope * ends.left,
        left + slope * ends.right,
        low_left + low_slope * ends.left,
        low_left + low_slope * ends.right,
    )


@triton.jit
def mean_of(p, q):
    """The means of the scores of two classes."""
    return Corners((p.a + q.a) * 0.5, (p.b + q.b) * 0.5, (p.c + q.c) * 0.5, (p.d + q.d) * 0.5)


@triton.jit
def cell_bounds(p, q, valid):
    """The mean of two winners at the corners of a cell; infinity at those that are not read.

    At its own corner, a winner is not below it: a mean of two is not rounded beyond the larger.
    """
    m, inf = mean_of(p, q), float("inf")
    return Corners(
        tl.where(valid.a, m.a, inf), tl.where(valid.b, m.b, inf),
        tl.where(valid.c, m.c, inf), tl.where(valid.d, m.d, inf),
    )  # fmt: skip


@triton.jit
def patch_bounds(p, q, ends):
    """The first of two winners `at_ends`, or their mean if its least score there is larger."""
    s, m = at_ends(p, ends), at_ends(mean_of(p, q), ends)
    least = tl.minimum(tl.minimum(s.a, s.b), tl.minimum(s.c, s.d))
    mean = tl.minimum(tl.minimum(m.a, m.b), tl.minimum(m.c, m.d)) > least
    return Corners(
        tl.where(mean, m.a, s.a), tl.where(mean, m.b, s.b),
        tl.where(mean, m.c, s.c), tl.where(mean, m.d, s.d),
    )  # fmt: skip


@triton.jit
def two_winners(winners, ends, NEAREST: tl.constexpr):
    """One of the corners' winners, of the corner that is nearest to the patch if NEAREST; and one
    that differs from it, if there is one.
    """
    a, b, c, d = winners
    first = a
    if NEAREST:
        right, low = ends.left + ends.right > 1, ends.top + ends.bottom > 1
        first = tl.where(low, tl.where(right, d, c), tl.where(right, b, a))
    other = tl.where(b != first, b, tl.where(c != first, c, tl.where(d != first, d, a)))
    return first, other


@triton.jit
def largest_candidates(
    upper, lower, strides, valid, bounds, ends, rows, columns, num_classes, label,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, FAR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest class of each pixel of the patches, row by row: a tuple.

    upper, lower: pointers to the left corners, of the first class; strides, of classes and columns.
    rows, columns: how far into its cell each of them looks. A class below the bounds is no
    candidate in a patch, and takes no time if that is so in all lanes. Without any, it is `label`.
    """
    best, labels = (), ()
    for _ in tl.static_range(ROWS * COLUMNS):
        best, labels = best + (tl.full([BLOCK], float("-inf"), tl.float32),), labels + (label,)
    step = num_classes * 0  # from the first class to this one
    if FAR:
        step = step.to(tl.int64)
    for channel in range(num_classes):
        s = corner_scores(upper + step, lower + step, strides.w, valid, CLAMP)
        step += strides.c
        tested = at_ends(s, ends) if SPLIT else s
        # In a chain: four conditions at once would take twice the instructions.
        last = tl.where(tested.a < bounds.a, tested.b, float("inf"))
        last = tl.where(last < bounds.b, tested.c, float("inf"))
        last = tl.where(last < bounds.c, tested.d, float("inf"))
        candidate = last >= bounds.d
        if tl.max(candidate.to(tl.int32), 0) > 0:
            a = tl.where(candidate, s.a, float("nan"))  # which is not larger than any
            left_down, right_down = s.c - a, s.d - s.b
            new_best, new_labels = (), ()
            for i in tl.static_range(ROWS):
                left = a + left_down * rows[i]
                slope = s.b + right_down * rows[i] - left
                for j in tl.static_range(COLUMNS):
                    score = left + slope * columns[j]
                    larger = score > best[i * COLUMNS + j]
                    new_best += (tl.where(larger, score, best[i * COLUMNS + j]),)
                    new_labels += (tl.where(larger, channel, labels[i * COLUMNS + j]),)
            best, labels = new_best, new_labels
    return labels


@triton.jit
def mixed_labels(
    scores, fraction_ptr, num_classes, row_size, column_size, patch, winners, mixed,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, FAR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Labels, ROWS x BLOCK x COLUMNS: of `mixed` patches pixel by pixel, else the winner.

    SPLIT: whether a cell may have several patches. Then those are looked at by themselves, with
    the winner of the nearest corner.
    """
    down, across = patch.rows, patch.columns
    offset = offset_of(scores, patch, CLAMP)
    valid = Corners(
        down.first & across.first, down.first & across.second,
        down.second & across.first, down.second & across.second,
    )  # fmt: skip
    upper = scores.ptr + offset
    if CLAMP:  # the left corners are there; below the last row, it is that again
        lower = scores.ptr + (offset + tl.where(down.second, scores.h, 0))
    else:
        lower = scores.ptr + (offset + scores.h)
    ends = patch_ends(fraction_ptr, patch, row_size)
    first, other = two_winners(winners, ends, SPLIT)
    # Elsewhere they need not be classes.
    read = Corners(valid.a & mixed, valid.b & mixed, valid.c & mixed, valid.d & mixed)
    step = first.to(tl.int64) * scores.c
    p = corner_scores(upper + step, lower + step, scores.w, read, False)
    step = other.to(tl.int64) * scores.c
    q = corner_scores(upper + step, lower + step, scores.w, read, False)
    bounds = patch_bounds(p, q, ends) if SPLIT else cell_bounds(p, q, valid)
    none = tl.where(mixed, bounds.d, float("nan"))  # no score reaches a NaN
    bounds = Corners(bounds.a, bounds.b, bounds.c, none)
    rows = fractions_of(fraction_ptr, down.start, row_size, ROWS, BLOCK)
    columns = fractions_of(fraction_ptr + row_size, across.start, column_size, COLUMNS, BLOCK)
    labels = largest_candidates(
        upper, lower, scores, valid, bounds, ends, rows, columns, num_classes, first,
        CLAMP, SPLIT, FAR, ROWS, COLUMNS, BLOCK,
    )  # fmt: skip
    labels = tl.reshape(joined(labels, BLOCK, ROWS * COLUMNS), [BLOCK, ROWS, COLUMNS])
    return tl.permute(labels, [1, 0, 2])


@triton.jit
def tile_labels(
    scores, winner_ptr, fraction_ptr, num_classes, height, width, row_size, column_size, patch,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, FAR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Labels of all patches, ROWS x BLOCK x COLUMNS; and which patches need exact weights.

    Of these the labels are not to be used: see `exact_labels`.
    """
    winners, mixed, special = corner_winners(winner_ptr, patch, height, width)
    if tl.max(mixed.to(tl.int32), 0) > 0:
        labels = mixed_labels(
            scores, fraction_ptr, num_classes, row_size, column_size, patch, winners, mixed,
            CLAMP, SPLIT, FAR, ROWS, COLUMNS, BLOCK,
        )  # fmt: skip
    else:
        labels = tl.broadcast_to(winners.a[None, :, None], [ROWS, BLOCK, COLUMNS])
    return labels, special


# ---- exact weights: a row of pixels at a time


class RowTaps(NamedTuple):
    """Where a row of the patches looks, tap by tap: a tap of weight 0 is not read.

    corner: pointers to the upper left corners of the first class. valid: Corners, which are read.
    y, x: how far into the cell the row and each column (a tuple) look.
    """

    corner: tl.tensor
    valid: Corners
    y: tl.tensor
    x: tl.tuple


@triton.jit
def row_taps(
    scores, fraction_ptr, row, row_size, column_size, patch, lanes,
    CLAMP: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The RowTaps of row `row` of the patches, in `lanes` that have it."""
    down, across = patch.rows, patch.columns
    lanes = lanes & (row < down.length)
    y = tl.load(fraction_ptr + down.start + row, mask=lanes, other=0.0)
    x = fractions_of(fraction_ptr + row_size, across.start, column_size, COLUMNS, BLOCK)
    # Only the first of several columns can look at the left corners alone.
    right = across.second & ((x[0] != 0) | (across.length > 1))
    corner = scores.ptr + offset_of(scores, patch, CLAMP)
    upper, lower = lanes & down.first, lanes & down.second & (y != 0)
    valid = Corners(upper & across.first, upper & right, lower & across.first, lower & right)
    return RowTaps(corner, valid, y, x)


@triton.jit
def row_scores(corner, taps, scores, COLUMNS: tl.constexpr):
    """A class's scores along a row: a tuple. corner: as in `taps`, but of that class."""
    s, y, x = corner_scores(corner, corner + scores.h, scores.w, taps.valid, False), taps.y, taps.x
    left, right = s.a * (1 - y) + s.c * y, s.b * (1 - y) + s.d * y
    row = (left * (1 - x[0]) + tl.where(x[0] == 0, 0.0, right * x[0]),)
    for j in tl.static_range(1, COLUMNS):
        row = row + (left * (1 - x[j]) + right * x[j],)
    return row


@triton.jit
def exact_labels(taps, scores, num_classes, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Labels of a row, 1 x BLOCK x COLUMNS: a NaN is larger than any number."""
    corner, best, label = taps.corner, (), ()
    for _ in tl.static_range(COLUMNS):
        best = best + (tl.full([BLOCK], float("-inf"), tl.float32),)
        label = label + (tl.zeros([BLOCK], tl.int32),)
    for channel in range(num_classes):
        row = row_scores(corner, taps, scores, COLUMNS)
        corner += scores.c
        new_best, new_label = (), ()
        for j in tl.static_range(COLUMNS):
            larger = ~(row[j] <= best[j]) & (best[j] == best[j])
            new_best = new_best + (tl.where(larger, row[j], best[j]),)
            new_label = new_label + (tl.where(larger, channel, label[j]),)
        best, label = new_best, new_label
    return tl.reshape(joined(label, BLOCK, COLUMNS), [1, BLOCK, COLUMNS])


@triton.jit
def pixels(first, rows, columns, COUNT: tl.constexpr, COLUMNS: tl.constexpr):
    """Row and column in their patch of COUNT rows from `first`, and which of them exist.

    rows, columns: how many each lane's patch has. All broadcast to COUNT x BLOCK x COLUMNS.
    """
    i, j = first + tl.arange(0, COUNT)[:, None, None], tl.arange(0, COLUMNS)[None, None, :]
    return i, j, (i < rows[None, :, None]) & (j < columns[None, :, None])


# ---- launch plan


class Tiles(NamedTuple):
    """How programs share a label map.

    rows, columns: the patches of either axis, of at most `lengths` outputs. programs: of the
    kernels that label pixels. options: those of all of them; split: whether a cell may have
    several patches.
    """

    rows: Axis
    columns: Axis
    lengths: tuple[int, int]
    programs: int
    options: dict[str, Any]
    split: bool

    def sizes(self, scores: Tensor) -> tuple[int, ...]:
        """What the kernels that label pixels take between their pointers and options."""
        sizes = (self.rows.size, self.columns.size, self.rows.patches, self.columns.patches)
        return (*scores.shape, *sizes, *scores.stride())

    def label_options(self, scores: Tensor) -> dict[str, Any]:
        """What `tile_labels` takes besides."""
        far = scores.shape[1] * scores.stride(1) >= 2**31
        return {"ROWS": self.lengths[0], "SPLIT": self.split, "FAR": far}


@lru_cache(maxsize=1024)
def tiles(shape: tuple[int, ...], grid: SamplingGrid) -> Tiles:
    """How programs share the labels of scores of `shape` at `grid`.

    Raises:
        ValueError: when there are more than 2**30 patches, or points of the coarse map, or 2**27
            pixels along an axis.
    """
    lengths = tuple(min(triton.next_power_of_2(longest(grid, k)), PATCH) for k in (0, 1))
    rows, columns = (axis_patches(grid, k, lengths[k]) for k in (0, 1))
    images, _, height, width = shape
    if height * width > MOST:
        raise ValueError(f"scores of {height} x {width} have more than {MOST} points")
    if rows.patches * images * columns.patches > MOST:
        raise ValueError(f"{images} maps of {grid.size} are more than {MOST} patches")
    if max(rows.patches, columns.patches, *grid.size) > MOST // PATCH:
        raise ValueError(f"{grid.size} has an axis of more than {MOST // PATCH} pixels or patches")
    blocks = triton.cdiv(images * columns.patches, LANES // TILE_ROWS)
    programs = triton.cdiv(rows.patches, TILE_ROWS) * blocks
    options = {
        "CLAMP": grid.border == "clamp",
        "COLUMNS": lengths[1],
        "TILE_ROWS": TILE_ROWS,
        "BLOCK": LANES,
        "num_warps": 1,
    }
    split = max(rows.inner, columns.inner) > 1
    return Tiles(rows, columns, (lengths[0], lengths[1]), programs, options, split)


def tables(scores: Tensor, plan: Tiles) -> tuple[Tensor, Tensor, Tensor]:
    """The winners of `scores`, and the tables of both axes, as `table_kernel` describes them."""
    rows, columns = plan.rows, plan.columns
    images, num_classes, height, width = scores.shape
    device = scores.device
    winner = torch.empty((images, height, width), dtype=torch.int32, device=device)
    entries = 2 * (rows.patches + columns.patches + 1)
    table = torch.empty(entries, dtype=torch.int32, device=device)
    fraction = torch.empty(rows.size + columns.size, dtype=torch.float32, device=device)
    items = max(rows.size, columns.size, rows.patches + 1, columns.patches + 1)
    point_programs = images * triton.cdiv(height * width, POINTS)
    # Of an Axis all but the tail, then the number of patches.
    axes = (*rows[:-1], rows.patches, *columns[:-1], columns.patches)
    table_kernel[(point_programs + triton.cdiv(items, POINTS),)](
        scores, winner, table, fraction,
        num_classes, height, width, point_programs, *axes, *scores.stride(),
        ROWS=plan.lengths[0], COLUMNS=plan.lengths[1], BLOCK=POINTS, UNROLL=UNROLL, num_warps=4,
    )  # fmt: skip
    return winner, table, fraction
