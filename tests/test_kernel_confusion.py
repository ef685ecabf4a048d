"""The confusion kernel, in the interpreter, against counts of the argmax kernels' labels."""

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
    assert_stays_within,
    interpreter_only,
    laid_out,
    only_programs,
    planned,
    reserved,
    spread_out,
)
from tests.op_tools import LABELS, grids

from fcnfast import reference  # isort: skip
from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import argmax, confusion, winners  # isort: skip

some_grids = st.one_of(grids(), any_grids())
layouts, dtypes, label_dtypes = (st.sampled_from(v) for v in (LAYOUTS, DTYPES, LABELS))
seeds = st.integers(0, 2**31)
# Lanes and their rows, outputs of a patch, and counts that a program adds up by itself.
shares = st.sampled_from([(32, 4, 8, 8), (32, 4, 8, 2), (4, 2, 2, 0), (8, 1, 4, 1)])
ignored = st.sampled_from((255, 255, 0, 1, -100, -1, 2**15, 2**40, -(2**31)))


def shared_out(share):
    names = ("LANES", "TILE_ROWS", "PATCH", "ROUNDS")
    return planned(winners, confusion, **dict(zip(names, share, strict=True)))


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
    if layout == "contiguous":
        return truth.to(DEVICE)
    if layout == "transposed":
        return truth.mT.contiguous().to(DEVICE).mT
    if layout == "expanded":
        return truth[:1, :, :1].to(DEVICE).expand(shape)
    wide = torch.full((shape[0] + 1, shape[1] + 3, 2 * shape[2]), channels - 1, dtype=dtype)
    wide[1:, 1:-2, ::2] = truth
    return wide.to(DEVICE)[1:, 1:-2, ::2]


def counted(found, truth, channels, ignore_index, others):
    """Pixels of each (truth, label), by the definition."""
    result = torch.zeros(channels + others, channels, dtype=torch.int64)
    pairs = zip(truth.flatten().tolist(), found.flatten().tolist(), strict=True)
    for true, label in pairs:
        if true == ignore_index:
            continue
        if 0 <= true < channels:
            result[true, label] += 1
        elif others:
            result[channels, label] += 1
    return result


def counts_like(channels, others, layout, seed):
    """Counts to add to, among others that must stay: the view, and all of them."""
    generator = torch.Generator().manual_seed(seed)
    rows = channels + others
    store = torch.randint(2**40, (rows + 2, 2 * channels + 3), generator=generator).to(DEVICE)
    view = store[1:-1, 1 : 1 + channels]
    if layout == "transposed":
        store = store.mT.contiguous()
        view = store.mT[1:-1, 1 : 1 + channels]
    elif layout == "sliced":
        view = store[1:-1, 1 : 1 + 2 * channels : 2]
    return view, store


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
@settings(max_examples=40)
@given(st.data())
def test_counts(data):
    grid, dtype, share = data.draw(some_grids), data.draw(dtypes), data.draw(shares)
    images, channels = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 5))
    seed, ignore_index = data.draw(seeds), data.draw(ignored)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(images, channels, *grid.in_size, generator=generator).to(dtype).double()
    if data.draw(st.booleans()):
        values[torch.rand(values.shape, generator=generator) < 0.1] = math.nan
    x = laid_out(values, data.draw(layouts), dtype)
    layout = data.draw(st.sampled_from(("contiguous", "transposed", "sliced", "expanded")))
    truth_dtype, blobs = data.draw(label_dtypes), data.draw(st.booleans())
    truth = truths((images, *grid.size), truth_dtype, channels, layout, blobs, seed)
    others = data.draw(st.booleans())
    out, store = counts_like(channels, others, data.draw(layouts), seed)
    before, whole = out.clone(), store.clone()
    with shared_out(share):
        assert confusion.add(out, x, truth, grid, ignore_index) is None
    found, _ = argmax.forward(x, grid, torch.int64, False)
    expected = counted(found, truth, channels, ignore_index, others)
    event(f"others that are not ignored: {bool(others and expected[-1].any())}")
    event(f"some ignored: {ignore_index in truth.flatten().tolist()}")
    assert torch.equal(out.cpu() - before.cpu(), expected)
    out.copy_(before)
    assert torch.equal(store, whole)


