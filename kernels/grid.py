"""What all kernels share: index arithmetic on the device, plans and checks on the host.

Output y of an axis looks at position ``(num * y + off) / den`` of a coarse axis of n values; all
of it stays in int32 (`check_supported`). docs/kernels.md draws cells, corners, patches and lanes.

A zero border is a ring of zeros around the map: `Axis` counts on the map that is extended so, and
then, for either border, positions are clamped to it. Cell c holds the outputs that look between
its values c and c + 1; cells -1 and n - 1 hold those that were clamped to its first and last value.
Along an axis a cell is cut into patches of a few outputs. From output to output of a patch a
position grows by num / den: bilinear scores are arithmetic progressions there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

VECTOR_BYTES = 16
# Kernels count rows, and the values of one, in int32: half its range, so that no block overshoots.
MOST = 2**30
# How far a block may reach beyond the end of an axis.
BEYOND = 2048
# Channels of a block, at most, where they lie interleaved.
CHANNELS = 32
# Sizes and positions differ from picture to picture: no kernel of its own for a 1 or a multiple of
# 16 among them.
GRID_SIZES = ["in_height", "in_width", "height", "width"]
DECONV_SIZES = ["strip", "channels", "in_height", "in_width", "height", "width", "kernel"]
DECONV_SIZES += ["row_start", "column_start"]
GRID_SIZES += [f"{axis}_{part}" for axis in ("row", "column") for part in ("num", "off", "den")]


# ---- host: what a launcher checks and allocates


class Plan(NamedTuple):
    """How programs share a result: their number, the rows that each takes, a kernel's options."""

    programs: int
    rows: int
    options: dict[str, Any]


def check_supported(x: Tensor, grid: SamplingGrid | None = None) -> None:
    """Refuse what the kernels do not compute.

    Raises:
        ValueError: for float64 maps, and for grids whose positions do not fit in int32, or whose
            denominators do not fit in the 24 bits of a float32.
    """
    if x.dtype == torch.float64:
        raise ValueError("the kernels compute in float32: float64 maps need the torch backend")
    if grid is not None and not fits_int32(grid):
        raise ValueError(f"positions leave int32: {grid} needs the torch backend")


@lru_cache(maxsize=1024)
def fits_int32(grid: SamplingGrid) -> bool:
    """Whether positions, also BEYOND an axis, fit in int32, and their remainders in a float32.

    The kernels name coarse values, or cells, up to two beyond the map.
    """
    axes = zip(grid.in_size, grid.size, grid.num, grid.off, grid.den, strict=True)
    return all(
        den <= 2**24 and num * (size + BEYOND) + abs(off) + (n + 4) * den < 2**31
        for n, size, num, off, den in axes
    )


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of the N x C x H x W tensor `x` lie next to each other in memory."""
    channels = x.shape[1]
    return channels > 1 and x.stride(1) == 1 and x.stride(3) >= channels


def empty_like(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A dense N x C x H x W tensor of the dtype, on the device and in the memory format of `x`."""
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=x.dtype, device=x.device, memory_format=memory_format)


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Launch within: Triton takes the current GPU, which need not be the one that holds `x`."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def check_rows(shape: Sequence[int], channels_last: bool) -> tuple[int, int]:
    """An N x C x H x W tensor as rows: how many there are, and how many values each has.

    A row holds one channel, or all of them interleaved.

    Raises:
        ValueError: when there are more than 2**30 rows, or values in one.
    """
    images, channels, height, width = shape
    planes, length = (images, width * channels) if channels_last else (images * channels, width)
    if max(planes * height, length) > MOST:
        raise ValueError(f"{tuple(shape)} has more than {MOST} rows, or values in a row")
    return planes * height, length


def grid_arguments(grid: SamplingGrid) -> tuple[int, ...]:
    """The grid as kernels take it, by the names GRID_SIZES."""
    rows, columns = zip(grid.num, grid.off, grid.den, strict=True)
    return (*grid.in_size, *grid.size, *rows, *columns)


# ---- host: block sizes


