"""deconv in plain torch: a depthwise transposed convolution as products of small matrices.

With stride s, the full result falls into cells of s x s pixels, and all pixels of a cell read the
same t x t coarse values, t = ceil(kernel / s):

    result[q, p, a, b] = sum over d, e < t of x[q - d, p - e] * weight[s * d + a, s * e + b]

for pixel (a, b) of cell (q, p). For one plane that is a matrix of cells x taps times a matrix of
taps x pixels, one strip of cells at a time; the gradients are the other two products of these
three matrices. Products also read the zeros beyond the kernel and the map (0 * inf is NaN), so
non-finite values go through torch's convolutions, one image at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._tiles import TILE_ELEMENTS, coarse, empty_map, is_finite
from .crop_add import window

LEAST_STRIDE = 4


class Strip(NamedTuple):
    """`rows` x `columns` cells of some planes, from cell (row, column) on."""

    planes: slice
    row: int
    rows: int
    column: int
    columns: int
    stride: int
    taps: int

    def pixels(self, grad: Tensor, start: Sequence[int]) -> Tensor:
        """The pixels of C x H x W as matrices of cells x pixels; zeros beyond the window."""
        kept, (left, right, above, below) = self._kept(grad, start)
        tile = F.pad(coarse(grad[self.planes, kept]), (left, right, above, below))
        cells = tile.view(-1, self.rows, self.stride, self.columns, self.stride).transpose(2, 3)
        return cells.reshape(len(tile), -1, self.stride**2)

    def put_pixels(self, cells: Tensor, out: Tensor, start: Sequence[int]) -> None:
        """Write matrices of cells x pixels into the window C x H x W."""
        kept, (left, _, above, _) = self._kept(out, start)
        tile = cells.view(-1, self.rows, self.columns, self.stride, self.stride).transpose(2, 3)
        tile = tile.reshape(len(tile), self.rows * self.stride, self.columns * self.stride)
        target = out[self.planes, kept]
        target.copy_(tile[:, above : above + target.shape[1], left : left + out.shape[2]])

    def unfolded(self, x: Tensor) -> Tensor:
        """The values of C x h x w that the cells read, as matrices of taps x cells."""
        cells = F.pad(coarse(x[self.planes]), self._around(x))
        cells = cells.unfold(1, self.rows, 1).unfold(2, self.columns, 1)
        return cells.reshape(len(cells), self.taps**2, -1)

    def add_folded(self, cells: Tensor, out: Tensor) -> None:
        """Add matrices of taps x cells to C x h x w: the transpose of `unfolded`."""
        t = self.taps
        cells = cells.view(len(cells), t, t, self.rows, self.columns)
        total = cells.new_zeros((len(cells), self.rows + t - 1, self.columns + t - 1))
        for d in range(t):
            for e in range(t):
                total[:, d : d + self.rows, e : e + self.columns] += cells[:, d, e]
        out[self.planes] += F.pad(total, [-n for n in self._around(out)])

    def _kept(self, out: Tensor, start: Sequence[int]) -> tuple[slice, tuple[int, int, int, int]]:
        """The strip's rows of C x H x W, and the padding around: left, right, above, below."""
        top, bottom = (n * self.stride - start[0] for n in (self.row, self.row + self.rows))
        left = start[1] - self.column * self.stride
        right = self.columns * self.stride - left - out.shape[2]
        kept = slice(max(top, 0), min(bottom, out.shape[1]))
        return kept, (left, right, kept.start - top, bottom - kept.stop)

    def _around(self, x: Tensor) -> list[int]:
        """The padding of an h x w map that leaves a margin of taps - 1 before the strip."""
        margin = self.taps - 1
        right, below = self.column + self.columns - x.shape[2], self.row + self.rows - x.shape[1]
        return [margin - self.column, right, margin - self.row, below]


