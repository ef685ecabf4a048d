"""upsample_confusion: how often a pixel of each true class gets each label, no label map written.

Counts are integers: atomic additions of any order give the same. Where programs would all add to
the few counts of the classes that are there, each adds up its own pixels first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import Strided, check_supported, on_device
from .winners import (
    PATCH,
    SIZES,
    exact_labels,
    lane_patches,
    pixels,
    row_taps,
    tables,
    tile_labels,
    tiles,
)

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

# A stride of 1 from column to column is worth a kernel of its own, others are not: see `winners`.
STRIDES = ["tn", "th", "on", "oc"]
# A count that no pixel goes to.
NONE = tl.constexpr(2**31 - 1)
# Of so many counts a program adds up its pixels; those of others are added one by one.
ROUNDS = 8


@triton.jit
def count(out_ptr, counts, ROUNDS: tl.constexpr):
    """Add 1 to each of the `counts`, offsets from out_ptr, other than NONE."""
    least = tl.min(counts)
    rounds = 0
    while (least != NONE) & (rounds < ROUNDS):
        same = counts == least
        tl.atomic_add(out_ptr + least, tl.sum(same.to(tl.int32)).to(tl.int64), sem="relaxed")
        counts = tl.where(same, NONE, counts)
        least = tl.min(counts)
        rounds += 1
    if least != NONE:
        tl.atomic_add(out_ptr + counts, 1, mask=counts != NONE, sem="relaxed")


class Target(NamedTuple):
    """The true classes: pointers to those of each patch's first pixel, strides of rows and columns.

    ignore_index: the truth that is not counted.
    """

    ptr: tl.tensor
    h: tl.tensor
    w: tl.tensor
    ignore_index: tl.tensor


@triton.jit
def counts_of(
    target, labels, first, rows, columns, num_classes, on, oc,
    FAR: tl.constexpr, TRUTH: tl.constexpr, IGNORES: tl.constexpr, OTHERS: tl.constexpr,
    COUNT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Which count each pixel goes to, COUNT x BLOCK x COLUMNS, given its label: truth * on + label
    * oc from out_ptr on.

    target: a Target. rows, columns: how many each lane's patch has. TRUTH: the type to compare the
    true class in. The rest: see `confusion_kernel`.
    """
    i, j, valid = pixels(first, rows, columns, COUNT, COLUMNS)
    if FAR:
        within = i.to(tl.int64) * target.h + j.to(tl.int64) * target.w
    else:
        within = i * target.h + j * target.w
    truth = tl.load(target.ptr[None, :, None] + within, mask=valid, other=0).to(TRUTH)
    if IGNORES:
        valid = valid & (truth != target.ignore_index)
    in_range = (truth >= 0) & (truth < num_classes)
    if OTHERS:
        truth = tl.where(in_range, truth, num_classes)
    else:
        valid = valid & in_range
    return tl.where(valid, truth.to(tl.int32) * on + labels * oc, NONE)


@triton.jit(do_not_specialize=[*SIZES, *STRIDES, "ignore_index"])
def confusion_kernel(
    scores_ptr, winner_ptr, table_ptr, fraction_ptr, target_ptr, out_ptr,
    images, num_classes, height, width, row_size, column_size, row_patches, column_patches,
    xn, xc, xh, xw, tn, th, tw, on, oc, ignore_index,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, FAR: tl.constexpr,
    TRUTH: tl.constexpr, IGNORES: tl.constexpr, OTHERS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
):  # fmt: skip
    """One program: the pixels of TILE_ROWS rows of patches, BLOCK in all; a lane has one patch.

    scores_ptr: images x num_classes x height x width, strides xn, xc, xh, xw.
    winner_ptr, table_ptr, fraction_ptr: see `winners.table_kernel`.
    target_ptr: images x row_size x column_size, strides tn, th, tw: the true classes. IGNORES
        says whether they may be ignore_index.
    out_ptr: int64, true classes x labels, strides on, oc; one row more for OTHERS that are neither
        classes nor ignored.
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
    target_ptr += patch.image * tn + patch.rows.start.to(tl.int64) * th
    target_ptr += patch.columns.start.to(tl.int64) * tw
    target, columns = Target(target_ptr, th, tw, ignore_index), patch.columns.length
    lengths = tl.where(patch.valid & ~special, patch.rows.length, 0)
    # In halves, because a program has not the registers for all labels and their truths.
    parts: tl.constexpr = 2 if ROWS > 1 else 1
    halves = (labels,)
    if ROWS > 1:
        labels = tl.reshape(labels, [2, ROWS // 2, BLOCK, COLUMNS])
        halves = tl.split(tl.permute(labels, [1, 2, 3, 0]))
    for k in tl.static_range(parts):
        counts = counts_of(
            target, halves[k], k * (ROWS // 2), lengths, columns, num_classes, on, oc,
            FAR, TRUTH, IGNORES, OTHERS, ROWS // parts, COLUMNS,
        )  # fmt: skip
        count(out_ptr, counts, ROUNDS)
    lengths = tl.where(special, patch.rows.length, 0)
    for i in range(tl.max(lengths, 0)):
        taps = row_taps(
            scores, fraction_ptr, i, row_size, column_size, patch, special, CLAMP, COLUMNS, BLOCK
        )
        found = exact_labels(taps, scores, num_classes, COLUMNS, BLOCK)
        more = counts_of(
            target, found, i, lengths, columns, num_classes, on, oc,
            FAR, TRUTH, IGNORES, OTHERS, 1, COLUMNS,
        )  # fmt: skip
        count(out_ptr, more, ROUNDS)


def add(out: Tensor, scores: Tensor, target: Tensor, grid: SamplingGrid, ignore_index: int) -> None:
    """Count the pixels of each true class by the label that the upsampled scores give them.

    Args:
        out: int64 C x C or (C+1) x C, rows truth, columns prediction, any strides that let no two
            counts share a place; counts are added to it. A last row more is for pixels whose truth
            is neither a class nor ignored; otherwise they are not counted.
        scores: N x C x h x w, any strides, h x w being the grid's in_size (not checked).
        target: N x H x W true classes, any integer dtype and strides.
        grid: exact positions of H x W pixels.
        ignore_index: pixels of this truth are not counted; any integer.

    Raises:
        ValueError: when there are more than 2**30 patches, or points of the coarse map, or 2**27
            pixels along an axis, or the counts do not lie within 2**31 - 1 elements, or the
            kernels do not compute it (`check_supported`).
    """
    check_supported(scores, grid)
    reach = sum((n - 1) * stride for n, stride in zip(out.shape, out.stride(), strict=True))
    if reach >= NONE.value:
        raise ValueError(f"out of shape {tuple(out.shape)} reaches over {reach} elements")
    if not target.numel():
        return
    kind = torch.iinfo(target.dtype)
    plan = tiles(tuple(scores.shape), grid)
    options = plan.options | plan.label_options(scores)
    options["FAR"] |= PATCH * max(target.stride()[1:]) >= 2**31
    with on_device(scores):
        arrays = tables(scores, plan)
        confusion_kernel[(plan.programs,)](
            scores, *arrays, target, out,
            *plan.sizes(scores), *target.stride(), *out.stride(), ignore_index,
            TRUTH=tl.int64 if target.dtype == torch.int64 else tl.int32,
            IGNORES=kind.min <= ignore_index <= kind.max,
            OTHERS=out.shape[0] > out.shape[1],
            ROUNDS=ROUNDS, **options,
        )  # fmt: skip
