"""Labels of upsampled scores, for argmax and confusion: winners of corners, of cells, of pixels.

A pixel is a convex combination of its cell's corners. So a class that is largest at all four is
largest in the whole cell, and nothing needs to be interpolated there. Where the winners of the
corners differ, only the candidates are interpolated: a class that lies below a convex combination
of others at all corners of a patch is nowhere its largest. A tie goes to the first class, at the
corners as anywhere, and a NaN wins over every number; but cells with one take every tap with its
exact weight, row by row.

A program has a rectangle of TILE_ROWS rows of patches, BLOCK in all, and a lane finds the winners
at the corners of one of them. Patches that these settle are done. The others, the mixed ones, are
few: they are counted, and TEAM lanes share the rows of each. What becomes of a pixel depends on its
own cell alone.
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
    columns_of,
    joined,
    longest,
    patch_at,
    weight,
)

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

# Sizes and strides differ from picture to picture: no kernel of its own for a 1 or a multiple of 16
# among them. (A stride of 1 from column to column is worth one.)
AXIS = ["size", "num", "off", "den", "first", "cells", "head", "inner", "patches"]
SIZES = ["images", "num_classes", "height", "width", "xn", "xc", "xh"]
SIZES += [f"{axis}_{part}" for axis in ("row", "column") for part in AXIS]
# Lanes of a program, as many as a warp's, and how many rows of patches they are: one, where patches
# are smaller than PATCH, and loads would be from many rows.
LANES, TILE_ROWS = 64 if torch.version.hip else 32, 4
# Outputs of a patch along either axis.
PATCH = 8
# Lanes that share the rows of a mixed patch: the best score and class of each pixel of theirs stay
# in registers.
TEAM = 4
# Classes whose scores a lane asks for at once; those of a team are bits of a word.
UNROLL = 8
# Registers that a thread may have; NVIDIA's compiler would spill to need fewer.
MOST_REGISTERS: dict[str, Any] = {} if torch.version.hip else {"maxnreg": 255}
# Beyond, sums of two scores and differences may overflow: such points are SPECIAL, or LOW.
LARGE = tl.constexpr(2.0**124)
# Instead of a winner: the point has a NaN, or a score of LARGE or more.
SPECIAL = tl.constexpr(-1)
# Added to the winner of any other point that has a score of -LARGE or less: a masked class.
LOW = tl.constexpr(2**30)


class Source(NamedTuple):
    """Scores, and where pixels look at them.

    scores: of num_classes x height x width each image. rows, columns: each an Axis of scalars.
    row_patches, column_patches: how many patches they have.
    """

    scores: Strided
    images: tl.tensor
    num_classes: tl.tensor
    height: tl.tensor
    width: tl.tensor
    rows: Axis
    columns: Axis
    row_patches: tl.tensor
    column_patches: tl.tensor


# ---- patches


class Span(NamedTuple):
    """A patch along one axis.

    start, length: its first output, and how many it has.
    corner: the coarse value before it, from -2, where there is none.
    first, second: whether that value and the next are in the map; others count as 0.
    part, step: how far into its cell the first output looks, and how much further each next one
    does, in 1 / den. Both 0 where outputs were clamped.
    """

    start: tl.tensor
    length: tl.tensor
    corner: tl.tensor
    first: tl.tensor
    second: tl.tensor
    part: tl.tensor
    step: tl.tensor


class Patch(NamedTuple):
    """A lane's patch: its image (int64), its spans of rows and columns, whether there is one."""

    image: tl.tensor
    rows: Span
    columns: Span
    valid: tl.tensor


@triton.jit
def kept(x):
    """`x`, one value for each lane. The compiler would compute it again for other threads, which
    takes more than to hand it on."""
    return tl.gather(x, tl.arange(0, x.numel), 0)


