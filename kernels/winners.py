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
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl

from .grid import (
    AXES,
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
SIZES = ["images", "num_classes", "height", "width", "xn", "xc", "xh", *AXES]
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
    """Scores, where pixels look at them, and the constants of a kernel, which remain such only in a
    tuple that is handed on as it was made, not assigned to a name.

    scores: of num_classes x height x width each image. rows, columns: each an Axis of scalars.
    CLAMP: whether the border repeats the edge. ROWS, COLUMNS: pixels of a patch, at most.
    TILE_ROWS, BLOCK, TEAM, UNROLL: as this module's constants; BLOCK: LANES.
    """

    scores: Strided
    images: tl.tensor
    num_classes: tl.tensor
    height: tl.tensor
    width: tl.tensor
    rows: Axis
    columns: Axis
    CLAMP: tl.constexpr
    ROWS: tl.constexpr
    COLUMNS: tl.constexpr
    TILE_ROWS: tl.constexpr
    BLOCK: tl.constexpr
    TEAM: tl.constexpr
    UNROLL: tl.constexpr


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
def lane_patches(at):
    """The Patch of each lane of this program.

    Lanes are TILE_ROWS rows of patches; columns of patches are counted on from image to image.
    """
    tile_columns: tl.constexpr = at.BLOCK // at.TILE_ROWS
    lane, columns = tl.arange(0, at.BLOCK), at.images * at.columns.patches
    blocks = tl.cdiv(columns, tile_columns)
    block = tl.program_id(0) // blocks
    row = block * at.TILE_ROWS + lane // tile_columns
    column = (tl.program_id(0) - block * blocks) * tile_columns + lane % tile_columns
    valid = (row < at.rows.patches) & (column < columns)
    row, column = tl.minimum(row, at.rows.patches - 1), tl.minimum(column, columns - 1)
    image = kept(column // at.columns.patches)
    down = span_of(row, at.rows, at.height, at.ROWS, at.CLAMP)
    column -= image * at.columns.patches
    across = span_of(column, at.columns, at.width, at.COLUMNS, at.CLAMP)
    return Patch(image.to(tl.int64), down, across, valid & (down.length > 0) & (across.length > 0))


# ---- the winners at the corners


@triton.jit
def with_classes(
    at, place, first, best, winner, size, COUNT: tl.constexpr, MASK: tl.constexpr
):  # fmt: skip
    """The largest score, its class and the sum of all magnitudes, with COUNT classes more.

    place: pointers to class `first`; returned, moved on. MASK: whether there may be fewer.
    """
    scores = ()
    for k in tl.static_range(COUNT):
        mask = first + k < at.num_classes if MASK else None
        score = tl.load(place, mask=mask, other=0.0 if MASK else None)
        scores = scores + (score.to(tl.float32),)
        place += at.scores.c
    for k in tl.static_range(COUNT):
        larger = scores[k] > best
        if MASK:
            larger = larger & (first + k < at.num_classes)
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
def corner_winners(at, patch):
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
    best = tl.full([4, at.BLOCK], float("-inf"), tl.float32)
    winner, size = tl.zeros([4, at.BLOCK], tl.int32), tl.zeros([4, at.BLOCK], tl.float32)
    whole = at.num_classes // at.UNROLL * at.UNROLL
    for first in range(0, whole, at.UNROLL):
        place, best, winner, size = with_classes(
            at, place, first, best, winner, size, at.UNROLL, False
        )
    if whole < at.num_classes:
        place, best, winner, size = with_classes(
            at, place, whole, best, winner, size, at.UNROLL, True
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
    a, b, c, d = columns_of(tl.trans(winner), at.BLOCK, 4)
    return Corners(a, b, c, d), differ & ~special, patch.valid & special


@triton.jit
def upper_left(at, patch):
    """Pointers to (or, beyond a zero border, to before) the upper left corners."""
    top, left = patch.rows.corner.to(tl.int64), patch.columns.corner.to(tl.int64)
    if at.CLAMP:
        top, left = tl.maximum(top, 0), tl.maximum(left, 0)
    return at.scores.ptr + (patch.image * at.scores.n + top * at.scores.h + left * at.scores.w)


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


@triton.jit
def bounds_of(p, q, valid):
    """The mean of two winners at the corners of a cell; infinity at those that are not read.

    A class below it at all four is nowhere the largest: at its own corner, a winner is not below
    it, as a mean of two is not rounded beyond the larger.
    """
    inf = float("inf")
    return Corners(
        tl.where(valid.a, (p.a + q.a) * 0.5, inf), tl.where(valid.b, (p.b + q.b) * 0.5, inf),
        tl.where(valid.c, (p.c + q.c) * 0.5, inf), tl.where(valid.d, (p.d + q.d) * 0.5, inf),
    )  # fmt: skip


@triton.jit
def candidates(upper, lower, at, valid, bounds, first):
    """Which of UNROLL * TEAM classes from `first` on are candidates in each lane's cell: bits.

    upper, lower: pointers to the left corners, of the first class. Each lane of a team looks at
    classes of its own.
    """
    own = tl.arange(0, at.BLOCK) % at.TEAM
    bits = tl.zeros([at.BLOCK], tl.int32)
    for k in tl.static_range(at.UNROLL):
        channel = first + k * at.TEAM + own
        step, there = channel.to(tl.int64) * at.scores.c, channel < at.num_classes
        s = corner_scores(upper + step, lower + step, at.scores.w, among(valid, there))
        # In a chain: four conditions at once would take twice the instructions.
        last = tl.where(s.a < bounds.a, s.b, float("inf"))
        last = tl.where(last < bounds.b, s.c, float("inf"))
        last = tl.where(last < bounds.c, s.d, float("inf"))
        candidate = (last >= bounds.d) & there
        bits = bits | (candidate.to(tl.int32) << (k * at.TEAM + own))
    if at.TEAM > 1:
        teams = tl.reshape(bits, [at.BLOCK // at.TEAM, at.TEAM])
        bits = tl.broadcast_to(tl.reduce(teams, 1, bitwise_or)[:, None], teams.shape)
        bits = tl.reshape(bits, [at.BLOCK])
    return bits


@triton.jit
def with_candidate(s, candidate, channel, y, x, best, labels):
    """The best score and its class of each pixel, with class `channel`, where it is a candidate.

    s: its scores at the corners. y, x: how far into its cell each row and each column looks.
    """
    a = tl.where(candidate, s.a, float("nan"))  # which is not larger than any
    left_down, right_down = s.c - a, s.d - s.b
    new_best, new_labels = (), ()
    for i in tl.static_range(len(y)):
        left = a + left_down * y[i]
        slope = s.b + right_down * y[i] - left
        for j in tl.static_range(len(x)):
            score = left + slope * x[j]
            larger = score > best[i * len(x) + j]
            new_best += (tl.where(larger, score, best[i * len(x) + j]),)
            new_labels += (tl.where(larger, channel, labels[i * len(x) + j]),)
    return new_best, new_labels


@triton.jit
def largest_candidates(upper, lower, at, valid, bounds, y, x, label):
    """The largest class of each pixel of the rows y of each lane's patch, row by row: a tuple.

    A class that is no candidate in any lane takes no more time. Without any, it is `label`.
    """
    best, labels = (), ()
    for _ in tl.static_range(len(y) * len(x)):
        best = best + (tl.full([at.BLOCK], float("-inf"), tl.float32),)
        labels = labels + (label,)
    for first in range(0, at.num_classes, at.UNROLL * at.TEAM):
        bits = candidates(upper, lower, at, valid, bounds, first)
        left = tl.reduce(bits, 0, bitwise_or)  # of the program
        while left != 0:
            lowest = left & -left
            k = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23 & 255) - 127
            left = left ^ lowest
            step = (first + k).to(tl.int64) * at.scores.c
            s = corner_scores(upper + step, lower + step, at.scores.w, valid)
            best, labels = with_candidate(s, (bits & lowest) != 0, first + k, y, x, best, labels)
    return labels


@triton.jit
def mixed_labels(at, patch, winners, there, first_row, ROWS: tl.constexpr):
    """Labels of ROWS rows of mixed patches, from each lane's `first_row` on, in lanes that are
    `there`: ROWS x BLOCK x COLUMNS."""
    scores, down, across = at.scores, patch.rows, patch.columns
    upper = upper_left(at, patch)
    if at.CLAMP:  # below the last row, it is that again
        lower = upper + tl.where(down.second, scores.h, 0)
        valid = Corners(across.first, across.second, across.first, across.second)
    else:
        lower = upper + scores.h
        valid = Corners(
            down.first & across.first, down.first & across.second,
            down.second & across.first, down.second & across.second,
        )  # fmt: skip
    valid = among(valid, there)
    a, b, c, d = winners
    step, other = a.to(tl.int64) * scores.c, tl.where(b != a, b, tl.where(c != a, c, d))
    p = corner_scores(upper + step, lower + step, scores.w, valid)
    step = other.to(tl.int64) * scores.c
    q = corner_scores(upper + step, lower + step, scores.w, valid)
    bounds = bounds_of(p, q, valid)
    none = tl.where(there, bounds.d, float("nan"))  # no score reaches a NaN
    bounds = Corners(bounds.a, bounds.b, bounds.c, none)
    y = fractions_of(down, first_row, at.rows.den, ROWS)
    x = fractions_of(across, 0, at.columns.den, at.COLUMNS)
    labels = largest_candidates(upper, lower, at, valid, bounds, y, x, a)
    labels = joined(labels, at.BLOCK, ROWS * at.COLUMNS)
    return tl.permute(tl.reshape(labels, [at.BLOCK, ROWS, at.COLUMNS]), [1, 0, 2])


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
def row_taps(at, row, patch, lanes):
    """The RowTaps of row `row` of the patches, in `lanes` that have it."""
    down, across = patch.rows, patch.columns
    lanes = lanes & (row < down.length)
    y = weight(down.part + down.step * row, at.rows.den)
    x = fractions_of(across, 0, at.columns.den, at.COLUMNS)
    # Only the first of several columns can look at the left corners alone.
    right = across.second & ((x[0] != 0) | (across.length > 1))
    upper, lower = lanes & down.first, lanes & down.second & (y != 0)
    valid = Corners(upper & across.first, upper & right, lower & across.first, lower & right)
    return RowTaps(upper_left(at, patch), valid, y, x)


@triton.jit
def row_scores(at, taps, corner):
    """A class's scores along a row: a tuple. corner: as in `taps`, but of that class."""
    s, y, x = corner_scores(corner, corner + at.scores.h, at.scores.w, taps.valid), taps.y, taps.x
    left, right = s.a * (1 - y) + s.c * y, s.b * (1 - y) + s.d * y
    row = (left * (1 - x[0]) + tl.where(x[0] == 0, 0.0, right * x[0]),)
    for j in tl.static_range(1, at.COLUMNS):
        row = row + (left * (1 - x[j]) + right * x[j],)
    return row


@triton.jit
def exact_labels(at, taps):
    """Labels of a row, 1 x BLOCK x COLUMNS: a NaN is larger than any number."""
    corner, best, label = taps.corner, (), ()
    for _ in tl.static_range(at.COLUMNS):
        best = best + (tl.full([at.BLOCK], float("-inf"), tl.float32),)
        label = label + (tl.zeros([at.BLOCK], tl.int32),)
    for channel in range(at.num_classes):
        row = row_scores(at, taps, corner)
        corner += at.scores.c
        new_best, new_label = (), ()
        for j in tl.static_range(at.COLUMNS):
            larger = ~(row[j] <= best[j]) & (best[j] == best[j])
            new_best = new_best + (tl.where(larger, row[j], best[j]),)
            new_label = new_label + (tl.where(larger, channel, label[j]),)
        best, label = new_best, new_label
    return tl.reshape(joined(label, at.BLOCK, at.COLUMNS), [1, at.BLOCK, at.COLUMNS])


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
def label_patches(at, sink, SETTLED: tl.constexpr, SINK: tl.constexpr):
    """Hand the labels of all patches of this program to SINK or SETTLED, each pixel once.

    SINK takes `sink`, COUNT x BLOCK x COLUMNS labels, the first of each lane's rows, the lanes'
    patches, how many rows each has, COUNT and COLUMNS. SETTLED takes `sink`, of each lane the label
    of all its pixels, the lanes' patches, how many rows each has, ROWS and COLUMNS.
    """
    patch = lane_patches(at)
    winners, mixed, special = corner_winners(at, patch)
    lengths = tl.where(patch.valid & ~(mixed | special), patch.rows.length, 0)
    SETTLED(sink, winners.a, patch, lengths, at.ROWS, at.COLUMNS)
    lane = tl.arange(0, at.BLOCK)
    share: tl.constexpr = at.ROWS // at.TEAM  # rows of a mixed patch for each lane
    for begin in range(0, tl.sum(mixed.to(tl.int32), 0), at.BLOCK // at.TEAM):
        lanes, there = chosen(mixed, begin, at.BLOCK, at.TEAM)
        some = Patch(
            tl.gather(patch.image, lanes, 0),
            span_from(patch.rows, lanes, at.rows, at.height, at.CLAMP),
            span_from(patch.columns, lanes, at.columns, at.width, at.CLAMP),
            there,
        )
        own = Corners(
            tl.gather(winners.a, lanes, 0), tl.gather(winners.b, lanes, 0),
            tl.gather(winners.c, lanes, 0), tl.gather(winners.d, lanes, 0),
        )  # fmt: skip
        first_row, lengths = lane % at.TEAM * share, tl.where(there, some.rows.length, 0)
        found = mixed_labels(at, some, own, there, first_row, share)
        SINK(sink, found, first_row, some, lengths, share, at.COLUMNS)
    lengths = tl.where(special, patch.rows.length, 0)
    for row in range(tl.max(lengths, 0)):
        exact = exact_labels(at, row_taps(at, row, patch, special))
        SINK(sink, exact, lane * 0 + row, patch, lengths, 1, at.COLUMNS)


# ---- launch plan


class Shares(NamedTuple):
    """How a program's lanes share pixels: other values of these constants, to compare."""

    lanes: int
    tile_rows: int
    patch: int
    team: int
    unroll: int


class Tiles(NamedTuple):
    """How programs share a label map: their number, what kernels take between their pointers and
    strides (as SIZES names it), their options."""

    programs: int
    sizes: tuple[int, ...]
    options: dict[str, Any]


@lru_cache(maxsize=1024)
def tiles(shape: tuple[int, ...], grid: SamplingGrid, others: Shares | None = None) -> Tiles:
    """How programs share the labels of scores of `shape` at `grid`.

    Raises:
        ValueError: when there are more than 2**30 patches, or points of the coarse map, or 2**27
            pixels along an axis.
    """
    lanes, tile_rows, patch, team, unroll = others or (LANES, TILE_ROWS, PATCH, TEAM, UNROLL)
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
    options = {
        "CLAMP": grid.border == "clamp", "ROWS": lengths[0], "COLUMNS": lengths[1],
        "TILE_ROWS": tile_rows, "BLOCK": lanes, "TEAM": min(team, lengths[0]), "UNROLL": unroll,
        "num_warps": 1, **MOST_REGISTERS,
    }  # fmt: skip
    programs = triton.cdiv(rows.patches, tile_rows) * blocks
    return Tiles(programs, (*shape, *rows, *columns), options)


@lru_cache(maxsize=1024)
def aligned(grid: SamplingGrid, length: int) -> int:
    """What the patches' first columns and the width are multiples of: a power of two or 1.

    All that the patches have in common, `length` at most, or nothing: no kernels between.
    """
    num, off, den = grid.num[1], grid.off[1], grid.den[1]
    if num == 0 or den % num:
        return 1
    common = gcd(-(off // num), den // num, length)
    return 1 if grid.size[1] % common else common
