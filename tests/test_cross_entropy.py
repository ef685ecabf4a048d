"""upsample_cross_entropy against F.cross_entropy of the upsampled scores."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid
from tests.op_tools import (
    FLOATS,
    FULL_SIZE,
    allocations,
    assert_as_good_as_torch,
    grids,
    holding,
    labels,
    maps,
)

REDUCTIONS = ("mean", "sum", "none", "batch")


def gradient_of(loss, x):
    """The gradient of a fixed positive functional of the loss."""
    return torch.autograd.grad(
        (loss * torch.linspace(0.5, 1, loss.numel()).view_as(loss)).sum(), x
    )[0]


@given(st.data(), grids(most=16), st.sampled_from(FLOATS), st.sampled_from(REDUCTIONS))
def test_is_the_cross_entropy_of_the_upsampled_scores(data, grid, dtype, reduction):
    x = data.draw(maps(grid.in_size, dtype))
    classes = x.shape[1]
    ignore_index = data.draw(st.sampled_from((255, -100, 0)))
    target = data.draw(labels((x.shape[0], *grid.size), classes, ignore_index))
    target = target.to(data.draw(st.sampled_from(holding(target, ignore_index))))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = data.draw(st.sampled_from((None, torch.linspace(0.5, 2.0, classes, dtype=wide))))
    smoothing = data.draw(st.sampled_from((0.0, 0.1, 1.0)))
    options = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": smoothing,
    }

    def run(function, dtype):
        leaf = x.to(dtype, copy=True).requires_grad_()
        w = None if weight is None else weight.to(torch.float64 if dtype == torch.float64 else wide)
        loss = function(leaf, target, grid, weight=w, **options)
        return loss, gradient_of(loss, leaf)

    ours = run(ops.upsample_cross_entropy, dtype)
    plain = run(reference.upsample_cross_entropy, wide)
    truth = run(reference.upsample_cross_entropy, torch.float64)
    assert ours[0].dtype == wide
    assert ours[1].dtype == dtype
    assert torch.equal(ours[0].isnan(), truth[0].isnan())
    # What is added up: a pixel's scores cancel in its loss, and a cell's pixels in its gradient.
    size = x.double().abs().amax() * max(1, target.numel() if reduction in ("sum", "batch") else 1)
    assert_as_good_as_torch(ours[0], plain[0], truth[0], 2 * size)
    pixels = target.numel() / grid.in_size[0] / grid.in_size[1] + 4
    terms = torch.tensor(4.0 * pixels if reduction != "mean" else 4.0)
    assert_as_good_as_torch(ours[1], plain[1].to(dtype), truth[1], terms)
    if bool((target == ignore_index).all()):
        assert not ours[1].any()  # exactly zero, even where the loss is NaN


@given(st.data(), grids(most=6), st.sampled_from(REDUCTIONS))
def test_gradcheck(data, grid, reduction):
    x = torch.randn(2, 3, *grid.in_size, dtype=torch.float64, requires_grad=True)
    target = data.draw(labels((2, *grid.size), 3, 255))
    if (target == 255).all():
        target[:] = 1
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def loss(x):
        return ops.upsample_cross_entropy(
            x, target, grid, weight=weight, reduction=reduction, label_smoothing=0.2
        )

    assert torch.autograd.gradcheck(loss, x)


@pytest.mark.parametrize(("classes", "grid"), FULL_SIZE)
@pytest.mark.parametrize("content", ["plain", "masked", "one-hot", "weighted and smoothed"])
def test_several_tiles(classes, grid, content):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(2, classes, *grid.in_size, generator=generator)
    target = torch.randint(0, classes, (2, *grid.size), generator=generator)
    target[:, :20] = 0
    options = {}
    if content == "masked":
        x[:, 1] = float("-inf")
        target[target == 1] = 255
    elif content == "one-hot":
        x = F.one_hot(x.argmax(1), classes).permute(0, 3, 1, 2) * 1e4
    elif content == "weighted and smoothed":
        options = {"weight": torch.linspace(0.5, 2, classes), "label_smoothing": 0.1}
    for reduction in ("mean", "none"):

        def run(function, dtype, reduction=reduction):
            leaf = x.to(dtype, copy=True).requires_grad_()
            given = {k: v.to(dtype) if k == "weight" else v for k, v in options.items()}
            loss = function(leaf, target.byte(), grid, reduction=reduction, **given)
            return loss, gradient_of(loss, leaf)

        ours = run(ops.upsample_cross_entropy, torch.float32)
        plain = run(reference.upsample_cross_entropy, torch.float32)
        truth = run(reference.upsample_cross_entropy, torch.float64)
        largest = x[x.isfinite()].abs().amax().double()
        assert_as_good_as_torch(ours[0], plain[0], truth[0], 2 * largest)
        # A pixel's part of the gradient is at most its coefficient; an edge may see many pixels.
        ones = torch.ones(1, 1, *grid.in_size, dtype=torch.float64, requires_grad=True)
        seen = torch.autograd.grad(reference.upsample(ones, grid).sum(), ones)[0]
        terms = 4 * seen.amax() / (target.numel() if reduction == "mean" else 1)
        plain_gradient = plain[1].nan_to_num(0)  # torch's own is NaN where a class is masked
        assert_as_good_as_torch(ours[1], plain_gradient, truth[1].nan_to_num(0), terms)


@pytest.mark.parametrize(("classes", "grid"), FULL_SIZE)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_allocation_reaches_a_quarter_of_the_logits(classes, grid, reduction):
    x = torch.randn(1, classes, *grid.in_size, requires_grad=True)
    target = torch.randint(0, classes, (1, *grid.size))
    weight = torch.rand(classes)

    def run():
        options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
        loss = ops.upsample_cross_entropy(x, target, grid, **options)
        torch.autograd.grad(loss.mean(), x)

    run()  # with what is kept from one call to the next
    logits = 4 * classes * grid.size[0] * grid.size[1]
    most = logits / 4 if classes > 4 or reduction == "mean" else 4 * target.numel() + 1
    assert max(allocations(run)) < most  # one number a pixel is what "none" returns


@pytest.mark.parametrize("masked", [float("-inf"), -1e4, 1e4, 3e38])
def test_wide_and_masked_scores_stay_exact(masked):
    grid = SamplingGrid.deconv((6, 5), 8, crop=3, size=(40, 37))
    x = torch.randn(1, 4, 6, 5)
    x[:, 1] = masked
    target = torch.randint(0, 4, (1, 40, 37))
    if masked < -1e3:
        target[target == 1] = 2
    leaf, double = x.clone().requires_grad_(), x.double().requires_grad_()
    loss = ops.upsample_cross_entropy(leaf, target, grid)
    truth = reference.upsample_cross_entropy(double, target, grid)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-6)
    ours, true = (torch.autograd.grad(a, b)[0] for a, b in ((loss, leaf), (truth, double)))
    assert torch.isfinite(ours).all()
    assert (ours - true).abs().max() < 1e-7


def test_nan_scores_reach_the_pixels_that_read_them_and_no_others():
    grid = SamplingGrid.resize((5, 5), (40, 40))
    x = torch.randn(1, 3, 5, 5)
    x[0, 1, 0, 0] = float("nan")
    target = torch.zeros(1, 40, 40, dtype=torch.uint8)
    loss = ops.upsample_cross_entropy(x, target, grid, reduction="none")
    truth = reference.upsample_cross_entropy(x.double(), target, grid, reduction="none")
    assert torch.equal(loss.isnan(), truth.isnan())
    assert 0 < int(loss.isnan().sum()) < 200


def test_labels_are_checked_at_the_limits_of_their_type():
    grid = SamplingGrid.resize((1, 1), (2, 2))
    for classes, dtype in ((256, torch.uint8), (32768, torch.int16)):
        x = torch.zeros(1, classes, 1, 1)
        target = torch.tensor([[[0, classes - 1], [1, 2]]]).to(dtype)
        loss = ops.upsample_cross_entropy(x, target, grid, ignore_index=-100)
        assert loss.item() == pytest.approx(math.log(classes), rel=1e-6)
    target[0, 0, 0] = -1
    with pytest.raises(ValueError, match=r"holds -1 \(1 pixels"):
        ops.upsample_cross_entropy(x, target, grid, ignore_index=-100)
    with pytest.raises(ValueError, match="int16 cannot name 32769 classes"):
        ops.upsample_cross_entropy(torch.zeros(1, 32769, 1, 1), target, grid)
