"""The skip fusion of an FCN: add a window of a finer map (section 4.2 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..geometry import as_pair
from ..tiled._formats import empty_like
from ..tiled.crop_add import window
from ._checks import check_map, check_pair, check_skip, check_window
from ._dispatch import forced, launcher
from ._library import BACKEND, define
from ._vmap import into_images


def _forward(x: Tensor, skip: Tensor, offset: Sequence[int], backend: str | None = None) -> Tensor:
    check_map(x, "x")
    check_skip(x, skip)
    check_window(skip.shape, x.shape, offset)
    return launcher("crop_add", "forward", backend, x)(x, skip, offset)


def _forward_fake(
    x: Tensor, skip: Tensor, offset: Sequence[int], backend: str | None = None
) -> Tensor:
    return empty_like(x, x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, skip, ctx.offset, ctx.backend = inputs
    ctx.size = skip.shape[-2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, skip = ctx.needs_input_grad[:2]
    placed = place(grad, ctx.size, ctx.offset, ctx.backend) if skip else None
    return grad if x else None, placed, None, None


def _push(ctx: Any, x: Tensor, skip: Tensor, *_: None) -> Tensor:
    return _crop_add(x, skip, ctx.offset, ctx.backend)


def _place(
    grad: Tensor, size: Sequence[int], offset: Sequence[int], backend: str | None = None
) -> Tensor:
    check_map(grad, "grad")
    check_pair(size, "size")
    shape = (*grad.shape[:2], *size)
    check_window(shape, grad.shape, offset)
    return launcher("crop_add", "backward_skip", backend, grad)(grad, shape, offset)


def _place_fake(
    grad: Tensor, size: Sequence[int], offset: Sequence[int], backend: str | None = None
) -> Tensor:
    return empty_like(grad, (*grad.shape[:2], *size))


def _place_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, ctx.size, ctx.offset, ctx.backend = inputs
    ctx.window = grad.shape[-2:]


def _place_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return window(grad, ctx.window, ctx.offset), None, None, None


def _place_push(ctx: Any, grad: Tensor, *_: None) -> Tensor:
    return place(grad, ctx.size, ctx.offset, ctx.backend)


_crop_add = define(
    f"crop_add(Tensor x, Tensor skip, SymInt[] offset, {BACKEND}) -> Tensor",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
    vmap=into_images,
    jvp=_push,
)
# The adjoint of a crop: `grad` at `offset` in zeros of `size`.
place = define(
    f"crop_add_adjoint(Tensor grad, SymInt[] size, SymInt[] offset, {BACKEND}) -> Tensor",
    _place,
    _place_fake,
    setup=_place_setup,
    backward=_place_backward,
    vmap=into_images,
    jvp=_place_push,
)


def crop_add(x: Tensor, skip: Tensor, offset: int | Sequence[int]) -> Tensor:
    """``x + skip[..., oy:oy+h, ox:ox+w]`` in one pass, both ways.

    Args:
        x: N x C x h x w.
        skip: N x C x h' x w' of the same dtype and device.
        offset: first (row, column) of the window.

    Returns:
        N x C x h x w of the dtype of `x`. Differentiable in both, any number of times.

    Raises:
        TypeError: on other dtypes.
        ValueError: on other shapes or devices, a negative offset, or a window that leaves `skip`.
    """
    check_map(x, "x")
    check_skip(x, skip)
    return _crop_add(x, skip, as_pair(offset, "offset"), forced())
