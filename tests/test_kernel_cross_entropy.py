"""The loss's kernels, in the interpreter, against the definition in float64."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor

from tests import kernel_tools as tools
from tests.op_tools import any_grids, assert_accurate, grids, holding, labels, worst

from fcnfast import reference  # isort: skip
from fcnfast.geometry import SamplingGrid, taps  # isort: skip
from fcnfast.kernels import cross_entropy, cross_entropy_corners  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
REDUCTIONS = ("mean", "sum", "none", "batch")


class Problem(NamedTuple):
    """One call of the loss.

    scores: N x C x h x w, float64 values that `dtype` holds. target: N x H x W, int64. weight: C
    class weights in float64, or None. rate: N x H x W or a scalar, the gradient of the loss.
    """

    grid: SamplingGrid
    scores: Tensor
    target: Tensor
    weight: Tensor | None
    rate: Tensor
    dtype: torch.dtype = torch.float32
    ignore_index: int = 255
    reduction: str = "sum"
    smoothing: float = 0.0
    labels: torch.dtype = torch.int64
    layout: str = "contiguous"
    target_layout: str = "contiguous"


class Result(NamedTuple):
    """A loss and the gradient of the scores; of the truth also the magnitudes that enter both."""

    loss: Tensor
    gradient: Tensor
    loss_terms: float = 0.0
    gradient_terms: float = 0.0


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Finite scores of a range that progressions hold, on any grid."""
    grid = draw(st.one_of(grids(most=8), any_grids()))
    batch, channels = draw(st.sampled_from((1, 1, 2))), draw(st.sampled_from((1, 2, 3, 5)))
    dtype, layout = draw(tools.dtypes), draw(tools.layouts)
    ignore_index = draw(st.sampled_from((255, 255, -100, 0, channels - 1, 2**40)))
    target = draw(labels((batch, *grid.size), channels, ignore_index))
    seed = draw(tools.seeds)
    generator = torch.Generator().manual_seed(seed)
    reduction = draw(st.sampled_from(REDUCTIONS))
    rate = torch.rand(target.shape if reduction == "none" else (), generator=generator)
    weight = torch.rand(channels, generator=generator).double() + 0.25
    return Problem(
        grid=grid,
        scores=scores_like((batch, channels, *grid.in_size), dtype, seed, layout),
        target=target,
        weight=draw(st.sampled_from((None, weight))),
        rate=(rate + 0.25).double(),
        dtype=dtype,
        ignore_index=ignore_index,
        reduction=reduction,
        smoothing=draw(st.sampled_from((0.0, 0.0, 0.1, 1.0))),
        labels=draw(st.sampled_from(holding(target))),
        layout=layout,
        target_layout=draw(st.sampled_from(tools.LAYOUTS[:3])),
    )


def scores_like(
    shape: Sequence[int], dtype: torch.dtype, seed: int, layout: str = "contiguous"
) -> Tensor:
    """Scores as float64 that `dtype` holds: of a small, a usual or a large range, by the seed."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    values = (values * (0.3, 1.0, 4.0)[seed % 3]).to(dtype).double()
    return values[:, :1].expand(values.shape) if layout == "expanded" else values


def shared_out(patch: int = 8, groups: int = 4, lanes: int = 32) -> AbstractContextManager[None]:
    """Patches of at most `patch` pixels along an axis, `groups` lanes to a cell, other programs."""
    return tools.planned(cross_entropy_corners, PATCH=patch, GROUPS=groups, LANES=lanes)


# A program takes the interpreter a tenth of a second: few lanes make many programs, and large
# patches long ones.
LAUNCHES = [(1, 1, 32), (1, 4, 64), (2, 1, 8), (2, 2, 16), (2, 4, 32), (2, 2, 64), (4, 1, 8)]
launches = st.sampled_from([*LAUNCHES, (4, 2, 32), (4, 4, 64), (8, 2, 16), (8, 4, 32)])


def inputs(problem: Problem) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Scores, labels, weights and rates as the kernels get them."""
    weight = problem.weight
    scores = tools.laid_out(problem.scores, problem.layout, problem.dtype)
    target = tools.laid_out(problem.target[:, None], problem.target_layout, problem.labels)[:, 0]
    rate = problem.rate.to(tools.DEVICE, torch.float32)
    if rate.dim():
        rate = rate.mT.contiguous().mT  # any strides
    return scores, target, None if weight is None else weight.to(tools.DEVICE, torch.float32), rate


