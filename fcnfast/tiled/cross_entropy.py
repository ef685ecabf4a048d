"""upsample_cross_entropy in plain torch, in tiles: full-resolution logits are never written."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._tiles import Strip, Tiling, coarse, is_finite


@dataclass(frozen=True)
class _Loss:
    """One call's settings, and the arithmetic of a tile.

    With k_c = smoothing * w_c / C, the loss of a valid pixel of class t is
    ``(1 - smoothing) w_t (lse - x_t) + sum_c k_c (lse - x_c)``, as ``F.cross_entropy`` has it.
    """

    weight: Tensor | None
    ignore_index: int
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


def _run(
    x: Tensor,
    target: Tensor,
    grid: SamplingGrid,
    loss: _Loss,
    grad: Tensor | None,
    with_gradient: bool,
    pixels: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Summed loss, summed pixel weight, and the gradient with respect to `x`.

    grad: the gradient of each pixel's loss (ones when None). pixels: takes each pixel's loss.
    """
    # Sums over millions of pixels are kept in float64 where the device has it.
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    result = total = x.new_zeros((), dtype=exact)
    gradient = torch.zeros_like(x) if with_gradient else None
    tiling = _tiling(x, grid)
    for n in range(x.shape[0]):
        for row in tiling.rows:
            low = tiling.lower(x[n], row)
            grad_low = torch.zeros_like(low) if with_gradient else None
            for column in tiling.columns:
                z = tiling.widen(low, column)
                here, weight, p = loss.tile(z, _pixels(target[n], row, column), with_gradient)
                if pixels is not None:
                    _pixels(pixels[n], row, column).copy_(here)
                elif grad is None:
                    result = result + here.sum(dtype=exact)
                    total = total + weight.sum(dtype=exact)
                if grad_low is not None:
                    if grad is not None:
                        p.mul_(_pixels(grad[n], row, column))
                    tiling.add_narrowed(grad_low, p, column)
            if gradient is not None and grad_low is not None:
                tiling.add_raised(gradient[n], grad_low, row)
    return result, total, gradient


def forward(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grid: SamplingGrid,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and what its gradient needs.

    Args:
        scores: N x C x h x w, of the grid's in_size (nothing is checked here).
        target: N x H x W labels of any integer type.
        weight: C class weights in the type of the arithmetic.
        grid: from h x w to H x W.
        ignore_index: the label that does not count.
        reduction: "mean", "sum", "batch" or "none".
        label_smoothing: in [0, 1].
        with_gradient: whether to make the gradient, too ("none" makes it later).

    Returns:
        The loss, N x H x W for "none", else a scalar; what its gradient needs, too: a factor, or
        for "none" what is to be kept of each pixel (here nothing: it is made again); the gradient
        without the factor, N x C x h x w in the type of the arithmetic. An empty tensor for what
        is not made.
    """
    loss = _Loss(weight, ignore_index, label_smoothing)
    with torch.autocast(scores.device.type, enabled=False):
        x = coarse(scores)
        nothing = x.new_empty(0)
        if reduction == "none":
            pixels = x.new_empty(target.shape)
            _run(x, target, grid, loss, None, False, pixels)
            return pixels, nothing, nothing
        result, total, gradient = _run(x, target, grid, loss, None, with_gradient, None)
        scale = result.new_ones(())
        if reduction == "mean":
            # All pixels ignored: the loss is NaN, as torch's, and the gradient exactly zero.
            scale = torch.where(total == 0, 0.0, 1 / total)
            result = result / total
        elif reduction == "batch":
            scale = scale / max(1, x.shape[0])
            result = result / x.shape[0]
        result, scale = result.to(x.dtype), scale.to(x.dtype)
        return result, scale, nothing if gradient is None else gradient


def scaled(gradient: Tensor, scale: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the scores, in their `dtype`, for the gradient `grad` of a scalar loss."""
    return (gradient * (grad * scale)).to(dtype)


def per_pixel_gradient(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grid: SamplingGrid,
    ignore_index: int,
    label_smoothing: float,
    kept: Tensor,
    grad: Tensor,
) -> Tensor:
    """The gradient of the scores under reduction "none", for `grad` (N x H x W).

    kept: what `forward` returned second.
    """
    loss = _Loss(weight, ignore_index, label_smoothing)
    with torch.autocast(scores.device.type, enabled=False):
        _, _, gradient = _run(coarse(scores), target, grid, loss, grad, True, None)
    assert gradient is not None
    return gradient.to(scores.dtype)
