"""upsample_cross_entropy in plain torch, in tiles: full-resolution logits are never written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._cells import Cells, Tiling
from ._tiles import coarse, is_finite


class _Pixels(NamedTuple):
    """Labels of a tile, rows x places each: int64 classes (arbitrary where the pixel is ignored),
    whether the pixel counts, and its weight (0 if it does not).
    """

    classes: Tensor
    valid: Tensor
    weight: Tensor


@dataclass(frozen=True)
class _Loss:
    """One call's settings, and the arithmetic of a tile.

    With p the log-softmax of the logits and k_c = smoothing * w_c / C, the loss of a valid pixel of
    class t is ``-(1 - smoothing) w_t p_t - sum_c k_c p_c``, as in ``F.cross_entropy``.
    """

    weight: Tensor | None
    ignore_index: int
    label_smoothing: float

    def smooth(self, p: Tensor) -> Tensor | None:
        """C x 1: the k_c above, or None without smoothing."""
        if self.label_smoothing == 0.0:
            return None
        weight = p.new_ones(p.shape[1]) if self.weight is None else self.weight
        return (self.label_smoothing / p.shape[1] * weight)[:, None]

    def pixels(self, target: Tensor, cells: Cells, like: Tensor) -> _Pixels:
        """Labels (rows x W) in the order of places."""
        labels = target.gather(1, cells.pixel.expand(len(target), -1))
        labels = labels.long()  # in uint8 an ignore_index of -100 would wrap to 156
        valid = (labels != self.ignore_index).logical_and_(cells.real)
        index = labels.clamp(0, like.shape[1] - 1)
        weight = valid.to(like.dtype)
        if self.weight is not None:
            weight *= self.weight[index]
        # An out-of-range label makes its pixel NaN (on a CPU it was rejected earlier).
        weight.masked_fill_(valid & (index != labels), float("nan"))
        return _Pixels(index, valid, weight)

    def losses(self, p: Tensor, pixels: _Pixels, spare: Tensor) -> Tensor:
        """The loss of every place; overwrites `spare`."""
        loss = p.gather(1, pixels.classes[:, None])[:, 0].mul_(pixels.weight)
        loss.mul_(self.label_smoothing - 1)
        if (smooth := self.smooth(p)) is not None:
            loss -= torch.mul(p, smooth, out=spare).sum(1)
        return loss.masked_fill_(~pixels.valid, 0.0)

    def gradient(
        self, p: Tensor, pixels: _Pixels, grad: Tensor | None, seed: Tensor, out: Tensor
    ) -> Tensor:
        """The gradient of the logits, in `out`, given that of each loss; overwrites `seed`."""
        own = pixels.weight * (self.label_smoothing - 1)
        scale = pixels.valid.to(p.dtype)
        if grad is not None:
            own, scale = own.mul_(grad), scale.mul_(grad)
        if (smooth := self.smooth(p)) is None:
            seed.zero_()
        else:
            torch.mul(-smooth, scale[:, None], out=seed)
        seed.scatter_add_(1, pixels.classes[:, None], own[:, None])
        backward = torch.ops.aten._log_softmax_backward_data.out
        return backward(seed, p, 1, p.dtype, out=out)


class _Run:
    """One pass over all tiles that sums `loss`, pixel `weight`, and the scores' `gradient`.

    grad: N x H x W, the gradient of each pixel's loss (ones when None). losses: N x H x W, receives
    each pixel's loss.
    """

    def __init__(
        self, x: Tensor, grid: SamplingGrid, loss: _Loss, grad: Tensor | None, with_gradient: bool
    ) -> None:
        self.settings, self.x, self.grad = loss, x, grad
        self.tiling = Tiling(grid, x.shape[1], x.dtype, x.device, is_finite(x))
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
        """The losses of a tile's places; adds to `weight` and to the gradient of `low`."""
        z = self.tiling.widen(low[..., cells.span], cells, self.buffers[0])
        p, spare = (b[: z.numel()].view_as(z) for b in self.buffers[1:])
        torch.log_softmax(z, 1, out=p)
        pixels = self.settings.pixels(target, cells, p)
        losses = self.settings.losses(p, pixels, spare)
        self.weight = self.weight + pixels.weight.sum(dtype=self.weight.dtype)
        if self.gradient is not None:
            if grad is not None:
                grad = grad.gather(1, cells.pixel.expand(len(low), -1))
            tile = self.settings.gradient(p, pixels, grad, spare, z)
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
    """Returns (loss, scale, unscaled gradient); the op's arguments, unchecked.

    Args:
        weight: C class weights in the compute dtype.
        with_gradient: whether to compute the gradient as well ("none" does so later).

    Returns:
        The loss, N x H x W for "none", else a scalar; the gradient's scale; the unscaled gradient,
        N x C x h x w in the compute dtype. What is not computed is an empty tensor.
    """
    loss = _Loss(weight, ignore_index, label_smoothing)
    with torch.autocast(scores.device.type, enabled=False):
        x = coarse(scores)
        nothing = x.new_empty(0)
        run = _Run(x, grid, loss, None, with_gradient and reduction != "none")
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
    kept: Tensor,
    grad: Tensor,
) -> Tensor:
    """The scores' gradient for `grad` (N x H x W) of "none". kept: `forward`'s second result."""
    loss = _Loss(weight, ignore_index, label_smoothing)
    with torch.autocast(scores.device.type, enabled=False):
        run = _Run(coarse(scores), grid, loss, grad, True)
        run(target)
    assert run.gradient is not None
    return run.gradient.to(scores.dtype)
