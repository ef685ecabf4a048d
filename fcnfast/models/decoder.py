"""The FCN decoder: maps with their place on the image, skip fusion, and the last upsampling.

Crops and grids are derived from receptive fields, not hard-coded. Beyond its edge a map continues
in one of two ways: with zeros, as in transposed convolutions (the paper's nets, whose padded canvas
is larger than the image), or by repeating its edge (nets without such a padding).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import reduce
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import Border, ReceptiveField, SamplingGrid
from ..nn import bilinear_filter
from ..ops import crop_add, deconv, upsample_crop_add
from .base import ScoreMap

IMAGE = ReceptiveField()
Upsampling = Literal["fixed", "depthwise", "dense"]
UPSAMPLINGS = ("fixed", "depthwise", "dense")


class Located(NamedTuple):
    """A feature map, N x C x h x w, and where its units lie on the image."""

    x: Tensor
    field: ReceptiveField


def single(value: int | str | Sequence[int], what: str) -> int:
    """A layer's setting along both axes; ValueError if it is not one number."""
    if isinstance(value, str):
        raise ValueError(f"{what} must be given in pixels, not as {value!r}")
    values = (value,) if isinstance(value, int) else tuple(value)
    if len(set(values)) != 1:
        raise ValueError(f"a {what} of {values} differs between rows and columns")
    return values[0]


def window_of(layer: nn.Module) -> tuple[int, int, int, int] | None:
    """Kernel, stride, padding and dilation of a convolution or a pooling; None for other layers.

    ValueError for settings that differ between the axes.
    """
    if not isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        return None
    names = ("kernel_size", "stride", "padding", "dilation")  # an average pooling has no dilation
    kernel, stride, padding, dilation = (single(getattr(layer, name, 1), name) for name in names)
    return kernel, stride, padding, dilation


def after(field: ReceptiveField, layer: nn.Module) -> ReceptiveField:
    """The field after one layer: convolutions and poolings change it, pointwise layers do not.

    A layer of several branches returns the layers of each from a method `branches`; the widest
    branch counts, and the first gives the map's size. In a block with a shortcut, [] is the
    identity. ValueError for settings that differ between the axes, or branches that do not align.
    """
    if hasattr(layer, "branches"):
        fields = [reduce(after, row, field) for row in layer.branches()]  # type: ignore[operator]
        stride, offset = fields[0].stride, fields[0].offset
        if any((f.stride, f.offset) != (stride, offset) for f in fields):
            raise ValueError(f"branches at {' and '.join(map(str, fields))} cannot be joined")
        return ReceptiveField(max(f.size for f in fields), stride, offset)
    if isinstance(layer, (nn.Sequential, nn.ModuleList)):
        return reduce(after, layer, field)
    if isinstance(layer, nn.ConvTranspose2d):
        names = ("kernel_size", "stride", "padding")
        return field.deconv(*(single(getattr(layer, name), name) for name in names))
    window = window_of(layer)
    return field if window is None else field.conv(*window)