def alignment(length: int, dtype: torch.dtype) -> int:
    """The power of two that every row of `length` values starts at a multiple of.

    Counted in values, and up to what one vector access takes.
    """
    return gcd(length, VECTOR_BYTES // dtype.itemsize)


def row_alignment(x: Tensor, channels_last: bool) -> int:
    """The same for a tensor of any strides; 0 if the values of a row are not contiguous."""
    images, channels, height, width = x.shape
    interleaved = channels if channels_last else 1
    if x.stride(3) != interleaved or (channels_last and x.stride(1) != 1):
        return 0
    starts = [(images, x.stride(0)), (height, x.stride(2))]
    starts += [] if channels_last else [(channels, x.stride(1))]
    strides = [stride for number, stride in starts if number > 1]
    return gcd(width * interleaved, *strides, VECTOR_BYTES // x.dtype.itemsize)


def best_block(length: int, largest: int) -> int:
    """The block size, a power of two of at most `largest`, for rows of `length` values.

    The largest that reaches at most a quarter beyond the end; if none does, the least far.
    """
    sizes = [min(largest, triton.next_power_of_2(length))]
    while sizes[-1] > 32:
        sizes.append(sizes[-1] // 2)
    excess = {size: -length % size / length for size in sizes}
    fitting = [size for size in sizes if excess[size] <= 0.25]
    return fitting[0] if fitting else min(sizes, key=excess.__getitem__)


def warps(values: int, least: int = 2) -> int:
    """Warps, up to 8, for a block of `values` with eight of them for each thread.

    Kernels that gather need two at least: one warp would gather by shuffles.
    """
    return min(max(triton.next_power_of_2(values) // 256, least), 8)


# ---- host: the patches of an axis


class Axis(NamedTuple):
    """One axis of a grid, on the extended map, and its patches.

    n, size, num, off, den: as in a `SamplingGrid`, off and n those of the extended map.
    first, cells: the first cell with outputs, and how many there are from it to the last.
    head, inner: patches of the first cell, and of each between it and the last.
    patches: how many the axis has.
    """

    n: int
    size: int
    num: int
    off: int
    den: int
    first: int
    cells: int
    head: int
    inner: int
    patches: int

    @property
    def tail(self) -> int:
        """Patches of the last cell, unless it is the first."""
        return self.patches - self.head - max(self.cells - 2, 0) * self.inner

    @property
    def most(self) -> int:
        """The most patches of a cell."""
        return max(self.head, self.tail, self.inner if self.cells > 2 else 0)


# The arguments of a kernel that are two of them.
AXES = [f"row_{part}" for part in Axis._fields] + [f"column_{part}" for part in Axis._fields]


def longest(grid: SamplingGrid, axis: int) -> int:
    """The most outputs of a cell, those that were clamped left out."""
    size, num, den = grid.size[axis], grid.num[axis], grid.den[axis]
    return min(triton.cdiv(den, num), size) if num else size


def axis_patches(grid: SamplingGrid, axis: int, length: int) -> Axis:
    """The patches of at most `length` outputs of axis 0 (rows) or 1 (columns)."""
    n, size, num, off, den = (
        v[axis] for v in (grid.in_size, grid.size, grid.num, grid.off, grid.den)
    )
    if grid.border == "zero":
        n, off = n + 2, off + den

    def start(cell: int) -> int:
        """The first output of a cell (num is not 0)."""
        return min(max(-((off - cell * den) // num), 0), size)

    first = min(max(off // den, -1), n - 1)
    last = min(max((num * (size - 1) + off) // den, -1), n - 1)
    inner = triton.cdiv(longest(grid, axis), length)
    head = patches = triton.cdiv(size if first == last else start(first + 1), length)
    if first != last:
        patches += (last - first - 1) * inner + triton.cdiv(size - start(last), length)
    return Axis(n, size, num, off, den, first, last - first + 1, head, inner, patches)


# ---- device: what travels together


class Strided(NamedTuple):
    """An N x C x H x W map: a pointer to its first element, and its strides in elements."""

    ptr: tl.tensor
    n: tl.tensor
    c: tl.tensor
    h: tl.tensor
    w: tl.tensor


class Corners(NamedTuple):
    """Four values of each lane, one for each corner of its cell.

    a --- b      a, b: upper left and right corner
    |     |
    c --- d      c, d: lower left and right corner
    """

    a: tl.tensor
    b: tl.tensor
    c: tl.tensor
    d: tl.tensor


# ---- device: labels


@triton.jit
def is_class(label, num_classes):
    """Whether labels, of any integer type, are from 0 to num_classes - 1."""
    if label.dtype == tl.int64:
        return label.to(tl.uint64, bitcast=True) < num_classes.to(tl.uint64)
    else:
        return label.to(tl.int32).to(tl.uint32, bitcast=True) < num_classes.to(tl.uint32)


# ---- device: positions along one axis


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
def weight(part, den):
    """``part / den``, correctly rounded: both fit the 24 bits of a float32."""
    return tl.div_rn(part.to(tl.float32), den.to(tl.float32))


@triton.jit
def inverse(den):
    """``1 / den``: for a program that would otherwise divide again and again (`fast_weight`)."""
    return tl.div_rn(1.0, den.to(tl.float32))


@triton.jit
def fast_weight(part, inverse_den):
    """``part / den`` to within an ulp, exact for powers of 2."""
    return part.to(tl.float32) * inverse_den


@triton.jit
def taps(start, x, n, num, den, CLAMP: tl.constexpr):
    """The cell of the output that is x >= 0 after the one at position ``start / den``, and the
    weights of its coarse values cell and cell + 1.

    A weight of 0 says that its value is not to be read. From the cell of the first on, positions
    are not negative: // rounds down.
    """
    first_cell = floor_divide(start, den)
    position = start - first_cell * den + num * x
    cell, rest = first_cell + position // den, position % den
    cell, rest = clamped(cell, rest, n, CLAMP)
    inverse_den = inverse(den)
    first = tl.where((cell >= 0) & (cell < n), fast_weight(den - rest, inverse_den), 0.0)
    second = tl.where((cell >= -1) & (cell < n - 1), fast_weight(rest, inverse_den), 0.0)
    return cell, first, second


@triton.jit
def outputs_before(bound, size, num, off):
    """How many of an axis' `size` outputs look at a position before ``bound / den``."""
    # The first y with num * y + off >= bound is ceil((bound - off) / num).
    room = bound - off
    count = floor_divide(room + num - 1, tl.maximum(num, 1))
    # An axis of num 0 looks at one place: all of it is before the bound, or nothing is.
    count = tl.where(num == 0, tl.where(room > 0, size, 0), count)
    return tl.minimum(tl.maximum(count, 0), size)


@triton.jit
def readers(i, n, size, num, off, den, CLAMP: tl.constexpr):
    """The outputs that read coarse value i with a weight above 0: the first, one past the last.

    They look between i - 1 and i + 1, both excluded; a repeated edge is read from beyond it too.
    """
    first = outputs_before((i - 1) * den + 1, size, num, off)
    last = outputs_before((i + 1) * den, size, num, off)
    if CLAMP:
        first = tl.where(i == 0, 0, first)
        last = tl.where(i == n - 1, size, last)
    return first, last


@triton.jit
def first_at(i, n, size, num, off, den, CLAMP: tl.constexpr):
    """The first output whose (clamped) position is at coarse value i or beyond; `size` if none."""
    first = outputs_before(i * den, size, num, off)
    if CLAMP:
        first = tl.where(i <= 0, 0, tl.where(i >= n, size, first))
    return first


# ---- device: cells and patches; `axis` is an Axis of scalars


@triton.jit
def cell_start(cell, axis):
    """The first output of a cell; where none is left, `size`."""
    start = outputs_before(cell * axis.den, axis.size, axis.num, axis.off)
    return tl.where(cell < 0, 0, tl.where(cell >= axis.n, axis.size, start))


@triton.jit
def patch_at(patch, axis):
    """The cell of a patch, and which of the cell's patches it is."""
    rest = patch - axis.head
    cell = tl.minimum(axis.first + 1 + rest // axis.inner, axis.first + axis.cells - 1)
    which = rest - (cell - axis.first - 1) * axis.inner
    return tl.where(rest < 0, axis.first, cell), tl.where(rest < 0, patch, which)


@triton.jit
def patches_of(cell, axis):
    """The first patch of a cell, and one past its last; nothing for a cell without outputs."""
    begin = axis.head + (cell - axis.first - 1) * axis.inner
    end = tl.where(cell == axis.first + axis.cells - 1, axis.patches, begin + axis.inner)
    begin, end = tl.where(cell == axis.first, 0, begin), end
    there = (cell >= axis.first) & (cell < axis.first + axis.cells)
    return tl.where(there, begin, 0), tl.where(there, end, 0)


@triton.jit
def fraction(cell, output, axis):
    """How far into its cell an output looks, 0 to 1, and how much further the next one does."""
    part = axis.num * output + axis.off - cell * axis.den
    is_clamped = (cell < 0) | (cell >= axis.n - 1)
    begin = weight(tl.where(is_clamped, 0, part), axis.den)
    step = tl.where(is_clamped, 0.0, weight(axis.num, axis.den))
    return tl.where(cell < 0, 1.0, begin), step


# ---- device: the phases of a transposed convolution
#
# Along an axis, pixel ``stride * q + a`` of the full result is phase a of cell q. It reads the
# values q, q - 1, ... of the coarse map with the weights a, ``stride + a``, ...: two, if the kernel
# is no longer than two strides. Longer kernels are taken in pairs: of pair p are the values
# q - 2 p (the near one) and q - 2 p - 1 (the far one), and the weights from ``2 * stride * p`` on.


@triton.jit
def phase_rows(phase, number, strip, height, start, STRIDE: tl.constexpr):
    """The cells of the rows of strip `number` that are of a phase: the first, one past the last.

    height, start: how many rows of the full result are made, and the first of them.
    """
    first = (start - phase + STRIDE - 1) // STRIDE + number * strip
    last = (start + height - phase + STRIDE - 1) // STRIDE
    return first, tl.minimum(first + strip, last)


@triton.jit
def coarse_segment(
    n, c, cell, channels, width, xn, xc, xw, GROUP: tl.constexpr, SEGMENT: tl.constexpr
):  # fmt: skip
    """A segment of a coarse row, GROUP channels from c on of the columns from `cell` on.

    Returns its SEGMENT offsets, and which of them are in the map.
    """
    place = tl.arange(0, SEGMENT)
    channel, cell = c + place % GROUP, cell + place // GROUP
    valid = (cell >= 0) & (cell < width) & (channel < channels)
    return in_row(n, channel, cell, xn, xc, xw), valid


@triton.jit
def coarse_pair(x_ptr, row, height, stride, segment, valid, place, GROUP: tl.constexpr):
    """The near and the far values that a block reads of coarse row `row`; zeros outside the map.

    segment, valid: as `coarse_segment`. place: where in the segment the near ones are.
    """
    inside = (row >= 0) & (row < height)
    coarse = tl.load(x_ptr + row.to(tl.int64) * stride + segment, mask=valid & inside, other=0.0)
    near, far = tl.gather(coarse, place, 0), tl.gather(coarse, place - GROUP, 0)
    return near.to(tl.float32), far.to(tl.float32)


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


# ---- device: rows of values


class DenseBlock(NamedTuple):
    """ROWS x BLOCK values of a dense N x C x H x W tensor, those of one program.

    n, c, y, x: image, channel, row and column, of shapes that broadcast to ROWS x BLOCK.
    inside: whether there is such a value. offset: where it lies, int64.
    """

    n: tl.tensor
    c: tl.tensor
    y: tl.tensor
    x: tl.tensor
    inside: tl.tensor
    offset: tl.tensor


@triton.jit
def dense_block(
    images, channels, height, width,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The DenseBlock of this program, of a tensor whose rows start at multiples of ALIGN.

    A row holds one channel, or all of them interleaved if CHANNELS_LAST.
    """
    length = (width * channels if CHANNELS_LAST else width) // ALIGN * ALIGN
    rows = images * height if CHANNELS_LAST else images * channels * height
    blocks = tl.cdiv(length, BLOCK)  # of a row
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)[:, None]  # ROWS x 1
    value = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]  # 1 x BLOCK
    n, c, x = located(row // height, value, channels, CHANNELS_LAST)
    inside = (row < rows) & (value < length)
    return DenseBlock(n, c, row % height, x, inside, row.to(tl.int64) * length + value)


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


@triton.jit
def columns_of(tile, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """The columns of a BLOCK x COLUMNS tile (a power of two, at most 64), as a tuple."""
    parts = (tile,)
    for level in tl.static_range(6):  # no recursion: Triton 3.3 has none
        if COLUMNS >> level > 1:
            even, odd = (), ()
            for k in tl.static_range(1 << level):
                pairs = tl.reshape(parts[k], [BLOCK, COLUMNS >> (level + 1), 2])
                first, second = tl.split(pairs)
                even, odd = even + (first,), odd + (second,)
            parts = even + odd
    columns = ()
    for k in tl.static_range(COLUMNS):
        columns = columns + (tl.reshape(parts[k], [BLOCK]),)
    return columns


@triton.jit
def joined(columns, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """The BLOCK x COLUMNS tile of a tuple of columns: the inverse of `columns_of`."""
    parts = columns
    for level in tl.static_range(6):
        if COLUMNS >> level > 1:
            wider = ()
            for k in tl.static_range(COLUMNS >> (level + 1)):
                pairs = tl.join(parts[k], parts[k + (COLUMNS >> (level + 1))])
                wider = wider + (tl.reshape(pairs, [BLOCK, 2 << level]),)
            parts = wider
    return tl.reshape(parts[0], [BLOCK, COLUMNS])
