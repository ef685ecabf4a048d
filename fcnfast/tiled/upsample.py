"""upsample in plain torch, forward and adjoint, and one fusion step built on it.

Maps are viewed as planes, P x rows x columns x I: I = 1 and P = N * C, or I = C and P = N for a
channels_last map. The axes are sampled one after the other, as the middle of outer x axis x inner.
With many contiguous inner values and identical cells, as at every integer stride, one pass over the
cells runs at memory speed. The columns of an NCHW map and the adjoints use products with banded
matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from . import _tiles
from .crop_add import window

# Outputs of a banded matrix for rows (a longer one would hold more zeros), and inputs of one for
# columns (BLAS libraries are several times slower with fewer than a dozen).
ROWS, COLUMNS = 32, 16
# Values sampled at a time.
PIECE_ELEMENTS = 1 << 17


class _Cells(NamedTuple):
    """The part of an axis with identical cells: pixels [first, last), those of `number` cells.

    cell: the first cell's left tap. right: the right tap's weight at each pixel of a cell.
    """

    first: int
    last: int
    cell: int
    number: int
    right: Tensor

    def of(self, x: Tensor) -> Tensor:
        """outer x pixels x inner as outer x cells x pixels of a cell x inner: a view."""
        return x[:, self.first : self.last].unflatten(1, (self.number, -1))


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached for calls in every mode
def _cells(
    grid: SamplingGrid, axis: int, dtype: torch.dtype, device: torch.device
) -> _Cells | None:
    """The identical cells of an axis; None if its stride is fractional or no cell is complete."""
    n, size, num, off, den = (
        v[axis] for v in (grid.in_size, grid.size, grid.num, grid.off, grid.den)
    )
    if num == 0 or den % num:
        return None
    stride = den // num
    # The first cell that begins in the map and in the window, and its first pixel.
    cell = max(0, -(-off // den))
    first = -(-(cell * den - off) // num)
    count = min(n - 1 - cell, (size - first) // stride)
    if count <= 0:
        return None
    rest = first * num + off - cell * den + num * torch.arange(stride, device="cpu")
    right = (rest.double() / den).to(device, dtype)
    return _Cells(first, first + count * stride, cell, count, right[:, None])


def _window(grid: SamplingGrid, axis: int, first: int, last: int) -> SamplingGrid:
    """The grid of the outputs [first, last) along an axis."""
    size, off = list(grid.size), list(grid.off)
    size[axis], off[axis] = last - first, off[axis] + first * grid.num[axis]
    return replace(grid, size=(size[0], size[1]), off=(off[0], off[1]))


def _planes(x: Tensor) -> Tensor:
    """N x C x H x W as contiguous planes: a view if `x` is dense, else a copy."""
    if _tiles.is_channels_last(x):
        return x.permute(0, 2, 3, 1).contiguous()
    return x.contiguous().view(-1, *x.shape[2:], 1)


def _bands(grid: SamplingGrid, axis: int, like: Tensor) -> tuple[_tiles.Strip, ...]:
    """Cut the axis into strips whose matrices multiply efficiently."""
    length, num = ROWS, grid.num[axis]
    if axis == 1:
        length = max(ROWS, (COLUMNS - 2) * grid.den[axis] // num) if num else grid.size[axis]
    return _tiles.strips(grid, axis, length, like.dtype, like.device)


def _sample(
    x: Tensor, grid: SamplingGrid, axis: int, out: Tensor, accumulate: bool, finite: bool
) -> None:
    """Sample outer x axis x inner and write the result to `out`, or add it."""
    outer, length, inner = out.shape
    if axis == 1 and inner == 1 and finite:  # the columns of planes
        for strip in _bands(grid, axis, x):
            target = out[:, strip.first : strip.last, 0]
            torch.mm(x[:, strip.low : strip.high, 0], strip.matrix.T, out=target)
        return
    many = _tiles.even_length(outer, PIECE_ELEMENTS // (length * inner))
    cells = _cells(grid, axis, x.dtype, x.device) if finite else None
    if cells is not None:
        left = x[:, cells.cell : cells.cell + cells.number, None]
        right = x[:, cells.cell + 1 : cells.cell + 1 + cells.number, None]
        inside = cells.of(out)
        if x.dtype == out.dtype and not accumulate:
            torch.lerp(left, right, cells.right, out=inside)
        else:  # in pieces: no copy of `out`
            for a, b, target in zip(*(t.split(many) for t in (left, right, inside)), strict=True):
                piece = torch.lerp(a, b, cells.right)
                target.copy_(piece.add_(target) if accumulate else piece)
        for first, last in ((0, cells.first), (cells.last, length)):
            if first < last:
                window = _window(grid, axis, first, last)
                _sample(x, window, axis, out[:, first:last], accumulate, finite)
        return
    size = _tiles.even_length(length, PIECE_ELEMENTS // inner) if many == 1 else length
    for strip in _tiles.strips(grid, axis, size, x.dtype, x.device):
        for first in range(0, outer, many):
            target = out[first : first + many, strip.first : strip.last]
            part = x[first : first + many, strip.low : strip.high]
            piece = strip.sample(part) if finite else _tiles.gather(part, strip, 1)
            target.copy_(piece.add_(target) if accumulate else piece)


def _adjoint(grad: Tensor, grid: SamplingGrid, axis: int, scatters: bool) -> Tensor:
    """The adjoint of `_sample`, in the compute dtype."""
    outer, _, inner = grad.shape
    out = grad.new_zeros((outer, grid.in_size[axis], inner), dtype=_tiles.compute_dtype(grad))
    for strip in _bands(grid, axis, out):
        target = out[:, strip.low : strip.high]
        piece = grad[:, strip.first : strip.last].to(out.dtype)
        if scatters:
            target += _tiles.scatter(piece, strip, 1)
        elif inner == 1:
            target[..., 0].addmm_(piece[..., 0], strip.matrix)
        else:
            target += torch.bmm(strip.matrix.T.expand(outer, -1, -1), piece)
    return out


def _raised(planes: Tensor, grid: SamplingGrid) -> Tensor:
    """The adjoint along both axes."""
    many, _, width, inner = planes.shape
    for scatters in (False, True):
        low = _adjoint(planes.view(many, grid.size[0], -1), grid, 0, scatters)
        result = _adjoint(low.view(-1, width, inner), grid, 1, scatters)
        # In a product a NaN or an infinity spreads, so the small result shows whether there is
        # one. Other devices keep the products: the check would synchronize there, and `scatter`
        # sums in no fixed order.
        if planes.device.type != "cpu" or _tiles.is_finite(result):
            break
    return result.view(many, *grid.in_size, inner)


def _add_upsampled(out: Tensor, x: Tensor, grid: SamplingGrid, accumulate: bool) -> Tensor:
    """Write the upsampled `x` to the dense `out`, or add it."""
    if out.numel() == 0:
        return out
    with torch.autocast(x.device.type, enabled=False):
        planes = _planes(x.detach().to(_tiles.compute_dtype(x)))
        many, height, width, inner = planes.shape
        finite = _tiles.is_finite(planes)
        low = planes.new_empty(many * height, grid.size[1], inner)
        _sample(planes.view(-1, width, inner), grid, 1, low, False, finite)
        result = _planes(out).view(many, grid.size[0], -1)
        _sample(low.view(many, height, -1), grid, 0, result, accumulate, finite)
    return out


def forward(x: Tensor, grid: SamplingGrid) -> Tensor:
    """`x` (N x C x h x w) sampled at every position of `grid`: N x C x H x W."""
    return _add_upsampled(_tiles.empty_map(x, grid.size), x, grid, False)


def forward_add(x: Tensor, skip: Tensor, grid: SamplingGrid, offset: Sequence[int]) -> Tensor:
    """The upsampled `x` plus the window of `skip` at `offset`."""
    skip = window(skip, grid.size, offset)
    if x.dtype == _tiles.compute_dtype(x):
        return forward(x, grid).add_(skip)
    # In half precision only the sum is rounded, not its parts.
    return _add_upsampled(_tiles.empty_map(x, grid.size).copy_(skip), x, grid, True)


def adjoint(grad: Tensor, grid: SamplingGrid) -> Tensor:
    """The gradient of `x`, given that of `forward(x, grid)`."""
    result = _tiles.empty_map(grad, grid.in_size)
    if result.numel() == 0:
        return result
    dense = grad.is_contiguous(memory_format=_tiles.memory_format(grad))
    with torch.autocast(grad.device.type, enabled=False):
        # A gradient that is not dense is copied one image at a time.
        images = [(grad, result)] if dense else zip(grad.split(1), result.split(1), strict=True)
        for source, target in images:
            _planes(target).copy_(_raised(_planes(source), grid))
    return result
