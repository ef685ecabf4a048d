"""Device code of upsample_cross_entropy: geometric progressions of exponentials in a patch.

A place is (fx, sx, fy, sy): how far into its cell the middle of the patch lies, which is pixel
(ROWS // 2, COLUMNS // 2), and how much further the next one.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def start_of_row(z, place, i: tl.constexpr):
    """Of row i of a patch: the exponential in its middle column, to which power of two the next
    column's is a multiple of it."""
    a, b, c, d = z
    fx, sx, fy, sy = place
    upper, lower = a + (b - a) * fx, c + (d - c) * fx
    right, cross = (b - a) * sx, ((d - c) - (b - a)) * sx
    y = fy + i * sy
    return upper + (lower - upper) * y, right + cross * y


@triton.jit
def mean_ratio(a, b):
    """The geometric mean of two ratios, and its inverse."""
    product = a * b
    inverse = tl.rsqrt(product)
    return product * inverse, inverse


@triton.jit
def rows_of(z, place, ROWS: tl.constexpr):
    """A class's exponentials in the middle column, a tuple of rows; their ratios to the right; and
    to the left.

    Exponentials are dear. Of eight rows three are made, and of the others each is the geometric
    mean of two, which does not let errors grow. (Four rows as multiples of one, which takes 7
    exponentials instead of 12, are three times less exact with a GPU's exponentials.)
    """
    middle: tl.constexpr = ROWS // 2
    if ROWS < 8:
        e, right, left = (), (), ()
        for i in tl.static_range(ROWS):
            start, step = start_of_row(z, place, i - middle)
            e, right = e + (tl.exp2(start),), right + (tl.exp2(step),)
            left = left + (tl.exp2(-step),)
        return e, right, left
    else:
        first, step = start_of_row(z, place, -4)
        between_, _ = start_of_row(z, place, 0)
        last, last_step = start_of_row(z, place, 4)
        e0, e4, root8 = tl.exp2(first), tl.exp2(between_), tl.exp2(last * 0.5)
        root0, root4 = tl.sqrt(e0), tl.sqrt(e4)
        e2, e6 = root0 * root4, root4 * root8
        root2, root6 = tl.sqrt(e2), tl.sqrt(e6)
        e = (e0, root0 * root2, e2, root2 * root4, e4, root4 * root6, e6, root6 * root8)
        r0, r8, q0 = tl.exp2(step), tl.exp2(last_step), tl.exp2(-step)
        r4, q4 = mean_ratio(r0, r8)
        r2, q2 = mean_ratio(r0, r4)
        r6, q6 = mean_ratio(r4, r8)
        r1, q1 = mean_ratio(r0, r2)
        r3, q3 = mean_ratio(r2, r4)
        r5, q5 = mean_ratio(r4, r6)
        r7, q7 = mean_ratio(r6, r8)
        return e, (r0, r1, r2, r3, r4, r5, r6, r7), (q0, q1, q2, q3, q4, q5, q6, q7)


@triton.jit
def row_exponentials(e, right, left, COLUMNS: tl.constexpr):
    """The exponentials of a row, from that in the middle on to both sides."""
    middle: tl.constexpr = COLUMNS // 2
    row, value = (), e
    for _ in tl.static_range(middle):
        value = value * left
        row = (value,) + row
    row, value = row + (e,), e
    for _ in tl.static_range(middle + 1, COLUMNS):
        value = value * right
        row = row + (value,)
    return row


@triton.jit
def row_polynomial(right, left, factors, i: tl.constexpr, COLUMNS: tl.constexpr):
    """Of row i, sum of u_x r^x and of x u_x r^x over its columns x from the middle, for factors u
    and the ratio r (`right`, its inverse `left`)."""
    middle: tl.constexpr = COLUMNS // 2
    value = factors[i * COLUMNS + COLUMNS - 1]
    slope = value * 0
    for j in tl.static_range(middle + 1, COLUMNS):
        slope = slope * right + value
        value = value * right + factors[i * COLUMNS + COLUMNS + middle - 1 - j]
    slope = slope * right
    if middle > 0:
        other = factors[i * COLUMNS]
        down = other
        for j in tl.static_range(1, middle):
            other = other * left + factors[i * COLUMNS + j]
            down = down * left + other
        value, slope = value + other * left, slope - down * left
    return value, slope
