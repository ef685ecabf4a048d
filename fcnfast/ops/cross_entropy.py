"""Upsampling fused with the softmax cross-entropy: full-resolution logits are never written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ..tiled._formats import empty_like, memory_format
from ._checks import (
    check_class_weights,
    check_classes,
    check_grid,
    check_ignore_index,
    check_labels,
    check_map,
    check_on_grid,
    check_reduction,
    check_smoothing,
    check_target,
    check_target_on_grid,
    looks_at_labels,
)
from ._dispatch import forced, launcher, uses_triton
from ._library import BACKEND, GRID, define, packed, unpacked
from ._vmap import one_by_one

Reduction = Literal["mean", "sum", "none", "batch"]


def _wide(scores: Tensor) -> torch.dtype:
    """The type of the loss, and of the arithmetic."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def _forward(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grid: Sequence[int],
    clamp: bool,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    with_gradient: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, what its gradient needs, too, and the gradient but for a factor."""
    check_map(scores, "scores")
    check_target(scores, target)
    check_reduction(reduction)
    check_smoothing(label_smoothing)
    sampled, classes = unpacked(grid, clamp), scores.shape[1]
    check_on_grid(scores, sampled, "scores")
    check_target_on_grid(scores, target, sampled)
    check_classes(classes, target.dtype, "target")
    if weight is not None:
        check_class_weights(scores, weight)
        if weight.dtype != _wide(scores) or tuple(weight.shape) != (classes,):
            raise ValueError(
                f"weight must hold {classes} class weights in {_wide(scores)}, not "
                f"{tuple(weight.shape)} in {weight.dtype}"
            )
    if looks_at_labels(target):
        check_labels(target, classes, ignore_index)
    run = launcher("cross_entropy", "forward", backend, scores)
    settings = (sampled, ignore_index, reduction, label_smoothing, with_gradient)
    loss, kept, gradient = run(scores, target, weight, *settings)
    if gradient is kept:  # what is not made may be one tensor, but an op's results are not
        gradient = torch.empty_like(kept)
    return loss, kept, gradient


def _forward_fake(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grid: Sequence[int],
    clamp: bool,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    with_gradient: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(scores)
    if reduction == "none":
        loss = scores.new_empty(target.shape, dtype=wide)
        kept, gradient = (scores.new_empty(0, dtype=wide) for _ in range(2))
        return loss, kept, gradient
    loss, kept = (scores.new_empty((), dtype=wide) for _ in range(2))
    if not with_gradient:
        gradient = scores.new_empty(0, dtype=wide)
    elif uses_triton("cross_entropy", "forward", backend, scores.device):
        images, channels, height, width = scores.shape  # a row of all maps at a time
        rows = scores.new_empty((height, images, channels, width), dtype=wide)
        gradient = rows.permute(1, 2, 0, 3)
    else:
        gradient = scores.new_empty(scores.shape, dtype=wide)
    return loss, kept, gradient


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    scores, target, weight, *ctx.settings, reduction, smoothing, _, ctx.backend = inputs
    ctx.settings.append(smoothing)
    _, kept, gradient = output
    ctx.mark_non_differentiable(kept, gradient)
    ctx.set_materialize_grads(False)
    ctx.by_pixel = reduction == "none"
    if ctx.by_pixel:
        ctx.save_for_backward(scores, target, weight, kept)
    else:
        ctx.save_for_backward(scores, gradient, kept)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    others = (None,) * 9
    if grad is None:
        return None, *others
    # What was saved may be unpacked once only: activation checkpointing insists.
    saved = ctx.saved_tensors
    if ctx.by_pixel:
        return _by_pixel(grad, *saved, *ctx.settings, ctx.backend), *others
    return _scaled(grad, *saved, ctx.backend), *others


def _scale(
    grad: Tensor, scores: Tensor, gradient: Tensor, factor: Tensor, backend: str | None = None
) -> Tensor:
    if gradient.shape != scores.shape:
        raise ValueError(
            "upsample_cross_entropy was called with with_gradient=False, but its gradient is wanted"
        )
    run = launcher("cross_entropy", "scaled", backend, grad)
    result = run(gradient, factor, grad, scores.dtype)
    return result.contiguous(memory_format=memory_format(scores))


def _scale_fake(
    grad: Tensor, scores: Tensor, gradient: Tensor, factor: Tensor, backend: str | None = None
) -> Tensor:
    return empty_like(scores, scores.shape)


def _gradient(
    grad: Tensor,
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    kept: Tensor,
    grid: Sequence[int],
    clamp: bool,
    ignore_index: int,
    label_smoothing: float,
    backend: str | None = None,
) -> Tensor:
    sampled = unpacked(grid, clamp)
    check_on_grid(scores, sampled, "scores")
    check_target_on_grid(scores, target, sampled)
    check_target_on_grid(scores, grad, sampled)
    run = launcher("cross_entropy", "per_pixel_gradient", backend, scores)
    result = run(scores, target, weight, sampled, ignore_index, label_smoothing, kept, grad)
    return result.contiguous(memory_format=memory_format(scores))


def _gradient_fake(
    grad: Tensor,
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    kept: Tensor,
    grid: Sequence[int],
    clamp: bool,
    ignore_index: int,
    label_smoothing: float,
    backend: str | None = None,
) -> Tensor:
    return empty_like(scores, scores.shape)


def _once(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Nothing to keep: there is no second derivative."""


