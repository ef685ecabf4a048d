"""upsample_cross_entropy: the loss of upsampled scores, and its gradient, patch by patch.

No full-resolution logit is written. `loss_kernel` makes the loss of each patch from the sums of
its exponentials, and what it gives to the gradient of the corners of its cell: four sums over its
pixels for each class. A second launch of it adds the patches that were left over, pixel by pixel,
and `combine_kernel` sums up the losses, and the shares that each corner got. All in a fixed order:
the same bits in every run.

For a class that no label of the program names, the four sums are polynomials in the ratio of its
progression; of one that labels name, the softmax of a pixel and its label cancel before anything
is summed. docs/kernels.md explains it with pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cross_entropy_corners import (
    SIZES,
    Call,
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
from .cross_entropy_exact import exact_patches
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
# Registers that a thread may have; NVIDIA's compiler would spill to need fewer.
EXACT_OPTIONS: dict[str, Any] = {} if torch.version.hip else {"maxnreg": 255}


# ---- the labels of a patch
#
# A set of pixels of a patch is an int64 word: bit 8 i + j is the pixel in row i and column j.


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
def classes_of(call, tile):
    """The Classes of each lane's patch, DIGITS binary digits each, 2 at least.

    Neighboring threads read neighboring labels, whichever lanes these belong to. The codes of four
    rows of a column are the bytes of a word: one shift moves a digit of all of them.
    """
    j, lane, target = tl.arange(0, call.COLUMNS)[None, :], tl.arange(0, call.BLOCK), call.target
    place = tile.image * target.n + tile.y.to(tl.int64) * target.h
    place += tile.x.to(tl.int64) * target.w
    # Gathered, which is cheaper than to compute them again for the threads that read.
    offsets, columns = tl.gather(place, lane, 0), tl.gather(tile.columns, lane, 0)
    pointers = target.ptr + offsets[:, None] + j * target.w
    words, present = (), tl.zeros([call.BLOCK], tl.int32)
    for top in tl.static_range(0, call.ROWS, 4):
        some = ()
        for _ in tl.static_range(call.DIGITS // 8 + 1):
            for _ in tl.static_range(call.COLUMNS):
                some = some + (tl.zeros([call.BLOCK], tl.int32),)
        for i in range(tl.minimum(tile.rows - top, 4)):
            code = label_codes(call, pointers, j < columns[:, None])
            pointers += target.h
            # The digit that is added says which count: -1 and -2, which end in 1 and 0, lack it.
            row = columns_of(code + (1 << call.DIGITS), call.BLOCK, call.COLUMNS)
            more = ()
            for k in tl.static_range(len(some)):
                byte = row[k % call.COLUMNS] >> (k // call.COLUMNS * 8)
                if call.DIGITS > 7:
                    byte = byte & 255
                more = more + (some[k] | (byte << (8 * i)),)
            some = more
            for k in tl.static_range(call.COLUMNS):
                present = present | (1 << (row[k] & 31))
        words = words + (some,)
    sets = ()
    for digit in tl.static_range(call.DIGITS + 1):
        pixels = tl.zeros([call.BLOCK], tl.int64)
        for half in tl.static_range(len(words)):
            some = tl.zeros([call.BLOCK], tl.int32)
            for k in tl.static_range(call.COLUMNS):
                word = words[half][digit // 8 * call.COLUMNS + k]
                some = some | (((word >> (digit % 8)) & 0x01010101) << k)
            pixels = pixels | (some.to(tl.uint32, bitcast=True).to(tl.int64) << (32 * half))
        sets = sets + (pixels,)
    valid = sets[call.DIGITS]
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


@triton.jit
def weighted_by_class(call, factors, classes):
    """What replaces the plain factors, loss and weight where classes count by the `class_table`.

    Returns of each pixel the reciprocal of its sum times what its softmax counts; the sum of the
    sums' logarithms to base 2, weighted; the sum of the pixels' weights; the Sums of 1 over the
    pixels that count.
    """
    zero = tl.zeros([call.BLOCK], tl.float32)
    loss, total, valid = zero, zero, Sums(zero, zero, zero, zero)
    soft = tl.load(call.table + 3 * call.num_classes)
    for channel in range(call.num_classes):
        if is_named(channel, classes, call.DIGITS):
            hits = pixels_of(channel, classes, call.DIGITS)
            own = sums_of(hits, call.ROWS, call.COLUMNS)
            weight = tl.load(call.table + call.num_classes + channel) + soft
            factors, logarithms = weighted_factors(call, factors, hits, weight)
            loss -= weight * logarithms
            total += tl.load(call.table + channel) * own.one
            valid = Sums(valid.one + own.one, valid.x + own.x, valid.y + own.y, valid.xy + own.xy)
    return factors, loss, total, valid


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
def patch_loss(call, tile, source, planes):
    """The loss of each lane's patch, and its weight; and whether it is one. Where scores range too
    widely both are 0, and so is what the patch gives to its corners."""
    y, dy = fraction(tile.row, tile.y + call.ROWS // 2, call.rows)
    x, dx = fraction(tile.column, tile.x + call.COLUMNS // 2, call.columns)
    middle, classes = Middle(x, dx, y, dy), classes_of(call, tile)
    highest = highest_of(call, source)
    sums, smooth, near = exponential_sums(call, source, highest, middle)
    # Of other lanes nothing counts from here on, and no score is read.
    source, highest = without(source, highest, near)
    valid = tl.where(near, classes.valid, 0)
    classes = Classes(classes.digits, valid, classes.invalid & near, classes.present)
    factors, loss = plain_factors(call, sums, valid)
    total = popcount(valid).to(tl.float32)
    if call.TABLE:
        factors, loss, total, counted = weighted_by_class(call, factors, classes)
        loss -= dot(corner_shares(counted, middle), smooth)
    upper, lower = planes.upper, planes.lower
    for channel in range(call.num_classes):
        named = is_named(channel, classes, call.DIGITS)
        if call.GRADIENT:
            exact = relative(loaded(source, call.CLAMP), highest)
            z = bounded(exact)
            g = gradient_sums(call, z, middle, factors)
            hard = tl.full([], 1.0, tl.float32)
            weight = hard
            if call.TABLE:
                # What the label takes is rounded as what the softmax adds (`weighted_by_class`): of
                # one class they are the same. Smoothing takes of the pixels of other labels alone.
                hard = tl.load(call.table + call.num_classes + channel)
                k = tl.load(call.table + 2 * call.num_classes + channel)
                weight, others = hard + k, counted
            if named:
                hits = pixels_of(channel, classes, call.DIGITS)
                own = sums_of(hits, call.ROWS, call.COLUMNS)
                loss -= hard * dot(corner_shares(own, middle), exact)
                g = labeled_sums(call, z, middle, factors, hits, weight, g)
                if call.TABLE:
                    others = Sums(
                        others.one - own.one, others.x - own.x, others.y - own.y,
                        others.xy - own.xy,
                    )  # fmt: skip
            if call.TABLE:
                g = Sums(
                    g.one - k * others.one, g.x - k * others.x, g.y - k * others.y,
                    g.xy - k * others.xy,
                )  # fmt: skip
            shares = corner_shares(g, middle)
            add_at_corners(call, upper, lower, planes, shares, False)
            upper, lower = upper + planes.stride, lower + planes.stride
        else:
            if named:
                z = relative(loaded(source, call.CLAMP), highest)
                hard = tl.full([], 1.0, tl.float32)
                if call.TABLE:
                    hard = tl.load(call.table + call.num_classes + channel)
                own = sums_of(pixels_of(channel, classes, call.DIGITS), call.ROWS, call.COLUMNS)
                loss -= hard * dot(corner_shares(own, middle), z)
        source = next_class(source)
    # A label out of range makes NaN of the weight, too, and so of all of the gradient.
    loss = tl.where(classes.invalid, float("nan"), loss * LN2)
    return loss, tl.where(classes.invalid, float("nan"), total), near


@triton.jit
def store_losses(call):
    """What `loss_kernel` stores."""
    program, lane = tl.program_id(0), tl.arange(0, call.BLOCK)
    tile = tile_of(call)
    source, planes = source_of(call, tile), planes_of(call, tile)
    own = lane >= call.GROUPS  # not the first cell, which is another program's
    if call.EXACT:
        columns = tile.columns
        if not call.PIXELS:
            left_over = tl.load(call.left_over + program) >> lane & 1
            columns = tl.where(left_over == 1, columns, 0)
        loss, weight = exact_patches(call, tile, columns, source, planes, own)
    else:
        loss, weight, near = patch_loss(call, tile, source, planes)
        bits = tl.full([call.BLOCK], 1, tl.int64) << lane
        tl.store(call.left_over + program, tl.sum(tl.where(near, 0, bits)))
    if not call.PIXELS:
        loss, weight = tl.sum(tl.where(own, loss, 0.0)), tl.sum(tl.where(own, weight, 0.0))
        losses, weights = call.partial + program, call.partial + tl.num_programs(0) + program
        if call.EXACT:
            loss, weight = loss + tl.load(losses), weight + tl.load(weights)
            tl.debug_barrier()  # all lanes have loaded what one of them stores
        tl.store(losses, loss)
        tl.store(weights, weight)


@triton.jit(do_not_specialize=SIZES)
def loss_kernel(
    scores_ptr, target_ptr, table_ptr, partial_ptr, left_over_ptr, upper_ptr, lower_ptr, pixels_ptr,
    images, num_classes, height, width, plane_shift, lane_cells,
    row_n, row_size, row_num, row_off, row_den,
    row_first, row_cells, row_head, row_inner, row_patches,
    column_n, column_size, column_num, column_off, column_den,
    column_first, column_cells, column_head, column_inner, column_patches,
    ignore_index, xn, xc, xh, xw, tn, th, tw, pn, ph, pw,
    EXACT: tl.constexpr, PIXELS: tl.constexpr, GRADIENT: tl.constexpr, CLAMP: tl.constexpr,
    TABLE: tl.constexpr, IGNORES: tl.constexpr, DIGITS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """One program: a row of patches, ROWS x COLUMNS pixels each, of consecutive cells; a patch for
    each of its BLOCK lanes. See `cross_entropy_corners` for how programs share the pixels.

    Unless EXACT, by `patch_loss`. If EXACT pixel by pixel: if PIXELS all patches, otherwise those
    of the lanes that the former left over, added to what the others give.

    scores_ptr: images x num_classes x height x width, strides xn, xc, xh, xw.
    target_ptr: images x row_size x column_size labels, strides tn, th, tw.
    table_ptr: if TABLE, the `class_table`: 3 * num_classes + 1.
    partial_ptr: unless PIXELS, 2 x programs: the sums of the losses and of the weights of its
        pixels.
    left_over_ptr: unless PIXELS, programs: a bit for each lane whose scores range too widely.
    upper_ptr, lower_ptr: if GRADIENT, planes x images x num_classes x width each: what each row of
        patches gives to the corners above and below it.
    pixels_ptr: if PIXELS, images x row_size x column_size, strides pn, ph, pw: the losses; if
        GRADIENT, theirs.
    """
    if EXACT and not PIXELS:
        left_over = tl.load(left_over_ptr + tl.program_id(0))
        if left_over == 0:
            return
    store_losses(
        Call(
            Strided(scores_ptr, xn, xc, xh, xw), Strided(target_ptr, tn, 0, th, tw),
            Strided(pixels_ptr, pn, 0, ph, pw),
            table_ptr, partial_ptr, left_over_ptr, upper_ptr, lower_ptr,
            images, num_classes, height, width, plane_shift, lane_cells, ignore_index,
            Axis(row_n, row_size, row_num, row_off, row_den,
                 row_first, row_cells, row_head, row_inner, row_patches),
            Axis(column_n, column_size, column_num, column_off, column_den,
                 column_first, column_cells, column_head, column_inner, column_patches),
            EXACT, PIXELS, GRADIENT, CLAMP, TABLE, IGNORES, DIGITS, ROWS, COLUMNS, BLOCK, GROUPS,
        )
    )  # fmt: skip


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
    programs, images, length, width, pad, plane_shift, lane_cells,
    row_first, row_cells, row_head, row_inner, row_patches, column_first,
    REDUCTION: tl.constexpr, SHARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first program: the loss. Each other: BLOCK of the `length` values of a row of corners,
    which are all images' and classes'.

    partial_ptr: 2 x programs, see `loss_kernel`. loss_ptr, scale_ptr: one value each, or None.
    upper_ptr, lower_ptr: as `loss_kernel` leaves them. out_ptr: height x length, dense; its rows
    may be the rows of upper_ptr that are read for them. pad: rows of zeros above the map.
    """
    program = tl.program_id(0)
    if REDUCTION is not None:
        program -= 1
        if program < 0:
            finish(partial_ptr, loss_ptr, scale_ptr, programs, images, REDUCTION, BLOCK)
            return
    rows = Axis(0, 0, 0, 0, 0, row_first, row_cells, row_head, row_inner, row_patches)
    blocks = tl.cdiv(length, BLOCK)
    row = program // blocks
    value = program % blocks * BLOCK + tl.arange(0, BLOCK)
    cell = value % width + pad  # the one to the right of the corner
    seen = (cell >= column_first) & (cell < column_first + lane_cells) & (value < length)
    total = tl.zeros([BLOCK], tl.float32)
    stride = length.to(tl.int64)
    for side in tl.static_range(2):  # the patches below the corner, then those above it
        begin, end = patches_of(row + pad - side, rows)
        for share in range(SHARES):
            for patch in range(begin, end):
                plane = share * row_patches + plane_of(patch, rows, plane_shift)
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


