"""The argmax kernels, in the interpreter, against the reference in float64."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import event, given
from hypothesis import strategies as st

from tests.kernel_tools import (
    DEVICE,
    any_grids,
    bits,
    dtypes,
    examples,
    guarded,
    laid_out,
    layouts,
    planned,
    seeds,
)
from tests.op_tools import LABELS, assert_is_argmax, grids

from fcnfast import reference  # isort: skip
from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import argmax, winners  # isort: skip
from fcnfast.kernels.grid import Axis, axis_patches, longest  # isort: skip
from fcnfast.kernels.winners import fractions_of, span_of  # isort: skip

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
some_grids = st.one_of(grids(), any_grids(), even_grids)
batches = st.tuples(st.integers(1, 2), st.integers(1, 5))
kinds = st.sampled_from(("noise", "smooth", "ties", "wide", "special", "special"))
# Lanes and their rows, outputs of a patch, lanes of a team and classes loaded at once.
shares = st.sampled_from([(32, 4, 8, 4, 4), (32, 4, 8, 4, 4), (4, 2, 2, 2, 2), (8, 1, 4, 1, 1)])
SPECIALS = (math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**124)


def shared_out(share):
    names = ("LANES", "TILE_ROWS", "PATCH", "TEAM", "UNROLL")
    return planned(winners, **dict(zip(names, share, strict=True)))


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


@examples(50)
@given(
    some_grids,
    batches,
    dtypes,
    st.sampled_from(LABELS),
    layouts,
    kinds,
    st.booleans(),
    shares,
    seeds,
)
def test_labels(grid, batch, dtype, label_dtype, layout, kind, confidence, share, seed):
    """NaN wins, infinities count, a tap of weight 0 is not read, and nothing overflows."""
    x = laid_out(score_maps((*batch, *grid.in_size), dtype, kind, seed), layout, dtype)
    with shared_out(share), guarded(x):
        result, probability = argmax.forward(x, grid, label_dtype, confidence)
    assert result.dtype == label_dtype
    assert result.shape == (batch[0], *grid.size)
    assert result.is_contiguous()
    assert_is_argmax(result, x.cpu(), grid)
    assert (probability is not None) == confidence
    if confidence:
        assert probability.dtype == torch.float32
        x = x.cpu().double()
        truth = reference.upsample(x, grid).softmax(1).amax(1)
        assert torch.equal(probability.cpu().isnan(), truth.isnan())
        size = x.nan_to_num(0, 0, 0).abs().max() + 1
        error = (probability.cpu().double() - truth).nan_to_num(0).abs().max()
        assert error <= 4 * torch.finfo(torch.float32).eps * size


@examples(15)
@given(
    st.one_of(any_grids(dens=(1, 2, 4, 8)), even_grids), st.integers(3, 6), dtypes, shares, seeds
)
def test_the_first_class_wins_a_tie(grid, classes, dtype, share, seed):
    """Scores of 0 and 1, and weights whose denominators are powers of 2: nothing is rounded."""
    x = score_maps((1, classes, *grid.in_size), dtype, "ties", seed).to(DEVICE, dtype)
    with shared_out(share):
        result, _ = argmax.forward(x, grid, torch.int64, False)
    full = reference.upsample(x.cpu().double(), grid)
    ties = (full == full.amax(1, keepdim=True)).sum(1) > 1
    event(f"a tie without the first class: {bool((ties & (result.cpu() > 0)).any())}")
    assert_is_argmax(result, x.cpu(), grid, exact=True)


@examples(3)
@given(some_grids, dtypes, layouts, kinds, shares, seeds)
def test_images_stand_alone(grid, dtype, layout, kind, share, seed):
    x = laid_out(score_maps((3, 4, *grid.in_size), dtype, kind, seed), layout, dtype)
    labels, probability = argmax.forward(x, grid, torch.int16, True)
    with shared_out(share):
        alone = argmax.forward(x[1:], grid, torch.int16, True)
    assert torch.equal(labels[1:], alone[0])
    assert torch.equal(bits(probability[1:]), bits(alone[1]))


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("other", [1, 2, 4])
def test_one_corner_of_another_class(corner, other):
    x = torch.full((1, 5, 2, 2), -1.0)
    x[0, 0] = 1.0
    x[(0, 0, *corner)], x[(0, other, *corner)] = -1.0, 1.0
    grid = SamplingGrid.resize((2, 2), (8, 8))
    result, _ = argmax.forward(x.to(DEVICE), grid, torch.uint8, False)
    assert_is_argmax(result, x, grid, exact=True)
    assert (result == other).any()


@pytest.mark.parametrize("patch", [2, 8])
@pytest.mark.parametrize("seed", range(2))
def test_every_cell_between_a_map_and_its_ring_of_zeros(patch, seed):
    """Where one side of a cell is not read, corners on the other side can differ."""
    x = score_maps((1, 3, 3, 2), torch.float32, "noise", seed) - 1
    grid = SamplingGrid.deconv((3, 2), 4)
    with shared_out((8, 2, patch, 2, 2)):
        result, _ = argmax.forward(x.float().to(DEVICE), grid, torch.uint8, False)
    assert_is_argmax(result, x.float(), grid)


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
    result, _ = argmax.forward(x.float().to(DEVICE), grid, torch.uint8, False)
    assert_is_argmax(result, x.float(), grid)
    assert (result == 2).any()


@pytest.mark.parametrize("classes", [256, 300])
def test_many_classes(classes):
    grid = SamplingGrid.resize((2, 3), (4, 6))
    x = score_maps((1, classes, 2, 3), torch.float32, "noise", 0).float().to(DEVICE)
    dtype = torch.uint8 if classes <= 256 else torch.int16
    assert_is_argmax(argmax.forward(x, grid, dtype, False)[0], x.cpu(), grid)


def axis_positions(grid, axis):
    """Of each output, its cell (of the extended map) and how far into it it looks: exactly."""
    n, num, off, den = (v[axis] for v in (grid.in_size, grid.num, grid.off, grid.den))
    ring = int(grid.border == "zero")
    n, off = n + 2 * ring, off + ring * den
    for y in range(grid.size[axis]):
        cell, part = divmod(num * y + off, den)
        outside = cell < 0 or cell >= n - 1
        yield min(max(cell, -1), n - 1), Fraction(0 if outside else part, den)


@triton.jit(do_not_specialize=[*Axis._fields, "in_size"])
def spans_kernel(
    span_ptr, fraction_ptr, n, size, num, off, den, first, cells, head, inner, patches, in_size,
    LENGTH: tl.constexpr, CLAMP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each patch the first output, how many there are, and the corner; of outputs fractions."""
    axis = Axis(n, size, num, off, den, first, cells, head, inner, patches)
    patch = tl.arange(0, BLOCK)
    span = span_of(patch, axis, in_size, LENGTH, CLAMP)
    valid = patch < patches
    tl.store(span_ptr + 3 * patch, span.start, mask=valid)
    tl.store(span_ptr + 3 * patch + 1, span.length, mask=valid)
    tl.store(span_ptr + 3 * patch + 2, span.corner, mask=valid)
    fractions = fractions_of(span, 0, den, LENGTH)
    for i in tl.static_range(LENGTH):
        tl.store(fraction_ptr + span.start + i, fractions[i], mask=valid & (i < span.length))


