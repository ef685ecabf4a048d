"""Tiles of upsampled classes in cell layout, which the fused heads work on.

A cell is the pixels between two neighboring columns of the coarse map, which read both. A tile
stores the first pixels of all its cells, then the second pixels, and so on; each slot is a place.
With B cells of at most m pixels it is rows x classes x (m x B). For any grid, interpolation along a
row is then ``left + weight * (right - left)`` over contiguous memory, and its adjoint is two sums.
A smaller cell repeats its last pixel to fill its m places; the repeats are void.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._tiles import Strip, even_length, gather, masked_product, scatter, strips, tile_elements


@dataclass(frozen=True, eq=False)
class Cells:
    """A group of B neighboring cells of at most m pixels.

    span: columns of the framed map that they read. left, right: each cell's two taps, indices into
    the span. w0, w1: m x B tap weights. reads_all: no weight is 0. step: how much w1 grows from
    each place to the next but void ones, or None where positions were clamped. first: the group's
    first place in a whole strip. pixel: the output column of each place. real: which places are not
    void.
    """

    span: slice
    left: slice | Tensor
    right: slice | Tensor
    w0: Tensor
    w1: Tensor
    reads_all: bool
    step: float | None
    first: int
    pixel: Tensor
    real: Tensor

    @property
    def places(self) -> slice:
        """The group's places in a whole strip."""
        return slice(self.first, self.first + self.w0.numel())


def _inner(grid: SamplingGrid, axis: int) -> int:
    """The most pixels of an inner cell along an axis; the outermost cells may have more."""
    num = grid.num[axis]
    return -(-grid.den[axis] // num) if num else grid.size[axis]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached for calls in every mode
def _columns(
    grid: SamplingGrid, places: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Cells, ...], Tensor]:
    """Groups of cells of about `places` places for the grid's columns; the place of each column."""
    n, num, off, den = (v[1] for v in (grid.in_size, grid.num, grid.off, grid.den))
    # The map is framed by one column on each side; beyond it, all positions read the same.
    unclamped = torch.arange(grid.size[1], device="cpu") * num + off
    position = unclamped.clamp(-den, n * den)
    cell = torch.div(position, den, rounding_mode="floor").clamp(max=n - 1)
    weight = (position - cell * den).double() / den
    low, count = torch.unique_consecutive(cell + 1, return_counts=True)
    starts = count.cumsum(0) - count
    groups, place, first = [], torch.empty_like(cell), 0
    for begin, end in _groups(count, _inner(grid, 1), places):
        counts, taps = count[begin:end], low[begin:end]
        slot = torch.arange(int(counts.max()), device="cpu")[:, None]
        pixel, real = starts[begin:end] + torch.minimum(slot, counts - 1), slot < counts
        place[pixel[real]] = first + real.flatten().nonzero()[:, 0]
        span = slice(int(taps[0]), int(taps[-1]) + 2)
        left, right = (_indices(taps - span.start + i, device) for i in (0, 1))
        w0, w1 = (w[pixel].to(device, dtype) for w in (1 - weight, weight))
        all_read = bool((w0 != 0).all() and (w1 != 0).all())
        step = num / den if torch.equal(position[pixel], unclamped[pixel]) else None
        pixel, real = pixel.flatten().to(device), real.flatten().to(device)
        groups.append(Cells(span, left, right, w0, w1, all_read, step, first, pixel, real))
        first += w0.numel()
    return tuple(groups), place.to(device)


