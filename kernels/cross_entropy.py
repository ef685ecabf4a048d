"""upsample_cross_entropy: the loss of upsampled scores, and its gradient, patch by patch.

No full-resolution logit is written. `patch_kernel` makes the loss of each patch from the sums of
its exponentials, and what it gives to the gradient of the corners of its cell: four sums over its
pixels for each class. `exact_kernel` adds the patches that were left over, and `combine_kernel`
sums up the losses, and the shares that each corner got. All in a fixed order: the same bits in
every run.

For a class that no label of the program names, the four sums are polynomials in the ratio of its
progression; of one that labels name, the softmax of a pixel and its label cancel before anything
is summed. docs/kernels.md explains it with pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cross_entropy_corners import (
    SIZES,
    Launch,
    Shares,
    Source,
    add_at_corners,
    class_table,
    label_codes,
    launch_of,
    loaded,
    next_class,
    plane_of,
    planes_of,
    source_of,
    tile_of,
)
from .cross_entropy_exact import OPTIONS, exact_kernel
from .cross_entropy_progressions import (
    LN2,
    Middle,
    Sums,
    bounded,
    corner_shares,
    dot,
    exponential_sums,
    gradient_sums,
    halves_of,
    highest_of,
    labeled_sums,
    plain_factors,
    popcount,
    relative,
    weighted_factors,
)
from .grid import (
    VECTOR_BYTES,
    Axis,
    Corners,
    Strided,
    check_rows,
    check_supported,
    columns_of,
    dense_block,
    fraction,
    in_row,
    is_channels_last,
    on_device,
    patches_of,
)

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

# Values of a block of the two small kernels; rows and values of one of `scale_kernel`, the same for
# every size, so that pictures of any size share it.
BLOCK = 1024
SCALE_ROWS, SCALE_BLOCK = 16, 64


# ---- the labels of a patch
#
# A set of pixels of a patch is an int64 word: bit 8 i + j is the pixel in row i and column j.


class Labels(NamedTuple):
    """The labels of each lane's patch.

    ptr: to the first of all. offset: of each patch's first pixel. h, w: from row to row, from
    column to column. rows, columns: how many there are. ignore_index: the label that does not
    count.
    """

    ptr: tl.tensor
    offset: tl.tensor
    h: tl.tensor
    w: tl.tensor
    rows: tl.tensor
    columns: tl.tensor
    ignore_index: tl.tensor


class Classes(NamedTuple):
    """The classes of the pixels of each lane's patch, as sets of pixels.

    digits: for each binary digit the pixels whose class has it. valid: the pixels that count.
    invalid: whether a label is out of range. present: of the program's classes, modulo 32, a bit
    for each (see `is_named`).
    """

    digits: tl.tuple
    valid: tl.tensor
    invalid: tl.tensor
    present: tl.tensor


@triton.jit
def bitwise_or(a, b):
    """For reductions."""
    return a | b


@triton.jit
def classes_of(
    labels, num_classes, IGNORES: tl.constexpr, DIGITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The Classes of each lane's patch, DIGITS binary digits each, 2 at least.

    Neighboring threads read neighboring labels, whichever lanes these belong to. The codes of four
    rows of a column are the bytes of a word: one shift moves a digit of all of them.
    """
    j, lane = tl.arange(0, COLUMNS)[None, :], tl.arange(0, BLOCK)
    # Gathered, which is cheaper than to compute them again for the threads that read.
    offsets, columns = tl.gather(labels.offset, lane, 0), tl.gather(labels.columns, lane, 0)
    pointers = labels.ptr + offsets[:, None] + j * labels.w
    words, present = (), tl.zeros([BLOCK], tl.int32)
    for top in tl.static_range(0, ROWS, 4):
        some = ()
        for _ in tl.static_range(DIGITS // 8 + 1):
            for _ in tl.static_range(COLUMNS):
                some = some + (tl.zeros([BLOCK], tl.int32),)
        for i in range(tl.minimum(labels.rows - top, 4)):
            inside = j < columns[:, None]
            code = label_codes(pointers, inside, labels.ignore_index, num_classes, IGNORES)
            pointers += labels.h
            # The digit that is added says which count: -1 and -2, which end in 1 and 0, lack it.
            row = columns_of(code + (1 << DIGITS), BLOCK, COLUMNS)
            more = ()
            for k in tl.static_range(len(some)):
                byte = row[k % COLUMNS] >> (k // COLUMNS * 8)
                if DIGITS > 7:
                    byte = byte & 255
                more = more + (some[k] | (byte << (8 * i)),)
            some = more
            for k in tl.static_range(COLUMNS):
                present = present | (1 << (row[k] & 31))
        words = words + (some,)
    sets = ()
    for digit in tl.static_range(DIGITS + 1):
        pixels = tl.zeros([BLOCK], tl.int64)
        for half in tl.static_range(len(words)):
            some = tl.zeros([BLOCK], tl.int32)
            for k in tl.static_range(COLUMNS):
                word = words[half][digit // 8 * COLUMNS + k]
                some = some | (((word >> (digit % 8)) & 0x01010101) << k)
            pixels = pixels | (some.to(tl.uint32, bitcast=True).to(tl.int64) << (32 * half))
        sets = sets + (pixels,)
    valid = sets[DIGITS]
    invalid = sets[1] & ~sets[0] & ~valid
    return Classes(sets, valid, invalid != 0, tl.reduce(present, 0, bitwise_or))


@triton.jit
def pixels_of(channel, classes, DIGITS: tl.constexpr):
    """The set of pixels of each lane's patch that count and are of class `channel`."""
    pixels = classes.valid
    for b in tl.static_range(DIGITS):
        lacks = ((channel >> b) & 1) - 1  # all bits or none
        pixels = pixels & (classes.digits[b] ^ lacks)
    return pixels


@triton.jit
def is_named(channel, classes, DIGITS: tl.constexpr):
    """Whether labels of the program are of class `channel`, or, of 32 classes at most, may be."""
    named = ((classes.present >> ((channel + (1 << DIGITS)) & 31)) & 1) == 1
    if DIGITS <= 5:
        return named
    else:  # several classes have this bit
        if named:
            some = pixels_of(channel, classes, DIGITS) != 0
            named = tl.max(some.to(tl.int32), 0) > 0
        return named


@triton.jit
def sums_of(pixels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The Sums of 1 over a set of pixels: counts of two, four and eight neighbors side by side."""
    halves = halves_of(pixels)
    one, x, y, xy = 0, 0, 0, 0
    for k in tl.static_range((ROWS + 3) // 4):
        second = (halves[k] >> 1) & 0x55555555  # the right one of each two
        count, right = halves[k] - second, second  # `right` adds up columns
        second = (count >> 2) & 0x33333333
        count = (count & 0x33333333) + second
        right = (right & 0x33333333) + ((right >> 2) & 0x33333333) + 2 * second
        second = (count >> 4) & 0x0F0F0F0F
        count = (count & 0x0F0F0F0F) + second
        right = (right & 0x0F0F0F0F) + ((right >> 4) & 0x0F0F0F0F) + 4 * second
        # Bytes are rows: one multiplication adds them up, in its highest byte, one by their number.
        some, some_x = (count * 0x01010101 >> 24) & 255, (right * 0x01010101 >> 24) & 255
        one, x = one + some, x + some_x
        y += ((count * 0x00010203 >> 24) & 255) + 4 * k * some
        xy += ((right * 0x00010203 >> 24) & 255) + 4 * k * some_x
    # From the middle.
    xy += (ROWS // 2 * one - y) * (COLUMNS // 2) - ROWS // 2 * x
    x, y = x - COLUMNS // 2 * one, y - ROWS // 2 * one
    return Sums(one.to(tl.float32), x.to(tl.float32), y.to(tl.float32), xy.to(tl.float32))


# ---- the loss of a patch


class Weighted(NamedTuple):
    """Where classes count differently: what replaces the plain factors, loss and weight.

    factors: of each pixel, of its sum the reciprocal times what its softmax counts. loss: the sum
    of the sums' logarithms to base 2, weighted. weight: the sum of the pixels' weights. valid: the
    Sums of 1 over the pixels that count.
    """

    factors: tl.tuple
    loss: tl.tensor
    weight: tl.tensor
    valid: Sums


@triton.jit
def weighted_by_class(
    factors, classes, table_ptr, num_classes, DIGITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The plain factors and all else as Weighted by the `class_table`, class by class."""
    zero = tl.zeros([BLOCK], tl.float32)
    loss, total, valid = zero, zero, Sums(zero, zero, zero, zero)
    soft = tl.load(table_ptr + 3 * num_classes)
    for channel in range(num_classes):
        if is_named(channel, classes, DIGITS):
            hits = pixels_of(channel, classes, DIGITS)
            own = sums_of(hits, ROWS, COLUMNS)
            weight = tl.load(table_ptr + num_classes + channel) + soft
            factors, logarithms = weighted_factors(factors, hits, weight, ROWS, COLUMNS, BLOCK)
            loss -= weight * logarithms
            total += tl.load(table_ptr + channel) * own.one
            valid = Sums(valid.one + own.one, valid.x + own.x, valid.y + own.y, valid.xy + own.xy)
    return Weighted(factors, loss, total, valid)


@triton.jit
def without(source, highest, near):
    """The Source and the highest scores with 0 for all scores of lanes that are not `near`."""
    v, h = source.valid, highest
    valid = Corners(v.a & near, v.b & near, v.c & near, v.d & near)
    highest = Corners(
        tl.where(near, h.a, 0.0), tl.where(near, h.b, 0.0),
        tl.where(near, h.c, 0.0), tl.where(near, h.d, 0.0),
    )  # fmt: skip
    return Source(source.upper, source.lower, source.stride, source.class_stride, valid), highest


@triton.jit
def patch_loss(
    source, middle, labels, planes, num_classes, table_ptr,
    GRADIENT: tl.constexpr, CLAMP: tl.constexpr, TABLE: tl.constexpr,
    IGNORES: tl.constexpr, DIGITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The loss of each lane's patch, and its weight; and whether it is one. Where scores range too
    widely both are 0, and so is what the patch gives to its corners."""
    classes = classes_of(labels, num_classes, IGNORES, DIGITS, ROWS, COLUMNS, BLOCK)
    highest = highest_of(source, num_classes, CLAMP, BLOCK)
    sums, smooth, near = exponential_sums(
        source, highest, middle, num_classes, table_ptr, CLAMP, TABLE, ROWS, COLUMNS, BLOCK
    )
    # Of other lanes nothing counts from here on, and no score is read.
    source, highest = without(source, highest, near)
    valid = tl.where(near, classes.valid, 0)
    classes = Classes(classes.digits, valid, classes.invalid & near, classes.present)
    factors, loss = plain_factors(sums, valid, ROWS, COLUMNS, BLOCK)
    total = popcount(valid).to(tl.float32)
    if TABLE:
        w = weighted_by_class(
            factors, classes, table_ptr, num_classes, DIGITS, ROWS, COLUMNS, BLOCK
        )
        factors, loss, total, counted = w.factors, w.loss, w.weight, w.valid
        loss -= dot(corner_shares(counted, middle), smooth)
    upper, lower = planes.upper, planes.lower
    for channel in range(num_classes):
        named = is_named(channel, classes, DIGITS)
        if GRADIENT:
            exact = relative(loaded(source, CLAMP), highest)
            z = bounded(exact)
            g = gradient_sums(z, middle, factors, ROWS, COLUMNS, BLOCK)
            hard = tl.full([], 1.0, tl.float32)
            weight = hard
            if TABLE:
                # What the label takes is rounded as what the softmax adds (`weighted_by_class`): of
                # one class they are the same. Smoothing takes of the pixels of other labels alone.
                hard = tl.load(table_ptr + num_classes + channel)
                k = tl.load(table_ptr + 2 * num_classes + channel)
                weight, others = hard + k, counted
            if named:
                hits = pixels_of(channel, classes, DIGITS)
                own = sums_of(hits, ROWS, COLUMNS)
                loss -= hard * dot(corner_shares(own, middle), exact)
                g = labeled_sums(z, middle, factors, hits, weight, g, ROWS, COLUMNS, BLOCK)
                if TABLE:
                    others = Sums(
                        others.one - own.one, others.x - own.x, others.y - own.y,
                        others.xy - own.xy,
                    )  # fmt: skip
            if TABLE:
                g = Sums(
                    g.one - k * others.one, g.x - k * others.x, g.y - k * others.y,
                    g.xy - k * others.xy,
                )  # fmt: skip
            shares = corner_shares(g, middle)
            add_at_corners(upper, lower, planes, shares, BLOCK, GROUPS, False)
            upper, lower = upper + planes.stride, lower + planes.stride
        else:
            if named:
                z = relative(loaded(source, CLAMP), highest)
                hard = tl.full([], 1.0, tl.float32)
                if TABLE:
                    hard = tl.load(table_ptr + num_classes + channel)
                own = sums_of(pixels_of(channel, classes, DIGITS), ROWS, COLUMNS)
                loss -= hard * dot(corner_shares(own, middle), z)
        source = next_class(source)
    # A label out of range makes NaN of the weight, too, and so of all of the gradient.
    loss = tl.where(classes.invalid, float("nan"), loss * LN2)
    return loss, tl.where(classes.invalid, float("nan"), total), near


@triton.jit(do_not_specialize=SIZES)
def patch_kernel(
    scores_ptr, target_ptr, table_ptr, partial_ptr, left_over_ptr, upper_ptr, lower_ptr,
    images, num_classes, height, width, row_patches, plane_shift, lane_cells,
    row_size, row_num, row_off, row_den, row_first, row_cells, row_head, row_inner,
    column_size, column_num, column_off, column_den, column_first,
    ignore_index,
    xn, xc, xh, xw, tn, th, tw,
    GRADIENT: tl.constexpr, CLAMP: tl.constexpr, TABLE: tl.constexpr,
    IGNORES: tl.constexpr, DIGITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """One program: a row of patches, ROWS x COLUMNS pixels each, of consecutive cells; a patch for
    each of its BLOCK lanes. See `cross_entropy_corners` for how programs share the pixels.

    scores_ptr: images x num_classes x height x width, strides xn, xc, xh, xw.
    target_ptr: images x row_size x column_size labels, strides tn, th, tw.
    table_ptr: if TABLE, the `class_table`: 3 * num_classes + 1.
    partial_ptr: 2 x programs: the sums of the losses and of the weights of its pixels.
    left_over_ptr: programs: a bit for each lane whose scores range too widely: `exact_kernel` adds
        what it gives.
    upper_ptr, lower_ptr: if GRADIENT, SHARES * row_patches x images x num_classes x width each:
        what each row of patches gives to the corners above and below it.
    """
    padding: tl.constexpr = 0 if CLAMP else 2  # rows and columns of zeros around the map
    rows_axis = Axis(
        height + padding, row_size, row_num, row_off, row_den,
        row_first, row_cells, row_head, row_inner, 0,
    )  # fmt: skip
    columns_axis = Axis(
        width + padding, column_size, column_num, column_off, column_den, column_first, 0, 0, 0, 0
    )
    tile = tile_of(
        images, lane_cells, row_patches, plane_shift, rows_axis, columns_axis,
        ROWS, COLUMNS, BLOCK, GROUPS,
    )  # fmt: skip
    y, dy = fraction(tile.row, tile.y + ROWS // 2, rows_axis)
    x, dx = fraction(tile.column, tile.x + COLUMNS // 2, columns_axis)
    source = source_of(Strided(scores_ptr, xn, xc, xh, xw), tile, height, width, CLAMP)
    planes = planes_of(
        upper_ptr, lower_ptr, tile, lane_cells, column_first, images, num_classes, width,
        CLAMP, BLOCK, GROUPS,
    )  # fmt: skip
    offset = tile.image * tn + tile.y.to(tl.int64) * th + tile.x.to(tl.int64) * tw
    loss, weight, near = patch_loss(
        source, Middle(x, dx, y, dy),
        Labels(target_ptr, offset, th, tw, tile.rows, tile.columns, ignore_index), planes,
        num_classes, table_ptr,
        GRADIENT, CLAMP, TABLE, IGNORES, DIGITS, ROWS, COLUMNS, BLOCK, GROUPS,
    )  # fmt: skip
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    own = lane >= GROUPS  # not the first cell, which is another program's
    tl.store(partial_ptr + program, tl.sum(tl.where(own, loss, 0.0)))
    tl.store(partial_ptr + tl.num_programs(0) + program, tl.sum(tl.where(own, weight, 0.0)))
    bits = tl.full([BLOCK], 1, tl.int64) << lane
    tl.store(left_over_ptr + program, tl.sum(tl.where(near, 0, bits)))


# ---- what the programs leave, added up in a fixed order


@triton.jit
def finish(
    partial_ptr, loss_ptr, scale_ptr, programs, images,
    REDUCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the loss, from the programs' sums, and its gradient's factor; see `combine_kernel`."""
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
    tl.store(loss_ptr, result.to(tl.float32))
    tl.store(scale_ptr, scale.to(tl.float32))


@triton.jit(do_not_specialize=["programs", "length", "pad", *SIZES])
def combine_kernel(
    partial_ptr, loss_ptr, scale_ptr, upper_ptr, lower_ptr, out_ptr,
    programs, images, length, width, pad, row_patches, plane_shift, lane_cells,
    row_first, row_cells, row_head, row_inner, column_first,
    REDUCTION: tl.constexpr, SHARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first program: the loss. Each other: BLOCK of the `length` values of a row of corners,
    which are all images' and classes'.

    partial_ptr: 2 x programs, see `patch_kernel`. loss_ptr, scale_ptr: one value each, or None.
    upper_ptr, lower_ptr: as `patch_kernel` leaves them. out_ptr: height x length, dense; its rows
    may be the rows of upper_ptr that are read for them. pad: rows of zeros above the map.
    """
    program = tl.program_id(0)
    if REDUCTION is not None:
        program -= 1
        if program < 0:
            finish(partial_ptr, loss_ptr, scale_ptr, programs, images, REDUCTION, BLOCK)
            return
    rows = Axis(0, 0, 0, 0, 0, row_first, row_cells, row_head, row_inner, 0)
    blocks = tl.cdiv(length, BLOCK)
    row = program // blocks
    value = program % blocks * BLOCK + tl.arange(0, BLOCK)
    cell = value % width + pad  # the one to the right of the corner
    seen = (cell >= column_first) & (cell < column_first + lane_cells) & (value < length)
    total = tl.zeros([BLOCK], tl.float32)
    stride = length.to(tl.int64)
    for side in tl.static_range(2):  # the patches below the corner, then those above it
        begin, end = patches_of(row + pad - side, rows, row_patches)
        for share in range(SHARES):
            for patch in range(begin, end):
                plane = share * row_patches + plane_of(patch, row_patches, plane_shift)
                if side == 0:
                    total += tl.load(upper_ptr + plane * stride + value, mask=seen, other=0.0)
                else:
                    total += tl.load(lower_ptr + plane * stride + value, mask=seen, other=0.0)
    tl.store(out_ptr + row * stride + value, total, mask=value < length)


@triton.jit(do_not_specialize=["images", "channels", "height", "width", "xn", "xc", "xh"])
def scale_kernel(
    x_ptr, scale_ptr, grad_output_ptr, out_ptr,
    images, channels, height, width, xn, xc, xh, xw,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK contiguous values of each of ROWS rows of ``x * scale * grad_output``.

    x_ptr: images x channels x height x width, strides xn, xc, xh, xw. scale_ptr, grad_output_ptr:
    one value each. out_ptr: dense, see `dense_block`.
    """
    at = dense_block(images, channels, height, width, CHANNELS_LAST, ALIGN, ROWS, BLOCK)
    factor = tl.load(scale_ptr) * tl.load(grad_output_ptr)
    x_ptr += at.y.to(tl.int64) * xh + in_row(at.n, at.c, at.x, xn, xc, xw)
    result = tl.load(x_ptr, mask=at.inside) * factor
    tl.store(out_ptr + at.offset, result.to(out_ptr.dtype.element_ty), mask=at.inside)


# ---- launchers


def _planes(scores: Tensor, launch: Launch) -> tuple[Tensor, Tensor]:
    images, num_classes, _, width = scores.shape
    shape = (launch.planes, images, num_classes, width)
    upper, lower = (torch.empty(shape, dtype=torch.float32, device=scores.device) for _ in range(2))
    return upper, lower


def _ignored(target: Tensor, ignore_index: int) -> tuple[int, bool]:
    """ignore_index as the kernels take it, and whether the labels' type can hold it."""
    limits = torch.iinfo(target.dtype)
    fits = limits.min <= ignore_index <= limits.max
    return ignore_index if fits else -1, fits  # -1: no class


def _combined(
    planes: tuple[Tensor, Tensor] | None, grid: SamplingGrid, launch: Launch,
    partial: Tensor, images: int, reduction: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What `forward` returns, from what programs left: without planes no gradient, without a
    reduction nothing but the gradient."""
    loss, scale = (torch.empty((), dtype=torch.float32, device=partial.device) for _ in range(2))
    rows, programs, length, width = launch.rows, 0, 0, 0
    upper = lower = out = partial
    if planes is not None:
        upper, lower = planes
        _, _, num_classes, width = upper.shape
        height, length = grid.in_size[0], images * num_classes * width
        out = upper[:height]
        if not launch.in_place:
            shape = (height, *upper.shape[1:])
            out = torch.empty(shape, dtype=torch.float32, device=upper.device)
        programs = height * triton.cdiv(length, BLOCK)
    if programs or reduction is not None:
        combine_kernel[(programs + (reduction is not None),)](
            partial, loss, scale, upper, lower, out,
            partial.numel() // 2, images, length, width, int(grid.border == "zero"),
            rows.patches, launch.plane_shift, launch.lane_cells,
            rows.first, rows.cells, rows.head, rows.inner, launch.columns.first,
            REDUCTION=reduction, SHARES=launch.options["SHARES"], BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return loss, scale, loss.new_empty(0) if planes is None else out.permute(1, 2, 0, 3)


def forward(
    scores: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    grid: SamplingGrid,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    with_gradient: bool,
    shares: Shares | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and what `scaled` or `per_pixel_gradient` need for its gradient.

    Args:
        scores: N x C x h x w, any strides, h x w being the grid's in_size (nothing is checked).
        target: N x H x W labels, any strides, H x W being the grid's size.
        class_weight: C class weights in float32, or None.
        grid: exact positions of H x W pixels.
        ignore_index: the label that does not count.
        reduction: "mean", "sum", "batch" or "none".
        label_smoothing: in [0, 1].
        with_gradient: whether to make the gradient, too ("none" makes it later).
        shares: other constants of the launch, to compare.

    Returns:
        (loss, saved, gradient) in float32: the loss, N x H x W for "none", else a scalar; the
        factor of its gradient; the gradient without that factor, N x C x h x w. An empty tensor for
        what is not made. A label out of range makes NaN of the loss and of the gradient.

    Raises:
        ValueError: on more than 2**31 programs, or when the kernels do not compute it
            (`check_supported`).
    """
    check_supported(scores, grid)
    launch = launch_of(tuple(scores.shape), grid, shares)
    table = class_table(class_weight, label_smoothing, scores)
    ignored, ignores = _ignored(target, ignore_index)
    sizes = (*launch.sizes, ignored, *scores.stride(), *target.stride())
    options = {"TABLE": table is not None, "IGNORES": ignores, **launch.options}
    with on_device(scores):
        if reduction == "none":
            loss = torch.empty(target.shape, dtype=torch.float32, device=scores.device)
            table = loss if table is None else table  # for what is not used, any tensor
            if loss.numel():
                exact_kernel[(launch.programs,)](
                    scores, target, table, loss, loss, loss, loss, loss, loss,
                    *sizes, 0, 0, 0, PIXELS=True, GRADIENT=False, **options, **OPTIONS,
                )  # fmt: skip
            return loss, loss.new_empty(0), loss.new_empty(0)
        partial = torch.empty(2 * launch.programs, dtype=torch.float32, device=scores.device)
        table = partial if table is None else table
        left_over = torch.empty(launch.programs, dtype=torch.int64, device=scores.device)
        planes = _planes(scores, launch) if with_gradient else None
        if launch.programs:
            pointers = (scores, target, table, partial, left_over, *(planes or (partial, partial)))
            patch_kernel[(launch.programs,)](
                *pointers, *sizes, GRADIENT=with_gradient,
                DIGITS=max((scores.shape[1] - 1).bit_length(), 2), **options,
            )  # fmt: skip
            exact_kernel[(launch.programs,)](
                *pointers, partial, partial, *sizes, 0, 0, 0,
                PIXELS=False, GRADIENT=with_gradient, **options, **OPTIONS,
            )  # fmt: skip
        return _combined(planes, grid, launch, partial, scores.shape[0], reduction)


def scaled(
    gradient: Tensor,
    scale: Tensor,
    grad_output: Tensor,
    dtype: torch.dtype,
    channels_last: bool = False,
) -> Tensor:
    """The gradient of the scores, for the gradient `grad_output` of a scalar loss.

    Args:
        gradient: N x C x h x w in float32, and scale: what `forward` returned third and second.
        grad_output: a scalar in float32.
        dtype: of the scores.
        channels_last: whether that is their memory format.

    Returns:
        N x C x h x w of that dtype and in that format, dense.

    Raises:
        ValueError: when there are more than 2**30 rows, or values in one, or `gradient` is float64.
    """
    check_supported(gradient)
    images, channels, height, width = gradient.shape
    if channels_last and channels > 1:
        out = torch.empty((images, height, width, channels), dtype=dtype, device=gradient.device)
        out = out.permute(0, 3, 1, 2)
    else:
        channels_last = False
        out = torch.empty(tuple(gradient.shape), dtype=dtype, device=gradient.device)
    if out.numel():
        rows, length = check_rows(out.shape, channels_last)
        align = VECTOR_BYTES // dtype.itemsize
        programs = triton.cdiv(rows, SCALE_ROWS) * triton.cdiv(length, SCALE_BLOCK)
        with on_device(gradient):
            scale_kernel[(programs,)](
                gradient, scale, grad_output, out, *out.shape, *gradient.stride(),
                CHANNELS_LAST=channels_last, ALIGN=1 if length % align else align,
                ROWS=SCALE_ROWS, BLOCK=SCALE_BLOCK, num_warps=4,
            )  # fmt: skip
    return out


def per_pixel_gradient(
    scores: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    grid: SamplingGrid,
    ignore_index: int,
    label_smoothing: float,
    saved: Tensor,
    grad_output: Tensor,
) -> Tensor:
    """The gradient of the scores under reduction "none".

    Args:
        scores, target, class_weight, grid, ignore_index, label_smoothing: see `forward`.
        saved: what `forward` returned second: empty.
        grad_output: N x H x W in float32, the gradient of the pixels' losses, any strides.

    Returns:
        N x C x h x w of the dtype and in the memory format of `scores`, dense.

    Raises:
        ValueError: as `forward`.
    """
    check_supported(scores, grid)
    launch = launch_of(tuple(scores.shape), grid)
    table = class_table(class_weight, label_smoothing, scores)
    ignored, ignores = _ignored(target, ignore_index)
    sizes = (*launch.sizes, ignored, *scores.stride(), *target.stride(), *grad_output.stride())
    options = {"TABLE": table is not None, "IGNORES": ignores, **launch.options}
    table = saved if table is None else table
    planes = _planes(scores, launch)
    with on_device(scores):
        if launch.programs:
            exact_kernel[(launch.programs,)](
                scores, target, table, saved, saved, *planes, grad_output, saved, *sizes,
                PIXELS=True, GRADIENT=True, **options, **OPTIONS,
            )  # fmt: skip
        _, _, gradient = _combined(planes, grid, launch, saved, scores.shape[0], None)
    memory_format = torch.channels_last if is_channels_last(scores) else torch.contiguous_format
    return gradient.to(scores.dtype, memory_format=memory_format)
