"""upsample_cross_entropy in plain torch, in tiles: full-resolution logits are never written."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._cells import Cells, Tiling
from ._tiles import coarse, is_finite


class _Run:
    """One pass over all tiles that sums `loss`, pixel `weight`, and the scores' `gradient`.

    With p the log-softmax of the logits and k_c = smoothing * w_c / C, the loss of a valid pixel of
    class t is ``-(1 - smoothing) w_t p_t - sum_c k_c p_c``, as in ``F.cross_entropy``.

    class_weight: the w_c. grad: N x H x W, the gradient of each pixel's loss (ones when None).
    """

    def __init__(
        self,
        scores: Tensor,
        class_weight: Tensor | None,
        grid: SamplingGrid,
        ignore_index: int,
        label_smoothing: float,
        grad: Tensor | None = None,
        with_gradient: bool = True,
    ) -> None:
        self.x = x = coarse(scores)
        classes = x.shape[1]
        self.class_weight, self.ignore_index, self.grad = class_weight, ignore_index, grad
        self.own, self.smooth = label_smoothing - 1, None  # C x 1: the k_c above
        if label_smoothing:
            weight = x.new_ones(classes) if class_weight is None else class_weight
            self.smooth = (label_smoothing / classes * weight)[:, None]
        self.tiling = Tiling(grid, classes, x.dtype, x.device, is_finite(x))
        # Sums over millions of pixels are kept in float64 if the device supports it.
        exact = torch.float32 if x.device.type == "mps" else torch.float64
        self.loss = self.weight = x.new_zeros((), dtype=exact)
        self.gradient = torch.zeros_like(x) if with_gradient else None
        self.buffers = [x.new_empty(self.tiling.elements) for _ in range(3)]

    def __call__(self, target: Tensor, losses: Tensor | None = None) -> None:
        tiling = self.tiling
        for n in range(len(self.x)):
            framed = tiling.frame(self.x[n])
            grad_framed = torch.zeros_like(framed)
            for row in tiling.rows:
                low = tiling.lower(framed[row.low : row.high], row)
                grad_low = torch.zeros_like(low)
                found = low.new_empty(len(low), tiling.places)
                for cells in tiling.groups:
                    grad = None if self.grad is None else self.grad[n, row.first : row.last]
                    labels = target[n, row.first : row.last]
                    found[:, cells.places] = self._tile(low, grad_low, labels, grad, cells)
                if losses is None:
                    self.loss = self.loss + found.sum(dtype=self.loss.dtype)
                else:
                    place = tiling.place.expand(len(low), -1)
                    losses[n, row.first : row.last] = found.gather(1, place)
                if self.gradient is not None:
                    tiling.add_raised(grad_framed[row.low : row.high], grad_low, row)
            if self.gradient is not None:
                tiling.add_unframed(self.gradient[n], grad_framed)

    def _tile(
        self, low: Tensor, grad_low: Tensor, target: Tensor, grad: Tensor | None, cells: Cells
    ) -> Tensor:
        """The losses of a tile's places; adds to `weight` and to the gradient of `low`.

        low, grad_low: rows x C x columns. target, grad: rows x W. Computed: rows x places, rows x C
        x places.
        """
        z = self.tiling.widen(low[..., cells.span], cells, self.buffers[0])
        p, spare = (b[: z.numel()].view_as(z) for b in self.buffers[1:])
        torch.log_softmax(z, 1, out=p)
        pixel = cells.pixel.expand(len(low), -1)
        labels = target.gather(1, pixel).long()  # in uint8 an ignore_index of -100 would wrap
        valid = (labels != self.ignore_index).logical_and_(cells.real)
        classes = labels.clamp(0, z.shape[1] - 1)
        weight = valid.to(z.dtype)
        if self.class_weight is not None:
            weight *= self.class_weight[classes]
        # An out-of-range label makes its pixel NaN (on a CPU it was rejected earlier).
        weight.masked_fill_(valid & (classes != labels), float("nan"))
        self.weight = self.weight + weight.sum(dtype=self.weight.dtype)
        losses = p.gather(1, classes[:, None])[:, 0].mul_(weight).mul_(self.own)
        if self.smooth is not None:
            losses -= torch.mul(p, self.smooth, out=spare).sum(1)
        losses.masked_fill_(~valid, 0.0)
        if self.gradient is None:
            return losses
        own, scale = weight * self.own, valid.to(z.dtype)
        if grad is not None:
            grad = grad.gather(1, pixel)
            own, scale = own.mul_(grad), scale.mul_(grad)
        if self.smooth is None:
            spare.zero_()
        else:
            torch.mul(-self.smooth, scale[:, None], out=spare)
        spare.scatter_add_(1, classes[:, None], own[:, None])
        tile = torch.ops.aten._log_softmax_backward_data.out(spare, p, 1, p.dtype, out=z)
        self.tiling.add_narrowed(grad_low[..., cells.span], tile, cells)
        return losses


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
    """Returns (loss, scale, unscaled gradient), in the compute dtype; empty if not computed.

    The loss is N x H x W for "none", whose gradient comes later, else a scalar.
    """
    settings = (weight, grid, ignore_index, label_smoothing)
    with torch.autocast(scores.device.type, enabled=False):
        run = _Run(scores, *settings, with_gradient=with_gradient and reduction != "none")
        x, nothing = run.x, run.x.new_empty(0)
        if reduction == "none":
            losses = x.new_empty(target.shape)
            run(target, losses)
            return losses, nothing, nothing
        run(target)
        result, scale = run.loss, run.loss.new_ones(())
        if reduction == "mean":
            # If no pixel counts, the loss is NaN, as in torch, and the gradient exactly zero.
            scale = torch.where(run.weight == 0, 0.0, 1 / run.weight)
            result = torch.where(run.weight == 0, torch.nan, result / run.weight)
        elif reduction == "batch":
            scale, result = scale / len(x), result / len(x)
        gradient = nothing if run.gradient is None else run.gradient
        return result.to(x.dtype), scale.to(x.dtype), gradient


def scaled(
    gradient: Tensor,
    scale: Tensor,
    grad_output: Tensor,
    dtype: torch.dtype,
    channels_last: bool = False,
) -> Tensor:
    """The gradient of the scores, in their dtype and format, for `grad_output` of a scalar loss."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    return (gradient * (grad_output * scale)).to(dtype).contiguous(memory_format=form)


def per_pixel_gradient(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grid: SamplingGrid,
    ignore_index: int,
    label_smoothing: float,
    grad: Tensor,
) -> Tensor:
    """The scores' gradient for `grad` (N x H x W) of "none"."""
    with torch.autocast(scores.device.type, enabled=False):
        run = _Run(scores, weight, grid, ignore_index, label_smoothing, grad)
        run(target)
    assert run.gradient is not None
    return run.gradient.to(scores.dtype)
