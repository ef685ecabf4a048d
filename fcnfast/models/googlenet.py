"""FCNs over GoogLeNet: FCN-32s as in the paper, and with skips; BVLC's layers or torchvision's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial, reduce

import torch
from torch import Tensor, nn

from ..weights.preprocessing import INCEPTION
from .alexnet import Variant, check_family
from .base import CAFFE, conv_bn, dropout_layer
from .decoder import Upsampling
from .skipnet import SkipNet, taps_of_stride

STEM = (64, 64, 192)
BLOCKS: dict[str, tuple[int, ...]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# The convolutions of an inception block's branches, whose output channels are above.
ROWS = (("1x1",), ("3x3_reduce", "3x3"), ("5x5_reduce", "5x5"), ("pool_proj",))


def width_of(block: str) -> int:
    """Channels of an inception block's concatenated branches."""
    one, _, three, _, five, pooled = BLOCKS[block]
    return one + three + five + pooled


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

    def __init__(self, channels: int, widths: Sequence[int], family: Variant) -> None:
        super().__init__()
        kernels = {"3x3": 3, "5x5": 5 if family == "caffe" else 3}
        sizes = iter(widths)
        for row in ROWS:
            before = channels
            for name in row:
                width = next(sizes)
                self.add_module(name, _unit(family, before, width, kernels.get(name, 1)))
                before = width
        self.pool = nn.MaxPool2d(3, 1, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def branches(self) -> list[list[nn.Module]]:
        """The layers of every branch, in the order in which they are concatenated."""
        found = [[x for name in row for x in (getattr(self, name), self.relu)] for row in ROWS]
        return [*found[:-1], [self.pool, *found[-1]]]

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
    lrn = partial(nn.LocalResponseNorm, 5, alpha=1e-4, beta=0.75, k=1.0)
    norm: Callable[[], nn.Module] = lrn if caffe else nn.Identity
    pool = partial(nn.MaxPool2d, stride=2, ceil_mode=True)
    w1, w2, channels = STEM
    first, reduced = _unit(family, 3, w1, 7, 2, padding), _unit(family, w1, w2, 1)
    layers: dict[str, nn.Module] = {"conv1": _stage(**{"7x7_s2": first})}
    layers |= {"pool1": pool(3), "norm1": norm()}
    layers["conv2"] = _stage(**{"3x3_reduce": reduced, "3x3": _unit(family, w2, channels, 3)})
    layers |= {"norm2": norm(), "pool2": pool(3)}
    for name, widths in BLOCKS.items():
        if name == "4a":
            layers["pool3"] = pool(3)
        if name == "5a":
            layers["pool4"] = pool(3 if caffe else 2)
        layers[f"inception_{name}"] = Inception(channels, widths, family)
        channels = width_of(name)
    layers["drop"] = dropout_layer(dropout)
    return layers


class FCNGoogLeNet(SkipNet):
    """FCN-32s over GoogLeNet, as in section 4.1 of the paper; 16s and 8s add its skips.

    The paper reports the 32s net only, without code, weights or padding: here every layer pads its
    own border. Skips are read from inception_4e and inception_3b, the last blocks of strides 16
    and 8. Images are at least 31 x 31. Scores start at zero, the trunk at random (He).

    Args:
        family: "caffe" for BVLC's layers, "torchvision" for those of torchvision's weights.
        padding: of the first convolution; 3 is the trunk's own. None: 3, with maps that repeat
            their edge instead of zeros.
        num_classes, stride, dropout, upsampling, final_upsampling: as in `FCNVGG16`.

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
        taps = {f"inception_{name}": width_of(name) for name in ("5b", "4e", "3b")}
        taps = taps_of_stride(stride, taps)
        self.stride, self.family = stride, family
        self.add_trunk(googlenet(family, padding, dropout))
        self.add_heads(taps)
        self.finish(upsampling, final_upsampling)
