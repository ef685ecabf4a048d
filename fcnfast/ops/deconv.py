"""Learnable upsampling: the depthwise transposed convolution of an FCN, with its crop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..geometry import Size, as_integer, as_pair, deconv_size
from ..tiled import deconv as tiled
from ..tiled._tiles import empty_map, memory_format
from ._checks import FLOATS, Integers, check_device, check_tensor
from ._registry import BACKEND, define, forced, uses_triton


def _implementation(backend: str | None, x: Tensor) -> Any:
    if uses_triton(backend, x):
        from ..kernels import deconv as triton

        return triton
    return tiled


def _forward(
    x: Tensor, weight: Tensor, stride: int, start: Integers, size: Integers, backend: str | None
) -> Tensor:
    (_, channels, h, w), kernel = x.shape, weight.shape[-1]
    if kernel < 1 or tuple(weight.shape) != (channels, 1, kernel, kernel):
        wanted = f"C x 1 x k x k with C = {channels}"
        raise ValueError(f"weight must be {wanted}, not of shape {tuple(weight.shape)}")
    if min(h, w) < 1:
        raise ValueError(f"x must have values to upsample, not {h} x {w}")
    return _implementation(backend, x).forward(x, weight, stride, start, size)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """For all three ops: each is linear in two tensors, and its gradients are the other two ops."""
    a, b, ctx.stride, ctx.start, *_, ctx.backend = inputs
    ctx.a_size, ctx.b_size, ctx.b_dtype = a.shape[-2:], b.shape[-2:], b.dtype
    for_a, for_b = ctx.needs_input_grad[:2]
    ctx.save_for_backward(a if for_b else None, b if for_a else None)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    place, kernel = (ctx.stride, ctx.start), ctx.b_size[0]
    if weight is not None:
        weight = _input_gradient(grad_output, weight, *place, ctx.a_size, ctx.backend)
    if x is not None:
        x = _weight_gradient(grad_output, x, *place, kernel, ctx.b_dtype, ctx.backend)
    return weight, x, None, None, None, None


def _input_forward(
    grad_output: Tensor,
    weight: Tensor,
    stride: int,
    start: Integers,
    in_size: Integers,
    backend: str | None,
) -> Tensor:
    run = _implementation(backend, grad_output).input_gradient
    result = run(grad_output, weight, stride, start, in_size)
    return result.contiguous(memory_format=memory_format(grad_output))


def _input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # <grad, input_gradient(grad_output, weight)> = <deconv(grad, weight), grad_output>
    grad_output, weight = ctx.saved_tensors
    place, kernel = (ctx.stride, ctx.start), ctx.b_size[0]
    if weight is not None:
        weight = _deconv(grad, weight, *place, ctx.a_size, ctx.backend)
    if grad_output is not None:
        grad_output = _weight_gradient(grad_output, grad, *place, kernel, ctx.b_dtype, ctx.backend)
    return weight, grad_output, None, None, None, None


def _weight_forward(
    grad_output: Tensor,
    x: Tensor,
    stride: int,
    start: Integers,
    kernel: int,
    dtype: torch.dtype,
    backend: str | None,
) -> Tensor:
    run = _implementation(backend, grad_output).weight_gradient
    return run(grad_output, x, stride, start, kernel, dtype).contiguous()


def _weight_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # <grad, weight_gradient(grad_output, x)> = <deconv(x, grad), grad_output>
    grad_output, x = ctx.saved_tensors
    place = (ctx.stride, ctx.start)
    if x is not None:
        x = _deconv(x, grad, *place, ctx.a_size, ctx.backend)
    if grad_output is not None:
        grad_output = _input_gradient(grad_output, grad, *place, ctx.b_size, ctx.backend)
    return x, grad_output, None, None, None, None, None


_deconv = define(
    f"deconv(Tensor x, Tensor weight, int stride, SymInt[] start, SymInt[] size, {BACKEND}) "
    "-> Tensor",
    _forward,
    lambda x, weight, stride, start, size, *_: empty_map(x, size),
    _setup,
    _backward,
)
_input_gradient = define(
    "deconv_input_gradient(Tensor grad_output, Tensor weight, int stride, SymInt[] start, "
    f"SymInt[] in_size, {BACKEND}) -> Tensor",
    _input_forward,
    lambda grad, weight, stride, start, size, *_: empty_map(grad, size),
    _setup,
    _input_backward,
)
_weight_gradient = define(
    "deconv_weight_gradient(Tensor grad_output, Tensor x, int stride, SymInt[] start, int kernel, "
    f"ScalarType dtype, {BACKEND}) -> Tensor",
    _weight_forward,
    lambda grad, x, stride, start, k, dtype, _: x.new_empty((x.shape[1], 1, k, k), dtype=dtype),
    _setup,
    _weight_backward,
)


def deconv(
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int = 0,
    crop: Size = (0, 0),
    size: Size | None = None,
) -> Tensor:
    """A depthwise transposed convolution and a crop of its result.

    ``F.conv_transpose2d(x, weight, stride=stride, padding=padding, groups=C)[..., crop]``; only the
    crop is computed. This is the learned upsampling of an FCN (section 3.3 of the paper), with one
    filter per class. For a fixed bilinear filter `upsample` computes the same.

    Args:
        x: N x C x h x w, float32, bfloat16, float16 or float64; any strides.
        weight: C x 1 x k x k of the dtype of `x`, or float32 with a half-precision `x`.
        stride: output pixels from one value of `x` to the next.
        padding: pixels removed from each side, as in ``conv_transpose2d``.
        crop: first (row, column) kept after the padding is removed.
        size: (H, W) kept; by default all that is left.

    Returns:
        N x C x H x W of the dtype of `x`. Differentiable in both, any number of times.

    Raises:
        TypeError: an argument has a type or dtype not listed above.
        ValueError: shapes or devices do not match, or the crop leaves the result.

    Example:
        >>> x, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        >>> fcnfast.deconv(x, weight, stride=2).shape
        torch.Size([1, 1, 4, 4])
    """
    check_tensor(x, "x")
    check_tensor(weight, "weight", FLOATS, "C x 1 x k x k")
    mixed = x.dtype in (torch.bfloat16, torch.float16) and weight.dtype == torch.float32
    if weight.dtype != x.dtype and not mixed:
        raise TypeError(f"x and weight must share a dtype, not {x.dtype} and {weight.dtype}")
    check_device(x, weight, "x", "weight")
    stride, padding = as_integer(stride, "stride"), as_integer(padding, "padding")
    top, left = as_pair(crop, "crop")
    in_size, kernel = as_pair(x.shape[-2:], "x"), as_integer(weight.shape[-1], "kernel")
    kept = deconv_size(in_size, stride, kernel, padding, (top, left), size)
    return _deconv(x, weight, stride, (padding + top, padding + left), kept, forced())
