"""Upsampling fused with the softmax cross-entropy: full-resolution logits are never written."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ..tiled import cross_entropy as tiled
from ..tiled._tiles import compute_dtype, empty_map, is_channels_last, memory_format
from . import _checks
from ._checks import Integers, Scale
from ._registry import BACKEND, GRID, define, forced, uses_triton

Reduction = Literal["mean", "sum", "none", "batch"]


def _implementation(backend: str | None, scores: Tensor, grid: SamplingGrid | None) -> Any:
    if uses_triton(backend, scores, grid):
        from ..kernels import cross_entropy as triton

        return triton
    return tiled


def _forward(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grid: Integers,
    clamp: bool,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    with_gradient: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (loss, scale, unscaled gradient of the scores)."""
    sampled, classes = _checks.checked_grid_for_target(scores, target, grid, clamp), scores.shape[1]
    _checks.check_classes(classes, target.dtype, "target")
    if weight is not None and len(weight) != classes:
        raise ValueError(f"weight must hold {classes} class weights, not {len(weight)}")
    _checks.check_labels(target, classes, ignore_index)
    run = _implementation(backend, scores, sampled).forward
    loss, scale, gradient = run(
        scores, target, weight, sampled, ignore_index, reduction, label_smoothing, with_gradient
    )
    if gradient is scale:  # one empty tensor, but an op's results must not alias
        gradient = torch.empty_like(scale)
    return loss, scale, gradient


