"""Upsampling fused with the softmax cross-entropy: full-resolution logits are never written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._checks import (
    check_classes,
    check_grid,
    check_ignore_index,
    check_labels,
    check_map,
    check_target,
)
from ._dispatch import implementation

Reduction = Literal["mean", "sum", "none", "batch"]
REDUCTIONS = ("mean", "sum", "none", "batch")


@dataclass(frozen=True)
class _Loss:
    """One call's settings."""

    grid: SamplingGrid
    weight: Tensor | None
    ignore_index: int
    reduction: str
    label_smoothing: float
    triton: bool


class _UpsampleCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, target: Tensor, loss: _Loss, with_gradient: bool
    ) -> Tensor:
        ctx.loss = loss
        result, kept, gradient = implementation("cross_entropy", loss.triton).forward(
            scores,
            target,
            loss.weight,
            loss.grid,
            loss.ignore_index,
            loss.reduction,
            loss.label_smoothing,
            with_gradient,
        )
        if loss.reduction == "none":
            ctx.save_for_backward(scores, target, kept)
        else:
            ctx.save_for_backward(scores, gradient, kept)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # What was saved may be unpacked once only: activation checkpointing insists.
        return _Gradient.apply(grad, ctx.loss, *ctx.saved_tensors), None, None, None


class _Gradient(torch.autograd.Function):
    """The gradient, tied to the scores so that a second derivative is refused, not missed."""

    @staticmethod
    def forward(_: Any, grad: Tensor, loss: _Loss, scores: Tensor, *saved: Tensor) -> Tensor:
        run = implementation("cross_entropy", loss.triton)
        if loss.reduction != "none":
            return run.scaled(*saved, grad, scores.dtype)
        settings = (loss.weight, loss.grid, loss.ignore_index, loss.label_smoothing)
        target, kept = saved
        return run.per_pixel_gradient(scores, target, *settings, kept, grad)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "upsample_cross_entropy is differentiable once: it has no second derivative"
        )


def _checks_labels(target: Tensor) -> bool:
    """Looking at a GPU's labels waits for it: only on request, and never in a graph capture."""
    if target.device.type == "cpu":
        return True
    if os.environ.get("FCNFAST_CHECK") != "1":
        return False
    return not (target.device.type == "cuda" and torch.cuda.is_current_stream_capturing())


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
            "batch": the sum divided by N, the unnormalised loss of the reference implementation.
        label_smoothing: in [0, 1].

    Returns:
        float32, or float64 for float64 scores. The gradient with respect to the scores is made in
        the forward pass ("none": in the backward pass) and has no gradient itself. When nothing
        counts (every pixel is ignored, or its class has weight 0) the mean is NaN, as torch's, and
        the gradient exactly zero.

    Raises:
        TypeError: on other dtypes or types, or an ignore_index that is no integer.
        ValueError: on other shapes or devices, or a label out of range that is not ignored. On a
            GPU such a label makes the loss and the gradient NaN, unless FCNFAST_CHECK=1 is set.
    """
    check_map(scores, "scores")
    check_grid(scores, grid, "scores")
    check_target(scores, target, grid)
    classes = scores.shape[1]
    check_classes(classes, target.dtype, "target")
    check_ignore_index(ignore_index)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, not {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1], not {label_smoothing}")
    if weight is not None:
        weight = _checked_weight(weight, scores)
    if _checks_labels(target):
        check_labels(target, classes, ignore_index)
    loss = _Loss(grid, weight, ignore_index, reduction, float(label_smoothing), False)
    with_gradient = scores.requires_grad and torch.is_grad_enabled()
    return _UpsampleCrossEntropy.apply(scores, target, loss, with_gradient)


def _checked_weight(weight: Tensor, scores: Tensor) -> Tensor:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError("weight must be a floating tensor of one weight a class")
    if tuple(weight.shape) != (scores.shape[1],):
        raise ValueError(
            f"weight must hold {scores.shape[1]} class weights, not shape {tuple(weight.shape)}"
        )
    if weight.device != scores.device:
        raise ValueError(f"scores are on {scores.device} but weight is on {weight.device}")
    if weight.requires_grad:
        raise ValueError("weight must not require a gradient: the loss has none for it")
    return weight.to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
