"""The FCN decoder: maps that know where they lie, skip fusion, and the last upsampling.

Crops and grids follow from the receptive-field calculus; no offset is written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..geometry import ReceptiveField, SamplingGrid
from ..ops import upsample_crop_add

IMAGE = ReceptiveField()


class Located(NamedTuple):
    """A feature map, N x C x h x w, and where its units lie on the image."""

    x: Tensor
    field: ReceptiveField


def _one(value: int | str | tuple[int, ...], what: str) -> int:
    if isinstance(value, str):
        raise ValueError(f"{what} must be given in pixels, not as {value!r}")
    values = {value} if isinstance(value, int) else set(value)
    if len(values) != 1:
        raise ValueError(f"{what} must be the same along both axes, not {value}")
    return values.pop()


def after(field: ReceptiveField, layer: nn.Module) -> ReceptiveField:
    """The field behind one layer: convolutions and poolings move it, pointwise layers do not.

    Raises:
        ValueError: for settings that differ between the axes.
    """
    if isinstance(layer, (nn.Sequential, nn.ModuleList)):
        for inner in layer:
            field = after(field, inner)
    elif isinstance(layer, nn.ConvTranspose2d):
        field = field.deconv(
            _one(layer.kernel_size, "kernel_size"),
            _one(layer.stride, "stride"),
            _one(layer.padding, "padding"),
        )
    elif isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        field = field.conv(
            _one(layer.kernel_size, "kernel_size"),
            _one(layer.stride, "stride"),
            _one(layer.padding, "padding"),
            _one(getattr(layer, "dilation", 1), "dilation"),
        )
    return field


def bilinear_kernels(stride: int) -> tuple[int, int]:
    """The two kernel sizes whose transposed convolution is bilinear sampling: default first."""
    return 2 * stride - stride % 2, 2 * stride - 1


def fuse(coarse: Located, skip: Located) -> Located:
    """Section 4.2 of the paper: transposed convolution, then the sum with the cropped skip.

    Raises:
        ValueError: when no crop lays the skip over the upsampled map, or the skip is too small.
    """
    stride = int(coarse.field.stride / skip.field.stride)
    kernel = bilinear_kernels(stride)[0]
    field = coarse.field.deconv(kernel, stride)
    offset = skip.field.crop_onto(field)
    grid = SamplingGrid.deconv(tuple(coarse.x.shape[-2:]), stride, kernel)
    return Located(upsample_crop_add(coarse.x, skip.x, grid, offset), field)


def fuse_aligned(coarse: Located, skip: Located) -> Located:
    """The sum of a skip and the coarse map sampled where the skip's units lie; nothing is cropped.

    For trunks whose own padding keeps the maps in place: no large padding is needed.
    """
    stride = coarse.field.stride / skip.field.stride
    offset = (coarse.field.offset - skip.field.offset) / skip.field.stride
    size = tuple(skip.x.shape[-2:])
    grid = SamplingGrid.centres(tuple(coarse.x.shape[-2:]), stride, offset, size, "clamp")
    return Located(upsample_crop_add(coarse.x, skip.x, grid, (0, 0)), skip.field)


def image_grid(scores: Located, size: Sequence[int]) -> SamplingGrid:
    """The last transposed convolution and its crop to an image of `size` (H, W).

    Raises:
        ValueError: when the crop would be negative or no whole number, or the upsampled map does
            not cover the image (too little padding).
    """
    stride = int(scores.field.stride)
    in_size = tuple(scores.x.shape[-2:])
    kernel, other = bilinear_kernels(stride)
    if scores.field.deconv(kernel, stride).offset.denominator != 1:
        kernel = other  # units centred on whole pixels, as in AlexNet: an odd kernel
    offset = scores.field.deconv(kernel, stride).crop_onto(IMAGE)
    return SamplingGrid.deconv(in_size, stride, kernel, crop=(offset, offset), size=size)


def image_grid_aligned(scores: Located, size: Sequence[int]) -> SamplingGrid:
    """Each pixel of an image of `size` (H, W) samples the scores where it lies among them."""
    field = scores.field
    in_size = tuple(scores.x.shape[-2:])
    return SamplingGrid.centres(in_size, field.stride, field.offset, size, "clamp")
