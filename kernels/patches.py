"""Patches: the pixels between four corners of the coarse map, as the fused heads share them out.

A zero border is a ring of zeros around the map; then, for either border, positions are clamped to
the (extended) map. Cell c holds the outputs that look between its values c and c + 1; cell -1 and
cell n - 1 hold those that were clamped, on its first and its last value. Along an axis a cell is
cut into patches of a few outputs. From output to output of a patch a position grows by num / den,
so that bilinear scores are arithmetic progressions and their exponentials geometric ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl

from .geometry import outputs_below, weight, widened

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid


class Axis(NamedTuple):
    """One axis of a grid, on the extended map, and its patches.

    n, size, num, off, den: as in a `SamplingGrid`, off and n those of the extended map.
    ring: values added on either side. first, cells: the first cell with outputs, and how many
    there are from it to the last. head, inner, tail: patches of the first, of each other, and of
    the last cell.
    """

    n: int
    size: int
    num: int
    off: int
    den: int
    ring: int
    first: int
    cells: int
    head: int
    inner: int
    tail: int

    @property
    def patches(self) -> int:
        """How many patches the axis has."""
        return self.head + max(self.cells - 2, 0) * self.inner + (self.cells > 1) * self.tail

    @property
    def most(self) -> int:
        """The most patches of a cell."""
        return max(self.head, self.tail, self.inner if self.cells > 2 else 0)


def longest(grid: SamplingGrid, axis: int) -> int:
    """The most outputs of a cell, those that were clamped left out."""
    size, num, den = grid.size[axis], grid.num[axis], grid.den[axis]
    return min(triton.cdiv(den, num), size) if num else size


def axis_patches(grid: SamplingGrid, axis: int, length: int) -> Axis:
    """The patches of at most `length` outputs of axis 0 (rows) or 1 (columns)."""
    n, size, num, off, den = (
        v[axis] for v in (grid.in_size, grid.size, grid.num, grid.off, grid.den)
    )
    ring = int(grid.border == "zero")
    n, off = n + 2 * ring, off + ring * den

    def start(cell: int) -> int:
        """The first output of a cell (num is not 0)."""
        return min(max(-((off - cell * den) // num), 0), size)

    first = min(max(off // den, -1), n - 1)
    last = min(max((num * (size - 1) + off) // den, -1), n - 1)
    inner = triton.cdiv(longest(grid, axis), length)
    if first == last:
        return Axis(n, size, num, off, den, ring, first, 1, triton.cdiv(size, length), inner, 0)
    head = triton.cdiv(start(first + 1), length)
    tail = triton.cdiv(size - start(last), length)
    return Axis(n, size, num, off, den, ring, first, last - first + 1, head, inner, tail)


def is_wide(grid: SamplingGrid, lanes: int) -> bool:
    """Whether positions need int64, or their remainders more than float32's 24 bits."""
    axes = zip(grid.in_size, grid.size, grid.num, grid.off, grid.den, strict=True)
    return any(
        den > 2**24 or num * (size + lanes) + abs(off) + (n + lanes) * den >= 2**31
        for n, size, num, off, den in axes
    )


@triton.jit
def cell_start(cell, n, size, num, off, den):
    """The first output of a cell, int32; where none is left, `size`."""
    start = outputs_below(cell * den, size, num, off)
    return tl.where(cell < 0, 0, tl.where(cell >= n, size, start))


@triton.jit
def patch_at(patch, first, cells, head, inner):
    """The cell of a patch, and which of the cell's patches it is."""
    rest = patch - head
    cell = tl.minimum(first + 1 + rest // inner, first + cells - 1)
    which = rest - (cell - first - 1) * inner
    return tl.where(rest < 0, first, cell), tl.where(rest < 0, patch, which)


@triton.jit
def fraction(cell, output, n, num, off, den, ACC: tl.constexpr, WIDE: tl.constexpr):
    """How far into its cell an output looks, 0 to 1, and how much further the next one does."""
    part = widened(num, WIDE) * output + off - widened(cell, WIDE) * den
    clamped = (cell < 0) | (cell >= n - 1)
    begin = weight(tl.where(clamped, 0, part), den, ACC, WIDE)
    begin = tl.where(cell < 0, 1.0, begin)
    step = tl.where(clamped, 0.0, weight(widened(num, WIDE), den, ACC, WIDE))
    return begin.to(ACC), step.to(ACC)


@triton.jit
def patches_of(cell, first, cells, head, inner, patches):
    """The first patch of a cell, and one past its last; nothing for a cell without outputs."""
    begin = tl.where(cell == first, 0, head + (cell - first - 1) * inner)
    end = tl.where(cell == first + cells - 1, patches, head + (cell - first) * inner)
    there = (cell >= first) & (cell < first + cells)
    return tl.where(there, begin, 0), tl.where(there, end, 0)


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
