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

from .grid import Axis, Strided, check_supported, is_class, on_device
from .winners import (
    SIZES,
    Shares,
    Source,
    aligned,
    bitwise_or,
    kept,
    label_patches,
    pixels,
    tiles,
)

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

# A stride of 1 from column to column is worth a kernel of its own, others are not: see `winners`.
STRIDES = ["tn", "th", "on", "oc"]
# A count that no pixel goes to.
NONE = tl.constexpr(2**31 - 1)
# Fewer classes at once than for labels alone, and so fewer registers: more programs at a time.
UNROLL = 4
# Of so many counts a program adds up its pixels; those of others are added one by one.
ROUNDS = 8


@triton.jit
def count(out_ptr, counts, pixels, ROUNDS: tl.constexpr):
    """Add `pixels`, a number for each, to the `counts`, offsets from out_ptr, other than NONE."""
    least = tl.min(counts)
    rounds = 0
    while (least != NONE) & (rounds < ROUNDS):
        same = counts == least
        tl.atomic_add(
            out_ptr + least, tl.sum(tl.where(same, pixels, 0)).to(tl.int64), sem="relaxed"
        )
        counts = tl.where(same, NONE, counts)
        least = tl.min(counts)
        rounds += 1
    if least != NONE:
        others = (counts * 0 + pixels).to(tl.int64)
        tl.atomic_add(out_ptr + counts, others, mask=counts != NONE, sem="relaxed")


class Counts(NamedTuple):
    """Where pixels are counted, and what their true classes are, for `count_rows`.

    target: pointer to the true classes, strides n, h, w. out: to the counts, strides of true
    classes and labels on, oc. ignore_index: the truth that is not counted. The rest are constants:
    see `confusion_kernel`.
    """

    target: tl.tensor
    n: tl.tensor
    h: tl.tensor
    w: tl.tensor
    out: tl.tensor
    on: tl.tensor
    oc: tl.tensor
    num_classes: tl.tensor
    ignore_index: tl.tensor
    IGNORES: tl.constexpr
    OTHERS: tl.constexpr
    ROUNDS: tl.constexpr
    ALIGN: tl.constexpr


@triton.jit
def counts_of(to, truth, labels, valid):
    """Which count each pixel goes to, offsets from to.out, given its truth and its label."""
    in_range = is_class(truth, to.num_classes)
    if to.IGNORES:
        valid = valid & (truth != to.ignore_index)
    truth = truth.to(tl.int32)
    if to.OTHERS:
        truth = tl.where(in_range, truth, to.num_classes)
    else:
        valid = valid & in_range
    return tl.where(valid, truth * to.on + labels * to.oc, NONE)


@triton.jit
def first_pixels(to, patch):
    """Offsets of the true class of each patch's first pixel."""
    place = patch.image * to.n + patch.rows.start.to(tl.int64) * to.h
    place = kept(place + patch.columns.start.to(tl.int64) * to.w)
    return place // to.ALIGN * to.ALIGN  # which the compiler then knows


