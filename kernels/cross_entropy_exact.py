"""upsample_cross_entropy pixel by pixel: the softmax of each pixel by itself, exact for any scores.

For what the progressions of `cross_entropy` cannot do: patches whose scores range too widely or
have a NaN or an infinity, and ``reduction="none"``, which wants the loss of each pixel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cross_entropy_corners import add_at_corners, label_codes, loaded, next_class
from .cross_entropy_progressions import LN2, LOG2E
from .grid import Corners, fraction


@triton.jit
def between(a, b, part):
    """From `a` to `b`; what has no part in it is not read."""
    return tl.where(part == 0, a, tl.where(part == 1, b, a * (1 - part) + b * part))


@triton.jit
def times(value, part):
    """``value * part``; 0 for a part of 0, even of NaN."""
    return tl.where(part == 0, 0.0, value * part)


@triton.jit
def row_scores(call, source, part_y, parts_x):
    """A class's scores at the pixels of one row of the patches, a tuple."""
    s = loaded(source, call.CLAMP)
    left, right = between(s.a, s.c, part_y), between(s.b, s.d, part_y)
    row = ()
    for j in tl.static_range(call.COLUMNS):
        row = row + (between(left, right, parts_x[j]),)
    return row


@triton.jit
def pixel_weights(call, code):
    """What a pixel of class t counts, by its code (see `class_table`); 0 if it does not count.

    Returns w_t, its share of the mean; (1 - e) w_t; that plus k_t, which its label takes from the
    gradient; plus the sum of the k, which its softmax adds: of one class the same, to the last bit.
    """
    valid = code >= 0
    if call.TABLE:
        own = tl.load(call.table + code, mask=valid, other=0.0)
        hard = tl.load(call.table + call.num_classes + code, mask=valid, other=0.0)
        label = hard + tl.load(call.table + 2 * call.num_classes + code, mask=valid, other=0.0)
        soft = tl.where(valid, tl.load(call.table + 3 * call.num_classes), 0.0)
        return own, hard, label, hard + soft
    else:
        one = tl.where(valid, 1.0, 0.0)
        return one, one, one, one


@triton.jit
def row_statistics(call, source, part_y, parts_x, codes):
    """Of each pixel of a row, in tuples: its highest score; the sum of the exponentials relative to
    it; the label's score, and the sum of all scores times what smoothing counts, relative, too."""
    smoothing = tl.zeros([], tl.float32)
    if call.TABLE:
        smoothing += tl.load(call.table + 3 * call.num_classes)
    best, sums, own, smooth = (), (), (), ()
    for _ in tl.static_range(call.COLUMNS):
        best = best + (tl.full([call.BLOCK], float("-inf"), tl.float32),)
        zero = tl.zeros([call.BLOCK], tl.float32)
        sums, own, smooth = sums + (zero,), own + (zero,), smooth + (zero,)
    at = source
    for _ in range(call.num_classes):
        row = row_scores(call, at, part_y, parts_x)
        at = next_class(at)
        higher = ()
        for j in tl.static_range(call.COLUMNS):
            more = tl.maximum(best[j], row[j], propagate_nan=tl.PropagateNan.ALL)
            higher = higher + (more,)
        best = higher
    at = source
    for channel in range(call.num_classes):
        row = row_scores(call, at, part_y, parts_x)
        at = next_class(at)
        more, more_own, more_smooth = (), (), ()
        for j in tl.static_range(call.COLUMNS):
            z = row[j] - best[j]
            more = more + (sums[j] + tl.exp2(z * LOG2E),)
            more_own = more_own + (tl.where(codes[j] == channel, z, own[j]),)
            if call.TABLE:
                k = tl.load(call.table + 2 * call.num_classes + channel)
                # As in torch: with smoothing a score of -inf counts, be its weight 0 or not.
                part = tl.where(smoothing == 0, 0.0, k * z)
                more_smooth = more_smooth + (smooth[j] + part,)
            else:
                more_smooth = more_smooth + (smooth[j],)
        sums, own, smooth = more, more_own, more_smooth
    return best, sums, own, smooth


