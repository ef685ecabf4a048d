"""Device code of upsample_cross_entropy: the softmax of a patch of upsampled scores.

Within a patch the exponentials of a class are a geometric progression along a row, and from row to
row. The highest scores of the corners are subtracted first; interpolated, they bound every score of
the patch, so that no exponential overflows. What a patch gives to the gradient of its corners comes
from four sums over its pixels: of s, s x, s y and s x y, with s the gradient of the pixel in column
x and row y. They are polynomials in the ratio of the progression, summed by Horner's rule.

A source is (pointers to the upper and to the lower left corner of each lane's cell, the stride of
columns, four masks, the stride of classes); a place is (fx, sx, fy, sy), how far into the cell the
first pixel of the patch lies and how much further the next one; labels are (pointers to that of the
first pixel, strides of rows and columns, columns, rows, ignore_index); planes are (pointers to what
upper and lower corners get, of the first class, the stride of classes, whether a cell's corner is
stored, whether no cell is to its left).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .patches import columns_of, joined

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Powers of two between the corners of a class. With more, a progression may begin below the
# smallest number and be lost: such tiles, and those with a NaN or an infinity, go the direct way.
WIDEST = tl.constexpr(40.0)


@triton.jit
def wide(number):
    """A loop's counter as int64."""
    return tl.full([], 0, tl.int64) + number


@triton.jit
def loaded(source, channel, CLAMP: tl.constexpr, ACC: tl.constexpr):
    """A class's scores at the four corners; beyond the map a border repeats the edge, or is 0."""
    step = wide(channel) * source[7]
    upper, lower = source[0] + step, source[1] + step
    a = tl.load(upper, mask=source[3], other=0.0)
    c = tl.load(lower, mask=source[5], other=0.0)
    if CLAMP:
        b = tl.load(upper + source[2], mask=source[4], other=a)
        d = tl.load(lower + source[2], mask=source[6], other=c)
    else:
        b = tl.load(upper + source[2], mask=source[4], other=0.0)
        d = tl.load(lower + source[2], mask=source[6], other=0.0)
    return a.to(ACC), b.to(ACC), c.to(ACC), d.to(ACC)


