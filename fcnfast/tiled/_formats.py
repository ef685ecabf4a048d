"""Memory formats: results lie in memory as the op's first argument does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of the N x C x H x W tensor `x` lie next to each other in memory."""
    channels = x.shape[1]
    return channels > 1 and x.stride(1) == 1 and x.stride(3) >= channels


def memory_format(x: Tensor) -> torch.memory_format:
    """The format that results made from `x` have: channels_last, or else NCHW."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def empty_like(x: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A dense tensor of `shape` (N, C, H, W) on the device and in the memory format of `x`."""
    return torch.empty(
        tuple(shape), dtype=dtype or x.dtype, device=x.device, memory_format=memory_format(x)
    )