def _strips(
    channels: int, kernel: int, stride: int, start: Sequence[int], size: Sequence[int]
) -> Iterator[Strip]:
    """The cells of a window of `size` pixels from `start` on, in strips that fit a cache."""
    (row, column), taps = (n // stride for n in start), -(-kernel // stride)
    rows, columns = (-(-(a % stride + n) // stride) for a, n in zip(start, size, strict=True))
    values = columns * max(stride, taps) ** 2  # of one row of cells
    planes = min(channels, max(1, TILE_ELEMENTS // values))
    step = max(1, TILE_ELEMENTS // (planes * values))
    for plane in range(0, channels, planes):
        for first in range(0, rows, step):
            part, most = slice(plane, plane + planes), min(step, rows - first)
            yield Strip(part, row + first, most, column, columns, stride, taps)


def _matrices(weight: Tensor, stride: int) -> Tensor:
    """C x 1 x k x k weights as C matrices of taps x pixels; the taps ascend in the coarse map."""
    channels, _, kernel, _ = weight.shape
    taps = -(-kernel // stride)
    beyond = taps * stride - kernel
    cells = F.pad(coarse(weight)[:, 0], (0, beyond, 0, beyond))
    cells = cells.view(channels, taps, stride, taps, stride).transpose(2, 3)
    return cells.flip(1, 2).reshape(channels, taps**2, stride**2)


def _weight(matrices: Tensor, kernel: int, stride: int) -> Tensor:
    """The inverse of `_matrices`."""
    taps = -(-kernel // stride)
    cells = matrices.view(-1, taps, taps, stride, stride).flip(1, 2).transpose(2, 3)
    return cells.reshape(-1, 1, taps * stride, taps * stride)[..., :kernel, :kernel]


def _uncropped(
    grad: Tensor, in_size: Sequence[int], kernel: int, stride: int, start: Sequence[int]
) -> Tensor:
    """C x H x W padded with zeros to the full result of an h x w map."""
    full = [(n - 1) * stride + kernel for n in in_size]
    below, right = (f - a - n for f, a, n in zip(full, start, grad.shape[1:], strict=True))
    return F.pad(coarse(grad), (start[1], right, start[0], below))


def _by_products(stride: int, *factors: Tensor) -> bool:
    """Whether to use products: they need finite factors, and are faster unless cells are small."""
    return stride >= LEAST_STRIDE and all(is_finite(x) for x in factors)


def forward(
    x: Tensor, weight: Tensor, stride: int, start: Sequence[int], size: Sequence[int]
) -> Tensor:
    """The window `size` (H, W) from `start` on of the transposed convolution of N x C x h x w."""
    channels, kernel = x.shape[1], weight.shape[-1]
    out = empty_map(x, size)
    if out.numel() == 0:
        return out
    with torch.autocast(x.device.type, enabled=False):
        products = _by_products(stride, x, weight)
        matrices, weight = _matrices(weight, stride), coarse(weight)
        for image, target in zip(x, out, strict=True):
            if products:
                for strip in _strips(channels, kernel, stride, start, size):
                    cells = strip.unfolded(image).transpose(1, 2)
                    strip.put_pixels(torch.bmm(cells, matrices[strip.planes]), target, start)
            else:
                full = F.conv_transpose2d(coarse(image), weight, stride=stride, groups=channels)
                target.copy_(window(full, size, start))
    return out


def input_gradient(
    grad: Tensor, weight: Tensor, stride: int, start: Sequence[int], in_size: Sequence[int]
) -> Tensor:
    """The gradient of `x`, of `in_size` (h, w), given that of ``forward``'s result."""
    channels, kernel = grad.shape[1], weight.shape[-1]
    result = empty_map(grad, in_size)
    if result.numel() == 0:
        return result
    out = coarse(torch.zeros_like(result))
    with torch.autocast(grad.device.type, enabled=False):
        products = _by_products(stride, grad, weight)
        matrices, weight = _matrices(weight, stride), coarse(weight)
        for image, target in zip(grad, out, strict=True):
            if products:
                for strip in _strips(channels, kernel, stride, start, grad.shape[2:]):
                    pixels = strip.pixels(image, start).transpose(1, 2)
                    strip.add_folded(torch.bmm(matrices[strip.planes], pixels), target)
            else:
                full = _uncropped(image, in_size, kernel, stride, start)
                target.copy_(F.conv2d(full, weight, stride=stride, groups=channels))
    return result.copy_(out)


def weight_gradient(
    grad: Tensor, x: Tensor, stride: int, start: Sequence[int], kernel: int, dtype: torch.dtype
) -> Tensor:
    """The gradient of `weight`, C x 1 x k x k of `dtype`, given that of ``forward``'s result."""
    channels, taps = x.shape[1], -(-kernel // stride)
    matrices = coarse(grad.new_zeros((channels, taps**2, stride**2)))
    out = coarse(grad.new_zeros((channels, 1, kernel, kernel)))
    if grad.numel() == 0:
        return out.to(dtype)
    with torch.autocast(grad.device.type, enabled=False):
        products = _by_products(stride, grad, x)
        for image, pixels in zip(x, grad, strict=True):
            if products:
                for strip in _strips(channels, kernel, stride, start, grad.shape[2:]):
                    cells = strip.pixels(pixels, start)
                    matrices[strip.planes] += torch.bmm(strip.unfolded(image), cells)
            else:
                full = _uncropped(pixels, x.shape[2:], kernel, stride, start)
                maps = coarse(image)[:, None]
                out[:, 0] += F.conv2d(full, maps, dilation=stride, groups=channels)
    result = _weight(matrices, kernel, stride) if products else out
    return result.to(dtype).contiguous()
