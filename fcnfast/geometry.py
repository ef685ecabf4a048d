"""Exact sampling positions and receptive-field arithmetic.

Both are affine maps along each image axis. `SamplingGrid` gives the position that every output
pixel of an upsampling samples in its coarse map, as a rational number, so that nothing rounds.
`ReceptiveField` gives the place of every unit of a feature map on the image; crops and grids follow
from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from numbers import Rational, Real
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

Border = Literal["zero", "clamp"]
Pair = tuple[int, int]
# A size as ``F.interpolate`` takes it: see `as_pair`.
Size = int | Sequence[int] | torch.Tensor | np.ndarray

# A scale factor such as 1.1 means 11/10, not the nearest binary fraction: denominators up to this
# bound are tried. It is large enough to match any float64 to its precision.
MAX_DENOMINATOR = 1 << 30
MAX_FACTOR = 1 << 31
# Positions are computed in int64; sums of two of them must fit.
MAX_POSITION = 1 << 62


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _as_python(value: Any) -> Any:
    """A NumPy or torch value as Python numbers; anything else unchanged."""
    return value.tolist() if isinstance(value, (torch.Tensor, np.generic, np.ndarray)) else value


def as_integer(value: Any, name: str) -> int:
    """`value` (an int, a NumPy integer or a 0-d tensor) as an int; TypeError for anything else."""
    number = _as_python(value)
    if not _is_integer(number):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    return number


def _both(value: Any) -> list[Any]:
    """The two numbers of a value for both axes; a single one counts for both."""
    found = value if _is_integer(value) else _as_python(value)
    pair = found if isinstance(found, (tuple, list)) else (found, found)
    return [v if _is_integer(v) else _as_python(v) for v in pair]


def as_pair(value: Size | None, name: str) -> Pair:
    """`value` as (rows, columns), from any form of size that ``F.interpolate`` takes.

    That is one integer for both axes, or two in a tuple, a list, a ``torch.Size``, an array or a
    tensor, each as in `as_integer`. Raises TypeError, with `name`, for anything else.
    """
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    pair = _both(value)
    if len(pair) == 2 and _is_integer(pair[0]) and _is_integer(pair[1]):
        return pair[0], pair[1]
    raise TypeError(f"{name} must be an integer or a pair of integers, not {value!r}")


def _fraction(value: int | float | Fraction, name: str) -> Fraction:
    """`value` exactly; a float becomes the nearest fraction with a small denominator."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be an integer, a float or a Fraction, not {value!r}")
    if isinstance(value, Rational):
        return Fraction(value)
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}")
    return Fraction(value).limit_denominator(MAX_DENOMINATOR)


def _scaled(n: int, factor: float) -> int:
    """``floor(n * factor)`` as torch rounds it, in integers where that is the same."""
    up, down = factor.as_integer_ratio()
    return n * up // down if down <= 1024 else math.floor(n * factor)


def is_symbolic(*values: int) -> bool:
    """Whether code is being traced, so that a size may stand for all sizes.

    Checks that a tracer cannot follow, or would turn into guards, then wait until an op runs.
    """
    return torch.compiler.is_compiling() or not all(isinstance(v, int) for v in values)


def lowest_terms(num: int, off: int, den: int) -> tuple[int, int, int]:
    """The same positions ``(num * y + off) / den`` in the smallest integers."""
    common = math.gcd(num, off, den) or 1
    return num // common, off // common, den // common


def deconv_size(
    in_size: Pair, stride: int, kernel: int, padding: int, crop: Pair, size: Size | None
) -> Pair:
    """The (H, W) kept of a transposed convolution: `size`, or everything from `crop` on."""
    if stride < 1 or padding < 0 or any(c < 0 for c in crop):
        raise ValueError(
            f"stride must be positive, padding and crop not negative: got stride {stride}, "
            f"padding {padding}, crop {crop}"
        )
    full = [(n - 1) * stride + kernel - 2 * padding for n in in_size]
    if min(full) < 1:
        raise ValueError(
            f"padding {padding} leaves {full[0]} x {full[1]} pixels of the transposed convolution"
        )
    left = [f - c for f, c in zip(full, crop, strict=True)]
    wanted = as_pair(left if size is None else size, "size")
    for name, f, n, m, c in zip(("row", "column"), full, left, wanted, crop, strict=True):
        if n < 1:
            raise ValueError(f"crop {crop} begins beyond the {f} {name}s of the convolution")
        if m < 1 or m > n:
            raise ValueError(
                f"size {wanted} must be from 1 to the {n} {name}s left of {f} from {name} {c} on"
            )
    return wanted


