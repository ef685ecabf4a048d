"""Upsampling fused with the argmax: from coarse scores to a label map."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from ..geometry import SamplingGrid, Size
from ..tiled import argmax as tiled
from ..tiled._tiles import compute_dtype
from . import _checks
from ._checks import Integers, Scale
from ._registry import BACKEND, GRID, define_without_gradient, forced, uses_triton


def _forward(
    scores: Tensor,
    grid: Integers,
    clamp: bool,
    dtype: torch.dtype,
    confidence: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    sampled = _checks.checked_grid(scores, "scores", grid, clamp)
    _checks.check_classes(scores.shape[1], dtype, "labels")
    if uses_triton(backend, scores, sampled):
        from ..kernels import argmax as triton

        labels, probability = triton.forward(scores, sampled, dtype, confidence)
    else:
        labels, probability = tiled.forward(scores, sampled, dtype, confidence)
    return labels, scores.new_empty(0) if probability is None else probability


def _fake(
    scores: Tensor, grid: Integers, clamp: bool, dtype: torch.dtype, confidence: bool, _: Any
) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], *grid[2:4])
    labels = scores.new_empty(shape, dtype=dtype)
    if not confidence:
        return labels, scores.new_empty(0)
    return labels, scores.new_empty(shape, dtype=compute_dtype(scores))


_argmax = define_without_gradient(
    f"upsample_argmax(Tensor scores, {GRID}, ScalarType dtype, bool confidence, {BACKEND}) "
    "-> (Tensor, Tensor)",
    _forward,
    _fake,
)


@overload
def upsample_argmax(
    scores: Tensor,
    grid: SamplingGrid | None = ...,
    *,
    size: Size | None = ...,
    scale_factor: Scale | None = ...,
    align_corners: bool | None = ...,
    dtype: torch.dtype = ...,
    confidence: Literal[False] = ...,
) -> Tensor: ...
@overload
def upsample_argmax(
    scores: Tensor,
    grid: SamplingGrid | None = ...,
    *,
    size: Size | None = ...,
    scale_factor: Scale | None = ...,
    align_corners: bool | None = ...,
    dtype: torch.dtype = ...,
    confidence: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def upsample_argmax(
    scores: Tensor,
    grid: SamplingGrid | None = None,
    *,
    size: Size | None = None,
    scale_factor: Scale | None = None,
    align_corners: bool | None = None,
    dtype: torch.dtype = torch.uint8,
    confidence: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The label map of upsampled scores, without full-resolution scores.

    ``F.interpolate(scores, size, mode="bilinear").argmax(1)``, or at any `SamplingGrid`.

    Args:
        scores: N x C x h x w, float32, bfloat16, float16 or float64; any strides.
        grid: from h x w to H x W.
        size, scale_factor, align_corners: instead of a grid, as in ``F.interpolate``.
        dtype: of the labels: uint8, int16, int32 or int64.
        confidence: also return the winner's softmax.

    Returns:
        N x H x W labels: the first class wins ties, NaN wins over every number. With `confidence`
        also N x H x W probabilities, float32 (float64 for float64 scores). Neither has a gradient.

    Raises:
        TypeError: an argument has a type or dtype not listed above.
        ValueError: as in `upsample`, or `dtype` cannot hold all classes (uint8 holds 256).

    Example:
        >>> scores = torch.eye(2)[None, :, None]  # 1 x 2 x 1 x 2
        >>> fcnfast.upsample_argmax(scores, size=(1, 4))
        tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
    """
    grid = _checks.grid_for(scores, "scores", grid, size, scale_factor, align_corners)
    _checks.check_dtype(dtype, "dtype", _checks.LABELS)
    if not isinstance(confidence, bool):
        raise TypeError(f"confidence must be True or False, not {confidence!r}")
    labels, probability = _argmax(scores, *_checks.packed(grid), dtype, confidence, forced())
    return (labels, probability) if confidence else labels
