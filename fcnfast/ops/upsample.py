"""Bilinear upsampling at a `SamplingGrid`, and one fusion step of an FCN built on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..geometry import Pair, SamplingGrid
from ._checks import check_grid, check_map, check_skip
from ._dispatch import use_triton
from ._tiles import TILE_COLUMNS, TILE_ELEMENTS, Tiling, coarse, is_finite
from .crop_add import place

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
    """Write the upsampled `x` to the contiguous `out` (or add it), tile by tile."""
    with torch.autocast(x.device.type, enabled=False):
        x = coarse(x).flatten(0, 1)
        planes = _planes_a_tile(grid)
        tiling = Tiling(grid, planes, x.dtype, x.device, is_finite(x))
        for part, source in zip(out.flatten(0, 1).split(planes), x.split(planes), strict=True):
            for row, column, tile in tiling.tiles(source):
                window = part[:, row.first : row.last, column.first : column.last]
                window.copy_(window + tile if accumulate else tile)
    return out


def _adjoint(grad: Tensor, grid: SamplingGrid) -> Tensor:
    with torch.autocast(grad.device.type, enabled=False):
        wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
        result = grad.new_zeros((*grad.shape[:2], *grid.in_size), dtype=wide)
        planes = _planes_a_tile(grid)
        tiling = Tiling(grid, planes, wide, grad.device, is_finite(grad))
        stacks = [result.flatten(0, 1)] if grad.is_contiguous() else result
        for stack, target in zip(_planes(grad), stacks, strict=True):
            for g, out in zip(stack.split(planes), target.split(planes), strict=True):
                _add_adjoint(out, g, tiling)
    return result.to(grad.dtype)


def _add_adjoint(out: Tensor, grad: Tensor, tiling: Tiling) -> None:
    """Add the adjoint of the planes `grad` (K x H x W) to `out` (K x h x w)."""
    for row in tiling.rows:
        low = out.new_zeros((out.shape[0], row.last - row.first, out.shape[2]))
        for column in tiling.columns:
            tile = grad[:, row.first : row.last, column.first : column.last]
            tiling.add_narrowed(low, tile.to(out.dtype), column)
        tiling.add_raised(out, low, row)


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: SamplingGrid, triton: bool) -> Tensor:
        ctx.grid, ctx.triton = grid, triton
        if triton:
            from ..kernels import upsample as kernel

            return kernel.forward(x, grid)
        out = x.new_empty((*x.shape[:2], *grid.size))
        return _add_upsampled(out, x, grid, accumulate=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _UpsampleAdjoint.apply(grad, ctx.grid, ctx.triton), None, None


class _UpsampleAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: SamplingGrid, triton: bool) -> Tensor:
        ctx.grid, ctx.triton = grid, triton
        if triton:
            from ..kernels import upsample as kernel

            return kernel.adjoint(grad, grid)
        return _adjoint(grad, grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Upsample.apply(grad, ctx.grid, ctx.triton), None, None


class _UpsampleCropAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor, grid: SamplingGrid, offset: Pair) -> Tensor:
        ctx.grid, ctx.size, ctx.offset = grid, tuple(skip.shape[-2:]), offset
        ctx.triton = use_triton(x)
        if ctx.triton:
            from ..kernels import crop_add, upsample

            return crop_add.forward(upsample.forward(x, grid), skip, offset)
        (oy, ox), (h, w) = offset, grid.size
        out = skip[..., oy : oy + h, ox : ox + w].clone(memory_format=torch.contiguous_format)
        return _add_upsampled(out, x, grid, accumulate=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x = skip = None
        if ctx.needs_input_grad[0]:
            x = _UpsampleAdjoint.apply(grad, ctx.grid, ctx.triton)
        if ctx.needs_input_grad[1]:
            skip = place(grad, ctx.size, ctx.offset, ctx.triton)
        return x, skip, None, None


def upsample(x: Tensor, grid: SamplingGrid) -> Tensor:
    """Sample `x` bilinearly at every position of `grid`.

    With ``SamplingGrid.deconv`` this is the fixed transposed convolution of an FCN and its crop
    (section 3.3 of the paper); with ``SamplingGrid.resize`` it is ``F.interpolate``.

    Args:
        x: N x C x h x w, float32, bfloat16, float16 or float64; any strides.
        grid: positions for maps of h x w.

    Returns:
        N x C x H x W of the same dtype. The gradient is the gathered adjoint: deterministic, and
        differentiable again.

    Raises:
        TypeError: on other dtypes or types.
        ValueError: on another rank, or a grid made for maps of another size.
    """
    check_map(x, "x")
    check_grid(x, grid, "x")
    return _Upsample.apply(x, grid, use_triton(x))


def upsample_crop_add(
    x: Tensor, skip: Tensor, grid: SamplingGrid, offset: int | Sequence[int]
) -> Tensor:
    """One fusion step of an FCN: ``upsample(x, grid)`` plus a window of the finer scores.

    Args:
        x: N x C x h x w coarse scores.
        skip: N x C x h' x w' finer scores of the same dtype and device.
        grid: from h x w to the H x W of the result.
        offset: first (row, column) of the window of `skip`.

    Returns:
        N x C x H x W of the dtype of `x`. Differentiable in both, any number of times.

    Raises:
        TypeError: on other dtypes or types.
        ValueError: as `upsample` and `crop_add`.
    """
    check_map(x, "x")
    check_grid(x, grid, "x")
    offset = check_skip((*x.shape[:2], *grid.size), x, skip, offset)
    return _UpsampleCropAdd.apply(x, skip, grid, offset)
