"""fc6: a matrix product where that is sooner, a convolution elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fcnfast.models.vgg import FullyConnected


@pytest.fixture
def products(monkeypatch):
    """The shapes of the matrix products that are carried out."""
    calls, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda *args: calls.append(args[0].shape) or linear(*args))
    return calls


@pytest.mark.parametrize(
    ("kernel", "padding", "size", "bias", "dtype"),
    [
        (7, 0, (9, 8), True, torch.float32),
        (7, 3, (3, 1), False, torch.float32),
        (1, 0, (3, 4), True, torch.bfloat16),
        (6, 2, (7, 3), False, torch.bfloat16),
        (7, 3, (3, 2), True, torch.float64),
    ],
)
def test_a_product_is_the_convolution(products, kernel, padding, size, bias, dtype):
    layer = FullyConnected(24, 256, kernel, padding=padding, bias=bias).to(dtype)
    for order in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 24, *size).to(dtype).contiguous(memory_format=order)
        arguments = [x, layer.weight] + ([layer.bias] if bias else [None])
        truth = F.conv2d(*(a if a is None else a.double() for a in arguments), padding=padding)
        with torch.no_grad():
            y = layer(x)
        assert (y.dtype, y.shape) == (dtype, truth.shape)
        assert y.is_contiguous(memory_format=torch.channels_last)
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        assert (y - truth).abs().max() <= tolerance * truth.abs().max()
    assert len(products) == 2


def test_other_uses_are_convolutions(products):
    """Gradients, large maps, weights that a product would have to copy, shapes that are wrong."""
    layer = FullyConnected(8, 64, 3)
    x = torch.randn(1, 8, 4, 4)
    layer(x).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    with torch.no_grad():
        layer(torch.randn(1, 8, 5, 5))
        layer.to(memory_format=torch.channels_last)(x)
        layer.weight = nn.Parameter(layer.weight.contiguous().transpose(2, 3))
        assert torch.allclose(layer(x), F.conv2d(x, layer.weight, layer.bias), atol=1e-6)
        with pytest.raises(RuntimeError):
            layer(torch.randn(1, 8, 2, 2))
        with pytest.raises(RuntimeError):
            layer(torch.randn(1, 7, 4, 4))
    assert not products
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert FullyConnected(8, 64, 3)(x).dtype == torch.bfloat16
