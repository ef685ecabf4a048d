"""upsample, crop_add and upsample_crop_add against their definitions, in every dtype."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid
from fcnfast.tiled.upsample import COLUMNS, PIECE_ELEMENTS, ROWS
from tests.op_tools import FLOATS, assert_as_good_as_torch, grids, maps, worst


def with_gradient(function, inputs, seed=0):
    """The result of a function of tensors and the gradients of a fixed random functional of it."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    result = function(*leaves)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(result.shape, generator=generator).to(result.dtype)
    return result, *torch.autograd.grad(result, leaves, cotangent)


def check(op, definition, inputs):
    """Results and gradients: the op, the definition in the same dtype, and the truth."""
    ours = with_gradient(op, inputs)
    # Plain torch rounds its arguments once and computes as it likes: in the ops' own precision.
    wide = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    plain = with_gradient(definition, [x.to(wide) for x in inputs])
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(ours[0].shape, generator=generator).to(ours[0].dtype).double()

    def in_double(transform):
        leaves = [transform(x.detach().double()).requires_grad_() for x in inputs]
        result = definition(*leaves)
        return result, *torch.autograd.grad(result, leaves, transform(cotangent))

    truth = in_double(lambda x: x)
    terms = in_double(torch.abs)  # no weight is negative: the sums of the terms' magnitudes
    for mine, theirs, true, size in zip(ours, plain, truth, terms, strict=True):
        assert_as_good_as_torch(mine, theirs.to(mine.dtype), true, size)


@given(st.data(), grids(), st.sampled_from(FLOATS))
def test_upsample(data, grid, dtype):
    x = data.draw(maps(grid.in_size, dtype))
    check(lambda x: ops.upsample(x, grid), lambda x: reference.upsample(x, grid), [x])


@given(st.data(), st.sampled_from(FLOATS))
def test_crop_add(data, dtype):
    h, w = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    offset = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
    size = tuple(n + o + data.draw(st.integers(0, 3)) for n, o in zip((h, w), offset, strict=True))
    x = data.draw(maps((h, w), dtype))
    skip = data.draw(maps(size, dtype, *x.shape[:2]))
    check(
        lambda x, skip: ops.crop_add(x, skip, offset),
        lambda x, skip: reference.crop_add(x, skip, offset),
        [x, skip],
    )


@given(st.data(), grids(), st.sampled_from(FLOATS))
def test_upsample_crop_add(data, grid, dtype):
    offset = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    size = tuple(
        n + o + data.draw(st.integers(0, 2)) for n, o in zip(grid.size, offset, strict=True)
    )
    x = data.draw(maps(grid.in_size, dtype))
    skip = data.draw(maps(size, dtype, *x.shape[:2]))
    check(
        lambda x, skip: ops.upsample_crop_add(x, skip, grid, offset),
        lambda x, skip: reference.upsample_crop_add(x, skip, grid, offset),
        [x, skip],
    )


@given(st.data(), grids())
def test_a_tap_of_weight_zero_is_not_read(data, grid):
    x = data.draw(maps(grid.in_size, torch.float32)).clone()
    bad = data.draw(st.sampled_from((float("nan"), float("inf"), float("-inf"))))
    x[..., data.draw(st.integers(0, grid.in_size[0] - 1)), :] = bad
    assert worst(ops.upsample(x, grid), reference.upsample(x.double(), grid)) <= 1e-6 * (
        x[x.isfinite()].abs().sum().item() + 1
    )


def test_several_pieces_and_bands_every_way():
    x = torch.randn(3, 12, 19, 51, dtype=torch.float64)
    grid = SamplingGrid.resize((19, 51), (70, 520))
    assert PIECE_ELEMENTS // (70 * 520) < 3 * 12  # not all planes in a piece
    assert grid.size[0] > ROWS and grid.in_size[1] > COLUMNS  # not one band either way
    check(lambda x: ops.upsample(x, grid), lambda x: reference.upsample(x, grid), [x])
    x = x[:1, :2].contiguous(memory_format=torch.channels_last)
    grid = SamplingGrid.resize((19, 51), (600, 520))
    assert PIECE_ELEMENTS < 600 * 520  # not a whole plane
    check(lambda x: ops.upsample(x, grid), lambda x: reference.upsample(x, grid), [x])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_that_are_not_finite_reach_no_further_than_they_must(bad, layout):
    grid = SamplingGrid.deconv((9, 20), 8, crop=4, size=(70, 150))
    x = torch.randn(2, 3, 9, 20)
    x[0, 1, 4, 10] = bad
    x = x.contiguous(memory_format=layout).requires_grad_()
    rounding = 3e32 if bad == 3e38 else 1e-4
    assert worst(ops.upsample(x, grid), reference.upsample(x.double(), grid)) < rounding
    cotangent = torch.randn(2, 3, *grid.size)
    cotangent[1, 2, 30, 100] = bad
    double = x.detach().double().requires_grad_()
    mine, true = (
        torch.autograd.grad(function(leaf, grid), leaf, cotangent.to(leaf.dtype))[0]
        for function, leaf in ((ops.upsample, x), (reference.upsample, double))
    )
    assert torch.equal(mine.isnan(), true.isnan()) and mine.isnan().sum() <= 4
    assert worst(mine, true) < rounding


def test_channels_last_gradients_and_empty_batches():
    grid = SamplingGrid.resize((4, 5), (8, 10))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 3, 8, 10, dtype=torch.float64)
    (planes,) = torch.autograd.grad(ops.upsample(x, grid), x, g)
    last = g.contiguous(memory_format=torch.channels_last)
    (mixed,) = torch.autograd.grad(ops.upsample(x, grid), x, last)
    assert worst(mixed, planes) < 1e-14
    assert ops.upsample(x[:0], grid).shape == (0, 3, 8, 10)