@settings(max_examples=6)
@given(some_grids, seeds)
def test_labels_are_those_of_the_definition(grid, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, *grid.in_size, generator=generator)
    full = reference.upsample(x.double(), grid)
    gap = full.topk(2, dim=1).values.diff(dim=1).abs()[:, 0]
    truth = torch.randint(0, 4, gap.shape, generator=generator)
    truth[gap < 1e-5] = 255  # ties, or nearly so
    out = torch.zeros(4, 4, dtype=torch.int64, device=DEVICE)
    confusion.add(out, x.to(DEVICE), truth.to(DEVICE), grid, 255)
    assert torch.equal(out.cpu(), counted(full.argmax(1), truth, 4, 255, 0))


def test_uint8_does_not_alias():
    """-100 and 156, 255 and -1 are the same bits, and not the same labels."""
    grid = SamplingGrid.resize((2, 2), (4, 6))
    x = torch.zeros(1, 3, 2, 2, device=DEVICE)
    for value, dtype, ignore_index in (
        (156, torch.uint8, -100),
        (255, torch.uint8, -1),
        (-1, torch.int16, 2**16 - 1),
        (2**32 + 1, torch.int64, 1),
        (-(2**31), torch.int32, 2**31),
    ):
        out = torch.zeros(4, 3, dtype=torch.int64, device=DEVICE)
        truth = torch.full((1, 4, 6), value, dtype=dtype, device=DEVICE)
        confusion.add(out, x, truth, grid, ignore_index)
        assert out.tolist() == [[0, 0, 0]] * 3 + [[24, 0, 0]]
        confusion.add(out[:3], x, truth, grid, ignore_index)
        assert not out[:3].any()


@pytest.mark.parametrize("classes", [1, 70])
def test_many_classes(classes):
    grid = SamplingGrid.resize((2, 2), (4, 5))
    x = torch.randn(1, classes, 2, 2, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    truth = truths((1, 4, 5), torch.int32, classes, "contiguous", False, 1)
    out = torch.zeros(classes + 1, classes, dtype=torch.int64, device=DEVICE)
    confusion.add(out, x, truth, grid, 0)
    found, _ = argmax.forward(x, grid, torch.int32, False)
    assert torch.equal(out.cpu(), counted(found, truth, classes, 0, 1))


@interpreter_only
@settings(max_examples=5)
@given(some_grids, layouts, label_dtypes, shares, seeds)
def test_reads_only_its_tensors(grid, layout, dtype, share, seed):
    values = torch.randn(2, 3, *grid.in_size, generator=torch.Generator().manual_seed(seed))
    values[:, :, :1] = math.nan
    x = laid_out(values, layout, torch.float32)
    truth = truths((2, *grid.size), dtype, 3, "sliced", True, seed)
    out = torch.zeros(4, 3, dtype=torch.int64)
    with shared_out(share):
        assert_stays_within(lambda: confusion.add(out, x, truth, grid, 255), x, truth, out)
    assert out.sum() % 2 == 0


@interpreter_only
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_inputs_beyond_int32():
    grid = SamplingGrid((3, 3), (3, 3), (3, 2), (-2, -3), (4, 4), "clamp")
    values = torch.randn(
        3, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    values = values.bfloat16().double()
    values[1, 2, 1, 1] = math.nan
    near, truth = values.bfloat16(), truths((3, 3, 3), torch.uint8, 3, "contiguous", False, 0)
    far = reserved(2**33 + 2**10, torch.uint8).as_strided(
        (3, 3, 3), (2**31 + 5, 2**30 + 7, 2**30 - 9)
    )
    far.copy_(truth)
    outs = [torch.zeros(4, 3, dtype=torch.int64) for _ in range(2)]
    with only_programs(range):
        confusion.add(outs[0], spread_out(values, torch.bfloat16), far, grid, 255)
    confusion.add(outs[1], near, truth, grid, 255)
    assert torch.equal(*outs)
    assert outs[0].sum() == (truth != 255).sum()
