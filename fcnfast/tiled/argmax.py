"""upsample_argmax in plain torch: in tiles, without the classes that cannot win there.

Every pixel of a cell (between four neighbors of the coarse map) is a convex combination of its
corners. A class whose largest corner is below the smallest corner of another cannot win there.
In a map with regions, a tile thus interpolates only the few classes that meet in it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..geometry import SamplingGrid
from ._cells import Tiling
from ._tiles import coarse, even_length, is_finite

# Rows and columns of cells in which classes are ruled out together: few enough to hold few regions,
# enough to be worth the check.
CELLS = 8, 256
# Below this average number of pixels per cell, checking corners costs more than it saves.
PIXELS_PER_CELL = 4


def _contenders(part: Tensor) -> Tensor:
    """Indices of the classes that can win somewhere between rows x C x columns of a map."""
    low = high = part
    for dim in (0, 2):
        if (last := part.shape[dim] - 1) > 0:
            low = torch.minimum(low.narrow(dim, 0, last), low.narrow(dim, 1, last))
            high = torch.maximum(high.narrow(dim, 0, last), high.narrow(dim, 1, last))
    # A comparison into a float tensor is several times faster here than one into booleans.
    able = torch.ge(high, low.amax(1, keepdim=True), out=torch.empty_like(high))
    return able.amax(0).amax(1).nonzero()[:, 0]


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


def _run(
    x: Tensor, grid: SamplingGrid, labels: Tensor, confidence: Tensor | None, prunes: bool
) -> None:
    """Write the labels N x H x W and, if `confidence` is given, the winners' softmax."""
    finite = is_finite(x)
    tiling = Tiling(grid, x.shape[1], x.dtype, x.device, finite, CELLS)
    buffer = x.new_empty(tiling.elements)
    codes = torch.arange(-x.shape[1], 0, device=x.device, dtype=x.dtype)  # class minus C
    for n in range(len(x)):
        framed = tiling.frame(x[n])
        for row in tiling.rows:
            rows = row.last - row.first
            found = labels.new_empty(rows, tiling.places)
            sure = None if confidence is None else x.new_empty(rows, tiling.places)
            for cells in tiling.groups:
                part, able = framed[row.low : row.high, :, cells.span], codes
                if prunes and len(classes := _contenders(part)) < len(codes):
                    part, able = part.index_select(1, classes), codes[classes]
                low = tiling.lower(part, row)
                length = even_length(rows, len(buffer) // (len(able) * cells.w0.numel()))
                for first in range(0, rows, length):
                    here = slice(first, first + length), cells.places
                    z = tiling.widen(low[here[0]], cells, buffer)
                    if sure is not None:
                        sure[here] = z.log_softmax(1).amax(1).exp_()
                    found[here] = _winners(z, able, finite).add_(len(codes))
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
    large = labels.numel() * scores.shape[1] >= PIXELS_PER_CELL * scores.numel()
    with torch.autocast(scores.device.type, enabled=False):
        x = coarse(scores)
        probability = x.new_empty(labels.shape) if confidence else None
        ordered = x.device.type == "cpu" and not confidence
        ordered = ordered and (x.numel() == 0 or not math.isnan(x.amax().item()))
        if ordered and grid.border == "zero":
            # Zeros around a map scale its outermost pixels equally for all classes, so the winners
            # are those of a repeated edge. Where only zeros are read, the first class wins.
            _run(x, replace(grid, border="clamp"), labels, None, large)
            for dim in (1, 2):
                before, after = _outside(grid, dim - 1)
                labels.narrow(dim, 0, before).zero_()
                labels.narrow(dim, labels.shape[dim] - after, after).zero_()
        else:
            _run(x, grid, labels, probability, ordered and large)
    return labels, probability
