"""Device code of upsample_cross_entropy: scores at the corners of cells, and what corners get.

A source is (pointers to the upper and to the lower left corner of each lane's cell, the stride of
columns, four masks, the stride of classes). Planes are (pointers to what upper and lower corners
get, of the first class, the stride of classes, whether a cell's corner is stored, whether no cell
is to its left).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def source_of(
    scores_ptr, image, top, left, there, height, width, xn, xc, xh, xw, CLAMP: tl.constexpr
):
    """Where the corners of each lane's cell are, for `loaded`: the cell's row and column."""
    bottom = top + 1
    if CLAMP:
        bottom, top = tl.minimum(bottom, height - 1), tl.maximum(top, 0)
        second = there & (left >= 0) & (left < width - 1)
        masks = (there, second, there, second)
        left = tl.maximum(left, 0)
    else:
        first = there & (left >= 0) & (left < width)
        second = there & (left >= -1) & (left < width - 1)
        upper, lower = (top >= 0) & (top < height), (bottom >= 0) & (bottom < height)
        masks = (first & upper, second & upper, first & lower, second & lower)
    corner = scores_ptr + image * xn + left.to(tl.int64) * xw
    upper, lower = corner + top.to(tl.int64) * xh, corner + bottom.to(tl.int64) * xh
    return upper, lower, xw, masks[0], masks[1], masks[2], masks[3], xc


@triton.jit
def corners_of(source):
    """Pointers to the four corners of each lane's cell, of the first class.

    Loops over classes carry them on (`next_class`). That is fewer instructions than an address made
    anew, and the compiler, which searches all code behind an address, has nothing to search.
    """
    upper, lower, stride = source[0], source[1], source[2]
    return upper, upper + stride, lower, lower + stride


@triton.jit
def next_class(pointers, stride):
    """Pointers to the same places of the next class."""
    a, b, c, d = pointers
    return a + stride, b + stride, c + stride, d + stride


@triton.jit
def loaded(pointers, source, CLAMP: tl.constexpr, ACC: tl.constexpr):
    """A class's scores at the four corners; beyond the map a border repeats the edge, or is 0."""
    a = tl.load(pointers[0], mask=source[3], other=0.0)
    c = tl.load(pointers[2], mask=source[5], other=0.0)
    if CLAMP:
        b = tl.load(pointers[1], mask=source[4], other=a)
        d = tl.load(pointers[3], mask=source[6], other=c)
    else:
        b = tl.load(pointers[1], mask=source[4], other=0.0)
        d = tl.load(pointers[3], mask=source[6], other=0.0)
    return a.to(ACC), b.to(ACC), c.to(ACC), d.to(ACC)


@triton.jit
def highest_of(source, channels, CLAMP: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """The highest score of each corner."""
    h0 = tl.full([BLOCK], float("-inf"), ACC)
    h1, h2, h3 = h0, h0, h0
    pointers = corners_of(source)
    for _ in range(channels):
        a, b, c, d = loaded(pointers, source, CLAMP, ACC)
        pointers = next_class(pointers, source[7])
        h0, h1 = tl.maximum(h0, a), tl.maximum(h1, b)
        h2, h3 = tl.maximum(h2, c), tl.maximum(h3, d)
    return h0, h1, h2, h3


@triton.jit
def corner_shares(sums, fx, sx, fy, sy):
    """What a patch gives to its corners: top left, top right, bottom left, bottom right.

    sums: over the pixels of s, s x, s y, s x y, for the pixel in column x and row y as counted
        from the middle of the patch.
    """
    s, s_x, s_y, s_xy = sums
    right = s * fx + s_x * sx
    bottom = s * fy + s_y * sy
    both = (s * fy + s_y * sy) * fx + (s_x * fy + s_xy * sy) * sx
    return (s - right) - (bottom - both), right - both, bottom - both, both


@triton.jit
def plane_of(patch, row_patches, row_turn):
    """Which plane a row of patches has: the first one belongs to row `row_turn`."""
    return (patch + row_patches - row_turn) % row_patches


@triton.jit
def planes_of(
    upper_ptr, lower_ptr, first_cell, plane_row, cells, lane_cells, column_first, ring, images,
    channels, width, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Where the shares of each cell's left corner go, for `add_at_corners`.

    plane_row: which of the planes.
    """
    cell = first_cell + tl.arange(0, BLOCK // GROUPS)
    corner = column_first + cell % lane_cells - ring
    # The first cell is the last one of the program before.
    stored = (tl.arange(0, BLOCK // GROUPS) > 0) & (cell < cells)
    stored = stored & (corner >= 0) & (corner < width)
    plane = (images * channels).to(tl.int64) * width
    start = plane_row * plane + (cell // lane_cells).to(tl.int64) * channels * width + corner
    return upper_ptr + start, lower_ptr + start, width, stored, cell % lane_cells == 0


@triton.jit
def add_at_corners(
    places, planes, shares,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Store a class's shares at (or ADD them to) the left corners of the cells: those of a cell's
    lanes, and of the lanes of the cell to its left.

    places: the first two of `planes`, carried on to the class.
    """
    before = tl.maximum(tl.arange(0, BLOCK // GROUPS) - 1, 0)
    for k in tl.static_range(2):
        a, b = shares[2 * k], shares[2 * k + 1]
        if GROUPS > 1:
            a = tl.sum(tl.reshape(a, [BLOCK // GROUPS, GROUPS]), 1)
            b = tl.sum(tl.reshape(b, [BLOCK // GROUPS, GROUPS]), 1)
        total = a + tl.where(planes[4], 0.0, tl.gather(b, before, 0))
        if ADD:
            total += tl.load(places[k], mask=planes[3], other=0.0)
        tl.store(places[k], total, mask=planes[3])


@triton.jit
def between(a, b, part):
    """From `a` to `b`; what has no part in it is not read."""
    return tl.where(part == 0, a, tl.where(part == 1, b, a * (1 - part) + b * part))


@triton.jit
def share_of(value, part):
    """A part of `value`; of what has no part not even a NaN."""
    return tl.where(part == 0, 0.0, value * part)


@triton.jit
def part_of(shares, values):
    """The sum of the shares of four values; of no share nothing."""
    total = tl.where(shares[0] == 0, 0.0, shares[0] * values[0])
    for k in tl.static_range(1, 4):
        total += tl.where(shares[k] == 0, 0.0, shares[k] * values[k])
    return total
