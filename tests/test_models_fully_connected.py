"""The fully connected layers: a matrix product where that is sooner, a convolution elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fcnfast.models.fully_connected import FullyConnected


def products(monkeypatch):
    """Count the matrix products that are carried out."""
    calls, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda *args: calls.append(args[0].shape) or linear(*args))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kernel", "padding", "size"), [(7, 0, (9, 8)), (7, 3, (3, 1)), (1, 0, (3, 4)), (6, 2, (7, 3))]
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_convolution(
    monkeypatch, dtype, memory_format, kernel, padding, size, bias
):
    torch.manual_seed(0)
    layer = FullyConnected(24, 256, kernel, padding=padding, bias=bias).to(dtype)
    layer = layer.to(memory_format=memory_format)
    calls = products(monkeypatch)
    for order in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 24, *size).to(dtype).contiguous(memory_format=order)
        arguments = [x, layer.weight] + ([layer.bias] if bias else [None])
        truth = F.conv2d(*(a if a is None else a.double() for a in arguments), padding=padding)
        with torch.no_grad():
            y = layer(x)
        assert (y.dtype, y.shape) == (dtype, truth.shape)
        assert y.is_contiguous(memory_format=torch.channels_last)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        assert (y - truth).abs().max() <= tolerance * truth.abs().max()
    assert len(calls) == 2


def test_other_uses_are_convolutions(monkeypatch):
    """Gradients, large maps, other dtypes, autocast, strided weights, tensors of other kinds."""
    torch.manual_seed(0)
    calls = products(monkeypatch)
    layer = FullyConnected(8, 64, 3)
    x = torch.randn(1, 8, 4, 4)
    layer(x).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    with torch.no_grad():
        layer(torch.randn(1, 8, 5, 5))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert layer.double()(x.double()).dtype == torch.float64
        layer.float()
        layer.weight = nn.Parameter(layer.weight.transpose(2, 3))
        assert torch.allclose(layer(x), F.conv2d(x, layer.weight, layer.bias), atol=1e-6)
        with pytest.raises(RuntimeError):
            layer(torch.randn(1, 7, 4, 4))
        with pytest.raises(RuntimeError):
            layer(torch.randn(1, 8, 2, 2))
    assert not calls
