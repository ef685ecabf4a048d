"""upsample_cross_entropy where F.cross_entropy is odd: the same values, gradients and NaNs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import event, given
from hypothesis import strategies as st

from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid

DOUBLE = torch.float64
GRID = SamplingGrid.resize((3, 4), (6, 8))
REDUCTIONS = ("mean", "sum", "none")


def torchs(x, target, **options):
    """F.cross_entropy of F.interpolate's logits, both plain torch."""
    full = F.interpolate(x, GRID.size, mode="bilinear", align_corners=False)
    return F.cross_entropy(full, target.long(), **options)


def both(x, target, **options):
    """Loss and gradient: ours, and torch's."""
    results = []
    for function in (
        lambda x: ops.upsample_cross_entropy(x, target, GRID, **options),
        lambda x: torchs(x, target, **options),
    ):
        leaf = x.clone().requires_grad_()
        loss = function(leaf)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        results.append((loss.detach(), gradient))
    return results


def assert_torchs(x, target, **options):
    ours, theirs = both(x, target, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13, equal_nan=True)
    return ours


def scores(classes, batch=2):
    generator = torch.Generator().manual_seed(classes)
    return torch.randn(batch, classes, 3, 4, generator=generator, dtype=DOUBLE)


def labels(classes, batch=2, dtype=torch.int64):
    return (torch.arange(batch * 48) * 7 % classes).view(batch, 6, 8).to(dtype)


def test_labels_of_weight_zero_with_smoothing():
    """The weights sum up to 0 and the losses do not: NaN, as in torch, and no infinity."""
    target = torch.zeros(2, 6, 8, dtype=torch.int64)
    weight = torch.tensor([0.0, 0.5], dtype=DOUBLE)
    ours, theirs = both(scores(2), target, weight=weight, label_smoothing=0.1)
    assert theirs[0].isnan() and ours[0].isnan() and not ours[1].any()


@given(st.data(), st.sampled_from(REDUCTIONS), st.integers(1, 6))
def test_any_combination_of_settings(data, reduction, classes):
    weights = st.lists(st.sampled_from((0.0, 0.5, 1.0, 3.0)), min_size=classes, max_size=classes)
    weight = data.draw(st.none() | weights.map(lambda w: torch.tensor(w, dtype=DOUBLE)))
    smoothing = data.draw(st.sampled_from((0.0, 0.1, 0.5, 1.0)))
    ignored = data.draw(st.sampled_from((255, -100, 0, classes - 1)))
    target = labels(classes)
    void = data.draw(st.sampled_from((0, 3, 48, 96)))
    target.view(-1)[:void] = ignored
    event(f"every pixel is ignored: {bool((target == ignored).all())}")
    event(f"no weight at all: {weight is not None and not weight.any()}")
    options = {
        "weight": weight,
        "ignore_index": ignored,
        "reduction": reduction,
        "label_smoothing": smoothing,
    }
    ours, theirs = both(scores(classes), target, **options)
    if reduction == "mean" and theirs[0].isnan():
        # Where weights of 0 are the reason, torch's gradient may be NaN, too: here it never is.
        assert ours[0].isnan() and not ours[1].any()
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_pixel_ignored(weighted, smoothing):
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=DOUBLE) if weighted else None
    target = torch.full((2, 6, 8), 255)
    for reduction in REDUCTIONS:
        loss, gradient = assert_torchs(
            scores(3),
            target,
            weight=weight,
            ignore_index=255,
            reduction=reduction,
            label_smoothing=smoothing,
        )
        assert bool(loss.isnan().all()) == (reduction == "mean")
        assert not gradient.any()
    batch = ops.upsample_cross_entropy(scores(3), target, GRID, reduction="batch")
    assert batch == 0


def test_an_empty_batch():
    x, target = scores(3, 0), labels(3, 0)
    for reduction in REDUCTIONS:
        loss, _ = assert_torchs(x, target, ignore_index=255, reduction=reduction)
        assert bool(loss.isnan().any()) == (reduction == "mean")
        assert loss.shape == ((0, 6, 8) if reduction == "none" else ())
    for result in (reference, ops):  # a sum of nothing divided by no images
        assert result.upsample_cross_entropy(x, target, GRID, reduction="batch").isnan()


def test_a_class_among_the_others_is_ignored_and_still_predicted():
    """Its pixels do not count, but its scores are in everyone's softmax and in the smoothing."""
    target = labels(3)
    for smoothing in (0.0, 0.2):
        _, gradient = assert_torchs(
            scores(3), target, ignore_index=1, reduction="mean", label_smoothing=smoothing
        )
        assert gradient[:, 1].any()


def test_smoothing_is_weighted_but_the_mean_is_over_the_labels_weights():
    weight = torch.tensor([0.0, 1.0, 4.0], dtype=DOUBLE)
    target = labels(3)
    loss, _ = assert_torchs(
        scores(3), target, weight=weight, ignore_index=255, reduction="mean", label_smoothing=0.5
    )
    pixels = ops.upsample_cross_entropy(
        scores(3), target, GRID, weight=weight, reduction="none", label_smoothing=0.5
    )
    assert pixels[target == 0].all()  # no weight of their own, but a share of the smoothing
    torch.testing.assert_close(loss, pixels.sum() / weight[target].sum())


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


def test_one_class():
    loss, gradient = assert_torchs(scores(1), labels(1), ignore_index=255, label_smoothing=0.1)
    assert loss == 0 and not gradient.any()


def test_a_class_that_is_masked_out_is_as_if_it_were_not_there():
    """torch makes NaN of 0 * -inf in its interpolation; a tap of weight 0 is not read here."""
    x = scores(4)
    x[:, 3] = float("-inf")
    target = labels(3)
    ours, _ = both(x, target, ignore_index=255)
    _, theirs = both(x[:, :3], target, ignore_index=255)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(ours[1][:, :3], theirs[1], rtol=1e-12, atol=1e-13)
    assert not ours[1][:, 3].any()
    own = ops.upsample_cross_entropy(x, torch.full_like(target, 3), GRID, reduction="none")
    assert (own == float("inf")).all()


@pytest.mark.parametrize("reduction", [*REDUCTIONS, "batch"])
def test_class_weights_of_any_floating_type(reduction):
    weight = torch.tensor([0.5, 1.0, 2.0])
    x = scores(3).float()
    expected = ops.upsample_cross_entropy(x, labels(3), GRID, weight=weight, reduction=reduction)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        loss = ops.upsample_cross_entropy(
            x, labels(3), GRID, weight=weight.to(dtype), reduction=reduction
        )
        assert torch.equal(loss, expected) and loss.dtype == torch.float32


def test_the_batch_reduction_is_the_sum_over_the_images():
    leaf = scores(3).requires_grad_()
    results = []
    for reduction, share in (("batch", 1.0), ("sum", 0.5)):
        loss = ops.upsample_cross_entropy(leaf, labels(3), GRID, reduction=reduction) * share
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*results, rtol=1e-14, atol=1e-15)


def test_a_factor_on_the_loss_scales_its_gradient_also_by_zero():
    for factor in (0.0, -2.0):
        ours, theirs = [], []
        for results, function in (
            (ours, lambda x: ops.upsample_cross_entropy(x, labels(3), GRID)),
            (theirs, lambda x: torchs(x, labels(3))),
        ):
            leaf = scores(3).requires_grad_()
            loss, rate = function(leaf), torch.tensor(factor).double()
            for kept in (True, False):  # taken twice, and not scaled twice
                results.extend(torch.autograd.grad(loss, leaf, rate, retain_graph=kept))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
