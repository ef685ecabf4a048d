"""upsample_cross_entropy against F.cross_entropy of the upsampled scores."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid
from tests import op_tools as tools

DOUBLE = torch.float64
REDUCTIONS = ("mean", "sum", "none", "batch")


def with_gradient(function, x, dtype, target, grid, weight=None, **options):
    """The loss in a dtype, and the gradient of a fixed positive functional of it."""
    leaf = x.detach().to(dtype).requires_grad_()
    weight = weight if weight is None else weight.to(torch.promote_types(dtype, torch.float32))
    loss = function(leaf, target, grid, weight=weight, **options)
    rate = torch.linspace(0.5, 1, loss.numel()).view_as(loss).to(loss.dtype)
    return loss.detach(), torch.autograd.grad(loss, leaf, rate)[0]


@settings(max_examples=120)
@given(st.data(), tools.grids(most=16), st.sampled_from(tools.FLOATS), st.sampled_from(REDUCTIONS))
def test_is_the_cross_entropy_of_the_upsampled_scores(data, grid, dtype, reduction):
    x = data.draw(tools.maps(grid.in_size, dtype))
    classes = x.shape[1]
    ignore_index = data.draw(st.sampled_from((255, -100, 0, classes - 1)))
    target = data.draw(tools.labels((x.shape[0], *grid.size), classes, ignore_index))
    target = target.to(data.draw(st.sampled_from(tools.holding(target, ignore_index))))
    some = torch.arange(classes) % 3 > 0
    weight = data.draw(st.sampled_from((None, torch.linspace(0.5, 2.0, classes), some.float())))
    smoothing = data.draw(st.sampled_from((0.0, 0.1, 0.5, 1.0)))
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": smoothing}
    call = (target, grid, weight)
    wide = torch.promote_types(dtype, torch.float32)
    with data.draw(tools.tiles):
        ours = with_gradient(ops.upsample_cross_entropy, x, dtype, *call, **options)
    plain = with_gradient(reference.upsample_cross_entropy, x, wide, *call, **options)
    truth = with_gradient(reference.upsample_cross_entropy, x, DOUBLE, *call, **options)
    assert ours[0].dtype == wide
    assert ours[1].dtype == dtype
    assert torch.equal(ours[0].isnan(), truth[0].isnan())
    # What is added up: a pixel's scores cancel in its loss, and a cell's pixels in its gradient.
    size = x.double().abs().amax() * max(1, target.numel() if reduction in ("sum", "batch") else 1)
    tools.assert_accurate(ours[0], truth[0], tools.worst(plain[0], truth[0]), 2 * size)
    if reduction == "mean" and truth[0].isnan():
        # All pixels are ignored or of weight 0: zero, where torch's gradient may be NaN, too.
        assert not ours[1].any()
        return
    pixels = target.numel() / grid.in_size[0] / grid.in_size[1] + 4
    terms = 4.0 * pixels if reduction != "mean" else 4.0
    tools.assert_accurate(ours[1], truth[1], tools.worst(plain[1].to(dtype), truth[1]), terms)
    if bool((target == ignore_index).all()):
        assert not ours[1].any()


@pytest.mark.parametrize(("classes", "grid"), tools.FULL_SIZE)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_allocation_reaches_a_quarter_of_the_logits(classes, grid, reduction):
    x = torch.randn(1, classes, *grid.in_size, requires_grad=True)
    target = torch.randint(0, classes, (1, *grid.size))
    options = {"weight": torch.rand(classes), "reduction": reduction, "label_smoothing": 0.1}

    def run():
        loss = ops.upsample_cross_entropy(x, target, grid, **options)
        torch.autograd.grad(loss.mean(), x)

    run()  # with what is kept from one call to the next
    logits = 4 * classes * grid.size[0] * grid.size[1]
    most = logits / 4 if classes > 4 or reduction == "mean" else 4 * target.numel() + 1
    assert max(tools.allocations(run)) < most  # one number a pixel is what "none" returns


@pytest.mark.parametrize("masked", [float("-inf"), -1e4, 1e4, 3e38, "rows", "columns"])
def test_wide_and_masked_scores_stay_exact(masked):
    grid = SamplingGrid.resize((6, 5), (41, 37), align_corners=True)
    x = torch.randn(1, 4, 6, 5)
    target = torch.randint(0, 4, (1, 41, 37))
    if masked == "rows":  # between two of them, all are far below the highest of either
        x[:, 0, ::2], x[:, 1, 1::2] = 200, 200
    elif masked == "columns":
        x[:, 0, :, ::2] = 200
    else:
        x[:, 1] = masked
        target[target == 1] = 2 if masked < 0 else 1
    for reduction, error in (("mean", 1e-7), ("none", 1e-7 * target.numel())):
        call = (target, grid, None)
        ours, true = (
            with_gradient(module.upsample_cross_entropy, x, dtype, *call, reduction=reduction)
            for module, dtype in ((ops, torch.float32), (reference, DOUBLE))
        )
        torch.testing.assert_close(ours[0].double(), true[0], rtol=1e-6, atol=1e-5)
        assert (ours[1] - true[1]).abs().max() < error


def test_nan_scores_reach_the_pixels_that_read_them_and_no_others():
    grid = SamplingGrid.resize((5, 5), (40, 40))
    x = torch.randn(1, 3, 5, 5)
    x[0, 1, 0, 0] = float("nan")
    target = torch.zeros(1, 40, 40, dtype=torch.uint8)
    loss = ops.upsample_cross_entropy(x, target, grid, reduction="none")
    truth = reference.upsample_cross_entropy(x.double(), target, grid, reduction="none")
    assert torch.equal(loss.isnan(), truth.isnan())
    assert 0 < int(loss.isnan().sum()) < 200


def test_labels_at_the_limits_of_their_type():
    grid = SamplingGrid.resize((1, 1), (2, 2))
    for classes, dtype in ((256, torch.uint8), (32768, torch.int16)):
        target = torch.tensor([[[0, classes - 1], [1, 2]]]).to(dtype)
        x = torch.zeros(1, classes, 1, 1)
        loss = ops.upsample_cross_entropy(x, target, grid, ignore_index=-100)
        assert loss.item() == pytest.approx(math.log(classes), rel=1e-6)
    target[0, 0, 0] = -1
    with pytest.raises(ValueError, match=r"holds -1 \(1 pixels"):
        ops.upsample_cross_entropy(x, target, grid, ignore_index=-100)


# ---- where F.cross_entropy is odd: the same values, gradients and NaNs, in float64

GRID = SamplingGrid.resize((3, 4), (6, 8))
TARGET = (torch.arange(96) * 7 % 3).view(2, 6, 8)


def scores(classes=3, batch=2):
    generator = torch.Generator().manual_seed(classes)
    return torch.randn(batch, classes, 3, 4, generator=generator, dtype=DOUBLE)


def torchs(x, target, _=None, **options):
    """F.cross_entropy of F.interpolate's logits, both plain torch."""
    full = F.interpolate(x, GRID.size, mode="bilinear", align_corners=False)
    return F.cross_entropy(full, target.long(), **options)