def test_gradients_run_where_the_op_ran(monkeypatch):
    """Also in a backward pass outside the choice, and in autograd's own threads."""
    x = torch.randn(1, 2, 4, 5, requires_grad=True)
    skip = torch.randn(1, 2, 9, 11, requires_grad=True)
    with ops.backend("torch"):
        fused = ops.upsample_crop_add(x, skip, GRID, 1)
        result = ops.crop_add(ops.upsample(x, GRID), skip, 1) + fused
    monkeypatch.setenv("FCNFAST_BACKEND", "triton")  # would be refused on a CPU
    first = torch.autograd.grad(result.square().sum(), (x, skip), create_graph=True)
    assert all(g.any() for g in torch.autograd.grad(sum(g.sum() for g in first), (x, skip)))


def test_another_default_device():
    x = torch.randn(1, 2, 4, 5)
    grid = SamplingGrid.resize((4, 5), (11, 13))  # not in any cache yet
    with torch.device("meta"):
        result = ops.upsample(x, grid)
    assert worst(result, reference.upsample(x.double(), grid)) < 1e-5


GRID = SamplingGrid.resize((4, 5), (8, 10))
X = torch.zeros(2, 3, 4, 5)


def test_the_backend_can_be_forced_and_a_wrong_name_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="backend"), ops.backend("cuda"):
        pass
    with ops.backend("torch"):
        assert ops.upsample(X, GRID).shape == (2, 3, 8, 10)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with ops.backend("triton"), pytest.raises(ValueError, match="TRITON_INTERPRET"):
        ops.upsample(X, GRID)
    monkeypatch.setenv("FCNFAST_BACKEND", "numpy")
    with pytest.raises(ValueError, match="FCNFAST_BACKEND"):
        ops.upsample(X, GRID)


SIZES = {
    "torch.Size": torch.Size((9, 11)),
    "a list": [9, 11],
    "numpy integers": (np.int64(9), np.uint8(11)),
    "0-d tensors": (torch.tensor(9), torch.tensor(11)),
    "an array": np.array([9, 11]),
    "a tensor": torch.tensor([9, 11]),
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_are_taken_as_interpolate_takes_them(kind):
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    expected = F.interpolate(x, (9, 11), mode="bilinear")
    assert (ops.upsample(x, size=SIZES[kind]) - expected).abs().max() < 1e-14
    assert SamplingGrid.resize(np.array([4, 5]), SIZES[kind]) == SamplingGrid.resize(
        (4, 5), (9, 11)
    )
    assert ops.upsample(x, size=np.int32(7)).shape == (1, 2, 7, 7)


@pytest.mark.parametrize("align_corners", [None, False, True])
def test_without_a_grid_the_ops_resize(align_corners):
    x, option = torch.randn(2, 3, 4, 5, dtype=torch.float64), {"align_corners": align_corners}
    for how in ({"size": (9, 11)}, {"scale_factor": 1.5}, {"scale_factor": (2.0, 3.0)}):
        full = F.interpolate(x, mode="bilinear", **how, **option)
        assert (ops.upsample(x, **how, **option) - full).abs().max() < 1e-14
        assert torch.equal(ops.upsample_argmax(x, **how, **option).long(), full.argmax(1))
        target = (torch.arange(full[:, 0].numel()) % 3).view(full[:, 0].shape)
        factor = {key: value for key, value in how.items() if key == "scale_factor"}
        loss = ops.upsample_cross_entropy(x, target, **factor, **option)
        assert (loss - F.cross_entropy(full, target)).abs() < 1e-14
        counts = ops.upsample_confusion(x, target, **factor, **option)
        rows = torch.bincount(target.flatten() * 3 + full.argmax(1).flatten(), minlength=9)
        assert torch.equal(counts, rows.view(3, 3))
        skip = torch.randn(2, 3, full.shape[2] + 1, full.shape[3] + 2, dtype=torch.float64)
        fused = ops.upsample_crop_add(x, skip, offset=(1, 2), **factor, **option)
        assert (fused - full - skip[..., 1:, 2:]).abs().max() < 1e-14


def test_a_grid_or_a_size_but_not_both():
    x, target = torch.zeros(1, 3, 4, 5), torch.zeros(1, 8, 10, dtype=torch.uint8)
    grid = SamplingGrid.resize((4, 5), (8, 10))
    for option in ({"size": 8}, {"scale_factor": 2}, {"align_corners": False}):
        with pytest.raises(ValueError, match=f"either a grid or {next(iter(option))}, not both"):
            ops.upsample(x, grid, **option)
        if "size" not in option:
            with pytest.raises(ValueError, match="either a grid or"):
                ops.upsample_cross_entropy(x, target, grid, **option)
    for wrong in ({}, {"size": 8, "scale_factor": 2}):
        with pytest.raises(ValueError, match="exactly one of size and scale_factor"):
            ops.upsample(x, **wrong)
    with pytest.raises(ValueError, match=r"target must be N x H x W = \(1, 6, 7\)"):
        ops.upsample_cross_entropy(x, target, scale_factor=1.5)
    for wrong in (8.0, True, "8", (8,), torch.tensor(8.0), np.array([8.0, 9.0])):
        with pytest.raises(TypeError, match="size must be an integer or a pair"):
            ops.upsample(x, size=wrong)
