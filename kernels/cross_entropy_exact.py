"""upsample_cross_entropy pixel by pixel: the softmax of each pixel by itself, exact for any scores.

For what the progressions of `cross_entropy` cannot do: patches whose scores range too widely or
have a NaN or an infinity, and ``reduction="none"``, which wants the loss of each pixel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .cross_entropy_corners import (
    SIZES,
    add_at_corners,
    label_codes,
    loaded,
    next_class,
    planes_of,
    source_of,
    tile_of,
)
from .cross_entropy_progressions import LN2, LOG2E
from .grid import Axis, Corners, Strided, fraction

# Registers that a thread may have; NVIDIA's compiler would spill to need fewer.
OPTIONS: dict[str, Any] = {} if torch.version.hip else {"maxnreg": 255}


@triton.jit
def between(a, b, part):
    """From `a` to `b`; what has no part in it is not read."""
    return tl.where(part == 0, a, tl.where(part == 1, b, a * (1 - part) + b * part))


@triton.jit
def times(value, part):
    """``value * part``; 0 for a part of 0, even of NaN."""
    return tl.where(part == 0, 0.0, value * part)


@triton.jit
def row_scores(source, part_y, parts_x, CLAMP: tl.constexpr, COLUMNS: tl.constexpr):
    """A class's scores at the pixels of one row of the patches, a tuple."""
    s = loaded(source, CLAMP)
    left, right = between(s.a, s.c, part_y), between(s.b, s.d, part_y)
    row = ()
    for j in tl.static_range(COLUMNS):
        row = row + (between(left, right, parts_x[j]),)
    return row


class PixelWeights(NamedTuple):
    """What a pixel of class t counts: see `class_table`.

    own: w_t, in the mean. hard: (1 - e) w_t. label: hard + k_t, which its label takes from the
    gradient. softmax: hard + sum k, which its softmax adds: of one class the same, to the last bit.
    """

    own: tl.tensor
    hard: tl.tensor
    label: tl.tensor
    softmax: tl.tensor


@triton.jit
def pixel_weights(code, table_ptr, num_classes, TABLE: tl.constexpr):
    """The PixelWeights of pixels by their codes; 0 for one that does not count."""
    valid = code >= 0
    if TABLE:
        own = tl.load(table_ptr + code, mask=valid, other=0.0)
        hard = tl.load(table_ptr + num_classes + code, mask=valid, other=0.0)
        label = hard + tl.load(table_ptr + 2 * num_classes + code, mask=valid, other=0.0)
        soft = tl.where(valid, tl.load(table_ptr + 3 * num_classes), 0.0)
        return PixelWeights(own, hard, label, hard + soft)
    else:
        one = tl.where(valid, 1.0, 0.0)
        return PixelWeights(one, one, one, one)


class RowStatistics(NamedTuple):
    """Of each pixel of a row, as tuples over its columns.

    best: the highest score. sums: of the exponentials relative to it. own: the label's score, and
    smooth: the sum of all scores times what smoothing counts, both relative to the highest, too.
    """

    best: tl.tuple
    sums: tl.tuple
    own: tl.tuple
    smooth: tl.tuple


