"""upsample_cross_entropy in plain torch, in tiles: full-resolution logits are never written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._cells import Cells, Tiling
from ._tiles import Strip, coarse, is_finite

# The most that a score may rise or fall within a cell, and the least sum of exponentials relative
# to the highest score of each coarse value, for `_by_progressions`.
STEEPEST, FAINT = 24.0, 1e-20


class _Pixels(NamedTuple):
    """The labels of a tile, rows x places each.

    classes: arbitrary where the pixel is ignored. valid, weight: 1 and the class's weight, or 0
    where the pixel is ignored. grad: the gradient of its loss, or None for ones.
    """

    classes: Tensor
    valid: Tensor
    weight: Tensor
    grad: Tensor | None


class _Run:
    """One pass over all tiles that sums `loss`, pixel `weight`, and the scores' `gradient`.

    With L the logarithm of the sum of a pixel's exponentials and k_c = smoothing * w_c / C, the
    loss of a valid pixel of class t is ``(1 - smoothing) w_t (L - z_t) + sum_c k_c (L - z_c)``, as
    in ``F.cross_entropy``.

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
        self.class_weight, self.ignore_index, self.grad = class_weight, ignore_index, grad
        self.hard, self.smooth = 1 - label_smoothing, None
        if label_smoothing:
            weight = x.new_ones(x.shape[1]) if class_weight is None else class_weight
            self.smooth = label_smoothing / x.shape[1] * weight
        self.finite = is_finite(x)
        # The progressions' buffers hold one value a cell, not one a pixel.
        self.tiling = Tiling(grid, x.shape[1], x.dtype, x.device, self.finite, copies=2)
        # Sums over millions of pixels are kept in float64 if the device supports it.
        exact = torch.float32 if x.device.type == "mps" else torch.float64
        self.loss = self.weight = x.new_zeros((), dtype=exact)
        self.gradient = torch.zeros_like(x) if with_gradient else None
        self.buffer = x.new_empty(self.tiling.elements)

    def __call__(self, target: Tensor, losses: Tensor | None = None) -> None:
        tiling = self.tiling
        for n in range(len(self.x)):
            # Relative to the highest score of each coarse value, no interpolated score is above 0:
            # exponentials do not overflow, and need no maximum of their own.
            x = self.x[n] - self.x[n].amax(0) if self.finite else self.x[n]
            framed = tiling.frame(x)
            grad_framed = None if self.gradient is None else torch.zeros_like(framed)
            for row in tiling.rows:
                low = tiling.lower(framed[row.low : row.high], row)
                grad_low = None if grad_framed is None else torch.zeros_like(low)
                found = low.new_empty(len(low), tiling.places)
                for cells in tiling.groups:
                    pixels = self._pixels(target[n], n, row, cells)
                    part = low[..., cells.span]
                    grad = None if grad_low is None else grad_low[..., cells.span]
                    loss = self._by_progressions(part, grad, pixels, cells)
                    if loss is None:
                        loss = self._by_pixels(part, grad, pixels, cells)
                    found[:, cells.places] = loss
                if losses is None:
                    self.loss = self.loss + found.sum(dtype=self.loss.dtype)
                else:
                    place = tiling.place.expand(len(low), -1)
                    losses[n, row.first : row.last] = found.gather(1, place)
                if grad_framed is not None and grad_low is not None:
                    tiling.add_raised(grad_framed[row.low : row.high], grad_low, row)
            if self.gradient is not None and grad_framed is not None:
                tiling.add_unframed(self.gradient[n], grad_framed)

    def _pixels(self, target: Tensor, n: int, row: Strip, cells: Cells) -> _Pixels:
        """The _Pixels of a tile, given the labels of image n; adds to `weight`."""
        here = slice(row.first, row.last)
        labels = target[here].gather(1, cells.pixel.expand(row.last - row.first, -1))
        labels = labels.long()  # in uint8 an ignore_index of -100 would wrap to 156
        counts = (labels != self.ignore_index).logical_and_(cells.real)
        classes = labels.clamp(0, self.x.shape[1] - 1)
        valid = counts.to(self.x.dtype)
        weight = valid if self.class_weight is None else valid * self.class_weight[classes]
        if labels.device.type != "cpu":  # there an out-of-range label makes its pixel NaN
            weight = weight.masked_fill(counts & (classes != labels), float("nan"))
        self.weight = self.weight + weight.sum(dtype=self.weight.dtype)
        grad = None if self.grad is None else self.grad[n, here].index_select(1, cells.pixel)
        return _Pixels(classes, valid, weight, grad)

    def _by_progressions(
        self, low: Tensor, grad_low: Tensor | None, pixels: _Pixels, cells: Cells
    ) -> Tensor | None:
        """The losses of a tile's places, rows x places; adds to the gradient of `low`.

        Along a cell a score is an arithmetic progression, and its exponential a geometric one: two
        exponentials for a whole cell, and one multiplication a pixel. Returns None where that is
        not so, not exact enough, or not worth it.
        """
        shape = (len(low), *cells.w0.shape)  # rows x m x B, of what is of pixels
        if not self.finite or cells.step is None or self.smooth is not None or shape[1] < 3:
            return None
        left = low[..., cells.left].contiguous()  # rows x C x B, of what is of cells
        rise = low[..., cells.right] - left
        least, most = torch.aminmax(rise)
        if max(most, -least) > STEEPEST:
            return None
        first, ratio = torch.addcmul(left, rise, cells.w1[0]).exp_(), (rise * cells.step).exp_()
        e, g = self.buffer[: 2 * left.numel()].view(2, *left.shape)
        sums = low.new_empty(shape)
        for j, power in enumerate(_progression(first, ratio, shape[1], e)):
            torch.sum(power, 1, out=sums[:, j])
        if sums.amin() < FAINT:
            return None
        row, cell = (torch.arange(n, device=low.device) for n in (shape[0], shape[2]))
        index = pixels.classes.view(shape) * shape[2] + cell
        index += row[:, None, None] * left.stride(0)
        start, growth = (v.view(-1).index_select(0, index.view(-1)) for v in (left, rise))
        own = torch.addcmul(start.view(shape), growth.view(shape), cells.w1)
        weight = pixels.weight.view(shape)
        loss = (sums.log() - own).mul_(weight)
        if grad_low is not None:
            if pixels.grad is not None:
                weight = weight * pixels.grad.view(shape)
            factor, taken = (weight / sums)[:, :, None], weight.neg()
            both, right = torch.empty_like(left), torch.empty_like(left)
            for j, power in enumerate(_progression(first, ratio, shape[1], e)):
                here = torch.mul(power, factor[:, j], out=g if j else both)
                # A pixel's softmax and its label cancel before anything is summed.
                here.view(-1).index_add_(0, index[:, j].flatten(), taken[:, j].flatten())
                if j == 0:
                    torch.mul(both, cells.w1[0], out=right)
                else:
                    both += g
                    right.addcmul_(g, cells.w1[j])
            grad_low[..., cells.left] += both.sub_(right)
            grad_low[..., cells.right] += right
        return loss.flatten(1)

    def _by_pixels(
        self, low: Tensor, grad_low: Tensor | None, pixels: _Pixels, cells: Cells
    ) -> Tensor:
        """The same for any scores, an exponential for each class of each pixel."""
        z = self.tiling.widen(low, cells, self.buffer)
        z -= z.amax(1, keepdim=True)
        classes = pixels.classes[:, None]
        own = z.gather(1, classes)[:, 0]
        k = self.smooth
        smooth = own if k is None else k @ z
        sums = z.exp_().sum(1)
        logs, weight, valid = sums.log(), pixels.weight * self.hard, pixels.valid
        loss = (logs - own).mul_(weight)
        if k is not None:
            loss += k.sum() * logs - smooth
        loss.masked_fill_(valid == 0, 0.0)
        if grad_low is not None:
            if pixels.grad is not None:
                weight, valid = weight * pixels.grad, valid * pixels.grad
            soft = z  # of one class, either part of the gradient is exactly 0
            if k is not None:
                soft = (z / sums[:, None]).mul_(k.sum()).sub_(k[:, None]).mul_(valid[:, None])
            z.mul_((weight / sums)[:, None]).scatter_add_(1, classes, -weight[:, None])
            if k is not None:
                z += soft
            self.tiling.add_narrowed(grad_low, z, cells)
        return loss


def _progression(first: Tensor, ratio: Tensor, length: int, out: Tensor) -> Iterator[Tensor]:
    """``first``, ``first * ratio`` and so on, each but the first in `out`."""
    yield first
    for _ in range(length - 1):
        first = torch.mul(first, ratio, out=out)
        yield first


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
