"""The argmax kernels, in the interpreter, against the reference in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import event, given
from hypothesis import strategies as st

from tests import kernel_tools as tools
from tests.op_tools import LABELS, any_grids, assert_is_argmax, worst
from tests.op_tools import some_grids as op_grids

from fcnfast import reference  # isort: skip
from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import argmax, winners  # isort: skip
from fcnfast.kernels.grid import Axis, axis_patches, longest  # isort: skip
from fcnfast.kernels.winners import span_of  # isort: skip

import triton  # isort: skip
import triton.language as tl  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
# Grids whose patches start at multiples of 2, 4 or 8, in rows of such lengths.
even_grids = st.builds(
    SamplingGrid.centers,
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.sampled_from((2, 4, 8, 16)),
    st.sampled_from((-4, 0, 3.5, 4, 8)),
    st.tuples(st.integers(1, 12), st.sampled_from((4, 8, 16, 24))),
    st.sampled_from(("zero", "clamp")),
)
some_grids = st.one_of(op_grids, even_grids)
tie_grids = st.one_of(any_grids(dens=(1, 2, 4, 8)), even_grids)
batches = st.tuples(st.integers(1, 2), st.integers(1, 5))
kinds = st.sampled_from(("noise", "smooth", "ties", "wide", "special", "special"))
# Lanes and their rows, outputs of a patch, lanes of a team and classes loaded at once.
shares = st.sampled_from([(32, 4, 8, 4, 4), (32, 4, 8, 4, 4), (4, 2, 2, 2, 2), (8, 1, 4, 1, 1)])
SPECIALS = (math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**124)


def shared_out(share):
    names = ("LANES", "TILE_ROWS", "PATCH", "TEAM", "UNROLL")
    return tools.planned(winners, **dict(zip(names, share, strict=True)))


def score_maps(shape, dtype, kind, seed):
    """Scores, as float64, that `dtype` holds."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    if kind in ("smooth", "special"):  # cells whose corners agree, and elsewhere a few rivals
        x = F.interpolate(x[..., ::3, ::3], shape[2:], mode="bilinear", align_corners=True)
    elif kind == "ties":
        x = (x > 0.5).double()
    elif kind == "wide":
        x = x * 2.0 ** torch.randint(-30, 12, (1, shape[1], 1, 1), generator=generator)
    if kind == "special":
        values = torch.tensor(SPECIALS, dtype=torch.float64)[seed % 6 :][: 1 + seed % 3]
        drawn = torch.rand(shape, generator=generator) < (0.01, 0.1, 0.3)[seed % 3]
        x = torch.where(drawn, values[torch.randint(len(values), shape, generator=generator)], x)
        ruled_out = (slice(0), 0, min(1, shape[1] - 1), slice(None))[seed % 4]
        x[:, ruled_out] = -math.inf
    return x.to(dtype).double()


@tools.examples(50)
@given(some_grids, batches, tools.forms, kinds, shares, st.sampled_from(LABELS), st.booleans())
def test_labels(grid, batch, form, kind, share, label_dtype, confidence):
    """NaN wins, infinities count, a tap of weight 0 is not read, and nothing overflows."""
    dtype, layout, *_, seed = form
    x = tools.laid_out(score_maps((*batch, *grid.in_size), dtype, kind, seed), layout, dtype)
    with shared_out(share), tools.guarded(x):
        result, probability = argmax.forward(x, grid, label_dtype, confidence)
    assert result.dtype == label_dtype
    assert result.shape == (batch[0], *grid.size)
    assert result.is_contiguous()
    assert_is_argmax(result, x.cpu(), grid)
    assert (probability is not None) == confidence
    if len(x) > 1:  # images stand alone, whatever the shares
        alone = argmax.forward(x[1:], grid, label_dtype, confidence)
        assert torch.equal(result[1:], alone[0])
        assert not confidence or worst(alone[1], probability[1:].cpu()) == 0
    if confidence:
        assert probability.dtype == torch.float32
        x = x.cpu().double()
        truth = reference.upsample(x, grid).softmax(1).amax(1)
        assert torch.equal(probability.cpu().isnan(), truth.isnan())
        size = x.nan_to_num(0, 0, 0).abs().max() + 1
        error = (probability.cpu().double() - truth).nan_to_num(0).abs().max()
        assert error <= 4 * torch.finfo(torch.float32).eps * size


@tools.examples(15)
@given(tie_grids, st.integers(3, 6), tools.dtypes, shares, tools.seeds)
def test_the_first_class_wins_a_tie(grid, classes, dtype, share, seed):
    """Scores of 0 and 1, and weights whose denominators are powers of 2: nothing is rounded."""
    x = score_maps((1, classes, *grid.in_size), dtype, "ties", seed).to(tools.DEVICE, dtype)
    with shared_out(share):
        result, _ = argmax.forward(x, grid, torch.int64, False)
    full = reference.upsample(x.cpu().double(), grid)
    ties = (full == full.amax(1, keepdim=True)).sum(1) > 1
    event(f"a tie without the first class: {bool((ties & (result.cpu() > 0)).any())}")
    assert_is_argmax(result, x.cpu(), grid, exact=True)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("flipped", [(), (2,), (3,), (2, 3)])
