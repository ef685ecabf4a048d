"""The upsample kernels, in the interpreter, against the reference and against exact integers."""

from contextlib import contextmanager
from fractions import Fraction
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.kernel_tools import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    LAYOUTS,
    any_grids,
    assert_accurate,
    bits,
    exact,
    guarded_results,
    is_format_kept,
    laid_out,
    numerators,
    only_programs,
    reserved,
    scores,
    spread_out,
    watched,
    worst,
)
from tests.op_tools import grids

from fcnfast import reference  # isort: skip
from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import upsample  # isort: skip

interpreter_only = pytest.mark.skipif(not INTERPRETED, reason="looks into the interpreter")
some_grids = st.one_of(grids(), any_grids())
batches = st.tuples(st.integers(1, 2), st.integers(1, 3))
layouts, dtypes = st.sampled_from(LAYOUTS), st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31)
# Values of a block and programs to aim at: whether results are made in few or many parts.
shares = st.sampled_from([(1024, 1), (1024, 2048), (32, 1), (32, 2048)])


@contextmanager
def shared_out(share):
    with mock.patch.multiple(upsample, TILE=share[0], PROGRAMS=share[1]):
        yield


def transposed(grad, grid):
    """The definition of the adjoint: what autograd gives for the reference."""
    x = torch.zeros(*grad.shape[:2], *grid.in_size, dtype=grad.dtype, requires_grad=True)
    return torch.autograd.grad(reference.upsample(x, grid), x, grad)[0]


def check(result, x, grid, definition, adjoint):
    """Accuracy, given the input `x` on the CPU.

    Plain torch, too, computes in float32 and rounds half precision once. Its largest error is
    taken over `x` and a few maps like it: one pixel may come out right by luck.
    """
    is_double = x.dtype == torch.float64

    def truth(x):
        return exact(x, grid, adjoint) if is_double else definition(x.double(), grid)

    def plain(x):
        return definition(x if is_double else x.float(), grid).to(x.dtype)

    like = [x, *(scores(x.shape, x.dtype, seed).to(x.dtype) for seed in range(5))]
    torchs = max(worst(plain(other), truth(other)) for other in like)
    assert_accurate(result, truth(x), torchs, x)


@settings(max_examples=80)
@given(some_grids, batches, dtypes, layouts, shares, seeds)
def test_forward(grid, batch, dtype, layout, share, seed):
    x = laid_out(scores((*batch, *grid.in_size), dtype, seed), layout, dtype)
    with guarded_results(upsample), shared_out(share):
        result = upsample.forward(x, grid)
    check(result, x.cpu(), grid, reference.upsample, adjoint=False)
    assert is_format_kept(result, layout)


@settings(max_examples=50)
@given(some_grids, batches, dtypes, layouts, shares, seeds)
def test_adjoint(grid, batch, dtype, layout, share, seed):
    unread = [~(numerators(grid, axis) > 0).any(axis=0) for axis in (0, 1)]
    event(f"coarse values that no pixel reads: {any(axis.any() for axis in unread)}")
    grad = laid_out(scores((*batch, *grid.size), dtype, seed), layout, dtype)
    with guarded_results(upsample), shared_out(share):
        result = upsample.adjoint(grad, grid)
    check(result, grad.cpu(), grid, transposed, adjoint=True)
    assert is_format_kept(result, layout)
    for axis, rows in zip((2, 3), unread, strict=True):
        assert not result.cpu().index_select(axis, torch.tensor(rows).nonzero()[:, 0]).any()


factors = st.fractions(Fraction(1, 2), 4, max_denominator=7).map(float)