def launched(problem: Problem) -> Result:
    """What the kernels make of a problem, guarded."""
    scores, target, weight, rate = tensors = inputs(problem)
    call = (scores, target, weight, problem.grid, problem.ignore_index)
    reduction, smoothing = problem.reduction, problem.smoothing
    with tools.guarded(*tensors):
        loss, kept, gradient = cross_entropy.forward(*call, reduction, smoothing, True)
        if reduction == "none":
            gradient = cross_entropy.per_pixel_gradient(*call, smoothing, kept, rate)
        else:
            assert gradient.dtype == torch.float32
            gradient = cross_entropy.scaled(gradient, kept, rate, problem.dtype)
    assert (loss.dtype, gradient.dtype) == (torch.float32, problem.dtype)
    return Result(loss.cpu(), gradient.cpu())


def plain(problem: Problem, scores: Tensor, dtype: torch.dtype = torch.float32) -> Result:
    """Plain torch on the CPU; half precision is computed in float32 there, too."""
    leaf = scores.to(dtype, copy=True).requires_grad_()
    weight = None if problem.weight is None else problem.weight.to(dtype)
    options = {"ignore_index": problem.ignore_index, "reduction": problem.reduction}
    options |= {"weight": weight, "label_smoothing": problem.smoothing}
    loss = reference.upsample_cross_entropy(leaf, problem.target, problem.grid, **options)
    (gradient,) = torch.autograd.grad(loss, leaf, problem.rate.to(dtype))
    return Result(loss.detach(), gradient.to(problem.dtype))


def matrix_of(grid: SamplingGrid, axis: int) -> Tensor:
    """Weights of one axis in float64, outputs x coarse values."""
    t = taps(grid, axis, torch.float64, torch.device("cpu"))
    result = torch.zeros(grid.size[axis], grid.in_size[axis], dtype=torch.float64)
    for place, weight in ((t.i0, t.w0), (t.i1, t.w1)):
        result.scatter_add_(1, place[:, None], weight[:, None])
    return result


def truth(problem: Problem, scores: Tensor) -> Result:
    """The definition in float64, for finite scores; and what enters its sums.

    The loss of a pixel of class t is ``hard (lse - x_t) + sum_c k_c (lse - x_c)``, with
    ``hard = (1 - smoothing) w_t`` and ``k_c = smoothing w_c / C``.
    """
    rows, columns = (matrix_of(problem.grid, axis) for axis in (0, 1))
    full, size = (rows @ x @ columns.T for x in (scores, scores.abs()))
    classes, lse, target = scores.shape[1], full.logsumexp(1), problem.target[:, None]
    counts = (target != problem.ignore_index).double()
    hits = (target == torch.arange(classes)[:, None, None]) * counts
    weight = torch.ones(classes).double() if problem.weight is None else problem.weight
    weight = weight[:, None, None]
    both = (1 - problem.smoothing) * weight * hits + problem.smoothing / classes * weight * counts
    scale = both.sum(1)
    losses, terms = scale * lse - (both * full).sum(1), scale * lse.abs() + (both * size).sum(1)
    gradient = scale[:, None] * full.softmax(1) - both
    if problem.reduction == "none":
        loss, loss_terms, factor = losses, terms.max(), problem.rate[:, None]
    else:
        over = {"mean": (weight * hits).sum(), "sum": 1.0, "batch": len(scores)}[problem.reduction]
        loss, loss_terms = losses.sum() / over, terms.sum() / over if over else 0.0
        factor = problem.rate / over if over else 0.0
    gradient = gradient * factor
    adjoint, magnitudes = (rows.T @ g @ columns for g in (gradient, gradient.abs()))
    return Result(loss, adjoint, float(loss_terms), float(magnitudes.max()))


def assert_right(result: Result, problem: Problem, maps: int = 8) -> None:
    """Accuracy, given plain torch's largest error over the scores and a few maps like them.

    A sum may come out right by luck.
    """
    true = truth(problem, problem.scores)
    errors = []
    for seed in range(maps):
        like = problem.scores
        if seed:
            like = scores_like(like.shape, problem.dtype, seed, problem.layout)
        found, wanted = plain(problem, like), truth(problem, like)
        errors.append((worst(found.loss, wanted.loss), worst(found.gradient, wanted.gradient)))
    torchs = np.max(errors, axis=0)
    assert_accurate(result.loss, true.loss, torchs[0], true.loss_terms)
    assert_accurate(result.gradient, true.gradient, torchs[1], true.gradient_terms)


RESIZED = SamplingGrid.resize((2, 3), (5, 7))
WEIGHT = torch.tensor([0.5, 1.5, 0.75]).double()
F32, BF16, F16 = tools.DTYPES
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


