"""Device code of upsample_cross_entropy: the softmax of a patch of upsampled scores.

Within a patch the exponentials of a class are geometric progressions along rows, from the middle
column on to both sides, so that errors in their ratios cancel. The highest scores of the corners
are subtracted first; interpolated, they bound every score of the patch, so that no exponential
overflows. What a patch gives to the gradient of its corners comes from four sums over its pixels:
of s, s x, s y and s x y, with s the gradient of the pixel in column x and row y, counted from the
middle. For a class that no label names, they are polynomials in the ratio of the progression,
summed by Horner's rule; of one that labels name, the softmax of a pixel and its label cancel before
anything is summed.

For sources and planes see `_corners`, for labels `_targets`, for places `_progressions`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._corners import add_at_corners, corner_shares, corners_of, loaded, next_class, part_of
from ._progressions import row_exponentials, row_polynomial, rows_of
from ._targets import hard_weight, label_sums, label_survey
from .patches import columns_of, joined

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Powers of two between neighbouring corners of a class. With more, all exponentials of a pixel may
# be too small: such tiles, and those with a NaN or an infinity, go the direct way.
WIDEST = tl.constexpr(32.0)


@triton.jit
def below(corners, highest):
    """Scores in powers of two, relative to the highest of each corner: 0 or less."""
    a, b, c, d = corners
    return (
        (a - highest[0]) * LOG2E,
        (b - highest[1]) * LOG2E,
        (c - highest[2]) * LOG2E,
        (d - highest[3]) * LOG2E,
    )


@triton.jit
def exponential_sums(
    source, highest, place, channels, table_ptr,
    CLAMP: tl.constexpr, TABLE: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of the exponentials of each pixel of a patch, row by row; the smoothing's sum of the
    scores at each corner; whether some class ranges too widely for a progression."""
    sums = ()
    for _ in tl.static_range(ROWS * COLUMNS):
        sums = sums + (tl.zeros([BLOCK], ACC),)
    f0 = tl.zeros([BLOCK], ACC)
    f1, f2, f3 = f0, f0, f0
    widest = f0
    pointers = corners_of(source)
    for channel in range(channels):
        a, b, c, d = below(loaded(pointers, source, CLAMP, ACC), highest)
        pointers = next_class(pointers, source[7])
        # A NaN stays one, and is the difference of two infinities.
        widest = wider(wider(widest, b - a), c - a)
        widest = wider(wider(widest, d - b), d - c)
        if TABLE:
            k = tl.load(table_ptr + 2 * channels + channel)
            f0, f1, f2, f3 = f0 + k * a, f1 + k * b, f2 + k * c, f3 + k * d
        e, right, left = rows_of((a, b, c, d), place, ROWS)
        added = ()
        for i in tl.static_range(ROWS):
            row = row_exponentials(e[i], right[i], left[i], COLUMNS)
            for j in tl.static_range(COLUMNS):
                added = added + (sums[i * COLUMNS + j] + row[j],)
        sums = added
    return sums, (f0, f1, f2, f3), widest <= WIDEST