@triton.jit
def row_statistics(
    source, part_y, parts_x, codes, num_classes, table_ptr,
    CLAMP: tl.constexpr, TABLE: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The RowStatistics of one row of each lane's patch: two passes over the classes."""
    smoothing = tl.zeros([], tl.float32)
    if TABLE:
        smoothing += tl.load(table_ptr + 3 * num_classes)
    best, sums, own, smooth = (), (), (), ()
    for _ in tl.static_range(COLUMNS):
        best = best + (tl.full([BLOCK], float("-inf"), tl.float32),)
        zero = tl.zeros([BLOCK], tl.float32)
        sums, own, smooth = sums + (zero,), own + (zero,), smooth + (zero,)
    at = source
    for _ in range(num_classes):
        row = row_scores(at, part_y, parts_x, CLAMP, COLUMNS)
        at = next_class(at)
        higher = ()
        for j in tl.static_range(COLUMNS):
            more = tl.maximum(best[j], row[j], propagate_nan=tl.PropagateNan.ALL)
            higher = higher + (more,)
        best = higher
    at = source
    for channel in range(num_classes):
        row = row_scores(at, part_y, parts_x, CLAMP, COLUMNS)
        at = next_class(at)
        more, more_own, more_smooth = (), (), ()
        for j in tl.static_range(COLUMNS):
            z = row[j] - best[j]
            more = more + (sums[j] + tl.exp2(z * LOG2E),)
            more_own = more_own + (tl.where(codes[j] == channel, z, own[j]),)
            if TABLE:
                k = tl.load(table_ptr + 2 * num_classes + channel)
                # As in torch: with smoothing a score of -inf counts, be its weight 0 or not.
                part = tl.where(smoothing == 0, 0.0, k * z)
                more_smooth = more_smooth + (smooth[j] + part,)
            else:
                more_smooth = more_smooth + (smooth[j],)
        sums, own, smooth = more, more_own, more_smooth
    return RowStatistics(best, sums, own, smooth)


@triton.jit
def exact_row(
    source, part_y, parts_x, codes, grad_output, columns, planes, num_classes, table_ptr,
    PIXELS: tl.constexpr, GRADIENT: tl.constexpr, CLAMP: tl.constexpr, TABLE: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The losses of one row of each lane's patch, and the weights, as tuples; if GRADIENT, what the
    row gives to the corners is added to `planes`.

    part_y, parts_x: how far into the cell the row and each column look. codes: of each pixel its
    label, as `label_codes`. grad_output: if PIXELS and GRADIENT, the gradient of its loss.
    """
    row_of = row_statistics(
        source, part_y, parts_x, codes, num_classes, table_ptr, CLAMP, TABLE, COLUMNS, BLOCK
    )
    losses, weights, factors, labels, valid = (), (), (), (), ()
    for j in tl.static_range(COLUMNS):
        w = pixel_weights(codes[j], table_ptr, num_classes, TABLE)
        loss = (
            w.softmax * (tl.log2(row_of.sums[j]) * LN2) - row_of.smooth[j] - w.hard * row_of.own[j]
        )
        # A label out of range makes NaN of the loss and of the weight, and so of the gradient.
        nothing = tl.where(codes[j] == -2, float("nan"), 0.0)
        losses = losses + (tl.where(codes[j] >= 0, loss, nothing),)
        weights = weights + (w.own + nothing,)
        scale = tl.where(codes[j] == -1, 0.0, 1.0 + nothing)
        if PIXELS and GRADIENT:
            scale = scale * grad_output[j]
        factors = factors + (w.softmax * scale / row_of.sums[j] + nothing,)
        labels, valid = labels + (w.label * scale,), valid + (scale,)
    if GRADIENT:
        # Other lanes than the one that stored a value may load it for the next row of the patch.
        tl.debug_barrier()
        at, upper, lower = source, planes.upper, planes.lower
        for channel in range(num_classes):
            row = row_scores(at, part_y, parts_x, CLAMP, COLUMNS)
            at = next_class(at)
            left, right = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
            for j in tl.static_range(COLUMNS):
                g = tl.exp2((row[j] - row_of.best[j]) * LOG2E) * factors[j]
                if TABLE:
                    other = tl.load(table_ptr + 2 * num_classes + channel) * valid[j]
                    g -= tl.where(codes[j] == channel, labels[j], other)
                else:
                    g -= tl.where(codes[j] == channel, labels[j], 0.0)
                g = tl.where(j < columns, g, 0.0)  # also a NaN of a pixel that is not there
                left += times(g, 1 - parts_x[j])
                right += times(g, parts_x[j])
            shares = Corners(
                times(left, 1 - part_y), times(right, 1 - part_y),
                times(left, part_y), times(right, part_y),
            )  # fmt: skip
            add_at_corners(upper, lower, planes, shares, BLOCK, GROUPS, True)
            upper, lower = upper + planes.stride, lower + planes.stride
    return losses, weights


@triton.jit(do_not_specialize=SIZES)
def exact_kernel(
    scores_ptr, target_ptr, table_ptr, partial_ptr, left_over_ptr, upper_ptr, lower_ptr,
    grad_output_ptr, loss_ptr,
    images, num_classes, height, width, row_patches, plane_shift, lane_cells,
    row_size, row_num, row_off, row_den, row_first, row_cells, row_head, row_inner,
    column_size, column_num, column_off, column_den, column_first,
    ignore_index,
    xn, xc, xh, xw, tn, th, tw, gn, gh, gw,
    PIXELS: tl.constexpr, GRADIENT: tl.constexpr, CLAMP: tl.constexpr, TABLE: tl.constexpr,
    IGNORES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """One program: the pixels of a row of patches, a patch for each lane, row after row.

    Unless PIXELS, only those of the lanes that `patch_kernel` left over, added to the others'.

    scores_ptr to lower_ptr: see `cross_entropy.patch_kernel`.
    grad_output_ptr: if PIXELS and GRADIENT, images x row_size x column_size gradients of the
        pixels' losses, strides gn, gh, gw.
    loss_ptr: if PIXELS and not GRADIENT, images x row_size x column_size losses, dense.
    """
    program = tl.program_id(0)
    if not PIXELS:
        left_over = tl.load(left_over_ptr + program)
        if left_over == 0:
            return
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
    image, y, x, columns = tile.image, tile.y, tile.x, tile.columns
    source = source_of(Strided(scores_ptr, xn, xc, xh, xw), tile, height, width, CLAMP)
    if not PIXELS:
        columns = tl.where((left_over >> tl.arange(0, BLOCK)) & 1 == 1, columns, 0)
    planes = planes_of(
        upper_ptr, lower_ptr, tile, lane_cells, column_first, images, num_classes, width,
        CLAMP, BLOCK, GROUPS,
    )  # fmt: skip
    loss, weight = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if PIXELS and GRADIENT:
        upper, lower, zeros = planes.upper, planes.lower, Corners(loss, loss, loss, loss)
        for _ in range(num_classes):
            add_at_corners(upper, lower, planes, zeros, BLOCK, GROUPS, False)
            upper, lower = upper + planes.stride, lower + planes.stride
    parts_x = ()
    for j in tl.static_range(COLUMNS):
        parts_x = parts_x + (fraction(tile.column, x + j, columns_axis)[0],)
    own = tl.arange(0, BLOCK) >= GROUPS  # not the first cell, which is another program's
    for i in range(tile.rows):
        part_y = fraction(tile.row, y + i, rows_axis)[0]
        row = (y + i).to(tl.int64)
        codes, grad_output = (), ()
        for j in tl.static_range(COLUMNS):
            pointers = target_ptr + image * tn + row * th + (x + j).to(tl.int64) * tw
            code = label_codes(pointers, j < columns, ignore_index, num_classes, IGNORES)
            codes = codes + (code,)
            if PIXELS and GRADIENT:
                pointers = grad_output_ptr + image * gn + row * gh + (x + j).to(tl.int64) * gw
                grad = tl.load(pointers, mask=j < columns, other=0.0)
                grad_output = grad_output + (grad.to(tl.float32),)
        losses, weights = exact_row(
            source, part_y, parts_x, codes, grad_output, columns, planes, num_classes, table_ptr,
            PIXELS, GRADIENT, CLAMP, TABLE, COLUMNS, BLOCK, GROUPS,
        )  # fmt: skip
        for j in tl.static_range(COLUMNS):
            loss += losses[j]
            weight += weights[j]
            if PIXELS and not GRADIENT:
                pointers = loss_ptr + (image * row_size + row) * column_size + x + j
                tl.store(pointers, losses[j], mask=(j < columns) & own)
    if not PIXELS:
        loss_sum, weight_sum = partial_ptr + program, partial_ptr + tl.num_programs(0) + program
        loss = tl.load(loss_sum) + tl.sum(tl.where(own, loss, 0.0))
        weight = tl.load(weight_sum) + tl.sum(tl.where(own, weight, 0.0))
        tl.debug_barrier()  # all lanes have loaded what one of them stores
        tl.store(loss_sum, loss)
        tl.store(weight_sum, weight)