@triton.jit
def span_at(start, length, cell, axis, n, CLAMP: tl.constexpr):
    """The Span of `length` outputs of a cell from `start` on; n: coarse values of the axis."""
    outside = (cell < 0) | (cell >= axis.n - 1)
    part = tl.where(outside, 0, axis.num * start + axis.off - cell * axis.den)
    corner = cell if CLAMP else cell - 1  # without the ring
    first, second = (corner >= (-1 if CLAMP else 0)) & (corner < n), corner < n - 1
    second = second & (corner >= (0 if CLAMP else -1))
    return Span(start, length, corner, first, second, part, tl.where(outside, 0, axis.num))


@triton.jit
def span_of(patch, axis, n, LENGTH: tl.constexpr, CLAMP: tl.constexpr):
    """The Span of a patch of at most LENGTH outputs of an axis."""
    cell, which = patch_at(patch, axis)
    end = cell_start(cell + 1, axis)
    start = tl.minimum(cell_start(cell, axis) + which * LENGTH, end)
    length = tl.minimum(end - start, LENGTH)
    return span_at(kept(start), kept(length), kept(cell), axis, n, CLAMP)


@triton.jit
def span_from(span, lanes, axis, n, CLAMP: tl.constexpr):
    """The Span that each of `lanes` has."""
    cell = span.corner if CLAMP else span.corner + 1
    start, length = tl.gather(span.start, lanes, 0), tl.gather(span.length, lanes, 0)
    return span_at(start, length, tl.gather(cell, lanes, 0), axis, n, CLAMP)


@triton.jit
def on_border(span):
    """Whether the first output looks at the ring of zeros, between it and the map."""
    return ~span.first & span.second & (span.part == 0)


@triton.jit
def fractions_of(span, first, den, LENGTH: tl.constexpr):
    """How far into their cell LENGTH outputs of a span look, from its `first` on: a tuple.

    Never rounded to 1, which would say that the cell's first value is not read: den <= 2**24.
    """
    fractions = ()
    for i in tl.static_range(LENGTH):
        fractions = fractions + (weight(span.part + span.step * (first + i), den),)
    return fractions


