"""How kernels share out the outputs of an axis, and which grids they take."""

from math import floor

from hypothesis import event, given
from hypothesis import strategies as st

from tests.kernel_tools import examples
from tests.op_tools import some_grids

from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels.grid import axis_patches, fits_int32, longest  # isort: skip


@examples(60)
@given(some_grids, st.sampled_from((0, 1)), st.sampled_from((1, 2, 4, 8)))
def test_no_cell_has_more_patches_than_it_takes(grid, axis, length):
    """What a program does for an empty patch is lost."""
    plan = axis_patches(grid, axis, length)
    clamp = grid.border == "clamp"
    cells = [floor((plan.num * y + plan.off) / plan.den) for y in range(plan.size)]
    cells = [min(max(cell, -1), plan.n - 1) for cell in cells]
    assert (plan.n, plan.size) == (grid.in_size[axis] + 2 * (not clamp), grid.size[axis])
    assert (plan.first, plan.first + plan.cells - 1) == (cells[0], cells[-1])
    counts = [-(-cells.count(plan.first + k) // length) for k in range(plan.cells)]
    assert (plan.head, plan.tail) == (counts[0], counts[-1] if plan.cells > 1 else 0)
    assert plan.inner >= max(counts[1:-1], default=0)
    inside = [cells.count(c) for c in set(cells) if plan.num and c not in (-1, plan.n - 1)]
    assert max(inside, default=0) <= longest(grid, axis) <= plan.size
    event(f"patches of a cell: {min(plan.most, 4)}")
    inner = max(plan.cells - 2, 0) * plan.inner
    assert plan.patches == plan.head + inner + plan.tail
    assert plan.most == max(plan.head, plan.inner if inner else 0, plan.tail)


def test_which_grids_fit():
    def fits(num, off, den, size=(500, 375)):
        return fits_int32(SamplingGrid((63, 47), size, num, off, den, "zero"))

    assert fits((2, 2), (47, -25), (16, 64))
    assert fits((2, 2), (0, 0), (2**24, 16))
    assert not fits((2, 2), (0, 0), (16, 2**24 + 1))  # more than the 24 bits of a float32
    assert not fits((2**21, 1), (0, 0), (16, 16))  # beyond the end of the axis
    assert fits((2**19, 1), (0, 0), (16, 16))
    assert not fits((2, 2), (0, -(2**31)), (16, 16))