@tools.examples(20)
@given(problems(), launches)
def test_loss_and_gradient(problem, launch):
    with shared_out(*launch):
        result = launched(problem)
    assert_right(result, problem)
    if bool((problem.target == problem.ignore_index).all()):
        assert not result.gradient.any()
    assert problem.reduction != "none" or tools.is_format_kept(result.gradient, problem.layout)
    rows, columns = (matrix_of(problem.grid, axis).any(0) for axis in (0, 1))
    event(f"corners that no pixel reads: {not (rows.all() and columns.all())}")
    assert not result.gradient[..., ~torch.outer(rows, columns)].any()


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
        assert_right(launched(problem), problem)


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
    with shared_out(4, 2, 16), tools.guarded(scores, target, weight) as made:
        cross_entropy.forward(scores, target, weight, RESIZED, 255, "mean", smoothing, False)
    (left_over,) = (x for x in made if x.dtype == torch.int64)
    assert bool((left_over == 0).all()) == near


@pytest.mark.parametrize("classes", [33, 130])
def test_many_classes(classes):
    """Which classes a tile has is known modulo 32; their labels have eight digits, or more."""
    problem = example(SamplingGrid.resize((1, 2), (2, 3)), classes=classes)
    with shared_out(2):
        assert_right(launched(problem), problem)


@pytest.mark.parametrize(
    ("grid", "launch"),
    [
        (SamplingGrid.resize((2, 1), (20, 16)), ()),
        (SamplingGrid.resize((1, 2), (5, 64)), (4, 2)),
        (SamplingGrid.deconv((1, 2), 16, crop=(9, 3), size=(8, 40)), (4, 2)),
        (SamplingGrid.resize((2, 3), (17, 24), align_corners=True), (8, 4, 16)),
        (SamplingGrid.resize((1, 17), (2, 34)), (2, 1, 8)),
    ],
    ids=str,
)
def test_many_lanes(grid, launch):
    """Lanes share a cell, programs share it further, or share a row of cells; labels name both
    classes, or one of them.
    """
    problem = example(grid, classes=2)
    for target in (problem.target, torch.zeros_like(problem.target)):
        problem = problem._replace(target=target)
        with shared_out(*launch):
            assert_right(launched(problem), problem)


SPECIAL = (torch.nan, torch.inf, -torch.inf, 1e4, -1e4, 3e38, 60.0)


@tools.examples(12)
@given(st.data(), problems(), launches)
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
    with shared_out(*launch):
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
@pytest.mark.parametrize("batch", [0, 1])
def test_nothing_counts(reduction, batch):
    target = torch.full((1, *RESIZED.size), 255)
    problem = example(target=target, reduction=reduction, labels=U8)
    rate = problem.rate[:batch] if reduction == "none" else problem.rate
    cut = {"scores": problem.scores[:batch], "target": target[:batch], "rate": rate}
    result = launched(problem._replace(**cut))
    undefined = reduction == "mean" or (reduction == "batch" and not batch)
    assert result.loss.isnan().item() if undefined else not result.loss.any()
    assert result.gradient.shape == (batch, 3, 2, 3) and not result.gradient.any()


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


@pytest.mark.parametrize(("labels", "ignored"), [(U8, -100), (U8, 256), (I16, 2**40)], ids=str)
def test_ignore_index_that_the_labels_cannot_hold(labels, ignored):
    """torch's -100 with uint8 labels: all pixels count, those of class 0 too."""
    problem = example(ignore_index=ignored, labels=labels, reduction="mean")
    assert_right(launched(problem), problem)


@pytest.mark.parametrize(
    ("dtype", "channels", "channels_last"), [(F32, 3, False), (F16, 3, True), (F32, 1, True)]
)
def test_a_gradient_is_scaled_in_several_blocks(dtype, channels, channels_last):
    """Rows that no block holds, some rows to a program, and strides of the kernels' own layout."""
    gradient = torch.randn(5, 4, channels, 130, device=tools.DEVICE).permute(1, 2, 0, 3)
    scale, grad = (torch.tensor(v, device=tools.DEVICE) for v in (0.5, -4.0))
    with tools.guarded(gradient, scale, grad):
        result = cross_entropy.scaled(gradient, scale, grad, dtype, channels_last)
    assert torch.equal(result, (gradient * -2).to(dtype))
    assert tools.is_format_kept(result, "channels_last" if channels_last else "contiguous")


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


@tools.examples(2)
@given(problems(), launches)
def test_same_bits_in_any_batch_and_without_the_gradient(problem, launch):
    problem = problem._replace(reduction="sum", rate=torch.ones(()).double())
    last = problem._replace(scores=problem.scores[-1:], target=problem.target[-1:])
    scores, target, weight, _ = inputs(problem)
    options = (problem.grid, problem.ignore_index, "sum", problem.smoothing)
    with shared_out(*launch):
        whole, alone = launched(problem), launched(last)
        loss, _, nothing = cross_entropy.forward(scores, target, weight, *options, False)
    assert torch.equal(tools.bits(whole.gradient[-1:]), tools.bits(alone.gradient))
    assert torch.equal(tools.bits(whole.loss), tools.bits(loss.cpu())) and not nothing.numel()
