"""Plain-torch upsampling in tiles that stay in cache: the engine of the other files.

A tile is some output rows times some output columns. Within it, bilinear sampling is a product
with two small banded matrices, one for the rows and one for the columns, so that the only piece
of full resolution at any time is one tile. Products read taps of weight 0 (0 * inf is NaN), so
maps that are not finite, and devices where looking would mean a synchronisation, gather instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..geometry import Pair, SamplingGrid, axis_taps

# Floats in one tile: with its copies it stays in a core's second-level cache.
TILE_ELEMENTS = 1 << 18
TILE_COLUMNS = 256
# A GPU wants few, large steps: as many floats as this, but at most an eighth of the logits.
GPU_TILE_ELEMENTS = 1 << 24


@dataclass(frozen=True, eq=False)
class Strip:
    """Output indices [first, last) along one axis and the map's indices [low, high) they read.

    matrix: (last - first) x (high - low) weights; i0, i1 (into [low, high)), w0, w1: the same as
    taps, for the gathering form.
    """

    first: int
    last: int
    low: int
    high: int
    matrix: Tensor
    i0: Tensor
    i1: Tensor
    w0: Tensor
    w1: Tensor


@lru_cache(maxsize=128)
def strips(
    grid: SamplingGrid, axis: int, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[Strip, ...]:
    """The axis cut into strips of `length` outputs."""
    with torch.inference_mode(False):  # kept for calls of every mode
        return _cut(grid, axis, length, dtype, device)


def _cut(
    grid: SamplingGrid, axis: int, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[Strip, ...]:
    taps = axis_taps(grid, axis, dtype, device)
    index = torch.stack([taps.i0, taps.i1]).cpu()
    used = torch.stack([taps.w0, taps.w1]).cpu() != 0
    result = []
    for first in range(0, grid.size[axis], length):
        last = min(grid.size[axis], first + length)
        here = index[:, first:last][used[:, first:last]]
        low, high = (int(here.min()), int(here.max()) + 1) if here.numel() else (0, 1)
        w0, w1 = taps.w0[first:last], taps.w1[first:last]
        i0 = (taps.i0[first:last] - low).clamp(0, high - low - 1)  # a tap of weight 0 may lie
        i1 = (taps.i1[first:last] - low).clamp(0, high - low - 1)  # outside: it is not read
        matrix = torch.zeros(last - first, high - low, dtype=dtype, device=device)
        matrix.scatter_add_(1, i0[:, None], w0[:, None])
        matrix.scatter_add_(1, i1[:, None], w1[:, None])
        result.append(Strip(first, last, low, high, matrix, i0, i1, w0, w1))
    return tuple(result)


def _gather(x: Tensor, strip: Strip, dim: int) -> Tensor:
    shape = [-1 if d == x.dim() + dim else 1 for d in range(x.dim())]
    w0, w1 = strip.w0.view(shape), strip.w1.view(shape)
    left = torch.where(w0 == 0, 0.0, x.index_select(dim, strip.i0) * w0)
    return left + torch.where(w1 == 0, 0.0, x.index_select(dim, strip.i1) * w1)


def _scatter(g: Tensor, strip: Strip, dim: int) -> Tensor:
    shape = [-1 if d == g.dim() + dim else 1 for d in range(g.dim())]
    w0, w1 = strip.w0.view(shape), strip.w1.view(shape)
    out = list(g.shape)
    out[dim] = strip.high - strip.low
    result = g.new_zeros(out)
    result.index_add_(dim, strip.i0, torch.where(w0 == 0, 0.0, g * w0))
    return result.index_add_(dim, strip.i1, torch.where(w1 == 0, 0.0, g * w1))


def _tile_size(size: Pair, channels: int, device: torch.device) -> Pair:
    """The rows and columns of a tile of `channels` planes."""
    if device.type == "cpu":
        columns = min(TILE_COLUMNS, size[1])
        return max(4, min(64, TILE_ELEMENTS // (channels * columns))), columns
    elements = min(GPU_TILE_ELEMENTS, channels * size[0] * size[1] // 8)
    return max(1, elements // (channels * size[1])), size[1]


class Tiling:
    """The tiles of a grid for maps of `channels` planes.

    `finite` says that the map has neither NaN nor infinity (products may be used).
    """

    def __init__(
        self,
        grid: SamplingGrid,
        channels: int,
        dtype: torch.dtype,
        device: torch.device,
        finite: bool,
    ) -> None:
        rows, columns = _tile_size(grid.size, max(1, channels), device)
        self.grid, self.finite = grid, finite
        # On a GPU a sum in index_add_ has no fixed order: the product has.
        self.scatters = not finite and device.type == "cpu"
        self.rows = strips(grid, 0, rows, dtype, device)
        self.columns = strips(grid, 1, columns, dtype, device)

    def lower(self, x: Tensor, row: Strip) -> Tensor:
        """Maps ... x h x w sampled at the rows of a strip: ... x rows x w."""
        part = x[..., row.low : row.high, :]
        return row.matrix @ part if self.finite else _gather(part, row, -2)

    def widen(self, low: Tensor, column: Strip) -> Tensor:
        """... x rows x w sampled at the columns of a strip: the tile."""
        part = low[..., column.low : column.high]
        return part @ column.matrix.T if self.finite else _gather(part, column, -1)

    def add_narrowed(self, low: Tensor, tile: Tensor, column: Strip) -> None:
        """The adjoint of `widen`, added to `low`."""
        part = _scatter(tile, column, -1) if self.scatters else tile @ column.matrix
        low[..., column.low : column.high] += part

    def add_raised(self, x: Tensor, low: Tensor, row: Strip) -> None:
        """The adjoint of `lower`, added to `x`."""
        part = _scatter(low, row, -2) if self.scatters else row.matrix.T @ low
        x[..., row.low : row.high, :] += part

    def tiles(self, x: Tensor) -> Iterator[tuple[Strip, Strip, Tensor]]:
        """Every tile of the upsampled map in order: row strip, column strip, values."""
        for row in self.rows:
            low = self.lower(x, row)
            for column in self.columns:
                yield row, column, self.widen(low, column)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Arithmetic is done in float32, in float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def coarse(x: Tensor) -> Tensor:
    """`x` in NCHW order and the dtype of the arithmetic; it is the small map, so a copy is fine."""
    return x.to(compute_dtype(x)).contiguous()


def is_finite(x: Tensor) -> bool:
    """Whether products may be used; never a synchronisation: other devices always gather."""
    if x.device.type != "cpu" or x.numel() == 0:
        return x.device.type == "cpu"
    low, high = torch.aminmax(x)  # a NaN is both; several times faster than isfinite
    return -math.inf < low.item() and high.item() < math.inf