def size_after(size: int, layer: nn.Module) -> int:
    """How many units a map of `size` units has after one layer; below 1 if it is too small."""
    if hasattr(layer, "branches"):
        return reduce(size_after, layer.branches()[0], size)  # type: ignore[operator]
    if isinstance(layer, (nn.Sequential, nn.ModuleList)):
        return reduce(size_after, layer, size)
    if (window := window_of(layer)) is None:
        return size
    kernel, stride, padding, dilation = window
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    if not getattr(layer, "ceil_mode", False):
        return reach // stride + 1
    count = -(-reach // stride) + 1
    # Caffe and torch drop a last window that would begin in the padding after the map.
    return count - 1 if padding and (count - 1) * stride >= size + padding else count


class Step(NamedTuple):
    """One upsampling: unit 0 of the coarse map sits at `origin` on the finer one, `stride` apart.

    kernel: that of the bilinear transposed convolution whose result starts at a whole unit.
    """

    stride: int
    origin: Fraction
    kernel: int

    @property
    def start(self) -> int:
        """Where the transposed convolution's result begins on the finer map; may be negative."""
        return (self.origin - Fraction(self.kernel - 1, 2)).numerator

    def length(self, size: int) -> int:
        """How long the transposed convolution of `size` units is."""
        return (size - 1) * self.stride + self.kernel


def step_between(coarse: ReceptiveField, fine: ReceptiveField) -> Step:
    """The upsampling from one field to a finer one.

    ValueError unless a bilinear transposed convolution aligns the units with the finer ones.
    """
    ratio = coarse.stride / fine.stride
    origin = (coarse.offset - fine.offset) / fine.stride
    if ratio.denominator != 1:
        raise ValueError(f"a stride of {coarse.stride} is not a multiple of {fine.stride}")
    stride = ratio.numerator
    for kernel in (2 * stride - stride % 2, 2 * stride - 1):
        if (origin - Fraction(kernel - 1, 2)).denominator == 1:
            return Step(stride, origin, kernel)
    raise ValueError(f"no crop aligns units {stride} apart, from {origin} on, with whole units")


class Upscore(nn.ConvTranspose2d):
    """A learned upsampling: a transposed convolution without bias, initialized to be bilinear.

    dense: C x C filters, diagonal at the start, as in the reference implementation; otherwise a
    filter for each channel (C x 1 x k x k).
    """

    def __init__(self, channels: int, step: Step, dense: bool) -> None:
        groups = 1 if dense else channels
        super().__init__(channels, channels, step.kernel, step.stride, groups=groups, bias=False)
        self.dense = dense

    def reset_parameters(self) -> None:
        """Initialize to bilinear interpolation of every channel by itself."""
        kernel = bilinear_filter(single(self.kernel_size, "kernel_size"))
        with torch.no_grad():
            each = kernel.expand(self.in_channels, 1, -1, -1)
            self.weight.copy_(as_upsampling(each, self.groups == 1))

    def forward(  # type: ignore[override]
        self, x: Tensor, step: Step, size: Sequence[int], border: Border
    ) -> Tensor:
        """`size` pixels of the finer map, from its origin on: N x C x H x W.

        The map is first padded by as many units as its edge pixels read beyond it.
        """
        pads, crops = [], []
        for have, want in zip(x.shape[-2:], size, strict=True):
            before = max(0, -(-step.start // step.stride))
            behind = max(0, -((step.start + step.length(have) - want) // step.stride))
            pads.append((before, behind))
            crops.append(before * step.stride - step.start)
        (top, bottom), (left, right) = pads
        if border == "clamp":
            # One more unit on each side, so that the faded edge of the result is cropped away.
            x = F.pad(x, (left + 1, right + 1, top + 1, bottom + 1), mode="replicate")
            crops = [crop + step.stride for crop in crops]
        elif max(top, bottom, left, right):
            x = F.pad(x, (left, right, top, bottom))
        if not self.dense:
            return deconv(x, self.weight, step.stride, crop=crops, size=size)
        y = F.conv_transpose2d(x, self.weight, stride=step.stride)
        return y[..., crops[0] : crops[0] + size[0], crops[1] : crops[1] + size[1]]


def fuse(
    coarse: Located, skip: Located, border: Border = "zero", up: Upscore | None = None
) -> Located:
    """Section 4.2 of the paper: upsample the coarse scores and add the finer ones.

    With the zero border the result covers the overlap of both maps: the skip is cropped, as in the
    paper. With the clamped one it covers all of the skip. `up` is a learned upsampling.

    ValueError when no upsampling aligns the maps, or they do not overlap.
    """
    step = step_between(coarse.field, skip.field)
    sizes = tuple(coarse.x.shape[-2:])
    offset, size = 0, tuple(skip.x.shape[-2:])
    if border == "zero":
        offset = max(0, step.start)
        ends = [step.start + step.length(n) for n in sizes]
        size = tuple(min(m, end) - offset for m, end in zip(size, ends, strict=True))
        if min(size) < 1:
            raise ValueError(f"a skip of {tuple(skip.x.shape[-2:])} does not reach the scores")
    field = skip.field.crop(offset)
    moved = Step(step.stride, step.origin - offset, step.kernel)
    if up is None:
        grid = SamplingGrid.centers(sizes, step.stride, moved.origin, size, border)
        return Located(upsample_crop_add(coarse.x, skip.x, grid, (offset, offset)), field)
    x = up(coarse.x, moved, size, border)
    return Located(crop_add(x, skip.x, (offset, offset)), field)


def on_image(
    scores: Located, size: Sequence[int], border: Border = "zero", up: Upscore | None = None
) -> ScoreMap:
    """The last upsampling, to an image of `size` (H, W); a learned one is computed here."""
    field, in_size = scores.field, tuple(scores.x.shape[-2:])
    if up is None:
        grid = SamplingGrid.centers(in_size, field.stride, field.offset, size, border)
        return ScoreMap(scores.x, grid)
    full = up(scores.x, step_between(field, IMAGE), size, border)
    return ScoreMap(full, SamplingGrid.resize(size, size))


def upsampling_of(weight: Tensor) -> Upsampling:
    """The upsampling that a deconvolution weight, C x C x k x k or C x 1 x k x k, needs.

    "fixed" only if every class has exactly the bilinear filter (rounded to the weight's dtype) and
    the classes do not mix; "depthwise" if they do not mix; otherwise "dense".
    """
    own = as_upsampling(weight, dense=False)
    if int(weight.count_nonzero()) != int(own.count_nonzero()):  # some are off the diagonal
        return "dense"
    tent = bilinear_filter(weight.shape[-1]).to(weight.dtype)
    # Caffe and others make the filter in float32, where thirds and fifths round differently.
    slack = 2**-23 if weight.dtype in (torch.float32, torch.float64) else 0.0
    same = weight.shape[-1] == weight.shape[-2] and bool(((own - tent).abs() <= slack).all())
    return "fixed" if same else "depthwise"


def as_upsampling(weight: Tensor, dense: bool) -> Tensor:
    """The same upsampling as C x C x k x k, or without its zeros as C x 1 x k x k."""
    if weight.shape[0] == 1 or dense == (weight.shape[1] > 1):
        return weight
    if not dense:
        return weight.diagonal().permute(2, 0, 1).unsqueeze(1).contiguous()
    return weight[:, 0].permute(1, 2, 0).diag_embed().permute(2, 3, 0, 1).contiguous()
