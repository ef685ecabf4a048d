"""The loss's kernels, in the interpreter, against the definition in extended precision."""

from dataclasses import replace

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from tests.kernel_tools import (
    DEVICE,
    DTYPES,
    bits,
    examples,
    guarded,
    is_format_kept,
    numerators,
)
from tests.loss_tools import (
    REDUCTIONS,
    Problem,
    assert_accurate,
    inputs,
    launched,
    launches,
    plain,
    problems,
    scores_like,
    shared_out,
)
from tests.op_tools import worst

from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import cross_entropy  # isort: skip
from fcnfast.tiled import cross_entropy as tiled  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
RESIZED = SamplingGrid.resize((2, 3), (5, 7))
WEIGHT = torch.tensor([0.5, 1.5, 0.75]).double()
F32, BF16, F16 = DTYPES
I16, I32, I64, U8 = torch.int16, torch.int32, torch.int64, torch.uint8


def example(grid=RESIZED, batch=1, classes=3, seed=0, **options):
    """Noise for scores and labels, all of which count."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *grid.size)
    target = torch.randint(0, classes, shape, generator=generator)
    per_pixel = options.get("reduction") == "none"
    rate = torch.rand(shape, generator=generator) + 0.25 if per_pixel else torch.ones(())
    scores = scores_like((batch, classes, *grid.in_size), torch.float32, seed)
    return Problem(
        grid, **{"scores": scores, "target": target, "weight": None, "rate": rate} | options
    )


@examples(20)
@given(problems(), launches())
def test_loss_and_gradient(problem, launch):
    with shared_out(**launch):
        result = launched(problem)
    assert_accurate(result, problem)
    if bool((problem.target == problem.ignore_index).all()):
        assert not result.gradient.any()
    assert problem.reduction != "none" or is_format_kept(result.gradient, problem.layout)
    unread = [~(numerators(problem.grid, axis) > 0).any(axis=0) for axis in (0, 1)]
    event(f"corners that no pixel reads: {any(axis.any() for axis in unread)}")
    for axis, places in zip((2, 3), unread, strict=True):
        assert not result.gradient.index_select(axis, torch.tensor(places).nonzero()[:, 0]).any()


@pytest.mark.parametrize(
    ("dtype", "weight", "smoothing", "scale"),
    [
        (F32, None, 0.0, 1),
        (BF16, None, 0.1, 1),
        (F16, WEIGHT, 0.0, 1),
        (F32, WEIGHT, 0.1, 1),
        (BF16, None, 0.0, 64),
        (F16, None, 0.1, 64),
        (F32, WEIGHT, 0.0, 64),
        (BF16, WEIGHT, 0.1, 64),
    ],
)
def test_every_kind_of_arithmetic(dtype, weight, smoothing, scale):
    """Of cells that patches do not divide, with some void; in both ways of the loss."""
    problem = example(SamplingGrid.resize((2, 3), (7, 9)), dtype=dtype, reduction="mean")
    target = torch.where(torch.rand(problem.target.shape) < 0.2, 255, problem.target)
    scores = (problem.scores * scale).to(dtype).double()
    problem = problem._replace(scores=scores, target=target, weight=weight, smoothing=smoothing)
    with shared_out(2, 2, 16):
        assert_accurate(launched(problem), problem)


@pytest.mark.parametrize(
    ("border", "reduction", "weight"),
    [
        ("clamp", "mean", None),
        ("zero", "mean", WEIGHT),
        ("clamp", "none", WEIGHT),
        ("zero", "none", None),
    ],
)
def test_a_class_that_is_out_of_the_question(border, reduction, weight):
    """-inf at every corner is -inf at every pixel, also where two corners are one."""
    grid = replace(SamplingGrid.deconv((1, 2), 4, padding=2), border=border)
    problem = example(grid, reduction=reduction, weight=weight)
    problem.scores[:, 0] = -torch.inf
    problem = problem._replace(target=problem.target.clamp(min=1))
    with shared_out(2, 2, 16):
        result = launched(problem)
    true = plain(problem, problem.scores, torch.float64)
    for ours, wanted in zip(result[:2], true[:2], strict=True):
        assert torch.allclose(ours.double(), wanted.double(), rtol=1e-5, atol=1e-6)
    assert not result.gradient[:, 0].any()


@pytest.mark.parametrize(
    ("scale", "masked", "weight", "smoothing", "near"),
    [
        (4.0, False, None, 0.0, True),
        (4.0, True, None, 0.0, True),
        (4.0, True, WEIGHT, 0.0, True),
        (4.0, True, None, 0.1, False),
        (1e4, False, None, 0.0, False),
    ],
)
def test_usual_scores_go_the_fast_way(scale, masked, weight, smoothing, near):
    """Which lanes do not is what the first kernel writes down for the second, a bit for each.

    A class that is -inf everywhere keeps no lane from it, unless smoothing counts its score.
    """
    problem = example(smoothing=smoothing, weight=weight)
    problem = problem._replace(scores=scale * problem.scores.sign())
    if masked:
        problem.scores[:, 0] = -torch.inf
    scores, target, weight, _ = inputs(problem)
    with shared_out(4, 2, 16), guarded(scores, target, weight) as made:
        cross_entropy.forward(scores, target, weight, RESIZED, 255, "mean", smoothing, False)
    (left_over,) = (x for x in made if x.dtype == torch.int64)
    assert bool((left_over == 0).all()) == near


@pytest.mark.parametrize("classes", [33, 130])
def test_many_classes(classes):
    """Which classes a tile has is known modulo 32; their labels have eight digits, or more."""
    problem = example(SamplingGrid.resize((1, 2), (2, 3)), classes=classes)
    with shared_out(2):
        assert_accurate(launched(problem), problem)


@pytest.mark.parametrize(
    ("grid", "launch"),
    [
        (SamplingGrid.resize((2, 1), (20, 16)), {}),
        (SamplingGrid.resize((1, 2), (5, 64)), {"patch": 4, "groups": 2}),
        (SamplingGrid.deconv((1, 2), 16, crop=(9, 3), size=(8, 40)), {"patch": 4, "groups": 2}),
        (SamplingGrid.resize((2, 3), (17, 24), align_corners=True), {"lanes": 16}),
    ],
    ids=str,
)
def test_large_strides(grid, launch):
    """Lanes share a cell, programs share it further."""
    problem = example(grid, classes=2)
    with shared_out(**launch):
        assert_accurate(launched(problem), problem)


SPECIAL = (torch.nan, torch.inf, -torch.inf, 1e4, -1e4, 3e38, 60.0)


@examples(10)
@given(st.data(), problems(), launches())
def test_special_values(data, problem, launch):
    """Exact for any range: also next to patches of usual scores. NaN where the reference has it."""
    dtype = problem.dtype
    scores = problem.scores.clone()
    some = data.draw(st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    for value in some:
        chance = data.draw(st.sampled_from((0.03, 0.1, 1.0)))
        place = torch.rand(scores.shape, generator=generator) < chance
        if chance == 1.0:  # a class that is out of the question everywhere
            place[:, 1:] = False
        limit = torch.finfo(dtype).max
        scores[place] = min(max(value, -limit), limit) if abs(value) < 1e39 else value
    problem = problem._replace(scores=scores.to(dtype).double(), layout="sliced")
    with shared_out(**launch):
        result = launched(problem)
    true, torchs = plain(problem, problem.scores, torch.float64), plain(problem, problem.scores)
    for ours, wanted, other in zip(result[:2], true[:2], torchs[:2], strict=True):
        wanted = wanted.to(ours.dtype).double()
        assert torch.equal(ours.isnan(), wanted.isnan())
        # Nowhere but where plain torch has one, too, in float64 or in the type of the arithmetic.
        assert not (ours.isinf() & wanted.isfinite() & other.isfinite()).any()
        real = ours.isfinite() & wanted.isfinite() & other.isfinite()
        event(f"some finite, some not: {0 < real.sum() < real.numel()}")
        if real.any():
            # An ulp of the sum of what enters: a few times the largest score for each pixel's loss,
            # or 1 for its gradient.
            most = max(1.0, problem.scores.nan_to_num(0, 0, 0).abs().max().item())
            sums = 2 * problem.target.numel() * (most if ours is result.loss else 1.0)
            limit = 1.25 * worst(other[real], wanted[real]) + torch.finfo(ours.dtype).eps * sums
            assert worst(ours[real], wanted[real]) <= limit


@pytest.mark.parametrize(
    ("reduction", "label", "labels"),
    [
        ("none", 3, U8),
        ("none", -1, I16),
        ("none", 3, I32),
        ("none", 2**40, I64),
        ("mean", 200, U8),
        ("mean", -1, I32),
        ("mean", 2**40, I64),
    ],
    ids=str,
)
def test_labels_out_of_range_make_nan(reduction, label, labels):
    """On a GPU nothing can be refused without waiting for it."""
    problem = example(reduction=reduction, labels=labels)
    problem.target[0, 4, 6] = label
    result = launched(problem)
    assert result.gradient.isnan().any()
    if reduction == "none":
        assert result.loss.isnan().nonzero().tolist() == [[0, 4, 6]]
        assert not result.gradient.isnan().all()
    else:
        assert result.loss.isnan()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_counts(reduction):
    target = torch.full((1, *RESIZED.size), 255)
    result = launched(example(target=target, reduction=reduction, labels=U8))
    assert result.loss.isnan().item() if reduction == "mean" else not result.loss.any()
    assert torch.equal(result.gradient, torch.zeros_like(result.gradient))


@pytest.mark.parametrize("scale", [1, 64])
def test_only_a_class_of_weight_0(scale):
    """The mean divides by 0, though smoothing counts the other classes: NaN, as torch's."""
    target = torch.zeros(1, *RESIZED.size, dtype=torch.int64)
    weight = torch.tensor([0.0, 1.0, 0.5]).double()
    problem = example(target=target, weight=weight, reduction="mean", smoothing=0.1)
    problem = problem._replace(scores=problem.scores * scale)
    result = launched(problem)
    assert result.loss.isnan()
    assert plain(problem, problem.scores).loss.isnan()
    assert not result.gradient.any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batch(reduction):
    problem = example(reduction=reduction)
    rate = problem.rate[:0] if reduction == "none" else problem.rate
    problem = problem._replace(scores=problem.scores[:0], target=problem.target[:0], rate=rate)
    result = launched(problem)
    assert result.gradient.shape == (0, 3, 2, 3)
    assert result.loss.isnan() if reduction in ("mean", "batch") else not result.loss.any()


