"""The skip fusion of an FCN: add a window of a finer map (section 4.2 of the paper)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..geometry import Size, as_pair
from ..tiled import crop_add as tiled
from ..tiled._tiles import empty_map
from ._checks import Integers, check_skip, check_window
from ._registry import BACKEND, define, forced, uses_triton


def _forward(x: Tensor, skip: Tensor, offset: Integers, backend: str | None) -> Tensor:
    check_window(skip.shape, x.shape, offset)
    if uses_triton(backend, x):
        from ..kernels import crop_add as triton

        return triton.forward(x, skip, offset)
    return tiled.forward(x, skip, offset)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, skip, ctx.offset, ctx.backend = inputs
    ctx.skip_size = skip.shape[-2:]


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad_skip = None
    if ctx.needs_input_grad[1]:
        grad_skip = backward_skip(grad_output, ctx.skip_size, ctx.offset, ctx.backend)
    return grad_output, grad_skip, None, None


def _skip_forward(
    grad_output: Tensor, size: Integers, offset: Integers, backend: str | None
) -> Tensor:
    shape = (*grad_output.shape[:2], *size)
    if uses_triton(backend, grad_output):
        from ..kernels import crop_add as triton

        return triton.backward_skip(grad_output, shape, offset)
    return tiled.backward_skip(grad_output, shape, offset)


def _skip_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.size, ctx.offset = inputs[0].shape[-2:], inputs[2]


def _skip_backward(ctx: Any, grad_skip: Tensor) -> tuple[Tensor | None, ...]:
    return tiled.window(grad_skip, ctx.size, ctx.offset), None, None, None


_crop_add = define(
    f"crop_add(Tensor x, Tensor skip, SymInt[] offset, {BACKEND}) -> Tensor",
    _forward,
    lambda x, *_: empty_map(x, x.shape[2:]),
    _setup,
    _backward,
)
# The gradient of `skip`: zeros of `size` with `grad_output` at `offset`.
backward_skip = define(
    f"crop_add_backward_skip(Tensor grad_output, SymInt[] size, SymInt[] offset, {BACKEND}) "
    "-> Tensor",
    _skip_forward,
    lambda grad_output, size, *_: empty_map(grad_output, size),
    _skip_setup,
    _skip_backward,
)


def crop_add(x: Tensor, skip: Tensor, offset: Size) -> Tensor:
    """``x + skip[..., oy:oy+h, ox:ox+w]`` in one pass, forward and backward.

    Args:
        x: N x C x h x w, float32, bfloat16, float16 or float64; any strides.
        skip: N x C x h' x w' of the same dtype and device.
        offset: first (row, column) of the window.

    Returns:
        N x C x h x w of the dtype of `x`. Differentiable in both, any number of times.

    Raises:
        TypeError: an argument has a type or dtype not listed above.
        ValueError: shapes or devices do not match, or the window is not within `skip`.

    Example:
        >>> x, skip = torch.ones(1, 1, 2, 2), torch.arange(16.0).view(1, 1, 4, 4)
        >>> fcnfast.crop_add(x, skip, (1, 1))
        tensor([[[[ 6.,  7.],
                  [10., 11.]]]])
    """
    check_skip(x, skip)
    return _crop_add(x, skip, as_pair(offset, "offset"), forced())
