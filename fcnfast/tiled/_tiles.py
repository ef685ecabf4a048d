"""Shared by the plain-torch paths: strips of an axis, finiteness, memory formats.

Bilinear sampling is a product with one small banded matrix for the rows and one for the columns,
one strip at a time. A product reads taps of weight 0 (0 * inf is NaN), so non-finite maps gather
instead, as do devices where checking for them would synchronize.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..geometry import SamplingGrid, axis_taps

# Floats in a tile for each thread: enough to amortize the overhead of an op, and few enough that
# the tile and its copies stay in the threads' share of the cache.
TILE_ELEMENTS = 1 << 18
# A GPU wants few, large steps.
GPU_TILE_ELEMENTS = 1 << 24
# No tile exceeds this share of the full-resolution logits, unless it has at most FEW_ELEMENTS. A
# fifth of the rows must fit, including void places.
TILE_SHARE = 2 / 9
FEW_ELEMENTS = 1 << 14


@dataclass(frozen=True, eq=False)
class Strip:
    """Output indices [first, last) along one axis and the map indices [low, high) that they read.

    matrix: (last - first) x (high - low) weights. i0, i1 (into [low, high)), w0, w1: the same as
    taps, for gathers. reads_all: no tap has weight 0.
    """

    first: int
    last: int
    low: int
    high: int
    matrix: Tensor
    i0: Tensor
    i1: Tensor
    w0: Tensor
    w1: Tensor
    reads_all: bool

    def sample(self, x: Tensor) -> Tensor:
        """Sample a finite outer x [low, high) x inner: outer x [first, last) x inner.

        This is ``torch.lerp`` between the taps; a tap outside the map is 0.
        """
        left, right = x.index_select(1, self.i0), x.index_select(1, self.i1)
        if self.reads_all:
            return left.lerp_(right, self.w1[:, None])
        part = torch.where(self.w1 == 0, 1 - self.w0, self.w1)
        right *= (self.w1 != 0)[:, None]
        left *= (self.w0 != 0)[:, None]
        return left.lerp_(right, part[:, None])


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # cached for calls in every mode
def strips(
    grid: SamplingGrid, axis: int, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[Strip, ...]:
    """Cut the axis into strips of `length` outputs."""
    taps, found = axis_taps(grid, axis, dtype, device), []
    index = torch.stack([taps.i0, taps.i1]).cpu()
    used = torch.stack([taps.w0, taps.w1]).cpu() != 0
    for first in range(0, grid.size[axis], length):
        last = min(grid.size[axis], first + length)
        here = index[:, first:last][used[:, first:last]]
        low, high = (int(here.min()), int(here.max()) + 1) if here.numel() else (0, 1)
        w0, w1 = taps.w0[first:last], taps.w1[first:last]
        i0 = (taps.i0[first:last] - low).clamp(0, high - low - 1)  # a tap of weight 0 may lie
        i1 = (taps.i1[first:last] - low).clamp(0, high - low - 1)  # outside: it is not read
        matrix = torch.zeros(last - first, high - low, dtype=dtype, device=device)
        matrix.scatter_add_(1, i0[:, None], w0[:, None])
        matrix.scatter_add_(1, i1[:, None], w1[:, None])
        all_read = bool(used[:, first:last].all())
        found.append(Strip(first, last, low, high, matrix, i0, i1, w0, w1, all_read))
    return tuple(found)


def even_length(total: int, most: int) -> int:
    """The length that cuts `total` into the fewest parts of at most `most`, evenly."""
    return -(-total // -(-total // max(1, most)))


def tile_elements(logits: int, device: torch.device, copies: int = 4) -> int:
    """The most floats in a tile, given the number of full-resolution logits.

    copies: about how many buffers of this size are in use at a time.
    """
    most = GPU_TILE_ELEMENTS
    if device.type == "cpu":
        most = 4 * TILE_ELEMENTS // copies * max(2, torch.get_num_threads())
    return min(most, max(FEW_ELEMENTS, int(logits * TILE_SHARE)))


def _along(weight: Tensor, x: Tensor, dim: int) -> Tensor:
    return weight.view([-1 if d == dim else 1 for d in range(x.dim())])


def masked_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x * weight``; zero weight gives 0, even for NaN."""
    return torch.where(weight == 0, 0.0, x * weight)


def gather(x: Tensor, strip: Strip, dim: int) -> Tensor:
    """Sample `x`, which begins at the strip's `low` along `dim`; zero weight reads nothing."""
    left = masked_product(x.index_select(dim, strip.i0), _along(strip.w0, x, dim))
    return left + masked_product(x.index_select(dim, strip.i1), _along(strip.w1, x, dim))


def scatter(g: Tensor, strip: Strip, dim: int) -> Tensor:
    """The adjoint of `gather`. On a GPU its order of summation is not fixed; a product's is."""
    shape = list(g.shape)
    shape[dim] = strip.high - strip.low
    result = g.new_zeros(shape)
    result.index_add_(dim, strip.i0, masked_product(g, _along(strip.w0, g, dim)))
    return result.index_add_(dim, strip.i1, masked_product(g, _along(strip.w1, g, dim)))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def coarse(x: Tensor) -> Tensor:
    """`x` in NCHW order and the compute dtype; it is the small map, so a copy is cheap."""
    return x.detach().to(compute_dtype(x)).contiguous()


def dense(x: Tensor) -> Tensor:
    """`x` in the compute dtype and its own memory format: of NCHW and channels_last, no copy."""
    return x.detach().to(compute_dtype(x)).contiguous(memory_format=memory_format(x))


def is_finite(x: Tensor) -> bool:
    """Whether products and differences are safe: no NaN, no infinity, nothing near overflow.

    Never synchronizes: on any device but a CPU the answer is no.
    """
    if x.device.type != "cpu" or x.numel() == 0:
        return x.device.type == "cpu"
    x = x.permute(0, 2, 3, 1) if x.dim() == 4 and is_channels_last(x) else x  # else it copies
    low, high = torch.aminmax(x)  # a NaN becomes both; several times faster than isfinite
    limit = torch.finfo(x.dtype).max / 4
    return -limit < low.item() and high.item() < limit


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of the N x C x H x W tensor `x` lie next to each other in memory."""
    channels = x.shape[1]
    return channels > 1 and x.stride(1) == 1 and x.stride(3) >= channels


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of results computed from `x`: channels_last, or else NCHW."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def empty_map(x: Tensor, size: Sequence[int], device: Any = None) -> Tensor:
    """A dense map of `size` with the images, channels, dtype, device and memory format of `x`."""
    shape, device = (*x.shape[:2], *size), device or x.device
    return torch.empty(shape, dtype=x.dtype, device=device, memory_format=memory_format(x))
