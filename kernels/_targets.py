"""Device code of upsample_cross_entropy: labels, and what their pixels count.

Labels are (pointers to that of each patch's first pixel, strides of rows and columns, columns,
rows, ignore_index). Loops carry pointers on, as with corners.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def label_codes(pointers, inside, ignore_index, channels, IGNORES: tl.constexpr):
    """Labels as int32: the class, -1 for a pixel that does not count, -2 out of range.

    IGNORES: whether the labels' type can hold ignore_index.
    """
    if IGNORES:
        label = tl.load(pointers, mask=inside, other=ignore_index)
    else:
        label = tl.load(pointers, mask=inside, other=0)
    if label.dtype.primitive_bitwidth < 32:
        label = label.to(tl.int32)
    if label.dtype == tl.int32:
        known = label.to(tl.uint32, bitcast=True) < channels.to(tl.uint32)
    else:
        known = label.to(tl.uint64, bitcast=True) < channels.to(tl.uint64)
    code = tl.where(known, label.to(tl.int32), -2)
    return tl.where(label != ignore_index if IGNORES else inside, code, -1)


@triton.jit
def either(a, b):
    """Bits that are set in `a` or in `b`."""
    return a | b


@triton.jit
def row_labels(labels, COLUMNS: tl.constexpr):
    """Pointers to the labels of a patch's first row, for loops over rows to carry on."""
    pointers = ()
    for j in tl.static_range(COLUMNS):
        pointers = pointers + (labels[0] + j * labels[2],)
    return pointers


@triton.jit
def next_row(pointers, stride, COLUMNS: tl.constexpr):
    """Pointers to the labels of the next row."""
    moved = ()
    for j in tl.static_range(COLUMNS):
        moved = moved + (pointers[j] + stride,)
    return moved


@triton.jit
def label_survey(
    labels, channels, IGNORES: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    """Of each lane's labels: which pixels count, a bit for each, row by row; the classes, modulo
    32, a bit for each, with some that may not be there; whether one is out of range."""
    _, row_stride, _, columns, rows, ignore_index = labels
    pointers = row_labels(labels, COLUMNS)
    count = tl.zeros([BLOCK], tl.int64)
    present, lowest = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for i in range(rows):
        row = tl.zeros([BLOCK], tl.int32)
        for j in tl.static_range(COLUMNS):
            code = label_codes(pointers[j], j < columns, ignore_index, channels, IGNORES)
            lowest = tl.minimum(lowest, code)
            present = present | (1 << (code & 31))
            row = row | tl.where(code >= 0, 1 << j, 0)
        count = count | (row.to(tl.int64) << (i * COLUMNS))
        pointers = next_row(pointers, row_stride, COLUMNS)
    return count, tl.reduce(present, 0, either), lowest == -2


@triton.jit
def label_sums(
    labels, class_,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Four sums, as `corner_shares` takes them, over the pixels of a class that counts; which
    pixels they are, a bit for each, row by row."""
    _, row_stride, _, columns, rows, _ = labels
    pointers = row_labels(labels, COLUMNS)
    s = tl.zeros([BLOCK], ACC)
    s_x, s_y, s_xy = s, s, s
    hits = tl.zeros([BLOCK], tl.int64)
    for i in range(rows):
        row = tl.zeros([BLOCK], tl.int32)
        row_x, bits = row, row
        for j in tl.static_range(COLUMNS):
            here = j < columns
            hit = here & (tl.load(pointers[j], mask=here, other=0) == class_)
            row += tl.where(hit, 1, 0)
            row_x += tl.where(hit, j - COLUMNS // 2, 0)
            bits = bits | tl.where(hit, 1 << j, 0)
        y = i - ROWS // 2
        s, s_x = s + row.to(ACC), s_x + row_x.to(ACC)
        s_y, s_xy = s_y + (row * y).to(ACC), s_xy + (row_x * y).to(ACC)
        hits = hits | (bits.to(tl.int64) << (i * COLUMNS))
        pointers = next_row(pointers, row_stride, COLUMNS)
    return (s, s_x, s_y, s_xy), hits


@triton.jit
def hard_weight(table_ptr, channels, channel, TABLE: tl.constexpr, ACC: tl.constexpr):
    """What a label of a class counts."""
    if TABLE:
        return tl.load(table_ptr + channels + channel).to(ACC)
    else:
        return tl.full([], 1.0, ACC)


@triton.jit
def priced(code, table_ptr, channels, TABLE: tl.constexpr, ACC: tl.constexpr):
    """Of each pixel: the weight of its class, what its label counts, and what its softmax does."""
    known = code >= 0
    if TABLE:  # the weights, those times 1 - smoothing, times smoothing / C, and the last's sum
        own = tl.load(table_ptr + code, mask=known, other=0.0)
        hard = tl.load(table_ptr + channels + code, mask=known, other=0.0)
        return own, hard, hard + tl.where(known, tl.load(table_ptr + 3 * channels), 0.0)
    else:
        one = tl.where(known, 1.0, 0.0).to(ACC)
        return one, one, one
