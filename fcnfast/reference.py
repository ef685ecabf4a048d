"""Reference definitions: every op in a few lines of plain torch. The tests' oracle.

Slow and memory-hungry, but differentiable by torch itself. Use float64 inputs for ground truth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import SamplingGrid, taps


def _lerp(x: Tensor, grid: SamplingGrid, axis: int) -> Tensor:
    """Sample `x` along its rows (axis 0) or columns (axis 1); zero weight gives 0, even for NaN."""
    dim = axis - 2
    t = taps(grid, axis, x.dtype, x.device)
    result = torch.zeros((), dtype=x.dtype, device=x.device)
    for index, weight in ((t.i0, t.w0), (t.i1, t.w1)):
        weight = weight if axis == 1 else weight[:, None]
        result = result + torch.where(weight == 0, 0.0, x.index_select(dim, index) * weight)
    return result


def upsample(x: Tensor, grid: SamplingGrid) -> Tensor:
    """Sample `x` (N x C x h x w) at every position of `grid`: N x C x H x W."""
    return _lerp(_lerp(x, grid, 0), grid, 1)


def crop_add(x: Tensor, skip: Tensor, offset: tuple[int, int]) -> Tensor:
    """``x + skip[..., oy:oy+h, ox:ox+w]`` (the paper's skip fusion)."""
    (oy, ox), (h, w) = offset, x.shape[-2:]
    return x + skip[..., oy : oy + h, ox : ox + w]


def deconv(
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int = 0,
    crop: tuple[int, int] = (0, 0),
    size: tuple[int, int] | None = None,
) -> Tensor:
    """A depthwise transposed convolution with `weight` (C x 1 x k x k), cropped."""
    full = F.conv_transpose2d(x, weight, stride=stride, padding=padding, groups=x.shape[1])
    rows, columns = (slice(c, None if size is None else c + size[i]) for i, c in enumerate(crop))
    return full[..., rows, columns]


def upsample_crop_add(
    x: Tensor, skip: Tensor, grid: SamplingGrid, offset: tuple[int, int]
) -> Tensor:
    """One fusion step of an FCN: upsample the coarse scores, add the cropped skip."""
    return crop_add(upsample(x, grid), skip, offset)


def upsample_cross_entropy(
    scores: Tensor,
    target: Tensor,
    grid: SamplingGrid,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``F.cross_entropy`` of the upsampled scores; "batch" is the sum divided by N."""
    loss = F.cross_entropy(
        upsample(scores, grid),
        target.long(),
        weight=weight,
        ignore_index=ignore_index,
        reduction="sum" if reduction == "batch" else reduction,
        label_smoothing=label_smoothing,
    )
    return loss / scores.shape[0] if reduction == "batch" else loss


def upsample_argmax(scores: Tensor, grid: SamplingGrid) -> tuple[Tensor, Tensor]:
    """Labels of the upsampled scores (first class wins ties, NaN wins) and their probabilities."""
    full = upsample(scores, grid)
    label = full.argmax(1)
    return label, full.softmax(1).gather(1, label[:, None])[:, 0]


def upsample_confusion(
    scores: Tensor, target: Tensor, grid: SamplingGrid, *, ignore_index: int = 255
) -> Tensor:
    """(C + 1) x C pixel counts by target and label; the last row is for out-of-range targets."""
    classes, truth = scores.shape[1], target.long()
    row = torch.where((truth < 0) | (truth >= classes), classes, truth)
    index = row * classes + upsample_argmax(scores, grid)[0]
    counts = torch.bincount(index[truth != ignore_index], minlength=(classes + 1) * classes)
    return counts.view(classes + 1, classes)