@triton.jit
def wider(most, difference):
    """The larger of `most` and the magnitude of `difference`, NaN if one of them is."""
    return tl.maximum(most, tl.abs(difference), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def times(a, b):
    """The product of `a` and `b`."""
    return a * b


@triton.jit
def bits_of(word):
    """How many bits of an int64 are set."""
    word = word - ((word >> 1) & 0x5555555555555555)
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((word * 0x0101010101010101) >> 56).to(tl.int32) & 0xFF


@triton.jit
def plain_factors(
    sums, count,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where every pixel that counts weighs 1: the reciprocals of their sums, 0 for the others; and
    the sum of the sums' logarithms to base 2."""
    factors = ()
    if ACC == tl.float64:  # noqa: SIM300 - in this order for Triton 3.3
        total = tl.zeros([BLOCK], ACC)
        for k in tl.static_range(ROWS * COLUMNS):
            counts = (count >> k) & 1 == 1
            mine = tl.where(counts, sums[k], 1.0)
            total += tl.log2(mine)
            factors = factors + (tl.where(counts, 1 / mine, 0.0),)
        return factors, total
    else:  # from the product of their mantissas and the sum of their exponents
        product, power = tl.full([BLOCK, COLUMNS], 1.0, tl.float32), -128 * bits_of(~count)
        power += 128 * (64 - ROWS * COLUMNS)
        powers = tl.zeros([BLOCK, COLUMNS], tl.int32)
        for i in tl.static_range(ROWS):
            row = ()
            for j in tl.static_range(COLUMNS):
                counts = (count >> (i * COLUMNS + j)) & 1
                row = row + (tl.where(counts == 1, sums[i * COLUMNS + j], float("inf")),)
            mine = joined(row, BLOCK, COLUMNS)
            exponent, mantissa = parts_of(mine)
            powers, product = powers + exponent, product * mantissa
            root = tl.rsqrt(mine)
            inverse = columns_of(root * root, BLOCK, COLUMNS)
            for j in tl.static_range(COLUMNS):
                # One step of Newton's method: all in all two thirds of a division's instructions.
                error = 1.0 - sums[i * COLUMNS + j] * inverse[j]
                factors = factors + (inverse[j] + inverse[j] * error,)
        power += tl.sum(powers, 1)  # in which an infinity has counted 128
        product = tl.reduce(product, 1, times)  # at most 2 ** (ROWS * COLUMNS), a finite number
        return factors, tl.log2(product) + power.to(tl.float32)


@triton.jit
def parts_of(x):
    """The exponent and the mantissa, 1 to 2, of positive float32 numbers."""
    bits = x.to(tl.int32, bitcast=True)
    mantissa = (bits & 0x007FFFFF) | 0x3F800000
    return (bits >> 23) - 127, mantissa.to(tl.float32, bitcast=True)


@triton.jit
def priced_factors(
    factors, hits, price,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The factors, those of the pixels whose bits are set in `hits` times `price`; and the sum of
    these pixels' logarithms to base 2, as they were."""
    more, total = (), tl.zeros([BLOCK], ACC)
    product, powers = tl.full([BLOCK, COLUMNS], 1.0, ACC), tl.zeros([BLOCK, COLUMNS], tl.int32)
    for i in tl.static_range(ROWS):
        row = ()
        for j in tl.static_range(COLUMNS):
            hit = (hits >> (i * COLUMNS + j)) & 1 == 1
            factor = factors[i * COLUMNS + j]
            row = row + (tl.where(hit, factor, 1.0),)
            more = more + (tl.where(hit, factor * price, factor),)
        mine = joined(row, BLOCK, COLUMNS)
        if ACC == tl.float64:  # noqa: SIM300
            total += tl.sum(tl.log2(mine), 1)
        else:
            exponent, mantissa = parts_of(mine)
            powers, product = powers + exponent, product * mantissa
    if ACC == tl.float32:  # noqa: SIM300
        total = tl.log2(tl.reduce(product, 1, times)) + tl.sum(powers, 1).to(ACC)
    return more, total


@triton.jit
def priced_by_class(
    factors, labels, present, table_ptr, channels,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where classes have weights: the factors, the sums' logarithms to base 2, weighted and summed,
    the sum of the weights, and four sums over the pixels that count."""
    zero = tl.zeros([BLOCK], ACC)
    loss, total, valid = zero, zero, (zero, zero, zero, zero)
    soft = tl.load(table_ptr + 3 * channels)
    for channel in range(channels):
        if ((present >> (channel & 31)) & 1) == 1 and channel != labels[5]:
            own, hits = label_sums(labels, channel, ACC, ROWS, COLUMNS, BLOCK)
            price = tl.load(table_ptr + channels + channel) + soft
            factors, mine = priced_factors(factors, hits, price, ACC, ROWS, COLUMNS, BLOCK)
            loss -= price * mine
            total += tl.load(table_ptr + channel) * own[0]
            s, s_x, s_y, s_xy = valid
            valid = s + own[0], s_x + own[1], s_y + own[2], s_xy + own[3]
    return factors, loss, total, valid


@triton.jit
def gradient_sums(
    z, place, factors,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Four sums, as `corner_shares` takes them, of a class's exponentials times `factors`."""
    e, right, left = rows_of(z, place, ROWS)
    middle: tl.constexpr = ROWS // 2
    zero = tl.zeros([BLOCK], ACC)
    # Down to the middle row, and up to it: a sum of all the sums so far counts each row as often as
    # it is rows away.
    s, s_x, s_y, s_xy = zero, zero, zero, zero
    for i in tl.static_range(middle):
        value, slope = row_polynomial(right[i], left[i], factors, i, COLUMNS)
        s, s_x = s + value * e[i], s_x + slope * e[i]
        s_y, s_xy = s_y - s, s_xy - s_x
    below_, below_x = zero, zero
    for i in tl.static_range(ROWS - 1, middle, -1):
        value, slope = row_polynomial(right[i], left[i], factors, i, COLUMNS)
        below_, below_x = below_ + value * e[i], below_x + slope * e[i]
        s_y, s_xy = s_y + below_, s_xy + below_x
    value, slope = row_polynomial(right[middle], left[middle], factors, middle, COLUMNS)
    s, s_x = s + value * e[middle], s_x + slope * e[middle]
    return s + below_, s_x + below_x, s_y, s_xy


@triton.jit
def labelled_sums(
    z, place, factors, hits, hard, otherwise,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The same, less `hard` where a bit of `hits` is set: they cancel pixel by pixel.

    otherwise: what `gradient_sums` gave, for lanes without a bit. So no lane depends on others.
    """
    e, right, left = rows_of(z, place, ROWS)
    s = tl.zeros([BLOCK], ACC)
    s_x, s_y, s_xy = s, s, s
    for i in tl.static_range(ROWS):
        row = row_exponentials(e[i], right[i], left[i], COLUMNS)
        bits = (hits >> (i * COLUMNS)).to(tl.int32)
        value = tl.zeros([BLOCK], ACC)
        slope = value
        for j in tl.static_range(COLUMNS):
            own = tl.where((bits >> j) & 1 == 1, hard, 0.0)
            g = row[j] * factors[i * COLUMNS + j] - own
            value, slope = value + g, slope + g * (j - COLUMNS // 2)
        s, s_x = s + value, s_x + slope
        s_y, s_xy = s_y + value * (i - ROWS // 2), s_xy + slope * (i - ROWS // 2)
    some = hits != 0
    return (
        tl.where(some, s, otherwise[0]), tl.where(some, s_x, otherwise[1]),
        tl.where(some, s_y, otherwise[2]), tl.where(some, s_xy, otherwise[3]),
    )  # fmt: skip


@triton.jit
def progressive(
    source, highest, place, labels, planes, channels, table_ptr,
    GRADIENT: tl.constexpr, CLAMP: tl.constexpr, TABLE: tl.constexpr, IGNORES: tl.constexpr,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The loss of each lane's patch, and its weight; and whether it is one. Where scores range too
    widely both are 0, and so is what the patch gives to its corners."""
    fx, sx, fy, sy = place
    sums, smooth, near = exponential_sums(
        source, highest, place, channels, table_ptr, CLAMP, TABLE, ACC, ROWS, COLUMNS, BLOCK
    )
    pointers, row_stride, stride, columns, rows, ignore_index = labels
    columns = tl.where(near, columns, 0)
    labels = pointers, row_stride, stride, columns, rows, ignore_index
    count, present, spoilt = label_survey(labels, channels, IGNORES, COLUMNS, BLOCK)
    factors, loss = plain_factors(sums, count, ACC, ROWS, COLUMNS, BLOCK)
    total = bits_of(count).to(ACC)
    if TABLE:
        factors, loss, total, valid = priced_by_class(
            factors, labels, present, table_ptr, channels, ACC, ROWS, COLUMNS, BLOCK
        )
        loss -= part_of(corner_shares(valid, fx, sx, fy, sy), smooth)
    pointers, upper, lower = corners_of(source), planes[0], planes[1]
    for channel in range(channels):
        named = ((present >> (channel & 31)) & 1) == 1 and channel != ignore_index
        if GRADIENT:
            z = below(loaded(pointers, source, CLAMP, ACC), highest)
            s, s_x, s_y, s_xy = gradient_sums(z, place, factors, ACC, ROWS, COLUMNS, BLOCK)
            if named:
                hard = hard_weight(table_ptr, channels, channel, TABLE, ACC)
                own, hits = label_sums(labels, channel, ACC, ROWS, COLUMNS, BLOCK)
                loss -= hard * part_of(corner_shares(own, fx, sx, fy, sy), z)
                s, s_x, s_y, s_xy = labelled_sums(
                    z, place, factors, hits, hard, (s, s_x, s_y, s_xy), ACC, ROWS, COLUMNS, BLOCK
                )
            if TABLE:
                k = tl.load(table_ptr + 2 * channels + channel)
                s, s_x = s - k * valid[0], s_x - k * valid[1]
                s_y, s_xy = s_y - k * valid[2], s_xy - k * valid[3]
            a, b, c, d = corner_shares((s, s_x, s_y, s_xy), fx, sx, fy, sy)
            a, b = tl.where(near, a, 0.0), tl.where(near, b, 0.0)
            c, d = tl.where(near, c, 0.0), tl.where(near, d, 0.0)
            add_at_corners((upper, lower), planes, (a, b, c, d), BLOCK, GROUPS, False)
            upper, lower = upper + planes[2], lower + planes[2]
        else:
            if named:
                z = below(loaded(pointers, source, CLAMP, ACC), highest)
                hard = hard_weight(table_ptr, channels, channel, TABLE, ACC)
                own, _ = label_sums(labels, channel, ACC, ROWS, COLUMNS, BLOCK)
                loss -= hard * part_of(corner_shares(own, fx, sx, fy, sy), z)
        pointers = next_class(pointers, source[7])
    # A label out of range makes NaN of the weight, too, and so of all of the gradient.
    loss = tl.where(spoilt, float("nan"), loss * LN2)
    return loss, tl.where(spoilt, float("nan"), total), near
