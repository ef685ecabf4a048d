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
from ._targets import hard_weight, label_codes, label_sums, label_survey, priced
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
    near = tl.full([BLOCK], 1, tl.int1)
    pointers = corners_of(source)
    for channel in range(channels):
        a, b, c, d = below(loaded(pointers, source, CLAMP, ACC), highest)
        pointers = next_class(pointers, source[7])
        # A NaN is not near, nor is the difference of two infinities.
        near = near & (tl.abs(c - a) <= WIDEST) & (tl.abs(d - b) <= WIDEST)
        near = near & (tl.abs(b - a) <= WIDEST) & (tl.abs(d - c) <= WIDEST)
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
    return sums, (f0, f1, f2, f3), near


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
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where every pixel that counts weighs 1: the reciprocals of their sums (float32), 0 for the
    others; and the sum of the sums' logarithms to base 2, from the product of their mantissas and
    their exponents."""
    product, power = tl.full([BLOCK, COLUMNS], 1.0, tl.float32), -128 * bits_of(~count)
    power += 128 * (64 - ROWS * COLUMNS)
    factors, powers = (), tl.zeros([BLOCK, COLUMNS], tl.int32)
    for i in tl.static_range(ROWS):
        row = ()
        for j in tl.static_range(COLUMNS):
            counts = (count >> (i * COLUMNS + j)) & 1
            row = row + (tl.where(counts == 1, sums[i * COLUMNS + j], float("inf")),)
        mine = joined(row, BLOCK, COLUMNS)
        bits = mine.to(tl.int32, bitcast=True)
        powers += (bits >> 23) - 127
        mantissa = (bits & 0x007FFFFF) | 0x3F800000
        product = product * mantissa.to(tl.float32, bitcast=True)
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
def priced_factors(
    sums, labels, table_ptr, channels,
    TABLE: tl.constexpr, IGNORES: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each pixel's softmax counts divided by its sum, the logarithms likewise weighted and
    summed, the sum of the weights, and four sums over the pixels that count."""
    pointers, row_stride, stride, columns, rows, ignore_index = labels
    x = tl.arange(0, COLUMNS)[None, :]
    tile = pointers[:, None] + x * stride
    total = tl.zeros([BLOCK, COLUMNS], ACC)
    valid, valid_y = total, total
    loss = tl.zeros([BLOCK], ACC)
    factors = ()
    for i in tl.static_range(ROWS):
        inside = x < tl.where(i < rows, columns, 0)[:, None]
        code = label_codes(tile + i * row_stride, inside, ignore_index, channels, IGNORES)
        own, _, scale = priced(code, table_ptr, channels, TABLE, ACC)
        total += own
        valid += tl.where(code >= 0, 1.0, 0.0).to(ACC)
        valid_y += tl.where(code >= 0, i - ROWS // 2, 0).to(ACC)
        scales = columns_of(scale, BLOCK, COLUMNS)
        for j in tl.static_range(COLUMNS):
            mine = tl.where(scales[j] == 0, 1.0, sums[i * COLUMNS + j])
            loss += scales[j] * tl.log2(mine)
            factors = factors + (scales[j] / mine,)
    x = (x - COLUMNS // 2).to(ACC)
    valid_sums = (
        tl.sum(valid, 1), tl.sum(valid * x, 1), tl.sum(valid_y, 1), tl.sum(valid_y * x, 1)
    )  # fmt: skip
    return factors, loss, tl.sum(total, 1), valid_sums


@triton.jit
def gradient_sums(
    z, place, factors,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Four sums, as `corner_shares` takes them, of a class's exponentials times `factors`."""
    e, right, left = rows_of(z, place, ROWS)
    s = tl.zeros([BLOCK], ACC)
    s_x, s_y, s_xy = s, s, s
    for i in tl.static_range(ROWS):
        value, slope = row_polynomial(right[i], left[i], factors, i, COLUMNS)
        value, slope = value * e[i], slope * e[i]
        s, s_x = s + value, s_x + slope
        s_y, s_xy = s_y + value * (i - ROWS // 2), s_xy + slope * (i - ROWS // 2)
    return s, s_x, s_y, s_xy


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
    if TABLE or ACC == tl.float64:  # noqa: SIM300 - in this order for Triton 3.3
        factors, loss, total, valid = priced_factors(
            sums, labels, table_ptr, channels, TABLE, IGNORES, ACC, ROWS, COLUMNS, BLOCK
        )
    else:
        factors, loss = plain_factors(sums, count, ROWS, COLUMNS, BLOCK)
        total = bits_of(count).to(ACC)
    if TABLE:
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