@triton.jit
def exact_row(
    call, source, part_y, parts_x, codes, grad_output, columns, planes
):  # fmt: skip
    """The losses of one row of each lane's patch, and the weights, as tuples; if GRADIENT, what the
    row gives to the corners is added to `planes`.

    part_y, parts_x: how far into the cell the row and each column look. codes: of each pixel its
    label, as `label_codes`. grad_output: if PIXELS and GRADIENT, the gradient of its loss.
    """
    best, sums, own, smooth = row_statistics(call, source, part_y, parts_x, codes)
    losses, weights, factors, labels, valid = (), (), (), (), ()
    for j in tl.static_range(call.COLUMNS):
        mean, hard, label, softmax = pixel_weights(call, codes[j])
        loss = softmax * (tl.log2(sums[j]) * LN2) - smooth[j] - hard * own[j]
        # A label out of range makes NaN of the loss and of the weight, and so of the gradient.
        nothing = tl.where(codes[j] == -2, float("nan"), 0.0)
        losses = losses + (tl.where(codes[j] >= 0, loss, nothing),)
        weights = weights + (mean + nothing,)
        scale = tl.where(codes[j] == -1, 0.0, 1.0 + nothing)
        if call.PIXELS and call.GRADIENT:
            scale = scale * grad_output[j]
        factors = factors + (softmax * scale / sums[j] + nothing,)
        labels, valid = labels + (label * scale,), valid + (scale,)
    if call.GRADIENT:
        # Other lanes than the one that stored a value may load it for the next row of the patch.
        tl.debug_barrier()
        at, upper, lower = source, planes.upper, planes.lower
        for channel in range(call.num_classes):
            row = row_scores(call, at, part_y, parts_x)
            at = next_class(at)
            left, right = tl.zeros([call.BLOCK], tl.float32), tl.zeros([call.BLOCK], tl.float32)
            for j in tl.static_range(call.COLUMNS):
                g = tl.exp2((row[j] - best[j]) * LOG2E) * factors[j]
                if call.TABLE:
                    other = tl.load(call.table + 2 * call.num_classes + channel) * valid[j]
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
            add_at_corners(call, upper, lower, planes, shares, True)
            upper, lower = upper + planes.stride, lower + planes.stride
    return losses, weights


@triton.jit
def exact_patches(call, tile, columns, source, planes, own):
    """The losses of each lane's patch, and the weights, row after row; what they give to the
    corners is added to the planes, which are zeroed first if PIXELS.

    columns: how many each lane's patch has to be computed. own: lanes that store their losses.
    """
    target, pixels = call.target, call.pixels
    loss = tl.zeros([call.BLOCK], tl.float32)
    weight = loss
    if call.PIXELS and call.GRADIENT:
        upper, lower, zeros = planes.upper, planes.lower, Corners(loss, loss, loss, loss)
        for _ in range(call.num_classes):
            add_at_corners(call, upper, lower, planes, zeros, False)
            upper, lower = upper + planes.stride, lower + planes.stride
    parts_x = ()
    for j in tl.static_range(call.COLUMNS):
        parts_x = parts_x + (fraction(tile.column, tile.x + j, call.columns)[0],)
    for i in range(tile.rows):
        part_y = fraction(tile.row, tile.y + i, call.rows)[0]
        y = (tile.y + i).to(tl.int64)
        codes, grad_output = (), ()
        for j in tl.static_range(call.COLUMNS):
            x = (tile.x + j).to(tl.int64)
            pointers = target.ptr + tile.image * target.n + y * target.h + x * target.w
            codes = codes + (label_codes(call, pointers, j < columns),)
            if call.PIXELS and call.GRADIENT:
                pointers = pixels.ptr + tile.image * pixels.n + y * pixels.h + x * pixels.w
                grad = tl.load(pointers, mask=j < columns, other=0.0)
                grad_output = grad_output + (grad.to(tl.float32),)
        losses, weights = exact_row(
            call, source, part_y, parts_x, codes, grad_output, columns, planes
        )
        for j in tl.static_range(call.COLUMNS):
            loss += losses[j]
            weight += weights[j]
            if call.PIXELS and not call.GRADIENT:
                x = (tile.x + j).to(tl.int64)
                pointers = pixels.ptr + tile.image * pixels.n + y * pixels.h + x * pixels.w
                tl.store(pointers, losses[j], mask=(j < columns) & own)
    return loss, weight
