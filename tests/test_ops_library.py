"""The raw ops under torch.ops.fcnfast: what torch.library promises of them, and how they run."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid
from fcnfast.ops._checks import packed, unpacked

raw = torch.ops.fcnfast
ZERO = packed(SamplingGrid.deconv((4, 5), 4, crop=(3, 1), size=(9, 12)))
CLAMP = packed(SamplingGrid.resize((4, 5), (9, 12)))
GRID = unpacked(*CLAMP)
FORMATS = (torch.contiguous_format, torch.channels_last)


def leaf(*shape, memory_format=torch.contiguous_format, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(*shape, generator=generator).to(dtype)
    return x.contiguous(memory_format=memory_format).requires_grad_()


LABELS = (torch.arange(2 * 9 * 12) % 3).view(2, 9, 12).to(torch.uint8)


def cases(form):
    """Every raw op with arguments that require gradients."""

    def m(*shape):
        return leaf(*shape, memory_format=form)

    weight, filters = torch.tensor([0.5, 1.0, 2.0]), leaf(3, 1, 4, 4)
    yield "crop_add", (m(2, 3, 4, 5), leaf(2, 3, 6, 8), [1, 2], None)
    yield "crop_add_backward_skip", (m(2, 3, 4, 5), [6, 8], [1, 2], None)
    yield "upsample", (m(2, 3, 4, 5), *ZERO, None)
    yield "upsample_backward", (m(2, 3, 9, 12), *CLAMP, None)
    yield "upsample_crop_add", (m(2, 3, 4, 5), leaf(2, 3, 11, 12), *ZERO, [2, 0], None)
    yield "deconv", (m(2, 3, 4, 5), filters, 2, [2, 1], [6, 7], None)
    yield "deconv_input_gradient", (m(2, 3, 6, 7), filters, 2, [2, 1], [4, 5], None)
    pair = m(2, 3, 6, 7), m(2, 3, 4, 5)
    yield "deconv_weight_gradient", (*pair, 2, [2, 1], 4, torch.float32, None)
    for reduction in ("mean", "none"):
        settings = (255, reduction, 0.1, True, None)
        yield "upsample_cross_entropy", (m(2, 3, 4, 5), LABELS, weight, *CLAMP, *settings)
    # Without a gradient, or with one whose derivative is refused (see below).
    x, one = m(2, 3, 4, 5).detach(), torch.tensor(0.5)
    yield "upsample_cross_entropy", (x, LABELS, None, *ZERO, 1, "sum", 0.0, False, None)
    yield "upsample_cross_entropy_backward", (one, x, x * 2, one, None)
    pixels = (torch.rand(2, 9, 12), x, LABELS, weight)
    yield "upsample_cross_entropy_pixel_backward", (*pixels, *CLAMP, 255, 0.1, None)
    yield "upsample_argmax", (m(2, 3, 4, 5), *CLAMP, torch.uint8, False, None)
    yield "upsample_argmax", (m(2, 3, 4, 5), *ZERO, torch.int64, True, None)
    for rows in (3, 4):
        out = torch.zeros(rows, 3, dtype=torch.int64)
        yield "upsample_confusion", (out, m(2, 3, 4, 5), LABELS, *CLAMP, 255, None)


def test_every_raw_op_is_checked():
    prefix = "fcnfast::"
    names = torch._C._dispatch_get_all_op_names()
    declared = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    assert {name for name, _ in cases(FORMATS[0])} == declared


def parametrized(form):
    named = list(cases(form))
    return pytest.mark.parametrize(("name", "args"), named, ids=[name for name, _ in named])


@parametrized(torch.contiguous_format)
def test_opcheck(name, args):
    result = opcheck(getattr(raw, name).default, args)
    assert set(result.values()) == {"SUCCESS"} and len(result) == 4


@parametrized(torch.channels_last)
def test_results_and_fakes_lie_as_the_first_argument_does(name, args):
    opcheck(getattr(raw, name).default, args, test_utils=("test_schema", "test_faketensor"))
    result = getattr(raw, name)(*args)
    result = result[0] if isinstance(result, tuple) else result
    if result is not None and result.dim() == 4 and name != "deconv_weight_gradient":
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "name", ["upsample_cross_entropy_backward", "upsample_cross_entropy_pixel_backward"]
)
@pytest.mark.parametrize("position", [0, 1])
def test_a_second_derivative_of_the_loss_is_refused(name, position):
    args = dict(cases(FORMATS[0]))[name]
    given = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    given[position].requires_grad_()
    result = getattr(raw, name)(*given)
    assert result.requires_grad
    with pytest.raises(RuntimeError, match="no second derivative"):
        result.sum().backward()


def test_a_raw_loss_without_its_gradient_has_none():
    x = leaf(2, 3, 4, 5)
    loss = raw.upsample_cross_entropy(x, LABELS, None, *CLAMP, 255, "mean", 0.0, False, None)[0]
    with pytest.raises(ValueError, match="with_gradient=False"):
        loss.backward()


class Recorder(TorchDispatchMode):
    """Notes the ops that the dispatcher sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def public_calls():
    """The public functions on maps that require gradients: name, and results with gradients."""
    x, skip, weight = leaf(2, 3, 4, 5), leaf(2, 3, 9, 12), leaf(3, 1, 4, 4)
    yield "crop_add", lambda: ops.crop_add(x, skip, (1, 2)), (x, skip)
    yield "upsample", lambda: ops.upsample(x, GRID), (x,)
    yield "upsample_crop_add", lambda: ops.upsample_crop_add(x, skip, GRID, 0), (x, skip)
    yield "deconv", lambda: ops.deconv(x, weight, 2, 1), (x, weight)
    for reduction in ("mean", "none"):
        yield (
            "upsample_cross_entropy",
            lambda r=reduction: ops.upsample_cross_entropy(x, LABELS, GRID, reduction=r),
            (x,),
        )
    yield "upsample_argmax", lambda: ops.upsample_argmax(x, GRID, confidence=True)[1], ()
    yield "upsample_confusion", lambda: ops.upsample_confusion(x, LABELS, GRID), ()


