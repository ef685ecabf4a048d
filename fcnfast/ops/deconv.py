"""A learnable upsampling: the depthwise transposed convolution of an FCN, with its crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..geometry import as_pair, deconv_size
from ..tiled._formats import empty_like, memory_format
from ._checks import check_deconv, check_map, check_weight, check_weight_dtype
from ._dispatch import forced, launcher
from ._library import BACKEND, define
from ._vmap import into_channels

Integers = Sequence[int]


def _forward(
    x: Tensor,
    weight: Tensor,
    stride: int,
    start: Integers,
    size: Integers,
    backend: str | None = None,
) -> Tensor:
    check_map(x, "x")
    check_weight(x, weight)
    check_deconv(x.shape, weight.shape, stride, start, size)
    return launcher("deconv", "forward", backend, x)(x, weight, stride, start, size)


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    stride: int,
    start: Integers,
    size: Integers,
    backend: str | None = None,
) -> Tensor:
    return empty_like(x, (*x.shape[:2], *size))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.stride, ctx.start, _, ctx.backend = inputs
    ctx.in_size, ctx.kernel, ctx.dtype = x.shape[-2:], weight.shape[-1], weight.dtype
    first, second = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if second else None, weight if first else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    place = (ctx.stride, ctx.start)
    if weight is not None:
        weight = _input_gradient(grad, weight, *place, ctx.in_size, ctx.backend)
    if x is not None:
        x = _weight_gradient(grad, x, *place, ctx.kernel, ctx.dtype, ctx.backend)
    return weight, x, None, None, None, None


def _to_input(
    grad: Tensor,
    weight: Tensor,
    stride: int,
    start: Integers,
    in_size: Integers,
    backend: str | None = None,
) -> Tensor:
    check_map(grad, "grad")
    check_weight(grad, weight)
    check_deconv((*grad.shape[:2], *in_size), weight.shape, stride, start, grad.shape[2:])
    run = launcher("deconv", "input_gradient", backend, grad)
    result = run(grad, weight, stride, start, in_size)
    return result.contiguous(memory_format=memory_format(grad))


def _to_input_fake(
    grad: Tensor,
    weight: Tensor,
    stride: int,
    start: Integers,
    in_size: Integers,
    backend: str | None = None,
) -> Tensor:
    return empty_like(grad, (*grad.shape[:2], *in_size))


def _to_input_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, ctx.stride, ctx.start, _, ctx.backend = inputs
    ctx.size, ctx.kernel, ctx.dtype = grad.shape[-2:], weight.shape[-1], weight.dtype
    first, second = ctx.needs_input_grad[:2]
    ctx.save_for_backward(grad if second else None, weight if first else None)


def _to_input_backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
    # <outer, input_gradient(grad, weight)> = <deconv(outer, weight), grad>
    grad, weight = ctx.saved_tensors
    place = (ctx.stride, ctx.start)
    if weight is not None:
        weight = _deconv(outer, weight, *place, ctx.size, ctx.backend)
    if grad is not None:
        grad = _weight_gradient(grad, outer, *place, ctx.kernel, ctx.dtype, ctx.backend)
    return weight, grad, None, None, None, None


def _to_weight(
    grad: Tensor,
    x: Tensor,
    stride: int,
    start: Integers,
    kernel: int,
    dtype: torch.dtype,
    backend: str | None = None,
) -> Tensor:
    check_map(grad, "grad")
    check_map(x, "x")
    check_weight_dtype(x, dtype)
    if grad.shape[0] != x.shape[0]:
        raise ValueError(f"grad and x must share a batch, not {grad.shape[0]} and {x.shape[0]}")
    shape = (grad.shape[1], 1, kernel, kernel)
    check_deconv(x.shape, shape, stride, start, grad.shape[2:])
    run = launcher("deconv", "weight_gradient", backend, grad)
    return run(grad, x, stride, start, kernel, dtype).contiguous()


def _to_weight_fake(
    grad: Tensor,
    x: Tensor,
    stride: int,
    start: Integers,
    kernel: int,
    dtype: torch.dtype,
    backend: str | None = None,
) -> Tensor:
    return grad.new_empty((x.shape[1], 1, kernel, kernel), dtype=dtype)


def _to_weight_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, x, ctx.stride, ctx.start, _, _, ctx.backend = inputs
    ctx.size, ctx.in_size = grad.shape[-2:], x.shape[-2:]
    first, second = ctx.needs_input_grad[:2]
    ctx.save_for_backward(grad if second else None, x if first else None)


def _to_weight_backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
    # <outer, weight_gradient(grad, x)> = <deconv(x, outer), grad>
    grad, x = ctx.saved_tensors
    place = (ctx.stride, ctx.start)
    if x is not None:
        x = _deconv(x, outer, *place, ctx.size, ctx.backend)
    if grad is not None:
        grad = _input_gradient(grad, outer, *place, ctx.in_size, ctx.backend)
    return x, grad, None, None, None, None, None


_deconv = define(
    f"deconv(Tensor x, Tensor weight, int stride, SymInt[] start, SymInt[] size, {BACKEND}) "
    "-> Tensor",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
    vmap=lambda call: into_channels(call, (1, 0), 1),
)
_input_gradient = define(
    "deconv_input_gradient(Tensor grad, Tensor weight, int stride, SymInt[] start, "
    f"SymInt[] in_size, {BACKEND}) -> Tensor",
    _to_input,
    _to_input_fake,
    setup=_to_input_setup,
    backward=_to_input_backward,
    vmap=lambda call: into_channels(call, (1, 0), 1),
)
_weight_gradient = define(
    "deconv_weight_gradient(Tensor grad, Tensor x, int stride, SymInt[] start, int kernel, "
    f"ScalarType dtype, {BACKEND}) -> Tensor",
    _to_weight,
    _to_weight_fake,
    setup=_to_weight_setup,
    backward=_to_weight_backward,
    vmap=lambda call: into_channels(call, (1, 1), 0),
)


def deconv(
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int = 0,
    crop: int | Sequence[int] = (0, 0),
    size: int | Sequence[int] | None = None,
) -> Tensor:
    """A depthwise transposed convolution and a crop of its result.

    ``F.conv_transpose2d(x, weight, stride=stride, padding=padding, groups=C)[..., crop]``, of
    which only the crop is computed: the upsampling of an FCN that is learned (section 3.3 of the
    paper), a filter for each class. With a fixed bilinear filter `upsample` does the same.

    Args:
        x: N x C x h x w, float32, bfloat16, float16 or float64; any strides.
        weight: C x 1 x k x k of the dtype of `x`, or float32 beside a half-precision `x`.
        stride: pixels from one value of `x` to the next.
        padding: pixels removed from each side, as in ``conv_transpose2d``.
        crop: first (row, column) kept after the padding is removed.
        size: (H, W) kept; by default all that is left.

    Returns:
        N x C x H x W of the dtype of `x`. Differentiable in both, any number of times.

    Raises:
        TypeError: on other dtypes or types.
        ValueError: on other shapes or devices, or a crop that leaves the result.
    """
    check_map(x, "x")
    check_weight(x, weight)
    if type(stride) is not int or type(padding) is not int:
        raise TypeError(f"stride and padding must be integers, not {stride!r} and {padding!r}")
    top, left = as_pair(crop, "crop")
    in_size, kernel = as_pair(x.shape[-2:], "x"), weight.shape[-1]
    kept = deconv_size(in_size, stride, kernel, padding, (top, left), size)
    return _deconv(x, weight, stride, (padding + top, padding + left), kept, forced())