@settings(max_examples=30)
@given(
    st.tuples(st.integers(2, 6), st.integers(2, 6)),
    st.one_of(
        st.fixed_dictionaries({"size": st.tuples(st.integers(1, 12), st.integers(1, 20))}),
        st.fixed_dictionaries({"scale_factor": st.tuples(factors, factors)}),
    ),
    st.booleans(),
    st.sampled_from(DTYPES[:-1]),
    seeds,
)
def test_interpolate(in_size, options, align_corners, dtype, seed):
    """As exact as F.interpolate and its gradient, which round half precision once, as we do."""
    grid = SamplingGrid.resize(in_size, **options, align_corners=align_corners)
    x = scores((1, 2, *in_size), dtype, seed).to(dtype).requires_grad_()
    plain = F.interpolate(x, mode="bilinear", align_corners=align_corners, **options)
    truth = reference.upsample(x.detach().double(), grid)
    result = upsample.forward(x.detach().to(DEVICE), grid)
    assert_accurate(result, truth, worst(plain.detach(), truth), x.detach())
    grad = scores(plain.shape, dtype, seed + 1).to(dtype)
    (plain_grad,) = torch.autograd.grad(plain, x, grad)
    truth = transposed(grad.double(), grid)
    result = upsample.adjoint(grad.to(DEVICE), grid)
    assert_accurate(result, truth, worst(plain_grad, truth), grad)


