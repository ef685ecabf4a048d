"""Bilinear upsampling at a `SamplingGrid`, and one fusion step of an FCN built on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..geometry import Pair, SamplingGrid
from ._checks import check_grid, check_map, check_skip
from ._dispatch import use_triton
from ._tiles import Tiling, coarse, is_finite
from .crop_add import place

PLANES = 16  # channels taken together by the plain-torch path


def _add_upsampled(out: Tensor, x: Tensor, grid: SamplingGrid, accumulate: bool) -> Tensor:
    """Write the upsampled `x` to `out` (or add it), tile by tile."""
    with torch.autocast(x.device.type, enabled=False):
        x = coarse(x)
        tiling = Tiling(grid, PLANES, x.dtype, x.device, is_finite(x))
        for image in range(x.shape[0]):
            for c in range(0, x.shape[1], PLANES):
                for row, column, tile in tiling.tiles(x[image, c : c + PLANES]):
                    rows, columns = slice(row.first, row.last), slice(column.first, column.last)
                    part = out[image, c : c + PLANES, rows, columns]
                    part.copy_(part + tile if accumulate else tile)
    return out


def _adjoint(grad: Tensor, grid: SamplingGrid) -> Tensor:
    with torch.autocast(grad.device.type, enabled=False):
        n, channels = grad.shape[:2]
        wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
        result = grad.new_zeros((n, channels, *grid.in_size), dtype=wide)
        tiling = Tiling(grid, PLANES, wide, grad.device, is_finite(grad))
        for image in range(n):
            for c in range(0, channels, PLANES):
                g, out = grad[image, c : c + PLANES], result[image, c : c + PLANES]
                for row in tiling.rows:
                    low = out.new_zeros((*g.shape[:1], row.last - row.first, grid.in_size[1]))
                    for column in tiling.columns:
                        tile = g[:, row.first : row.last, column.first : column.last]
                        tiling.add_narrowed(low, tile.to(wide), column)
                    tiling.add_raised(out, low, row)
    return result.to(grad.dtype)


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: SamplingGrid) -> Tensor:
        ctx.grid = grid
        if use_triton(x):
            from ..kernels import upsample as kernel

            return kernel.forward(x, grid)
        out = x.new_empty((*x.shape[:2], *grid.size))
        return _add_upsampled(out, x, grid, accumulate=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _UpsampleAdjoint.apply(grad, ctx.grid), None


class _UpsampleAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: SamplingGrid) -> Tensor:
        ctx.grid = grid
        if use_triton(grad):
            from ..kernels import upsample as kernel

            return kernel.adjoint(grad, grid)
        return _adjoint(grad, grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Upsample.apply(grad, ctx.grid), None


class _UpsampleCropAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor, grid: SamplingGrid, offset: Pair) -> Tensor:
        ctx.grid, ctx.size, ctx.offset = grid, tuple(skip.shape[-2:]), offset
        if use_triton(x):
            from ..kernels import crop_add, upsample

            return crop_add.forward(upsample.forward(x, grid), skip, offset)
        (oy, ox), (h, w) = offset, grid.size
        out = skip[..., oy : oy + h, ox : ox + w].clone(memory_format=torch.contiguous_format)
        return _add_upsampled(out, x, grid, accumulate=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x = _UpsampleAdjoint.apply(grad, ctx.grid) if ctx.needs_input_grad[0] else None
        skip = place(grad, ctx.size, ctx.offset) if ctx.needs_input_grad[1] else None
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
    return _Upsample.apply(x, grid)


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
