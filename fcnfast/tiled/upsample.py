"""upsample in plain torch: both directions in tiles, and one fusion step built on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._formats import empty_like, memory_format
from ._tiles import TILE_COLUMNS, TILE_ELEMENTS, Tiling, coarse, is_finite
from .crop_add import window

# A plain-torch tile takes this many rows at most; the planes of a batch share a tile.
TILE_ROWS = 32


def _planes(x: Tensor) -> Iterator[Tensor]:
    """`x` as stacks of planes, K x H x W views: one for the batch if strides allow, else N."""
    if x.is_contiguous():
        yield x.flatten(0, 1)
    else:
        yield from x


def _planes_a_tile(grid: SamplingGrid) -> int:
    area = min(TILE_ROWS, grid.size[0]) * min(TILE_COLUMNS, grid.size[1])
    return max(1, TILE_ELEMENTS // area)


def _add_upsampled(out: Tensor, x: Tensor, grid: SamplingGrid, accumulate: bool) -> Tensor:
    """Write the upsampled `x` to `out` (or add it), tile by tile."""
    with torch.autocast(x.device.type, enabled=False):
        x = coarse(x)
        planes = _planes_a_tile(grid)
        tiling = Tiling(grid, planes, x.dtype, x.device, is_finite(x))
        sources = [x.flatten(0, 1)] if out.is_contiguous() else x
        for target, stack in zip(_planes(out), sources, strict=True):
            for part, source in zip(target.split(planes), stack.split(planes), strict=True):
                for row, column, tile in tiling.tiles(source):
                    piece = part[:, row.first : row.last, column.first : column.last]
                    piece.copy_(piece + tile if accumulate else tile)
    return out


def forward(x: Tensor, grid: SamplingGrid) -> Tensor:
    """`x` (N x C x h x w) sampled at every position of `grid`: N x C x H x W."""
    out = empty_like(x, (*x.shape[:2], *grid.size))
    return _add_upsampled(out, x, grid, accumulate=False)


def forward_add(x: Tensor, skip: Tensor, grid: SamplingGrid, offset: Sequence[int]) -> Tensor:
    """The upsampled `x` plus the window of `skip` at `offset`."""
    out = empty_like(x, (*x.shape[:2], *grid.size)).copy_(window(skip, grid.size, offset))
    return _add_upsampled(out, x, grid, accumulate=True)


def adjoint(grad: Tensor, grid: SamplingGrid) -> Tensor:
    """The gradient of `x`, given that of `forward(x, grid)`."""
    with torch.autocast(grad.device.type, enabled=False):
        wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
        result = grad.new_zeros((*grad.shape[:2], *grid.in_size), dtype=wide)
        planes = _planes_a_tile(grid)
        tiling = Tiling(grid, planes, wide, grad.device, is_finite(grad))
        stacks = [result.flatten(0, 1)] if grad.is_contiguous() else result
        for stack, target in zip(_planes(grad), stacks, strict=True):
            for g, out in zip(stack.split(planes), target.split(planes), strict=True):
                _add_adjoint(out, g, tiling)
    return result.to(grad.dtype).contiguous(memory_format=memory_format(grad))


def _add_adjoint(out: Tensor, grad: Tensor, tiling: Tiling) -> None:
    """Add the adjoint of the planes `grad` (K x H x W) to `out` (K x h x w)."""
    for row in tiling.rows:
        low = out.new_zeros((out.shape[0], row.last - row.first, out.shape[2]))
        for column in tiling.columns:
            tile = grad[:, row.first : row.last, column.first : column.last]
            tiling.add_narrowed(low, tile.to(out.dtype), column)
        tiling.add_raised(out, low, row)
