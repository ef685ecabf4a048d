"""How kernels share out the outputs of an axis: patches, and how far into a cell outputs look."""

from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.kernel_tools import DEVICE, any_grids
from tests.op_tools import grids

import triton  # isort: skip
import triton.language as tl  # isort: skip

from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import geometry, patches  # isort: skip

cell_start, fraction, patch_at = patches.cell_start, patches.fraction, patches.patch_at
patches_of, columns_of, joined = patches.patches_of, patches.columns_of, patches.joined
widened = geometry.widened

LENGTHS = (1, 2, 4, 8)
AXIS = ["first_cell", "n", "size", "num", "off", "den", "first", "cells", "head", "inner", "count"]


@triton.jit(do_not_specialize=AXIS)
def cells_kernel(
    start_ptr, begin_ptr, end_ptr,
    first_cell, n, size, num, off, den, first, cells, head, inner, count,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where cells start, and their patches."""
    item = tl.arange(0, BLOCK)
    cell = first_cell + item
    num, off, den = widened(num, WIDE), widened(off, WIDE), widened(den, WIDE)
    tl.store(start_ptr + item, cell_start(cell, n, size, num, off, den))
    begin, end = patches_of(cell, first, cells, head, inner, count)
    tl.store(begin_ptr + item, begin)
    tl.store(end_ptr + item, end)


@triton.jit(do_not_specialize=AXIS)
def patches_kernel(cell_ptr, which_ptr, first, cells, head, inner, count, BLOCK: tl.constexpr):
    """The cells of patches, and which of the cell's patches they are."""
    item = tl.arange(0, BLOCK)
    cell, which = patch_at(item, first, cells, head, inner)
    tl.store(cell_ptr + item, cell, mask=item < count)
    tl.store(which_ptr + item, which, mask=item < count)


@triton.jit(do_not_specialize=AXIS)
def fractions_kernel(
    cell_ptr, part_ptr, step_ptr, n, size, num, off, den,
    ACC: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How far outputs look into their cells."""
    item = tl.arange(0, BLOCK)
    cell = tl.load(cell_ptr + item, mask=item < size, other=0)
    num, off, den = widened(num, WIDE), widened(off, WIDE), widened(den, WIDE)
    part, step = fraction(cell, item, n, num, off, den, ACC, WIDE)
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


def integers(count, dtype=torch.int32):
    return torch.full((count,), -9, dtype=dtype, device=DEVICE)


def read(*tensors):
    return tuple(x.tolist() for x in tensors)


def block(count):
    return max(triton.next_power_of_2(count), 2)


def arguments(plan):
    """What kernels take of the plan of an axis: where outputs look, and where patches are."""
    places = (plan.n, plan.size, plan.num, plan.off, plan.den)
    return places, (plan.first, plan.cells, plan.head, plan.inner, plan.patches)


def cells_of(plan, wide):
    """From two cells before the map to two beyond it: the first output, the range of patches."""
    places, shares = arguments(plan)
    results = [integers(block(plan.n + 4)) for _ in range(3)]
    options = {"WIDE": wide, "BLOCK": block(plan.n + 4)}
    cells_kernel[(1,)](*results, -2, *places, *shares, **options)
    starts, begins, ends = (r[: plan.n + 4] for r in read(*results))
    return dict(zip(range(-2, plan.n + 2), zip(starts, begins, ends, strict=True), strict=True))


def patches_by_number(plan):
    """Of each patch its cell, and which of the cell's patches it is."""
    _, shares = arguments(plan)
    results = integers(plan.patches), integers(plan.patches)
    patches_kernel[(1,)](*results, *shares, BLOCK=block(plan.patches))
    return list(zip(*read(*results), strict=True))


def enlarged(grid, factor):
    """The same places in larger integers."""
    axes = ([v * factor for v in values] for values in (grid.num, grid.off, grid.den))
    return SamplingGrid(grid.in_size, grid.size, *axes, grid.border)


# Also integers that int32 holds, but not their products.
large = st.builds(enlarged, any_grids(larger=False), st.sampled_from((2**25, 2**27 + 1)))
some_grids = st.one_of(grids(), any_grids(), large)
axes, lengths = st.sampled_from((0, 1)), st.sampled_from(LENGTHS)


@settings(max_examples=150)
@given(some_grids, axes, lengths)
def test_patches_are_the_outputs_of_their_cells_in_order(grid, axis, length):
    cells = [cell for cell, _ in looks(grid, axis)]
    plan = patches.axis_patches(grid, axis, length)
    assert (plan.first, plan.first + plan.cells - 1) == (cells[0], cells[-1])
    starts = cells_of(plan, patches.is_wide(grid, 64))
    numbers = patches_by_number(plan)
    event(f"patches of a cell: {min(plan.most, 4)}")
    outputs = []
    for cell, which in numbers:
        begin, end = starts[cell][0] + which * length, starts[cell + 1][0]
        assert which < plan.most
        outputs += [(y, cell) for y in range(begin, min(end, begin + length))]
    assert outputs == list(enumerate(cells))
    # None more than it takes: what a program does for an empty patch is lost.
    counts = [-(-cells.count(plan.first + k) // length) for k in range(plan.cells)]
    assert (plan.head, plan.tail) == (counts[0], counts[-1] if plan.cells > 1 else 0)
    assert plan.inner >= max(counts[1:-1], default=0)
    clamped = (-1, plan.n - 1)
    inside = [cells.count(c) for c in set(cells) if plan.num and c not in clamped]
    assert max(inside, default=0) <= patches.longest(grid, axis) <= plan.size


@settings(max_examples=100)
@given(some_grids, axes, lengths)
def test_the_patches_of_a_cell_are_those_that_name_it(grid, axis, length):
    plan = patches.axis_patches(grid, axis, length)
    numbers = patches_by_number(plan)
    assert len(numbers) == plan.patches
    for cell, (_, begin, end) in cells_of(plan, patches.is_wide(grid, 64)).items():
        assert list(range(begin, end)) == [p for p, (c, _) in enumerate(numbers) if c == cell]


@settings(max_examples=150)
@given(some_grids, axes, st.sampled_from((tl.float32, tl.float64)))
def test_fractions_are_correctly_rounded(grid, axis, acc):
    plan, definition = patches.axis_patches(grid, axis, 8), list(looks(grid, axis))
    places, _ = arguments(plan)
    dtype = torch.float64 if acc == tl.float64 else torch.float32
    cells = torch.tensor([cell for cell, _ in definition], dtype=torch.int32, device=DEVICE)
    parts, steps = (torch.full((plan.size,), -9, dtype=dtype, device=DEVICE) for _ in range(2))
    wide = patches.is_wide(grid, 64)
    options = {"ACC": acc, "WIDE": wide, "BLOCK": block(plan.size)}
    fractions_kernel[(1,)](cells, parts, steps, *places, **options)
    # Large integers are rounded to float64 first, and multiplied by a reciprocal.
    slack = Fraction(0 if not wide else 2.0**-51 if acc == tl.float64 else 2.0**-23)
    whole = {-1: (1, 0), plan.n - 1: (0, 0)}  # all of the first value, all of the last
    steps, step = steps.cpu(), Fraction(plan.num, plan.den)
    for y, (cell, true) in enumerate(definition):
        wanted = whole[cell] if true is None else (true, step)
        for found, exact in zip((parts[y], steps[y]), wanted, strict=True):
            rounded = Fraction(torch.tensor(float(exact), dtype=torch.float64).to(dtype).item())
            assert abs(Fraction(found.item()) - rounded) <= slack * rounded


@pytest.mark.parametrize("columns", LENGTHS)
def test_columns_of_a_tile(columns):
    x = torch.arange(16 * columns, dtype=torch.int32, device=DEVICE).view(16, columns)
    apart, again = torch.zeros_like(x.mT).contiguous(), torch.zeros_like(x)
    columns_kernel[(1,)](x, apart, again, BLOCK=16, COLUMNS=columns)
    assert torch.equal(apart, x.mT)
    assert torch.equal(again, x)


def test_only_large_integers_are_wide():
    def wide(num, off, den, size=(500, 375)):
        return patches.is_wide(SamplingGrid((63, 47), size, num, off, den, "zero"), 256)

    assert not wide((2, 2), (47, -25), (16, 64))
    assert wide((2, 2), (0, 0), (16, 2**24 + 1))
    assert not wide((2, 2), (0, 0), (16, 2**22))
    assert wide((2**21, 1), (0, 0), (16, 16), (2**10 - 255, 1))  # beyond the end of the axis
    assert not wide((2**20, 1), (0, 0), (16, 16), (2**10 - 257, 1))
    assert wide((2, 2), (0, -(2**31)), (16, 16))