def _losses(
    launch: Launch, scores: Tensor, target: Tensor, class_weight: Tensor | None,
    ignore_index: int, label_smoothing: float, gradient: bool, pixels: Tensor | None,
) -> tuple[Tensor | None, list[Tensor] | None]:  # fmt: skip
    """Launch `loss_kernel` on all patches; what it left: the partial sums, unless `pixels` are
    given, and the planes, if the gradient is wanted."""
    device = scores.device
    table = class_table(class_weight, label_smoothing, scores)
    limits = torch.iinfo(target.dtype)
    ignores = limits.min <= ignore_index <= limits.max
    partial = left_over = planes = None
    if pixels is None:
        partial = torch.empty(2 * launch.programs, dtype=torch.float32, device=device)
        left_over = torch.empty(launch.programs, dtype=torch.int64, device=device)
    if gradient:
        shape = (launch.shares * launch.rows.patches, *scores.shape[:2], scores.shape[3])
        planes = [torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2)]
    digits = max((scores.shape[1] - 1).bit_length(), 2)
    strides = (*scores.stride(), *target.stride(), *(target if pixels is None else pixels).stride())
    for exact in (False, True) if pixels is None else (True,):
        if launch.programs:
            loss_kernel[(launch.programs,)](
                scores, target, table, partial, left_over,
                *(planes or (scores, scores)),  # any tensor
                pixels, *launch.sizes, ignore_index if ignores else -1, *strides,  # -1: no class
                EXACT=exact, PIXELS=pixels is not None, GRADIENT=gradient,
                TABLE=table is not None, IGNORES=ignores, DIGITS=0 if exact else digits,
                **launch.options, **(EXACT_OPTIONS if exact else {}),
            )  # fmt: skip
    return partial, planes


