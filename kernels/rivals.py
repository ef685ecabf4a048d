"""Labels of the patches whose corners have different winners, pixel by pixel.

A class that lies below a convex combination of others at all corners of a patch is nowhere its
largest. Most classes do; only the others, its rivals, are interpolated.
"""

import triton
import triton.language as tl

from .labels import corner_scores, fractions_of, offset_of
from .patches import joined


@triton.jit
def class_scores(upper, lower, class_, xc, xw, read, ACC: tl.constexpr):
    """`corner_scores` of a class that differs from lane to lane."""
    step = class_.to(tl.int64) * xc
    return corner_scores(upper + step, lower + step, xw, read, False, ACC)


@triton.jit
def at_ends(corners, ends):
    """Scores of the first and last pixel of the first and last row of a patch.

    ends: how far into the cell the first and last row, and the first and last column look.
    """
    a, b, c, d = corners
    left, right = a + (c - a) * ends[0], b + (d - b) * ends[0]
    low_left, low_right = a + (c - a) * ends[1], b + (d - b) * ends[1]
    slope, low_slope = right - left, low_right - low_left
    return (
        left + slope * ends[2],
        left + slope * ends[3],
        low_left + low_slope * ends[2],
        low_left + low_slope * ends[3],
    )


@triton.jit
def cell_bars(p, q, read):
    """The mean of two winners at the corners of a cell; infinity at those that are not read.

    At its own corner, a winner is not below it: a mean of two is not rounded beyond the larger.
    """
    return (
        tl.where(read[0], (p[0] + q[0]) * 0.5, float("inf")),
        tl.where(read[1], (p[1] + q[1]) * 0.5, float("inf")),
        tl.where(read[2], (p[2] + q[2]) * 0.5, float("inf")),
        tl.where(read[3], (p[3] + q[3]) * 0.5, float("inf")),
    )


@triton.jit
def patch_bars(p, q, ends):
    """The first of two winners `at_ends`, or their mean if its least score there is larger."""
    a, b, c, d = at_ends(p, ends)
    half = (p[0] + q[0]) * 0.5, (p[1] + q[1]) * 0.5, (p[2] + q[2]) * 0.5, (p[3] + q[3]) * 0.5
    e, f, g, h = at_ends(half, ends)
    least = tl.minimum(tl.minimum(a, b), tl.minimum(c, d))
    mean = tl.minimum(tl.minimum(e, f), tl.minimum(g, h)) > least
    return tl.where(mean, e, a), tl.where(mean, f, b), tl.where(mean, g, c), tl.where(mean, h, d)


@triton.jit
def end_fractions(fractions, start, count):
    """How far into their cell the first and the last output of a patch look."""
    # The one before a patch without outputs: it is not the first.
    return tl.load(fractions + start), tl.load(fractions + start + count - 1)


@triton.jit
def two_winners(winners, ends, NEAREST: tl.constexpr):
    """One of the corners' winners, of the corner that is nearest to the patch if NEAREST; and one
    that differs from it, if there is one.
    """
    a, b, c, d = winners
    first = a
    if NEAREST:
        right, low = ends[2] + ends[3] > 1, ends[0] + ends[1] > 1
        first = tl.where(low, tl.where(right, d, c), tl.where(right, b, a))
    other = tl.where(b != first, b, tl.where(c != first, c, tl.where(d != first, d, a)))
    return first, other


@triton.jit
def largest_classes(
    upper, lower, xc, xw, read, bars, ends, rows, columns, channels, label,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, FAR: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest class of each pixel of the patches, row by row: a tuple.

    A class below the bars takes no part in a patch, and no time if that is so in all lanes. Where
    no class takes part, it is `label`. rows, columns: how far into its cell each of them looks.
    """
    best, labels = (), ()
    for _ in tl.static_range(ROWS * COLUMNS):
        best, labels = best + (tl.full([BLOCK], float("-inf"), ACC),), labels + (label,)
    step = channels * 0
    if FAR:
        step = step.to(tl.int64)
    for channel in range(channels):
        a, b, c, d = corner_scores(upper + step, lower + step, xw, read, CLAMP, ACC)
        step += xc
        tested = (a, b, c, d)
        if SPLIT:
            tested = at_ends(tested, ends)
        # In a chain: four conditions at once would take twice the instructions.
        last = tl.where(tested[0] < bars[0], tested[1], float("inf"))
        last = tl.where(last < bars[1], tested[2], float("inf"))
        last = tl.where(last < bars[2], tested[3], float("inf"))
        rival = last >= bars[3]
        if tl.max(rival.to(tl.int32), 0) > 0:
            a = tl.where(rival, a, float("nan"))  # which is not larger than any
            left_down, right_down = c - a, d - b
            new_best, new_labels = (), ()
            for i in tl.static_range(ROWS):
                left = a + left_down * rows[i]
                slope = b + right_down * rows[i] - left
                for j in tl.static_range(COLUMNS):
                    score = left + slope * columns[j]
                    larger = score > best[i * COLUMNS + j]
                    new_best += (tl.where(larger, score, best[i * COLUMNS + j]),)
                    new_labels += (tl.where(larger, channel, labels[i * COLUMNS + j]),)
            best, labels = new_best, new_labels
    return labels


@triton.jit
def mixed_labels(
    scores_ptr, origin, fraction_ptr, channels, row_size, column_size, down, across, winners,
    mixed, xc, xh, xw,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, FAR: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Labels, ROWS x BLOCK x COLUMNS: of `mixed` patches pixel by pixel, else the winner.

    SPLIT: whether a cell may have several patches. Then those are looked at by themselves, with
    the winner of the nearest corner.
    """
    offset = offset_of(origin, down, across, xh, xw, CLAMP)
    read = (down[3] & across[3], down[3] & across[4], down[4] & across[3], down[4] & across[4])
    upper = scores_ptr + offset
    if CLAMP:  # the left corners are there; below the last row, it is that again
        lower = scores_ptr + (offset + tl.where(down[4], xh, 0))
    else:
        lower = scores_ptr + (offset + xh)
    column_ptr = fraction_ptr + row_size
    ends = end_fractions(fraction_ptr, down[0], down[1])
    ends = ends + end_fractions(column_ptr, across[0], across[1])
    first, other = two_winners(winners, ends, SPLIT)
    # Elsewhere they need not be classes.
    reads = (read[0] & mixed, read[1] & mixed, read[2] & mixed, read[3] & mixed)
    p = class_scores(upper, lower, first, xc, xw, reads, ACC)
    q = class_scores(upper, lower, other, xc, xw, reads, ACC)
    bars = patch_bars(p, q, ends) if SPLIT else cell_bars(p, q, read)
    bars = (bars[0], bars[1], bars[2], tl.where(mixed, bars[3], float("nan")))  # none reaches that
    rows = fractions_of(fraction_ptr, down[0], row_size, ROWS, BLOCK)
    columns = fractions_of(column_ptr, across[0], column_size, COLUMNS, BLOCK)
    labels = largest_classes(
        upper, lower, xc, xw, read, bars, ends, rows, columns, channels, first,
        CLAMP, SPLIT, FAR, ACC, ROWS, COLUMNS, BLOCK,
    )  # fmt: skip
    labels = tl.reshape(joined(labels, BLOCK, ROWS * COLUMNS), [BLOCK, ROWS, COLUMNS])
    return tl.permute(labels, [1, 0, 2])