def assert_torchs(x, target, **options):
    ours, theirs = (
        with_gradient(function, x, DOUBLE, target, GRID, **options)
        for function in (ops.upsample_cross_entropy, torchs)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13, equal_nan=True)
    return ours


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_empty_batch(reduction):
    ours, theirs = (
        with_gradient(f, scores(batch=0), DOUBLE, TARGET[:0], GRID, reduction=reduction)
        for f in (ops.upsample_cross_entropy, reference.upsample_cross_entropy)
    )
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert bool(ours[0].isnan().any()) == (reduction in ("mean", "batch"))


def test_a_gradient_that_is_not_defined():
    def loss(x):
        return ops.upsample_cross_entropy(x, TARGET, GRID)

    assert torch.autograd.gradcheck(loss, scores().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize(
    ("dtype", "label", "ignored"),
    [(torch.uint8, 156, -100), (torch.uint8, 0, 256), (torch.int16, 1, 65537)],
)
def test_an_ignore_index_beyond_the_labels_type_ignores_nothing(dtype, label, ignored):
    """-100 as uint8 is 156, and 256 is 0: such pixels count all the same."""
    target = torch.full((2, 6, 8), label).to(dtype)
    loss, gradient = assert_torchs(scores(200), target, ignore_index=ignored)
    assert loss.isfinite() and gradient.any()
    counts = ops.upsample_confusion(scores(200), target, GRID, ignore_index=ignored)
    assert counts[label].sum() == 96


def test_a_class_that_is_masked_out_is_as_if_it_were_not_there():
    """torch makes NaN of 0 * -inf in its interpolation; a tap of weight 0 is not read here."""
    x = scores(4)
    x[:, 3] = float("-inf")
    loss, gradient = with_gradient(ops.upsample_cross_entropy, x, DOUBLE, TARGET, GRID)
    expected = with_gradient(torchs, x[:, :3], DOUBLE, TARGET, GRID)
    torch.testing.assert_close((loss, gradient[:, :3]), expected, rtol=1e-12, atol=1e-13)
    assert not gradient[:, 3].any()
    own = ops.upsample_cross_entropy(x, torch.full_like(TARGET, 3), GRID, reduction="none")
    assert (own == float("inf")).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_class_weights_of_any_floating_type(reduction):
    x, weight = scores().float(), torch.tensor([0.5, 1.0, 2.0])
    expected, *others = (
        ops.upsample_cross_entropy(x, TARGET, GRID, weight=weight.to(dtype), reduction=reduction)
        for dtype in (torch.float32, torch.float16, torch.bfloat16, DOUBLE)
    )
    assert all(torch.equal(loss, expected) and loss.dtype == torch.float32 for loss in others)


@pytest.mark.parametrize("factor", [0.0, -2.0])
def test_a_factor_on_the_loss_scales_its_gradient_also_by_zero(factor):
    results = []
    for function in (ops.upsample_cross_entropy, torchs):
        leaf = scores().requires_grad_()
        loss, rate = function(leaf, TARGET, GRID), torch.tensor(factor).double()
        for kept in (True, False):  # taken twice, and not scaled twice
            results.append(torch.autograd.grad(loss, leaf, rate, retain_graph=kept)[0])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=1e-13)
