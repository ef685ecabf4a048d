"""The ops as layers of a network.

A layer that samples at a grid holds a rule that makes the grid for each input map: `DeconvGrid`,
`ResizeGrid` or `CentersGrid`, one for each builder of `SamplingGrid`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .geometry import Border, Pair, SamplingGrid, Size, as_integer, as_pair
from .ops._checks import LABELS, check_ignore_index, check_loss, check_tensor

# From (h, w) to a given (H, W), or to the size that the rule gives.
GridRule = Callable[[Pair, Size | None], SamplingGrid]


@dataclass(frozen=True)
class DeconvGrid:
    """A bilinear transposed convolution and its crop (see `SamplingGrid.deconv`)."""

    stride: int
    kernel: int | None = None
    padding: int = 0
    crop: Size = (0, 0)

    def __call__(self, in_size: Pair, size: Size | None = None) -> SamplingGrid:
        """The grid for a map of `in_size`; without `size`, everything from `crop` on."""
        return SamplingGrid.deconv(in_size, self.stride, self.kernel, self.padding, self.crop, size)


@dataclass(frozen=True)
class ResizeGrid:
    """``F.interpolate(mode="bilinear")``: to the size of each call, or by a factor."""

    scale_factor: float | tuple[float, float] | None = None
    align_corners: bool = False

    def __call__(self, in_size: Pair, size: Size | None = None) -> SamplingGrid:
        """The grid for a map of `in_size`; exactly one of `size` and `scale_factor` is needed."""
        return SamplingGrid.resize(
            in_size, size, scale_factor=self.scale_factor, align_corners=self.align_corners
        )


@dataclass(frozen=True)
class CentersGrid:
    """Unit u of a map sits at pixel ``stride * u + offset`` (see `SamplingGrid.centers`)."""

    stride: int | float | Fraction
    offset: int | float | Fraction
    border: Border = "zero"

    def __call__(self, in_size: Pair, size: Size | None = None) -> SamplingGrid:
        """The grid for a map of `in_size`; ValueError without a size."""
        if size is None:
            raise ValueError("CentersGrid needs the size of the result")
        return SamplingGrid.centers(in_size, self.stride, self.offset, size, self.border)


class _OnGrid(nn.Module):
    """A layer with a rule for its grids."""

    def __init__(self, grid: GridRule) -> None:
        super().__init__()
        if not callable(grid):
            raise TypeError(f"grid must be a callable that makes a SamplingGrid, not {grid!r}")
        self.grid = grid

    def _grid_for(self, x: Tensor, size: Size | None) -> SamplingGrid:
        check_tensor(x, "a score map")
        return self.grid(as_pair(x.shape[-2:], "the map's size"), size)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return repr(self.grid)


class Upsample(_OnGrid):
    """`fcnfast.ops.upsample` with a rule for the grids, such as ``DeconvGrid(8, crop=31)``."""

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        """N x C x h x w to N x C x H x W: to `size`, or to the size that the rule gives."""
        return ops.upsample(x, self._grid_for(x, size))


class CropAdd(nn.Module):
    """`fcnfast.ops.crop_add`: a map plus the window of a finer one from `offset` on."""

    def __init__(self, offset: Size) -> None:
        super().__init__()
        self.offset = as_pair(offset, "offset")

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Add the window of `skip` to `x`."""
        return ops.crop_add(x, skip, self.offset)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"offset={self.offset}"


class UpsampleCropAdd(_OnGrid):
    """`fcnfast.ops.upsample_crop_add` with a rule for the grids, such as ``DeconvGrid(2)``."""

    def __init__(self, grid: GridRule, offset: Size = (0, 0)) -> None:
        super().__init__(grid)
        self.offset = as_pair(offset, "offset")

    def forward(self, x: Tensor, skip: Tensor, size: Size | None = None) -> Tensor:
        """Upsample `x` to `size` (H, W), or as the rule says, and add the window of `skip`."""
        return ops.upsample_crop_add(x, skip, self._grid_for(x, size), self.offset)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.grid!r}, offset={self.offset}"


