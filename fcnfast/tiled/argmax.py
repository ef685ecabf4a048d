"""upsample_argmax in plain torch: no interpolation where one class wins at all corners of a cell.

Every pixel of a cell (between four neighbors of the coarse map) is a convex combination of its
corners. A class that is largest at all four is largest in the whole cell; a class whose largest
corner is below the smallest corner of another wins nowhere in it. In a map with regions, most cells
have one class, and few others can win in the rest.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import SamplingGrid, axis_taps
from ._cells import Tiling
from ._tiles import TILE_ELEMENTS, dense, is_finite

# The largest share of the pixels in mixed cells for which these are looked at by themselves.
MIXED_SHARE = 0.5
# About the most classes that can win in a tile of mixed cells: it holds as many cells.
ABLE = 32
# Below this average number of pixels per cell, checking corners costs more than it saves.
PIXELS_PER_CELL = 4


class _Axis(NamedTuple):
    """The cells of one axis that have outputs.

    low, high: the two coarse values of each cell. cell: the cell of each output. outputs: m x
    cells, the outputs of each; one with fewer repeats its last. weight: m x cells, that of the high
    value.
    """

    low: Tensor
    high: Tensor
    cell: Tensor
    outputs: Tensor
    weight: Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached for calls in every mode
def _axis(grid: SamplingGrid, axis: int, dtype: torch.dtype) -> _Axis:
    """The cells of axis 0 (rows) or 1 (columns) of a grid whose border repeats the edge."""
    taps = axis_taps(grid, axis, dtype, torch.device("cpu"))
    _, cell, count = (taps.i0 + taps.i1).unique_consecutive(return_inverse=True, return_counts=True)
    first = count.cumsum(0) - count
    slot = torch.arange(int(count.max()), device="cpu")[:, None]
    outputs = first + torch.minimum(slot, count - 1)
    return _Axis(taps.i0[first], taps.i1[first], cell, outputs, taps.w1[outputs])


def _by_cells(x: Tensor, grid: SamplingGrid, labels: Tensor) -> bool:
    """Write the labels (H x W) of a finite map (C x h x w), cell by cell.

    Returns False, and writes nothing, where cells are too large, or too many are mixed: no class
    wins at all corners.
    """
    classes, width = len(x), x.shape[2]
    rows, columns = (_axis(grid, k, x.dtype) for k in (0, 1))
    pixels = len(rows.outputs) * len(columns.outputs)  # of a cell
    length = TILE_ELEMENTS // (min(classes, ABLE) * pixels)  # of a tile, in cells
    if length == 0:
        return False
    codes = torch.arange(-classes, 0, dtype=x.dtype, device="cpu")
    flat = x.flatten(1)
    last = flat.stride(0) == 1  # channels_last
    best = flat.max(0)[1] if last else _winners(flat.clone()[None], codes, True)[0].add_(classes)
    halves = [best.view(x.shape[1:]).index_select(1, i) for i in (columns.low, columns.high)]
    a, b, c, d = (half.index_select(0, i) for i in (rows.low, rows.high) for half in halves)
    mixed = ((a != b) | (a != c) | (a != d)).nonzero()
    if len(mixed) * pixels > labels.numel() * MIXED_SHARE:
        return False
    settled = a.to(labels.dtype).index_select(1, columns.cell)
    torch.index_select(settled, 0, rows.cell, out=labels)
    for begin in range(0, len(mixed), length):
        i, j = mixed[begin : begin + length].unbind(1)
        ends = [v.index_select(0, i) * width for v in (rows.low, rows.high)]
        sides = [v.index_select(0, j) for v in (columns.low, columns.high)]
        place = torch.cat([end + side for end in ends for side in sides])
        taken = flat.T.index_select(0, place).T if last else flat.index_select(1, place)
        corners = taken.contiguous().view(classes, 4, len(i))
        # A class wins nowhere in a cell where it is below the least score of a corner's winner.
        first = best.index_select(0, place[: len(i)]).long()
        bound = corners.gather(0, first.expand(1, 4, -1))[0].amin(0)
        able = (corners.amax(1) >= bound).any(1).nonzero()[:, 0]
        sides = corners.index_select(0, able).unflatten(1, (2, 2)).unbind(2)
        down, along = rows.weight.index_select(1, i), columns.weight.index_select(1, j)
        left, right = (torch.addcmul(s[:, :1], down, s[:, 1:] - s[:, :1]) for s in sides)
        z = torch.addcmul(left[:, :, None], along, (right - left)[:, :, None])
        found = _winners(z.flatten(1)[None], codes[able], True).add_(classes)
        y, x_ = rows.outputs.index_select(1, i), columns.outputs.index_select(1, j)
        place = (y[:, None] * labels.shape[1] + x_).flatten()
        labels.view(-1).scatter_(0, place, found[0].to(labels.dtype))
    return True


def _winners(z: Tensor, codes: Tensor, finite: bool) -> Tensor:
    """The code of the first largest class of each place of rows x C x places: rows x places.

    codes: of the C classes, negative and ascending. Overwrites `z`.
    """
    if z.device.type != "cpu":
        return codes[z.argmax(1)]  # on a GPU only argmax guarantees the first
    best = z.amax(1, keepdim=True)
    if not finite and best.isnan().any():  # a NaN wins
        return codes[z.max(1)[1]]  # several times faster than argmax, and also takes the first
    # max with indices is not vectorized: three vectorized passes are faster.
    return z.eq_(best).mul_(codes[:, None]).amin(1)


def _run(x: Tensor, grid: SamplingGrid, labels: Tensor, confidence: Tensor | None) -> None:
    """Write the labels N x H x W and, if `confidence` is given, the winners' softmax."""
    finite = is_finite(x)
    # On a GPU, looking at the corners would synchronize. With few pixels per cell it costs more
    # than it saves.
    settles = finite and confidence is None and x.device.type == "cpu"
    settles = settles and PIXELS_PER_CELL * x[:, :1].numel() <= labels.numel() > 0
    tiling = Tiling(grid, x.shape[1], x.dtype, x.device, finite)
    buffer = x.new_empty(tiling.elements)
    codes = torch.arange(-x.shape[1], 0, device=x.device, dtype=x.dtype)  # class minus C
    for n in range(len(x)):
        if settles and _by_cells(x[n], grid, labels[n]):
            continue
        framed = tiling.frame(x[n])
        for row in tiling.rows:
            rows = row.last - row.first
            found = labels.new_empty(rows, tiling.places)
            sure = None if confidence is None else x.new_empty(rows, tiling.places)
            low = tiling.lower(framed[row.low : row.high], row)
            for cells in tiling.groups:
                z = tiling.widen(low[..., cells.span], cells, buffer)
                if sure is not None:
                    sure[:, cells.places] = z.log_softmax(1).amax(1).exp_()
                found[:, cells.places] = _winners(z, codes, finite).add_(len(codes))
            place = tiling.place.expand(rows, -1)
            labels[n, row.first : row.last] = found.gather(1, place)
            if confidence is not None and sure is not None:
                confidence[n, row.first : row.last] = sure.gather(1, place)


