"""Bilinear upsampling at a `SamplingGrid`, and one fusion step of an FCN built on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..geometry import Pair, SamplingGrid
from ._checks import check_grid, check_map, check_skip
from ._dispatch import implementation, use_triton
from .crop_add import place


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: SamplingGrid, triton: bool) -> Tensor:
        ctx.grid, ctx.triton = grid, triton
        return implementation("upsample", triton).forward(x, grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _UpsampleAdjoint.apply(grad, ctx.grid, ctx.triton), None, None


class _UpsampleAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: SamplingGrid, triton: bool) -> Tensor:
        ctx.grid, ctx.triton = grid, triton
        return implementation("upsample", triton).adjoint(grad, grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Upsample.apply(grad, ctx.grid, ctx.triton), None, None


class _UpsampleCropAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor, grid: SamplingGrid, offset: Pair) -> Tensor:
        ctx.grid, ctx.size, ctx.offset = grid, tuple(skip.shape[-2:]), offset
        ctx.triton = use_triton(x)
        return implementation("upsample", ctx.triton).forward_add(x, skip, grid, offset)

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