class UpsampleCrossEntropy(_OnGrid):
    """`fcnfast.ops.upsample_cross_entropy`: the loss of coarse scores at the labels' resolution.

    Its state dict is that of ``nn.CrossEntropyLoss``: the class weights, if any.

    Args:
        grid: the rule for the grids; by default ``F.interpolate`` to the labels' size.
        weight: C class weights.
        ignore_index, reduction, label_smoothing: as in the op.

    Raises:
        TypeError, ValueError: on settings that the op would reject.
    """

    weight: Tensor | None

    def __init__(
        self,
        grid: GridRule | None = None,
        *,
        weight: Tensor | None = None,
        ignore_index: int = 255,
        reduction: ops.Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(ResizeGrid() if grid is None else grid)
        self.ignore_index = check_ignore_index(ignore_index)
        check_loss(reduction, label_smoothing)
        self.register_buffer("weight", weight)
        self.reduction: ops.Reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of `scores` (N x C x h x w) at the labels `target` (N x H x W)."""
        check_tensor(target, "target", LABELS, "N x H x W")
        size = as_pair(target.shape[-2:], "the target's size")
        settings: Any = {"ignore_index": self.ignore_index, "reduction": self.reduction}
        settings |= {"weight": self.weight, "label_smoothing": self.label_smoothing}
        return ops.upsample_cross_entropy(scores, target, self._grid_for(scores, size), **settings)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return (
            f"{self.grid!r}, ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}"
        )


class Deconv(nn.Module):
    """`fcnfast.ops.deconv`: a learned upsampling, initialized to bilinear interpolation.

    Its state dict is that of ``nn.ConvTranspose2d(C, C, k, groups=C, bias=False)``.

    Args:
        channels: C.
        stride: the factor s.
        kernel: k, 2s - s mod 2 by default.
        padding: pixels removed from each side, as in ``nn.ConvTranspose2d``.
        crop: first (row, column) kept after the padding is removed.

    Raises:
        TypeError: when an argument is not an integer (or, for crop, a pair of them).
        ValueError: when channels, stride or kernel are not positive, or padding or crop negative.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        kernel: int | None = None,
        padding: int = 0,
        crop: Size = (0, 0),
    ) -> None:
        super().__init__()
        channels = as_integer(channels, "channels")
        self.stride, self.padding = as_integer(stride, "stride"), as_integer(padding, "padding")
        default = 2 * self.stride - self.stride % 2
        self.kernel = default if kernel is None else as_integer(kernel, "kernel")
        self.crop = as_pair(crop, "crop")
        positive = {"channels": channels, "stride": self.stride, "kernel": self.kernel}
        for name, value in positive.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        if min(self.padding, *self.crop) < 0:
            raise ValueError(f"padding and crop must not be negative: {self.padding}, {self.crop}")
        self.weight = nn.Parameter(torch.empty(channels, 1, self.kernel, self.kernel))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize every channel to bilinear interpolation."""
        with torch.no_grad():
            self.weight.copy_(bilinear_filter(self.kernel).expand_as(self.weight))

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        """N x C x h x w to N x C x H x W: `size`, or everything from `crop` on."""
        return ops.deconv(x, self.weight, self.stride, self.padding, self.crop, size)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return (
            f"{self.weight.shape[0]}, stride={self.stride}, kernel={self.kernel}, "
            f"padding={self.padding}, crop={self.crop}"
        )


def bilinear_filter(kernel: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The k x k filter of a bilinear transposed convolution: a tent along both axes, on the CPU.

    TypeError when `kernel` is not an integer, ValueError when it is not positive.
    """
    kernel = as_integer(kernel, "kernel")
    if kernel < 1:
        raise ValueError(f"kernel must be positive, not {kernel}")
    half = (kernel + 1) // 2
    center = half - 1 if kernel % 2 else half - 0.5
    tent = 1 - (torch.arange(kernel, dtype=torch.float64, device="cpu") - center).abs() / half
    return torch.outer(tent, tent).to(dtype)
