"""The crop_add kernels, in the interpreter, against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import kernel_tools as tools
from tests.op_tools import assert_accurate, worst

from fcnfast import reference  # isort: skip
from fcnfast.kernels import crop_add  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
shapes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 20))
margins = st.tuples(*[st.integers(0, 3)] * 4)  # around a window: above, below, left, right


@pytest.mark.parametrize("tile", [32, 1024])
@tools.examples(25)
@given(shapes, margins, tools.forms)
def test_results(tile, shape, margin, form):
    """Also that a value that is not finite stays where it is, in the window or outside."""
    dtype, layout, skip_layout, special, seed = form
    (above, below, left, right), (height, width) = margin, shape[2:]
    full = (*shape[:2], above + height + below, left + width + right)
    x = tools.laid_out(tools.scores(shape, dtype, seed, special), layout, dtype)
    skip = tools.laid_out(tools.scores(full, dtype, seed + 1, special), skip_layout, dtype)
    window = skip[..., above : above + height, left : left + width]
    with tools.guarded(x, window), tools.planned(crop_add, TILE=tile):
        result = crop_add.forward(x, skip, (above, left))
        gradient = crop_add.backward_skip(x, full, (above, left))
    assert tools.is_format_kept(result, layout)
    assert tools.is_format_kept(gradient, layout)
    x, skip = x.cpu(), skip.cpu().requires_grad_()
    truth = reference.crop_add(x.double(), skip.double(), (above, left)).detach()
    torchs = reference.crop_add(x, skip, (above, left))
    assert_accurate(result, truth, worst(torchs, truth), truth, x, window)
    assert torch.equal(
        tools.bits(gradient.cpu()), tools.bits(torch.autograd.grad(torchs, skip, x)[0])
    )
