"""The upsample kernels, in the interpreter, against the reference and against exact integers."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.kernel_tools import (
    DTYPES,
    LAYOUTS,
    any_grids,
    assert_accurate,
    assert_stays_within,
    bits,
    giving,
    guarded,
    interpreter_only,
    is_format_kept,
    laid_out,
    numerators,
    only_programs,
    planned,
    reserved,
    scores,
    spread_out,
    worst,
    written_once,
)
from tests.op_tools import grids

from fcnfast import reference  # isort: skip
from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import upsample, upsample_backward  # isort: skip

some_grids = st.one_of(grids(), any_grids())
batches = st.tuples(st.integers(1, 2), st.integers(1, 3))
layouts, dtypes = st.sampled_from(LAYOUTS), st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31)
# Values of a block, channels if not all, programs to aim at: results are made in few or many parts.
shares = st.sampled_from([(1024, 32, 1), (1024, 32, 2048), (32, 2, 1), (32, 2, 2048), (64, 1, 64)])
margins = st.tuples(*[st.integers(0, 3)] * 4)  # around a window: above, below, left, right
MODULES = upsample, upsample_backward


@contextmanager
def shared_out(share):
    tile, channels, programs = share
    with planned(*MODULES, TILE=tile, PROGRAMS=programs, CHANNELS=channels):
        yield


def transposed(grad, grid):
    """The definition of the adjoint: what autograd gives for the reference."""
    x = torch.zeros(*grad.shape[:2], *grid.in_size, dtype=grad.dtype, requires_grad=True)
    return torch.autograd.grad(reference.upsample(x, grid), x, grad)[0]


def check(result, x, grid, definition, plus=None):
    """Accuracy, given the input `x` (and what is to be added) on the CPU.

    Plain torch, too, computes in float32 and rounds half precision once. Its largest error is
    taken over `x` and maps like it, hundreds of values: few may come out right by luck.
    """
    added = 0 if plus is None else plus

    def truth(x):
        return definition(x.double(), grid) + (0 if plus is None else plus.double())

    def plain(x):
        return (definition(x.float(), grid) + added).to(x.dtype)

    more = max(5, 400 // result.numel())
    like = [x, *(scores(x.shape, x.dtype, seed).to(x.dtype) for seed in range(more))]
    torchs = max(worst(plain(other), truth(other)) for other in like)
    largest = x if plus is None else torch.stack([x.abs().max(), plus.abs().max()])
    assert_accurate(result, truth(x), torchs, largest)


@settings(max_examples=40)
@given(some_grids, batches, dtypes, layouts, shares, seeds)
def test_forward(grid, batch, dtype, layout, share, seed):
    x = laid_out(scores((*batch, *grid.in_size), dtype, seed), layout, dtype)
    with guarded(), shared_out(share):
        result = upsample.forward(x, grid)
    check(result, x.cpu(), grid, reference.upsample)
    assert is_format_kept(result, layout)


@settings(max_examples=30)
@given(some_grids, batches, margins, dtypes, layouts, layouts, shares, seeds)
def test_forward_add(grid, batch, margin, dtype, layout, skip_layout, share, seed):
    x = laid_out(scores((*batch, *grid.in_size), dtype, seed), layout, dtype)
    (above, below, left, right), (height, width) = margin, grid.size
    full = (*batch, above + height + below, left + width + right)
    skip = laid_out(scores(full, dtype, seed + 1), skip_layout, dtype)
    with guarded(), shared_out(share):
        result = upsample.forward_add(x, skip, grid, (above, left))
    window = skip.cpu()[..., above : above + height, left : left + width]
    check(result, x.cpu(), grid, reference.upsample, plus=window)
    assert is_format_kept(result, layout)


@settings(max_examples=40)
@given(some_grids, batches, dtypes, layouts, shares, seeds)
def test_adjoint(grid, batch, dtype, layout, share, seed):
    unread = [~(numerators(grid, axis) > 0).any(axis=0).astype(bool) for axis in (0, 1)]
    event(f"coarse values that no pixel reads: {any(axis.any() for axis in unread)}")
    grad = laid_out(scores((*batch, *grid.size), dtype, seed), layout, dtype)
    with guarded(), shared_out(share):
        result = upsample.adjoint(grad, grid)
    check(result, grad.cpu(), grid, transposed)
    assert is_format_kept(result, layout)
    for axis, rows in zip((2, 3), unread, strict=True):
        assert not result.cpu().index_select(axis, torch.tensor(rows).nonzero()[:, 0]).any()


@pytest.mark.parametrize("layout", ["sliced", "channels_last"])
@pytest.mark.parametrize("off", [-20, 0])
def test_steps_far_apart_beyond_a_border_of_zeros(layout, off):
    """Taps too sparse for a segment of the row; one lies just before the map, or just behind it."""
    grid = SamplingGrid((5, 40), (3, 24), (1, 12), (-2, off), (2, 5), "zero")
    x = laid_out(scores((2, 3, 5, 40), torch.float32, 0), layout, torch.float32)
    with guarded(), shared_out((64, 4, 2048)):
        result = upsample.forward(x, grid)
    check(result, x.cpu(), grid, reference.upsample)


def launches(grid, skip):
    """The launchers as functions of one map, and the size of that map."""
    return (
        (lambda x: upsample.forward(x, grid), grid.in_size),
        (lambda x: upsample.forward_add(x, skip[: len(x)], grid, (1, 2)), grid.in_size),
        (lambda x: upsample.adjoint(x, grid), grid.size),
    )


def skip_for(grid, batch, layout, dtype, seed):
    """A finer map, with a margin of 1 row and 2 columns around the window."""
    shape = (*batch, grid.size[0] + 2, grid.size[1] + 4)
    return laid_out(scores(shape, dtype, seed), layout, dtype)


@settings(max_examples=6)
@given(some_grids, dtypes, layouts, seeds)
def test_same_bits_in_any_run_and_batch(grid, dtype, layout, seed):
    skip = skip_for(grid, (1, 2), "expanded", dtype, seed).expand(2, -1, -1, -1)
    for launch, size in launches(grid, skip):
        x = laid_out(scores((2, 2, *size), dtype, seed), layout, dtype)
        first, second = launch(x), launch(x)
        assert torch.equal(bits(first), bits(second))
        with shared_out((1024, 32, 1)):  # the longest strips
            assert torch.equal(bits(first[1:]), bits(launch(x[1:])))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
@settings(max_examples=12)
@given(some_grids, layouts, shares, seeds, st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_special_values_reach_their_readers_only(grid, layout, share, seed, special):
    """A tap of weight 0 is not read: elsewhere the result is as if the value were another."""
    skip = skip_for(grid, (1, 2), layout, torch.float32, seed)
    window = skip.cpu()[..., 1 : 1 + grid.size[0], 2 : 2 + grid.size[1]].double()
    definitions = (
        reference.upsample,
        lambda x, grid: reference.upsample(x, grid) + window,
        transposed,
    )
    for (launch, size), definition in zip(launches(grid, skip), definitions, strict=True):
        plain = scores((1, 2, *size), torch.float32, seed)
        drawn = torch.rand(plain.shape, generator=torch.Generator().manual_seed(seed))
        x = torch.where(drawn < 0.15, special, plain)
        x = laid_out(torch.where(drawn < 0.03, torch.inf, x), layout, torch.float32)
        with shared_out(share):
            result, usual = launch(x).cpu(), launch(torch.where(x.isfinite(), x, 1.0)).cpu()
        truth = definition(x.cpu().double(), grid)
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(result), kind(truth))
        finite = truth.isfinite()
        event(f"some special, some not: {0 < finite.sum() < finite.numel()}")
        assert torch.equal(result[finite], usual[finite])


@interpreter_only
@settings(max_examples=8)
@given(some_grids, batches, layouts, shares, seeds)
def test_reads_and_writes_only_its_tensors(grid, batch, layout, share, seed):
    skip = skip_for(grid, batch, layout, torch.float32, seed)
    window = skip[..., 1 : 1 + grid.size[0], 2 : 2 + grid.size[1]]
    for launch, size in launches(grid, skip):
        x = laid_out(scores((*batch, *size), torch.float32, seed), layout, torch.float32)
        with shared_out(share):
            assert_stays_within(lambda launch=launch, x=x: launch(x), x, window)


@interpreter_only
@settings(max_examples=12)
@given(some_grids, batches, layouts, shares, seeds)
def test_writes_each_value_once(grid, batch, layout, share, seed):
    skip = skip_for(grid, batch, layout, torch.float32, seed)
    for launch, size in launches(grid, skip):
        x = laid_out(scores((*batch, *size), torch.float32, seed), layout, torch.float32)
        results = []
        with shared_out(share), written_once(results, again=True):
            results.append(launch(x))


@interpreter_only
@pytest.mark.parametrize("layout", ["channels_last", "channels_last sliced"])
@pytest.mark.parametrize("channels", [3, 5])
def test_groups_that_do_not_divide_the_channels(channels, layout):
    """A program that takes the last channels of a group reads no others."""
    grid = SamplingGrid.resize((3, 9), (6, 18))
    x = laid_out(scores((1, channels, *grid.size), torch.float32, 0), layout, torch.float32)
    with shared_out((32, 2, 1)):
        result = assert_stays_within(lambda: upsample.adjoint(x, grid), x)
    check(result, x, grid, transposed)


@given(any_grids(), st.integers(1, 6))
def test_longest_window(grid, columns):
    """No neighboring coarse values have more readers than the launcher allows for."""
    for axis in (0, 1):
        read = numerators(grid, axis) > 0
        most = max(
            int(read[:, first : first + columns].any(axis=1).astype(bool).sum())
            for first in range(0, grid.in_size[axis], columns)
        )
        integers = [v[axis] for v in (grid.in_size, grid.size, grid.num, grid.off, grid.den)]
        bound = upsample_backward.longest_window(*integers, grid.border == "clamp", columns)
        assert most <= bound <= grid.size[axis]


@interpreter_only
def test_inputs_beyond_int32():
    grid = SamplingGrid((3, 3), (3, 3), (3, 5), (-2, -3), (4, 4), "zero")
    values = scores((3, 3, 3, 3), torch.bfloat16, 0)
    far, near = spread_out(values, torch.bfloat16), values.bfloat16()
    with only_programs(range):
        up, down = upsample.forward(far, grid), upsample.adjoint(far, grid)
    assert torch.equal(up, upsample.forward(near, grid))
    assert torch.equal(down, upsample.adjoint(near, grid))
    grid = SamplingGrid((3, 3), (2, 2), (3, 5), (-2, -3), (4, 4), "zero")
    with only_programs(range):
        up = upsample.forward_add(far, far, grid, (1, 1))
    assert torch.equal(up, upsample.forward_add(near, near, grid, (1, 1)))


@interpreter_only
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("direction", ["forward", "adjoint"])
def test_maps_beyond_int32(direction, channels_last):
    """The first and the last program on maps of more than 2**31 elements: only their end is set."""
    grid = SamplingGrid.resize((256, 256), (512, 512))
    sizes, definition = (grid.in_size, grid.size), reference.upsample
    if direction == "adjoint":
        sizes, definition = sizes[::-1], transposed
    channels, dtype = 2**13 + 9, torch.float16

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
    with giving(out), only_programs(lambda count: [0, count - 1]):
        getattr(upsample, direction)(x, grid)
    seen = slice(-9 if channels_last else -1, None)  # channels that the last program makes
    assert torch.equal(out[:, seen, -1, -1], expected[:, seen, -1, -1])
    assert expected[:, seen, -1, -1].all()
    assert not out[:, channels // 2].any()
