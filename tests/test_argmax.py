"""upsample_argmax against the argmax of the upsampled scores."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid
from tests import op_tools as tools

FORMATS = (torch.contiguous_format, torch.channels_last)


@settings(max_examples=120)
@given(st.data(), tools.some_grids, st.sampled_from(tools.FLOATS), st.sampled_from(tools.LABELS))
def test_is_the_argmax_of_the_upsampled_scores(data, grid, dtype, label_dtype):
    x = data.draw(tools.maps(grid.in_size, dtype))
    special = data.draw(st.sampled_from((None, None, torch.nan, torch.inf, -torch.inf)))
    if special is not None:
        x = x.clone()
        x[0, -1, data.draw(st.integers(0, grid.in_size[0] - 1))] = special
    confidence = data.draw(st.booleans())
    with data.draw(tools.tiles):
        labels = ops.upsample_argmax(x, grid, dtype=label_dtype, confidence=confidence)
    if confidence:
        labels, probability = labels
        assert probability.dtype == torch.promote_types(dtype, torch.float32)
        softmax = reference.upsample(x.double(), grid).softmax(1).amax(1)
        assert torch.equal(probability.isnan(), softmax.isnan())
        scale = x.double().nan_to_num(0, 0, 0).abs().amax().item() + 1
        limit = 4 * torch.finfo(probability.dtype).eps * scale
        assert (probability - softmax).nan_to_num(0).abs().max() <= limit
    assert labels.dtype == label_dtype
    assert labels.shape == (x.shape[0], *grid.size)
    tools.assert_is_argmax(labels, x, grid)


@settings(max_examples=40)
@given(tools.grids(most=40), st.integers(2, 5), st.integers(0, 99))
def test_smooth_maps_are_settled_at_the_corners(grid, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in grid.in_size)
    slope = torch.randn(1, classes, 1, 1, generator=generator, dtype=torch.float64)
    x = slope * (rows[:, None] + columns)
    for form in FORMATS:
        labels = ops.upsample_argmax(x.contiguous(memory_format=form), grid)
        tools.assert_is_argmax(labels, x, grid)


@settings(max_examples=40)
@given(tools.grids(), st.integers(1, 4), st.sampled_from(FORMATS))
def test_the_first_class_wins_a_tie(grid, classes, memory_format):
    x = torch.ones(1, classes, *grid.in_size).contiguous(memory_format=memory_format)
    assert not ops.upsample_argmax(x, grid).any()
    if classes > 1:
        x[:, 0] = -1
        full = reference.upsample(x.double(), grid)
        assert torch.equal(ops.upsample_argmax(x, grid).long(), full.argmax(1))


def test_pixels_that_see_only_zeros():
    x = torch.zeros(1, 3, 2, 2)
    x[:, 2] = 1
    grid = SamplingGrid.centers((2, 2), 8, 20, (40, 44), "zero")
    for scores in (x, -x):
        tools.assert_is_argmax(ops.upsample_argmax(scores, grid), scores, grid, exact=True)


UNEQUAL = [
    (30, SamplingGrid.resize((1, 3), (300, 500))),  # a cell of half the picture
    (30, SamplingGrid.resize((4, 4), (400, 500))),
    (30, SamplingGrid.centers((20, 20), 4.1, 0, (300, 330), "clamp")),  # the last cells are wide
    (30, SamplingGrid.centers((20, 20), 4.1, 0, (300, 330), "zero")),
]


def smooth(classes, grid):
    """A map of regions, as a network draws it."""
    knots = torch.randn(1, classes, 4, 4, generator=torch.Generator().manual_seed(0))
    return 4 * F.interpolate(knots, grid.in_size, mode="bicubic")


@pytest.mark.parametrize(("classes", "grid"), [*tools.FULL_SIZE, *UNEQUAL])
@pytest.mark.parametrize("confidence", [False, True])
def test_no_allocation_reaches_a_quarter_of_the_logits(classes, grid, confidence):
    """And all of them together no more than a few times the logits."""
    logits = 4 * classes * grid.size[0] * grid.size[1]
    for x in (smooth(classes, grid), torch.randn(1, classes, *grid.in_size)):
        sizes = tools.allocations(lambda x=x: ops.upsample_argmax(x, grid, confidence=confidence))
        returned = 4 * grid.size[0] * grid.size[1] if confidence else 0
        assert max(sizes) < logits / 4 or max(sizes) == returned
        assert sum(sizes) < 8 * logits


@pytest.mark.parametrize(("classes", "grid"), UNEQUAL)
def test_large_and_unequal_cells(classes, grid):
    x = smooth(classes, grid)
    tools.assert_is_argmax(ops.upsample_argmax(x, grid), x, grid)


def test_another_default_device_an_empty_batch_and_no_gradient():
    grid = SamplingGrid.centers((6, 6), 4, 2, (24, 24), "zero")
    x = F.interpolate(torch.randn(1, 3, 2, 2), (6, 6), mode="bilinear")
    with torch.device("meta"):
        labels = ops.upsample_argmax(x, grid)
    tools.assert_is_argmax(labels, x, grid)
    assert not ops.upsample_argmax(x.requires_grad_(), grid).requires_grad
    assert ops.upsample_argmax(x[:0], grid).shape == (0, 24, 24)