def _fake(scores: Tensor, target: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, reduction, _, with_gradient, backend = settings
    per_pixel = reduction == "none"

    def empty(*shape: int) -> Tensor:
        return scores.new_empty(shape, dtype=compute_dtype(scores))

    loss, scale = (empty(*target.shape), empty(0)) if per_pixel else (empty(), empty())
    if per_pixel or not with_gradient:
        return loss, scale, empty(0)
    if uses_triton(backend, scores):  # its kernels write one row of all maps at a time
        images, channels, height, width = scores.shape
        return loss, scale, empty(height, images, channels, width).permute(1, 2, 0, 3)
    return loss, scale, empty(*scores.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    scores, target, weight, *grid, ignore_index, reduction, smoothing, _, ctx.backend = inputs
    _, scale, gradient = output
    ctx.mark_non_differentiable(scale, gradient)
    ctx.set_materialize_grads(False)
    ctx.settings = None
    if reduction == "none":
        ctx.settings = (*grid, ignore_index, smoothing)
        ctx.save_for_backward(scores, target, weight)
    else:
        ctx.save_for_backward(scores, gradient, scale)


def _backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    others = (None,) * 9
    if grad_output is None:
        return None, *others
    # Activation checkpointing allows saved tensors to be unpacked only once.
    saved = ctx.saved_tensors
    if ctx.settings is None:
        return _cross_entropy_backward(grad_output, *saved, ctx.backend), *others
    return _pixel_backward(grad_output, *saved, *ctx.settings, ctx.backend), *others


def _of_entry(scores: Tensor, *args: Any) -> Any:
    """The loss of one batch entry under vmap, whose scores tell whether it needs a gradient."""
    *settings, with_gradient, backend = args
    return _cross_entropy(scores, *settings, with_gradient or scores.requires_grad, backend)


def _scaled(
    grad_output: Tensor, scores: Tensor, gradient: Tensor, scale: Tensor, backend: str | None
) -> Tensor:
    if gradient.shape != scores.shape:
        raise ValueError(
            "upsample_cross_entropy was called with with_gradient=False: it has no gradient"
        )
    # Float64 scores have a float64 gradient: both select the same implementation.
    run = _implementation(backend, gradient, None).scaled
    return run(gradient, scale, grad_output, scores.dtype, is_channels_last(scores))


def _pixel_gradient(
    grad_output: Tensor,
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grid: Integers,
    clamp: bool,
    ignore_index: int,
    label_smoothing: float,
    backend: str | None,
) -> Tensor:
    sampled = _checks.unpacked(tuple(grid), clamp)
    call = (scores, target, weight, sampled, ignore_index, label_smoothing)
    if uses_triton(backend, scores, sampled):
        from ..kernels import cross_entropy as triton

        nothing = scores.new_empty(0, dtype=torch.float32)
        result = triton.per_pixel_gradient(*call, nothing, grad_output)
    else:
        result = tiled.per_pixel_gradient(*call, grad_output)
    return result.contiguous(memory_format=memory_format(scores))


def _setup_once(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Nothing is saved: there is no second derivative."""


def _refuse(*_: Any) -> None:
    raise RuntimeError("upsample_cross_entropy is differentiable once: it has no second derivative")


_cross_entropy = define(
    "upsample_cross_entropy(Tensor scores, Tensor target, Tensor? weight, "
    f"{GRID}, int ignore_index, str reduction, float label_smoothing, bool with_gradient, "
    f"{BACKEND}) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    _setup,
    _backward,
    _of_entry,
)
# The gradient ops take the scores, so that a second derivative raises instead of vanishing.
_cross_entropy_backward = define(
    "upsample_cross_entropy_backward(Tensor grad_output, Tensor scores, Tensor gradient, "
    f"Tensor scale, {BACKEND}) -> Tensor",
    _scaled,
    lambda grad_output, scores, *_: empty_map(scores, scores.shape[2:]),
    _setup_once,
    _refuse,
)
_pixel_backward = define(
    "upsample_cross_entropy_pixel_backward(Tensor grad_output, Tensor scores, Tensor target, "
    f"Tensor? weight, {GRID}, int ignore_index, float label_smoothing, {BACKEND}) -> Tensor",
    _pixel_gradient,
    lambda grad_output, scores, *_: empty_map(scores, scores.shape[2:]),
    _setup_once,
    _refuse,
)


def upsample_cross_entropy(
    scores: Tensor,
    target: Tensor,
    grid: SamplingGrid | None = None,
    *,
    scale_factor: Scale | None = None,
    align_corners: bool | None = None,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The cross-entropy of upsampled scores, without full-resolution logits.

    ``F.cross_entropy(F.interpolate(scores, target.shape[-2:], mode="bilinear"), target, ...)``, or
    at any `SamplingGrid`.

    Args:
        scores: N x C x h x w coarse scores, float32, bfloat16, float16 or float64; any strides.
        target: N x H x W labels, uint8, int16, int32 or int64.
        grid: from h x w to H x W; by default the scores are resized to the target's size.
        scale_factor, align_corners: instead of a grid, as in ``F.interpolate``.
        weight: C class weights of any floating-point dtype.
        ignore_index: the label of pixels to ignore; the default is not torch's -100.
        reduction: "mean" (weighted, over the pixels that count), "sum", "none" (N x H x W), or
            "batch": the sum divided by N, the unnormalized loss of the reference implementation.
        label_smoothing: in [0, 1].

    Returns:
        float32, or float64 for float64 scores. The gradient of the scores is computed in the
        forward pass ("none": in the backward pass) and is not itself differentiable. If no pixel
        counts (all are ignored or have a class of weight 0), the mean is NaN, as in torch, and the
        gradient is exactly zero. "batch" of an empty batch is NaN.

    Raises:
        TypeError: an argument has a type or dtype not listed above.
        ValueError: shapes or devices do not match, or a label is out of range and not ignored. On
            a GPU such a label makes the loss and the gradient NaN unless FCNFAST_CHECK=1 is set.

    Example:
        >>> scores = torch.zeros(1, 4, 3, 3)
        >>> target = torch.zeros(1, 6, 6, dtype=torch.uint8)
        >>> fcnfast.upsample_cross_entropy(scores, target)  # log 4
        tensor(1.3863)
    """
    grid = _checks.grid_for_target(scores, target, grid, scale_factor, align_corners)
    ignore_index = _checks.check_ignore_index(ignore_index)
    _checks.check_loss(reduction, label_smoothing)
    if weight is not None:
        _checks.check_tensor(weight, "weight", _checks.FLOATS, "C class weights")
        _checks.check_device(scores, weight, "scores", "weight")
        if weight.requires_grad:
            raise ValueError("weight must not require a gradient: the loss has none for it")
        weight = weight.to(compute_dtype(scores))
    settings = (ignore_index, reduction, float(label_smoothing))
    with_gradient = scores.requires_grad and torch.is_grad_enabled()
    return _cross_entropy(
        scores, target, weight, *_checks.packed(grid), *settings, with_gradient, forced()
    )[0]
