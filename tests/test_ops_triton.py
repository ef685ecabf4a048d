"""The ops over their Triton kernels: forced in the interpreter, or on a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fcnfast import ops
from fcnfast.ops._dispatch import uses_triton
from tests.kernel_tools import DEVICE
from tests.test_ops_library import FORMATS, cases, public_calls, raw

CPU = torch.device("cpu")
GPU = torch.device("cuda")


def on_device(value):
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def facts(x):
    """What a fake tensor has to know; of the strides those that matter."""
    strides = [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    return x.shape, strides, x.storage_offset(), x.dtype


def forced(op, args, backend):
    """The arguments, with `backend` for the last of the op."""
    names = [argument.name for argument in op._schema.arguments]
    return (*args, *([None] * (len(names) - 1 - len(args))), backend)


@pytest.mark.parametrize("form", FORMATS)
def test_fakes_know_what_the_kernels_give(form):
    one_of_each = dict(reversed(list(cases(form))))
    for name, args in one_of_each.items():
        op = getattr(raw, name).default
        args = forced(op, [on_device(a) for a in args], "triton")
        with torch.no_grad():
            real = op(*args)
        with FakeTensorMode() as mode:
            fake = op(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args))
        for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (real, fake)), strict=True):
            if a is not None:
                assert facts(a) == facts(b), name


@pytest.mark.parametrize(
    ("name", "call", "inputs"), list(public_calls()), ids=lambda c: c if isinstance(c, str) else ""
)
def test_both_backends_agree_with_their_gradients(name, call, inputs, monkeypatch):
    results = []
    for backend in ("torch", "triton"):
        with ops.backend(backend):
            result = call()
        # A backward pass runs where the op ran, whatever is forced by then.
        monkeypatch.setenv("FCNFAST_BACKEND", "torch" if backend == "triton" else "triton")
        grads = torch.autograd.grad(result.square().sum(), inputs) if inputs else ()
        monkeypatch.delenv("FCNFAST_BACKEND")
        results.append((result.detach(), *grads))
    for ours, tiled in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, tiled, rtol=1e-5, atol=1e-5)


def test_who_takes_which_tensors(monkeypatch):
    monkeypatch.setattr("fcnfast.ops._dispatch.is_interpreted", lambda: False)
    assert not uses_triton("upsample", "forward", None, CPU)
    assert uses_triton("upsample", "forward", None, GPU)
    assert uses_triton("upsample", "forward", "triton", GPU)
    assert not uses_triton("upsample", "forward", "torch", GPU)
    assert not uses_triton("upsample", "forward", None, torch.device("mps"))
    with pytest.raises(ValueError, match="GPU, or TRITON_INTERPRET=1"):
        uses_triton("upsample", "forward", "triton", CPU)
    # An op without a kernel: plain torch does it, and says so only when it is forced.
    assert not uses_triton("upsample", "sideways", None, GPU)
    assert not uses_triton("downsample", "forward", None, GPU)
    with pytest.raises(NotImplementedError, match="upsample has no kernel: sideways"):
        uses_triton("upsample", "sideways", "triton", GPU)
    monkeypatch.setattr("fcnfast.ops._dispatch._has_triton", lambda: False)
    assert not uses_triton("upsample", "forward", None, GPU)
    with pytest.raises(ValueError, match="not installed"):
        uses_triton("upsample", "forward", "triton", GPU)
