"""Host helpers of the launchers: memory formats, block sizes, and the device to launch on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

VECTOR_BYTES = 16
# Kernels count rows, and the values of one, in int32: half its range, so that no block overshoots.
MOST = 2**30
# Sizes and positions differ from picture to picture: no kernel of its own for a 1 or a multiple of
# 16 among them.
GRID_SIZES = ["in_height", "in_width", "height", "width"]
GRID_SIZES += [f"{axis}_{part}" for axis in ("row", "column") for part in ("num", "off", "den")]


class Plan(NamedTuple):
    """How programs share a result: their number, the rows that each takes, a kernel's options."""

    programs: int
    rows: int
    options: dict[str, Any]


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of the N x C x H x W tensor `x` lie next to each other in memory."""
    channels = x.shape[1]
    return channels > 1 and x.stride(1) == 1 and x.stride(3) >= channels


def empty_like(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A dense N x C x H x W tensor of the dtype, on the device and in the memory format of `x`."""
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=x.dtype, device=x.device, memory_format=memory_format)


def check_rows(shape: Sequence[int], channels_last: bool) -> tuple[int, int]:
    """An N x C x H x W tensor as rows: how many there are, and how many values each has.

    A row holds one channel, or all of them interleaved.

    Raises:
        ValueError: when there are more than 2**30 rows, or values in one.
    """
    images, channels, height, width = shape
    planes, length = (images, width * channels) if channels_last else (images * channels, width)
    if max(planes * height, length) > MOST:
        raise ValueError(f"{tuple(shape)} has more than {MOST} rows, or values in a row")
    return planes * height, length


def dense_rows(out: Tensor, channels_last: bool) -> tuple[int, int]:
    """The rows of contiguous values of a dense tensor, as `check_rows`."""
    return check_rows(out.shape, channels_last)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The type that a kernel computes in: float32, or float64 for float64."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def alignment(length: int, dtype: torch.dtype) -> int:
    """The power of two that every row of `length` values starts at a multiple of.

    Counted in values, and up to what one vector access takes.
    """
    return gcd(length, VECTOR_BYTES // dtype.itemsize)


def row_alignment(x: Tensor, channels_last: bool) -> int:
    """The same for a tensor of any strides; 0 if the values of a row are not contiguous."""
    images, channels, height, width = x.shape
    interleaved = channels if channels_last else 1
    if x.stride(3) != interleaved or (channels_last and x.stride(1) != 1):
        return 0
    starts = [(images, x.stride(0)), (height, x.stride(2))]
    starts += [] if channels_last else [(channels, x.stride(1))]
    strides = [stride for number, stride in starts if number > 1]
    return gcd(width * interleaved, *strides, VECTOR_BYTES // x.dtype.itemsize)


def best_block(length: int, largest: int) -> int:
    """The block size, a power of two of at most `largest`, for rows of `length` values.

    The largest that reaches at most a quarter beyond the end; if none does, the least far.
    """
    sizes = [min(largest, triton.next_power_of_2(length))]
    while sizes[-1] > 32:
        sizes.append(sizes[-1] // 2)
    excess = {size: -length % size / length for size in sizes}
    fitting = [size for size in sizes if excess[size] <= 0.25]
    return fitting[0] if fitting else min(sizes, key=excess.__getitem__)


def warps(values: int) -> int:
    """Warps, 1 to 8, for a block of `values` with eight of them for each thread."""
    return min(max(triton.next_power_of_2(values) // 256, 1), 8)


def gathering_warps(values: int) -> int:
    """The same for kernels that gather: two at least, as one would gather by shuffles."""
    return max(warps(values), 2)


def is_wide(grid: SamplingGrid, beyond: int) -> bool:
    """Whether positions need int64, or their remainders more than float32's 24 bits.

    beyond: how far blocks reach beyond the end of an axis.
    """
    axes = zip(grid.in_size, grid.size, grid.num, grid.off, grid.den, strict=True)
    return any(
        den > 2**24 or num * (size + beyond) + abs(off) + (n + 2) * den >= 2**31
        for n, size, num, off, den in axes
    )


def grid_arguments(grid: SamplingGrid) -> tuple[int, ...]:
    """The grid as kernels take it, by the names GRID_SIZES."""
    rows, columns = zip(grid.num, grid.off, grid.den, strict=True)
    return (*grid.in_size, *grid.size, *rows, *columns)


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Launch within: Triton takes the current GPU, which need not be the one that holds `x`."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