@pytest.mark.parametrize(("labels", "ignored"), [(U8, -100), (U8, 256), (I16, 2**40)], ids=str)
def test_ignore_index_that_the_labels_cannot_hold(labels, ignored):
    """torch's -100 with uint8 labels: all pixels count, those of class 0 too."""
    problem = example(ignore_index=ignored, labels=labels, reduction="mean")
    for implementation in (cross_entropy, tiled):
        assert_accurate(launched(problem, implementation), problem)


@pytest.mark.parametrize(
    ("dtype", "channels", "channels_last"), [(F32, 3, False), (F16, 3, True), (F32, 1, True)]
)
def test_a_gradient_is_scaled_in_several_blocks(dtype, channels, channels_last):
    """Rows that no block holds, some rows to a program, and strides of the kernels' own layout."""
    gradient = torch.randn(5, 4, channels, 130, device=DEVICE).permute(1, 2, 0, 3)
    scale, grad = (torch.tensor(v, device=DEVICE) for v in (0.5, -4.0))
    with guarded(gradient, scale, grad):
        result = cross_entropy.scaled(gradient, scale, grad, dtype, channels_last)
    assert torch.equal(result, (gradient * -2).to(dtype))
    assert is_format_kept(result, "channels_last" if channels_last else "contiguous")


