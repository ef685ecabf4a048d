"""How kernels share out the outputs of an axis, and how they turn tiles into columns."""

from math import floor

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from tests.kernel_tools import DEVICE, examples, some_grids

import triton  # isort: skip
import triton.language as tl  # isort: skip

from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import grid as kernels  # isort: skip

columns_of, joined, patch_at, patches_of = (
    kernels.columns_of,
    kernels.joined,
    kernels.patch_at,
    kernels.patches_of,
)
Axis = kernels.Axis
LENGTHS = (1, 2, 4, 8)


@triton.jit(do_not_specialize=["first", "cells", "head", "inner", "count", "before"])
def patches_kernel(
    patch_ptr, cell_ptr, first, cells, head, inner, count, before, BLOCK: tl.constexpr
):
    """Of patches their cell and which of its patches they are; the range of patches of cells."""
    item = tl.arange(0, BLOCK)
    axis = Axis(0, 0, 0, 0, 0, first, cells, head, inner, count)
    cell, which = patch_at(item, axis)
    tl.store(patch_ptr + 2 * item, cell)
    tl.store(patch_ptr + 2 * item + 1, which)
    begin, end = patches_of(before + item, axis)
    tl.store(cell_ptr + 2 * item, begin)
    tl.store(cell_ptr + 2 * item + 1, end)


@triton.jit
def columns_kernel(x_ptr, columns_ptr, out_ptr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """The columns of a tile one after the other, and the tile put together of them again."""
    lane = tl.arange(0, BLOCK)
    place = lane[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    columns = columns_of(tl.load(x_ptr + place), BLOCK, COLUMNS)
    for j in tl.static_range(COLUMNS):
        tl.store(columns_ptr + j * BLOCK + lane, columns[j])
    tl.store(out_ptr + place, joined(columns, BLOCK, COLUMNS))


@examples(60)
@given(some_grids, st.sampled_from((0, 1)), st.sampled_from(LENGTHS))
def test_patches_are_those_of_their_cells_in_order(grid, axis, length):
    """Where the outputs of a patch are is tabulated for argmax: see its tests."""
    plan = kernels.axis_patches(grid, axis, length)
    clamp = grid.border == "clamp"
    cells = [floor((plan.num * y + plan.off) / plan.den) for y in range(plan.size)]
    cells = [min(max(cell, -1), plan.n - 1) for cell in cells]
    assert (plan.n, plan.size) == (grid.in_size[axis] + 2 * (not clamp), grid.size[axis])
    assert (plan.first, plan.first + plan.cells - 1) == (cells[0], cells[-1])
    # None more than it takes: what a program does for an empty patch is lost.
    counts = [-(-cells.count(plan.first + k) // length) for k in range(plan.cells)]
    assert (plan.head, plan.tail) == (counts[0], counts[-1] if plan.cells > 1 else 0)
    assert plan.inner >= max(counts[1:-1], default=0)
    inside = [cells.count(c) for c in set(cells) if plan.num and c not in (-1, plan.n - 1)]
    assert max(inside, default=0) <= kernels.longest(grid, axis) <= plan.size
    event(f"patches of a cell: {min(plan.most, 4)}")

    number = [(plan.first, k) for k in range(plan.head)]
    number += [(plan.first + c, k) for c in range(1, plan.cells - 1) for k in range(plan.inner)]
    number += [(plan.first + plan.cells - 1, k) for k in range(plan.tail)]
    assert plan.patches == len(number)
    assert plan.most == 1 + max(k for _, k in number)
    block = triton.next_power_of_2(max(plan.patches, plan.cells + 4))
    found = torch.zeros(2, block, 2, dtype=torch.int32, device=DEVICE)
    shares = (plan.first, plan.cells, plan.head, plan.inner, plan.patches, plan.first - 2)
    patches_kernel[(1,)](*found, *shares, BLOCK=block)
    patches, ranges = found.tolist()
    assert [tuple(p) for p in patches[: plan.patches]] == number
    for cell, (begin, end) in enumerate(ranges[: plan.cells + 4], plan.first - 2):
        assert list(range(begin, end)) == [p for p, (c, _) in enumerate(number) if c == cell]


@pytest.mark.parametrize("columns", LENGTHS)
def test_columns_of_a_tile(columns):
    x = torch.arange(16 * columns, dtype=torch.int32, device=DEVICE).view(16, columns)
    apart, again = torch.zeros_like(x.mT).contiguous(), torch.zeros_like(x)
    columns_kernel[(1,)](x, apart, again, BLOCK=16, COLUMNS=columns)
    assert torch.equal(apart, x.mT)
    assert torch.equal(again, x)


def test_which_grids_fit():
    def fits(num, off, den, size=(500, 375)):
        return kernels.fits_int32(SamplingGrid((63, 47), size, num, off, den, "zero"))

    assert fits((2, 2), (47, -25), (16, 64))
    assert fits((2, 2), (0, 0), (2**24, 16))
    assert not fits((2, 2), (0, 0), (16, 2**24 + 1))  # more than the 24 bits of a float32
    assert not fits((2**21, 1), (0, 0), (16, 16))  # beyond the end of the axis
    assert fits((2**19, 1), (0, 0), (16, 16))
    assert not fits((2, 2), (0, -(2**31)), (16, 16))
