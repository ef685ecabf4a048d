"""The hard cases that the ops' property tests count as events do come out of their strategies."""

import pytest
from hypothesis import Phase, find, settings

from tests.op_tools import grids, maps

CASES = {
    "a map of one pixel": lambda g: g.in_size == (1, 1),
    "a map of one row": lambda g: g.in_size[0] == 1 < g.in_size[1],
    "a result of one pixel": lambda g: g.size == (1, 1) and max(g.in_size) > 1,
    "down-sampling": lambda g: all(n > s > 1 for n, s in zip(g.in_size, g.size, strict=True)),
    "an odd stride": lambda g: g.border == "zero" and g.num == (1, 1) and g.den == (3, 3),
    "positions before the map": lambda g: min(g.off) < 0,
    "positions behind the map": lambda g: (
        g.num[0] * (g.size[0] - 1) + g.off[0] > g.in_size[0] * g.den[0]
    ),
    "one place for a whole axis": lambda g: g.num[0] == 0 and g.size[0] > 1,
    "a repeated edge": lambda g: g.border == "clamp" and g.off[0] < 0,
}


@pytest.mark.parametrize("case", CASES)
def test_hard_grids_are_drawn(case):
    quick = settings(max_examples=5000, phases=[Phase.generate], database=None)
    find(grids(), CASES[case], settings=quick)


def test_hard_maps_are_drawn():
    import torch

    quick = settings(max_examples=1000, phases=[Phase.generate], database=None)
    for wanted in (
        lambda x: x.shape[1] == 1,
        lambda x: not x.is_contiguous() and x.stride(1) == 1 and x.shape[1] > 1,
        lambda x: x.storage_offset() > 0,
        lambda x: bool((x == x.flatten()[0]).sum() > 1) and x.numel() > 4,
        lambda x: x.abs().max() > 1e3,
    ):
        find(maps((3, 4), torch.float32), wanted, settings=quick)
