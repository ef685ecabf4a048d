"""upsample_cross_entropy: the loss of upsampled scores, and its gradient, patch by patch.

No full-resolution logit is written. What a patch gives to the gradient of its corners are four sums
of each class; labels enter those of their own. Each corner of the coarse map gets a share from the
rows of patches above and below it; they are kept apart and added afterwards, in a fixed order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import on_device
from ._corners import add_at_corners, highest_of, planes_of, source_of
from ._pixels import direct_row
from ._programs import SIZES, Launch, launch_of, patch_columns, patch_rows
from ._softmax import progressive
from ._sums import combined, totals
from ._targets import label_codes
from .crop_add import plan
from .geometry import in_row, located, widened
from .patches import fraction

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

# Registers that the direct kernel's threads may have; NVIDIA's compiler would spill to need fewer.
REGISTERS = 255


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
        row_first, row_cells, row_head, row_inner, ROWS,
    )  # fmt: skip
    image, cell, x, columns = patch_columns(
        first_cell, share, cells, lane_cells, column_n, column_size, column_num, column_off,
        column_den, column_first, COLUMNS, BLOCK, GROUPS,
    )  # fmt: skip
    middle_y, middle_x = y + ROWS // 2, x + COLUMNS // 2
    fy, sy = fraction(cell_row, middle_y, row_n, row_num, row_off, row_den, ACC, WIDE)
    fx, sx = fraction(cell, middle_x, column_n, column_num, column_off, column_den, ACC, WIDE)
    source = source_of(
        scores_ptr, image, cell_row - ring, cell - ring, columns > 0, height, width,
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
        row_first, row_cells, row_head, row_inner, ROWS,
    )  # fmt: skip
    image, cell, x, columns = patch_columns(
        first_cell, share, cells, lane_cells, column_n, column_size, column_num, column_off,
        column_den, column_first, COLUMNS, BLOCK, GROUPS,
    )  # fmt: skip
    if not PIXELS:
        columns = tl.where((left_over >> tl.arange(0, BLOCK)) & 1 == 1, columns, 0)
    source = source_of(
        scores_ptr, image, cell_row - ring, cell - ring, columns > 0, height, width,
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
        loss, scale = totals(partial, scores.shape[0], reduction)
        if not with_gradient:
            return loss, scale, nothing
        return loss, scale, combined(upper, lower, scores.shape[2], launch)


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
        gradient = combined(upper, lower, scores.shape[2], launch)
    return gradient.to(scores.dtype, memory_format=torch.contiguous_format)
