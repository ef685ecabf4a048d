"""upsample_argmax: the label of each pixel of upsampled scores, and the winner's softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import on_device
from .labels import (
    SIZES,
    aligned,
    corner_winners,
    lane_patches,
    pixels,
    row_labels,
    row_scores,
    row_taps,
    tiles,
)
from .patches import joined
from .rivals import mixed_labels

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid


@triton.jit
def store_rows(
    out_ptr, values, first, image, row_size, column_size, down, across, rows,
    ALIGN: tl.constexpr, COUNT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store COUNT rows of the patches from `first`, those below `rows`.

    out_ptr: images x row_size x column_size, dense. values: COUNT x BLOCK x COLUMNS. The first
    column and the number of columns of every patch and column_size are multiples of ALIGN.
    """
    # Divided and multiplied by it, so that the compiler knows.
    stride, columns = column_size // ALIGN * ALIGN, across[1] // ALIGN * ALIGN
    patch = (image * row_size + down[0]) * stride + across[0] // ALIGN * ALIGN
    i, j, there = pixels(first, rows, columns, COUNT, COLUMNS)
    place = out_ptr + patch[None, :, None] + (i * stride + j)
    tl.store(place, values.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=SIZES)
def label_kernel(
    scores_ptr, winner_ptr, table_ptr, fraction_ptr, out_ptr,
    images, channels, height, width, row_size, column_size, row_patches, column_patches,
    xn, xc, xh, xw,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, FAR: tl.constexpr, ACC: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the labels of TILE_ROWS rows of patches, BLOCK in all.

    scores_ptr: images x channels x height x width, strides xn, xc, xh, xw.
    winner_ptr, table_ptr, fraction_ptr: see `table_kernel`.
    out_ptr: images x row_size x column_size, dense. Patches start at multiples of ALIGN.
    """
    image, down, across, there = lane_patches(
        table_ptr, fraction_ptr, images, height, width, row_size, column_size,
        row_patches, column_patches, CLAMP, TILE_ROWS, BLOCK,
    )  # fmt: skip
    winners, mixed, special = corner_winners(winner_ptr, image, down, across, there, height, width)
    if tl.max(mixed.to(tl.int32), 0) > 0:
        labels = mixed_labels(
            scores_ptr, image * xn, fraction_ptr, channels, row_size, column_size,
            down, across, winners, mixed, xc, xh, xw,
            CLAMP, SPLIT, FAR, ACC, ROWS, COLUMNS, BLOCK,
        )  # fmt: skip
    else:
        labels = tl.broadcast_to(winners[0][None, :, None], [ROWS, BLOCK, COLUMNS])
    rows = tl.where(there & ~special, down[1], 0)
    store_rows(
        out_ptr, labels, 0, image, row_size, column_size, down, across, rows, ALIGN, ROWS, COLUMNS
    )
    rows = tl.where(special, down[1], 0)
    for i in range(tl.max(rows, 0)):
        taps = row_taps(
            scores_ptr, image * xn, fraction_ptr, i, row_size, column_size, down, across, special,
            xh, xw, CLAMP, COLUMNS, BLOCK,
        )  # fmt: skip
        found = row_labels(taps, channels, xc, xh, xw, ACC, COLUMNS, BLOCK)
        store_rows(
            out_ptr, found, i, image, row_size, column_size, down, across, rows, ALIGN, 1, COLUMNS
        )


@triton.jit
def row_confidence(
    taps, channels, xc, xh, xw, ACC: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    """The softmax of the largest class of each pixel of a row, 1 x BLOCK x COLUMNS."""
    corner, read, y, x = taps
    best, total = (), ()
    for _ in tl.static_range(COLUMNS):
        best = best + (tl.full([BLOCK], float("-inf"), ACC),)
        total = total + (tl.zeros([BLOCK], ACC),)
    place = corner
    for _channel in range(channels):
        scores = row_scores(place, read, y, x, xh, xw, ACC, COLUMNS)
        place += xc
        larger = ()
        for j in tl.static_range(COLUMNS):
            larger = larger + (tl.maximum(best[j], scores[j]),)
        best = larger
    for _channel in range(channels):
        scores = row_scores(corner, read, y, x, xh, xw, ACC, COLUMNS)
        corner += xc
        added = ()
        for j in tl.static_range(COLUMNS):
            added = added + (total[j] + tl.exp(scores[j] - best[j]),)
        total = added
    result = tl.reshape(joined(total, BLOCK, COLUMNS), [1, BLOCK, COLUMNS])
    return 1 / result


@triton.jit(do_not_specialize=SIZES)
def confidence_kernel(
    scores_ptr, table_ptr, fraction_ptr, out_ptr,
    images, channels, height, width, row_size, column_size, row_patches, column_patches,
    xn, xc, xh, xw,
    CLAMP: tl.constexpr, ACC: tl.constexpr, ALIGN: tl.constexpr,
    COLUMNS: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the largest softmax of each pixel of TILE_ROWS rows of patches, BLOCK in all.

    scores_ptr: images x channels x height x width, strides xn, xc, xh, xw.
    table_ptr, fraction_ptr: see `table_kernel`.
    out_ptr: images x row_size x column_size, dense. Patches start at multiples of ALIGN.
    """
    image, down, across, there = lane_patches(
        table_ptr, fraction_ptr, images, height, width, row_size, column_size,
        row_patches, column_patches, CLAMP, TILE_ROWS, BLOCK,
    )  # fmt: skip
    rows = tl.where(there, down[1], 0)
    for i in range(tl.max(rows, 0)):
        taps = row_taps(
            scores_ptr, image * xn, fraction_ptr, i, row_size, column_size, down, across, there,
            xh, xw, CLAMP, COLUMNS, BLOCK,
        )  # fmt: skip
        found = row_confidence(taps, channels, xc, xh, xw, ACC, COLUMNS, BLOCK)
        store_rows(
            out_ptr, found, i, image, row_size, column_size, down, across, rows, ALIGN, 1, COLUMNS
        )


def forward(
    scores: Tensor, grid: SamplingGrid, dtype: torch.dtype, confidence: bool
) -> tuple[Tensor, Tensor | None]:
    """The labels of the scores sampled at every position of `grid`, and their softmax.

    Args:
        scores: N x C x h x w, any strides, h x w being the grid's in_size (not checked).
        grid: exact positions of H x W pixels.
        dtype: of the labels, an integer type that holds C - 1.
        confidence: whether the winner's softmax is wanted.

    Returns:
        N x H x W labels and, with `confidence`, probabilities: float32, or float64 for float64.

    Raises:
        ValueError: when there are more than 2**30 patches, or points of the coarse map, or 2**27
            pixels along an axis.
    """
    shape, device = (scores.shape[0], *grid.size), scores.device
    labels = torch.empty(shape, dtype=dtype, device=device)
    probability = None
    if confidence:
        kind = torch.float64 if scores.dtype == torch.float64 else torch.float32
        probability = torch.empty(shape, dtype=kind, device=device)
    if labels.numel():
        with on_device(scores):
            programs, (winner, *tables), sizes, options, of_labels = tiles(scores, grid)
            options["ALIGN"] = aligned(grid, options["COLUMNS"])
            arrays = (scores, winner, *tables, labels)
            label_kernel[(programs,)](*arrays, *sizes, **options, **of_labels)
            if confidence:
                confidence_kernel[(programs,)](scores, *tables, probability, *sizes, **options)
    return labels, probability
