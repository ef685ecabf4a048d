"""crop_add in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._tiles import empty_map


def window(x: Tensor, size: Sequence[int], offset: Sequence[int]) -> Tensor:
    """A view: `size` rows and columns of `x` from `offset` on."""
    return x[..., offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]


def forward(x: Tensor, skip: Tensor, offset: Sequence[int]) -> Tensor:
    """``x + skip[..., oy:oy+h, ox:ox+w]``."""
    return torch.add(x, window(skip, x.shape[-2:], offset), out=empty_map(x, x.shape[2:]))


def backward_skip(grad: Tensor, skip_shape: Sequence[int], offset: Sequence[int]) -> Tensor:
    """The gradient of `skip`: `grad` in the window, zeros around it."""
    result = empty_map(grad, skip_shape[2:]).zero_()
    window(result, grad.shape[-2:], offset).copy_(grad)
    return result
