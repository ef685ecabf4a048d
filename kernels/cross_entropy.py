"""upsample_cross_entropy: the loss of upsampled scores, and its gradient, patch by patch.

No full-resolution logit is written. What a patch gives to the gradient of its corners are four sums
of each class; labels enter those of their own. Each corner of the coarse map gets a share from the
rows of patches above and below it; they are kept apart and added afterwards, in a fixed order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import accumulator, on_device
from ._corners import add_at_corners, highest_of
from ._pixels import direct_row
from ._softmax import progressive
from ._targets import label_codes
from .crop_add import plan
from .geometry import in_row, located, widened
from .patches import (
    Axis,
    axis_patches,
    cell_start,
    fraction,
    is_wide,
    longest,
    patch_at,
    patches_of,
)

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

AXIS = ["n", "size", "num", "off", "den", "first", "cells", "head", "inner"]
SIZES = ["images", "channels", "height", "width", "ring", "row_patches", "row_turn", "lane_cells"]
SIZES += [f"{axis}_{part}" for axis in ("row", "column") for part in AXIS] + ["ignore_index"]
# Pixels of a patch along an axis: in float32 the sums of 64 stay in registers.
PATCH, WIDE_PATCH = 8, 4
# Neighbouring lanes that share a cell, at most.
GROUPS = 4
# Lanes of a program: one warp.
LANES = 64 if torch.version.hip else 32
# Registers that the direct kernel's threads may have; NVIDIA's compiler would spill to need fewer.
REGISTERS = 255
# Values of a block of the two small kernels.
BLOCK = 1024


@triton.jit
def patch_rows(
    program, blocks, row_patches, row_turn, row_n, row_size, row_num, row_off, row_den, row_first,
    row_cells, row_head, row_inner, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The row of patches of a program: cell, first output, how many, and its plane."""
    patch = program // blocks % row_patches
    cell, which = patch_at(patch, row_first, row_cells, row_head, row_inner)
    y = cell_start(cell, row_n, row_size, row_num, row_off, row_den) + which * ROWS
    end = cell_start(cell + 1, row_n, row_size, row_num, row_off, row_den)
    return cell, y, tl.minimum(end - y, ROWS), plane_of(patch, row_patches, row_turn)


@triton.jit
def plane_of(patch, row_patches, row_turn):
    """Which plane a row of patches has: the first one belongs to row `row_turn`."""
    return (patch + row_patches - row_turn) % row_patches


