"""Patchwise training as loss sampling (section 3.4 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_patches(
    target: Tensor,
    p: float,
    cell: int,
    generator: torch.Generator | None = None,
    *,
    ignore_index: int = 255,
) -> Tensor:
    """Keep each cell of a label map with probability `p`, and ignore the others.

    A whole image is a batch of patches, one for each cell of the last layer; leaving cells out of
    the loss is training on a random part of them. With a summed loss the expected gradient is `p`
    times the whole one; for batches of the same size take 1 / `p` times as many images. (Whether
    the paper's cells are those before or after the upsampling it does not say; here a cell is
    `cell` x `cell` pixels.)

    Args:
        target: N x H x W labels.
        p: in (0, 1].
        cell: pixels, the network's stride for cells of its last layer.
        generator: of the target's device; torch's own when None.
        ignore_index: what the loss ignores.

    Returns:
        A new N x H x W target of the same type.

    Raises:
        TypeError: when the target is no integer tensor.
        ValueError: for another rank, p, or cell, or an ignore_index that the type cannot hold.
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
