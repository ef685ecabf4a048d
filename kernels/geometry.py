"""Device helpers: exact sampling positions along one axis, and where the values of a row come from.

Output y of an axis looks at position ``(num * y + off) / den`` of a coarse axis of n values. All
of it stays in integers: in int32 where every product fits, otherwise in int64 (`widened`).
"""

import triton
import triton.language as tl


@triton.jit
def widened(value, WIDE: tl.constexpr):
    """`value` in the integer type of positions: int64 where WIDE, and so all that it enters."""
    return value.to(tl.int64) if WIDE else value


@triton.jit
def floor_divide(a, b):
    """The largest q with ``q * b <= a``, for b > 0 (the operator // rounds towards zero)."""
    quotient = a // b
    return tl.where(quotient * b > a, quotient - 1, quotient)


@triton.jit
def clamped(cell, rest, n, CLAMP: tl.constexpr):
    """A position, as cell and remainder, moved onto the map where the border repeats the edge."""
    if CLAMP:
        rest = tl.where((cell < 0) | (cell >= n - 1), 0, rest)
        cell = tl.minimum(tl.maximum(cell, 0), n - 1)
    return cell, rest


@triton.jit
def clamped_position(y, n, num, off, den, CLAMP: tl.constexpr):
    """Where output y looks, on the map where the border repeats the edge, in units of 1 / den."""
    position = num * y + off
    return tl.minimum(tl.maximum(position, 0), (n - 1) * den) if CLAMP else position


@triton.jit
def weight(part, den, ACC: tl.constexpr, WIDE: tl.constexpr):
    """``part / den``, correctly rounded to ACC (WIDE float32: but for near ties).

    Integers that are not WIDE fit the 24 bits of a float32. The others fit a float64, whose
    division is slow: there the reciprocal is taken once for all.
    """
    if ACC == tl.float64:  # noqa: SIM300 - in this order for Triton 3.3
        return part.to(tl.float64) / den.to(tl.float64)
    elif WIDE:
        return (part.to(tl.float64) * (1.0 / den.to(tl.float64))).to(tl.float32)
    else:
        return tl.div_rn(part.to(tl.float32), den.to(tl.float32))


@triton.jit
def inverse(den, ACC: tl.constexpr, WIDE: tl.constexpr):
    """``1 / den``: for a program that would otherwise divide again and again (`share`)."""
    if ACC == tl.float64 or WIDE:  # noqa: SIM300 - in this order for Triton 3.3
        return 1.0 / den.to(tl.float64)
    else:
        return tl.div_rn(1.0, den.to(tl.float32))


@triton.jit
def share(part, over, ACC: tl.constexpr):
    """``part / den``, given `over`, the inverse of den: to within an ulp, exact for powers of 2."""
    return (part.to(over.dtype) * over).to(ACC)


@triton.jit
def taps(
    start, x, n, num, den, CLAMP: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """The cell of the output that is x >= 0 after the one at position ``start / den``, and the
    weights of its coarse values cell and cell + 1.

    A weight of 0 says that its value is not to be read. From the cell of the first on, positions
    are not negative: // rounds down.
    """
    first_cell = floor_divide(start, den)
    position = start - first_cell * den + widened(num, WIDE) * x
    cell, rest = first_cell + position // den, position % den
    cell, rest = clamped(cell, rest, n, CLAMP)
    over = inverse(den, ACC, WIDE)
    first = tl.where((cell >= 0) & (cell < n), share(den - rest, over, ACC), 0.0)
    second = tl.where((cell >= -1) & (cell < n - 1), share(rest, over, ACC), 0.0)
    return cell, first, second


@triton.jit
def outputs_below(bound, size, num, off):
    """How many of an axis' `size` outputs look at a position below ``bound / den``: int32."""
    room = bound - off
    count = floor_divide(room + num - 1, tl.maximum(num, 1))
    # An axis of num 0 looks at one place: all of it is below the bound, or nothing is.
    count = tl.where(num == 0, tl.where(room > 0, size, 0), count)
    return tl.minimum(tl.maximum(count, 0), size).to(tl.int32)


@triton.jit
def readers(i, n, size, num, off, den, CLAMP: tl.constexpr):
    """The outputs that read coarse value i with a weight above 0: the first, one past the last.

    They look between i - 1 and i + 1, both excluded; a repeated edge is read from beyond it too.
    """
    first = outputs_below((i - 1) * den + 1, size, num, off)
    last = outputs_below((i + 1) * den, size, num, off)
    if CLAMP:
        first = tl.where(i == 0, 0, first)
        last = tl.where(i == n - 1, size, last)
    return first, last


@triton.jit
def first_at(i, n, size, num, off, den, CLAMP: tl.constexpr):
    """The first output whose (clamped) position is at coarse value i or beyond; `size` if none."""
    first = outputs_below(i * den, size, num, off)
    if CLAMP:
        first = tl.where(i <= 0, 0, tl.where(i >= n, size, first))
    return first


@triton.jit
def located(plane, value, channels, CHANNELS_LAST: tl.constexpr):
    """Image, channel and column of `value` of a row of `plane`.

    A plane is one channel of an image, or a whole image whose rows interleave the channels.
    """
    if CHANNELS_LAST:
        return plane, value % channels, value // channels
    else:
        return plane // channels, plane % channels, value


@triton.jit
def in_row(n, c, x, n_stride, c_stride, x_stride):
    """Where the elements (n, c, 0, x) of a strided tensor lie: int64, in elements."""
    return n.to(tl.int64) * n_stride + c.to(tl.int64) * c_stride + x.to(tl.int64) * x_stride


@triton.jit
def window_sums(values, index, w):
    """Weighted sums over windows of `values`, at WINDOW x BLOCK places `index`: one for each BLOCK.

    A place of weight 0 is not read.
    """
    read = tl.gather(values, tl.reshape(index, [index.numel]), 0)
    return tl.sum(tl.where(w == 0, 0.0, tl.reshape(read, index.shape)) * w, axis=0)