def _combined(
    launch: Launch, scores: Tensor, partial: Tensor | None, planes: list[Tensor] | None,
    reduction: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What `forward` returns, from what `_losses` left: without planes no gradient, without a
    reduction nothing but the gradient."""
    images, num_classes, height, width = scores.shape
    rows, programs, length = launch.rows, 0, images * num_classes * width
    loss, scale = (torch.empty((), dtype=torch.float32, device=scores.device) for _ in range(2))
    upper, lower = planes or (scale, scale)  # any tensor
    gradient = scale.new_empty(0)
    if planes is not None:
        gradient, programs = upper[:height], height * triton.cdiv(length, BLOCK)
        if not launch.in_place:
            shape = (height, *upper.shape[1:])
            gradient = torch.empty(shape, dtype=torch.float32, device=scores.device)
    if programs or reduction is not None:
        combine_kernel[(programs + (reduction is not None),)](
            partial, loss, scale, upper, lower, gradient,
            launch.programs, images, length, width, int(not launch.options["CLAMP"]),
            launch.plane_shift, launch.lane_cells,
            rows.first, rows.cells, rows.head, rows.inner, rows.patches, launch.columns.first,
            REDUCTION=reduction, SHARES=launch.shares, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return loss, scale, gradient if planes is None else gradient.permute(1, 2, 0, 3)


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
    given = (launch, scores, target, class_weight, ignore_index, label_smoothing)
    with on_device(scores):
        if reduction == "none":
            loss = torch.empty(target.shape, dtype=torch.float32, device=scores.device)
            _losses(*given, False, loss)
            return loss, loss.new_empty(0), loss.new_empty(0)
        return _combined(launch, scores, *_losses(*given, with_gradient, None), reduction)


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
        ValueError: as `check_rows`, and for float64.
    """
    check_supported(gradient)
    channels_last = channels_last and gradient.shape[1] > 1
    form = torch.channels_last if channels_last else torch.contiguous_format
    shape, device = tuple(gradient.shape), gradient.device
    out = torch.empty(shape, dtype=dtype, device=device, memory_format=form)
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
    shares: Shares | None = None,
) -> Tensor:
    """The gradient of the scores under reduction "none".

    Args:
        scores, target, class_weight, grid, ignore_index, label_smoothing, shares: see `forward`.
        saved: what `forward` returned second: empty.
        grad_output: N x H x W in float32, the gradient of the pixels' losses, any strides.

    Returns:
        N x C x h x w of the dtype and in the memory format of `scores`, dense.

    Raises:
        ValueError: as `forward`.
    """
    check_supported(scores, grid)
    launch = launch_of(tuple(scores.shape), grid, shares)
    given = (launch, scores, target, class_weight, ignore_index, label_smoothing)
    with on_device(scores):
        left = _losses(*given, True, grad_output)
        _, _, gradient = _combined(launch, scores, *left, None)
    memory_format = torch.channels_last if is_channels_last(scores) else torch.contiguous_format
    return gradient.to(scores.dtype, memory_format=memory_format)
