"""What the tests of the loss's kernels share: problems, their definition, launches with guards."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.kernel_tools import (
    DEVICE,
    LAYOUTS,
    any_grids,
    dtypes,
    guarded,
    laid_out,
    layouts,
    numerators,
    planned,
    seeds,
)
from tests.op_tools import assert_error, grids, holding, labels, worst

from fcnfast import reference  # isort: skip
from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import cross_entropy, cross_entropy_corners  # isort: skip

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
    dtype, layout = draw(dtypes), draw(layouts)
    ignore_index = draw(st.sampled_from((255, 255, -100, 0, channels - 1, 2**40)))
    target = draw(labels((batch, *grid.size), channels, ignore_index))
    seed = draw(seeds)
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
        target_layout=draw(st.sampled_from(LAYOUTS[:3])),
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
    return planned(cross_entropy_corners, PATCH=patch, GROUPS=groups, LANES=lanes)


@st.composite
def launches(draw: st.DrawFn) -> dict:
    """How pixels are shared out, for `shared_out`. A program takes the interpreter a tenth of a
    second: few lanes make many programs, and large patches long ones."""
    patch, groups = draw(st.sampled_from((1, 2, 2, 2, 4, 4, 8))), draw(st.sampled_from((1, 2, 4)))
    few = {1: 8, 2: 16, 4: 32}[groups] if patch > 1 else 32
    return {"patch": patch, "groups": groups, "lanes": draw(st.sampled_from((few, 32, 64)))}


def inputs(problem: Problem) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Scores, labels, weights and rates as the kernels get them."""
    weight = problem.weight
    scores = laid_out(problem.scores, problem.layout, problem.dtype)
    target = laid_out(problem.target[:, None], problem.target_layout, problem.labels)[:, 0]
    rate = problem.rate.to(DEVICE, torch.float32)
    if rate.dim():
        rate = rate.mT.contiguous().mT  # any strides
    return scores, target, None if weight is None else weight.to(DEVICE, torch.float32), rate


def launched(problem: Problem, implementation=cross_entropy) -> Result:
    """What the kernels make of a problem, guarded, or another implementation of their launchers."""
    scores, target, weight, rate = tensors = inputs(problem)
    call = (scores, target, weight, problem.grid, problem.ignore_index)
    reduction, smoothing = problem.reduction, problem.smoothing
    with guarded(*tensors) if implementation is cross_entropy else nullcontext():
        loss, kept, gradient = implementation.forward(*call, reduction, smoothing, True)
        assert loss.dtype == torch.float32
        if reduction == "none":
            gradient = implementation.per_pixel_gradient(*call, smoothing, kept, rate)
        else:
            assert gradient.dtype == torch.float32
            gradient = implementation.scaled(gradient, kept, rate, problem.dtype)
    assert gradient.dtype == problem.dtype
    return Result(loss.cpu(), gradient.cpu())


def plain(problem: Problem, scores: Tensor, dtype: torch.dtype = torch.float32) -> Result:
    """Plain torch on the CPU; half precision is computed in float32 there, too."""
    leaf = scores.to(dtype, copy=True).requires_grad_()
    weight = None if problem.weight is None else problem.weight.to(dtype)
    loss = reference.upsample_cross_entropy(
        leaf,
        problem.target,
        problem.grid,
        weight=weight,
        ignore_index=problem.ignore_index,
        reduction=problem.reduction,
        label_smoothing=problem.smoothing,
    )
    (gradient,) = torch.autograd.grad(loss, leaf, problem.rate.to(dtype))
    return Result(loss.detach(), gradient.to(problem.dtype))


def truth(problem: Problem, scores: Tensor) -> Result:
    """The definition in float64, for finite scores; and what enters its sums.

    The loss of a pixel of class t is ``hard (lse - x_t) + sum_c k_c (lse - x_c)``, with
    ``hard = (1 - smoothing) w_t`` and ``k_c = smoothing w_c / C``.
    """
    rows, columns = (
        torch.from_numpy((numerators(problem.grid, axis) / problem.grid.den[axis]).astype(float))
        for axis in (0, 1)
    )
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


def assert_accurate(result: Result, problem: Problem, maps: int = 8) -> None:
    """The error is at most 1.25 times plain torch's in that type, plus an ulp of what is summed.

    torch's is its largest over the scores and a few maps like them: a sum may come out right by
    luck. The ulp is that of the largest sum of magnitudes that enters.
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
    for ours, wanted, allowed, terms in (
        (result.loss, true.loss, torchs[0], true.loss_terms),
        (result.gradient, true.gradient, torchs[1], true.gradient_terms),
    ):
        assert_error(worst(ours, wanted), allowed, torch.finfo(ours.dtype).eps * terms)