@pytest.mark.parametrize(
    ("smoothing", "reduction", "weight"),
    [(0.1, "mean", None), (0.3, "none", 0.3), (0.7, "mean", 1.7), (0.7, "none", None)],
)
def test_the_terms_of_one_class_cancel_exactly(reduction, smoothing, weight):
    """Its softmax is 1: label, smoothing and softmax leave nothing."""
    weight = None if weight is None else torch.tensor([weight]).double()
    problem = example(classes=1, reduction=reduction, weight=weight, smoothing=smoothing)
    result = launched(problem)
    assert not result.gradient.any()
    assert not result.loss.any()


@examples(2)
@given(problems(), launches())
def test_same_bits_in_any_batch_and_without_the_gradient(problem, launch):
    problem = problem._replace(reduction="sum", rate=torch.ones(()).double())
    last = problem._replace(scores=problem.scores[-1:], target=problem.target[-1:])
    scores, target, weight, _ = inputs(problem)
    options = (problem.grid, problem.ignore_index, "sum", problem.smoothing)
    with shared_out(**launch):
        whole, alone = launched(problem), launched(last)
        loss, _, nothing = cross_entropy.forward(scores, target, weight, *options, False)
    assert torch.equal(bits(whole.gradient[-1:]), bits(alone.gradient))
    assert torch.equal(bits(whole.loss), bits(loss.cpu())) and not nothing.numel()
