"""Upsampling fused with the argmax and the count of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._checks import (
    check_counts,
    check_grid,
    check_ignore_index,
    check_labels,
    check_map,
    check_on_grid,
    check_out,
    check_target,
    check_target_on_grid,
    looks_at_labels,
)
from ._dispatch import forced, launcher
from ._library import BACKEND, GRID, define_in_place, packed, unpacked
from ._vmap import entry


def _add(
    out: Tensor,
    scores: Tensor,
    target: Tensor,
    grid: Sequence[int],
    clamp: bool,
    ignore_index: int,
    backend: str | None = None,
) -> None:
    check_map(scores, "scores")
    check_target(scores, target)
    check_out(scores, out)
    sampled, classes = unpacked(grid, clamp), scores.shape[1]
    check_on_grid(scores, sampled, "scores")
    check_target_on_grid(scores, target, sampled)
    check_counts(out, classes)
    if out.shape[0] == classes and looks_at_labels(target):
        check_labels(target, classes, ignore_index)
    launcher("confusion", "add", backend, scores)(out, scores, target, sampled, ignore_index)


def _add_fake(*_: Any) -> None:
    """Nothing is returned."""


def _by_entry(call: Any) -> Any:
    """The rule for vmap: every entry of the batch is counted in its own part of `out`."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[None, None]:
        if in_dims[0] is None:
            raise ValueError("upsample_confusion under vmap needs an out for each entry: batch it")
        for i in range(info.batch_size):
            call(*entry(args, in_dims, i))
        return None, None

    return rule


_confusion = define_in_place(
    f"upsample_confusion(Tensor(a!) out, Tensor scores, Tensor target, {GRID}, int ignore_index, "
    f"{BACKEND}) -> ()",
    _add,
    _add_fake,
    vmap=_by_entry,
)


def upsample_confusion(
    scores: Tensor,
    target: Tensor,
    grid: SamplingGrid,
    *,
    ignore_index: int = 255,
    out: Tensor | None = None,
) -> Tensor:
    """Count the pixels of every (true class, predicted class), without the upsampled scores.

    The prediction is that of `upsample_argmax`. The metrics of section 5 of the paper follow from
    the counts of a whole data set.

    Args:
        scores: N x C x h x w, float32, bfloat16, float16 or float64.
        target: N x H x W true labels, uint8, int16, int32 or int64.
        grid: from h x w to H x W.
        ignore_index: the label of pixels that are not counted.
        out: C x C int64 counts that these are added to; zeros by default. With a row more,
            (C + 1) x C, the last row counts by prediction the pixels whose label is out of range.

    Returns:
        `out`, rows truth and columns prediction. No gradient.

    Raises:
        TypeError: on other dtypes or types, or an ignore_index that is no integer.
        ValueError: on other shapes or devices, or with C x C counts on a label out of range that is
            not ignored: nothing is counted then. On a GPU such a pixel is left out, unless
            FCNFAST_CHECK=1 is set.
    """
    check_map(scores, "scores")
    check_grid(grid)
    check_target(scores, target)
    check_ignore_index(ignore_index)
    if out is None:
        classes = scores.shape[1]
        out = scores.new_zeros((classes, classes), dtype=torch.int64)
    check_out(scores, out)
    _confusion(out, scores, target, *packed(grid), ignore_index, forced())
    return out
