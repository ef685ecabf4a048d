"""What the launchers refuse, that they make nothing of nothing, and maps that no int32 spans."""

from contextlib import contextmanager
from functools import partial
from inspect import signature
from unittest import mock

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests import kernel_tools as tools

from bench import shares  # isort: skip
from bench.cases import Case  # isort: skip
from bench.measure import Settings  # isort: skip
from fcnfast import reference  # isort: skip
from fcnfast.errors import InputError  # isort: skip
from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import (  # isort: skip
    argmax,
    confusion,
    crop_add,
    cross_entropy,
    cross_entropy_corners,
    deconv,
    deconv_backward,
    upsample,
    upsample_backward,
    winners,
)

F32, BF16, U8 = torch.float32, torch.bfloat16, torch.uint8
IN, SIZE = (2, 3), (4, 6)
NEAR = SamplingGrid.resize(IN, SIZE)
GRID = SamplingGrid((3, 3), (3, 3), (3, 2), (-2, -3), (4, 4), "zero")
SMALL = SamplingGrid((3, 3), (2, 2), (3, 5), (-2, -3), (4, 4), "zero")
FAR = SamplingGrid((3, 3), (3, 3), (1, 1), (0, 0), (2**24 + 1, 2), "zero")  # remainders of 25 bits
X, Y = (tools.scores((3, 3, 3, 3), BF16, seed).bfloat16() for seed in (0, 1))
SPECIAL = X.clone()
SPECIAL[1, 2, 1, 1] = torch.nan
LABELS = (torch.arange(27).view(3, 3, 3) * 7 % 4).byte()
SURE = LABELS.clamp(max=2)
WEIGHT = tools.scores((3, 1, 4, 4), BF16, 2).bfloat16()
AT, HALF = (2, (1, 2)), torch.tensor(0.5)


def counts(x, target, grid=GRID):
    out = torch.zeros(4, 3, dtype=torch.int64)
    confusion.add(out, x, target, grid, 255)
    return out


def loss(reduction, x, target, grid=GRID):
    return cross_entropy.forward(x, target, None, grid, 255, reduction, 0.0, reduction != "none")


def pixel_gradient(x, target, rate, grid=GRID):
    nothing = torch.empty(0)
    return cross_entropy.per_pixel_gradient(x, target, None, grid, 255, 0.0, nothing, rate)


