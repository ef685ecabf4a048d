"""Upsampling fused with the argmax: from coarse scores to a label map."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._checks import LABELS, check_classes, check_grid, check_map
from ._dispatch import implementation


@overload
def upsample_argmax(
    scores: Tensor,
    grid: SamplingGrid,
    *,
    dtype: torch.dtype = ...,
    confidence: Literal[False] = ...,
) -> Tensor: ...
@overload
def upsample_argmax(
    scores: Tensor, grid: SamplingGrid, *, dtype: torch.dtype = ..., confidence: Literal[True]
) -> tuple[Tensor, Tensor]: ...
@torch.no_grad()
def upsample_argmax(
    scores: Tensor,
    grid: SamplingGrid,
    *,
    dtype: torch.dtype = torch.uint8,
    confidence: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The label map of upsampled scores, without the upsampled scores.

    Args:
        scores: N x C x h x w, float32, bfloat16, float16 or float64.
        grid: from h x w to H x W.
        dtype: of the labels: uint8, int16, int32 or int64.
        confidence: also return the winner's softmax.

    Returns:
        N x H x W labels: the first class wins a tie, a NaN wins over every number. With
        `confidence` also N x H x W probabilities, float32 (float64 for float64 scores).

    Raises:
        TypeError: on other dtypes or types.
        ValueError: on another rank, a grid made for another map, or more classes than `dtype` can
            name (256 in uint8).
    """
    check_map(scores, "scores")
    check_grid(scores, grid, "scores")
    if dtype not in LABELS:
        raise TypeError(f"dtype must be uint8, int16, int32 or int64, not {dtype}")
    check_classes(scores.shape[1], dtype, "labels")
    run = implementation("argmax", False).forward
    labels, probability = run(scores, grid, dtype, confidence)
    return (labels, probability) if confidence else labels
