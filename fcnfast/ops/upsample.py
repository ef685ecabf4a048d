"""Bilinear upsampling at a `SamplingGrid`, and one fusion step of an FCN built on it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..geometry import SamplingGrid, Size, as_pair
from ..tiled import upsample as tiled
from ..tiled._tiles import empty_map
from . import _checks
from ._checks import Integers, Scale
from ._registry import BACKEND, GRID, define, forced, uses_triton
from .crop_add import backward_skip


def _forward(x: Tensor, grid: Integers, clamp: bool, backend: str | None) -> Tensor:
    sampled = _checks.checked_grid(x, "x", grid, clamp)
    if uses_triton(backend, x, sampled):
        from ..kernels import upsample as triton

        return triton.forward(x, sampled)
    return tiled.forward(x, sampled)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.grid, ctx.clamp, ctx.backend = inputs


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    return _upsample_backward(grad_output, ctx.grid, ctx.clamp, ctx.backend), None, None, None


def _adjoint(grad_output: Tensor, grid: Integers, clamp: bool, backend: str | None) -> Tensor:
    sampled = _checks.unpacked(tuple(grid), clamp)
    if uses_triton(backend, grad_output, sampled):
        from ..kernels import upsample_backward as triton

        return triton.adjoint(grad_output, sampled)
    return tiled.adjoint(grad_output, sampled)


def _adjoint_backward(ctx: Any, grad_input: Tensor) -> tuple[Tensor | None, ...]:
    return _upsample(grad_input, ctx.grid, ctx.clamp, ctx.backend), None, None, None


def _fused(
    x: Tensor, skip: Tensor, grid: Integers, clamp: bool, offset: Integers, backend: str | None
) -> Tensor:
    sampled = _checks.checked_grid(x, "x", grid, clamp)
    _checks.check_window(skip.shape, (*x.shape[:2], *sampled.size), offset)
    if uses_triton(backend, x, sampled):
        from ..kernels import upsample as triton

        return triton.forward_add(x, skip, sampled, offset)
    return tiled.forward_add(x, skip, sampled, offset)


def _fused_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, skip, ctx.grid, ctx.clamp, ctx.offset, ctx.backend = inputs
    ctx.skip_size = skip.shape[-2:]


def _fused_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = grad_skip = None
    if ctx.needs_input_grad[0]:
        grad_x = _upsample_backward(grad_output, ctx.grid, ctx.clamp, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_skip = backward_skip(grad_output, ctx.skip_size, ctx.offset, ctx.backend)
    return grad_x, grad_skip, None, None, None, None


_upsample = define(
    f"upsample(Tensor x, {GRID}, {BACKEND}) -> Tensor",
    _forward,
    lambda x, grid, *_: empty_map(x, grid[2:4]),
    _setup,
    _backward,
)
_upsample_backward = define(
    f"upsample_backward(Tensor grad_output, {GRID}, {BACKEND}) -> Tensor",
    _adjoint,
    lambda grad_output, grid, *_: empty_map(grad_output, grid[:2]),
    _setup,
    _adjoint_backward,
)
_upsample_crop_add = define(
    f"upsample_crop_add(Tensor x, Tensor skip, {GRID}, SymInt[] offset, {BACKEND}) -> Tensor",
    _fused,
    lambda x, skip, grid, *_: empty_map(x, grid[2:4]),
    _fused_setup,
    _fused_backward,
)


def upsample(
    x: Tensor,
    grid: SamplingGrid | None = None,
    *,
    size: Size | None = None,
    scale_factor: Scale | None = None,
    align_corners: bool | None = None,
) -> Tensor:
    """Bilinear upsampling: ``F.interpolate(x, size, mode="bilinear")``, or any `SamplingGrid`.

    With ``SamplingGrid.deconv`` this is the fixed transposed convolution of an FCN and its crop
    (section 3.3 of the paper).

    Args:
        x: N x C x h x w, float32, bfloat16, float16 or float64; any strides.
        grid: from h x w to H x W.
        size, scale_factor, align_corners: instead of a grid, as in ``F.interpolate``.

    Returns:
        N x C x H x W of the same dtype. The gradient is deterministic and itself differentiable.

    Raises:
        TypeError: an argument has a type or dtype not listed above.
        ValueError: `x` is not 4-D, the grid was made for maps of a different size, or not exactly
            one of `grid`, `size` and `scale_factor` is given.

    Example:
        >>> fcnfast.upsample(torch.tensor([[[[0.0, 4.0]]]]), size=(1, 4))
        tensor([[[[0., 1., 3., 4.]]]])
    """
    grid = _checks.grid_for(x, "x", grid, size, scale_factor, align_corners)
    return _upsample(x, *_checks.packed(grid), forced())


def adjoint(grad_output: Tensor, grid: SamplingGrid) -> Tensor:
    """The gradient of ``upsample(x, grid)`` by `x`; differentiable any number of times."""
    return _upsample_backward(grad_output, *_checks.packed(grid), forced())


def upsample_crop_add(
    x: Tensor,
    skip: Tensor,
    grid: SamplingGrid | None = None,
    offset: Size = 0,
    *,
    size: Size | None = None,
    scale_factor: Scale | None = None,
    align_corners: bool | None = None,
) -> Tensor:
    """One fusion step of an FCN: the upsampled `x` plus a window of the finer scores.

    Args:
        x: N x C x h x w coarse scores.
        skip: N x C x h' x w' finer scores of the same dtype and device.
        grid: from h x w to the H x W of the result.
        offset: first (row, column) of the window of `skip`.
        size, scale_factor, align_corners: instead of a grid, as in ``F.interpolate``; by default
            `x` is resized to the part of `skip` from `offset` on.

    Returns:
        N x C x H x W of the dtype of `x`. Differentiable in both, any number of times.

    Raises:
        TypeError: an argument has a type or dtype not listed above.
        ValueError: as in `upsample` and `crop_add`.

    Example:
        >>> x, skip = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 10, 10)
        >>> fcnfast.upsample_crop_add(x, skip, size=(8, 8), offset=(1, 1)).shape
        torch.Size([1, 2, 8, 8])
    """
    _checks.check_skip(x, skip)
    top, left = as_pair(offset, "offset")
    if grid is None and size is None and scale_factor is None:
        size = (skip.shape[2] - top, skip.shape[3] - left)
    grid = _checks.grid_for(x, "x", grid, size, scale_factor, align_corners)
    return _upsample_crop_add(x, skip, *_checks.packed(grid), (top, left), forced())
