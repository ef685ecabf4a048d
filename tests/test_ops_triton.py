"""The ops over their Triton kernels: forced in the interpreter, or on a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fcnfast import ops
from fcnfast.geometry import SamplingGrid
from fcnfast.ops._registry import uses_triton
from tests.kernel_tools import DEVICE
from tests.test_ops_library import FORMATS, PUBLIC, cases, raw


def facts(x):
    """What a fake tensor has to know; of the strides those that matter."""
    strides = [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    return x.shape, strides, x.storage_offset(), x.dtype


@pytest.mark.parametrize("form", FORMATS)
def test_fakes_know_what_the_kernels_give(form):
    one_of_each = dict(reversed(list(cases(form))))
    for name, args in one_of_each.items():
        op = getattr(raw, name).default
        args = (*(a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in args[:-1]), "triton")
        with torch.no_grad():
            real = op(*args)
        with FakeTensorMode() as mode:
            fake = op(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args))
        for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (real, fake)), strict=True):
            if a is not None:
                assert facts(a) == facts(b), name


@PUBLIC
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
    class On:
        def __init__(self, kind, dtype=torch.float32):
            self.device, self.dtype = torch.device(kind), dtype

    near = SamplingGrid.resize((4, 5), (8, 10))
    far = SamplingGrid.centers((4, 5), 1 / 3, 1e-7, 1000, "zero")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for kind in ("cpu", "mps"):
        assert not uses_triton(None, On(kind))
    gpu, double = On("cuda"), On("cuda", torch.float64)
    assert uses_triton(None, gpu) and uses_triton(None, gpu, near) and uses_triton("triton", gpu)
    assert not uses_triton("torch", gpu)
    assert not uses_triton(None, double) and not uses_triton(None, gpu, far)
    for name, x, grid, message in (
        ("triton", On("cpu"), None, "GPU, or TRITON_INTERPRET=1"),
        ("triton", double, None, "float64"),
        ("triton", gpu, far, "int32"),
    ):
        with pytest.raises(ValueError, match=message):
            uses_triton(name, x, grid)
    monkeypatch.setattr("fcnfast.ops._registry._has_triton", lambda: False)
    assert not uses_triton(None, gpu)
    with pytest.raises(ValueError, match="not installed"):
        uses_triton("triton", gpu)
