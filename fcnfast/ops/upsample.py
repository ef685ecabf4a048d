"""Bilinear upsampling at a `SamplingGrid`, and one fusion step of an FCN built on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..geometry import SamplingGrid, as_pair
from ..tiled._formats import empty_like
from ._checks import check_grid, check_map, check_on_grid, check_result, check_skip, check_window
from ._dispatch import forced, launcher
from ._library import BACKEND, GRID, define, packed, unpacked
from ._vmap import into_images
from .crop_add import place

Integers = Sequence[int]


def _forward(x: Tensor, grid: Integers, clamp: bool, backend: str | None = None) -> Tensor:
    check_map(x, "x")
    sampled = unpacked(grid, clamp)
    check_on_grid(x, sampled, "x")
    return launcher("upsample", "forward", backend, x)(x, sampled)


def _forward_fake(x: Tensor, grid: Integers, clamp: bool, backend: str | None = None) -> Tensor:
    return empty_like(x, (*x.shape[:2], grid[2], grid[3]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.grid, ctx.clamp, ctx.backend = inputs


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _adjoint(grad, ctx.grid, ctx.clamp, ctx.backend), None, None, None


def _push(ctx: Any, x: Tensor, *_: None) -> Tensor:
    return _upsample(x, ctx.grid, ctx.clamp, ctx.backend)


def _gather(grad: Tensor, grid: Integers, clamp: bool, backend: str | None = None) -> Tensor:
    check_map(grad, "grad")
    sampled = unpacked(grid, clamp)
    check_result(grad, sampled)
    return launcher("upsample", "adjoint", backend, grad)(grad, sampled)


def _gather_fake(grad: Tensor, grid: Integers, clamp: bool, backend: str | None = None) -> Tensor:
    return empty_like(grad, (*grad.shape[:2], grid[0], grid[1]))


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _upsample(grad, ctx.grid, ctx.clamp, ctx.backend), None, None, None


def _gather_push(ctx: Any, grad: Tensor, *_: None) -> Tensor:
    return _adjoint(grad, ctx.grid, ctx.clamp, ctx.backend)


def _fuse(
    x: Tensor,
    skip: Tensor,
    grid: Integers,
    clamp: bool,
    offset: Integers,
    backend: str | None = None,
) -> Tensor:
    check_map(x, "x")
    check_skip(x, skip)
    sampled = unpacked(grid, clamp)
    check_on_grid(x, sampled, "x")
    check_window(skip.shape, (*x.shape[:2], *sampled.size), offset)
    return launcher("upsample", "forward_add", backend, x)(x, skip, sampled, offset)


def _fuse_fake(
    x: Tensor,
    skip: Tensor,
    grid: Integers,
    clamp: bool,
    offset: Integers,
    backend: str | None = None,
) -> Tensor:
    return empty_like(x, (*x.shape[:2], grid[2], grid[3]))


def _fuse_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, skip, ctx.grid, ctx.clamp, ctx.offset, ctx.backend = inputs
    ctx.size = skip.shape[-2:]


def _fuse_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x = skip = None
    if ctx.needs_input_grad[0]:
        x = _adjoint(grad, ctx.grid, ctx.clamp, ctx.backend)
    if ctx.needs_input_grad[1]:
        skip = place(grad, ctx.size, ctx.offset, ctx.backend)
    return x, skip, None, None, None, None


def _fuse_push(ctx: Any, x: Tensor, skip: Tensor, *_: None) -> Tensor:
    return _upsample_crop_add(x, skip, ctx.grid, ctx.clamp, ctx.offset, ctx.backend)


_upsample = define(
    f"upsample(Tensor x, {GRID}, {BACKEND}) -> Tensor",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
    vmap=into_images,
    jvp=_push,
)
_adjoint = define(
    f"upsample_adjoint(Tensor grad, {GRID}, {BACKEND}) -> Tensor",
    _gather,
    _gather_fake,
    setup=_setup,
    backward=_gather_backward,
    vmap=into_images,
    jvp=_gather_push,
)
_upsample_crop_add = define(
    f"upsample_crop_add(Tensor x, Tensor skip, {GRID}, SymInt[] offset, {BACKEND}) -> Tensor",
    _fuse,
    _fuse_fake,
    setup=_fuse_setup,
    backward=_fuse_backward,
    vmap=into_images,
    jvp=_fuse_push,
)


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
    check_grid(grid)
    return _upsample(x, *packed(grid), forced())


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
    check_grid(grid)
    check_skip(x, skip)
    return _upsample_crop_add(x, skip, *packed(grid), as_pair(offset, "offset"), forced())
