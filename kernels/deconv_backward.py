"""The gradients of deconv: of its input, and of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import (
    DECONV_SIZES,
    Plan,
    best_block,
    check_rows,
    check_supported,
    coarse_pair,
    coarse_segment,
    empty_like,
    group_of,
    is_channels_last,
    on_device,
    pairs_of,
    phase_rows,
    row_alignment,
    segment_length,
    warps,
    window_sums,
)

# Values of a block of the gradient, rows of it that a program takes, at most, and programs to aim
# at: short strips keep a GPU busy.
TILE, STRIP, PROGRAMS = 2048, 64, 2048
# Images that a program takes at once: they have the weights in common.
IMAGES = 4


@triton.jit(do_not_specialize=DECONV_SIZES)
def weight_kernel(
    grad_ptr, x_ptr, out_ptr,
    strip, channels, in_height, in_width, height, width, kernel, row_start, column_start,
    gn, gc, gh, gw, xn, xc, xh, xw,
    CHANNELS_LAST: tl.constexpr, GROUP: tl.constexpr, DENSE: tl.constexpr,
    STRIDE: tl.constexpr, PAIRS: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK: tl.constexpr, SEGMENT: tl.constexpr, RESULTS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One program: what BLOCK values of each of `strip` rows of one phase say about the weights.

    grad_ptr: N x channels x height x width, strides gn, gc, gh, gw; pixel (0, 0) is
        (row_start, column_start) of the full result. If DENSE the values of a row are contiguous,
        and rows start at multiples of ALIGN. Channels lie interleaved if CHANNELS_LAST: of these a
        block takes GROUP.
    x_ptr: N x channels x in_height x in_width, strides xn, xc, xh, xw.
    out_ptr: parts x channels x kernel x kernel, dense: to be summed over the parts, one for each
        image, strip and block.

    The rows are summed up for each column, then the columns of a phase, at most WINDOW, for each
    of RESULTS weights.
    """
    groups = tl.cdiv(channels, GROUP) if CHANNELS_LAST else 1
    length = width * GROUP // ALIGN * ALIGN
    blocks, strips = tl.cdiv(length, BLOCK), tl.cdiv(tl.cdiv(height, STRIDE), strip)
    block, c = tl.program_id(0) % blocks, tl.program_id(0) // blocks % groups * GROUP
    number = tl.program_id(0) // blocks // groups
    strip_number, number = number % strips, number // strips
    phase, number = number % STRIDE, number // STRIDE
    across, down, plane = number % PAIRS * 2, number // PAIRS % PAIRS * 2, number // PAIRS // PAIRS
    first_row, last_row = phase_rows(phase, strip_number, strip, height, row_start, STRIDE)
    n = plane
    if not CHANNELS_LAST:
        n, c = plane // channels, plane % channels

    first = block * BLOCK
    value = first + tl.arange(0, BLOCK)
    x, channel = value // GROUP, value % GROUP
    cell = (x + column_start) // STRIDE - across
    near_valid, far_valid = (cell >= 0) & (cell < in_width), (cell >= 1) & (cell <= in_width)
    start = (first // GROUP + column_start) // STRIDE - across - 1
    segment, in_map = coarse_segment(n, c, start, channels, in_width, xn, xc, xw, GROUP, SEGMENT)
    place = (cell - start) * GROUP + channel
    valid = value < length
    if not DENSE:
        valid &= c + channel < channels
        value = x.to(tl.int64) * gw + channel.to(tl.int64) * gc
    grad_ptr += (n.to(tl.int64) * gn + c.to(tl.int64) * gc) // ALIGN * ALIGN

    by_near = tl.zeros([BLOCK], tl.float32)
    by_far, by_above, by_above_far = by_near, by_near, by_near
    row = first_row - down
    above, above_far = coarse_pair(x_ptr, row - 1, in_height, xh, segment, in_map, place, GROUP)
    for q in range(first_row, last_row):
        near, far = coarse_pair(x_ptr, row, in_height, xh, segment, in_map, place, GROUP)
        y = (q * STRIDE + phase - row_start).to(tl.int64)
        row_ptr = grad_ptr + y * (gh // ALIGN * ALIGN)
        grad = tl.load(row_ptr + value, mask=valid, other=0.0).to(tl.float32)
        if (row >= 0) & (row < in_height):
            by_near += grad * near
            by_far += grad * far
        if (row >= 1) & (row <= in_height):
            by_above += grad * above
            by_above_far += grad * above_far
        above, above_far = near, far
        row += 1

    result = tl.arange(0, RESULTS)
    channel, column = result // STRIDE, result % STRIDE
    x = first // GROUP
    x += (column + STRIDE - (x + column_start) % STRIDE) % STRIDE
    x = x[None, :] + tl.arange(0, WINDOW)[:, None] * STRIDE
    index = x * GROUP + channel[None, :] - first
    inside = (index >= 0) & (index < BLOCK) & (x < width) & (channel < GROUP)[None, :]
    index, w = tl.where(inside, index, 0), inside.to(tl.float32)
    part = (n * strips + strip_number) * blocks + block
    w_row, w_column = phase + down * STRIDE, column + across * STRIDE
    out_ptr += (part.to(tl.int64) * channels + c) * kernel * kernel
    target = (channel.to(tl.int64) * kernel + w_row) * kernel + w_column
    valid = (c + channel < channels) & (channel < GROUP)
    near_in, far_in = valid & (w_column < kernel), valid & (w_column + STRIDE < kernel)
    sums = window_sums(tl.where(near_valid, by_near, 0.0), index, w)
    tl.store(out_ptr + target, sums, mask=near_in & (w_row < kernel))
    sums = window_sums(tl.where(far_valid, by_far, 0.0), index, w)
    tl.store(out_ptr + target + STRIDE, sums, mask=far_in & (w_row < kernel))
    target += kernel * STRIDE
    sums = window_sums(tl.where(near_valid, by_above, 0.0), index, w)
    tl.store(out_ptr + target, sums, mask=near_in & (w_row + STRIDE < kernel))
    sums = window_sums(tl.where(far_valid, by_above_far, 0.0), index, w)
    tl.store(out_ptr + target + STRIDE, sums, mask=far_in & (w_row + STRIDE < kernel))


@triton.jit(do_not_specialize=["images", *DECONV_SIZES, "columns"])
def input_kernel(
    grad_ptr, w_ptr, out_ptr,
    images, strip, channels, in_height, in_width, height, width, kernel, row_start, column_start,
    gn, gc, gh, gw, columns,
    CHANNELS_LAST: tl.constexpr, GROUP: tl.constexpr, STRIDE: tl.constexpr, PAIRS: tl.constexpr,
    IMAGES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One program: `columns` columns of `strip` rows of the coarse map, for IMAGES images.

    grad_ptr: images x channels x height x width, strides gn, gc, gh, gw; pixel (0, 0) is
        (row_start, column_start) of the full result.
    w_ptr: channels x kernel x kernel, dense.
    out_ptr: images x channels x in_height x in_width, dense. A row holds one channel, or all of
        them interleaved if CHANNELS_LAST: of these the program takes GROUP.

    The rows of the gradient, TILE values of them, are summed up with their weights for a cell, then
    the columns of a cell, WINDOW at most, for each of BLOCK results. More than one of PAIRS needs
    a strip of 1.
    """
    groups = tl.cdiv(channels, GROUP) if CHANNELS_LAST else 1
    blocks, strips = tl.cdiv(in_width, columns), tl.cdiv(in_height, strip)
    first, c = tl.program_id(0) % blocks * columns, tl.program_id(0) // blocks % groups * GROUP
    number = tl.program_id(0) // blocks // groups
    first_row, number = number % strips * strip, number // strips
    rows = tl.minimum(in_height - first_row, strip)
    if not CHANNELS_LAST:
        c, number = number % channels, number // channels

    result = tl.arange(0, IMAGES * BLOCK)
    image, result = result // BLOCK, result % BLOCK
    j, channel = first + result // GROUP, result % GROUP
    valid_result = (number * IMAGES + image < images) & (result < columns * GROUP)
    valid_result &= (j < in_width) & (c + channel < channels)
    plane, results, pitch = number * IMAGES + image, j, in_width
    if CHANNELS_LAST:
        results, pitch = j * channels + c + channel, in_width * channels
    else:
        plane = plane * channels + c
    results += plane.to(tl.int64) * in_height * pitch
    column = tl.arange(0, WINDOW)[:, None]
    index = image * TILE + (j - first) * STRIDE * GROUP + channel
    inside = (column < STRIDE) & (result < columns * GROUP)[None, :]
    index, w = tl.where(inside, index[None, :] + column * GROUP, 0), inside.to(tl.float32)

    n = number * IMAGES + tl.arange(0, IMAGES)[:, None]
    value = tl.arange(0, TILE)[None, :]
    channel = value % GROUP
    grad_ptr += n.to(tl.int64) * gn + (c + channel).to(tl.int64) * gc
    w_ptr += (c + channel).to(tl.int64) * kernel * kernel
    total = tl.zeros([IMAGES * BLOCK], tl.float32)
    for pair in range(0, PAIRS * PAIRS):
        across, down = pair % PAIRS * 2, pair // PAIRS * 2
        x = (first + across) * STRIDE - column_start + value // GROUP
        valid = (x >= 0) & (x < width) & (c + channel < channels)
        valid &= value < (columns + 1) * STRIDE * GROUP
        w_column = value // GROUP % STRIDE + across * STRIDE
        near_valid, far_valid = valid & (w_column < kernel), valid & (w_column + STRIDE < kernel)
        above = tl.zeros([IMAGES, TILE], tl.float32)
        above_far = above
        for step in range(0, rows + 1):
            near = tl.zeros([IMAGES, TILE], tl.float32)
            far = near
            y = (first_row + down + step) * STRIDE - row_start
            last = tl.minimum(tl.minimum(height - y, kernel - down * STRIDE), STRIDE)
            for phase in range(tl.maximum(-y, 0), last):
                source = grad_ptr + (y + phase).to(tl.int64) * gh + x.to(tl.int64) * gw
                grad = tl.load(source, mask=valid & (n < images), other=0.0).to(tl.float32)
                source = w_ptr + (phase + down * STRIDE) * kernel + w_column
                near += grad * tl.load(source, mask=near_valid, other=0.0).to(tl.float32)
                w_far = tl.load(source + STRIDE, mask=far_valid, other=0.0)
                far += grad * w_far.to(tl.float32)
                if phase + (down + 1) * STRIDE < kernel:
                    source += kernel * STRIDE
                    above += grad * tl.load(source, mask=near_valid, other=0.0).to(tl.float32)
                    w_far = tl.load(source + STRIDE, mask=far_valid, other=0.0)
                    above_far += grad * w_far.to(tl.float32)
            if step > 0:
                by_near = tl.reshape(tl.where(near_valid, above, 0.0), [IMAGES * TILE])
                by_far = tl.reshape(tl.where(far_valid, above_far, 0.0), [IMAGES * TILE])
                part = window_sums(by_near, index, w)
                part += window_sums(by_far, index + STRIDE * GROUP, w)
                total = part if PAIRS == 1 else total + part
                target = out_ptr + (first_row + step - 1).to(tl.int64) * pitch + results
                tl.store(target, total.to(out_ptr.dtype.element_ty), mask=valid_result)
            above, above_far = near, far


@lru_cache(maxsize=1024)
def weight_plan(
    shape: tuple[int, ...], channels_last: bool, align: int, kernel: int, stride: int
) -> Plan:
    """How the kernel reads a gradient of `shape`; the rows are those of a strip.

    align: of the gradient, as `row_alignment`.
    """
    rows, _ = check_rows(shape, channels_last)
    channels, height, width = shape[1:]
    group, pairs = group_of(channels, channels_last), pairs_of(kernel, stride)
    align = align if group == channels or not channels_last else 0
    block = best_block(width * group, TILE // 2)
    groups = triton.cdiv(channels, group) if channels_last else 1
    blocks, most = triton.cdiv(width * group, block), triton.cdiv(height, stride)
    strip = min(max(rows * blocks * groups // PROGRAMS, 4), STRIP)
    options = {
        "CHANNELS_LAST": channels_last, "GROUP": group, "DENSE": align > 0, "STRIDE": stride,
        "PAIRS": pairs, "ALIGN": max(align, 1), "BLOCK": block,
        "SEGMENT": segment_length(block, group, stride),
        "RESULTS": triton.next_power_of_2(group * stride),
        "WINDOW": triton.next_power_of_2(((block - 1) // group + 1) // stride + 2),
        "num_warps": warps(block * (1 + (pairs > 1))),
    }  # fmt: skip
    parts = triton.cdiv(most, strip) * blocks
    programs = rows // height * stride * pairs**2 * parts * groups
    return Plan(programs, strip, options)


def input_shares(
    shape: tuple[int, ...], channels_last: bool, stride: int
) -> tuple[int, int, int, int]:
    """Images, channels, coarse columns, and values of a row for one image, of a program."""
    images, channels, _, width = shape
    images = min(triton.next_power_of_2(images), IMAGES)
    most = TILE // images
    group = max(min(group_of(channels, channels_last), most // (4 * stride)), 1)
    tiles = [max(most, triton.next_power_of_2(2 * stride * group))]
    while tiles[-1] >= max(4 * stride * group, 64):
        tiles.append(tiles[-1] // 2)
    # A cell more than columns is read. The fewest values in all, of these the largest tile:
    columns = [min(tile // (stride * group) - 1, width) for tile in tiles]
    ways = zip(columns, tiles, strict=True)
    best = min(ways, key=lambda way: (triton.cdiv(width, way[0]) * way[1], -way[1]))
    return images, group, *best


@lru_cache(maxsize=1024)
def input_plan(shape: tuple[int, ...], channels_last: bool, kernel: int, stride: int) -> Plan:
    """How the kernel makes the dense gradient of the input, of `shape`."""
    check_rows(shape, channels_last)
    number, channels, height, width = shape
    images, group, columns, tile = input_shares(shape, channels_last, stride)
    blocks = triton.cdiv(width, columns) * (
        triton.cdiv(channels, group) if channels_last else channels
    )
    blocks *= triton.cdiv(number, images)
    pairs = pairs_of(kernel, stride)
    strip = 1 if pairs > 1 else min(max(height * blocks // PROGRAMS, 2), 16)
    options = {
        "columns": columns, "CHANNELS_LAST": channels_last, "GROUP": group, "STRIDE": stride,
        "PAIRS": pairs, "IMAGES": images, "TILE": tile,
        "BLOCK": triton.next_power_of_2(columns * group), "WINDOW": triton.next_power_of_2(stride),
        "num_warps": warps(images * tile * (1 + (pairs > 1))),
    }  # fmt: skip
    return Plan(blocks * triton.cdiv(height, strip), strip, options)


def weight_gradient(
    grad: Tensor, x: Tensor, stride: int, start: Sequence[int], kernel: int, dtype: torch.dtype
) -> Tensor:
    """The gradient of `weight`, given that of ``deconv.forward(x, weight, stride, start, size)``.

    Args:
        grad: N x C x H x W, any strides.
        x: N x C x h x w of the same dtype, any strides.
        kernel: k, the rows and the columns of `weight`.
        dtype: that of `weight`.

    Returns:
        C x 1 x k x k of `dtype`; the same in every run.

    Raises:
        ValueError: as `check_rows` of `grad`, and for float64.
    """
    check_supported(grad)
    images, channels, height, width = grad.shape
    if grad.numel() == 0:
        return grad.new_zeros((channels, 1, kernel, kernel), dtype=dtype)
    channels_last = is_channels_last(grad)
    align = row_alignment(grad, channels_last)
    programs, strip, options = weight_plan(tuple(grad.shape), channels_last, align, kernel, stride)
    parts = images * triton.cdiv(triton.cdiv(height, stride), strip)
    parts *= triton.cdiv(width * options["GROUP"], options["BLOCK"])
    shape = (parts, channels, kernel, kernel)
    sums = torch.empty(shape, dtype=torch.float32, device=grad.device)
    sizes = (strip, channels, *x.shape[2:], height, width, kernel, *start)
    with on_device(grad):
        weight_kernel[(programs,)](grad, x, sums, *sizes, *grad.stride(), *x.stride(), **options)
    return sums.sum(0)[:, None].to(dtype)


def input_gradient(
    grad: Tensor, weight: Tensor, stride: int, start: Sequence[int], in_size: Sequence[int]
) -> Tensor:
    """The gradient of `x`, given that of ``deconv.forward(x, weight, stride, start, size)``.

    Args:
        grad: N x C x H x W, any strides.
        weight: C x 1 x k x k of the same dtype.
        in_size: (h, w), the size of `x`.

    Returns:
        N x C x h x w of the dtype and in the memory format of `grad`; the same in every run.

    Raises:
        ValueError: as `check_rows` of `grad` or the result, and for float64.
    """
    check_supported(grad)
    out = empty_like(grad, (*grad.shape[:2], *in_size))
    if grad.numel() == 0:
        return out
    kernel, channels_last = weight.shape[-1], is_channels_last(grad)
    check_rows(grad.shape, channels_last)
    programs, strip, options = input_plan(tuple(out.shape), channels_last, kernel, stride)
    sizes = (len(grad), strip, *out.shape[1:], *grad.shape[2:], kernel, *start, *grad.stride())
    with on_device(grad):
        input_kernel[(programs,)](grad, weight.contiguous(), out, *sizes, **options)
    return out
