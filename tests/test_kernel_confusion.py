"""The confusion kernel, in the interpreter, against counts of the argmax kernels' labels."""

import math

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from tests import kernel_tools as tools
from tests.op_tools import LABELS, counted, some_grids

from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import argmax, confusion, winners  # isort: skip

# Lanes and their rows, outputs of a patch, and counts that a program adds up by itself.
shares = st.sampled_from([(32, 4, 8, 8), (32, 4, 8, 2), (4, 2, 2, 0), (8, 1, 4, 1)])
ignored = st.sampled_from((255, 255, 0, 1, -100, -1, 2**15, 2**40, -(2**31)))


def shared_out(share):
    names = ("LANES", "TILE_ROWS", "PATCH", "ROUNDS")
    return tools.planned(winners, confusion, **dict(zip(names, share, strict=True)))


def truths(shape, dtype, channels, layout, blobs, seed):
    """Labels of the classes, of the values around them, and of others that `dtype` holds."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.iinfo(dtype)
    values = [*range(channels + 1), 255, -1, -100, 2**15, 2**40, 2**32 + 1, kind.min, kind.max]
    values = torch.tensor([v for v in values if kind.min <= v <= kind.max])
    drawn = torch.randint(0, channels, shape, generator=generator)
    odd = torch.rand(shape, generator=generator) < 0.3
    drawn = torch.where(odd, torch.randint(len(values), shape, generator=generator), drawn)
    truth = values[drawn].to(dtype)
    if blobs:
        truth[:, :, : shape[2] // 2] = truth[:, :1, :1]
    return tools.laid_out(truth[:, None], layout, dtype)[:, 0]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
@tools.examples(25)
@given(st.data())
def test_counts(data):
    grid, dtype, share = data.draw(some_grids), data.draw(tools.dtypes), data.draw(shares)
    images, channels = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 5))
    seed, ignore_index = data.draw(tools.seeds), data.draw(ignored)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(images, channels, *grid.in_size, generator=generator).to(dtype).double()
    if data.draw(st.booleans()):
        values[torch.rand(values.shape, generator=generator) < 0.1] = math.nan
    x = tools.laid_out(values, data.draw(tools.layouts), dtype)
    layout, truth_dtype = data.draw(tools.layouts), data.draw(st.sampled_from(LABELS))
    shape, blobs = (images, *grid.size), data.draw(st.booleans())
    truth = truths(shape, truth_dtype, channels, layout, blobs, seed)
    others = data.draw(st.booleans())
    counts = torch.randint(2**40, (1, 1, channels + others, channels), generator=generator)
    out = tools.laid_out(counts, data.draw(tools.layouts), torch.int64)[0, 0]
    before, whole = out.clone(), out._base.clone()
    with shared_out(share), tools.guarded(x, truth):
        assert confusion.add(out, x, truth, grid, ignore_index) is None
    found, _ = argmax.forward(x, grid, torch.int64, False)
    expected = counted(found, truth, channels, ignore_index)[: channels + others]
    event(f"others that are not ignored: {bool(others and expected[-1].any())}")
    event(f"some ignored: {ignore_index in truth.flatten().tolist()}")
    assert torch.equal(out.cpu() - before.cpu(), expected)
    out.copy_(before)
    assert torch.equal(out._base, whole)  # and nothing around it has changed


@pytest.mark.parametrize(
    ("value", "dtype", "ignore_index"),
    [
        (156, torch.uint8, -100),
        (255, torch.uint8, -1),
        (-1, torch.int16, 2**16 - 1),
        (2**32 + 1, torch.int64, 1),
        (-(2**31), torch.int32, 2**31),
    ],
)
def test_labels_do_not_alias(value, dtype, ignore_index):
    """-100 and 156 are the same bits in uint8, and not the same labels."""
    x = torch.zeros(1, 3, 2, 2, device=tools.DEVICE)
    out = torch.zeros(4, 3, dtype=torch.int64, device=tools.DEVICE)
    truth = torch.full((1, 4, 6), value, dtype=dtype, device=tools.DEVICE)
    confusion.add(out, x, truth, SamplingGrid.resize((2, 2), (4, 6)), ignore_index)
    assert out.tolist() == [[0, 0, 0]] * 3 + [[24, 0, 0]]


def test_many_classes():
    classes, grid = 70, SamplingGrid.resize((2, 2), (4, 5))
    x = torch.randn(1, classes, 2, 2, generator=torch.Generator().manual_seed(0)).to(tools.DEVICE)
    truth = truths((1, 4, 5), torch.int32, classes, "contiguous", False, 1)
    out = torch.zeros(classes + 1, classes, dtype=torch.int64, device=tools.DEVICE)
    confusion.add(out, x, truth, grid, 0)
    found, _ = argmax.forward(x, grid, torch.int32, False)
    assert torch.equal(out.cpu(), counted(found, truth, classes, 0))
