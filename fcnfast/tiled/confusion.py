"""upsample_confusion in plain torch: one image's label map at a time, counted in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from . import argmax

# The least number of pixels counted at once; their indices stay small beside the scores.
PIXELS = 1 << 16


def _counts(truth: Tensor, labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """(C + 2) x C pixel counts by label and prediction; the last rows: out of range, ignored."""
    truth = truth.long()  # in uint8 an ignore_index of -100 would wrap to 156
    row = torch.where((truth < 0) | (truth >= classes), classes, truth)
    row = torch.where(truth == ignore_index, classes + 1, row)
    index, bins = row.mul_(classes).add_(labels).flatten(), (classes + 2) * classes
    if index.device.type == "cpu":
        counts = torch.bincount(index, minlength=bins)
    else:  # bincount would synchronize for the largest index
        counts = index.new_zeros(bins).index_add_(0, index, torch.ones_like(index))
    return counts.view(classes + 2, classes)


def add(out: Tensor, scores: Tensor, target: Tensor, grid: SamplingGrid, ignore_index: int) -> None:
    """Add the counts of every (label, predicted class) to `out`; the op's arguments, unchecked.

    out: C x C, or (C + 1) x C with a last row for labels out of range, which C x C leaves out.
    """
    classes = scores.shape[1]
    dtypes = (torch.uint8, torch.int16, torch.int32)
    dtype = next(dtype for dtype in dtypes if classes - 1 <= torch.iinfo(dtype).max)
    step = max(1, max(PIXELS, classes**2) // grid.size[1])
    for n in range(scores.shape[0]):
        labels, _ = argmax.forward(scores[n : n + 1], grid, dtype, False)
        for first in range(0, grid.size[0], step):
            rows = slice(first, first + step)
            counts = _counts(target[n, rows], labels[0, rows], classes, ignore_index)
            out.add_(counts[: out.shape[0]])