# Launchers of the arguments that follow, some also at another grid.
LAUNCHERS = {
    "upsample": (lambda x, grid=GRID: upsample.forward(x, grid), X),
    "upsample.adjoint": (lambda x, grid=GRID: upsample.adjoint(x, grid), X),
    "upsample.add": (lambda x, y, grid=SMALL: upsample.forward_add(x, y, grid, (1, 1)), X, Y),
    "argmax": (lambda x, grid=GRID: argmax.forward(x, grid, U8, True), SPECIAL),
    "confusion": (counts, SPECIAL, LABELS),
    "loss": (partial(loss, "sum"), X, SURE),
    "losses": (partial(loss, "none"), X, SURE),
    "losses' gradient": (pixel_gradient, X, SURE, Y[:, 0].float()),
    "scaled": (lambda x: cross_entropy.scaled(x, HALF, HALF, x.dtype), X.float()),
    "crop_add": (lambda x, y: crop_add.forward(x[..., :2, :2], y, (1, 1)), X, Y),
    "crop_add.skip": (lambda x: crop_add.backward_skip(x, (*x.shape[:2], 4, 4), (1, 0)), X),
    "deconv": (lambda x: deconv.forward(x, WEIGHT, *AT, (3, 3)), X),
    "deconv.input_gradient": (lambda x: deconv.input_gradient(x, WEIGHT, *AT, (3, 3)), X),
    "deconv.weight_gradient": (lambda x, y: deconv.weight_gradient(x, y, *AT, 4, BF16), X, Y),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_what_the_kernels_do_not_compute_is_refused(name):
    call, *inputs = LAUNCHERS[name]
    with pytest.raises(ValueError, match="float64 maps need the torch backend"):
        call(*(x.double() if x.is_floating_point() else x for x in inputs))
    if "grid" in signature(call).parameters:
        with pytest.raises(ValueError, match="positions leave int32"):
            call(*inputs, grid=FAR)


def meta(*shape, dtype=F32):
    return torch.empty(shape, dtype=dtype, device="meta")


COUNTS = meta(2**17, 2**16, dtype=torch.int64)
LONG = (2, 2**10, 2**20, 1)
TALL, FLAT = SamplingGrid.resize((1, 1), (2**20, 1)), SamplingGrid.resize((2**20, 1), (1, 1))
WIDE = SamplingGrid.resize((2, 2), (2**16, 2**16))
MANY = SamplingGrid.resize((2**16, 2**16), (2**16, 2**16))


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (crop_add.plan, (LONG, F32, False), "rows"),
        (crop_add.plan, ((1, 2**11, 1, 2**20), F32, True), "rows"),
        (upsample.plan, (LONG, F32, TALL, False), "rows"),
        (upsample_backward.plan, ((2, 2**10, 1, 1), TALL, False, 1), "rows"),
        (upsample_backward.plan, (LONG, FLAT, False, 1), "rows"),
        (deconv.plan, (LONG, F32, False, 4, 2), "rows"),
        (deconv_backward.weight_plan, (LONG, False, 1, 4, 2), "rows"),
        (deconv.input_gradient, (meta(*LONG), meta(2**10, 1, 4, 4), 2, (0, 0), (2**19, 1)), "rows"),
        (winners.tiles, ((2**7, 1, 2, 2), WIDE), "patches"),
        (winners.tiles, ((1, 1, 2, 2), SamplingGrid.resize((2, 2), (1, 2**27 + 1))), "axis"),
        (argmax.forward, (meta(1, 1, 2**16, 2**16), MANY, U8, False), "points"),
        (confusion.add, (COUNTS, meta(1, 2**16, *IN), meta(1, *SIZE), NEAR, 255), "reaches over"),
        (cross_entropy_corners.launch_of, ((2**12, 1, 2**16, 2**16), MANY), "too many"),
    ],
)
def test_more_than_int32_counts(call, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(*arguments)


@pytest.mark.parametrize("name", [name for name in LAUNCHERS if "loss" not in name])
def test_nothing(name):
    call, *inputs = LAUNCHERS[name]
    empty = [[x[:0] for x in inputs]]
    if name.startswith(("upsample", "crop_add")):
        empty.append([x[:, :0] for x in inputs])
    for maps in empty:
        for result in tree_leaves(call(*maps)):
            assert not result.any()
            assert 0 in result.shape or name in ("confusion", "deconv.weight_gradient")


# ---- offsets beyond int32


def spread_out(values):
    """`values`, at most 3 along each axis, at strides whose products no int32 holds."""
    strides = [2**30 + 7**k for k in range(values.dim())]
    reach = 1 + sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True))
    return tools.reserved(reach, values.dtype).as_strided(values.shape, strides).copy_(values)


@tools.interpreter_only
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("name", LAUNCHERS)
def test_inputs_beyond_int32(name):
    call, *near = LAUNCHERS[name]
    with tools.only_programs(range):
        results = call(*(spread_out(x) for x in near))
    for a, b in zip(tree_leaves(results), tree_leaves(call(*near)), strict=True):
        assert torch.equal(tools.bits(a), tools.bits(b))


CHANNELS, LAST = 2**13 + 9, 9
UP = SamplingGrid.resize((256, 256), (512, 512))
FILTERS = torch.zeros(CHANNELS, 1, 4, 4, dtype=torch.float16)
FILTERS[-LAST:] = torch.arange(1, LAST + 1).view(-1, 1, 1, 1)
WINDOW = ((2, 1), (512, 512))


def upsampled(x):
    return reference.upsample(x, UP)


def deconvolved(x):
    return reference.deconv(x, FILTERS[-LAST:].double(), 2, 0, *WINDOW)


def input_gradient(grad):
    return deconv.input_gradient(grad, FILTERS, 2, WINDOW[0], (256, 256))


def skip_gradient(grad):
    return crop_add.backward_skip(grad, grad.shape, (0, 0))


def transposed(function):
    """The adjoint of a function of 256 x 256 maps, by autograd."""

    def adjoint(grad):
        x = torch.zeros(*grad.shape[:2], 256, 256, dtype=grad.dtype, requires_grad=True)
        return torch.autograd.grad(function(x), x, grad)[0]

    return adjoint


