"""What both kernels of upsample_cross_entropy share: patches of lanes, corners, labels, the plan.

A program has a row of patches, ROWS x COLUMNS pixels each, of consecutive cells of one cell row;
its BLOCK lanes have one patch each. GROUPS neighboring lanes share a cell where it has more patches
than one, and SHARES programs share it further. The first cell of a program is the last one of the
program before: only what it gives to the corners on its right counts.

Each corner of the coarse map gets a share of the gradient from every row of patches above and below
it. They are kept apart, in planes, and added afterwards in a fixed order: no atomics.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import (
    AXES,
    Axis,
    Corners,
    Strided,
    axis_patches,
    cell_start,
    is_class,
    longest,
    patch_at,
)

if TYPE_CHECKING:
    from fcnfast.geometry import SamplingGrid

# Sizes and strides differ from picture to picture: no kernel of its own for a 1 or a multiple of 16
# among them. (A stride of 1 from column to column is worth one.)
SIZES = ["images", "num_classes", "height", "width", "plane_shift", "lane_cells", *AXES]
SIZES += ["ignore_index", "xn", "xc", "xh", "tn", "th", "pn", "ph"]
# Pixels of a patch along an axis: their sums, 64 at most, stay in registers.
PATCH = 8
# Neighboring lanes that share a cell, at most.
GROUPS = 4
# Lanes of a program: one warp.
LANES = 64 if torch.version.hip else 32


class Call(NamedTuple):
    """The arguments of `loss_kernel`, which explains them. The constants remain such only in a
    tuple that is handed on as it was made, not assigned to a name."""

    scores: Strided
    target: Strided
    pixels: Strided
    table: tl.tensor
    partial: tl.tensor
    left_over: tl.tensor
    upper: tl.tensor
    lower: tl.tensor
    images: tl.tensor
    num_classes: tl.tensor
    height: tl.tensor
    width: tl.tensor
    plane_shift: tl.tensor
    lane_cells: tl.tensor
    ignore_index: tl.tensor
    rows: Axis
    columns: Axis
    EXACT: tl.constexpr
    PIXELS: tl.constexpr
    GRADIENT: tl.constexpr
    CLAMP: tl.constexpr
    TABLE: tl.constexpr
    IGNORES: tl.constexpr
    DIGITS: tl.constexpr
    ROWS: tl.constexpr
    COLUMNS: tl.constexpr
    BLOCK: tl.constexpr
    GROUPS: tl.constexpr


# ---- the patches of a program


class Tile(NamedTuple):
    """The patches of a program.

    Of all lanes: row: the cell row, on the extended map. y, rows: its patches' first output row,
    and how many rows they have. plane: where what they give to corners is kept.
    first: the first of the program's cells, all rows of all images being one row of `cells`.
    Of each lane: image (int64); column: the cell column, on the extended map; x, columns: the
    patch's first output column, and how many columns it has, 0 if the lane has no patch.
    """

    row: tl.tensor
    y: tl.tensor
    rows: tl.tensor
    plane: tl.tensor
    first: tl.tensor
    cells: tl.tensor
    image: tl.tensor
    column: tl.tensor
    x: tl.tensor
    columns: tl.tensor


@triton.jit
def plane_of(patch, rows, plane_shift):
    """Which plane a row of patches has: the first one belongs to row `plane_shift`."""
    return (patch + rows.patches - plane_shift) % rows.patches


@triton.jit
def tile_of(call):
    """The Tile of this program."""
    program, cells, rows, columns = (
        tl.program_id(0),
        call.images * call.lane_cells,
        call.rows,
        call.columns,
    )
    blocks = tl.cdiv(cells, call.BLOCK // call.GROUPS - 1)  # programs of a row of patches
    first = program % blocks * (call.BLOCK // call.GROUPS - 1) - 1
    share = program // blocks // rows.patches  # of SHARES
    patch = program // blocks % rows.patches
    row, which = patch_at(patch, rows)
    y = cell_start(row, rows) + which * call.ROWS
    height = tl.minimum(cell_start(row + 1, rows) - y, call.ROWS)
    plane = share * rows.patches + plane_of(patch, rows, call.plane_shift)

    lane = tl.arange(0, call.BLOCK)
    flat = first + lane // call.GROUPS  # the cell, among those of all images
    valid = (flat >= 0) & (flat < cells)
    column = columns.first + flat % call.lane_cells
    x = cell_start(column, columns)
    x += (share * call.GROUPS + lane % call.GROUPS) * call.COLUMNS
    width = tl.where(valid, tl.minimum(cell_start(column + 1, columns) - x, call.COLUMNS), 0)
    image = (flat // call.lane_cells).to(tl.int64)
    return Tile(row, y, height, plane, first, cells, image, column, x, width)


# ---- scores at the corners of cells


class Source(NamedTuple):
    """Where the scores at the corners of each lane's cell are.

    upper, lower: pointers to the left corners, of one class. stride, class_stride: from
    column to column, from class to class. valid: Corners of masks.
    """

    upper: tl.tensor
    lower: tl.tensor
    stride: tl.tensor
    class_stride: tl.tensor
    valid: Corners


@triton.jit
def source_of(call, tile):
    """The Source of a tile."""
    scores, height, width = call.scores, call.height, call.width
    if call.CLAMP:
        top, bottom = tl.maximum(tile.row, 0), tl.minimum(tile.row + 1, height - 1)
        first = tile.columns > 0
        second = first & (tile.column >= 0) & (tile.column < width - 1)
        valid = Corners(first, second, first, second)
        left = tl.maximum(tile.column, 0)
    else:  # without the ring of zeros
        top, bottom, left = tile.row - 1, tile.row, tile.column - 1
        first = (tile.columns > 0) & (left >= 0) & (left < width)
        second = (tile.columns > 0) & (left >= -1) & (left < width - 1)
        upper, lower = (top >= 0) & (top < height), (bottom >= 0) & (bottom < height)
        valid = Corners(first & upper, second & upper, first & lower, second & lower)
    corner = scores.ptr + tile.image * scores.n + left.to(tl.int64) * scores.w
    upper, lower = corner + top.to(tl.int64) * scores.h, corner + bottom.to(tl.int64) * scores.h
    return Source(upper, lower, scores.w, scores.c, valid)


@triton.jit
def next_class(source):
    """The Source of the next class. Loops over classes carry it on.

    That is fewer instructions than an address made anew, and the compiler, which searches all code
    behind an address, has nothing to search.
    """
    upper, lower, stride, step, valid = source
    return Source(upper + step, lower + step, stride, step, valid)


@triton.jit
def loaded(source, CLAMP: tl.constexpr):
    """A class's scores at the four corners; beyond the map a border repeats the edge, or is 0."""
    valid, stride = source.valid, source.stride
    a = tl.load(source.upper, mask=valid.a, other=0.0)
    c = tl.load(source.lower, mask=valid.c, other=0.0)
    if CLAMP:
        b = tl.load(source.upper + stride, mask=valid.b, other=a)
        d = tl.load(source.lower + stride, mask=valid.d, other=c)
    else:
        b = tl.load(source.upper + stride, mask=valid.b, other=0.0)
        d = tl.load(source.lower + stride, mask=valid.d, other=0.0)
    return Corners(a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32))


