"""Upsampling fused with the argmax: from coarse scores to a label map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._checks import check_classes, check_grid, check_label_dtype, check_map, check_on_grid
from ._dispatch import forced, launcher
from ._library import BACKEND, GRID, define, packed, unpacked
from ._vmap import into_images


def _forward(
    scores: Tensor,
    grid: Sequence[int],
    clamp: bool,
    dtype: torch.dtype,
    confidence: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    check_map(scores, "scores")
    check_label_dtype(dtype)
    sampled = unpacked(grid, clamp)
    check_on_grid(scores, sampled, "scores")
    check_classes(scores.shape[1], dtype, "labels")
    run = launcher("argmax", "forward", backend, scores)
    labels, probability = run(scores, sampled, dtype, confidence)
    return labels, scores.new_empty(0) if probability is None else probability


def _forward_fake(
    scores: Tensor,
    grid: Sequence[int],
    clamp: bool,
    dtype: torch.dtype,
    confidence: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], grid[2], grid[3])
    labels = scores.new_empty(shape, dtype=dtype)
    if not confidence:
        return labels, scores.new_empty(0)
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return labels, scores.new_empty(shape, dtype=wide)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *_: None) -> tuple[None, ...]:
    return (None,) * 6


_argmax = define(
    f"upsample_argmax(Tensor scores, {GRID}, ScalarType dtype, bool confidence, {BACKEND}) "
    "-> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
    vmap=into_images,
    jvp=lambda *_: (None, None),
)


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
        `confidence` also N x H x W probabilities, float32 (float64 for float64 scores). Neither
        has a gradient.

    Raises:
        TypeError: on other dtypes or types.
        ValueError: on another rank, a grid made for another map, or more classes than `dtype` can
            name (256 in uint8).
    """
    check_map(scores, "scores")
    check_grid(grid)
    check_label_dtype(dtype)
    if not isinstance(confidence, bool):
        raise TypeError(f"confidence must be True or False, not {confidence!r}")
    labels, probability = _argmax(scores, *packed(grid), dtype, confidence, forced())
    return (labels, probability) if confidence else labels
