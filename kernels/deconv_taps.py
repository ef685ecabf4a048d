"""What the kernels of deconv share: which coarse values and weights a block of pixels reads.

Along an axis, pixel ``stride * q + a`` of the full result is phase a of cell q. It reads the values
q, q - 1, ... of the coarse map with the weights a, ``stride + a``, ...: two, if the kernel is no
longer than two strides. Longer kernels are taken in pairs: of pair p are the values q - 2 p (the
near one) and q - 2 p - 1 (the far one), and the weights from ``2 * stride * p`` on.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .geometry import in_row

# Sizes differ from picture to picture: no kernel of its own for a 1 or for multiples of 16.
SIZES = ["strip", "channels", "in_height", "in_width", "height", "width", "kernel"]
SIZES += ["row_start", "column_start"]
# Channels of a block, at most, where they lie interleaved.
CHANNELS = 32


@triton.jit
def phase_rows(phase, number, strip, height, start, STRIDE: tl.constexpr):
    """The cells of the rows of strip `number` that are of a phase: the first, one past the last.

    height, start: how many rows of the full result are kept, and the first of them.
    """
    first = (start - phase + STRIDE - 1) // STRIDE + number * strip
    last = (start + height - phase + STRIDE - 1) // STRIDE
    return first, tl.minimum(first + strip, last)


@triton.jit
def coarse_segment(
    n, c, cell, channels, width, xn, xc, xw, GROUP: tl.constexpr, SEGMENT: tl.constexpr
):  # fmt: skip
    """A segment of a coarse row, GROUP channels from c on of the columns from `cell` on.

    Returns its offsets, and which of them are in the map.
    """
    place = tl.arange(0, SEGMENT)
    channel, cell = c + place % GROUP, cell + place // GROUP
    known = (cell >= 0) & (cell < width) & (channel < channels)
    return in_row(n, channel, cell, xn, xc, xw), known


@triton.jit
def coarse_pair(
    x_ptr, row, height, stride, segment, known, place, ACC: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """The near and the far values that a block reads of coarse row `row`; zeros outside the map.

    place: where in the segment the near ones are.
    """
    inside = (row >= 0) & (row < height)
    coarse = tl.load(x_ptr + row.to(tl.int64) * stride + segment, mask=known & inside, other=0.0)
    return tl.gather(coarse, place, 0).to(ACC), tl.gather(coarse, place - GROUP, 0).to(ACC)


@triton.jit
def weight_pair(
    w_ptr, row, c, channels, kernel, channel, column, near_read, far_read,
    ACC: tl.constexpr, STRIDE: tl.constexpr, WEIGHTS: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """The weights of the near and the far values of a block, from row `row` of the kernels.

    w_ptr: channels x kernel x kernel, dense. Of each channel from c on WEIGHTS are loaded, a power
    of two of at least `kernel`: TABLE of them. channel, column: where the near ones are.
    """
    place = tl.arange(0, TABLE)
    known = (c + place // WEIGHTS < channels) & (place % WEIGHTS < kernel) & (row < kernel)
    start = ((c + place // WEIGHTS).to(tl.int64) * kernel + row) * kernel
    weights = tl.load(w_ptr + start + place % WEIGHTS, mask=known, other=0.0)
    place = channel * WEIGHTS + column
    near = tl.where(near_read, tl.gather(weights, tl.where(near_read, place, 0), 0), 0.0)
    far = tl.where(far_read, tl.gather(weights, tl.where(far_read, place + STRIDE, 0), 0), 0.0)
    return near.to(ACC), far.to(ACC)


def group_of(channels: int, channels_last: bool) -> int:
    """How many channels of a row a block takes: one, or as many as lie interleaved."""
    return min(channels, CHANNELS) if channels_last else 1


def pairs_of(kernel: int, stride: int) -> int:
    """Pairs of coarse values that a pixel reads along an axis."""
    return triton.cdiv(kernel, 2 * stride)


def segment_length(block: int, group: int, stride: int) -> int:
    """Values of a coarse row that a block of pixels reads, a power of two."""
    pixels = (block - 1) // group + 1  # from the first to the last, at most
    return triton.next_power_of_2((pixels // stride + 3) * group)
