"""The skip fusion of an FCN: add a window of a finer map (section 4.2 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..geometry import Pair
from ..tiled.crop_add import window
from ._checks import check_map, check_skip
from ._dispatch import implementation, use_triton


def place(grad: Tensor, size: Pair, offset: Pair, triton: bool) -> Tensor:
    """The adjoint of a crop: `grad` at `offset` in zeros of `size` (differentiable)."""
    return _Place.apply(grad, size, offset, triton)


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, size: Pair, offset: Pair, triton: bool) -> Tensor:
        ctx.window, ctx.offset = grad.shape[-2:], offset
        shape = (*grad.shape[:2], *size)
        return implementation("crop_add", triton).backward_skip(grad, shape, offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return window(grad, ctx.window, ctx.offset), None, None, None


class _CropAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor, offset: Pair) -> Tensor:
        ctx.size, ctx.offset, ctx.triton = tuple(skip.shape[-2:]), offset, use_triton(x)
        return implementation("crop_add", ctx.triton).forward(x, skip, offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        wanted = ctx.needs_input_grad[1]
        skip = place(grad, ctx.size, ctx.offset, ctx.triton) if wanted else None
        return grad if ctx.needs_input_grad[0] else None, skip, None


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
    return _CropAdd.apply(x, skip, check_skip(x.shape, x, skip, offset))