@pytest.mark.parametrize(
    "ends",
    [
        # Their mean is the better bar, 0 everywhere; the third class is below the first at one end.
        ([4, -4, -4, -4], [-4, 4, 4, 4], [3, -0.5, -0.5, -0.5]),
        # The first is the better bar; the third class is below the mean where that is larger.
        ([4, -4, 4, 4], [-4, 4, -100, -4], [3, -0.5, -0.5, -0.5]),
    ],
)
def test_a_third_class_between_two(ends, flipped, turned):
    """Two classes cross within a patch, and where they do, a third one is larger than both.

    At every end of the patch it is below the first of them or below their mean.
    """
    grid = SamplingGrid.resize((2, 2), (32, 32))  # a patch from 1/32 to 15/32 of the cell
    beyond = torch.tensor([[15.0, -1.0], [-17.0, 31.0]], dtype=torch.float64) / 14
    ends = torch.tensor(ends, dtype=torch.float64).view(1, 3, 2, 2)
    x = (beyond @ ends @ beyond.mT).float().double()
    if not turned:
        x = x.mT
    x = x.flip(flipped)
    result, _ = argmax.forward(x.float().to(tools.DEVICE), grid, torch.uint8, False)
    assert_is_argmax(result, x.float(), grid)
    assert (result == 2).any()


@pytest.mark.parametrize("classes", [256, 300])
def test_many_classes(classes):
    grid = SamplingGrid.resize((2, 3), (4, 6))
    x = score_maps((1, classes, 2, 3), torch.float32, "noise", 0).float().to(tools.DEVICE)
    dtype = torch.uint8 if classes <= 256 else torch.int16
    assert_is_argmax(argmax.forward(x, grid, dtype, False)[0], x.cpu(), grid)


@triton.jit(do_not_specialize=[*Axis._fields, "in_size"])
def spans_kernel(
    span_ptr, n, size, num, off, den, first, cells, head, inner, patches, in_size,
    LENGTH: tl.constexpr, CLAMP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each patch the first output, and how many there are."""
    axis = Axis(n, size, num, off, den, first, cells, head, inner, patches)
    patch = tl.arange(0, BLOCK)
    span = span_of(patch, axis, in_size, LENGTH, CLAMP)
    tl.store(span_ptr + 2 * patch, span.start, mask=patch < patches)
    tl.store(span_ptr + 2 * patch + 1, span.length, mask=patch < patches)


@tools.examples(25)
@given(some_grids, st.sampled_from((1, 2, 4, 8)))
def test_spans(grid, most):
    """Patches follow on each other, and none is longer than it may be; rows of them are aligned."""
    for k in (0, 1):
        length = min(1 << (longest(grid, k) - 1).bit_length(), most)
        plan, clamp = axis_patches(grid, k, length), grid.border == "clamp"
        found = torch.full((plan.patches, 2), -9, dtype=torch.int32, device=tools.DEVICE)
        block = triton.next_power_of_2(plan.patches)
        where = (*plan, grid.in_size[k])
        spans_kernel[(1,)](found, *where, LENGTH=length, CLAMP=clamp, BLOCK=block)
        starts, counts = found.cpu().numpy().T
        ends = (*starts, grid.size[k])
        assert starts[0] == 0
        assert list(np.diff(ends)) == list(counts)
        assert 0 <= counts.min() <= counts.max() <= length
        assert min(counts[0], counts[-1]) > 0  # so every patch starts at an output
    align = winners.aligned(grid, length)
    event(f"aligned: {align}")
    assert align in (1, math.gcd(*ends, length, grid.den[1] // max(grid.num[1], 1)))


def test_a_fraction_is_not_rounded_to_one():
    """The first value is read, if only a little: its NaN is seen."""
    grid = SamplingGrid((3, 3), (1, 1), (1, 1), (2**24 - 1,) * 2, (2**24,) * 2, "clamp")
    x = torch.zeros(1, 2, 3, 3, device=tools.DEVICE)
    x[0, 1, 0, 0] = math.nan
    assert argmax.forward(x, grid, torch.uint8, False)[0].item() == 1


def test_ties_and_unread_taps_beside_infinities():
    values = [[[[1.0, 1.0]], [[1.0, 1.0]], [[0.0, torch.inf]]]]
    scores = torch.tensor(values, device=tools.DEVICE)
    grid = SamplingGrid.resize((1, 2), (1, 9), align_corners=True)
    labels, _ = argmax.forward(scores, grid, torch.uint8, False)
    # The first pixel is the left corner: of equal classes the first.
    assert labels.flatten().tolist() == [0] + 8 * [2]
