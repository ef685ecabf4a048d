"""upsample_argmax against the argmax of the upsampled scores."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid
from tests.op_tools import FLOATS, FULL_SIZE, LABELS, allocations, assert_is_argmax, grids, maps


@settings(max_examples=80)
@given(st.data(), grids(), st.sampled_from(FLOATS), st.sampled_from(LABELS), st.booleans())
def test_is_the_argmax_of_the_upsampled_scores(data, grid, dtype, label_dtype, confidence):
    x = data.draw(maps(grid.in_size, dtype))
    labels = ops.upsample_argmax(x, grid, dtype=label_dtype, confidence=confidence)
    if confidence:
        labels, probability = labels
        assert probability.dtype == torch.promote_types(dtype, torch.float32)
        softmax = reference.upsample(x.double(), grid).softmax(1).amax(1)
        scale = x.double().abs().amax().item() + 1
        limit = 4 * torch.finfo(probability.dtype).eps * scale
        assert (probability - softmax).abs().max() <= limit
    assert labels.dtype == label_dtype
    assert labels.shape == (x.shape[0], *grid.size)
    assert_is_argmax(labels, x, grid)


@settings(max_examples=40)
@given(grids(most=40), st.integers(2, 5), st.integers(0, 99))
def test_smooth_maps_are_settled_at_the_corners(grid, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in grid.in_size)
    slope = torch.randn(1, classes, 1, 1, generator=generator, dtype=torch.float64)
    x = slope * (rows[:, None] + columns)
    for form in (torch.contiguous_format, torch.channels_last):
        labels = ops.upsample_argmax(x.contiguous(memory_format=form), grid)
        assert_is_argmax(labels, x, grid)


@settings(max_examples=40)
@given(grids(), st.integers(1, 4), st.sampled_from((torch.contiguous_format, torch.channels_last)))
def test_the_first_class_wins_a_tie(grid, classes, memory_format):
    x = torch.ones(1, classes, *grid.in_size).contiguous(memory_format=memory_format)
    assert not ops.upsample_argmax(x, grid).any()
    if classes > 1:
        x[:, 0] = -1
        full = reference.upsample(x.double(), grid)
        assert torch.equal(ops.upsample_argmax(x, grid).long(), full.argmax(1))


def test_pixels_that_see_only_zeros_and_an_axis_that_looks_at_one_place():
    x = torch.zeros(1, 3, 2, 2)
    x[:, 2] = 1
    grid = SamplingGrid.centers((2, 2), 8, 20, (40, 44), "zero")
    for scores in (x, -x):
        assert_is_argmax(ops.upsample_argmax(scores, grid), scores, grid, exact=True)
    x = torch.randn(1, 3, 4, 4)
    for off in (-9, -4, -1, 0, 3, 13, 16, 20):
        for border in ("zero", "clamp"):
            grid = SamplingGrid((4, 4), (5, 6), (0, 3), (off, off), (4, 4), border)
            assert_is_argmax(ops.upsample_argmax(x, grid), x, grid, exact=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("border", ["zero", "clamp"])
def test_values_that_are_not_finite(bad, border):
    grid = SamplingGrid.centers((5, 5), 4, 2, (20, 20), border)
    x = torch.randn(1, 4, 5, 5)
    x[0, 2, 1, 3] = bad
    labels = ops.upsample_argmax(x, grid)
    assert torch.equal(labels.long(), reference.upsample_argmax(x.double(), grid)[0])
    assert bool((labels == 2).any())


def test_many_classes_and_large_tiles():
    grid = SamplingGrid.resize((33, 45), (100, 500))
    x = F.interpolate(torch.randn(1, 300, 6, 6), (33, 45), mode="bicubic")
    labels = ops.upsample_argmax(x, grid, dtype=torch.int16)
    assert_is_argmax(labels, x, grid)
    assert torch.equal(labels, ops.upsample_argmax(x, grid, dtype=torch.int64).to(torch.int16))


def smooth(classes, grid):
    """A map of regions, as a network draws it."""
    knots = torch.randn(1, classes, 4, 4, generator=torch.Generator().manual_seed(0))
    return 4 * F.interpolate(knots, grid.in_size, mode="bicubic")


@pytest.mark.parametrize(("classes", "grid"), FULL_SIZE)
@pytest.mark.parametrize("content", ["smooth", "noisy", "not finite", "of ties"])
def test_several_tiles(classes, grid, content):
    x = smooth(classes, grid)
    if content == "noisy":
        x = torch.randn_like(x)
    elif content == "not finite":
        x[:, 1, ::3], x[:, 0, 2::5] = float("-inf"), float("nan")
    elif content == "of ties":
        x = x.sign()
    labels, confidence = ops.upsample_argmax(x, grid, confidence=True)
    full = reference.upsample(x.double(), grid)
    softmax = full.softmax(1).amax(1)
    assert torch.equal(confidence.isnan(), softmax.isnan())
    assert ((confidence - softmax).abs().nan_to_num(0) < 1e-5).all()
    for mine in (labels, ops.upsample_argmax(x, grid)):
        if content == "not finite":
            assert torch.equal(full.argmax(1)[full.isnan().any(1)], mine[full.isnan().any(1)])
            own = full.gather(1, mine.long()[:, None])[:, 0]
            assert (full.amax(1) - own).nan_to_num(0, posinf=0).max() < 1e-5
        else:
            assert_is_argmax(mine, x, grid)


@pytest.mark.parametrize(("classes", "grid"), FULL_SIZE)
@pytest.mark.parametrize("confidence", [False, True])
def test_no_allocation_reaches_a_quarter_of_the_logits(classes, grid, confidence):
    logits = 4 * classes * grid.size[0] * grid.size[1]
    for x in (smooth(classes, grid), torch.randn(1, classes, *grid.in_size)):
        sizes = allocations(lambda x=x: ops.upsample_argmax(x, grid, confidence=confidence))
        returned = 4 * grid.size[0] * grid.size[1] if confidence else 0
        assert max(sizes) < logits / 4 or max(sizes) == returned


@pytest.mark.parametrize(
    "grid",
    [
        SamplingGrid.resize((1, 3), (300, 500)),  # a cell of half the picture
        SamplingGrid.resize((4, 4), (400, 500)),
        SamplingGrid.centers((20, 20), 4.1, 0, (300, 330), "clamp"),  # the last cells are wide
        SamplingGrid.centers((20, 20), 4.1, 0, (300, 330), "zero"),
    ],
)
def test_large_and_unequal_cells_take_little_memory_and_work(grid):
    x = torch.zeros(1, 30, *grid.in_size)
    x[:, 3] = 1
    x[:, 4, ::3, ::3] = 2
    expected = reference.upsample_argmax(x.double(), grid)[0]
    labels = ops.upsample_argmax(x, grid)
    assert (labels != expected).float().mean() < 1e-3  # ties to the rounding
    sizes = allocations(lambda: ops.upsample_argmax(x, grid))
    logits = 4 * 30 * grid.size[0] * grid.size[1]
    assert max(sizes) < logits / 4
    assert sum(sizes) < 8 * logits


def test_another_default_device_an_empty_batch_and_no_gradient():
    grid = SamplingGrid.centers((6, 6), 4, 2, (24, 24), "zero")
    x = F.interpolate(torch.randn(1, 3, 2, 2), (6, 6), mode="bilinear")
    with torch.device("meta"):
        labels = ops.upsample_argmax(x, grid)
    assert_is_argmax(labels, x, grid)
    assert not ops.upsample_argmax(x.requires_grad_(), grid).requires_grad
    assert ops.upsample_argmax(x[:0], grid).shape == (0, 24, 24)
