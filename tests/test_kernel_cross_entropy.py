"""The loss's kernels, in the interpreter, against the reference in float64 and the CPU path."""

import math

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.kernel_tools import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    any_grids,
    bits,
    laid_out,
    worst,
)
from tests.op_tools import LABELS, grids

from fcnfast import reference  # isort: skip
from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import cross_entropy  # isort: skip
from fcnfast.tiled import cross_entropy as tiled  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
REDUCTIONS = ("mean", "sum", "batch", "none")
some_grids = st.one_of(grids(most=16), any_grids(larger=False))
seeds = st.integers(0, 2**31)


def problem(grid, images, classes, dtype, seed, scale=3.0, ignore_index=255, labels=torch.int64):
    """Scores in float64 (exact in `dtype`), and labels of which some do not count."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, classes, *grid.in_size)
    x = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (images, *grid.size), generator=generator)
    dropped = torch.rand(target.shape, generator=generator) < 0.15
    if torch.iinfo(labels).min <= ignore_index <= torch.iinfo(labels).max:
        target[dropped] = ignore_index
    return x.to(dtype).double(), target.to(labels)


def weights(classes, seed, dtype):
    generator = torch.Generator().manual_seed(seed + 1)
    return (torch.rand(classes, generator=generator, dtype=torch.float64) + 0.1).to(dtype)


def run(module, x, target, grid, weight, reduction, smoothing, ignore_index, rate):
    """Loss and gradient of `kernels` or of the CPU path, for the gradient `rate` of the loss."""
    settings_ = (weight, grid, ignore_index)
    loss, kept, gradient = module.forward(x, target, *settings_, reduction, smoothing, True)
    rate = rate.to(loss.dtype).to(loss.device)
    if reduction == "none":
        return loss, module.per_pixel_gradient(x, target, *settings_, smoothing, kept, rate)
    return loss, module.scaled(gradient, kept, rate, x.dtype)


def truth(x, target, grid, weight, reduction, smoothing, ignore_index, rate):
    """The same from the definition, by autograd, in the type of `x`."""
    x = x.clone().requires_grad_()
    weight = None if weight is None else weight.to(x.dtype)
    loss = reference.upsample_cross_entropy(
        x, target, grid,
        weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing,
    )  # fmt: skip
    return loss.detach(), torch.autograd.grad(loss, x, rate.to(loss.dtype))[0]


def largest(x, target, grid, weight, reduction, smoothing, ignore_index, rate):
    """The largest sums of magnitudes in the loss, and in the gradient of a corner."""
    full = reference.upsample(x.clone().requires_grad_(), grid)
    counts = target.long() != ignore_index
    index = torch.where(counts, target.long(), 0)
    each = counts.double() if weight is None else counts * weight.double()[index]
    whole = {"mean": each.sum().clamp(min=1e-9), "batch": x.shape[0]}.get(reduction, 1)
    each = each * rate / whole
    scores = x.abs().max().item() + math.log(x.shape[1]) + 1
    loss = scores * (each.abs().sum() if reduction != "none" else each.abs().max()).item()
    hot = torch.nn.functional.one_hot(index, x.shape[1]).movedim(-1, 1)
    parts = (full.detach().softmax(1).nan_to_num() + hot + smoothing) * each[:, None]
    x = x.clone().requires_grad_()
    (sums,) = torch.autograd.grad(reference.upsample(x, grid), x, parts)
    return loss, sums.abs().max().item()


def check(ours, plain, true, size):
    """At most 1.25 times plain torch's error, and one ulp; NaN just where it has to be."""
    ours = ours.cpu()
    assert torch.equal(ours.isnan(), true.isnan())
    real = ~true.isnan()
    if real.any():
        ulps = 1 if ours.dtype != torch.float64 else 5  # there the truth is rounded, too
        limit = 1.25 * worst(plain[real], true[real]) + ulps * torch.finfo(ours.dtype).eps * size
        error = worst(ours[real], true[real])
        assert error <= limit, f"error {error:.3g}, limit {limit:.3g}"


