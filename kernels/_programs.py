"""How the programs of upsample_cross_entropy share the pixels of a call: patches of cells.

A program has a row of patches, of consecutive cells. Neighbouring lanes share a cell where it has
more patches than one, and programs share it further. The first cell of a program is the last one of
the program before: only what it gives to the corners on its right counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import accumulator
from ._corners import plane_of
from .patches import Axis, axis_patches, cell_start, is_wide, longest, patch_at

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

AXIS = ["n", "size", "num", "off", "den", "first", "cells", "head", "inner"]
SIZES = ["images", "channels", "height", "width", "ring", "row_patches", "row_turn", "lane_cells"]
SIZES += [f"{axis}_{part}" for axis in ("row", "column") for part in AXIS] + ["ignore_index"]
# Pixels of a patch along an axis: in float32 the sums of 64 stay in registers.
PATCH, WIDE_PATCH = 8, 4
# Neighbouring lanes that share a cell, at most.
GROUPS = 4
# Lanes of a program: one warp.
LANES = 64 if torch.version.hip else 32


@triton.jit
def patch_rows(
    program, blocks, row_patches, row_turn, row_n, row_size, row_num, row_off, row_den, row_first,
    row_cells, row_head, row_inner, ROWS: tl.constexpr,
):  # fmt: skip
    """The row of patches of a program: cell, first output, how many, and its plane."""
    patch = program // blocks % row_patches
    cell, which = patch_at(patch, row_first, row_cells, row_head, row_inner)
    y = cell_start(cell, row_n, row_size, row_num, row_off, row_den) + which * ROWS
    end = cell_start(cell + 1, row_n, row_size, row_num, row_off, row_den)
    return cell, y, tl.minimum(end - y, ROWS), plane_of(patch, row_patches, row_turn)


@triton.jit
def patch_columns(
    first_cell, share, cells, lane_cells, column_n, column_size, column_num, column_off,
    column_den, column_first,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Of each lane: image, cell, first output, how many."""
    lane = tl.arange(0, BLOCK)
    flat = first_cell + lane // GROUPS
    there = (flat >= 0) & (flat < cells)
    cell = column_first + flat % lane_cells
    x = cell_start(cell, column_n, column_size, column_num, column_off, column_den)
    x += (share * GROUPS + lane % GROUPS) * COLUMNS
    end = cell_start(cell + 1, column_n, column_size, column_num, column_off, column_den)
    columns = tl.where(there, tl.minimum(end - x, COLUMNS), 0)
    return (flat // lane_cells).to(tl.int64), cell, x, columns


class Launch(NamedTuple):
    """How programs share the pixels of a call.

    rows, columns: the patches of either axis. lane_cells: the cells of a row, with one more where
    the last corner has no pixels to its right. in_place: each row of corners but the last has one
    row of patches below it, whose plane becomes the corners' own. turn: the row of patches whose
    plane comes first.
    """

    rows: Axis
    columns: Axis
    lane_cells: int
    in_place: bool
    turn: int
    programs: int
    options: dict[str, Any]

    @property
    def planes(self) -> int:
        """How many rows of corners are kept apart before they are added."""
        return self.options["SHARES"] * self.rows.patches

    def sizes(self, scores: Tensor) -> tuple[int, ...]:
        """What both kernels take between their pointers and ignore_index."""
        rows, columns = ((a.n, a.size, a.num, a.off, a.den) for a in (self.rows, self.columns))
        rows += (self.rows.first, self.rows.cells, self.rows.head, self.rows.inner)
        columns += (self.columns.first,)
        planes = self.rows.patches, self.turn
        return (*scores.shape, self.rows.ring, *planes, self.lane_cells, *rows, *columns)


def launch_of(scores: Tensor, grid: SamplingGrid) -> Launch:
    """The launch for scores at a grid.

    Raises:
        ValueError: when there are more than 2**31 cells in a row of all images, or programs.
    """
    double = scores.dtype == torch.float64
    lengths = [
        min(WIDE_PATCH if double else PATCH, triton.next_power_of_2(longest(grid, axis)))
        for axis in (0, 1)
    ]
    rows, columns = (axis_patches(grid, axis, lengths[axis]) for axis in (0, 1))
    groups = min(GROUPS, triton.next_power_of_2(columns.inner))
    beyond = columns.first + columns.cells - columns.ring
    lane_cells = columns.cells + (0 <= beyond < grid.in_size[1])
    options = {
        "CLAMP": grid.border == "clamp",
        "WIDE": is_wide(grid, LANES * PATCH),
        "ACC": accumulator(scores.dtype),
        "ROWS": lengths[0],
        "COLUMNS": lengths[1],
        "BLOCK": LANES,
        "GROUPS": groups,
        "SHARES": triton.cdiv(columns.most, groups),
        "num_warps": 1,
    }
    cells = scores.shape[0] * lane_cells
    programs = triton.cdiv(cells, LANES // groups - 1) * rows.patches * options["SHARES"]
    if max(cells + LANES, programs) >= 2**31:
        raise ValueError(f"scores of {tuple(scores.shape)} at {grid} need too many programs")
    first = rows.ring - rows.first  # below the first row of corners
    in_place = options["SHARES"] == 1 and rows.patches == rows.cells
    in_place = in_place and 0 <= first <= rows.patches - grid.in_size[0]
    return Launch(rows, columns, lane_cells, in_place, first * in_place, programs, options)
