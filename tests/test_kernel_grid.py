"""How kernels share out the outputs of an axis: patches, and how far into a cell outputs look."""

from fractions import Fraction
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

cell_start, fraction, patch_at = kernels.cell_start, kernels.fraction, kernels.patch_at
patches_of, columns_of, joined = kernels.patches_of, kernels.columns_of, kernels.joined
Axis = kernels.Axis

LENGTHS = (1, 2, 4, 8)
AXIS = ["first_cell", "n", "size", "num", "off", "den", "first", "cells", "head", "inner", "count"]


@triton.jit(do_not_specialize=AXIS)
def cells_kernel(
    start_ptr, begin_ptr, end_ptr,
    first_cell, n, size, num, off, den, first, cells, head, inner, count, BLOCK: tl.constexpr
):  # fmt: skip
    """Where cells start, and their patches."""
    axis = Axis(n, size, num, off, den, first, cells, head, inner, 0)
    item = tl.arange(0, BLOCK)
    cell = first_cell + item
    tl.store(start_ptr + item, cell_start(cell, axis))
    begin, end = patches_of(cell, axis, count)
    tl.store(begin_ptr + item, begin)
    tl.store(end_ptr + item, end)


@triton.jit(do_not_specialize=AXIS)
def patches_kernel(cell_ptr, which_ptr, first, cells, head, inner, count, BLOCK: tl.constexpr):
    """The cells of patches, and which of the cell's patches they are."""
    item = tl.arange(0, BLOCK)
    cell, which = patch_at(item, Axis(0, 0, 0, 0, 0, first, cells, head, inner, 0))
    tl.store(cell_ptr + item, cell, mask=item < count)
    tl.store(which_ptr + item, which, mask=item < count)


@triton.jit(do_not_specialize=AXIS)
def fractions_kernel(
    cell_ptr, part_ptr, step_ptr, n, size, num, off, den, BLOCK: tl.constexpr
):  # fmt: skip
    """How far outputs look into their cells."""
    item = tl.arange(0, BLOCK)
    cell = tl.load(cell_ptr + item, mask=item < size, other=0)
    part, step = fraction(cell, item, Axis(n, size, num, off, den, 0, 0, 0, 0, 0))
    tl.store(part_ptr + item, part, mask=item < size)
    tl.store(step_ptr + item, step, mask=item < size)


@triton.jit
def columns_kernel(x_ptr, columns_ptr, out_ptr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """The columns of a tile one after the other, and the tile put together of them again."""
    lane = tl.arange(0, BLOCK)
    place = lane[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    columns = columns_of(tl.load(x_ptr + place), BLOCK, COLUMNS)
    for j in tl.static_range(COLUMNS):
        tl.store(columns_ptr + j * BLOCK + lane, columns[j])
    tl.store(out_ptr + place, joined(columns, BLOCK, COLUMNS))


def looks(grid, axis):
    """The definition: of each output its cell and how far into it, None where it was clamped."""
    n, size, num, off, den = (
        v[axis] for v in (grid.in_size, grid.size, grid.num, grid.off, grid.den)
    )
    ring = int(grid.border == "zero")  # a zero border is a ring of zeros around the map
    last = n + 2 * ring - 1
    for y in range(size):
        position = Fraction(num * y + off, den) + ring
        if position < 0:
            yield -1, None
        elif position >= last:
            yield last, None
        else:
            yield floor(position), position - floor(position)


def integers(count):
    return torch.full((count,), -9, dtype=torch.int32, device=DEVICE)


def block(count):
    return max(triton.next_power_of_2(count), 2)


def cells_of(plan):
    """From two cells before the map to two beyond it: the first output, the range of patches."""
    results, shares = [integers(block(plan.n + 4)) for _ in range(3)], plan[5:9]
    cells_kernel[(1,)](*results, -2, *plan[:5], *shares, plan.patches, BLOCK=block(plan.n + 4))
    cells = range(-2, plan.n + 2)
    return {cell: row for cell, *row in zip(cells, *(r.tolist() for r in results), strict=False)}


def patches_by_number(plan):
    """Of each patch its cell, and which of the cell's patches it is."""
    results = integers(plan.patches), integers(plan.patches)
    patches_kernel[(1,)](*results, *plan[5:9], plan.patches, BLOCK=block(plan.patches))
    return list(zip(*(r.tolist() for r in results), strict=True))


axes, lengths = st.sampled_from((0, 1)), st.sampled_from(LENGTHS)


@examples(80)
@given(some_grids, axes, lengths)
def test_patches_are_the_outputs_of_their_cells_in_order(grid, axis, length):
    cells = [cell for cell, _ in looks(grid, axis)]
    plan = kernels.axis_patches(grid, axis, length)
    assert (plan.first, plan.first + plan.cells - 1) == (cells[0], cells[-1])
    starts = cells_of(plan)
    numbers = patches_by_number(plan)
    event(f"patches of a cell: {min(plan.most, 4)}")
    outputs = []
    for cell, which in numbers:
        begin, end = starts[cell][0] + which * length, starts[cell + 1][0]
        assert which < plan.most
        outputs += [(y, cell) for y in range(begin, min(end, begin + length))]
    assert outputs == list(enumerate(cells))
    assert len(numbers) == plan.patches
    for cell, (_, begin, end) in starts.items():
        assert list(range(begin, end)) == [p for p, (c, _) in enumerate(numbers) if c == cell]
    # None more than it takes: what a program does for an empty patch is lost.
    counts = [-(-cells.count(plan.first + k) // length) for k in range(plan.cells)]
    assert (plan.head, plan.tail) == (counts[0], counts[-1] if plan.cells > 1 else 0)
    assert plan.inner >= max(counts[1:-1], default=0)
    clamped = (-1, plan.n - 1)
    inside = [cells.count(c) for c in set(cells) if plan.num and c not in clamped]
    assert max(inside, default=0) <= kernels.longest(grid, axis) <= plan.size


@examples(80)
@given(some_grids, axes)
def test_fractions_are_correctly_rounded(grid, axis):
    plan, definition = kernels.axis_patches(grid, axis, 8), list(looks(grid, axis))
    cells = torch.tensor([cell for cell, _ in definition], dtype=torch.int32, device=DEVICE)
    parts, steps = (torch.full((plan.size,), -9.0, device=DEVICE) for _ in range(2))
    fractions_kernel[(1,)](cells, parts, steps, *plan[:5], BLOCK=block(plan.size))
    whole = {-1: (1, 0), plan.n - 1: (0, 0)}  # all of the first value, all of the last
    steps, step = steps.cpu(), Fraction(plan.num, plan.den)
    for y, (cell, true) in enumerate(definition):
        wanted = whole[cell] if true is None else (true, step)
        for found, exact in zip((parts[y], steps[y]), wanted, strict=True):
            assert found.item() == torch.tensor(float(exact), dtype=torch.float64).float().item()


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