def compare(laid, target, *rest):
    """Kernel and CPU path against the definition."""
    wide = torch.float64 if laid.dtype == torch.float64 else torch.float32
    x = laid.cpu().double()
    true = truth(x, target, *rest)
    plain = truth(x.to(wide), target, *rest)
    sizes = largest(x, target, *rest)
    for module, given_ in ((cross_entropy, laid), (tiled, laid.cpu())):
        ours = run(module, given_, target.to(given_.device), *rest)
        assert ours[0].dtype == wide and ours[1].dtype == laid.dtype
        check(ours[0], plain[0], true[0], sizes[0])
        check(ours[1], plain[1].to(laid.dtype), true[1], sizes[1])


def rates(target, reduction, seed):
    """A gradient of the loss: one value, or one for each pixel."""
    shape = target.shape if reduction == "none" else ()
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=3)
@given(
    some_grids, st.integers(1, 2), st.integers(1, 5), st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS), st.sampled_from(LABELS), st.sampled_from(REDUCTIONS),
    st.booleans(), st.sampled_from((0.0, 0.0, 0.1)), st.sampled_from((255, 1, -100)), seeds,
)  # fmt: skip
def test_three_ways(
    grid, images, classes, dtype, layout, labels, reduction, weighted, smoothing, ignored, seed
):
    values = problem(grid, images, classes, dtype, seed, ignore_index=ignored, labels=labels)
    x, target = values
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = weights(classes, seed, wide) if weighted else None
    event(f"a pixel counts: {bool((target.long() != ignored).any())}")
    rate = rates(target, reduction, seed)
    rest = (grid, weight, reduction, smoothing, ignored, rate)
    compare(laid_out(x, layout, dtype), target, *rest)


@pytest.mark.parametrize(
    "grid",
    [
        SamplingGrid.deconv((2, 3), 8, crop=(5, 5), size=(12, 17)),
        SamplingGrid.deconv((2, 2), 16, crop=(3, 9), size=(20, 30)),
        SamplingGrid.resize((1, 2), (9, 130)),  # patches of a cell that several programs take
        SamplingGrid.resize((1, 1), (12, 40)),
        SamplingGrid.resize((5, 7), (9, 9), align_corners=True),
        SamplingGrid.resize((6, 40), (6, 45)),  # more cells than a program has lanes
        SamplingGrid.resize((9, 9), (4, 3)),
    ],
    ids=lambda grid: f"{grid.in_size} {grid.size}",
)
def test_patches_of_every_size(grid):
    x, target = problem(grid, 1, 2, torch.float32, 0)
    rest = (grid, None, "mean", 0.0, 255, rates(target, "mean", 0))
    compare(x.float().to(DEVICE), target, *rest)


@pytest.mark.parametrize("classes", [33])
def test_more_classes_than_the_bits_of_a_word(classes):
    grid = SamplingGrid.resize((3, 3), (6, 6))
    x, target = problem(grid, 1, classes, torch.float32, classes, labels=torch.uint8)
    rest = (grid, weights(classes, 0, torch.float32), "sum", 0.1, 255, rates(target, "sum", 0))
    compare(x.float().to(DEVICE), target, *rest)


@settings(max_examples=2)
@given(some_grids, st.sampled_from(REDUCTIONS), st.sampled_from((40.0, 1e4)), seeds)
def test_scores_that_range_widely(grid, reduction, scale, seed):
    x, target = problem(grid, 1, 4, torch.float32, seed, scale=scale)
    rest = (grid, None, reduction, 0.0, 255, rates(target, reduction, seed))
    compare(x.float().to(DEVICE), target, *rest)