def _groups(count: Tensor, inner: int, places: int) -> list[tuple[int, int]]:
    """Ranges of cells: an oversized outer cell by itself, the others in even groups."""
    cells = len(count)
    begin = int(count[0] > inner)
    end = max(begin, cells - int(count[-1] > inner))
    length = even_length(end - begin, places // inner) if end > begin else 1
    edges = [0, *range(begin, end, length), end, cells]
    edges = sorted(set(edges))
    return list(zip(edges[:-1], edges[1:], strict=True))


def _indices(taps: Tensor, device: torch.device) -> slice | Tensor:
    first, length = int(taps[0]), len(taps)
    follow = int(taps[-1]) == first + length - 1  # they increase
    return slice(first, first + length) if follow else taps.to(device)


class Tiling:
    """The tiles of a grid for maps of `channels` planes.

    finite: the map has neither NaN nor infinity. copies: as of `tile_elements`.
    """

    def __init__(
        self,
        grid: SamplingGrid,
        channels: int,
        dtype: torch.dtype,
        device: torch.device,
        finite: bool,
        copies: int = 4,
    ) -> None:
        height, width = grid.size
        self.border, self.finite = grid.border, finite
        self.scatters = not finite and device.type == "cpu"
        elements = tile_elements(channels * height * width, device, copies)
        self.groups, self.place = _columns(grid, elements // (4 * channels), dtype, device)
        row = channels * max(group.w0.numel() for group in self.groups)
        self.elements = max(elements, row)  # of a tile
        self.rows = strips(grid, 0, even_length(height, self.elements // row), dtype, device)

    @property
    def places(self) -> int:
        """The number of places in a whole strip."""
        return self.groups[-1].places.stop

    def frame(self, x: Tensor) -> Tensor:
        """C x h x w as h x C x (w + 2), with a border column on either side."""
        framed = x.new_zeros(x.shape[1], x.shape[0], x.shape[2] + 2)
        framed[..., 1:-1] = x.transpose(0, 1)
        if self.border == "clamp":
            framed[..., 0], framed[..., -1] = framed[..., 1], framed[..., -2]
        return framed

    def add_unframed(self, x: Tensor, framed: Tensor) -> None:
        """Add the adjoint of `frame` to `x`; overwrites `framed`."""
        if self.border == "clamp":
            framed[..., 1] += framed[..., 0]
            framed[..., -2] += framed[..., -1]
        x += framed[..., 1:-1].transpose(0, 1)

    def lower(self, part: Tensor, row: Strip) -> Tensor:
        """Interpolate the rows of a framed map that a strip reads: rows x C x columns."""
        if not self.finite:
            return gather(part, row, 0)
        return (row.matrix @ part.reshape(len(part), -1)).view(-1, *part.shape[1:])

    def add_raised(self, part: Tensor, low: Tensor, row: Strip) -> None:
        """Add the adjoint of `lower` to those rows of a framed map."""
        if self.scatters:
            part += scatter(low, row, 0)
        else:
            part.view(len(part), -1).addmm_(row.matrix.T, low.view(len(low), -1))

    def widen(self, low: Tensor, cells: Cells, out: Tensor) -> Tensor:
        """Interpolate a span (rows x C x columns) at its cells: rows x C x places, in `out`."""
        left, right = low[..., None, cells.left], low[..., None, cells.right]
        shape = (*low.shape[:2], *cells.w0.shape)
        tile = out[: shape[0] * shape[1] * shape[2] * shape[3]].view(shape)
        if self.finite:
            torch.addcmul(left, cells.w1, right - left, out=tile)
        elif cells.reads_all:
            torch.mul(left, cells.w0, out=tile).addcmul_(right, cells.w1)
        else:
            torch.add(masked_product(left, cells.w0), masked_product(right, cells.w1), out=tile)
        return tile.flatten(2)

    def add_narrowed(self, low: Tensor, tile: Tensor, cells: Cells) -> None:
        """Add the adjoint of `widen` to `low`; overwrites `tile`.

        Void places hold 0, or are non-finite like the last pixel of their cell.
        """
        tile = tile.unflatten(2, cells.w0.shape)
        if self.finite or cells.reads_all:
            both = tile.sum(2)
            right = tile.mul_(cells.w1).sum(2)
            left = both.sub_(right)
        else:
            left = masked_product(tile, cells.w0).sum(2)
            right = masked_product(tile, cells.w1).sum(2)
        low[..., cells.left] += left
        low[..., cells.right] += right