@triton.jit
def highest_of(source, channels, CLAMP: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """The highest score of each corner."""
    h0 = tl.full([BLOCK], float("-inf"), ACC)
    h1, h2, h3 = h0, h0, h0
    for channel in range(channels):
        a, b, c, d = loaded(source, channel, CLAMP, ACC)
        h0, h1 = tl.maximum(h0, a), tl.maximum(h1, b)
        h2, h3 = tl.maximum(h2, c), tl.maximum(h3, d)
    return h0, h1, h2, h3


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
def row_progression(z, fx, sx, fy):
    """A class's exponential at the first pixel of a row, and its ratio along the row."""
    a, b, c, d = z
    left, right = a + (c - a) * fy, b + (d - b) * fy
    slope = right - left
    return tl.exp2(left + slope * fx), tl.exp2(slope * sx)


@triton.jit
def row_ratios(z, fx, sx, sy):
    """The ratios of both from row to row."""
    a, b, c, d = z
    down, cross = (c - a) * sy, ((d - b) - (c - a)) * sy
    return tl.exp2(down + cross * fx), tl.exp2(cross * sx)


@triton.jit
def corner_shares(sums, fx, sx, fy, sy):
    """What a patch gives to its corners: top left, top right, bottom left, bottom right.

    sums: over the pixels of s, s x, s y, s x y, for the pixel in column x and row y of the patch.
    """
    s, s_x, s_y, s_xy = sums
    right = s * fx + s_x * sx
    bottom = s * fy + s_y * sy
    both = (s * fy + s_y * sy) * fx + (s_x * fy + s_xy * sy) * sx
    return (s - right) - (bottom - both), right - both, bottom - both, both


@triton.jit
def label_codes(pointers, inside, ignore_index, channels, IGNORES: tl.constexpr):
    """Labels as int32: the class, -1 for a pixel that does not count, -2 out of range.

    IGNORES: whether the labels' type can hold ignore_index.
    """
    if IGNORES:
        label = tl.load(pointers, mask=inside, other=ignore_index)
    else:
        label = tl.load(pointers, mask=inside, other=0)
    if label.dtype.primitive_bitwidth < 32:
        label = label.to(tl.int32)
    if label.dtype == tl.int32:
        known = label.to(tl.uint32, bitcast=True) < channels.to(tl.uint32)
    else:
        known = label.to(tl.uint64, bitcast=True) < channels.to(tl.uint64)
    code = tl.where(known, label.to(tl.int32), -2)
    return tl.where(label != ignore_index if IGNORES else inside, code, -1)


@triton.jit
def either(a, b):
    """Bits that are set in `a` or in `b`."""
    return a | b


@triton.jit
def bits_of(word):
    """How many bits of an int64 are set."""
    word = word - ((word >> 1) & 0x5555555555555555)
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((word * 0x0101010101010101) >> 56).to(tl.int32) & 0xFF


@triton.jit
def label_survey(
    labels, channels, IGNORES: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    """Of each lane's labels: which pixels count, a bit for each, row by row; the classes, modulo
    32, a bit for each, with some that may not be there; whether one is out of range."""
    pointers, row_stride, stride, columns, rows, ignore_index = labels
    count = tl.zeros([BLOCK], tl.int64)
    present, lowest = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for i in range(rows):
        row = tl.zeros([BLOCK], tl.int32)
        for j in tl.static_range(COLUMNS):
            code = label_codes(pointers + j * stride, j < columns, ignore_index, channels, IGNORES)
            lowest = tl.minimum(lowest, code)
            present = present | (1 << (code & 31))
            row = row | tl.where(code >= 0, 1 << j, 0)
        count = count | (row.to(tl.int64) << (i * COLUMNS))
        pointers += row_stride
    return count, tl.reduce(present, 0, either), lowest == -2


@triton.jit
def label_sums(labels, class_, ACC: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Four sums, as `corner_shares` takes them, over the pixels of a class that counts."""
    pointers, row_stride, stride, columns, rows, _ = labels
    s = tl.zeros([BLOCK], ACC)
    s_x, s_y, s_xy = s, s, s
    for i in range(rows):
        row = tl.zeros([BLOCK], tl.int32)
        row_x = row
        for j in tl.static_range(COLUMNS):
            here = j < columns
            hit = here & (tl.load(pointers + j * stride, mask=here, other=0) == class_)
            row += tl.where(hit, 1, 0)
            row_x += tl.where(hit, j, 0)
        s, s_x = s + row.to(ACC), s_x + row_x.to(ACC)
        s_y, s_xy = s_y + (row * i).to(ACC), s_xy + (row_x * i).to(ACC)
        pointers += row_stride
    return s, s_x, s_y, s_xy


@triton.jit
def priced(code, table_ptr, channels, TABLE: tl.constexpr, ACC: tl.constexpr):
    """Of each pixel: the weight of its class, what its label counts, and what its softmax does."""
    known = code >= 0
    if TABLE:  # the weights, those times 1 - smoothing, times smoothing / C, and the last's sum
        own = tl.load(table_ptr + code, mask=known, other=0.0)
        hard = tl.load(table_ptr + channels + code, mask=known, other=0.0)
        return own, hard, hard + tl.where(known, tl.load(table_ptr + 3 * channels), 0.0)
    else:
        one = tl.where(known, 1.0, 0.0).to(ACC)
        return one, one, one


@triton.jit
def plain_factors(
    sums, count,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where every pixel that counts weighs 1: the reciprocals of their sums (float32), and the sum
    of the sums' logarithms to base 2, from the product of their mantissas and their exponents."""
    product = tl.full([BLOCK, COLUMNS], 1.0, tl.float32)
    power = tl.zeros([BLOCK, COLUMNS], tl.int32)
    factors = ()
    for i in tl.static_range(ROWS):
        row = ()
        for j in tl.static_range(COLUMNS):
            counts = (count >> (i * COLUMNS + j)) & 1
            row = row + (tl.where(counts == 1, sums[i * COLUMNS + j], float("inf")),)
        mine = joined(row, BLOCK, COLUMNS)
        bits = mine.to(tl.int32, bitcast=True)
        power += bits >> 23
        mantissa = (bits & 0x007FFFFF) | 0x3F800000
        product = product * mantissa.to(tl.float32, bitcast=True)
        root = tl.rsqrt(mine)  # a third of a division's instructions
        factors = factors + columns_of(root * root, BLOCK, COLUMNS)
    # An infinity has the exponent 255, the others their own plus 127.
    power = tl.sum(power, 1) - 255 * (ROWS * COLUMNS) + 128 * bits_of(count)
    return factors, tl.sum(tl.log2(product), 1) + power.to(tl.float32)


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
        valid_y += tl.where(code >= 0, i, 0).to(ACC)
        scales = columns_of(scale, BLOCK, COLUMNS)
        for j in tl.static_range(COLUMNS):
            mine = tl.where(scales[j] == 0, 1.0, sums[i * COLUMNS + j])
            loss += scales[j] * tl.log2(mine)
            factors = factors + (scales[j] / mine,)
    x = x.to(ACC)
    valid_sums = (
        tl.sum(valid, 1), tl.sum(valid * x, 1), tl.sum(valid_y, 1), tl.sum(valid_y * x, 1)
    )  # fmt: skip
    return factors, loss, tl.sum(total, 1), valid_sums


@triton.jit
def exponential_sums(
    source, highest, place, channels, table_ptr,
    CLAMP: tl.constexpr, TABLE: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of the exponentials of each pixel of a patch, row by row; the smoothing's sum of the
    scores at each corner; whether some class ranges too widely for a progression."""
    fx, sx, fy, sy = place
    sums = ()
    for _ in tl.static_range(ROWS * COLUMNS):
        sums = sums + (tl.zeros([BLOCK], ACC),)
    f0 = tl.zeros([BLOCK], ACC)
    f1, f2, f3 = f0, f0, f0
    far = tl.zeros([BLOCK], tl.int32)
    for channel in range(channels):
        a, b, c, d = below(loaded(source, channel, CLAMP, ACC), highest)
        high = tl.maximum(tl.maximum(a, b), tl.maximum(c, d))
        low = tl.minimum(tl.minimum(a, b), tl.minimum(c, d))
        far = far | tl.where(high - low <= WIDEST, 0, 1)  # a NaN is far, too
        if TABLE:
            k = tl.load(table_ptr + 2 * channels + channel)
            f0, f1, f2, f3 = f0 + k * a, f1 + k * b, f2 + k * c, f3 + k * d
        down, cross = row_ratios((a, b, c, d), fx, sx, sy)
        added = ()
        for first in tl.static_range(0, ROWS, 4):
            # Anew after four rows: the errors of products grow with a progression's length.
            e_row, ratio = row_progression((a, b, c, d), fx, sx, fy + first * sy)
            for i in tl.static_range(first, min(first + 4, ROWS)):
                e = e_row
                for j in tl.static_range(COLUMNS):
                    added = added + (sums[i * COLUMNS + j] + e,)
                    e = e * ratio
                e_row, ratio = e_row * down, ratio * cross
        sums = added
    return sums, (f0, f1, f2, f3), far


@triton.jit
def gradient_sums(
    z, place, factors,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Four sums, as `corner_shares` takes them, of a class's exponentials times `factors`."""
    fx, sx, fy, sy = place
    down, cross = row_ratios(z, fx, sx, sy)
    s = tl.zeros([BLOCK], ACC)
    s_x, s_y, s_xy = s, s, s
    for first in tl.static_range(0, ROWS, 4):
        e_row, ratio = row_progression(z, fx, sx, fy + first * sy)
        for i in tl.static_range(first, min(first + 4, ROWS)):
            # sum of u_j r^j, and its derivative by r, from the last column to the first
            value = factors[i * COLUMNS + COLUMNS - 1]
            slope = tl.zeros([BLOCK], ACC)
            for j in tl.static_range(1, COLUMNS):
                slope = slope * ratio + value
                value = value * ratio + factors[i * COLUMNS + COLUMNS - 1 - j]
            value, slope = value * e_row, slope * (e_row * ratio)
            s, s_x = s + value, s_x + slope
            s_y, s_xy = s_y + value * i, s_xy + slope * i
            e_row, ratio = e_row * down, ratio * cross
    return s, s_x, s_y, s_xy


@triton.jit
def add_at_corners(
    planes, channel, shares,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Store a class's shares at (or ADD them to) the left corners of the cells: those of a cell's
    lanes, and of the lanes of the cell to its left."""
    upper, lower, class_stride, stored, alone = planes
    step = wide(channel) * class_stride
    before = tl.maximum(tl.arange(0, BLOCK // GROUPS) - 1, 0)
    for k in tl.static_range(2):
        a, b = shares[2 * k], shares[2 * k + 1]
        if GROUPS > 1:
            a = tl.sum(tl.reshape(a, [BLOCK // GROUPS, GROUPS]), 1)
            b = tl.sum(tl.reshape(b, [BLOCK // GROUPS, GROUPS]), 1)
        total = a + tl.where(alone, 0.0, tl.gather(b, before, 0))
        place = (upper if k == 0 else lower) + step
        if ADD:
            total += tl.load(place, mask=stored, other=0.0)
        tl.store(place, total, mask=stored)


@triton.jit
def between(a, b, part):
    """From `a` to `b`; what has no part in it is not read."""
    return tl.where(part == 0, a, tl.where(part == 1, b, a * (1 - part) + b * part))


@triton.jit
def share_of(value, part):
    """A part of `value`; of what has no part not even a NaN."""
    return tl.where(part == 0, 0.0, value * part)


@triton.jit
def part_of(shares, values):
    """The sum of the shares of four values; of no share nothing."""
    total = tl.where(shares[0] == 0, 0.0, shares[0] * values[0])
    for k in tl.static_range(1, 4):
        total += tl.where(shares[k] == 0, 0.0, shares[k] * values[k])
    return total


@triton.jit
def row_scores(
    source, channel, part_y, parts_x,
    CLAMP: tl.constexpr, ACC: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A class's scores at the pixels of one row of the patches; corners without part not read."""
    a, b, c, d = loaded(source, channel, CLAMP, ACC)
    left, right = between(a, c, part_y), between(b, d, part_y)
    row = ()
    for j in tl.static_range(COLUMNS):
        row = row + (between(left, right, parts_x[j]),)
    return row


@triton.jit
def progressive(
    source, highest, place, labels, planes, channels, table_ptr,
    GRADIENT: tl.constexpr, CLAMP: tl.constexpr, TABLE: tl.constexpr, IGNORES: tl.constexpr,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The loss of each lane's patch, and its weight; last whether all has to be done directly."""
    fx, sx, fy, sy = place
    sums, smooth, far = exponential_sums(
        source, highest, place, channels, table_ptr, CLAMP, TABLE, ACC, ROWS, COLUMNS, BLOCK
    )
    direct = tl.max(far) != 0
    loss, total = tl.zeros([BLOCK], ACC), tl.zeros([BLOCK], ACC)
    if not direct:
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
        if GRADIENT:
            for channel in range(channels):
                z = below(loaded(source, channel, CLAMP, ACC), highest)
                s, s_x, s_y, s_xy = gradient_sums(z, place, factors, ACC, ROWS, COLUMNS, BLOCK)
                if TABLE:
                    k = tl.load(table_ptr + 2 * channels + channel)
                    s, s_x = s - k * valid[0], s_x - k * valid[1]
                    s_y, s_xy = s_y - k * valid[2], s_xy - k * valid[3]
                shares = corner_shares((s, s_x, s_y, s_xy), fx, sx, fy, sy)
                add_at_corners(planes, channel, shares, BLOCK, GROUPS, False)
        for channel in range(channels):
            if ((present >> (channel & 31)) & 1) == 1 and channel != labels[5]:
                z = below(loaded(source, channel, CLAMP, ACC), highest)
                s, s_x, s_y, s_xy = label_sums(labels, channel, ACC, COLUMNS, BLOCK)
                hard = -1.0
                if TABLE:
                    hard = -tl.load(table_ptr + channels + channel)
                sums_of = (s * hard, s_x * hard, s_y * hard, s_xy * hard)
                shares = corner_shares(sums_of, fx, sx, fy, sy)
                loss += part_of(shares, z)
                if GRADIENT:
                    add_at_corners(planes, channel, shares, BLOCK, GROUPS, True)
        loss = tl.where(spoilt, float("nan"), loss * LN2)
    return loss, total, direct


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
    best, sums, own, smooth = (), (), (), ()
    for _ in tl.static_range(COLUMNS):
        best = best + (tl.full([BLOCK], float("-inf"), ACC),)
        zero = tl.zeros([BLOCK], ACC)
        sums, own, smooth = sums + (zero,), own + (zero,), smooth + (zero,)
    for channel in range(channels):
        row = row_scores(source, channel, part_y, parts_x, CLAMP, ACC, COLUMNS)
        higher = ()
        for j in tl.static_range(COLUMNS):
            more = tl.maximum(best[j], row[j], propagate_nan=tl.PropagateNan.ALL)
            higher = higher + (more,)
        best = higher
    for channel in range(channels):
        row = row_scores(source, channel, part_y, parts_x, CLAMP, ACC, COLUMNS)
        more, more_own, more_smooth = (), (), ()
        for j in tl.static_range(COLUMNS):
            z = row[j] - best[j]
            more = more + (sums[j] + tl.exp2(z * LOG2E),)
            more_own = more_own + (tl.where(codes[j] == channel, z, own[j]),)
            if TABLE:
                k = tl.load(table_ptr + 2 * channels + channel)
                more_smooth = more_smooth + (smooth[j] + tl.where(k == 0, 0.0, k * z),)
            else:
                more_smooth = more_smooth + (smooth[j],)
        sums, own, smooth = more, more_own, more_smooth
    losses, weights, factors, hards, softs = (), (), (), (), ()
    for j in tl.static_range(COLUMNS):
        weight, hard, scale = priced(codes[j], table_ptr, channels, TABLE, ACC)
        mine = scale * (tl.log2(sums[j]) * LN2) - smooth[j]
        mine -= tl.where(hard == 0, 0.0, hard * own[j])
        nothing = tl.where(codes[j] == -2, float("nan"), 0.0).to(ACC)
        losses = losses + (tl.where(codes[j] >= 0, mine, nothing),)
        weights = weights + (weight,)
        rate = tl.where(codes[j] == -1, 0.0, 1.0 + nothing)
        if PIXELS and GRADIENT:
            rate = rate * rates[j]
        factors = factors + (scale * rate / sums[j] + nothing,)
        hards, softs = hards + (hard * rate,), softs + (rate,)
    if GRADIENT:
        for channel in range(channels):
            row = row_scores(source, channel, part_y, parts_x, CLAMP, ACC, COLUMNS)
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
            add_at_corners(planes, channel, shares, BLOCK, GROUPS, True)
    return losses, weights