# A launcher of one map, the sizes of this and of its result, and the definition.
HUGE = {
    "upsample": (lambda x: upsample.forward(x, UP), 256, 512, upsampled),
    "upsample.adjoint": (lambda x: upsample.adjoint(x, UP), 512, 256, transposed(upsampled)),
    "deconv": (lambda x: deconv.forward(x, FILTERS, 2, *WINDOW), 256, 512, deconvolved),
    "deconv.input_gradient": (input_gradient, 512, 256, transposed(deconvolved)),
    "crop_add": (lambda x: crop_add.forward(x, x, (0, 0)), 512, 512, lambda x: 2 * x),
    "crop_add.backward_skip": (skip_gradient, 512, 512, torch.clone),
}


@tools.interpreter_only
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", HUGE)
def test_maps_beyond_int32(name, channels_last):
    """The first and the last program on maps of more than 2**31 elements: only their end is set."""
    call, *sizes, definition = HUGE[name]

    def reserved_map(size):
        flat = tools.reserved(CHANNELS * size * size, torch.float16)
        if channels_last:
            return flat.view(1, size, size, CHANNELS).permute(0, 3, 1, 2)
        return flat.view(1, CHANNELS, size, size)

    x, out = (reserved_map(size) for size in sizes)
    small = torch.zeros(1, LAST, sizes[0], sizes[0], dtype=torch.float64)
    small[..., -4:, -4:] = torch.arange(LAST * 4 * 4).view(LAST, 4, 4)
    x[:, -LAST:, -4:, -4:] = small[..., -4:, -4:].half()
    expected = definition(small).half()  # exact: whole numbers and weights in 1/4
    with tools.giving(out), tools.only_programs(lambda count: [0, count - 1]):
        call(x)
    seen = slice(-LAST if channels_last else -1, None)  # channels that the last program makes
    assert torch.equal(out[:, seen, -1, -1], expected[:, seen, -1, -1])
    assert expected[:, seen, -1, -1].all()
    assert not out[:, CHANNELS // 2, ::64, ::64].any()


IMAGES = 2**15 + 1  # of 2**16 pixels


@contextmanager
def last_programs(dtype, count):
    """Runs the first and the last `count` programs; a result for IMAGES takes little memory."""
    store, empty = tools.reserved(IMAGES * 2**16, dtype).view(IMAGES, 256, 256), torch.empty

    def allocate(shape, dtype, device):
        return store if shape == store.shape else empty(shape, dtype=dtype, device=device)

    with (
        mock.patch.object(torch, "empty", allocate),
        tools.only_programs(lambda total: [0, *range(total - count, total)]),
    ):
        yield


@tools.interpreter_only
def test_labels_beyond_int32():
    grid = SamplingGrid.resize((2, 2), (256, 256))
    x = torch.zeros(IMAGES, 2, 2, 2)
    x[-1] = torch.tensor([[[1, 0], [0, 0]], [[0, 1], [1, 2]]])
    with last_programs(torch.uint8, 4):
        result, _ = argmax.forward(x, grid, torch.uint8, False)
    expected = reference.upsample_argmax(x[-1:].double(), grid)[0][0]
    shown = slice(-winners.PATCH * winners.TILE_ROWS, None)
    assert torch.equal(result[-1, shown, -4:], expected[shown, -4:].byte())
    assert expected[shown, -4:].all()
    assert not result[IMAGES // 2].any()


@tools.interpreter_only
def test_losses_beyond_int32():
    grid = SamplingGrid.resize((1, 1), (256, 256))
    x = torch.zeros(1, 2, 1, 1).expand(IMAGES, 2, 1, 1)
    target = torch.zeros(1, 256, 256, dtype=torch.uint8).expand(IMAGES, 256, 256)
    with last_programs(torch.float32, 1):
        losses, _, _ = cross_entropy.forward(x, target, None, grid, 255, "none", 0.0, False)
    assert not losses[IMAGES // 2].any()
    written = losses[-1] != 0
    assert written[-1, -1]
    assert torch.allclose(losses[-1][written], torch.tensor(2.0).log())


def test_other_constants_of_a_launch_change_no_result(monkeypatch):
    monkeypatch.setattr(shares, "CASES", (Case("tiny", 1, 3, (2, 3), 4),))
    monkeypatch.setattr(shares, "interleaved", lambda calls, _: dict.fromkeys(calls, {"median": 0}))
    settings = Settings(torch.device(tools.DEVICE), F32)
    *_, (_, rows) = shares.compared(settings)
    assert [row["op"] for row in rows] == ["loss", "labels", "counts"]
    if tools.DEVICE == "cpu":
        with pytest.raises(InputError, match="needs a GPU"):
            next(shares.shares(settings))