@triton.jit
def patch_columns(
    first_cell, share, cells, lane_cells, column_n, column_size, column_num, column_off,
    column_den, column_first,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Of each lane: image, cell, first output, how many."""
    lane = tl.arange(0, BLOCK)
    flat = first_cell + lane // GROUPS
    there = (flat >= 0) & (flat < cells)
    cell = column_first + flat % lane_cells
    x = cell_start(cell, column_n, column_size, column_num, column_off, column_den)
    x += (share * GROUPS + lane % GROUPS) * COLUMNS
    end = cell_start(cell + 1, column_n, column_size, column_num, column_off, column_den)
    columns = tl.where(there, tl.minimum(end - x, COLUMNS), 0)
    return (flat // lane_cells).to(tl.int64), cell, x, columns


@triton.jit
def source_of(
    scores_ptr, image, top, left, there, height, width, xn, xc, xh, xw, CLAMP: tl.constexpr
):
    """Where the corners of each lane's cell are, for `loaded`: the cell's row and column."""
    bottom = top + 1
    if CLAMP:
        bottom, top = tl.minimum(bottom, height - 1), tl.maximum(top, 0)
        second = there & (left >= 0) & (left < width - 1)
        masks = (there, second, there, second)
        left = tl.maximum(left, 0)
    else:
        first = there & (left >= 0) & (left < width)
        second = there & (left >= -1) & (left < width - 1)
        upper, lower = (top >= 0) & (top < height), (bottom >= 0) & (bottom < height)
        masks = (first & upper, second & upper, first & lower, second & lower)
    corner = scores_ptr + image * xn + left.to(tl.int64) * xw
    upper, lower = corner + top.to(tl.int64) * xh, corner + bottom.to(tl.int64) * xh
    return upper, lower, xw, masks[0], masks[1], masks[2], masks[3], xc


@triton.jit
def planes_of(
    upper_ptr, lower_ptr, first_cell, plane_row, cells, lane_cells, column_first, ring, images,
    channels, width, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Where the shares of each cell's left corner go, for `add_at_corners`.

    plane_row: which of the planes.
    """
    cell = first_cell + tl.arange(0, BLOCK // GROUPS)
    corner = column_first + cell % lane_cells - ring
    # The first cell is the last one of the program before.
    stored = (tl.arange(0, BLOCK // GROUPS) > 0) & (cell < cells)
    stored = stored & (corner >= 0) & (corner < width)
    plane = (images * channels).to(tl.int64) * width
    start = plane_row * plane + (cell // lane_cells).to(tl.int64) * channels * width + corner
    return upper_ptr + start, lower_ptr + start, width, stored, cell % lane_cells == 0


@triton.jit(do_not_specialize=SIZES)
def patch_kernel(
    scores_ptr, target_ptr, table_ptr, partial_ptr, direct_ptr, upper_ptr, lower_ptr,
    images, channels, height, width, ring, row_patches, row_turn, lane_cells,
    row_n, row_size, row_num, row_off, row_den, row_first, row_cells, row_head, row_inner,
    column_n, column_size, column_num, column_off, column_den, column_first,
    ignore_index,
    xn, xc, xh, xw, tn, th, tw,
    GRADIENT: tl.constexpr, CLAMP: tl.constexpr, TABLE: tl.constexpr, IGNORES: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """One program: a row of patches, ROWS x COLUMNS pixels each, of consecutive cells.

    GROUPS neighbouring lanes share a cell, and SHARES programs share it further. The first cell of
    a program is the last one of the program before: only what it gives to the corners on its right
    counts.

    scores_ptr: images x channels x height x width, strides xn, xc, xh, xw.
    target_ptr: images x row_size x column_size labels, strides tn, th, tw.
    table_ptr: if TABLE, what `priced` reads.
    partial_ptr: 2 x programs: losses and weights, summed.
    direct_ptr: programs: a bit for each lane whose scores range too widely: `direct_kernel` adds
        what it gives.
    upper_ptr, lower_ptr: if GRADIENT, SHARES x row_patches x images x channels x width each: what
        each row of patches gives to the corners above and below it.
    """
    program, cells = tl.program_id(0), images * lane_cells
    row_num, row_den = widened(row_num, WIDE), widened(row_den, WIDE)
    column_num, column_den = widened(column_num, WIDE), widened(column_den, WIDE)
    blocks = tl.cdiv(cells, BLOCK // GROUPS - 1)
    first_cell = program % blocks * (BLOCK // GROUPS - 1) - 1
    share = program // blocks // row_patches
    cell_row, y, rows, plane = patch_rows(
        program, blocks, row_patches, row_turn, row_n, row_size, row_num, row_off, row_den,
        row_first, row_cells, row_head, row_inner, WIDE, ROWS,
    )  # fmt: skip
    image, cell, x, columns = patch_columns(
        first_cell, share, cells, lane_cells, column_n, column_size, column_num, column_off,
        column_den, column_first, COLUMNS, BLOCK, GROUPS,
    )  # fmt: skip
    middle_y, middle_x = y + ROWS // 2, x + COLUMNS // 2
    fy, sy = fraction(cell_row, middle_y, row_n, row_num, row_off, row_den, ACC, WIDE)
    fx, sx = fraction(cell, middle_x, column_n, column_num, column_off, column_den, ACC, WIDE)
    source = source_of(
        scores_ptr, image, cell_row - ring, cell - ring, (columns > 0) & (rows > 0), height, width,
        xn, xc, xh, xw, CLAMP,
    )  # fmt: skip
    planes = planes_of(
        upper_ptr, lower_ptr, first_cell, share * row_patches + plane, cells, lane_cells,
        column_first, ring, images, channels, width, BLOCK, GROUPS,
    )  # fmt: skip
    labels = target_ptr + image * tn + y.to(tl.int64) * th + x.to(tl.int64) * tw
    loss, weight, near = progressive(
        source, highest_of(source, channels, CLAMP, ACC, BLOCK), (fx, sx, fy, sy),
        (labels, th, tw, columns, rows, ignore_index), planes, channels, table_ptr,
        GRADIENT, CLAMP, TABLE, IGNORES, ACC, ROWS, COLUMNS, BLOCK, GROUPS,
    )  # fmt: skip
    lane = tl.arange(0, BLOCK)
    tl.store(partial_ptr + program, tl.sum(tl.where(lane >= GROUPS, loss, 0.0)))
    weights_ptr = partial_ptr + tl.num_programs(0)
    tl.store(weights_ptr + program, tl.sum(tl.where(lane >= GROUPS, weight, 0.0)))
    bits = tl.full([BLOCK], 1, tl.int64) << lane
    tl.store(direct_ptr + program, tl.sum(tl.where(near, 0, bits)))


@triton.jit(do_not_specialize=SIZES)
def direct_kernel(
    scores_ptr, target_ptr, table_ptr, partial_ptr, direct_ptr, upper_ptr, lower_ptr,
    grad_ptr, loss_ptr,
    images, channels, height, width, ring, row_patches, row_turn, lane_cells,
    row_n, row_size, row_num, row_off, row_den, row_first, row_cells, row_head, row_inner,
    column_n, column_size, column_num, column_off, column_den, column_first,
    ignore_index,
    xn, xc, xh, xw, tn, th, tw, gn, gh, gw,
    PIXELS: tl.constexpr, GRADIENT: tl.constexpr, CLAMP: tl.constexpr, TABLE: tl.constexpr,
    IGNORES: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """The same, pixel by pixel: exact for any scores, and for each pixel by itself.

    Unless PIXELS, only the lanes that `patch_kernel` left over (direct_ptr), added to the others.

    grad_ptr: if PIXELS and GRADIENT, the gradients of the pixels' losses, strides gn, gh, gw.
    loss_ptr: if PIXELS and not GRADIENT, images x row_size x column_size losses, dense.
    """
    program, cells = tl.program_id(0), images * lane_cells
    if not PIXELS:
        left_over = tl.load(direct_ptr + program)
        if left_over == 0:
            return
    row_num, row_den = widened(row_num, WIDE), widened(row_den, WIDE)
    column_num, column_den = widened(column_num, WIDE), widened(column_den, WIDE)
    blocks = tl.cdiv(cells, BLOCK // GROUPS - 1)
    first_cell = program % blocks * (BLOCK // GROUPS - 1) - 1
    share = program // blocks // row_patches
    cell_row, y, rows, plane = patch_rows(
        program, blocks, row_patches, row_turn, row_n, row_size, row_num, row_off, row_den,
        row_first, row_cells, row_head, row_inner, WIDE, ROWS,
    )  # fmt: skip
    image, cell, x, columns = patch_columns(
        first_cell, share, cells, lane_cells, column_n, column_size, column_num, column_off,
        column_den, column_first, COLUMNS, BLOCK, GROUPS,
    )  # fmt: skip
    if not PIXELS:
        columns = tl.where((left_over >> tl.arange(0, BLOCK)) & 1 == 1, columns, 0)
    source = source_of(
        scores_ptr, image, cell_row - ring, cell - ring, (columns > 0) & (rows > 0), height, width,
        xn, xc, xh, xw, CLAMP,
    )  # fmt: skip
    planes = planes_of(
        upper_ptr, lower_ptr, first_cell, share * row_patches + plane, cells, lane_cells,
        column_first, ring, images, channels, width, BLOCK, GROUPS,
    )  # fmt: skip
    loss, weight = tl.zeros([BLOCK], ACC), tl.zeros([BLOCK], ACC)
    if PIXELS and GRADIENT:
        upper, lower = planes[0], planes[1]
        for _ in range(channels):
            add_at_corners((upper, lower), planes, (loss, loss, loss, loss), BLOCK, GROUPS, False)
            upper, lower = upper + width, lower + width
    parts_x = ()
    for j in tl.static_range(COLUMNS):
        part = fraction(cell, x + j, column_n, column_num, column_off, column_den, ACC, WIDE)
        parts_x = parts_x + (part[0],)
    counted = tl.arange(0, BLOCK) >= GROUPS
    for i in range(rows):
        part_y = fraction(cell_row, y + i, row_n, row_num, row_off, row_den, ACC, WIDE)
        at = (y + i).to(tl.int64)
        codes, rates = (), ()
        for j in tl.static_range(COLUMNS):
            pointers = target_ptr + image * tn + at * th + (x + j).to(tl.int64) * tw
            code = label_codes(pointers, j < columns, ignore_index, channels, IGNORES)
            codes = codes + (code,)
            if PIXELS and GRADIENT:
                pointers = grad_ptr + image * gn + at * gh + (x + j).to(tl.int64) * gw
                rate = tl.load(pointers, mask=j < columns, other=0.0)
                rates = rates + (rate.to(ACC),)
        losses, weights = direct_row(
            source, part_y[0], parts_x, codes, rates, columns, planes, channels, table_ptr,
            PIXELS, GRADIENT, CLAMP, TABLE, ACC, COLUMNS, BLOCK, GROUPS,
        )  # fmt: skip
        for j in tl.static_range(COLUMNS):
            loss += losses[j]
            weight += weights[j]
            if PIXELS and not GRADIENT:
                pointers = loss_ptr + (image * row_size + at) * column_size + x + j
                tl.store(pointers, losses[j], mask=(j < columns) & counted)
    if not PIXELS:
        partial_ptr += program
        weights_ptr = partial_ptr + tl.num_programs(0)
        loss, weight = tl.where(counted, loss, 0.0), tl.where(counted, weight, 0.0)
        tl.store(partial_ptr, tl.load(partial_ptr) + tl.sum(loss))
        tl.store(weights_ptr, tl.load(weights_ptr) + tl.sum(weight))


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


@triton.jit(do_not_specialize=["images", "channels", "height", "width"])
def scale_kernel(
    x_ptr, scale_ptr, grad_ptr, out_ptr,
    images, channels, height, width, xn, xc, xh, xw,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK contiguous values of each of ROWS rows of ``x * scale * grad``.

    x_ptr: images x channels x height x width, strides xn, xc, xh, xw. scale_ptr, grad_ptr: one
    value each. out_ptr: dense, as in crop_add's kernels.
    """
    length = (width * channels if CHANNELS_LAST else width) // ALIGN * ALIGN
    rows = images * height if CHANNELS_LAST else images * channels * height
    blocks = tl.cdiv(length, BLOCK)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)[:, None]
    value = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (value < length)
    n, c, x = located(row // height, value, channels, CHANNELS_LAST)
    y = (row % height).to(tl.int64)
    factor = tl.load(scale_ptr) * tl.load(grad_ptr)
    result = tl.load(x_ptr + y * xh + in_row(n, c, x, xn, xc, xw), mask=inside) * factor
    result = result.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row.to(tl.int64) * length + value, result, mask=inside)


class Launch(NamedTuple):
    """How programs share the pixels of a call.

    rows, columns: the patches of either axis. lane_cells: the cells of a row, with one more where
    the last corner has no pixels to its right. in_place: each row of corners but the last has one
    row of patches below it, whose plane becomes the corners' own. turn: the row of patches whose
    plane comes first.
    """

    rows: Axis
    columns: Axis
    lane_cells: int
    in_place: bool
    turn: int
    programs: int
    options: dict[str, Any]

    @property
    def planes(self) -> int:
        """How many rows of corners are kept apart before they are added."""
        return self.options["SHARES"] * self.rows.patches

    def sizes(self, scores: Tensor) -> tuple[int, ...]:
        """What both kernels take between their pointers and ignore_index."""
        rows, columns = ((a.n, a.size, a.num, a.off, a.den) for a in (self.rows, self.columns))
        rows += (self.rows.first, self.rows.cells, self.rows.head, self.rows.inner)
        columns += (self.columns.first,)
        planes = self.rows.patches, self.turn
        return (*scores.shape, self.rows.ring, *planes, self.lane_cells, *rows, *columns)


def launch_of(scores: Tensor, grid: SamplingGrid) -> Launch:
    """The launch for scores at a grid.

    Raises:
        ValueError: when there are more than 2**31 cells in a row of all images, or programs.
    """
    double = scores.dtype == torch.float64
    lengths = [
        min(WIDE_PATCH if double else PATCH, triton.next_power_of_2(longest(grid, axis)))
        for axis in (0, 1)
    ]
    rows, columns = (axis_patches(grid, axis, lengths[axis]) for axis in (0, 1))
    groups = min(GROUPS, triton.next_power_of_2(columns.inner))
    beyond = columns.first + columns.cells - columns.ring
    lane_cells = columns.cells + (0 <= beyond < grid.in_size[1])
    options = {
        "CLAMP": grid.border == "clamp",
        "WIDE": is_wide(grid, LANES * PATCH),
        "ACC": accumulator(scores.dtype),
        "ROWS": lengths[0],
        "COLUMNS": lengths[1],
        "BLOCK": LANES,
        "GROUPS": groups,
        "SHARES": triton.cdiv(columns.most, groups),
        "num_warps": 1,
    }
    cells = scores.shape[0] * lane_cells
    programs = triton.cdiv(cells, LANES // groups - 1) * rows.patches * options["SHARES"]
    if max(cells + LANES, programs) >= 2**31:
        raise ValueError(f"scores of {tuple(scores.shape)} at {grid} need too many programs")
    first = rows.ring - rows.first  # below the first row of corners
    in_place = options["SHARES"] == 1 and rows.patches == rows.cells
    in_place = in_place and 0 <= first <= rows.patches - grid.in_size[0]
    return Launch(rows, columns, lane_cells, in_place, first * in_place, programs, options)


def _direct_options() -> dict[str, Any]:
    return {} if torch.version.hip else {"maxnreg": REGISTERS}


def table_of(weight: Tensor | None, smoothing: float, scores: Tensor) -> Tensor | None:
    """What `priced` reads, or None where every pixel counts 1."""
    if weight is None and smoothing == 0:
        return None
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    if weight is None:
        weight = torch.ones(scores.shape[1], dtype=wide, device=scores.device)
    soft = weight * (smoothing / scores.shape[1])
    return torch.cat([weight, weight * (1 - smoothing), soft, soft.sum()[None]])


def _planes(scores: Tensor, launch: Launch, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    images, channels, _, width = scores.shape
    shape = (launch.planes, images, channels, width)
    upper, lower = (torch.empty(shape, dtype=wide, device=scores.device) for _ in range(2))
    return upper, lower


def _combined(upper: Tensor, lower: Tensor, height: int, launch: Launch) -> Tensor:
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


def _ignores(target: Tensor, ignore_index: int) -> tuple[int, bool]:
    """ignore_index as the kernels take it, and whether the labels' type can hold it."""
    limits = torch.iinfo(target.dtype)
    fits = limits.min <= ignore_index <= limits.max
    return ignore_index if fits else -1, fits  # -1: no class


def forward(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grid: SamplingGrid,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and what its gradient needs.

    Args:
        scores: N x C x h x w, any strides, h x w being the grid's in_size (nothing is checked).
        target: N x H x W labels, any strides, H x W being the grid's size.
        weight: C class weights in the type of the arithmetic.
        grid: exact positions of H x W pixels.
        ignore_index: the label that does not count.
        reduction: "mean", "sum", "batch" or "none".
        label_smoothing: in [0, 1].
        with_gradient: whether to make the gradient, too ("none" makes it later).

    Returns:
        The loss, N x H x W for "none", else a scalar; the factor that the gradient wants; the
        gradient without it, N x C x h x w in the type of the arithmetic. An empty tensor for what
        is not made. A label out of range makes NaN of the loss and of the gradient.

    Raises:
        ValueError: on more than 2**31 programs.
    """
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    launch, table = launch_of(scores, grid), table_of(weight, label_smoothing, scores)
    ignored, ignores = _ignores(target, ignore_index)
    nothing = torch.empty(0, dtype=wide, device=scores.device)
    sizes = (*launch.sizes(scores), ignored, *scores.stride(), *target.stride())
    options = {"TABLE": table is not None, "IGNORES": ignores, **launch.options}
    table = nothing if table is None else table
    per_pixel = reduction == "none"
    with on_device(scores):
        if per_pixel:
            loss = torch.empty(target.shape, dtype=wide, device=scores.device)
            if loss.numel():
                direct_kernel[(launch.programs,)](
                    scores, target, table, nothing, nothing, nothing, nothing, nothing, loss,
                    *sizes, 0, 0, 0, PIXELS=True, GRADIENT=False, **options,
                    **_direct_options(),
                )  # fmt: skip
            return loss, nothing, nothing
        partial = torch.empty(2 * launch.programs, dtype=wide, device=scores.device)
        direct = torch.empty(launch.programs, dtype=torch.int64, device=scores.device)
        upper = lower = nothing
        if with_gradient:
            upper, lower = _planes(scores, launch, wide)
        if launch.programs:
            pointers = (scores, target, table, partial, direct, upper, lower)
            patch_kernel[(launch.programs,)](*pointers, *sizes, GRADIENT=with_gradient, **options)
            direct_kernel[(launch.programs,)](
                *pointers, nothing, nothing, *sizes, 0, 0, 0,
                PIXELS=False, GRADIENT=with_gradient, **options, **_direct_options(),
            )  # fmt: skip
        loss, scale = (torch.empty((), dtype=wide, device=scores.device) for _ in range(2))
        finish_kernel[(1,)](
            partial, loss, scale, launch.programs, scores.shape[0],
            REDUCTION=reduction, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
        if not with_gradient:
            return loss, scale, nothing
        return loss, scale, _combined(upper, lower, scores.shape[2], launch)


def scaled(gradient: Tensor, scale: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the scores, in their `dtype`, for the gradient `grad` of a scalar loss."""
    out = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    if out.numel():
        programs, _, options = plan(out, False)
        sizes = (*out.shape, *gradient.stride())
        with on_device(gradient):
            scale_kernel[(programs,)](gradient, scale, grad, out, *sizes, **options)
    return out


def per_pixel_gradient(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grid: SamplingGrid,
    ignore_index: int,
    label_smoothing: float,
    kept: Tensor,
    grad: Tensor,
) -> Tensor:
    """The gradient of the scores under reduction "none", for `grad` (N x H x W).

    kept: what `forward` returned second: nothing.
    """
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    launch, table = launch_of(scores, grid), table_of(weight, label_smoothing, scores)
    ignored, ignores = _ignores(target, ignore_index)
    sizes = (*launch.sizes(scores), ignored, *scores.stride(), *target.stride(), *grad.stride())
    options = {"TABLE": table is not None, "IGNORES": ignores, **launch.options}
    table = kept if table is None else table
    upper, lower = _planes(scores, launch, wide)
    with on_device(scores):
        if launch.programs:
            direct_kernel[(launch.programs,)](
                scores, target, table, kept, kept, upper, lower, grad, kept, *sizes,
                PIXELS=True, GRADIENT=True, **options, **_direct_options(),
            )  # fmt: skip
        gradient = _combined(upper, lower, scores.shape[2], launch)
    return gradient.to(scores.dtype, memory_format=torch.contiguous_format)