@dataclass(frozen=True)
class SamplingGrid:
    """Where each pixel of an H x W result samples an h x w map, bilinearly and exactly.

    Along each axis, output pixel y samples the map at the rational ``(num * y + off) / den``: its
    floor is the cell, its fraction the weight. All fields are pairs (rows, columns).

    Attributes:
        in_size: (h, w) of the coarse map; every op checks it against its input.
        size: (H, W) of the result.
        num: non-negative numerators; 0 for an axis that samples a single position.
        off: numerators of the position of pixel 0, of any sign.
        den: positive denominators.
        border: "zero" extends the map by zeros (transposed convolution), "clamp" repeats its edge
            (``F.interpolate``).

    A tap of weight 0 is not read, so a NaN or an infinity there does not spread.
    TypeError or ValueError for what is not so, or positions that do not fit in int64.
    """

    in_size: Pair
    size: Pair
    num: Pair
    off: Pair
    den: Pair
    border: Border

    def __post_init__(self) -> None:
        for name in ("in_size", "size", "num", "off", "den"):
            object.__setattr__(self, name, as_pair(getattr(self, name), name))
        for name, least in (("in_size", 1), ("size", 1), ("den", 1), ("num", 0)):
            if any(value < least for value in getattr(self, name)):
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.border not in ("zero", "clamp"):
            raise ValueError(f"border must be 'zero' or 'clamp', not {self.border!r}")
        if is_symbolic(*self.in_size, *self.size, *self.num, *self.off, *self.den):
            return
        axes = zip(self.in_size, self.size, self.num, self.off, self.den, strict=True)
        if any(num * n + abs(off) + (m + 2) * den >= MAX_POSITION for m, n, num, off, den in axes):
            raise ValueError(
                f"positions (num * y + off) / den leave int64: num {self.num}, off {self.off}, "
                f"den {self.den}; use simpler fractions"
            )

    @classmethod
    def _of_axes(
        cls, in_size: Pair, size: Pair, axes: Sequence[tuple[int, int, int]], border: Border
    ) -> SamplingGrid:
        """A grid from (num, off, den) of both axes, in lowest terms unless they are symbolic."""
        axes = [axis if is_symbolic(*axis) else lowest_terms(*axis) for axis in axes]
        num, off, den = zip(*axes, strict=True)
        return cls(in_size, size, num, off, den, border)

    @classmethod
    def deconv(
        cls,
        in_size: Size,
        stride: int,
        kernel: int | None = None,
        padding: int = 0,
        crop: Size = (0, 0),
        size: Size | None = None,
    ) -> SamplingGrid:
        """A transposed convolution with the bilinear filter, then a crop of its result.

        Args:
            in_size: (h, w) of the map.
            stride: the factor s.
            kernel: 2s - s mod 2 by default; 2s - 1 is the only other bilinear filter.
            padding: pixels removed from each side, as in ``conv_transpose2d``.
            crop: first (row, column) kept after the padding is removed.
            size: (H, W) kept; by default all that is left.

        TypeError when an argument is not an integer or a pair of them; ValueError for a kernel that
        is not bilinear, or a crop that leaves the result.
        """
        in_size, crop = as_pair(in_size, "in_size"), as_pair(crop, "crop")
        stride, padding = as_integer(stride, "stride"), as_integer(padding, "padding")
        kernel = 2 * stride - stride % 2 if kernel is None else as_integer(kernel, "kernel")
        wanted = deconv_size(in_size, stride, kernel, padding, crop, size)
        bilinear = sorted({2 * stride - 1, 2 * stride - stride % 2})
        if kernel not in bilinear:
            use = " or ".join(map(str, bilinear))
            raise ValueError(f"kernel {kernel} at stride {stride} is not bilinear; use {use}")
        # Unit u puts the center of its kernel at u * stride + (kernel - 1) / 2.
        axes = [(2, 2 * (padding + c) - (kernel - 1), 2 * stride) for c in crop]
        return cls._of_axes(in_size, wanted, axes, "zero")

    @classmethod
    def resize(
        cls,
        in_size: Size,
        size: Size | None = None,
        *,
        scale_factor: float | Sequence[float] | None = None,
        align_corners: bool | None = None,
    ) -> SamplingGrid:
        """The grid of ``F.interpolate(mode="bilinear")`` with the same arguments.

        A scale factor is used as given (torch's ``recompute_scale_factor=False``), as the nearest
        fraction with a small denominator.

        TypeError for a size, scale_factor or align_corners of another type; ValueError when not
        exactly one of size and scale_factor is given, or a result would be empty.
        """
        in_size = as_pair(in_size, "in_size")
        if align_corners is not None and not isinstance(align_corners, bool):
            raise TypeError(f"align_corners must be True or False, not {align_corners!r}")
        if (size is None) == (scale_factor is None):
            raise ValueError("give exactly one of size and scale_factor")
        scales: list[Fraction | None] = [None, None]
        if scale_factor is not None:
            factors = _both(scale_factor)
            if not all(isinstance(f, Real) for f in factors):
                raise TypeError(f"scale_factor must be a number or two, not {scale_factor!r}")
            given = [float(f) for f in factors]
            if len(given) != 2 or not all(0 < f < MAX_FACTOR for f in given):
                raise ValueError(f"scale_factor must be positive, not {scale_factor!r}")
            size = tuple(_scaled(n, f) for n, f in zip(in_size, given, strict=True))
            scales = [
                # torch copies an axis that keeps its size, for any factor
                None if 0.5 < f < 2 and out == n else _fraction(f, "scale_factor")
                for n, out, f in zip(in_size, size, given, strict=True)
            ]
        wanted = as_pair(size, "size")
        axes = []
        for n, out, scale in zip(in_size, wanted, scales, strict=True):
            if align_corners:
                axes.append((n - 1, 0, out - 1) if out > 1 else (0, 0, 1))
            elif scale is None:  # (y + 1/2) n / out - 1/2
                axes.append((2 * n, n - out, 2 * out))
            else:  # (y + 1/2) / scale - 1/2
                up, down = scale.numerator, scale.denominator
                axes.append((2 * down, down - up, 2 * up))
        return cls._of_axes(in_size, wanted, axes, "clamp")

    @classmethod
    def centers(
        cls,
        in_size: Size,
        stride: int | float | Fraction,
        offset: int | float | Fraction,
        size: Size,
        border: Border,
    ) -> SamplingGrid:
        """Unit u of the map sits at pixel ``stride * u + offset``: sample at (y - offset)/stride.

        With the stride and offset of a `ReceptiveField`, the result is aligned by construction. A
        float such as 0.1 stands for the fraction 1/10.

        TypeError or ValueError for a stride or an offset that is not a finite number, a stride
        that is not positive, or what is no size.
        """
        step, start = _fraction(stride, "stride"), _fraction(offset, "offset")
        if step <= 0:
            raise ValueError(f"stride must be positive, not {stride}")
        num = step.denominator * start.denominator
        off = -start.numerator * step.denominator
        axis = num, off, step.numerator * start.denominator
        sizes = as_pair(in_size, "in_size"), as_pair(size, "size")
        return cls._of_axes(*sizes, (axis, axis), border)

    def rescaled(self, size: Size) -> SamplingGrid:
        """The grid that renders the same map at a different size, in a single sampling.

        Pixel Y of the new size lies over pixel (Y + 1/2) H / H' - 1/2 of this grid's H x W, as in
        a half-pixel resize. So a photo that was shrunk for a network is labeled at its own size.
        """
        wanted = as_pair(size, "size")
        both = zip(self.size, wanted, self.num, self.off, self.den, strict=True)
        axes = [
            (2 * old * num, num * (old - new) + 2 * new * off, 2 * new * den)
            for old, new, num, off, den in both
        ]
        return self._of_axes(self.in_size, wanted, axes, self.border)


