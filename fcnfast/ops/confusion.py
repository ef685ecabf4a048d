"""Upsampling fused with the argmax and a confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ..tiled import confusion as tiled
from . import _checks
from ._checks import Integers, Scale
from ._registry import BACKEND, GRID, define_without_gradient, forced, uses_triton


def _add(
    out: Tensor,
    scores: Tensor,
    target: Tensor,
    grid: Integers,
    clamp: bool,
    ignore_index: int,
    backend: str | None,
) -> None:
    sampled, classes = _checks.checked_grid_for_target(scores, target, grid, clamp), scores.shape[1]
    _checks.check_counts(out, classes)
    if out.shape[0] == classes:
        _checks.check_labels(target, classes, ignore_index)
    if uses_triton(backend, scores, sampled):
        from ..kernels import confusion as triton

        triton.add(out, scores, target, sampled, ignore_index)
    else:
        tiled.add(out, scores, target, sampled, ignore_index)
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


_confusion = define_without_gradient(
    f"upsample_confusion(Tensor(a!) out, Tensor scores, Tensor target, {GRID}, int ignore_index, "
    f"{BACKEND}) -> ()",
    _add,
    lambda *_: None,
)


def upsample_confusion(
    scores: Tensor,
    target: Tensor,
    grid: SamplingGrid | None = None,
    *,
    scale_factor: Scale | None = None,
    align_corners: bool | None = None,
    ignore_index: int = 255,
    out: Tensor | None = None,
) -> Tensor:
    """Count the pixels of every (true class, predicted class), without full-resolution scores.

    The prediction is that of `upsample_argmax`. Section 5 of the paper computes its metrics from
    the counts of a whole data set.

    Args:
        scores: N x C x h x w, float32, bfloat16, float16 or float64; any strides.
        target: N x H x W true labels, uint8, int16, int32 or int64.
        grid: from h x w to H x W; by default the scores are resized to the target's size.
        scale_factor, align_corners: instead of a grid, as in ``F.interpolate``.
        ignore_index: the label of pixels that are not counted; the default is not torch's -100.
        out: C x C int64 counts to add to; zeros by default. The last row of (C + 1) x C counts
            holds the pixels whose label is out of range, by prediction.

    Returns:
        `out`: rows are true classes, columns predicted ones. No gradient.

    Raises:
        TypeError: an argument has a type or dtype not listed above.
        ValueError: shapes or devices do not match or, with C x C counts, a label is out of range
            and not ignored. On a GPU such a pixel is skipped unless FCNFAST_CHECK=1 is set.

    Example:
        >>> scores, target = torch.eye(2)[None, :, None], torch.tensor([[[0, 1, 1, 255]]])
        >>> fcnfast.upsample_confusion(scores, target)
        tensor([[1, 0],
                [1, 1]])
    """
    grid = _checks.grid_for_target(scores, target, grid, scale_factor, align_corners)
    ignore_index = _checks.check_ignore_index(ignore_index)
    if out is None:
        out = scores.new_zeros((scores.shape[1],) * 2, dtype=torch.int64)
    else:
        _checks.check_tensor(out, "out", (torch.int64,), "C x C")
        _checks.check_device(scores, out, "scores", "out")
    _confusion(out, scores, target, *_checks.packed(grid), ignore_index, forced())
    return out