@triton.jit
def patches_of(
    at, CLAMP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The Patch of each lane of this program.

    Lanes are TILE_ROWS rows of patches; columns of patches are counted on from image to image.
    """
    tile_columns: tl.constexpr = BLOCK // TILE_ROWS
    lane, columns = tl.arange(0, BLOCK), at.images * at.column_patches
    blocks = tl.cdiv(columns, tile_columns)
    block = tl.program_id(0) // blocks
    row = block * TILE_ROWS + lane // tile_columns
    column = (tl.program_id(0) - block * blocks) * tile_columns + lane % tile_columns
    valid = (row < at.row_patches) & (column < columns)
    row, column = tl.minimum(row, at.row_patches - 1), tl.minimum(column, columns - 1)
    image = kept(column // at.column_patches)
    down = span_of(row, at.rows, at.height, ROWS, CLAMP)
    column -= image * at.column_patches
    across = span_of(column, at.columns, at.width, COLUMNS, CLAMP)
    return Patch(image.to(tl.int64), down, across, valid & (down.length > 0) & (across.length > 0))


# ---- the winners at the corners


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
def bitwise_or(a, b):
    """For reductions."""
    return a | b


@triton.jit
def nearest(corner, last):
    """The point of the map, from 0 to `last`, that is nearest to a corner."""
    return tl.minimum(tl.maximum(corner, 0), last)


@triton.jit
def corner_winners(at, patch, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    """The first largest class of the points nearest to the corners of each lane's cell.

    Returns them, as Corners, and two masks of the patches whose pixels are to be looked at: in
    which the winners differ, and where only exact weights will do.
    """
    scores, rows, columns = at.scores, patch.rows, patch.columns
    image, last_row, last_column = patch.image * scores.n, at.height - 1, at.width - 1
    upper = image + nearest(rows.corner, last_row).to(tl.int64) * scores.h
    lower = image + nearest(rows.corner + 1, last_row).to(tl.int64) * scores.h
    left = nearest(columns.corner, last_column).to(tl.int64) * scores.w
    right = nearest(columns.corner + 1, last_column).to(tl.int64) * scores.w
    k = tl.arange(0, 4)[:, None]
    place = tl.where(k < 2, upper[None, :], lower[None, :])
    place = scores.ptr + (place + tl.where(k % 2 == 0, left[None, :], right[None, :]))
    best = tl.full([4, BLOCK], float("-inf"), tl.float32)
    winner, size = tl.zeros([4, BLOCK], tl.int32), tl.zeros([4, BLOCK], tl.float32)
    whole = at.num_classes // UNROLL * UNROLL
    for first in range(0, whole, UNROLL):
        place, best, winner, size = with_classes(
            place, scores.c, first, at.num_classes, best, winner, size, UNROLL, False
        )
    if whole < at.num_classes:
        place, best, winner, size = with_classes(
            place, scores.c, whole, at.num_classes, best, winner, size, UNROLL, True
        )
    masked = (best < LARGE) & (size == size)  # by -inf, say, but there is no NaN
    code = tl.where(size < LARGE, winner, tl.where(masked, winner + LOW, SPECIAL))
    # Pixels that see but zeros are of the first class; others have a point on one side at least.
    seen = (rows.first | rows.second) & (columns.first | columns.second)
    code = tl.where(seen[None, :], code, 0)
    winner = code & (LOW - 1)
    differ = patch.valid & (tl.min(winner, 0) != tl.max(winner, 0))
    # A class that is masked at a corner cannot win where all agree.
    low = differ & (tl.reduce(code, 0, bitwise_or) >= LOW)
    special = low | (tl.min(code, 0) == SPECIAL) | (seen & (on_border(rows) | on_border(columns)))
    a, b, c, d = columns_of(tl.trans(winner), BLOCK, 4)
    return Corners(a, b, c, d), differ & ~special, patch.valid & special


@triton.jit
def offset_of(scores, patch, CLAMP: tl.constexpr):
    """Where the upper left corners lie (or would lie, beyond a zero border), int64."""
    top, left = patch.rows.corner.to(tl.int64), patch.columns.corner.to(tl.int64)
    if CLAMP:
        top, left = tl.maximum(top, 0), tl.maximum(left, 0)
    return patch.image * scores.n + top * scores.h + left * scores.w


@triton.jit
def corner_scores(upper, lower, stride, valid):
    """A class's scores at the corners, from pointers to the left ones; stride: of columns.

    valid: Corners of masks: others are 0.
    """
    a, c = tl.load(upper, mask=valid.a, other=0.0), tl.load(lower, mask=valid.c, other=0.0)
    b = tl.load(upper + stride, mask=valid.b, other=0.0)
    d = tl.load(lower + stride, mask=valid.d, other=0.0)
    return Corners(a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32))


@triton.jit
def among(valid, lanes):
    """Corners of masks, of these lanes alone."""
    return Corners(valid.a & lanes, valid.b & lanes, valid.c & lanes, valid.d & lanes)


# ---- mixed cells: the candidates, pixel by pixel


class Ends(NamedTuple):
    """How far into the cell the first and last row, the first and last column of a patch look."""

    top: tl.tensor
    bottom: tl.tensor
    left: tl.tensor
    right: tl.tensor


@triton.jit
def patch_ends(at, patch):
    """The Ends of each lane's patch."""
    rows, columns = patch.rows, patch.columns
    bottom = rows.part + rows.step * (rows.length - 1)
    right = columns.part + columns.step * (columns.length - 1)
    down, across = at.rows.den, at.columns.den
    return Ends(
        weight(rows.part, down), weight(bottom, down),
        weight(columns.part, across), weight(right, across),
    )  # fmt: skip


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
def candidates(
    upper, lower, at, valid, bounds, ends, first,
    SPLIT: tl.constexpr, UNROLL: tl.constexpr, TEAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Which of UNROLL * TEAM classes from `first` on are candidates in each lane's patch: bits.

    upper, lower: pointers to the left corners, of the first class. A class below the bounds is
    none. Each lane of a team looks at classes of its own.
    """
    own = tl.arange(0, BLOCK) % TEAM
    bits = tl.zeros([BLOCK], tl.int32)
    for k in tl.static_range(UNROLL):
        channel = first + k * TEAM + own
        step, there = channel.to(tl.int64) * at.scores.c, channel < at.num_classes
        s = corner_scores(upper + step, lower + step, at.scores.w, among(valid, there))
        tested = at_ends(s, ends) if SPLIT else s
        # In a chain: four conditions at once would take twice the instructions.
        last = tl.where(tested.a < bounds.a, tested.b, float("inf"))
        last = tl.where(last < bounds.b, tested.c, float("inf"))
        last = tl.where(last < bounds.c, tested.d, float("inf"))
        candidate = (last >= bounds.d) & there
        bits = bits | (candidate.to(tl.int32) << (k * TEAM + own))
    if TEAM > 1:
        teams = tl.reshape(bits, [BLOCK // TEAM, TEAM])
        bits = tl.reduce(teams, 1, bitwise_or)[:, None]
        bits = tl.reshape(tl.broadcast_to(bits, [BLOCK // TEAM, TEAM]), [BLOCK])
    return bits


@triton.jit
def with_candidate(
    s, candidate, channel, rows, columns, best, labels, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The best score and its class of each pixel, with class `channel`, where it is a candidate.

    s: its scores at the corners. rows, columns: how far into its cell each of them looks.
    """
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
    return new_best, new_labels


@triton.jit
def largest_candidates(
    upper, lower, at, valid, bounds, ends, rows, columns, label,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr, TEAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest class of each pixel of ROWS rows of each lane's patch, row by row: a tuple.

    A class that is no candidate in any lane takes no more time. Without any, it is `label`.
    """
    best, labels = (), ()
    for _ in tl.static_range(ROWS * COLUMNS):
        best, labels = best + (tl.full([BLOCK], float("-inf"), tl.float32),), labels + (label,)
    for first in range(0, at.num_classes, UNROLL * TEAM):
        bits = candidates(upper, lower, at, valid, bounds, ends, first, SPLIT, UNROLL, TEAM, BLOCK)
        left = tl.reduce(bits, 0, bitwise_or)  # of the program
        while left != 0:
            lowest = left & -left
            k = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23 & 255) - 127
            left = left ^ lowest
            step = (first + k).to(tl.int64) * at.scores.c
            s = corner_scores(upper + step, lower + step, at.scores.w, valid)
            best, labels = with_candidate(
                s, (bits & lowest) != 0, first + k, rows, columns, best, labels, ROWS, COLUMNS
            )
    return labels


@triton.jit
def mixed_labels(
    at, patch, winners, there, first_row,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr, TEAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Labels of ROWS rows of mixed patches, from each lane's `first_row` on.

    Returns ROWS x BLOCK x COLUMNS. there: the lanes that have a patch. SPLIT: whether a cell may
    have several. Then those are looked at by themselves, with the winner of the nearest corner.
    """
    scores, down, across = at.scores, patch.rows, patch.columns
    offset = offset_of(scores, patch, CLAMP)
    valid = Corners(
        down.first & across.first, down.first & across.second,
        down.second & across.first, down.second & across.second,
    )  # fmt: skip
    upper = scores.ptr + offset
    if CLAMP:  # below the last row, it is that again
        lower = scores.ptr + (offset + tl.where(down.second, scores.h, 0))
        valid = Corners(across.first, across.second, across.first, across.second)
    else:
        lower = scores.ptr + (offset + scores.h)
    valid = among(valid, there)
    ends = patch_ends(at, patch)
    first, other = two_winners(winners, ends, SPLIT)
    step = first.to(tl.int64) * scores.c
    p = corner_scores(upper + step, lower + step, scores.w, valid)
    step = other.to(tl.int64) * scores.c
    q = corner_scores(upper + step, lower + step, scores.w, valid)
    bounds = patch_bounds(p, q, ends) if SPLIT else cell_bounds(p, q, valid)
    none = tl.where(there, bounds.d, float("nan"))  # no score reaches a NaN
    bounds = Corners(bounds.a, bounds.b, bounds.c, none)
    rows = fractions_of(down, first_row, at.rows.den, ROWS)
    columns = fractions_of(across, 0, at.columns.den, COLUMNS)
    labels = largest_candidates(
        upper, lower, at, valid, bounds, ends, rows, columns, first,
        SPLIT, ROWS, COLUMNS, UNROLL, TEAM, BLOCK,
    )  # fmt: skip
    labels = tl.reshape(joined(labels, BLOCK, ROWS * COLUMNS), [BLOCK, ROWS, COLUMNS])
    return tl.permute(labels, [1, 0, 2])


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
def row_taps(at, row, patch, lanes, CLAMP: tl.constexpr, COLUMNS: tl.constexpr):
    """The RowTaps of row `row` of the patches, in `lanes` that have it."""
    down, across = patch.rows, patch.columns
    lanes = lanes & (row < down.length)
    y = weight(down.part + down.step * row, at.rows.den)
    x = fractions_of(across, 0, at.columns.den, COLUMNS)
    # Only the first of several columns can look at the left corners alone.
    right = across.second & ((x[0] != 0) | (across.length > 1))
    corner = at.scores.ptr + offset_of(at.scores, patch, CLAMP)
    upper, lower = lanes & down.first, lanes & down.second & (y != 0)
    valid = Corners(upper & across.first, upper & right, lower & across.first, lower & right)
    return RowTaps(corner, valid, y, x)


@triton.jit
def row_scores(corner, taps, scores, COLUMNS: tl.constexpr):
    """A class's scores along a row: a tuple. corner: as in `taps`, but of that class."""
    s, y, x = corner_scores(corner, corner + scores.h, scores.w, taps.valid), taps.y, taps.x
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


# ---- all patches of a program


@triton.jit
def pixels(first, rows, columns, COUNT: tl.constexpr, COLUMNS: tl.constexpr):
    """Row and column in their patch of COUNT rows from each lane's `first`; which of them exist.

    rows, columns: how many each lane's patch has. All broadcast to COUNT x BLOCK x COLUMNS.
    """
    i = first[None, :, None] + tl.arange(0, COUNT)[:, None, None]
    j = tl.arange(0, COLUMNS)[None, None, :]
    return i, j, (i < rows[None, :, None]) & (j < columns[None, :, None])


@triton.jit
def chosen(mixed, begin, BLOCK: tl.constexpr, TEAM: tl.constexpr):
    """Of the program's mixed patches those from number `begin` on: TEAM lanes for each.

    Returns which lane each patch was, and the lanes that have one.
    """
    lane, number = tl.arange(0, BLOCK), begin + tl.arange(0, BLOCK // TEAM)
    rank = tl.where(mixed, tl.cumsum(mixed.to(tl.int32), 0) - 1, -1)
    found = tl.where(rank[None, :] == number[:, None], lane[None, :] + 1, 0)
    found = tl.sum(found, 1)[:, None]
    found = kept(tl.reshape(tl.broadcast_to(found, [BLOCK // TEAM, TEAM]), [BLOCK]))
    return tl.maximum(found - 1, 0), found > 0


@triton.jit
def label_patches(
    at, sink, SETTLED: tl.constexpr, SINK: tl.constexpr,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr, TEAM: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Hand the labels of all patches of this program to SINK or SETTLED, each pixel once.

    SINK takes `sink`, COUNT x BLOCK x COLUMNS labels, the first of each lane's rows, the lanes'
    patches, how many rows each has, COUNT and COLUMNS. SETTLED takes `sink`, of each lane the label
    of all its pixels, the lanes' patches, how many rows each has, ROWS and COLUMNS.
    """
    patch = patches_of(at, CLAMP, ROWS, COLUMNS, TILE_ROWS, BLOCK)
    winners, mixed, special = corner_winners(at, patch, BLOCK, UNROLL)
    lengths = tl.where(patch.valid & ~(mixed | special), patch.rows.length, 0)
    SETTLED(sink, winners.a, patch, lengths, ROWS, COLUMNS)
    lane = tl.arange(0, BLOCK)
    share: tl.constexpr = ROWS // TEAM  # rows of a mixed patch for each lane
    for begin in range(0, tl.sum(mixed.to(tl.int32), 0), BLOCK // TEAM):
        lanes, there = chosen(mixed, begin, BLOCK, TEAM)
        some = Patch(
            tl.gather(patch.image, lanes, 0),
            span_from(patch.rows, lanes, at.rows, at.height, CLAMP),
            span_from(patch.columns, lanes, at.columns, at.width, CLAMP),
            there,
        )
        own = Corners(
            tl.gather(winners.a, lanes, 0), tl.gather(winners.b, lanes, 0),
            tl.gather(winners.c, lanes, 0), tl.gather(winners.d, lanes, 0),
        )  # fmt: skip
        first_row = lane % TEAM * share
        found = mixed_labels(
            at, some, own, there, first_row, CLAMP, SPLIT, share, COLUMNS, UNROLL, TEAM, BLOCK
        )
        SINK(sink, found, first_row, some, tl.where(there, some.rows.length, 0), share, COLUMNS)
    lengths = tl.where(special, patch.rows.length, 0)
    for row in range(tl.max(lengths, 0)):
        taps = row_taps(at, row, patch, special, CLAMP, COLUMNS)
        exact = exact_labels(taps, at.scores, at.num_classes, COLUMNS, BLOCK)
        SINK(sink, exact, lane * 0 + row, patch, lengths, 1, COLUMNS)


# ---- launch plan


class Shares(NamedTuple):
    """How a program's lanes share pixels, to compare with this module's constants of these names.

    A team of 1 is a lane that has all rows of a mixed patch. unroll * team: 32 at most.
    """

    lanes: int = LANES
    tile_rows: int = TILE_ROWS
    patch: int = PATCH
    team: int = TEAM
    unroll: int = UNROLL


class Tiles(NamedTuple):
    """How programs share a label map.

    rows, columns: the patches of either axis. options: those of all kernels; label_options: those
    of `label_patches` besides.
    """

    rows: Axis
    columns: Axis
    programs: int
    options: dict[str, Any]
    label_options: dict[str, Any]

    def sizes(self, scores: Tensor) -> tuple[int, ...]:
        """What the kernels take between their pointers and options, as SIZES names it."""
        axes = (axis[1:-1] + (axis.patches,) for axis in (self.rows, self.columns))
        return (*scores.shape, *(n for axis in axes for n in axis), *scores.stride())


@lru_cache(maxsize=1024)
def tiles(shape: tuple[int, ...], grid: SamplingGrid, shares: Shares | None = None) -> Tiles:
    """How programs share the labels of scores of `shape` at `grid`.

    Raises:
        ValueError: when there are more than 2**30 patches, or points of the coarse map, or 2**27
            pixels along an axis.
    """
    lanes, tile_rows, patch, team, unroll = shares or (LANES, TILE_ROWS, PATCH, TEAM, UNROLL)
    lengths = tuple(min(triton.next_power_of_2(longest(grid, k)), patch) for k in (0, 1))
    rows, columns = (axis_patches(grid, k, lengths[k]) for k in (0, 1))
    tile_rows = tile_rows if max(lengths) == patch else 1
    images, _, height, width = shape
    if height * width > MOST:
        raise ValueError(f"scores of {height} x {width} have more than {MOST} points")
    if rows.patches * images * columns.patches > MOST:
        raise ValueError(f"{images} maps of {grid.size} are more than {MOST} patches")
    if max(rows.patches, columns.patches, *grid.size) > MOST // patch:
        raise ValueError(f"{grid.size} has an axis of more than {MOST // patch} pixels or patches")
    blocks = triton.cdiv(images * columns.patches, lanes // tile_rows)
    programs = triton.cdiv(rows.patches, tile_rows) * blocks
    options = {
        "CLAMP": grid.border == "clamp",
        "ROWS": lengths[0],
        "COLUMNS": lengths[1],
        "TILE_ROWS": tile_rows,
        "BLOCK": lanes,
        "num_warps": 1,
        **MOST_REGISTERS,
    }
    # SPLIT: whether a cell may have several patches.
    split = max(rows.inner, columns.inner) > 1
    label_options = {"SPLIT": split, "TEAM": min(team, lengths[0]), "UNROLL": unroll}
    return Tiles(rows, columns, programs, options, label_options)