class AxisTaps(NamedTuple):
    """The two taps of every output index along one axis: ``w0 * x[i0] + w1 * x[i1]``.

    i0, i1: int64 indices inside the map; w0, w1: weights, 0 where the tap must not be read.
    """

    i0: torch.Tensor
    i1: torch.Tensor
    w0: torch.Tensor
    w1: torch.Tensor


def taps(grid: SamplingGrid, axis: int, dtype: torch.dtype, device: torch.device) -> AxisTaps:
    """The taps of `grid` along axis 0 (rows) or 1 (columns), one pair per output index.

    The cell comes from integer division; the weight is one correctly rounded division.
    """
    n, num, off, den = (v[axis] for v in (grid.in_size, grid.num, grid.off, grid.den))
    position = torch.arange(grid.size[axis], dtype=torch.int64, device="cpu") * num + off
    cell = position // den
    rest = position - cell * den
    w0, w1 = (den - rest).double() / den, rest.double() / den
    if grid.border == "zero":
        w0 = torch.where((cell >= 0) & (cell < n), w0, 0.0)
        w1 = torch.where((cell >= -1) & (cell < n - 1), w1, 0.0)
    i0, i1 = cell.clamp(0, n - 1), (cell + 1).clamp(0, n - 1)
    return AxisTaps(i0.to(device), i1.to(device), w0.to(device, dtype), w1.to(device, dtype))


