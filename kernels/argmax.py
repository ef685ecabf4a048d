"""upsample_argmax: the label of each pixel of upsampled scores, and the winner's softmax."""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import Strided, check_supported, joined, on_device
from .winners import (
    SIZES,
    exact_labels,
    lane_patches,
    pixels,
    row_scores,
    row_taps,
    tables,
    tile_labels,
    tiles,
)

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid


@triton.jit
def store_rows(
    out_ptr, values, first, patch, lengths, row_size, column_size,
    ALIGN: tl.constexpr, COUNT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store COUNT rows of the patches from `first`, those below each lane's `lengths`.

    out_ptr: images x row_size x column_size, dense. values: COUNT x BLOCK x COLUMNS. The first
    column and the number of columns of every patch and column_size are multiples of ALIGN.
    """
    # Divided and multiplied by it, so that the compiler knows.
    pitch, columns = column_size // ALIGN * ALIGN, patch.columns.length // ALIGN * ALIGN
    start = (patch.image * row_size + patch.rows.start) * pitch
    start += patch.columns.start // ALIGN * ALIGN
    i, j, valid = pixels(first, lengths, columns, COUNT, COLUMNS)
    place = out_ptr + start[None, :, None] + (i * pitch + j)
    tl.store(place, values.to(out_ptr.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=SIZES)
def label_kernel(
    scores_ptr, winner_ptr, table_ptr, fraction_ptr, out_ptr,
    images, num_classes, height, width, row_size, column_size, row_patches, column_patches,
    xn, xc, xh, xw,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, FAR: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the labels of TILE_ROWS rows of patches, BLOCK in all; a lane has one patch.

    scores_ptr: images x num_classes x height x width, strides xn, xc, xh, xw.
    winner_ptr, table_ptr, fraction_ptr: see `winners.table_kernel`.
    out_ptr: images x row_size x column_size, dense. Patches start at multiples of ALIGN.
    """
    scores = Strided(scores_ptr, xn, xc, xh, xw)
    patch = lane_patches(
        table_ptr, fraction_ptr, images, height, width, row_size,
        row_patches, column_patches, CLAMP, TILE_ROWS, BLOCK,
    )  # fmt: skip
    labels, special = tile_labels(
        scores, winner_ptr, fraction_ptr, num_classes, height, width, row_size, column_size, patch,
        CLAMP, SPLIT, FAR, ROWS, COLUMNS, BLOCK,
    )  # fmt: skip
    lengths = tl.where(patch.valid & ~special, patch.rows.length, 0)
    store_rows(out_ptr, labels, 0, patch, lengths, row_size, column_size, ALIGN, ROWS, COLUMNS)
    lengths = tl.where(special, patch.rows.length, 0)
    for i in range(tl.max(lengths, 0)):
        taps = row_taps(
            scores, fraction_ptr, i, row_size, column_size, patch, special, CLAMP, COLUMNS, BLOCK
        )
        found = exact_labels(taps, scores, num_classes, COLUMNS, BLOCK)
        store_rows(out_ptr, found, i, patch, lengths, row_size, column_size, ALIGN, 1, COLUMNS)


@triton.jit
def row_confidence(taps, scores, num_classes, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """The softmax of the largest class of each pixel of a row, 1 x BLOCK x COLUMNS."""
    best, total = (), ()
    for _ in tl.static_range(COLUMNS):
        best = best + (tl.full([BLOCK], float("-inf"), tl.float32),)
        total = total + (tl.zeros([BLOCK], tl.float32),)
    corner = taps.corner
    for _channel in range(num_classes):
        row = row_scores(corner, taps, scores, COLUMNS)
        corner += scores.c
        larger = ()
        for j in tl.static_range(COLUMNS):
            larger = larger + (tl.maximum(best[j], row[j]),)
        best = larger
    corner = taps.corner
    for _channel in range(num_classes):
        row = row_scores(corner, taps, scores, COLUMNS)
        corner += scores.c
        added = ()
        for j in tl.static_range(COLUMNS):
            added = added + (total[j] + tl.exp(row[j] - best[j]),)
        total = added
    result = tl.reshape(joined(total, BLOCK, COLUMNS), [1, BLOCK, COLUMNS])
    return 1 / result


@triton.jit(do_not_specialize=SIZES)
def confidence_kernel(
    scores_ptr, table_ptr, fraction_ptr, out_ptr,
    images, num_classes, height, width, row_size, column_size, row_patches, column_patches,
    xn, xc, xh, xw,
    CLAMP: tl.constexpr, ALIGN: tl.constexpr,
    COLUMNS: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the largest softmax of each pixel of TILE_ROWS rows of patches, BLOCK in all.

    scores_ptr: images x num_classes x height x width, strides xn, xc, xh, xw.
    table_ptr, fraction_ptr: see `winners.table_kernel`.
    out_ptr: images x row_size x column_size, dense. Patches start at multiples of ALIGN.
    """
    scores = Strided(scores_ptr, xn, xc, xh, xw)
    patch = lane_patches(
        table_ptr, fraction_ptr, images, height, width, row_size,
        row_patches, column_patches, CLAMP, TILE_ROWS, BLOCK,
    )  # fmt: skip
    lengths = tl.where(patch.valid, patch.rows.length, 0)
    for i in range(tl.max(lengths, 0)):
        taps = row_taps(
            scores, fraction_ptr, i, row_size, column_size, patch, patch.valid,
            CLAMP, COLUMNS, BLOCK,
        )  # fmt: skip
        found = row_confidence(taps, scores, num_classes, COLUMNS, BLOCK)
        store_rows(out_ptr, found, i, patch, lengths, row_size, column_size, ALIGN, 1, COLUMNS)


@lru_cache(maxsize=1024)
def aligned(grid: SamplingGrid, length: int) -> int:
    """What the patches' first columns and the width are multiples of: a power of two or 1.

    All that the patches have in common, `length` at most, or nothing: no kernels between.
    """
    num, off, den = grid.num[1], grid.off[1], grid.den[1]
    if num == 0 or den % num:
        return 1
    common = gcd(-(off // num), den // num, length)
    return 1 if grid.size[1] % common else common


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
        N x H x W labels and, with `confidence`, probabilities in float32.

    Raises:
        ValueError: when there are more than 2**30 patches, or points of the coarse map, or 2**27
            pixels along an axis, or the kernels do not compute it (`check_supported`).
    """
    check_supported(scores, grid)
    shape, device = (scores.shape[0], *grid.size), scores.device
    labels = torch.empty(shape, dtype=dtype, device=device)
    probability = None
    if confidence:
        probability = torch.empty(shape, dtype=torch.float32, device=device)
    if labels.numel():
        plan = tiles(tuple(scores.shape), grid)
        sizes, align = plan.sizes(scores), aligned(grid, plan.lengths[1])
        with on_device(scores):
            winner, table, fraction = tables(scores, plan)
            label_kernel[(plan.programs,)](
                scores, winner, table, fraction, labels, *sizes,
                ALIGN=align, **plan.options, **plan.label_options(scores),
            )  # fmt: skip
            if confidence:
                confidence_kernel[(plan.programs,)](
                    scores, table, fraction, probability, *sizes, ALIGN=align, **plan.options
                )
    return labels, probability