# ---- what corners get


class Planes(NamedTuple):
    """Where what a program gives to the corners of its cells goes.

    upper, lower: pointers to what the left corner of each cell gets of the first class, from the
    cells below it and above it. stride: from class to class. stored: whether there is such a
    corner, and it is the program's to store. leftmost: whether no cell is to its left.
    """

    upper: tl.tensor
    lower: tl.tensor
    stride: tl.tensor
    stored: tl.tensor
    leftmost: tl.tensor


@triton.jit
def planes_of(call, tile):
    """The Planes of a tile, for its BLOCK // GROUPS cells."""
    own = tl.arange(0, call.BLOCK // call.GROUPS)
    cell = tile.first + own
    corner = call.columns.first + cell % call.lane_cells - (0 if call.CLAMP else 1)  # without ring
    # The first cell is the last one of the program before.
    stored = (own > 0) & (cell < tile.cells) & (corner >= 0) & (corner < call.width)
    plane = (call.images * call.num_classes).to(tl.int64) * call.width
    image = (cell // call.lane_cells).to(tl.int64)
    start = tile.plane * plane + image * call.num_classes * call.width + corner
    leftmost = cell % call.lane_cells == 0
    return Planes(call.upper + start, call.lower + start, call.width, stored, leftmost)


@triton.jit
def add_at_corner(call, place, planes, left, right, ADD: tl.constexpr):
    """Store at the left corners of the cells what they get, or ADD it to what is there.

    place: pointers, BLOCK // GROUPS of them. left, right: what each lane gives to the left and to
    the right corner of its cell: a corner gets the `left` of its cell's lanes, and the `right` of
    the lanes of the cell to its left.
    """
    cells: tl.constexpr = call.BLOCK // call.GROUPS
    if call.GROUPS > 1:
        left = tl.sum(tl.reshape(left, [cells, call.GROUPS]), 1)
        right = tl.sum(tl.reshape(right, [cells, call.GROUPS]), 1)
    right = tl.gather(right, tl.maximum(tl.arange(0, cells) - 1, 0), 0)
    total = left + tl.where(planes.leftmost, 0.0, right)
    if ADD:
        total += tl.load(place, mask=planes.stored, other=0.0)
    tl.store(place, total, mask=planes.stored)


@triton.jit
def add_at_corners(call, upper, lower, planes, shares, ADD: tl.constexpr):
    """`add_at_corner` for the upper and the lower corners of the cells.

    upper, lower: those of `planes`, carried on to the class. shares: Corners.
    """
    add_at_corner(call, upper, planes, shares.a, shares.b, ADD)
    add_at_corner(call, lower, planes, shares.c, shares.d, ADD)


# ---- labels and class weights


@triton.jit
def label_codes(call, pointers, inside):
    """Labels as int32: the class, -1 for a pixel that does not count, -2 out of range."""
    if call.IGNORES:
        label = tl.load(pointers, mask=inside, other=call.ignore_index)
    else:
        label = tl.load(pointers, mask=inside, other=0)
    code = tl.where(is_class(label, call.num_classes), label.to(tl.int32), -2)
    return tl.where(label != call.ignore_index if call.IGNORES else inside, code, -1)


def class_table(class_weight: Tensor | None, smoothing: float, scores: Tensor) -> Tensor | None:
    """What the kernels read about classes, or None where every pixel counts 1.

    With w_c the weight of class c and e the smoothing, 3 * C + 1 values in float32: w_c; what a
    label counts, (1 - e) w_c; what smoothing counts, k_c = e w_c / C; and the sum of the k_c. The
    loss of a pixel of class t is ``((1 - e) w_t + sum k) lse - (1 - e) w_t x_t - sum k_c x_c``.
    """
    num_classes = scores.shape[1]
    if class_weight is None:
        if smoothing == 0:
            return None
        class_weight = torch.ones(num_classes, dtype=torch.float32, device=scores.device)
    class_weight = class_weight.to(torch.float32)
    soft = class_weight * (smoothing / num_classes)
    return torch.cat([class_weight, class_weight * (1 - smoothing), soft, soft.sum()[None]])


# ---- launch plan


class Shares(NamedTuple):
    """How a program's lanes share pixels: other values of PATCH, GROUPS and LANES, to compare."""

    patch: int
    groups: int
    lanes: int


class Launch(NamedTuple):
    """How programs share the pixels of a call.

    rows, columns: the patches of either axis. lane_cells: the cells of a row, with one more where
    the last corner has no pixels to its right. in_place: each row of corners but the last has one
    row of patches below it, whose plane becomes the corners' own. plane_shift: the row of patches
    whose plane comes first. shares: programs that share a cell, each with planes of its own.
    sizes: what `loss_kernel` takes between its pointers and ignore_index.
    """

    rows: Axis
    columns: Axis
    lane_cells: int
    in_place: bool
    plane_shift: int
    shares: int
    programs: int
    sizes: tuple[int, ...]
    options: dict[str, Any]


@lru_cache(maxsize=1024)
def launch_of(shape: tuple[int, ...], grid: SamplingGrid, others: Shares | None = None) -> Launch:
    """The launch for scores of `shape`, N x C x h x w, at a grid.

    Raises:
        ValueError: when there are more than 2**31 cells in a row of all images, or programs.
    """
    patch, most, lanes = others or (PATCH, GROUPS, LANES)
    lengths = [min(patch, triton.next_power_of_2(longest(grid, axis))) for axis in (0, 1)]
    rows, columns = (axis_patches(grid, axis, lengths[axis]) for axis in (0, 1))
    pad = int(grid.border == "zero")
    groups = min(most, triton.next_power_of_2(columns.inner))
    shares = triton.cdiv(columns.most, groups)
    beyond = columns.first + columns.cells - pad
    lane_cells = columns.cells + (0 <= beyond < grid.in_size[1])
    cells = shape[0] * lane_cells
    programs = triton.cdiv(cells, lanes // groups - 1) * rows.patches * shares
    if max(cells + lanes, programs) >= 2**31:
        raise ValueError(f"scores of {tuple(shape)} at {grid} need too many programs")
    first = pad - rows.first  # the row of patches below the first row of corners
    in_place = shares == 1 and rows.patches == rows.cells
    in_place = in_place and 0 <= first <= rows.patches - grid.in_size[0]
    plane_shift = first * in_place
    sizes = (*shape, plane_shift, lane_cells, *rows, *columns)
    options = {
        "CLAMP": grid.border == "clamp", "ROWS": lengths[0], "COLUMNS": lengths[1], "BLOCK": lanes,
        "GROUPS": groups, "num_warps": 1,
    }  # fmt: skip
    return Launch(
        rows, columns, lane_cells, in_place, plane_shift, shares, programs, sizes, options
    )
