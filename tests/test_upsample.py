"""upsample, crop_add and upsample_crop_add against their definitions, in every dtype."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid
from tests.op_tools import FLOATS, assert_accurate, grids, maps, tiles, worst

GRID = SamplingGrid.resize((4, 5), (8, 10))
offsets = st.tuples(st.integers(0, 3), st.integers(0, 3))


def check(function, inputs, *args):
    """Results, and gradients of a fixed random functional: the op's, the definition's, the truth.

    function: the name of an op, of maps (`inputs`) and other arguments.
    """
    dtype = inputs[0].dtype
    generator = torch.Generator().manual_seed(0)

    def run(module, transform):
        leaves = [transform(x.detach()).requires_grad_() for x in inputs]
        result = getattr(module, function)(*leaves, *args)
        generator.manual_seed(0)
        rate = transform(torch.randn(result.shape, generator=generator).to(dtype))
        return result, *torch.autograd.grad(result, leaves, rate)

    ours = run(ops, lambda x: x)
    # Plain torch rounds its arguments once and computes as it likes: in the ops' own precision.
    plain = run(reference, lambda x: x.to(torch.promote_types(dtype, torch.float32), copy=True))
    truth = run(reference, lambda x: x.to(torch.float64, copy=True))
    # No weight is negative: the sums of the terms' magnitudes.
    terms = run(reference, lambda x: x.double().abs())
    for mine, theirs, true, size in zip(ours, plain, truth, terms, strict=True):
        assert_accurate(mine, true, worst(theirs.to(mine.dtype), true), size)


@settings(max_examples=80)
@given(st.data(), grids(), st.sampled_from(FLOATS))
def test_upsample(data, grid, dtype):
    with data.draw(tiles):
        check("upsample", [data.draw(maps(grid.in_size, dtype))], grid)


@settings(max_examples=80)
@given(st.data(), grids(), offsets, offsets, st.sampled_from(FLOATS))
def test_skip_fusion(data, grid, offset, beyond, dtype):
    size = tuple(sum(axis) for axis in zip(grid.size, offset, beyond, strict=True))
    x = data.draw(maps(grid.in_size, dtype))
    skip = data.draw(maps(size, dtype, *x.shape[:2]))
    with data.draw(tiles):
        check("upsample_crop_add", [x, skip], grid, offset)
    check("crop_add", [data.draw(maps(grid.size, dtype, *x.shape[:2])), skip], offset)


BAD = st.sampled_from((float("nan"), float("inf"), float("-inf"), 3e38))
HALVES = st.tuples(*[st.floats(0, 0.99)] * 2)


@settings(max_examples=50)
@given(st.data(), grids(most=40), BAD, HALVES)
def test_values_that_are_not_finite_reach_no_further_than_they_must(data, grid, bad, place):
    """Of the map and, for its gradient, of the result: a tap of weight 0 is not read."""
    x = data.draw(maps(grid.in_size, torch.float32)).clone()
    rate = data.draw(maps(grid.size, torch.float32, *x.shape[:2])).clone()
    for tensor in (x, rate):
        row, column = (int(p * n) for p, n in zip(place, tensor.shape[2:], strict=True))
        tensor[0, -1, row, column] = bad
    results = []
    for module, dtype in ((ops, torch.float32), (reference, torch.float64)):
        leaf = x.to(dtype).requires_grad_()
        result = module.upsample(leaf, grid)
        results.append((result, torch.autograd.grad(result, leaf, rate.to(dtype))[0]))
    for mine, true, terms in zip(*results, (x, rate), strict=True):
        total = terms.detach().double().nan_to_num(0, 0, 0).abs().sum()
        assert worst(mine, true) <= 1e-6 * (total + 1)


def test_channels_last_gradients_empty_batches_and_another_default_device():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 3, 8, 10, dtype=torch.float64)
    planes, mixed = (
        torch.autograd.grad(ops.upsample(x, GRID), x, rate)[0]
        for rate in (g, g.contiguous(memory_format=torch.channels_last))
    )
    assert worst(mixed, planes) < 1e-14
    assert ops.upsample(x[:0], GRID).shape == (0, 3, 8, 10)
    grid = SamplingGrid.resize((4, 5), (11, 13))  # not in any cache yet
    with torch.device("meta"):
        result = ops.upsample(x, grid)
    assert worst(result, reference.upsample(x, grid)) < 1e-5


@pytest.mark.parametrize(
    "size",
    [
        torch.Size((9, 11)),
        [9, 11],
        (np.int64(9), np.uint8(11)),
        (torch.tensor(9), torch.tensor(11)),
        np.array([9, 11]),
        torch.tensor([9, 11]),
    ],
    ids=repr,
)
def test_sizes_are_taken_as_interpolate_takes_them(size):
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    expected = F.interpolate(x, (9, 11), mode="bilinear")
    assert (ops.upsample(x, size=size) - expected).abs().max() < 1e-14
    grid = SamplingGrid.resize(np.array([4, 5]), size)
    assert grid == SamplingGrid.resize((4, 5), (9, 11))
    assert ops.upsample(x, size=np.int32(7)).shape == (1, 2, 7, 7)


@pytest.mark.parametrize("align_corners", [None, False, True])
@pytest.mark.parametrize(
    "how", [{"size": (9, 11)}, {"scale_factor": 1.5}, {"scale_factor": (2.0, 3.0)}], ids=str
)
def test_without_a_grid_the_ops_resize(how, align_corners):
    x, option = torch.randn(2, 3, 4, 5, dtype=torch.float64), {"align_corners": align_corners}
    full = F.interpolate(x, mode="bilinear", **how, **option)
    assert (ops.upsample(x, **how, **option) - full).abs().max() < 1e-14
    assert torch.equal(ops.upsample_argmax(x, **how, **option).long(), full.argmax(1))
    target = (torch.arange(full[:, 0].numel()) % 3).view(full[:, 0].shape)
    option |= {key: value for key, value in how.items() if key == "scale_factor"}
    loss = ops.upsample_cross_entropy(x, target, **option)
    assert (loss - F.cross_entropy(full, target)).abs() < 1e-14
    counts = ops.upsample_confusion(x, target, **option)
    rows = torch.bincount(target.flatten() * 3 + full.argmax(1).flatten(), minlength=9)
    assert torch.equal(counts, rows.view(3, 3))
    skip = torch.randn(2, 3, full.shape[2] + 1, full.shape[3] + 2, dtype=torch.float64)
    fused = ops.upsample_crop_add(x, skip, offset=(1, 2), **option)
    assert (fused - full - skip[..., 1:, 2:]).abs().max() < 1e-14
