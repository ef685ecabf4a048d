"""Device code of upsample_cross_entropy: the softmax pixel by pixel, exact for any scores."""

from __future__ import annotations

import triton
import triton.language as tl

from ._corners import add_at_corners, between, corners_of, loaded, next_class, share_of
from ._softmax import LN2, LOG2E
from ._targets import priced


@triton.jit
def row_scores(
    pointers, source, part_y, parts_x,
    CLAMP: tl.constexpr, ACC: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A class's scores at the pixels of one row of the patches; corners without part not read."""
    a, b, c, d = loaded(pointers, source, CLAMP, ACC)
    left, right = between(a, c, part_y), between(b, d, part_y)
    row = ()
    for j in tl.static_range(COLUMNS):
        row = row + (between(left, right, parts_x[j]),)
    return row


@triton.jit
def direct_row(
    source, part_y, parts_x, codes, rates, columns, planes, channels, table_ptr,
    PIXELS: tl.constexpr, GRADIENT: tl.constexpr, CLAMP: tl.constexpr, TABLE: tl.constexpr,
    ACC: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The losses of one row of each lane's patch, and the weights, as tuples; for any scores.

    parts_x, codes, rates: of each pixel its part in the cell, its label, and, if PIXELS and
    GRADIENT, the gradient of its loss.
    """
    smoothing = tl.zeros([], ACC)
    if TABLE:
        smoothing += tl.load(table_ptr + 3 * channels)
    best, sums, own, smooth = (), (), (), ()
    for _ in tl.static_range(COLUMNS):
        best = best + (tl.full([BLOCK], float("-inf"), ACC),)
        zero = tl.zeros([BLOCK], ACC)
        sums, own, smooth = sums + (zero,), own + (zero,), smooth + (zero,)
    pointers = corners_of(source)
    for _ in range(channels):
        row = row_scores(pointers, source, part_y, parts_x, CLAMP, ACC, COLUMNS)
        pointers = next_class(pointers, source[7])
        higher = ()
        for j in tl.static_range(COLUMNS):
            more = tl.maximum(best[j], row[j], propagate_nan=tl.PropagateNan.ALL)
            higher = higher + (more,)
        best = higher
    pointers = corners_of(source)
    for channel in range(channels):
        row = row_scores(pointers, source, part_y, parts_x, CLAMP, ACC, COLUMNS)
        pointers = next_class(pointers, source[7])
        more, more_own, more_smooth = (), (), ()
        for j in tl.static_range(COLUMNS):
            z = row[j] - best[j]
            more = more + (sums[j] + tl.exp2(z * LOG2E),)
            more_own = more_own + (tl.where(codes[j] == channel, z, own[j]),)
            if TABLE:
                k = tl.load(table_ptr + 2 * channels + channel)
                # As in torch: with smoothing a score of -inf counts, be its weight 0 or not.
                part = tl.where(smoothing == 0, 0.0, k * z)
                more_smooth = more_smooth + (smooth[j] + part,)
            else:
                more_smooth = more_smooth + (smooth[j],)
        sums, own, smooth = more, more_own, more_smooth
    losses, weights, factors, hards, softs = (), (), (), (), ()
    for j in tl.static_range(COLUMNS):
        weight, hard, scale = priced(codes[j], table_ptr, channels, TABLE, ACC)
        mine = scale * (tl.log2(sums[j]) * LN2) - smooth[j] - hard * own[j]
        nothing = tl.where(codes[j] == -2, float("nan"), 0.0).to(ACC)
        losses = losses + (tl.where(codes[j] >= 0, mine, nothing),)
        weights = weights + (weight + nothing,)
        rate = tl.where(codes[j] == -1, 0.0, 1.0 + nothing)
        if PIXELS and GRADIENT:
            rate = rate * rates[j]
        factors = factors + (scale * rate / sums[j] + nothing,)
        hards, softs = hards + (hard * rate,), softs + (rate,)
    if GRADIENT:
        pointers, upper, lower = corners_of(source), planes[0], planes[1]
        for channel in range(channels):
            row = row_scores(pointers, source, part_y, parts_x, CLAMP, ACC, COLUMNS)
            pointers = next_class(pointers, source[7])
            left, right = tl.zeros([BLOCK], ACC), tl.zeros([BLOCK], ACC)
            for j in tl.static_range(COLUMNS):
                p = tl.exp2((row[j] - best[j]) * LOG2E) * factors[j]
                p -= tl.where(codes[j] == channel, hards[j], 0.0)
                if TABLE:
                    p -= tl.load(table_ptr + 2 * channels + channel) * softs[j]
                p = tl.where(j < columns, p, 0.0)  # also a NaN of a pixel that is not there
                left += share_of(p, 1 - parts_x[j])
                right += share_of(p, parts_x[j])
            shares = (
                share_of(left, 1 - part_y), share_of(right, 1 - part_y),
                share_of(left, part_y), share_of(right, part_y),
            )  # fmt: skip
            add_at_corners((upper, lower), planes, shares, BLOCK, GROUPS, True)
            upper, lower = upper + planes[2], lower + planes[2]
    return losses, weights
