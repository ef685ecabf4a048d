"""The exponentials of a class in a patch: geometric progressions, their sums and their gradients.

Along a row of a patch a bilinear score is an arithmetic progression, and its exponential a
geometric one: one exponential in the middle column and one ratio give the whole row, to both sides,
so that errors in the ratio do not add up across it. See docs/kernels.md.

Everything is in powers of two, relative to the highest score of each corner: interpolated, these
bound every score of the patch, and no exponential overflows. Pixels are counted row by row; tuples
of ROWS * COLUMNS hold one value of each.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .cross_entropy_corners import loaded, next_class
from .grid import Corners, columns_of, joined

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Powers of two between neighboring corners of a class. With more, all exponentials of a pixel may
# be too small: such patches, and those with a NaN or an infinity, are left to `exact_patches`. A
# class that is -inf at all four corners is none of these.
WIDEST = tl.constexpr(32.0)
# Further below the highest an exponent is as good as this (`bounded`).
LOWEST = tl.constexpr(-(2.0**20))


class Middle(NamedTuple):
    """Where the middle pixel of a patch is in its cell: pixel (ROWS // 2, COLUMNS // 2).

    x, y: how far into the cell, 0 to 1. dx, dy: how much further the next column, the next row.
    """

    x: tl.tensor
    dx: tl.tensor
    y: tl.tensor
    dy: tl.tensor


class Sums(NamedTuple):
    """Of values v of the pixels of a patch the sums of v, v x, v y and v x y.

    x, y: column and row of the pixel, counted from the middle.
    """

    one: tl.tensor
    x: tl.tensor
    y: tl.tensor
    xy: tl.tensor


@triton.jit
def corner_shares(sums, middle):
    """The sums of v times the weight of each corner: what the values v give to the corners.

    The pixel in column x and row y has the weights (1 - X) (1 - Y), X (1 - Y), (1 - X) Y and X Y,
    with X = middle.x + x middle.dx and Y = middle.y + y middle.dy.
    """
    right = sums.one * middle.x + sums.x * middle.dx
    bottom = sums.one * middle.y + sums.y * middle.dy
    both = (sums.one * middle.y + sums.y * middle.dy) * middle.x
    both += (sums.x * middle.y + sums.xy * middle.dy) * middle.dx
    return Corners((sums.one - right) - (bottom - both), right - both, bottom - both, both)


@triton.jit
def dot(shares, values):
    """The sum of four values times their shares; a share of 0 contributes 0, even for NaN."""
    total = tl.where(shares.a == 0, 0.0, shares.a * values.a)
    total += tl.where(shares.b == 0, 0.0, shares.b * values.b)
    total += tl.where(shares.c == 0, 0.0, shares.c * values.c)
    return total + tl.where(shares.d == 0, 0.0, shares.d * values.d)


@triton.jit
def highest_of(call, source):
    """The highest score of each corner."""
    a = tl.full([call.BLOCK], float("-inf"), tl.float32)
    b, c, d = a, a, a
    for _ in range(call.num_classes):
        s = loaded(source, call.CLAMP)
        source = next_class(source)
        a, b = tl.maximum(a, s.a), tl.maximum(b, s.b)
        c, d = tl.maximum(c, s.c), tl.maximum(d, s.d)
    return Corners(a, b, c, d)


@triton.jit
def relative(scores, highest):
    """Scores in powers of two, relative to the highest of each corner: 0 or less."""
    return Corners(
        (scores.a - highest.a) * LOG2E, (scores.b - highest.b) * LOG2E,
        (scores.c - highest.c) * LOG2E, (scores.d - highest.d) * LOG2E,
    )  # fmt: skip


@triton.jit
def bounded(z):
    """Exponents no less than LOWEST, whose exponential is 0, too: so a class that is -inf at all
    corners has differences of 0, not NaN. A NaN stays one."""
    return Corners(
        tl.maximum(z.a, LOWEST, propagate_nan=tl.PropagateNan.ALL),
        tl.maximum(z.b, LOWEST, propagate_nan=tl.PropagateNan.ALL),
        tl.maximum(z.c, LOWEST, propagate_nan=tl.PropagateNan.ALL),
        tl.maximum(z.d, LOWEST, propagate_nan=tl.PropagateNan.ALL),
    )


# ---- the exponentials of one class


@triton.jit
def middle_row(z, middle):
    """Of the middle row: the exponent in its middle column, and its step to the next one. And how
    much more they are in the row below.

    z: exponents at the corners.
    """
    upper, lower = z.a + (z.b - z.a) * middle.x, z.c + (z.d - z.c) * middle.x
    right, cross = (z.b - z.a) * middle.dx, ((z.d - z.c) - (z.b - z.a)) * middle.dx
    start, step = upper + (lower - upper) * middle.y, right + cross * middle.y
    return start, step, (lower - upper) * middle.dy, cross * middle.dy


@triton.jit
def rows_of(z, middle, ROWS: tl.constexpr):
    """A class's exponentials in the middle column, a tuple of rows; their ratios to the right; and
    to the left.

    Every ratio is an exponential of its own: as products of others they would be less exact.
    """
    half: tl.constexpr = ROWS // 2
    start, step, down, change = middle_row(z, middle)
    e, right, left = (), (), ()
    for i in tl.static_range(ROWS):
        ratio = step + (i - half) * change
        e = e + (tl.exp2(start + (i - half) * down),)
        right, left = right + (tl.exp2(ratio),), left + (tl.exp2(-ratio),)
    return e, right, left


@triton.jit
def row_exponentials(e, right, left, COLUMNS: tl.constexpr):
    """The exponentials of a row, from that in the middle on to both sides."""
    half: tl.constexpr = COLUMNS // 2
    row, value = (), e
    for _ in tl.static_range(half):
        value = value * left
        row = (value,) + row
    row, value = row + (e,), e
    for _ in tl.static_range(half + 1, COLUMNS):
        value = value * right
        row = row + (value,)
    return row


@triton.jit
def row_polynomial(right, left, factors, i: tl.constexpr, COLUMNS: tl.constexpr):
    """Of row i, sum of u_x r^x and of x u_x r^x over its columns x from the middle, for factors u
    and the ratio r (`right`, its inverse `left`): Horner's rule to both sides."""
    half: tl.constexpr = COLUMNS // 2
    value = factors[i * COLUMNS + COLUMNS - 1]
    slope = value if COLUMNS > 2 else value * 0
    for j in tl.static_range(COLUMNS - 2, half - 1, -1):
        value = value * right + factors[i * COLUMNS + j]
        if j > half:
            slope = slope * right + value
    slope = slope * right
    if half > 0:
        other = factors[i * COLUMNS]
        other_slope = other
        for j in tl.static_range(1, half):
            other = other * left + factors[i * COLUMNS + j]
            other_slope = other_slope * left + other
        value, slope = tl.fma(other, left, value), tl.fma(-other_slope, left, slope)
    return value, slope


# ---- the sums over classes, and the factors that they make


@triton.jit
def wider(most, difference):
    """The larger of `most` and the magnitude of `difference`, NaN if one of them is."""
    return tl.maximum(most, tl.abs(difference), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exponential_sums(call, source, highest, middle):
    """The sum of the exponentials of each pixel of a patch; if TABLE, at each corner the sum of the
    scores times what smoothing counts; whether no class ranges too widely for a progression."""
    sums = ()
    for _ in tl.static_range(call.ROWS * call.COLUMNS):
        sums = sums + (tl.zeros([call.BLOCK], tl.float32),)
    a = tl.zeros([call.BLOCK], tl.float32)
    b, c, d = a, a, a
    widest = a
    if call.TABLE:
        smooths = tl.load(call.table + 3 * call.num_classes) != 0
    for channel in range(call.num_classes):
        z = relative(loaded(source, call.CLAMP), highest)
        source = next_class(source)
        if call.TABLE:  # without smoothing a score of -inf does not count
            k = tl.load(call.table + 2 * call.num_classes + channel)
            a, b = a + tl.where(smooths, k * z.a, 0.0), b + tl.where(smooths, k * z.b, 0.0)
            c, d = c + tl.where(smooths, k * z.c, 0.0), d + tl.where(smooths, k * z.d, 0.0)
        z = bounded(z)
        widest = wider(wider(widest, z.b - z.a), z.c - z.a)
        widest = wider(wider(widest, z.d - z.b), z.d - z.c)
        e, right, left = rows_of(z, middle, call.ROWS)
        added = ()
        for i in tl.static_range(call.ROWS):
            row = row_exponentials(e[i], right[i], left[i], call.COLUMNS)
            for j in tl.static_range(call.COLUMNS):
                added = added + (sums[i * call.COLUMNS + j] + row[j],)
        sums = added
    near = widest <= WIDEST
    if call.TABLE:
        total = a + b + c + d
        near = near & (total - total == 0)  # finite
    return sums, Corners(a, b, c, d), near


@triton.jit
def product(a, b):
    """The product of `a` and `b`, for reductions."""
    return a * b


@triton.jit
def popcount(word):
    """How many bits of an int64 are set."""
    word = word - ((word >> 1) & 0x5555555555555555)
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((word * 0x0101010101010101) >> 56).to(tl.int32) & 0xFF


@triton.jit
def halves_of(pixels):
    """A set of pixels as two int32 words, of four rows each."""
    return pixels.to(tl.int32), (pixels >> 32).to(tl.int32)


@triton.jit
def is_set(halves, i: tl.constexpr, j: tl.constexpr):
    """Whether the pixel in row i and column j is in a set of two halves."""
    return (halves[i // 4] >> (i % 4 * 8 + j)) & 1 == 1


@triton.jit
def exponent_and_mantissa(x):
    """The exponent and the mantissa, 1 to 2, of positive float32 numbers."""
    bits = x.to(tl.int32, bitcast=True)
    mantissa = (bits & 0x007FFFFF) | 0x3F800000
    return (bits >> 23) - 127, mantissa.to(tl.float32, bitcast=True)


@triton.jit
def plain_factors(call, sums, valid):
    """Where every pixel counts 1 that is in the set `valid`: the reciprocals of their sums, 0 for
    the others; and the sum of the sums' logarithms to base 2: one logarithm for a patch, of the
    product of the factors' mantissas, and the sum of their exponents."""
    factors, halves = (), halves_of(valid)
    mantissas = tl.full([call.BLOCK, call.COLUMNS], 1.0, tl.float32)
    exponents = tl.zeros([call.BLOCK, call.COLUMNS], tl.int32)
    for i in tl.static_range(call.ROWS):
        row = ()
        for j in tl.static_range(call.COLUMNS):
            row = row + (sums[i * call.COLUMNS + j],)
        tile = joined(row, call.BLOCK, call.COLUMNS)
        root = tl.rsqrt(tile)
        inverse = root * root
        # One step of Newton's method: all in all two thirds of a division's instructions.
        inverse = columns_of(inverse + inverse * (1.0 - tile * inverse), call.BLOCK, call.COLUMNS)
        row = ()
        for j in tl.static_range(call.COLUMNS):
            row = row + (tl.where(is_set(halves, i, j), inverse[j], 0.0),)
        factors = factors + row
        exponent, mantissa = exponent_and_mantissa(joined(row, call.BLOCK, call.COLUMNS))
        exponents, mantissas = exponents + exponent, mantissas * mantissa
    # The exponent of 0 is -127, its mantissa 1.
    power = tl.sum(exponents, 1) + 127 * (call.ROWS * call.COLUMNS - popcount(valid))
    mantissa = tl.reduce(
        mantissas, 1, product
    )  # at most 2 ** (call.ROWS * call.COLUMNS), a finite number
    return factors, -tl.log2(mantissa) - power.to(tl.float32)


@triton.jit
def weighted_factors(call, factors, hits, weight):
    """The factors, those of the pixels whose bits are set in `hits` times `weight`; and the sum of
    these pixels' logarithms to base 2, as they were."""
    weighted, halves = (), halves_of(hits)
    mantissas = tl.full([call.BLOCK, call.COLUMNS], 1.0, tl.float32)
    exponents = tl.zeros([call.BLOCK, call.COLUMNS], tl.int32)
    for i in tl.static_range(call.ROWS):
        row = ()
        for j in tl.static_range(call.COLUMNS):
            hit = is_set(halves, i, j)
            factor = factors[i * call.COLUMNS + j]
            row = row + (tl.where(hit, factor, 1.0),)
            weighted = weighted + (tl.where(hit, factor * weight, factor),)
        exponent, mantissa = exponent_and_mantissa(joined(row, call.BLOCK, call.COLUMNS))
        exponents, mantissas = exponents + exponent, mantissas * mantissa
    total = tl.log2(tl.reduce(mantissas, 1, product)) + tl.sum(exponents, 1).to(tl.float32)
    return weighted, total


# ---- the gradient of one class


@triton.jit
def gradient_sums(call, z, middle, factors):
    """The Sums of a class's exponentials times `factors`: polynomials in the progression's ratio.

    z: the class's exponents at the corners.
    """
    e, right, left = rows_of(z, middle, call.ROWS)
    half: tl.constexpr = call.ROWS // 2
    zero = tl.zeros([call.BLOCK], tl.float32)
    # Down to the middle row, and up to it: a sum of all the sums so far counts each row as often as
    # it is rows away.
    s, s_x, s_y, s_xy = zero, zero, zero, zero
    for i in tl.static_range(half):
        value, slope = row_polynomial(right[i], left[i], factors, i, call.COLUMNS)
        s, s_x = tl.fma(value, e[i], s), tl.fma(slope, e[i], s_x)
        s_y, s_xy = s_y - s, s_xy - s_x
    lower, lower_x = zero, zero
    for i in tl.static_range(call.ROWS - 1, half, -1):
        value, slope = row_polynomial(right[i], left[i], factors, i, call.COLUMNS)
        lower, lower_x = tl.fma(value, e[i], lower), tl.fma(slope, e[i], lower_x)
        s_y, s_xy = s_y + lower, s_xy + lower_x
    value, slope = row_polynomial(right[half], left[half], factors, half, call.COLUMNS)
    s, s_x = tl.fma(value, e[half], s), tl.fma(slope, e[half], s_x)
    return Sums(s + lower, s_x + lower_x, s_y, s_xy)


@triton.jit
def labeled_sums(call, z, middle, factors, hits, weight, otherwise):
    """The same, less `weight` where a bit of `hits` is set: a pixel's softmax and its label cancel
    before anything is summed.

    otherwise: what `gradient_sums` gave, for lanes without a bit. So no lane depends on others.
    """
    e, right, left = rows_of(z, middle, call.ROWS)
    s = tl.zeros([call.BLOCK], tl.float32)
    s_x, s_y, s_xy = s, s, s
    halves, label = halves_of(hits), -weight
    for i in tl.static_range(call.ROWS):
        row = row_exponentials(e[i], right[i], left[i], call.COLUMNS)
        value = tl.zeros([call.BLOCK], tl.float32)
        slope = value
        for j in tl.static_range(call.COLUMNS):
            own = tl.where(is_set(halves, i, j), label, 0.0)
            g = row[j] * factors[i * call.COLUMNS + j] + own
            value, slope = value + g, slope + g * (j - call.COLUMNS // 2)
        s, s_x = s + value, s_x + slope
        s_y, s_xy = s_y + value * (i - call.ROWS // 2), s_xy + slope * (i - call.ROWS // 2)
    some = hits != 0
    return Sums(
        tl.where(some, s, otherwise.one), tl.where(some, s_x, otherwise.x),
        tl.where(some, s_y, otherwise.y), tl.where(some, s_xy, otherwise.xy),
    )  # fmt: skip