@settings(max_examples=30)
@given(any_grids(dens=(1, 2, 4, 8), larger=False), batches, layouts, seeds)
def test_dot_product_identity(grid, batch, layout, seed):
    """<upsample(x), g> is <x, adjoint(g)>, to the last bit: whole numbers and weights in 1/8."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-99, 99, (*batch, *grid.in_size), generator=generator).double()
    g = torch.randint(-99, 99, (*batch, *grid.size), generator=generator).double()
    if layout == "expanded":
        x, g = x[:, :1].expand(x.shape), g[:, :1].expand(g.shape)
    up = upsample.forward(laid_out(x, layout, torch.float64), grid).cpu()
    down = upsample.adjoint(laid_out(g, layout, torch.float64), grid).cpu()
    assert (up * g).sum() == (x * down).sum()


@settings(max_examples=12)
@given(some_grids, dtypes, layouts, seeds)
def test_same_bits_in_any_run_and_batch(grid, dtype, layout, seed):
    for launch, size in ((upsample.forward, grid.in_size), (upsample.adjoint, grid.size)):
        x = laid_out(scores((2, 2, *size), dtype, seed), layout, dtype)
        first, second = launch(x, grid), launch(x, grid)
        assert torch.equal(bits(first), bits(second))
        with shared_out((1024, 1)):  # the longest strips
            assert torch.equal(bits(first[1:]), bits(launch(x[1:], grid)))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
@settings(max_examples=20)
@given(some_grids, layouts, seeds, st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_special_values_reach_their_readers_only(grid, layout, seed, special):
    """A tap of weight 0 is not read: elsewhere the result is as if the value were another."""
    for launch, definition, size in (
        (upsample.forward, reference.upsample, grid.in_size),
        (upsample.adjoint, transposed, grid.size),
    ):
        plain = scores((1, 2, *size), torch.float32, seed)
        drawn = torch.rand(plain.shape, generator=torch.Generator().manual_seed(seed))
        x = torch.where(drawn < 0.15, special, plain)
        x = laid_out(torch.where(drawn < 0.03, torch.inf, x), layout, torch.float32)
        result, truth = launch(x, grid).cpu(), definition(x.cpu().double(), grid)
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(result), kind(truth))
        finite = truth.isfinite()
        event(f"some special, some not: {0 < finite.sum() < finite.numel()}")
        usual = launch(torch.where(x.isfinite(), x, 1.0), grid).cpu()
        assert torch.equal(result[finite], usual[finite])


@interpreter_only
@settings(max_examples=15)
@given(some_grids, batches, layouts, shares, seeds)
def test_reads_and_writes_only_its_tensors(grid, batch, layout, share, seed):
    for launch, size in ((upsample.forward, grid.in_size), (upsample.adjoint, grid.size)):
        x = laid_out(scores((*batch, *size), torch.float32, seed), layout, torch.float32)
        other = grid.size if size == grid.in_size else grid.in_size
        out = upsample.empty_like(x, (*batch, *other))
        allocate = mock.patch.object(upsample, "empty_like", lambda *_, out=out: out)
        with shared_out(share), allocate, watched(x, out):
            launch(x, grid)


@pytest.mark.parametrize("batch", [(0, 3), (2, 0)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nothing(batch, layout):
    grid = SamplingGrid.deconv((2, 3), 4)
    x = laid_out(torch.zeros(*batch, *grid.in_size), layout, torch.float32)
    grad = laid_out(torch.zeros(*batch, *grid.size), layout, torch.float32)
    assert upsample.forward(x, grid).shape == grad.shape
    assert upsample.adjoint(grad, grid).shape == x.shape


@given(any_grids())
def test_longest_window(grid):
    """No coarse value has more readers than the launcher allows for."""
    for axis in (0, 1):
        most = int((numerators(grid, axis) > 0).sum(axis=0).max())
        integers = [v[axis] for v in (grid.in_size, grid.size, grid.num, grid.off, grid.den)]
        bound = upsample.longest_window(*integers, grid.border == "clamp")
        assert most <= bound <= grid.size[axis]


def test_only_large_integers_are_wide():
    def wide(num, off, den):
        return upsample.is_wide(SamplingGrid((63, 47), (500, 375), num, off, den, "zero"))

    assert not wide((2, 2), (47, -25), (16, 64))
    assert not upsample.is_wide(SamplingGrid.resize((63, 47), (500, 375)))
    assert wide((2, 2), (0, 0), (16, 2**24 + 1))
    assert wide((2, 2**23), (0, 0), (16, 16))
    assert wide((2, 2), (0, -(2**31)), (16, 16))


def test_rows_that_no_int32_counts():
    grid = SamplingGrid.resize((1, 1), (2**20, 1))
    with pytest.raises(ValueError, match="rows"):
        upsample.forward_plan(torch.empty(2, 2**10, 2**20, 1, device="meta"), grid, False)
    with pytest.raises(ValueError, match="rows"):
        upsample.adjoint_plan(torch.empty(1, 2**11, 1, 2**20, device="meta"), grid, True)


@interpreter_only
def test_inputs_beyond_int32():
    grid = SamplingGrid((3, 3), (3, 3), (3, 5), (-2, -3), (4, 4), "zero")
    values = scores((3, 3, 3, 3), torch.bfloat16, 0)
    far, near = spread_out(values, torch.bfloat16), values.bfloat16()
    for launch in (upsample.forward, upsample.adjoint):
        with only_programs(range):
            result = launch(far, grid)
        assert torch.equal(result, launch(near, grid))


@interpreter_only
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("direction", ["forward", "adjoint"])
def test_maps_beyond_int32(direction, channels_last):
    """The first and the last program on maps of more than 2**31 elements: only their end is set."""
    grid = SamplingGrid.resize((256, 256), (512, 512))
    sizes, definition = (grid.in_size, grid.size), reference.upsample
    if direction == "adjoint":
        sizes, definition = sizes[::-1], transposed
    channels, dtype = 2**13 + 1, torch.float16

    def reserved_map(size):
        flat = reserved(channels * size[0] * size[1], dtype)
        if channels_last:
            return flat.view(1, *size, channels).permute(0, 3, 1, 2)
        return flat.view(1, channels, *size)

    x, out = (reserved_map(size) for size in sizes)
    small = torch.zeros(1, 9, *sizes[0], dtype=torch.float64)
    small[..., -4:, -4:] = torch.arange(9 * 4 * 4).view(9, 4, 4)
    x[:, -9:, -4:, -4:] = small[..., -4:, -4:].half()
    expected = definition(small, grid).half()  # exact: whole numbers and weights in 1/4
    allocate = mock.patch.object(upsample, "empty_like", lambda *_: out)
    with allocate, only_programs(lambda count: [0, count - 1]):
        getattr(upsample, direction)(x, grid)
    seen = slice(-9 if channels_last else -1, None)  # channels that the last program makes
    assert torch.equal(out[:, seen, -1, -1], expected[:, seen, -1, -1])
    assert expected[:, seen, -1, -1].all()
    assert not out[:, channels // 2].any()
