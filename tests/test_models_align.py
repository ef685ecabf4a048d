"""No stream of any network is misaligned: a ramp image comes out of linear layers as itself."""

import pytest
import torch
from torch import nn

from fcnfast.models import create_model, resnet, vgg
from fcnfast.models.table import MODELS
from tests.model_tools import narrow_trunks

# Heights and widths that together have every rest modulo 32.
SIZES = [(224 + i, 240 + (5 * i) % 16) for i in range(16)]
# Away from the borders, which see the padding.
MARGIN = 96
# What each stream counts in the sum: a shift of one could not be made up by the others'.
SHARES = (0.5, 0.3125, 0.171875, 0.015625)

CHEAP = {"fcn4s_light": {"widths": (4,) * 5, "decoder": 4}, "fcn4s_lite2": {"decoder": 4}}
# One name of each class and its settings; depths, widths and data sets move no unit.
SAME = {"depth": 0, "scaling": 0}
KINDS = {(row.make, str({**row.fixed, **SAME})): name for name, row in MODELS.items()}
VARIANTS = [
    (name, CHEAP.get(name, {})) for name in KINDS.values() if not name.startswith("fcn_resnet")
]
VARIANTS += [
    ("fcn_resnet50", {"aligned": True}),
    ("fcn8s_vgg16", {"padding": 69}),
    ("fcn8s_vgg16", {"padding": 83}),
    ("fcn16s_vgg16", {"padding": 100, "upsampling": "depthwise"}),
    ("fcn8s_vgg16", {"padding": None, "fc6_padding": 3}),
    ("fcn8s_vgg16", {"padding": None, "fc6_padding": 3, "upsampling": "dense"}),
    ("fcn32s_alexnet", {"padding": 85, "upsampling": "depthwise"}),
    ("fcn32s_alexnet", {"family": "torchvision"}),
    ("fcn32s_alexnet", {"padding": None, "fc6_padding": 3}),
    ("fcn8s_googlenet", {"padding": 9}),
    ("fcn8s_googlenet", {"family": "torchvision", "upsampling": "depthwise"}),
    ("fcn8s_googlenet", {"padding": None}),
    ("fcn16s_googlenet", {"family": "torchvision"}),
    ("fcn8s_resnet18", {"upsampling": "dense"}),
]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    narrow_trunks(monkeypatch)
    monkeypatch.setattr(vgg, "STAGES", [(1,) * len(widths) for widths in vgg.STAGES])
    monkeypatch.setattr(vgg, "FULLY_CONNECTED", 1)
    monkeypatch.setattr(resnet, "WIDTH", 2)


def ramp(height, width):
    """An image whose value is a plane over its pixels, and positive as rectifiers want it."""
    rows = torch.arange(height, dtype=torch.float64)[:, None]
    return (3 * rows + torch.arange(width, dtype=torch.float64))[None, None] + 1000


def move_only(conv):
    """Every output is the mean of the inputs, taken at the window's middle."""
    kernel = conv.kernel_size[0]
    middle = slice((kernel - 1) // 2, kernel // 2 + 1)
    weight = torch.zeros(conv.weight.shape[1:], dtype=torch.float64)
    weight[:, middle, middle] = 1
    conv.weight.data = (weight / weight.sum()).expand(conv.weight.shape).clone()
    if conv.bias is not None:
        conv.bias.data.zero_()


def keep_level(block):
    """Divide a block's result by what it makes of ones: a branch and a shortcut are added."""
    conv = next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    ones = torch.ones(1, conv.in_channels, 33, 33, dtype=torch.float64)
    with torch.no_grad():
        gain = block(ones)[0, 0, 8, 8].item()
    block.register_forward_hook(lambda module, inputs, output: output / gain)


def make_linear(model):
    """Turn a network into one that only moves pixels, its streams weighted by SHARES."""
    for layer in list(model.modules()):
        for key, inner in list(layer.named_children()):
            if isinstance(inner, nn.Conv2d):
                move_only(inner)
            elif isinstance(inner, nn.MaxPool2d):
                kernel, stride, padding = inner.kernel_size, inner.stride, inner.padding
                average = nn.AvgPool2d(kernel, stride, padding, ceil_mode=inner.ceil_mode)
                # One that keeps the size keeps the place; borders would reach far through many.
                setattr(layer, key, nn.Identity() if stride == 1 else average)
            elif not any(inner.children()) and not isinstance(inner, nn.ConvTranspose2d):
                setattr(layer, key, nn.Identity())
    model = model.double().eval()
    plain = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    for layer in list(model.modules())[1:]:
        if any(layer.children()) and type(layer) not in plain:
            keep_level(layer)
    return model


def weigh_streams(model):
    """Let the streams' scores add up to one ramp."""
    if hasattr(model, "lateral"):
        streams = [[lateral[0]] for lateral in model.lateral]
    else:
        taps = getattr(model, "taps", ())
        streams = [
            [m for key, m in model.named_children() if key.startswith(f"score_{tap}")]
            for tap in ("fr", *(tap.removesuffix("color") for tap in taps[1:]))
        ]
    shares = [*SHARES[: len(streams) - 1], 1 - sum(SHARES[: len(streams) - 1])]
    for convs, share, tap in zip(streams, shares, getattr(model, "taps", "0123"), strict=False):
        for conv in convs:
            conv.weight.data *= share / getattr(model, "scales", {}).get(tap, 1.0)


def inner_error(out, image):
    """The largest error away from the borders."""
    inside = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    return (out - image)[inside].abs().max().item()


def case(name, options):
    return pytest.param(
        name, options, id="-".join([name, *(f"{k}={v}" for k, v in options.items())])
    )


@pytest.mark.parametrize(("name", "options"), [case(*variant) for variant in VARIANTS])
def test_no_stream_is_misaligned(name, options):
    model = make_linear(create_model(name, num_classes=1, **options))
    weigh_streams(model)
    for size in SIZES:
        image = ramp(*size)
        with torch.no_grad():
            results = model(image.expand(1, model.channels, *size))
        for out in results.values():
            assert out.shape[-2:] == size
            assert inner_error(out[:, :1], image) < 1e-9, size


def test_resizes_draw_stride_8_scores_3_and_a_half_pixels_off():
    """A ramp comes out as it lies 3.5 rows and columns further up: 3 per row, 1 per column."""
    for name in ("fcn_resnet50", "fcn_resnet50_mmseg"):
        model = make_linear(create_model(name, num_classes=1, aux_loss=False))
        for size in ((224, 256), (288, 232)):
            image = ramp(*size)
            with torch.no_grad():
                out = model(image.expand(1, 3, *size))["out"]
            assert inner_error(out, image - 3.5 * (3 + 1)) < 1e-9
