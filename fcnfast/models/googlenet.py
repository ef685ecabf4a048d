"""FCNs over GoogLeNet: FCN-32s as in the paper, and with skips; BVLC's layers or torchvision's."""

from __future__ import annotations

from collections import OrderedDict
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..weights.preprocessing import INCEPTION
from .alexnet import Variant, check_family
from .base import CAFFE, conv_bn, dropout_layer
from .decoder import Upsampling
from .skipnet import SkipNet, taps_of_stride


class Widths(NamedTuple):
    """Output channels of an inception block's convolutions, named as in BVLC's definition."""

    one: int
    reduce3: int
    three: int
    reduce5: int
    five: int
    pooled: int

    @property
    def total(self) -> int:
        """Channels of the concatenated branches."""
        return self.one + self.three + self.five + self.pooled


STEM = (64, 64, 192)
BLOCKS = {
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}


def _unit(
    family: Variant, before: int, width: int, kernel: int, stride: int = 1, pad: int | None = None
) -> nn.Module:
    """A convolution; torchvision's is followed by batch norm, and has no bias."""
    pad = kernel // 2 if pad is None else pad
    if family == "caffe":
        return nn.Conv2d(before, width, kernel, stride, pad)
    conv, norm = conv_bn(before, width, kernel, stride, eps=1e-3, padding=pad)
    return nn.Sequential(OrderedDict(conv=conv, bn=norm))


class Inception(nn.Module):
    """Four branches side by side, each with a ReLU after every convolution.

    torchvision's 5 x 5 branch is 3 x 3, a slip of its first release that its weights need.
    """

    def __init__(self, channels: int, widths: Widths, family: Variant) -> None:
        super().__init__()
        five = 5 if family == "caffe" else 3
        for name, before, width, kernel in (
            ("1x1", channels, widths.one, 1),
            ("3x3_reduce", channels, widths.reduce3, 1),
            ("3x3", widths.reduce3, widths.three, 3),
            ("5x5_reduce", channels, widths.reduce5, 1),
            ("5x5", widths.reduce5, widths.five, five),
            ("pool_proj", channels, widths.pooled, 1),
        ):
            self.add_module(name, _unit(family, before, width, kernel))
        self.pool = nn.MaxPool2d(3, 1, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def branches(self) -> list[list[nn.Module]]:
        """The layers of every branch, in the order in which they are concatenated."""
        relu = self.relu
        names = (("1x1",), ("3x3_reduce", "3x3"), ("5x5_reduce", "5x5"), ("pool_proj",))
        found = [[layer for name in row for layer in (getattr(self, name), relu)] for row in names]
        found[-1].insert(0, self.pool)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w to the same size."""
        branches = self.branches()
        return torch.cat([reduce(lambda y, layer: layer(y), row, x) for row in branches], 1)


def _stage(**units: nn.Module) -> nn.Sequential:
    """Convolutions, each followed by a ReLU, under their names."""
    stage = nn.Sequential()
    for name, unit in units.items():
        stage.add_module(name, unit)
        stage.add_module(f"relu_{name}", nn.ReLU(inplace=True))
    return stage


def googlenet(family: Variant, padding: int | None, dropout: float) -> dict[str, nn.Module]:
    """The layers up to inception_5b; the average pooling after it is left out, as in the paper."""
    caffe = family == "caffe"
    w1, w2, w3 = STEM
    layers: dict[str, nn.Module] = {}

    def pool(number: int, kernel: int = 3) -> None:
        layers[f"pool{number}"] = nn.MaxPool2d(kernel, 2, ceil_mode=True)

    def norm(number: int) -> None:
        if caffe:
            layers[f"norm{number}"] = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)

    layers["conv1"] = _stage(**{"7x7_s2": _unit(family, 3, w1, 7, 2, padding)})
    pool(1)
    norm(1)
    reduce, three = _unit(family, w1, w2, 1), _unit(family, w2, w3, 3)
    layers["conv2"] = _stage(**{"3x3_reduce": reduce, "3x3": three})
    norm(2)
    pool(2)
    channels = w3
    for name, widths in BLOCKS.items():
        if name == "4a":
            pool(3)
        if name == "5a":
            pool(4, 3 if caffe else 2)
        layers[f"inception_{name}"] = Inception(channels, widths, family)
        channels = widths.total
    layers["drop"] = dropout_layer(dropout)
    return layers


class FCNGoogLeNet(SkipNet):
    """FCN-32s over GoogLeNet, as in section 4.1 of the paper; 16s and 8s add its skips.

    The paper reports the 32s net only, without code, weights or padding: here every layer pads its
    own border. Skips are read from inception_4e and inception_3b, the last blocks of strides 16
    and 8. Images are at least 31 x 31. Scores start at zero, the trunk at random (He).

    Args:
        num_classes: C.
        stride: 32, 16 or 8: the stride of the finest scores.
        family: "caffe" for BVLC's layers, "torchvision" for those of torchvision's weights.
        padding: of the first convolution; 3 is the trunk's own. None: 3, with maps that repeat
            their edge instead of zeros.
        dropout: before the score layer, elementwise.
        upsampling, final_upsampling: see `set_upsampling`.

    ValueError when the stride or the family is unknown, or no crop fits the padding.
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        stride: int = 32,
        family: Variant = "caffe",
        padding: int | None = 3,
        dropout: float = 0.4,
        upsampling: Upsampling = "fixed",
        final_upsampling: Upsampling | None = None,
    ) -> None:
        check_family(family)
        super().__init__(num_classes, CAFFE if family == "caffe" else INCEPTION, padding)
        taps = {f"inception_{name}": BLOCKS[name].total for name in ("5b", "4e", "3b")}
        taps = taps_of_stride(stride, taps)
        self.stride, self.family = stride, family
        self.add_trunk(googlenet(family, padding, dropout))
        self.add_heads(taps)
        self.finish(upsampling, final_upsampling)