PUBLIC = pytest.mark.parametrize(
    ("name", "call", "inputs"), list(public_calls()), ids=lambda c: c if isinstance(c, str) else ""
)


def results(call, inputs):
    """What a call gives, and its gradients."""
    result = call()
    return [result, *torch.autograd.grad(result.square().sum(), inputs)] if inputs else [result]


@PUBLIC
def test_every_call_goes_through_the_dispatcher(name, call, inputs):
    with Recorder() as recorder:
        result = results(call, inputs)
    assert result[0].requires_grad == bool(inputs)
    assert f"fcnfast.{name}.default" in recorder.seen
    assert len([op for op in recorder.seen if op.startswith("fcnfast.")]) >= 1 + bool(inputs)


@PUBLIC
def test_modes_of_torch_change_no_bit(name, call, inputs):
    """Deterministic algorithms, inference mode, autocast."""
    expected = results(call, inputs)
    torch.use_deterministic_algorithms(True)
    try:
        found = [results(call, inputs)]
    finally:
        torch.use_deterministic_algorithms(False)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found.append(results(call, inputs))
    for result in found:
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    with torch.inference_mode():
        inferred = call()
    assert inferred.is_inference() and torch.equal(inferred, expected[0])


def test_a_filter_of_float32_beside_half_precision_maps():
    x, weight = leaf(2, 3, 4, 5, dtype=torch.bfloat16), leaf(3, 1, 4, 4)
    result = ops.deconv(x, weight, 2)
    truth = reference.deconv(x.double(), weight.double(), 2)
    assert result.dtype == torch.bfloat16
    assert ((result - truth).abs() <= torch.finfo(torch.bfloat16).eps * truth.abs()).all()
    grads = torch.autograd.grad(result.sum(), (x, weight))
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32]


def test_fake_and_meta_tensors_leave_nothing_behind():
    grid = SamplingGrid.resize((6, 5), (13, 11))  # in no cache yet
    x = torch.randn(1, 2, 6, 5).contiguous(memory_format=torch.channels_last)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        for function in (ops.upsample, reference.upsample):
            assert function(fake, grid).shape == (1, 2, 13, 11)
        assert ops.upsample(fake, grid).is_contiguous(memory_format=torch.channels_last)
        assert ops.upsample_argmax(fake, grid).dtype == torch.uint8
    assert ops.upsample(x.to("meta"), grid).is_meta
    truth = reference.upsample(x.double(), grid)
    assert (ops.upsample(x, grid) - truth).abs().max() < 1e-6


def test_tensors_of_subclasses_and_parameters():
    class Tagged(torch.Tensor):
        pass

    x = leaf(1, 3, 4, 5).detach()
    assert torch.equal(
        torch.Tensor(ops.upsample(x.as_subclass(Tagged), GRID)), ops.upsample(x, GRID)
    )
    weight = torch.nn.Parameter(leaf(3, 1, 4, 4).detach())
    ops.deconv(x, weight, 2).sum().backward()
    assert weight.grad is not None and copy.deepcopy(weight).shape == weight.shape
