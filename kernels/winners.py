"""What can be known of upsampled labels before any pixel is looked at: winners and tables.

One kernel finds the largest class of each coarse point, and tabulates the patches of either axis
(see `patches`), so that the kernels that label pixels neither divide nor compare it all again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import MOST, accumulator
from .geometry import clamped, floor_divide, weight, widened
from .patches import cell_start, is_wide, patch_at

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

    from .patches import Axis

AXIS = ["n", "size", "num", "off", "den", "first", "cells", "head", "inner", "patches"]
# Sizes differ from picture to picture: no kernel of its own for a 1 or a multiple of 16 among them.
SIZES = ["channels", "height", "width", "point_programs"]
SIZES += [f"{axis}_{part}" for axis in ("row", "column") for part in AXIS]
# Beyond, sums of two scores and differences may overflow: such points are SPECIAL, or LOW.
LARGE = tl.constexpr(2.0**124)
# Instead of a winner: the point has a NaN, or a score of LARGE or more.
SPECIAL = tl.constexpr(-1)
# Added to the winner of any other point that has a score of -LARGE or less: a class ruled out.
LOW = tl.constexpr(2**30)
# Points of a program, and classes whose scores it asks for at once.
POINTS, UNROLL = 128, 8


@triton.jit
def with_classes(
    place, stride, first, channels, best, winner, size,
    ACC: tl.constexpr, COUNT: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The largest score, its class and the sum of all magnitudes, with COUNT classes more.

    place: pointers to class `first`; returned, moved on. MASK: whether there may be fewer.
    """
    scores = ()
    for k in tl.static_range(COUNT):
        mask = first + k < channels if MASK else None
        scores = scores + (tl.load(place, mask=mask, other=0.0 if MASK else None).to(ACC),)
        place += stride
    for k in tl.static_range(COUNT):
        larger = scores[k] > best
        if MASK:
            larger = larger & (first + k < channels)
        best = tl.where(larger, scores[k], best)
        winner = tl.where(larger, first + k, winner)
        size += tl.abs(scores[k])
    return place, best, winner, size