def _outside(grid: SamplingGrid, axis: int) -> tuple[int, int]:
    """How many pixels at either end read only the zeros around the map."""
    n, size, num, off, den = (
        v[axis] for v in (grid.in_size, grid.size, grid.num, grid.off, grid.den)
    )
    if num == 0:
        return (0, 0) if -den < off < n * den else (size, 0)
    before = (-den - off) // num + 1
    after = size - -(-(n * den - off) // num)
    return min(size, max(0, before)), min(size, max(0, after))


def forward(
    scores: Tensor, grid: SamplingGrid, dtype: torch.dtype, confidence: bool
) -> tuple[Tensor, Tensor | None]:
    """Labels N x H x W of `dtype` and, with `confidence`, the winners' softmax."""
    labels = torch.empty((scores.shape[0], *grid.size), dtype=dtype, device=scores.device)
    with torch.autocast(scores.device.type, enabled=False):
        x = dense(scores)
        probability = x.new_empty(labels.shape) if confidence else None
        ordered = x.device.type == "cpu" and not confidence
        ordered = ordered and (x.numel() == 0 or not math.isnan(x.amax().item()))
        if ordered and grid.border == "zero":
            # Zeros around a map scale its outermost pixels equally for all classes, so the winners
            # are those of a repeated edge. Where only zeros are read, the first class wins.
            _run(x, replace(grid, border="clamp"), labels, None)
            for dim in (1, 2):
                before, after = _outside(grid, dim - 1)
                labels.narrow(dim, 0, before).zero_()
                labels.narrow(dim, labels.shape[dim] - after, after).zero_()
        else:
            _run(x, grid, labels, probability)
    return labels, probability
