"""upsample_argmax in plain torch: cells that agree at their corners, then the others.

Most cells (the pixels between four neighbours of the coarse map) need no interpolation: every
pixel is a convex combination of its four corners, so a class that is largest at all four is
largest in the whole cell, ties by first index included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._tiles import TILE_ELEMENTS, Tiling, coarse, is_finite

# Up to this many kinds of cells share their weights; beyond, each cell has its own.
MOST_PATTERNS = 16
# Above this share of pixels that need interpolation, all are interpolated, row by row.
MOST_MIXED = 0.5
# Floats that a cell may take when it is interpolated as a whole: more are cut into tiles.
MOST_IN_A_CELL = 4 * TILE_ELEMENTS
# Below this many pixels a cell on average, looking at corners does not pay.
PIXELS_PER_CELL = 4


def _tiled(x: Tensor, grid: SamplingGrid, dtype: torch.dtype, confidence: Tensor | None) -> Tensor:
    """Labels by interpolating every class at every pixel, a tile at a time."""
    labels = torch.empty((x.shape[0], *grid.size), dtype=dtype, device=x.device)
    tiling = Tiling(grid, x.shape[1], x.dtype, x.device, is_finite(x))
    for n in range(x.shape[0]):
        for row, column, z in tiling.tiles(x[n]):
            window = (n, slice(row.first, row.last), slice(column.first, column.last))
            # On a CPU max is several times faster than argmax and also takes the first; on a
            # GPU only argmax promises the first.
            index = z.max(0)[1] if z.device.type == "cpu" else z.argmax(0)
            labels[window] = index.to(dtype)
            if confidence is not None:
                best = z.gather(0, index[None])
                confidence[window] = 1 / z.sub_(best).exp_().sum(0)
    return labels


class _CellAxis:
    """Output indices along one axis, grouped by the cell of the (padded) map that they lie in.

    A zero border becomes a ring of zeros around the map; positions are then clamped to it.
    """

    def __init__(self, grid: SamplingGrid, axis: int, dtype: torch.dtype) -> None:
        n, num, off, den = (v[axis] for v in (grid.in_size, grid.num, grid.off, grid.den))
        ring = 1 if grid.border == "zero" else 0
        position = torch.arange(grid.size[axis], dtype=torch.int64, device="cpu") * num + off
        first, last = -ring * den, (n - 1 + ring) * den
        # Positions on or beyond the ring see nothing but zeros.
        self.outside = ((position <= first) | (position >= last)) if ring else None
        position = position.clamp(first, last) - first
        cell = torch.div(position, den, rounding_mode="floor").clamp(max=max(0, n - 2 + 2 * ring))
        self.weight = ((position - cell * den).double() / den).to(dtype)
        self.low, self.cell_of, count = torch.unique_consecutive(
            cell, return_inverse=True, return_counts=True
        )
        self.high = (self.low + 1).clamp(max=n - 1 + 2 * ring)
        self.start, self.count = count.cumsum(0) - count, count
        self.most = int(count.max())

        # Cells whose pixels lie alike share a pattern of weights.
        step = torch.minimum(torch.arange(self.most, device="cpu"), count[:, None] - 1)
        self.pixels = self.start[:, None] + step  # cells x most; short cells repeat their last
        alike = torch.cat([count[:, None].to(dtype), self.weight[self.pixels]], 1)
        _, self.pattern_of = torch.unique(alike, dim=0, return_inverse=True)
        self.patterns = int(self.pattern_of.max()) + 1

    def pattern(self, number: int) -> tuple[Tensor, Tensor]:
        """The cells of a pattern (as a mask) and the 2 x R weights of their pixels."""
        cells = self.pattern_of == number
        one = int(cells.nonzero()[0, 0])
        weight = self.weight[self.start[one] : self.start[one] + self.count[one]]
        return cells, torch.stack([1 - weight, weight])


def _is_costly(mixed: int, rows: _CellAxis, columns: _CellAxis) -> bool:
    """Whether interpolating every pixel is cheaper than so many mixed cells."""
    if rows.patterns * columns.patterns <= MOST_PATTERNS:
        return mixed > MOST_MIXED * len(rows.low) * len(columns.low)
    # Cells with weights of their own are all padded to the largest.
    return mixed * rows.most * columns.most > MOST_MIXED * len(rows.cell_of) * len(columns.cell_of)


def _by_corners(x: Tensor, grid: SamplingGrid, dtype: torch.dtype) -> Tensor:
    rows, columns = _CellAxis(grid, 0, x.dtype), _CellAxis(grid, 1, x.dtype)
    if x.shape[1] * rows.most * columns.most > MOST_IN_A_CELL:
        return _tiled(x, grid, dtype, None)
    labels = torch.empty((x.shape[0], *grid.size), dtype=dtype, device=x.device)
    ring = 1 if grid.border == "zero" else 0
    for n in range(x.shape[0]):
        winner = x[n].max(0)[1].to(dtype)
        padded = x[n]
        if ring:  # a corner of zeros agrees with any class
            winner = _replicate(winner)
            padded = torch.nn.functional.pad(padded, (1, 1, 1, 1))
        top, bottom = winner[rows.low], winner[rows.high]
        a, b = top[:, columns.low], top[:, columns.high]
        c, d = bottom[:, columns.low], bottom[:, columns.high]
        labels[n] = a[rows.cell_of][:, columns.cell_of]
        mixed = (~((a == b) & (a == c) & (a == d))).nonzero()
        if _is_costly(len(mixed), rows, columns):
            labels[n] = _tiled(x[n : n + 1], grid, dtype, None)[0]
            continue
        _settle(labels[n], padded, mixed, rows, columns)
        if ring:
            labels[n, rows.outside] = 0
            labels[n, :, columns.outside] = 0
    return labels


def _replicate(winner: Tensor) -> Tensor:
    """A frame of one more element around H x W labels, equal to their edge."""
    rows, columns = (torch.arange(-1, n + 1, device="cpu").clamp(0, n - 1) for n in winner.shape)
    return winner[rows][:, columns]


def _settle(
    labels: Tensor, padded: Tensor, mixed: Tensor, rows: _CellAxis, columns: _CellAxis
) -> None:
    """Interpolate the pixels of the mixed cells (pairs of cell indices) and write them."""
    if rows.patterns * columns.patterns > MOST_PATTERNS:
        down, across = (
            torch.stack([1 - axis.weight[axis.pixels], axis.weight[axis.pixels]], 1)
            for axis in (rows, columns)
        )
        _settle_alike(labels, padded, mixed, rows, columns, down, across)
        return
    for p in range(rows.patterns):
        in_row, down = rows.pattern(p)
        for q in range(columns.patterns):
            in_column, across = columns.pattern(q)
            chosen = mixed[in_row[mixed[:, 0]] & in_column[mixed[:, 1]]]
            _settle_alike(labels, padded, chosen, rows, columns, down, across)


def _settle_alike(
    labels: Tensor,
    padded: Tensor,
    mixed: Tensor,
    rows: _CellAxis,
    columns: _CellAxis,
    down: Tensor,
    across: Tensor,
) -> None:
    """Settle cells with the weights 2 x R and 2 x S, or with each cell's own, cells x 2 x R."""
    classes, _, width = padded.shape
    flat = padded.reshape(classes, -1)
    high, wide = down.shape[-1], across.shape[-1]
    chunk = max(1, TILE_ELEMENTS // (classes * high * wide))
    for cells in mixed.split(chunk) if len(mixed) else ():
        i, j = cells[:, 0], cells[:, 1]
        top, bottom = rows.low[i] * width, rows.high[i] * width
        left, right = columns.low[j], columns.high[j]
        first = torch.stack([top + left, top + right, bottom + left, bottom + right], 1)
        corners = flat[:, first]  # C x cells x 4
        if down.dim() == 2:
            taps = (down[:, None, :, None] * across[None, :, None, :]).reshape(4, -1)
            found = (corners @ taps).max(0)[1]
        else:
            taps = down[i][:, :, None, :, None] * across[j][:, None, :, None, :]
            taps = taps.reshape(len(cells), 4, high * wide)
            found = torch.bmm(corners.transpose(0, 1), taps).max(1)[1]
        y, x = rows.pixels[i, :high], columns.pixels[j, :wide]
        labels[y[:, :, None], x[:, None, :]] = found.view(-1, high, wide).to(labels.dtype)


def forward(
    scores: Tensor, grid: SamplingGrid, dtype: torch.dtype, confidence: bool
) -> tuple[Tensor, Tensor | None]:
    """Labels N x H x W of `dtype` and, with `confidence`, the winners' softmax."""
    with torch.autocast(scores.device.type, enabled=False):
        x = coarse(scores)
        if confidence:
            probability = x.new_empty((x.shape[0], *grid.size))
            return _tiled(x, grid, dtype, probability), probability
        dense = grid.size[0] * grid.size[1] < PIXELS_PER_CELL * x.shape[2] * x.shape[3]
        if dense or not is_finite(x):
            return _tiled(x, grid, dtype, None), None
        return _by_corners(x, grid, dtype), None
