"""upsample_argmax: the label of each pixel of upsampled scores, and the winner's softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import Axis, Strided, check_supported, joined, on_device
from .winners import (
    SIZES,
    Shares,
    Source,
    aligned,
    label_patches,
    lane_patches,
    pixels,
    row_scores,
    row_taps,
    tiles,
)

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid


class PixelMap(NamedTuple):
    """A dense map of images x height x width pixels, for `store_rows`.

    The first column and the number of columns of every patch and the width are multiples of
    `align`, a constant.
    """

    ptr: tl.tensor
    height: tl.tensor
    width: tl.tensor
    align: tl.constexpr


@triton.jit
def store_rows(out, values, first, patch, lengths, COUNT: tl.constexpr, COLUMNS: tl.constexpr):
    """Store COUNT rows of the patches from each lane's `first`, those below its `lengths`.

    out: a PixelMap. values: COUNT x BLOCK x COLUMNS.
    """
    # Divided and multiplied by it, so that the compiler knows.
    pitch = out.width // out.align * out.align
    columns = patch.columns.length // out.align * out.align
    start = (patch.image * out.height + patch.rows.start) * pitch
    start += patch.columns.start // out.align * out.align
    i, j, valid = pixels(first, lengths, columns, COUNT, COLUMNS)
    place = out.ptr + start[None, :, None] + (i * pitch + j)
    tl.store(place, values.to(out.ptr.dtype.element_ty), mask=valid)


@triton.jit
def store_settled(out, label, patch, lengths, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store one label at all pixels of each patch."""
    labels = tl.broadcast_to(label[None, :, None], [ROWS, label.numel, COLUMNS])
    store_rows(out, labels, label * 0, patch, lengths, ROWS, COLUMNS)


@triton.jit
def row_confidence(at, taps):
    """The softmax of the largest class of each pixel of a row, 1 x BLOCK x COLUMNS."""
    best, total = (), ()
    for _ in tl.static_range(at.COLUMNS):
        best = best + (tl.full([at.BLOCK], float("-inf"), tl.float32),)
        total = total + (tl.zeros([at.BLOCK], tl.float32),)
    corner = taps.corner
    for _channel in range(at.num_classes):
        row, larger = row_scores(at, taps, corner), ()
        corner += at.scores.c
        for j in tl.static_range(at.COLUMNS):
            larger = larger + (tl.maximum(best[j], row[j]),)
        best = larger
    corner = taps.corner
    for _channel in range(at.num_classes):
        row, added = row_scores(at, taps, corner), ()
        corner += at.scores.c
        for j in tl.static_range(at.COLUMNS):
            added = added + (total[j] + tl.exp(row[j] - best[j]),)
        total = added
    return 1 / tl.reshape(joined(total, at.BLOCK, at.COLUMNS), [1, at.BLOCK, at.COLUMNS])


@triton.jit
def store_confidence(at, out):
    """Store the softmax of the label of each pixel; out: a PixelMap."""
    patch, lane = lane_patches(at), tl.arange(0, at.BLOCK)
    lengths = tl.where(patch.valid, patch.rows.length, 0)
    for row in range(tl.max(lengths, 0)):
        found = row_confidence(at, row_taps(at, row, patch, patch.valid))
        store_rows(out, found, lane * 0 + row, patch, lengths, 1, at.COLUMNS)


@triton.jit
def store_pixels(at, out, CONFIDENCE: tl.constexpr):
    """Store the confidence, or the labels, of all patches of this program."""
    if CONFIDENCE:
        store_confidence(at, out)
    else:
        label_patches(at, out, store_settled, store_rows)


@triton.jit(do_not_specialize=SIZES)
def label_kernel(
    scores_ptr, out_ptr,
    images, num_classes, height, width,
    row_n, row_size, row_num, row_off, row_den,
    row_first, row_cells, row_head, row_inner, row_patches,
    column_n, column_size, column_num, column_off, column_den,
    column_first, column_cells, column_head, column_inner, column_patches,
    xn, xc, xh, xw,
    CONFIDENCE: tl.constexpr, ALIGN: tl.constexpr,
    CLAMP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr, TEAM: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One program: the labels of TILE_ROWS rows of patches, BLOCK in all; or, if CONFIDENCE, the
    softmax of each pixel's label.

    scores_ptr: images x num_classes x height x width, strides xn, xc, xh, xw.
    out_ptr: images x row_size x column_size, dense. Patches start at multiples of ALIGN.
    """
    store_pixels(
        Source(
            Strided(scores_ptr, xn, xc, xh, xw), images, num_classes, height, width,
            Axis(row_n, row_size, row_num, row_off, row_den,
                 row_first, row_cells, row_head, row_inner, row_patches),
            Axis(column_n, column_size, column_num, column_off, column_den,
                 column_first, column_cells, column_head, column_inner, column_patches),
            CLAMP, ROWS, COLUMNS, TILE_ROWS, BLOCK, TEAM, UNROLL,
        ),
        PixelMap(out_ptr, row_size, column_size, ALIGN), CONFIDENCE,
    )  # fmt: skip


def forward(
    scores: Tensor,
    grid: SamplingGrid,
    dtype: torch.dtype,
    confidence: bool,
    shares: Shares | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The labels of the scores sampled at every position of `grid`, and their softmax.

    Args:
        scores: N x C x h x w, any strides, h x w being the grid's in_size (not checked).
        grid: exact positions of H x W pixels.
        dtype: of the labels, an integer type that holds C - 1.
        confidence: whether the winner's softmax is wanted.
        shares: other constants of the launch, to compare.

    Returns:
        N x H x W labels and, with `confidence`, probabilities in float32.

    Raises:
        ValueError: when there are more than 2**30 patches, or points of the coarse map, or 2**27
            pixels along an axis, or the kernels do not compute it (`check_supported`).
    """
    check_supported(scores, grid)
    shape, device = (scores.shape[0], *grid.size), scores.device
    labels, probability = torch.empty(shape, dtype=dtype, device=device), None
    if confidence:
        probability = torch.empty(shape, dtype=torch.float32, device=device)
    if labels.numel():
        plan = tiles(tuple(scores.shape), grid, shares)
        align = aligned(grid, plan.options["COLUMNS"])
        with on_device(scores):
            for out in (labels, probability)[: 1 + confidence]:
                label_kernel[(plan.programs,)](
                    scores, out, *plan.sizes, *scores.stride(),
                    CONFIDENCE=out is probability, ALIGN=align, **plan.options,
                )  # fmt: skip
    return labels, probability
