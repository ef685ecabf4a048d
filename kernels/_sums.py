"""What the programs of upsample_cross_entropy leave, added up in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._corners import plane_of
from ._programs import SIZES, Launch
from .patches import patches_of

# Values of a block of the two small kernels.
BLOCK = 1024


@triton.jit(do_not_specialize=["programs", "images"])
def finish_kernel(
    partial_ptr, loss_ptr, scale_ptr, programs, images,
    REDUCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the loss from the programs' sums (2 x programs), and its gradient's factor."""
    loss = tl.zeros([BLOCK], tl.float64)
    weight = loss
    for start in range(0, programs, BLOCK):
        place = start + tl.arange(0, BLOCK)
        mask = place < programs
        loss += tl.load(partial_ptr + place, mask=mask, other=0.0).to(tl.float64)
        weight += tl.load(partial_ptr + programs + place, mask=mask, other=0.0).to(tl.float64)
    result, total = tl.sum(loss), tl.sum(weight)
    scale = total * 0 + 1
    if REDUCTION == "mean":
        # All pixels ignored, or of weight 0: the loss is NaN, as torch's, and the gradient zero.
        result = tl.where(total == 0, float("nan"), result / total)
        scale = tl.where(total == 0, 0.0, 1 / total)
    elif REDUCTION == "batch":
        result, scale = result / images, scale / images
    tl.store(loss_ptr, result.to(loss_ptr.dtype.element_ty))
    tl.store(scale_ptr, scale.to(scale_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=SIZES + ["length"])
def combine_kernel(
    upper_ptr, lower_ptr, out_ptr,
    length, width, ring, row_patches, row_turn, lane_cells,
    row_first, row_cells, row_head, row_inner, column_first,
    SHARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK of the `length` values of a row of corners: all images' and classes'.

    upper_ptr, lower_ptr: as `patch_kernel` leaves them. out_ptr: rows of `length` values, dense;
    they may be the rows of upper_ptr that are read for them.
    """
    blocks = tl.cdiv(length, BLOCK)
    row = tl.program_id(0) // blocks
    value = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    cell = value % width + ring
    seen = (cell >= column_first) & (cell < column_first + lane_cells) & (value < length)
    total = tl.zeros([BLOCK], out_ptr.dtype.element_ty)
    stride = length.to(tl.int64)
    for side in tl.static_range(2):
        begin, end = patches_of(
            row + ring - side, row_first, row_cells, row_head, row_inner, row_patches
        )
        for share in range(SHARES):
            for patch in range(begin, end):
                start = (share * row_patches + plane_of(patch, row_patches, row_turn)) * stride
                if side == 0:
                    total += tl.load(upper_ptr + start + value, mask=seen, other=0.0)
                else:
                    total += tl.load(lower_ptr + start + value, mask=seen, other=0.0)
    tl.store(out_ptr + row * stride + value, total, mask=value < length)


def totals(partial: Tensor, images: int, reduction: str) -> tuple[Tensor, Tensor]:
    """The loss from the programs' sums (see `finish_kernel`), and its gradient's factor."""
    loss, scale = (torch.empty((), dtype=partial.dtype, device=partial.device) for _ in range(2))
    finish_kernel[(1,)](
        partial, loss, scale, partial.numel() // 2, images,
        REDUCTION=reduction, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return loss, scale


def combined(upper: Tensor, lower: Tensor, height: int, launch: Launch) -> Tensor:
    """The gradient of the corners, N x C x h x w, from what patches gave them."""
    rows, (images, channels, width) = launch.rows, upper.shape[1:]
    if launch.in_place:
        out = upper[:height]
    else:
        shape = (height, *upper.shape[1:])
        out = torch.empty(shape, dtype=upper.dtype, device=upper.device)
    length = images * channels * width
    programs = height * triton.cdiv(length, BLOCK)
    if programs:
        combine_kernel[(programs,)](
            upper, lower, out, length, width, rows.ring, rows.patches, launch.turn,
            launch.lane_cells, rows.first, rows.cells, rows.head, rows.inner, launch.columns.first,
            SHARES=launch.options["SHARES"], BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return out.permute(1, 2, 0, 3)
