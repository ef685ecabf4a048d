"""Training as in sections 3.3 and 3.4 of the paper: learned upsampling, loss sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..nn import Deconv


def stacked_deconvolutions(
    channels: int, strides: Sequence[int], activation: Callable[[], nn.Module] | None = None
) -> nn.Sequential:
    """A stack of learnable deconvolutions, which can learn even a nonlinear upsampling.

    Each maps C x h x w to C x s h x s w and starts as bilinear interpolation of each channel, with
    the pixel centers of `SamplingGrid.resize` (section 3.3 of the paper).

    Args:
        channels, strides: C, and the factor s of each deconvolution, at least 2.
        activation: makes the layer between two of them, such as ``nn.PReLU``. (A ReLU blocks
            negative scores at first: shift them.)

    TypeError when channels or a stride is not an integer, or strides is not a sequence; ValueError
    when strides is empty or has one below 2, or channels is not positive.
    """
    if not isinstance(strides, Sequence) or any(type(stride) is not int for stride in strides):
        raise TypeError(f"strides must be a sequence of integers such as (2, 2), not {strides!r}")
    if not strides or min(strides) < 2:
        raise ValueError(f"strides must be 2 or more each, and at least one, not {list(strides)}")
    layers: list[nn.Module] = []
    for stride in strides:
        if layers and activation is not None:
            layers.append(activation())
        layers.append(Deconv(channels, stride, padding=stride // 2))  # exactly s times as large
    return nn.Sequential(*layers)


def sample_patches(
    target: Tensor,
    p: float,
    cell: int,
    generator: torch.Generator | None = None,
    *,
    ignore_index: int = 255,
) -> Tensor:
    """Keep each cell of a label map with probability `p`, and ignore the others.

    This is patchwise training as loss sampling (section 3.4 of the paper): an image is a batch of
    patches, one for each cell of the last layer. The expected gradient of a summed loss is `p`
    times the full one; for batches of the same effective size use 1 / `p` times as many images.

    Args:
        target: N x H x W labels; the result is a new tensor of the same dtype.
        p: in (0, 1].
        cell: height and width in pixels; the network's stride gives the cells of its last layer.
        generator: on the target's device; torch's default when None.
        ignore_index: the label that the loss ignores.

    TypeError when the target is not an integer tensor; ValueError when the target is not 3-D, p or
    cell is out of range, or the dtype cannot hold ignore_index.
    """
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target must hold integer labels, not {target.dtype}")
    if target.dim() != 3:
        raise ValueError(f"target must be N x H x W, not of shape {tuple(target.shape)}")
    if not 0 < p <= 1:
        raise ValueError(f"p must lie in (0, 1], not {p}")
    if cell < 1:
        raise ValueError(f"cell must be at least 1 pixel, not {cell}")
    limits = torch.iinfo(target.dtype)
    if not limits.min <= ignore_index <= limits.max:
        raise ValueError(f"ignore_index {ignore_index} does not fit labels of {target.dtype}")
    images, height, width = target.shape
    cells = (images, -(-height // cell), -(-width // cell))
    kept = torch.rand(cells, generator=generator, device=target.device) < p
    kept = kept.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    return torch.where(kept[:, :height, :width], target, ignore_index)
