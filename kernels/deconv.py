"""deconv: a learnable depthwise transposed convolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .deconv_backward import input_gradient as input_gradient
from .deconv_backward import weight_gradient as weight_gradient
from .grid import (
    DECONV_SIZES,
    Plan,
    alignment,
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
    segment_length,
    warps,
)

# Values of a block, rows that a program makes, at most, and programs to aim at: short strips keep
# a GPU busy.
TILE, STRIP, PROGRAMS = 1024, 32, 2048


@triton.jit
def weight_pair(
    w_ptr, row, c, channels, kernel, channel, column, near_valid, far_valid,
    STRIDE: tl.constexpr, WEIGHTS: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """The weights of the near and the far values of a block, from row `row` of the kernels.

    w_ptr: channels x kernel x kernel, dense. Of each channel from c on WEIGHTS are loaded, a power
    of two of at least `kernel`: TABLE of them. channel, column: where the near ones are.
    """
    place = tl.arange(0, TABLE)
    valid = (c + place // WEIGHTS < channels) & (place % WEIGHTS < kernel) & (row < kernel)
    start = ((c + place // WEIGHTS).to(tl.int64) * kernel + row) * kernel
    weights = tl.load(w_ptr + start + place % WEIGHTS, mask=valid, other=0.0)
    place = channel * WEIGHTS + column
    near = tl.where(near_valid, tl.gather(weights, tl.where(near_valid, place, 0), 0), 0.0)
    far = tl.where(far_valid, tl.gather(weights, tl.where(far_valid, place + STRIDE, 0), 0), 0.0)
    return near.to(tl.float32), far.to(tl.float32)


@triton.jit(do_not_specialize=DECONV_SIZES)
def forward_kernel(
    x_ptr, w_ptr, out_ptr,
    strip, channels, in_height, in_width, height, width, kernel, row_start, column_start,
    xn, xc, xh, xw,
    CHANNELS_LAST: tl.constexpr, GROUP: tl.constexpr, DENSE: tl.constexpr,
    STRIDE: tl.constexpr, EXACT: tl.constexpr, PAIRS: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK: tl.constexpr, SEGMENT: tl.constexpr, WEIGHTS: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK values of each of `strip` rows of one phase of a plane of the result.

    x_ptr: N x channels x in_height x in_width, strides xn, xc, xh, xw.
    w_ptr: channels x kernel x kernel, dense.
    out_ptr: N x channels x height x width, dense; pixel (0, 0) is (row_start, column_start) of the
        full result. A row holds one channel, or all of them interleaved if CHANNELS_LAST: of these
        a block takes GROUP. If DENSE these are all; rows start at multiples of ALIGN.

    The rows of a phase have their weights in common. More than one of PAIRS needs a strip of 1.
    EXACT kernels are a multiple of twice the stride.
    """
    groups = tl.cdiv(channels, GROUP) if CHANNELS_LAST else 1
    length = width * GROUP // ALIGN * ALIGN
    blocks, strips = tl.cdiv(length, BLOCK), tl.cdiv(tl.cdiv(height, STRIDE), strip)
    first, c = tl.program_id(0) % blocks * BLOCK, tl.program_id(0) // blocks % groups * GROUP
    number = tl.program_id(0) // blocks // groups
    phase, plane = number // strips % STRIDE, number // strips // STRIDE
    first_row, last_row = phase_rows(phase, number % strips, strip, height, row_start, STRIDE)
    n = plane
    if not CHANNELS_LAST:
        n, c = plane // channels, plane % channels

    value = first + tl.arange(0, BLOCK)
    x, channel = value // GROUP, value % GROUP
    cell = (x + column_start) // STRIDE
    column = x + column_start - cell * STRIDE
    first_cell = (first // GROUP + column_start) // STRIDE
    valid, pitch = value < length, length  # pitch: from one row of the result to the next
    if not DENSE:
        valid, pitch = valid & (c + channel < channels), width * channels
        value = x * channels + c + channel

    total = tl.zeros([BLOCK], tl.float32)
    for pair in range(0, PAIRS * PAIRS):
        near_cell, w_row = cell - pair % PAIRS * 2, phase + pair // PAIRS * 2 * STRIDE
        w_column = column + pair % PAIRS * 2 * STRIDE
        near_valid = (near_cell >= 0) & (near_cell < in_width) & (w_column < kernel)
        far_valid = (near_cell >= 1) & (near_cell <= in_width) & (w_column + STRIDE < kernel)
        start = first_cell - pair % PAIRS * 2 - 1
        segment, in_map = coarse_segment(
            n, c, start, channels, in_width, xn, xc, xw, GROUP, SEGMENT
        )
        place = (near_cell - start) * GROUP + channel
        w, w_far = weight_pair(
            w_ptr, w_row, c, channels, kernel, channel, w_column, near_valid, far_valid,
            STRIDE, WEIGHTS, TABLE,
        )  # fmt: skip
        w_above, w_above_far = weight_pair(
            w_ptr, w_row + STRIDE, c, channels, kernel, channel, w_column, near_valid, far_valid,
            STRIDE, WEIGHTS, TABLE,
        )  # fmt: skip
        row = first_row - pair // PAIRS * 2
        above, above_far = coarse_pair(x_ptr, row - 1, in_height, xh, segment, in_map, place, GROUP)
        for q in range(first_row, last_row):
            near, far = coarse_pair(x_ptr, row, in_height, xh, segment, in_map, place, GROUP)
            if not EXACT:  # weights beyond the kernel are 0, but what they meet may not be finite
                near = tl.where(near_valid & (w_row < kernel), near, 0.0)
                far = tl.where(far_valid & (w_row < kernel), far, 0.0)
                above = tl.where(near_valid & (w_row + STRIDE < kernel), above, 0.0)
                above_far = tl.where(far_valid & (w_row + STRIDE < kernel), above_far, 0.0)
            part = near * w + far * w_far + above * w_above + above_far * w_above_far
            total = part if PAIRS == 1 else total + part
            y = plane.to(tl.int64) * height + (q * STRIDE + phase - row_start)
            tl.store(out_ptr + y * pitch + value, total.to(out_ptr.dtype.element_ty), mask=valid)
            above, above_far = near, far
            row += 1


@lru_cache(maxsize=1024)
def plan(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, kernel: int, stride: int
) -> Plan:
    """How the kernel makes its dense result."""
    rows, length = check_rows(shape, channels_last)
    channels, height, width = shape[1:]
    group, pairs = group_of(channels, channels_last), pairs_of(kernel, stride)
    dense = not channels_last or group == channels
    block = best_block(width * group, TILE)
    groups = triton.cdiv(channels, group) if channels_last else 1
    blocks, most = triton.cdiv(width * group, block) * groups, triton.cdiv(height, stride)
    strip = 1 if pairs > 1 else min(max(rows * blocks // PROGRAMS, 4), STRIP)
    weights = triton.next_power_of_2(kernel)
    options = {
        "CHANNELS_LAST": channels_last, "GROUP": group, "DENSE": dense, "STRIDE": stride,
        "EXACT": kernel % (2 * stride) == 0, "PAIRS": pairs,
        "ALIGN": alignment(length, dtype) if dense else 1, "BLOCK": block,
        "SEGMENT": segment_length(block, group, stride), "WEIGHTS": weights,
        "TABLE": weights * triton.next_power_of_2(group),
        "num_warps": warps(block * (1 + (pairs > 1))),
    }  # fmt: skip
    return Plan(rows // height * stride * triton.cdiv(most, strip) * blocks, strip, options)


def forward(
    x: Tensor, weight: Tensor, stride: int, start: Sequence[int], size: Sequence[int]
) -> Tensor:
    """A window of the transposed convolution of `x` with `weight`, each channel on its own.

    Args:
        x: N x C x h x w, any strides.
        weight: C x 1 x k x k of the same dtype.
        stride: pixels from one coarse value to the next, s.
        start: first (row, column) kept of the full result of (h - 1) s + k x (w - 1) s + k pixels.
        size: (H, W) that are kept, within the full result (not checked).

    Returns:
        N x C x H x W of the dtype and in the memory format of `x`; sums are in float32
        and rounded once.

    Raises:
        ValueError: as `check_rows` of the result, and for float64.
    """
    check_supported(x)
    out = empty_like(x, (*x.shape[:2], *size))
    if out.numel():
        kernel = weight.shape[-1]
        settings = (is_channels_last(x), kernel, stride)
        programs, strip, options = plan(tuple(out.shape), x.dtype, *settings)
        sizes = (strip, *x.shape[1:], *size, kernel, *start, *x.stride())
        with on_device(x):
            forward_kernel[(programs,)](x, weight.contiguous(), out, *sizes, **options)
    return out
