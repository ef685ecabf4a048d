"""upsample_confusion: how often a pixel of each true class gets each label, no label map written.

Counts are integers: atomic additions of any order give the same. Where programs would all add to
the few counts of the classes that are there, each adds up its own pixels first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import on_device
from .labels import (
    PATCH,
    SIZES,
    corner_winners,
    lane_patches,
    pixels,
    row_labels,
    row_taps,
    tiles,
)
from .rivals import mixed_labels

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

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


@triton.jit
def counts_of(
    target, labels, first, rows, columns, ignore_index, channels, th, tw, on, oc,
    FAR: tl.constexpr, TRUTH: tl.constexpr, IGNORES: tl.constexpr, OTHERS: tl.constexpr,
    COUNT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Which count each pixel goes to, COUNT x BLOCK x COLUMNS, given its label.

    target: pointers to the true class of the patches' first pixels. TRUTH: the type to compare it
    in. The rest: see `confusion_kernel`.
    """
    i, j, there = pixels(first, rows, columns, COUNT, COLUMNS)
    within = i.to(tl.int64) * th + j.to(tl.int64) * tw if FAR else i * th + j * tw
    truth = tl.load(target[None, :, None] + within, mask=there, other=0).to(TRUTH)
    if IGNORES:
        there = there & (truth != ignore_index)
    known = (truth >= 0) & (truth < channels)
    if OTHERS:
        truth = tl.where(known, truth, channels)
    else:
        there = there & known
    return tl.where(there, truth.to(tl.int32) * on + labels * oc, NONE)


@triton.jit(do_not_specialize=[*SIZES, "ignore_index"])
def confusion_kernel(
    scores_ptr, winner_ptr, table_ptr, fraction_ptr, target_ptr, out_ptr,
    images, channels, height, width, row_size, column_size, row_patches, column_patches,
    xn, xc, xh, xw, tn, th, tw, on, oc, ignore_index,
    CLAMP: tl.constexpr, SPLIT: tl.constexpr, FAR: tl.constexpr, ACC: tl.constexpr,
    TRUTH: tl.constexpr, IGNORES: tl.constexpr, OTHERS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
):  # fmt: skip
    """One program: the pixels of TILE_ROWS rows of patches, BLOCK in all.

    scores_ptr: images x channels x height x width, strides xn, xc, xh, xw.
    winner_ptr, table_ptr, fraction_ptr: see `table_kernel`.
    target_ptr: images x row_size x column_size, strides tn, th, tw: the true classes. IGNORES
        says whether they may be ignore_index.
    out_ptr: int64, true classes x labels, strides on, oc; one row more for OTHERS that are neither
        classes nor ignored.
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
    target = target_ptr + (image * tn + down[0].to(tl.int64) * th + across[0].to(tl.int64) * tw)
    rows = tl.where(there & ~special, down[1], 0)
    # In halves, because a program has not the registers for all labels and their truths.
    parts: tl.constexpr = 2 if ROWS > 1 else 1
    halves = (labels,)
    if ROWS > 1:
        labels = tl.reshape(labels, [2, ROWS // 2, BLOCK, COLUMNS])
        halves = tl.split(tl.permute(labels, [1, 2, 3, 0]))
    for k in tl.static_range(parts):
        counts = counts_of(
            target, halves[k], k * (ROWS // 2), rows, across[1], ignore_index, channels,
            th, tw, on, oc, FAR, TRUTH, IGNORES, OTHERS, ROWS // parts, COLUMNS,
        )  # fmt: skip
        count(out_ptr, counts, ROUNDS)
    rows = tl.where(special, down[1], 0)
    for i in range(tl.max(rows, 0)):
        taps = row_taps(
            scores_ptr, image * xn, fraction_ptr, i, row_size, column_size, down, across, special,
            xh, xw, CLAMP, COLUMNS, BLOCK,
        )  # fmt: skip
        found = row_labels(taps, channels, xc, xh, xw, ACC, COLUMNS, BLOCK)
        more = counts_of(
            target, found, i, rows, across[1], ignore_index, channels, th, tw, on, oc,
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
            pixels along an axis, or the counts do not lie within 2**31 - 1 elements.
    """
    reach = sum((n - 1) * stride for n, stride in zip(out.shape, out.stride(), strict=True))
    if reach >= NONE.value:
        raise ValueError(f"out of shape {tuple(out.shape)} reaches over {reach} elements")
    if not target.numel():
        return
    kind = torch.iinfo(target.dtype)
    with on_device(scores):
        programs, arrays, sizes, options, of_labels = tiles(scores, grid)
        of_labels["FAR"] |= PATCH * max(target.stride()[1:]) >= 2**31
        options |= {
            "TRUTH": tl.int64 if target.dtype == torch.int64 else tl.int32,
            "IGNORES": kind.min <= ignore_index <= kind.max,
            "OTHERS": out.shape[0] > out.shape[1],
            "ROUNDS": ROUNDS,
        }
        strides = (*target.stride(), *out.stride())
        confusion_kernel[(programs,)](
            scores, *arrays, target, out, *sizes, *strides, ignore_index, **options, **of_labels
        )