@lru_cache(maxsize=256)
def axis_taps(grid: SamplingGrid, axis: int, dtype: torch.dtype, device: torch.device) -> AxisTaps:
    """`taps`, cached: for code that never runs on fake or traced tensors."""
    with torch.inference_mode(False):  # cached for calls in every mode
        return taps(grid, axis, dtype, device)


@dataclass(frozen=True)
class ReceptiveField:
    """How the units of a feature map lie on the image (the same along both axes).

    Unit u sees `size` pixels and is centered on pixel ``stride * u + offset``. Start from
    ``ReceptiveField()``, the image itself, and apply the layers in order. Composition as in
    section 3 of the paper; the offset is the coordinate map of the reference implementation.
    """

    size: int = 1
    # Made anew each time: a tracer cannot follow a default value of a foreign class.
    stride: Fraction = field(default_factory=lambda: Fraction(1))
    offset: Fraction = field(default_factory=lambda: Fraction(0))

    def conv(
        self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1
    ) -> ReceptiveField:
        """After a convolution or a pooling."""
        reach = dilation * (kernel - 1)
        offset = self.offset + self.stride * (Fraction(reach, 2) - padding)
        # torch 2.7's compiler cannot follow int() of a fraction.
        size = self.size + reach * self.stride.numerator // self.stride.denominator
        return ReceptiveField(size, self.stride * stride, offset)

    def deconv(self, kernel: int, stride: int, padding: int = 0) -> ReceptiveField:
        """After a transposed convolution."""
        finer, reach = self.stride / stride, (kernel - 1) // stride
        offset = self.offset - finer * (Fraction(kernel - 1, 2) - padding)
        size = self.size + reach * self.stride.numerator // self.stride.denominator
        return ReceptiveField(size, finer, offset)

    def crop(self, offset: int) -> ReceptiveField:
        """After `offset` rows and columns are removed at the top and the left."""
        return ReceptiveField(self.size, self.stride, self.offset + self.stride * offset)

    def crop_onto(self, reference: ReceptiveField) -> int:
        """The crop offset that lays this map over `reference`; ValueError if there is none."""
        stride, shift = self.stride, (reference.offset - self.offset) / self.stride
        if stride != reference.stride:
            raise ValueError(f"maps of stride {stride} and {reference.stride} cannot be aligned")
        if shift.denominator != 1 or shift < 0:
            raise ValueError(
                f"no crop lays a map of offset {self.offset} over one of offset "
                f"{reference.offset} at stride {stride}: it would be {shift}"
            )
        return shift.numerator