def _refuse(*_: Any) -> None:
    raise RuntimeError("upsample_cross_entropy is differentiable once: it has no second derivative")


_cross_entropy = define(
    "upsample_cross_entropy(Tensor scores, Tensor target, Tensor? weight, "
    f"{GRID}, int ignore_index, str reduction, float label_smoothing, bool with_gradient, "
    f"{BACKEND}) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
    vmap=one_by_one,
)
# The gradients take the scores, so that a second derivative is refused, not missed.
_scaled = define(
    "upsample_cross_entropy_scaled(Tensor grad, Tensor scores, Tensor gradient, Tensor factor, "
    f"{BACKEND}) -> Tensor",
    _scale,
    _scale_fake,
    setup=_once,
    backward=_refuse,
    vmap=one_by_one,
)
_by_pixel = define(
    "upsample_cross_entropy_by_pixel(Tensor grad, Tensor scores, Tensor target, Tensor? weight, "
    f"Tensor kept, {GRID}, int ignore_index, float label_smoothing, {BACKEND}) -> Tensor",
    _gradient,
    _gradient_fake,
    setup=_once,
    backward=_refuse,
    vmap=one_by_one,
)


def upsample_cross_entropy(
    scores: Tensor,
    target: Tensor,
    grid: SamplingGrid,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """What ``F.cross_entropy(upsample(scores, grid), target, ...)`` gives, without the logits.

    Args:
        scores: N x C x h x w coarse scores, float32, bfloat16, float16 or float64.
        target: N x H x W labels, uint8, int16, int32 or int64.
        grid: from h x w to H x W.
        weight: C class weights of any floating dtype.
        ignore_index: the label of pixels that do not count.
        reduction: "mean" over the (weighted) pixels that count, "sum", "none" (N x H x W), or
            "batch": the sum divided by N, the unnormalized loss of the reference implementation.
        label_smoothing: in [0, 1].

    Returns:
        float32, or float64 for float64 scores. The gradient with respect to the scores is made in
        the forward pass ("none": in the backward pass) and has no gradient itself. When nothing
        counts (every pixel is ignored, or its class has weight 0) the mean is NaN, as torch's, and
        the gradient exactly zero; "batch" of no images is NaN, too.

    Raises:
        TypeError: on other dtypes or types, or an ignore_index that is no integer.
        ValueError: on other shapes or devices, or a label out of range that is not ignored. On a
            GPU such a label makes the loss and the gradient NaN, unless FCNFAST_CHECK=1 is set.
    """
    check_map(scores, "scores")
    check_grid(grid)
    check_target(scores, target)
    check_ignore_index(ignore_index)
    check_reduction(reduction)
    check_smoothing(label_smoothing)
    if weight is not None:
        check_class_weights(scores, weight)
        weight = weight.to(_wide(scores))
    settings = (ignore_index, reduction, float(label_smoothing))
    with_gradient = scores.requires_grad and torch.is_grad_enabled()
    return _cross_entropy(
        scores, target, weight, *packed(grid), *settings, with_gradient, forced()
    )[0]