@triton.jit
def count_rows(to, labels, first, patch, lengths, COUNT: tl.constexpr, COLUMNS: tl.constexpr):
    """Count COUNT rows of the patches from each lane's `first`, those below its `lengths`.

    to: Counts. labels: COUNT x BLOCK x COLUMNS.
    """
    columns = patch.columns.length // to.ALIGN * to.ALIGN
    i, j, valid = pixels(first, lengths, columns, COUNT, COLUMNS)
    place = first_pixels(to, patch)[None, :, None] + i.to(tl.int64) * (to.h // to.ALIGN * to.ALIGN)
    truth = tl.load(to.target + (place + j.to(tl.int64) * to.w), mask=valid, other=0)
    count(to.out, counts_of(to, truth, labels, valid), 1, to.ROUNDS)


@triton.jit
def count_settled(to, label, patch, lengths, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Count patches of one label each: at once the pixels of the true class of a patch's first
    one, then the odd ones, row by row."""
    place, columns = first_pixels(to, patch), patch.columns.length // to.ALIGN * to.ALIGN
    truth = tl.load(to.target + place, mask=lengths > 0, other=0)
    j, rows, first = tl.arange(0, COLUMNS)[None, :], lengths[:, None], truth[:, None]
    some = (rows > 0) & (j < columns[:, None])
    pitch = to.h.to(tl.int64) // to.ALIGN * to.ALIGN
    pointers = to.target + (place[:, None] + j.to(tl.int64) * to.w)
    at, odd = pointers, tl.zeros([label.numel, COLUMNS], tl.int32)
    most = tl.max(lengths, 0)
    for i in range(most):
        same = tl.load(at, mask=some, other=0) == first
        odd = odd | tl.where(same, 0, 1 << i)
        at += tl.where(i + 1 < rows, pitch, 0)  # where a patch ends, its last row again: no mask
    odd = tl.where(some, odd & ((1 << rows) - 1), 0)
    number = odd - (odd >> 1 & 0x55)
    number = (number & 0x33) + (number >> 2 & 0x33)
    number = tl.sum((number + (number >> 4)) & 0x0F, 1)
    counts = counts_of(to, truth, label, lengths > 0)
    count(to.out, counts, lengths * columns - number, to.ROUNDS)
    left = tl.reduce(tl.reshape(odd, [odd.numel]), 0, bitwise_or)
    for row in range(most):
        if (left >> row) & 1 == 1:
            these = odd >> row & 1 == 1
            own = tl.load(pointers + row * pitch, mask=these, other=0)
            count(to.out, counts_of(to, own, label[:, None], these), 1, to.ROUNDS)


@triton.jit(do_not_specialize=[*SIZES, *STRIDES, "ignore_index"])
def confusion_kernel(
    scores_ptr, target_ptr, out_ptr,
    images, num_classes, height, width,
    row_n, row_size, row_num, row_off, row_den,
    row_first, row_cells, row_head, row_inner, row_patches,
    column_n, column_size, column_num, column_off, column_den,
    column_first, column_cells, column_head, column_inner, column_patches,
    xn, xc, xh, xw, tn, th, tw, on, oc, ignore_index,
    IGNORES: tl.constexpr, OTHERS: tl.constexpr, ROUNDS: tl.constexpr, ALIGN: tl.constexpr,
    CLAMP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, BLOCK: tl.constexpr, TEAM: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One program: the pixels of TILE_ROWS rows of patches, BLOCK in all.

    scores_ptr: images x num_classes x height x width, strides xn, xc, xh, xw.
    target_ptr: images x row_size x column_size, strides tn, th, tw: the true classes. IGNORES
        says whether they may be ignore_index, and would be counted. Patches start at multiples
        of ALIGN, as do rows.
    out_ptr: int64, true classes x labels, strides on, oc; one row more for OTHERS that are neither
        classes nor ignored.
    """
    label_patches(
        Source(
            Strided(scores_ptr, xn, xc, xh, xw), images, num_classes, height, width,
            Axis(row_n, row_size, row_num, row_off, row_den,
                 row_first, row_cells, row_head, row_inner, row_patches),
            Axis(column_n, column_size, column_num, column_off, column_den,
                 column_first, column_cells, column_head, column_inner, column_patches),
            CLAMP, ROWS, COLUMNS, TILE_ROWS, BLOCK, TEAM, UNROLL,
        ),
        Counts(target_ptr, tn, th, tw, out_ptr, on, oc, num_classes, ignore_index,
               IGNORES, OTHERS, ROUNDS, ALIGN),
        count_settled, count_rows,
    )  # fmt: skip


def add(
    out: Tensor,
    scores: Tensor,
    target: Tensor,
    grid: SamplingGrid,
    ignore_index: int,
    shares: Shares | None = None,
) -> None:
    """Count the pixels of each true class by the label that the upsampled scores give them.

    Args:
        out: int64 C x C or (C+1) x C, rows truth, columns prediction, any strides that let no two
            counts share a place; counts are added to it. A last row more is for pixels whose truth
            is neither a class nor ignored; otherwise they are not counted.
        scores: N x C x h x w, any strides, h x w being the grid's in_size (not checked).
        target: N x H x W true classes, any integer dtype and strides.
        grid: exact positions of H x W pixels.
        ignore_index: pixels of this truth are not counted; any integer.
        shares: other constants of the launch, to compare.

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
    plan, others = tiles(tuple(scores.shape), grid, shares), out.shape[0] > out.shape[1]
    kind, align = torch.iinfo(target.dtype), aligned(grid, plan.options["COLUMNS"])
    images, rows, columns = target.stride()
    if columns != 1 or images % align or rows % align:
        align = 1
    ignores = kind.min <= ignore_index <= kind.max
    ignores = ignores and (others or 0 <= ignore_index < out.shape[1])  # or never counted
    with on_device(scores):
        confusion_kernel[(plan.programs,)](
            scores, target, out, *plan.sizes, *scores.stride(),
            *target.stride(), *out.stride(), ignore_index,
            IGNORES=ignores, OTHERS=others, ROUNDS=ROUNDS, ALIGN=align,
            **(plan.options | ({} if shares else {"UNROLL": UNROLL})),
        )  # fmt: skip
