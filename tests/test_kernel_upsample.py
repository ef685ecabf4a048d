"""The upsample kernels, in the interpreter, against the reference in float64."""

from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from tests import kernel_tools as tools
from tests.op_tools import assert_accurate, some_grids, worst

from fcnfast import reference  # isort: skip
from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import upsample, upsample_backward  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
KINDS = pytest.mark.parametrize("kind", ("forward", "forward_add", "adjoint"))
batches = st.tuples(st.integers(1, 2), st.integers(1, 3))
# Values of a block, channels if not all, programs to aim at: results are made in few or many parts.
shares = st.sampled_from([(1024, 32, 1), (1024, 32, 2048), (32, 2, 1), (32, 2, 2048), (64, 1, 64)])
margins = st.tuples(*[st.integers(0, 3)] * 4)  # around a window: above, below, left, right


def shared_out(share) -> AbstractContextManager[None]:
    constants = dict(zip(("TILE", "CHANNELS", "PROGRAMS"), share, strict=True))
    return tools.planned(upsample, upsample_backward, **constants)


def run(kind, x, grid, skip, offset):
    if kind == "forward_add":
        return upsample.forward_add(x, skip, grid, offset)
    return getattr(upsample, kind)(x, grid)


def defined(kind, x, grid, window):
    """The same by the definition: for the adjoint what autograd gives for the reference."""
    if kind == "adjoint":
        leaf = torch.zeros(*x.shape[:2], *grid.in_size, dtype=x.dtype, requires_grad=True)
        return torch.autograd.grad(reference.upsample(leaf, grid), leaf, x)[0]
    full = reference.upsample(x, grid)
    return full + window.to(x.dtype) if kind == "forward_add" else full


def assert_right(kind, result, x, grid, window):
    """Accuracy, given the map `x`.

    Plain torch, too, computes in float32 and rounds half precision once. Its largest error is
    taken over `x` and maps like it, hundreds of values: few may come out right by luck.
    """
    x, window = x.cpu(), window.cpu()
    times = max(5, 400 // result.numel())
    more = tools.scores((times * len(x), *x.shape[1:]), x.dtype, 0).to(x.dtype)
    like, windows = torch.cat([x, more]), window.repeat(times + 1, 1, 1, 1)
    truth = defined(kind, like.double(), grid, windows)
    torchs = defined(kind, like.float(), grid, windows).to(x.dtype)
    inputs = (x, window) if kind == "forward_add" else (x,)
    own = truth[: len(x)]
    assert_accurate(result, own, worst(torchs, truth), own, *inputs)


@KINDS
@tools.examples(25)
@given(some_grids, batches, margins, tools.forms, shares)
def test_results(kind, grid, batch, margin, form, share):
    """A value that is not finite reaches its readers only: a tap of weight 0 is not read."""
    dtype, layout, skip_layout, special, seed = form
    size = grid.size if kind == "adjoint" else grid.in_size
    x = tools.laid_out(tools.scores((*batch, *size), dtype, seed, special), layout, dtype)
    (above, below, left, right), (height, width) = margin, grid.size
    full = (*batch, above + height + below, left + width + right)
    skip = tools.laid_out(tools.scores(full, dtype, seed + 1), skip_layout, dtype)
    window = skip[..., above : above + height, left : left + width]
    with tools.guarded(x, window), shared_out(share):
        result = run(kind, x, grid, skip, (above, left))
    if len(x) > 1:  # images stand alone, whatever the shares
        alone = run(kind, x[1:], grid, skip[1:], (above, left))
        assert worst(alone, result[1:].cpu()) == 0
    event(f"some special, some not: {0 < result.isfinite().sum() < result.numel()}")
    assert_right(kind, result, x, grid, window)
    assert tools.is_format_kept(result, layout)
    if kind == "adjoint":
        unread = defined(kind, torch.ones(*batch, *size), grid, None) == 0
        event(f"coarse values that no pixel reads: {bool(unread.any())}")
        assert not result.cpu()[unread].any()


@pytest.mark.parametrize(("off", "layout"), [(-20, "sliced"), (0, "channels_last")])
def test_taps_too_sparse_for_a_segment_of_the_row(off, layout):
    """One lies just before the map, or just behind it."""
    grid = SamplingGrid((5, 40), (3, 24), (1, 12), (-2, off), (2, 5), "zero")
    x = tools.laid_out(tools.scores((2, 3, 5, 40), torch.float32, 0), layout, torch.float32)
    with tools.guarded(x), shared_out((64, 4, 2048)):
        result = upsample.forward(x, grid)
    assert_right("forward", result, x, grid, torch.zeros(1, 1, 1, 1))
