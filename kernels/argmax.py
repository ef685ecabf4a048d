"""upsample_argmax: the label of each pixel of upsampled scores, and the winner's softmax."""

from __future__ import annotations

from functools import lru_cache
from math import gcd
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
    label_patches,
    patches_of,
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


@triton.jit(do_not_specialize=SIZES)
def label_kernel(
    scores_ptr, out_ptr,
    images, num_classes, height, width,
    row_size, row_num, row_off, row_den,
    row_first, row_cells, row_head, row_inner, row_patches,
    column_size, column_num, column_off, column_den,
    column_first, column_cells, column_head, column_inner, column_patches,
    xn, xc, xh, xw,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr,
    TEAM: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One program: the labels of TILE_ROWS rows of patches, BLOCK in all.

    scores_ptr: images x num_classes x height x width, strides xn, xc, xh, xw.
    out_ptr: images x row_size x column_size, dense. Patches start at multiples of ALIGN.
    """
    ring: tl.constexpr = 0 if CLAMP else 2  # rows and columns of zeros around the map
    rows = Axis(
        height + ring, row_size, row_num, row_off, row_den,
        row_first, row_cells, row_head, row_inner, 0,
    )  # fmt: skip
    columns = Axis(
        width + ring, column_size, column_num, column_off, column_den,
        column_first, column_cells, column_head, column_inner, 0,
    )  # fmt: skip
    at = Source(
        Strided(scores_ptr, xn, xc, xh, xw), images, num_classes, height, width,
        rows, columns, row_patches, column_patches,
    )  # fmt: skip
    label_patches(
        at, PixelMap(out_ptr, row_size, column_size, ALIGN), store_settled, store_rows,
        CLAMP, SPLIT, ROWS, COLUMNS, TILE_ROWS, BLOCK, TEAM, UNROLL,
    )  # fmt: skip


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
    scores_ptr, out_ptr,
    images, num_classes, height, width,
    row_size, row_num, row_off, row_den,
    row_first, row_cells, row_head, row_inner, row_patches,
    column_size, column_num, column_off, column_den,
    column_first, column_cells, column_head, column_inner, column_patches,
    xn, xc, xh, xw,
    CLAMP: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the largest softmax of each pixel of TILE_ROWS rows of patches, BLOCK in all.

    scores_ptr, out_ptr: see `label_kernel`. A lane has one patch.
    """
    ring: tl.constexpr = 0 if CLAMP else 2  # rows and columns of zeros around the map
    rows = Axis(
        height + ring, row_size, row_num, row_off, row_den,
        row_first, row_cells, row_head, row_inner, 0,
    )  # fmt: skip
    columns = Axis(
        width + ring, column_size, column_num, column_off, column_den,
        column_first, column_cells, column_head, column_inner, 0,
    )  # fmt: skip
    at = Source(
        Strided(scores_ptr, xn, xc, xh, xw), images, num_classes, height, width,
        rows, columns, row_patches, column_patches,
    )  # fmt: skip
    lane, out = tl.arange(0, BLOCK), PixelMap(out_ptr, row_size, column_size, ALIGN)
    patch = patches_of(at, CLAMP, ROWS, COLUMNS, TILE_ROWS, BLOCK)
    lengths = tl.where(patch.valid, patch.rows.length, 0)
    for row in range(tl.max(lengths, 0)):
        taps = row_taps(at, row, patch, patch.valid, CLAMP, COLUMNS)
        found = row_confidence(taps, at.scores, num_classes, COLUMNS, BLOCK)
        store_rows(out, found, lane * 0 + row, patch, lengths, 1, COLUMNS)


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
    labels = torch.empty(shape, dtype=dtype, device=device)
    probability = None
    if confidence:
        probability = torch.empty(shape, dtype=torch.float32, device=device)
    if labels.numel():
        plan = tiles(tuple(scores.shape), grid, shares)
        sizes = plan.sizes(scores)
        options = {"ALIGN": aligned(grid, plan.options["COLUMNS"]), **plan.options}
        with on_device(scores):
            label_kernel[(plan.programs,)](scores, labels, *sizes, **options, **plan.label_options)
            if confidence:
                confidence_kernel[(plan.programs,)](scores, probability, *sizes, **options)
    return labels, probability