@triton.jit
def point_winners(
    program, scores_ptr, winner_ptr, channels, height, width, xn, xc, xh, xw,
    ACC: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Store the first largest class of BLOCK points of an image's coarse map, or what it is not."""
    blocks = tl.cdiv(height * width, BLOCK)
    image = (program // blocks).to(tl.int64)
    point = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = point < height * width
    point = tl.where(inside, point, 0)
    row, column = (point // width).to(tl.int64), (point % width).to(tl.int64)
    place = scores_ptr + (image * xn + row * xh + column * xw)
    best = tl.full([BLOCK], float("-inf"), ACC)
    winner, size = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], ACC)
    whole = channels // UNROLL * UNROLL
    for first in range(0, whole, UNROLL):
        place, best, winner, size = with_classes(
            place, xc, first, channels, best, winner, size, ACC, UNROLL, False
        )
    if whole < channels:
        place, best, winner, size = with_classes(
            place, xc, whole, channels, best, winner, size, ACC, UNROLL, True
        )
    ruled_out = (best < LARGE) & (size == size)  # by -inf, say, but there is no NaN
    code = tl.where(size < LARGE, winner, tl.where(ruled_out, winner + LOW, SPECIAL))
    tl.store(winner_ptr + (image * height * width + point), code, mask=inside)


@triton.jit
def tabulate(
    item, table_ptr, fraction_ptr, n, size, num, off, den, first, cells, head, inner, patches,
    ACC: tl.constexpr, WIDE: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """Store of patches `item`, at most LENGTH outputs each, the first output and the cell; of
    outputs `item`, how far into their cell they look.
    """
    num, off, den = widened(num, WIDE), widened(off, WIDE), widened(den, WIDE)
    cell, which = patch_at(item, first, cells, head, inner)
    start = cell_start(cell, n, size, num, off, den) + which * LENGTH
    start = tl.minimum(start, cell_start(cell + 1, n, size, num, off, den))
    tl.store(table_ptr + item, tl.where(item < patches, start, size), mask=item <= patches)
    tl.store(table_ptr + patches + 1 + item, cell, mask=item < patches)
    position = num * item + off
    cell = floor_divide(position, den)
    _, part = clamped(cell, position - cell * den, n, True)
    fraction = weight(part, den, ACC, WIDE)
    # Rounded to 1, it would say that the cell's first value is not read.
    below = 2.0**-53 if ACC == tl.float64 else 2.0**-24  # noqa: SIM300
    fraction = tl.where(fraction < 1, fraction, fraction - below)
    tl.store(fraction_ptr + item, fraction, mask=item < size)


@triton.jit(do_not_specialize=SIZES)
def table_kernel(
    scores_ptr, winner_ptr, table_ptr, fraction_ptr,
    channels, height, width, point_programs,
    row_n, row_size, row_num, row_off, row_den,
    row_first, row_cells, row_head, row_inner, row_patches,
    column_n, column_size, column_num, column_off, column_den,
    column_first, column_cells, column_head, column_inner, column_patches,
    xn, xc, xh, xw,
    WIDE: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK points of the coarse map, or BLOCK entries of the tables of either axis.

    scores_ptr: N x channels x height x width, strides xn, xc, xh, xw.
    winner_ptr: N x height x width, int32: of each point the first largest class; see SPECIAL, LOW.
    table_ptr: int32, of the rows, then of the columns: the first output of each patch, how many
        outputs there are, the cell of each patch (of the extended map).
    fraction_ptr: of each row, then of each column, how far into its cell it looks: from 0, as
        those that were clamped, to less than 1.
    """
    program = tl.program_id(0)
    if program < point_programs:
        point_winners(
            program, scores_ptr, winner_ptr, channels, height, width, xn, xc, xh, xw,
            ACC, BLOCK, UNROLL,
        )  # fmt: skip
    else:
        item = (program - point_programs) * BLOCK + tl.arange(0, BLOCK)
        tabulate(
            item, table_ptr, fraction_ptr, row_n, row_size, row_num, row_off, row_den,
            row_first, row_cells, row_head, row_inner, row_patches, ACC, WIDE, ROWS,
        )  # fmt: skip
        tabulate(
            item, table_ptr + 2 * row_patches + 1, fraction_ptr + row_size,
            column_n, column_size, column_num, column_off, column_den,
            column_first, column_cells, column_head, column_inner, column_patches,
            ACC, WIDE, COLUMNS,
        )  # fmt: skip


def tables(
    scores: Tensor, grid: SamplingGrid, rows: Axis, columns: Axis, lengths: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The winners of `scores`, and the tables of both axes, as `table_kernel` describes them.

    Args:
        scores: N x C x h x w, any strides.
        grid: exact positions, h x w being its in_size.
        rows, columns: its patches, of at most `lengths` outputs.

    Raises:
        ValueError: when the coarse map has more than 2**30 points.
    """
    images, channels, height, width = scores.shape
    if height * width > MOST:
        raise ValueError(f"scores of {height} x {width} have more than {MOST} points")
    device, wide = scores.device, scores.dtype == torch.float64
    winner = torch.empty((images, height, width), dtype=torch.int32, device=device)
    entries = 2 * (rows.patches + columns.patches + 1)
    table = torch.empty(entries, dtype=torch.int32, device=device)
    kind = torch.float64 if wide else torch.float32
    fraction = torch.empty(rows.size + columns.size, dtype=kind, device=device)
    items = max(rows.size, columns.size, rows.patches + 1, columns.patches + 1)
    point_programs = images * triton.cdiv(height * width, POINTS)
    sizes = [channels, height, width, point_programs]
    sizes += [getattr(axis, part) for axis in (rows, columns) for part in AXIS]
    table_kernel[(point_programs + triton.cdiv(items, POINTS),)](
        scores, winner, table, fraction, *sizes, *scores.stride(),
        WIDE=is_wide(grid, POINTS), ACC=accumulator(scores.dtype),
        ROWS=lengths[0], COLUMNS=lengths[1], BLOCK=POINTS, UNROLL=UNROLL, num_warps=4,
    )  # fmt: skip
    return winner, table, fraction
