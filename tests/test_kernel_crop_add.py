"""The crop_add kernels, in the interpreter, against the reference."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.kernel_tools import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    assert_accurate,
    assert_stays_within,
    bits,
    giving,
    guarded,
    interpreter_only,
    is_format_kept,
    laid_out,
    only_programs,
    planned,
    reserved,
    scores,
    spread_out,
    worst,
)

from fcnfast import reference  # isort: skip
from fcnfast.kernels import crop_add  # isort: skip

layouts, dtypes = st.sampled_from(LAYOUTS), st.sampled_from(DTYPES)
shapes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 20))
margins = st.tuples(*[st.integers(0, 3)] * 4)  # around a window: above, below, left, right
tiles = st.sampled_from([32, 1024])
seeds = st.integers(0, 2**31)


def around(shape: Sequence[int], margin: Sequence[int]) -> tuple[int, ...]:
    """The shape of the finer map, given that of the window and its margins."""
    n, c, h, w = shape
    above, below, left, right = margin
    return n, c, h + above + below, w + left + right


def placed(grad: torch.Tensor, shape: Sequence[int], offset: Sequence[int]) -> torch.Tensor:
    """The definition of the gradient: what autograd gives for the reference."""
    skip = torch.zeros(*shape, dtype=grad.dtype, requires_grad=True)
    result = reference.crop_add(torch.zeros_like(grad), skip, offset)
    return torch.autograd.grad(result, skip, grad)[0]


@settings(max_examples=50)
@given(shapes, margins, dtypes, layouts, layouts, tiles, seeds)
def test_forward(shape, margin, dtype, layout, skip_layout, tile, seed):
    event(f"one pixel: {shape[2:] == (1, 1)}")
    offset = margin[0], margin[2]
    x = laid_out(scores(shape, dtype, seed), layout, dtype)
    skip = laid_out(scores(around(shape, margin), dtype, seed + 1), skip_layout, dtype)
    with guarded(), planned(crop_add, TILE=tile):
        result = crop_add.forward(x, skip, offset)
    x, skip = x.cpu(), skip.cpu()
    truth = reference.crop_add(x.double(), skip.double(), offset)
    torchs = worst(reference.crop_add(x, skip, offset), truth)
    assert_accurate(result, truth, torchs, torch.stack([x.abs().max(), skip.abs().max()]))
    assert is_format_kept(result, layout)


@settings(max_examples=50)
@given(shapes, margins, dtypes, layouts, tiles, seeds)
def test_backward_skip(shape, margin, dtype, layout, tile, seed):
    offset, full = (margin[0], margin[2]), around(shape, margin)
    grad = laid_out(scores(shape, dtype, seed), layout, dtype)
    with guarded(), planned(crop_add, TILE=tile):
        result = crop_add.backward_skip(grad, full, offset)
    assert torch.equal(bits(result.cpu()), bits(placed(grad.cpu(), full, offset)))
    assert is_format_kept(result, layout)


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_special_values_stay_where_they_are(special):
    x, skip = scores((1, 2, 3, 4), torch.float32, 0), scores((1, 2, 5, 6), torch.float32, 1)
    x[0, 1, 2, 3] = skip[0, 0, 1, 1] = skip[0, 1, 0, 0] = special  # the last: not in the window
    x, skip = x.float(), skip.float()
    result = crop_add.forward(x.to(DEVICE), skip.to(DEVICE), (1, 1)).cpu()
    torch.testing.assert_close(result, reference.crop_add(x, skip, (1, 1)), equal_nan=True)
    grad = crop_add.backward_skip(x.to(DEVICE), skip.shape, (1, 1)).cpu()
    assert grad.isfinite().logical_not().sum() == 1


@interpreter_only
@settings(max_examples=20)
@given(shapes, margins, layouts, layouts, seeds)
def test_reads_and_writes_only_its_tensors(shape, margin, layout, skip_layout, seed):
    dtype, full, offset = torch.float32, around(shape, margin), (margin[0], margin[2])
    x = laid_out(scores(shape, dtype, seed), layout, dtype)
    skip = laid_out(scores(full, dtype, seed), skip_layout, dtype)
    window = skip[..., offset[0] :, offset[1] :][..., : shape[2], : shape[3]]
    assert_stays_within(lambda: crop_add.forward(x, skip, offset), x, window)
    assert_stays_within(lambda: crop_add.backward_skip(x, full, offset), x)


@interpreter_only
def test_inputs_beyond_int32():
    values = scores((3, 3, 3, 3), torch.bfloat16, 0)
    x, skip = spread_out(values, torch.bfloat16), spread_out(values.flip(3), torch.bfloat16)
    small = values.bfloat16()
    # Copying the arguments onto themselves, as the interpreter does, would touch all their pages.
    with only_programs(range):
        result = crop_add.forward(x[..., :2, :2], skip, (1, 1))
        grad = crop_add.backward_skip(x, (3, 3, 4, 4), (1, 0))
    assert torch.equal(result, crop_add.forward(small[..., :2, :2], small.flip(3), (1, 1)))
    assert torch.equal(grad, crop_add.backward_skip(small, (3, 3, 4, 4), (1, 0)))


@interpreter_only
@pytest.mark.parametrize("channels_last", [False, True])
def test_results_beyond_int32(channels_last):
    """The first and the last program of a result of more than 2**31 elements."""
    size, channels, dtype = 512, 2**13 + 1, torch.bfloat16
    shape = (1, channels, size, size)
    out = reserved(channels * size * size, dtype)
    if channels_last:
        x = scores((1, size, channels), dtype, 0).to(dtype).expand(size, -1, -1)
        x, result = x.permute(2, 0, 1)[None], out.view(size, size, channels).permute(2, 0, 1)[None]
    else:
        x = scores((1, 1, size, size), dtype, 0).to(dtype).expand(shape)
        result = out.view(shape)
    ends = (0, slice(-9, None), -1, -1) if channels_last else (0, -1, -1, slice(-9, None))
    assert crop_add.is_channels_last(x) == channels_last
    with giving(result):
        for launch, expected in (
            (lambda: crop_add.forward(x, x, (0, 0)), x[ends] + x[ends]),
            (lambda: crop_add.backward_skip(x, shape, (0, 0)), x[ends]),
        ):
            with only_programs(lambda count: [0, count - 1]) as ran:
                launch()
            assert ran[1] > 2**20
            torch.testing.assert_close(result[ends], expected, atol=0.1, rtol=0)
            assert not out[len(out) // 2 :][:1024].any()