def spans(grid, axis, length):
    """What `spans_kernel` stores of the patches of an axis: a row of integers each, fractions."""
    plan, clamp = axis_patches(grid, axis, length), grid.border == "clamp"
    found = torch.full((plan.patches, 3), -9, dtype=torch.int32, device=DEVICE)
    fractions = torch.full((plan.size,), -9.0, device=DEVICE)
    spans_kernel[(1,)](
        found, fractions, *plan, grid.in_size[axis],
        LENGTH=length, CLAMP=clamp, BLOCK=triton.next_power_of_2(plan.patches),
    )  # fmt: skip
    return found.cpu().numpy(), fractions.cpu()


@examples(25)
@given(some_grids, st.sampled_from((1, 2, 4, 8)))
def test_spans(grid, most):
    """Patches follow on each other, each in its cell, and none is longer than it may be."""
    for k in (0, 1):
        length = min(1 << (longest(grid, k) - 1).bit_length(), most)
        found, fractions = spans(grid, k, length)
        starts, counts, corners = found.T
        assert starts[0] == 0
        assert starts[-1] + counts[-1] == grid.size[k]
        assert list(np.diff(starts)) == list(counts[:-1])
        assert 0 <= counts.min() <= counts.max() <= length
        assert min(counts[0], counts[-1]) > 0  # so every patch starts at an output
        positions = list(axis_positions(grid, k))
        ring = int(grid.border == "zero")
        assert [cell - ring for cell, _ in positions] == list(np.repeat(corners, counts))
        for (_, exact), fraction in zip(positions, fractions.tolist(), strict=True):
            assert abs(fraction - exact) <= 2.0**-25
            assert (fraction == 0) == (exact == 0)
            assert fraction < 1
        if k == 1:
            align = argmax.aligned(grid, length)
            event(f"aligned: {align}")
            assert not any(start % align for start in (*starts, grid.size[1]))
            ends = (*starts, grid.size[1])
            assert align in (1, math.gcd(*ends, length, grid.den[1] // max(grid.num[1], 1)))


def test_a_fraction_is_not_rounded_to_one():
    """The first value is read, if only a little: its NaN is seen."""
    grid = SamplingGrid((3, 3), (1, 1), (1, 1), (2**24 - 1,) * 2, (2**24,) * 2, "clamp")
    for axis in (0, 1):
        assert spans(grid, axis, 1)[1].tolist() == [1 - torch.finfo(torch.float32).eps / 2]
    x = torch.zeros(1, 2, 3, 3, device=DEVICE)
    x[0, 1, 0, 0] = math.nan
    assert argmax.forward(x, grid, torch.uint8, False)[0].item() == 1