@settings(max_examples=2)
@given(some_grids, st.sampled_from(("mean", "none")), seeds)
def test_special_values_reach_their_readers_only(grid, reduction, seed):
    x, target = problem(grid, 1, 4, torch.float32, seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(x.shape, generator=generator)
    special = torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float64)
    chosen = special[torch.randint(0, 3, x.shape, generator=generator)]
    x = torch.where(drawn < 0.08, chosen, x)
    x[:, 3] = -math.inf  # a class that is masked everywhere
    target = torch.where(target == 3, 0, target)
    rest = (grid, None, reduction, 0.0, 255, rates(target, reduction, seed))
    true = truth(x, target, *rest)
    ours = run(cross_entropy, x.float().to(DEVICE), target.to(DEVICE), *rest)
    for mine, there in zip(ours, true, strict=True):
        mine = mine.cpu().double()
        assert torch.equal(mine.isnan(), there.isnan())
        assert torch.equal(mine.isinf(), there.isinf())
        real = there.isfinite()
        assert torch.allclose(mine[real], there[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_labels_out_of_range_make_nan(reduction):
    grid = SamplingGrid.resize((3, 3), (12, 12))
    x, target = problem(grid, 1, 4, torch.float32, 0)
    target[0, 5, 5] = 4
    rate = torch.ones(target.shape if reduction == "none" else (), dtype=torch.float64)
    rest = (grid, None, reduction, 0.0, 255, rate)
    loss, gradient = run(cross_entropy, x.float().to(DEVICE), target.to(DEVICE), *rest)
    assert gradient.isnan().any()
    if reduction == "none":
        assert loss.isnan().nonzero().tolist() == [[0, 5, 5]]
    else:
        assert loss.isnan()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_counts(reduction):
    grid = SamplingGrid.deconv((3, 3), 4)
    x = torch.randn(2, 3, 3, 3, device=DEVICE)
    target = torch.full((2, *grid.size), 255, dtype=torch.uint8, device=DEVICE)
    rate = torch.ones(target.shape if reduction == "none" else (), dtype=torch.float64)
    rest = (grid, None, reduction, 0.0, 255, rate)
    loss, gradient = run(cross_entropy, x, target, *rest)
    assert loss.isnan().item() if reduction == "mean" else not loss.any()
    assert torch.equal(gradient, torch.zeros_like(gradient))
    empty = run(cross_entropy, x[:0], target[:0], *rest[:-1], rate[:0] if rate.dim() else rate)
    assert empty[1].shape == (0, 3, 3, 3)
    assert empty[0].isnan() if reduction in ("mean", "batch") else not empty[0].any()


@settings(max_examples=2)
@given(some_grids, st.booleans(), seeds)
def test_same_bits_in_any_run_and_batch(grid, weighted, seed):
    x, target = problem(grid, 2, 3, torch.float32, seed)
    x, target = x.float().to(DEVICE), target.to(DEVICE)
    weight = weights(3, seed, torch.float32).to(DEVICE) if weighted else None
    given_ = (weight, grid, 255, "sum", 0.0)
    first = cross_entropy.forward(x, target, *given_, True)
    again = cross_entropy.forward(x, target, *given_, True)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(bits(a), bits(b))
    without = cross_entropy.forward(x, target, *given_, False)
    assert torch.equal(bits(first[0]), bits(without[0])) and not without[2].numel()
    alone = cross_entropy.forward(x[1:], target[1:], *given_, True)
    assert torch.equal(bits(first[2][1:]), bits(alone[2]))


def test_corners_that_no_pixel_sees_have_no_gradient():
    grid = SamplingGrid.deconv((5, 6), 4, crop=(8, 8), size=(4, 4))
    x, target = problem(grid, 1, 3, torch.float32, 0)
    rest = (grid, None, "sum", 0.0, 255, torch.ones((), dtype=torch.float64))
    _, gradient = run(cross_entropy, x.float().to(DEVICE), target.to(DEVICE), *rest)
    _, true = truth(x, target, *rest)
    assert torch.equal(gradient.cpu() == 0, true == 0)
