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
FORMATS = (torch.contiguous_format, torch.channels_last)
GRADIENTS = ("upsample_cross_entropy_backward", "upsample_cross_entropy_pixel_backward")


def leaf(*shape, memory_format=torch.contiguous_format, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(*shape, generator=generator).to(dtype)
    return x.contiguous(memory_format=memory_format).requires_grad_()


def labels(classes=3):
    return (torch.arange(2 * 9 * 12) % classes).view(2, 9, 12).to(torch.uint8)


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
    yield (
        "deconv_weight_gradient",
        (m(2, 3, 6, 7), m(2, 3, 4, 5), 2, [2, 1], 4, torch.float32, None),
    )
    for reduction in ("mean", "none"):
        settings = (255, reduction, 0.1, True, None)
        yield "upsample_cross_entropy", (m(2, 3, 4, 5), labels(), weight, *CLAMP, *settings)
    # Without a gradient, or with one whose derivative is refused (see below).
    x, one = m(2, 3, 4, 5).detach(), torch.tensor(0.5)
    yield "upsample_cross_entropy", (x, labels(), None, *ZERO, 1, "sum", 0.0, False, None)
    yield "upsample_cross_entropy_backward", (one, x, x * 2, one, None)
    pixels = (torch.rand(2, 9, 12), x, labels(), weight)
    yield "upsample_cross_entropy_pixel_backward", (*pixels, *CLAMP, 255, 0.1, None)
    yield "upsample_argmax", (m(2, 3, 4, 5), *CLAMP, torch.uint8, False, None)
    yield "upsample_argmax", (m(2, 3, 4, 5), *ZERO, torch.int64, True, None)
    for rows in (3, 4):
        out = torch.zeros(rows, 3, dtype=torch.int64)
        yield "upsample_confusion", (out, m(2, 3, 4, 5), labels(), *CLAMP, 255, None)


def declared():
    prefix = "fcnfast::"
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def test_every_raw_op_is_checked():
    assert {name for name, _ in cases(FORMATS[0])} == declared()


def parametrized(form):
    named = list(cases(form))
    ids = [name for name, _ in named]
    return pytest.mark.parametrize(("name", "args"), named, ids=ids)


@parametrized(torch.contiguous_format)
def test_opcheck(name, args):
    result = opcheck(getattr(raw, name).default, args)
    assert set(result.values()) == {"SUCCESS"} and len(result) == 4


@parametrized(torch.channels_last)
def test_fakes_know_the_memory_format(name, args):
    opcheck(getattr(raw, name).default, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("form", FORMATS)
def test_results_lie_as_the_first_argument_does(form):
    for name, args in cases(form):
        result = getattr(raw, name)(*args)
        result = result[0] if isinstance(result, tuple) else result
        if result is not None and result.dim() == 4 and name != "deconv_weight_gradient":
            assert result.is_contiguous(memory_format=form), name


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_second_derivative_of_the_loss_is_refused(name):
    args = dict(cases(FORMATS[0]))[name]
    for position in (0, 1):
        given = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        given[position].requires_grad_()
        result = getattr(raw, name)(*given)
        assert result.requires_grad
        with pytest.raises(RuntimeError, match="no second derivative"):
            result.sum().backward()


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
    grid = unpacked(*CLAMP)
    x, skip, weight = leaf(2, 3, 4, 5), leaf(2, 3, 9, 12), leaf(3, 1, 4, 4)
    yield "crop_add", lambda: ops.crop_add(x, skip, (1, 2)), (x, skip)
    yield "upsample", lambda: ops.upsample(x, grid), (x,)
    yield "upsample_crop_add", lambda: ops.upsample_crop_add(x, skip, grid, 0), (x, skip)
    yield "deconv", lambda: ops.deconv(x, weight, 2, 1), (x, weight)
    for reduction in ("mean", "none"):
        yield (
            "upsample_cross_entropy",
            lambda r=reduction: ops.upsample_cross_entropy(x, labels(), grid, reduction=r),
            (x,),
        )
    yield "upsample_argmax", lambda: ops.upsample_argmax(x, grid, confidence=True)[1], ()
    yield "upsample_confusion", lambda: ops.upsample_confusion(x, labels(), grid), ()


PUBLIC = pytest.mark.parametrize(
    ("name", "call", "inputs"), list(public_calls()), ids=lambda c: c if isinstance(c, str) else ""
)


@PUBLIC
def test_every_call_goes_through_the_dispatcher(name, call, inputs):
    with Recorder() as recorder:
        result = call()
        assert result.requires_grad == bool(inputs)
        if inputs:
            torch.autograd.grad(result.square().sum(), inputs)
    assert f"fcnfast.{name}.default" in recorder.seen
    assert len([op for op in recorder.seen if op.startswith("fcnfast.")]) >= 1 + bool(inputs)


@PUBLIC
def test_deterministic_algorithms_and_inference_mode(name, call, inputs):
    expected = call()
    torch.use_deterministic_algorithms(True)
    try:
        result = call()
        if inputs:
            result.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    with torch.inference_mode():
        inferred = call()
    assert inferred.is_inference()
    assert torch.equal(result, expected) and torch.equal(inferred, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@PUBLIC
def test_autocast_changes_no_bit(name, call, inputs, dtype):
    def run():
        result = call()
        if not inputs:
            return [result]
        return [result, *torch.autograd.grad(result.sum(), inputs)]

    plain = run()
    with torch.autocast("cpu", dtype):
        cast = run()
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


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


def test_a_tensor_of_a_subclass_goes_through_the_dispatcher():
    class Tagged(torch.Tensor):
        pass

    grid = unpacked(*CLAMP)
    x = leaf(1, 2, 4, 5).detach()
    result = ops.upsample(x.as_subclass(Tagged), grid)
    assert torch.equal(torch.Tensor(result), ops.upsample(x, grid))


def test_parameters_and_copies_of_modules():
    weight = torch.nn.Parameter(leaf(3, 1, 4, 4).detach())
    result = ops.deconv(leaf(1, 3, 4, 5), weight, 2)
    result.sum().backward()
    assert weight.grad is not None and copy.deepcopy(weight).shape == weight.shape


def test_saved_tensors_of_a_loss_that_is_not_used():
    x = leaf(2, 3, 4, 5)
    used = ops.upsample_cross_entropy(x, labels(), unpacked(*CLAMP))
    assert ops.upsample_cross_entropy(x, labels(), unpacked(*CLAMP)).requires_grad
    (grad,) = torch.autograd.grad(used, x)
    assert grad.any()


X = torch.zeros(2, 3, 4, 5)
SIX = torch.zeros(2, 3, 6, 7)
FILTER = torch.zeros(3, 1, 4, 4)
LOSS = {
    "scores": X, "target": labels(), "weight": None, "grid": CLAMP[0], "clamp": CLAMP[1],
    "ignore_index": 255, "reduction": "mean", "label_smoothing": 0.0, "with_gradient": False,
    "backend": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("upsample", (X, [4, 5, 9, 12], True), ValueError, "10 integers"),
        ("upsample", (SIX, *CLAMP), ValueError, "grid was made for maps"),
        ("upsample", (X[0], *CLAMP), ValueError, "N x C x h x w"),
        ("upsample", (X.int(), *CLAMP), TypeError, "must be float32"),
        ("upsample_backward", (X, *CLAMP), ValueError, "grad_output must be of the grid's"),
        ("deconv", (X, FILTER, 2, [0, 0], [11, 4]), ValueError, "leaves the 10 x 12 pixels"),
        ("deconv", (X, FILTER[:2], 2, [0, 0], [4, 4]), ValueError, "C x 1 x k x k with C = 3"),
        ("deconv", (X, FILTER, 2, [0], [4, 4]), ValueError, "start must be"),
        (
            "deconv_weight_gradient",
            (SIX[:1], X, 2, [0, 0], 4, torch.float32),
            ValueError,
            "share a batch",
        ),
        ("crop_add_backward_skip", (X, [4, 5], [0, 1]), ValueError, "leaves the skip"),
        ("crop_add", (X, X, [0]), ValueError, "offset must be"),
        ("upsample_crop_add", (X, SIX.double(), *CLAMP, [0, 0]), TypeError, "share a dtype"),
        ("upsample_argmax", (X[0], *CLAMP, torch.uint8, False), ValueError, "N x C x h x w"),
        ("upsample_argmax", (X.int(), *CLAMP, torch.uint8, False), TypeError, "must be float32"),
        ("upsample_argmax", (X, *CLAMP, torch.int8, False), TypeError, "dtype must be uint8"),
        (
            "upsample_confusion",
            (torch.zeros(3, 3), X, labels(), *CLAMP, 255),
            TypeError,
            "out must be an int64",
        ),
        (
            "upsample_confusion",
            (torch.zeros(3, 3).long(), X, labels().bool(), *CLAMP, 255),
            TypeError,
            "target must be uint8",
        ),
    ],
)
def test_raw_calls_are_checked_too(name, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(raw, name)(*arguments, None)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"reduction": "avg"}, ValueError, "reduction must be one of"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing must lie"),
        ({"label_smoothing": float("nan")}, ValueError, "label_smoothing must lie"),
        ({"weight": torch.ones(3).long()}, ValueError, "3 class weights in torch.float32"),
        ({"weight": torch.ones(3).double()}, ValueError, "3 class weights in torch.float32"),
        ({"weight": torch.ones(3, requires_grad=True)}, ValueError, "must not require a gradient"),
        ({"target": labels().to(torch.int8)}, TypeError, "target must be uint8"),
        ({"scores": X.int()}, TypeError, "scores must be float32"),
    ],
)
def test_raw_losses_are_checked_too(changed, error, message):
    with pytest.raises(error, match=message):
        raw.upsample_cross_entropy(**(LOSS | changed))


def test_a_raw_loss_without_its_gradient_has_none():
    x = leaf(2, 3, 4, 5)
    loss = raw.upsample_cross_entropy(x, labels(), None, *CLAMP, 255, "mean", 0.0, False, None)[0]
    with pytest.raises(ValueError, match="with_gradient=False"):
        loss.backward()
    with pytest.raises(ValueError, match="backend|Triton"):
        raw.upsample(x, *CLAMP, "numpy")
