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
from ._tiles import Strip, Tiling, coarse, is_finite

Reduction = Literal["mean", "sum", "none", "batch"]
REDUCTIONS = ("mean", "sum", "none", "batch")


@dataclass(frozen=True)
class _Loss:
    """One call's settings, and the arithmetic of a tile.

    With k_c = smoothing * w_c / C, the loss of a valid pixel of class t is
    ``(1 - smoothing) w_t (lse - x_t) + sum_c k_c (lse - x_c)``, as ``F.cross_entropy`` has it.
    """

    grid: SamplingGrid
    weight: Tensor | None
    ignore_index: int
    reduction: str
    label_smoothing: float

    def smooth(self, z: Tensor) -> Tensor | None:
        """C x 1 x 1: the k_c above, or None without smoothing."""
        if self.label_smoothing == 0.0:
            return None
        share = self.label_smoothing / z.shape[0]
        weight = z.new_ones(z.shape[0]) if self.weight is None else self.weight
        return (share * weight)[:, None, None]

    def tile(self, z: Tensor, target: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of a tile's pixels, their weights, and the gradient (written over `z`).

        z: C x rows x columns logits. target: rows x columns labels.
        """
        target = target.long()  # a uint8 label must not be compared with, say, -100 as uint8
        ignored = target == self.ignore_index
        in_range = (target >= 0) & (target < z.shape[0])
        index = torch.where(in_range & ~ignored, target, 0)
        one, zero = z.new_ones(()), z.new_zeros(())
        own_weight = one if self.weight is None else self.weight[index]
        # An out-of-range label makes NaN of its pixel (on a CPU it has been refused before).
        own_weight = torch.where(in_range | ignored, own_weight, float("nan"))
        weight = torch.where(ignored, zero, own_weight)
        hard = weight * (1 - self.label_smoothing)

        z.sub_(z.amax(0))
        own = z.gather(0, index[None])[0]
        smooth = self.smooth(z)
        flat = zero if smooth is None else (smooth * z).sum(0)
        p = z.exp_()
        total = p.sum(0)
        lse = total.log()
        loss = hard * (lse - own)
        scale = hard
        if smooth is not None:
            soft = torch.where(ignored, zero, smooth.sum())
            loss = loss + soft * lse - flat
            scale = scale + soft
        loss = torch.where(ignored, zero, loss)
        if with_gradient:
            p.mul_(torch.where(ignored, zero, scale / total))
            p.scatter_add_(0, index[None], -hard[None])
            if smooth is not None:
                p.sub_(torch.where(ignored, zero, smooth))
        return loss, weight, p


def _pixels(target: Tensor, row: Strip, column: Strip) -> Tensor:
    return target[row.first : row.last, column.first : column.last]


def _tiling(x: Tensor, grid: SamplingGrid) -> Tiling:
    return Tiling(grid, x.shape[1], x.dtype, x.device, is_finite(x))


def _forward(
    x: Tensor, target: Tensor, loss: _Loss, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss (per pixel for "none", else summed), summed pixel weight, unscaled gradient.

    Each pixel of "none" receives a gradient of its own: there is none before the backward pass.
    """
    per_pixel = loss.reduction == "none"
    # Sums over millions of pixels are kept in float64 where the device has it.
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    result = x.new_empty(target.shape) if per_pixel else x.new_zeros((), dtype=exact)
    total = x.new_zeros((), dtype=exact)
    gradient = torch.zeros_like(x) if with_gradient else None
    tiling = _tiling(x, loss.grid)
    for n in range(x.shape[0]):
        for row in tiling.rows:
            low = tiling.lower(x[n], row)
            grad_low = None if gradient is None else torch.zeros_like(low)
            for column in tiling.columns:
                z = tiling.widen(low, column)
                pixels, weight, p = loss.tile(z, _pixels(target[n], row, column), with_gradient)
                if per_pixel:
                    _pixels(result[n], row, column).copy_(pixels)
                else:
                    result = result + pixels.sum(dtype=exact)
                    total = total + weight.sum(dtype=exact)
                if grad_low is not None:
                    tiling.add_narrowed(grad_low, p, column)
            if gradient is not None and grad_low is not None:
                tiling.add_raised(gradient[n], grad_low, row)
    return result, total, gradient


def _backward_per_pixel(x: Tensor, target: Tensor, loss: _Loss, grad: Tensor) -> Tensor:
    """The gradient under reduction "none": each pixel's own, times the gradient it received."""
    gradient = torch.zeros_like(x)
    tiling = _tiling(x, loss.grid)
    for n in range(x.shape[0]):
        for row in tiling.rows:
            low = tiling.lower(x[n], row)
            grad_low = torch.zeros_like(low)
            for column in tiling.columns:
                z = tiling.widen(low, column)
                _, _, p = loss.tile(z, _pixels(target[n], row, column), True)
                tiling.add_narrowed(grad_low, p.mul_(_pixels(grad[n], row, column)), column)
            tiling.add_raised(gradient[n], grad_low, row)
    return gradient


class _UpsampleCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, target: Tensor, loss: _Loss, with_gradient: bool
    ) -> Tensor:
        ctx.loss = loss
        with torch.autocast(scores.device.type, enabled=False):
            x = coarse(scores)
            with_gradient = with_gradient and loss.reduction != "none"
            result, total, gradient = _forward(x, target, loss, with_gradient)
            if loss.reduction == "none":
                ctx.save_for_backward(scores, target)
                return result
            scale = result.new_ones(())
            if loss.reduction == "mean":
                # All pixels ignored: the loss is NaN, as torch's, and the gradient exactly zero.
                scale = torch.where(total == 0, 0.0, 1 / total)
                result = result / total
            elif loss.reduction == "batch":
                scale = scale / max(1, x.shape[0])
                result = result / x.shape[0]
            if gradient is not None:
                ctx.save_for_backward(scores, gradient, scale.to(x.dtype))
            return result.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # What was saved may be unpacked once only: activation checkpointing insists.
        return _Gradient.apply(grad, ctx.loss, *ctx.saved_tensors), None, None, None


class _Gradient(torch.autograd.Function):
    """The gradient, tied to the scores so that a second derivative is refused, not missed."""

    @staticmethod
    def forward(_: Any, grad: Tensor, loss: _Loss, scores: Tensor, *saved: Tensor) -> Tensor:
        with torch.autocast(grad.device.type, enabled=False):
            if loss.reduction == "none":
                gradient = _backward_per_pixel(coarse(scores), saved[0], loss, grad)
            else:
                unscaled, scale = saved
                gradient = unscaled * (grad * scale)
        return gradient.to(scores.dtype)

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
    loss = _Loss(grid, weight, ignore_index, reduction, float(label_smoothing))
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
