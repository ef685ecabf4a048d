"""The FCNs over VGG-16 of the paper: FCN-32s, FCN-16s, FCN-8s staged and at-once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import CAFFE, check_count, dropout_layer
from .decoder import Upsampling
from .skipnet import SkipNet, taps_of_stride

# Output channels of the convolutions between two poolings.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Output channels of the fully connected layers, made convolutions.
FULLY_CONNECTED = 4096
# The at-once net scales its skips, so that all streams learn at similar rates.
AT_ONCE_SCALES = {"pool4": 0.01, "pool3": 0.0001}


class FullyConnected(nn.Conv2d):
    """A convolution of stride 1 with many more weights than its map has units, as fc6.

    A CPU's convolution reorders its weights first, which takes longer here than the work itself:
    for one picture, FCN-8s is 1.2 times as fast with a matrix product.
    """

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w to N x C' x h' x w'."""
        weight, pad = self.weight, int(self.padding[0])
        kernel = weight.shape[2]
        height, width = (n + 2 * pad - kernel + 1 for n in x.shape[2:])
        plain = x.device.type == "cpu" and not torch.is_grad_enabled() and weight.is_contiguous()
        if not plain or not 0 < len(x) * height * width <= self.out_channels / 8:
            return super().forward(x)
        patches = F.pad(x, (pad,) * 4).unfold(2, kernel, 1).unfold(3, kernel, 1)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
        return F.linear(patches, weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def fully_connected(
    channels: int,
    kernel: int,
    dropout: float,
    padding: int | None,
    fc6_padding: int,
    dropout_first: bool = False,
) -> dict[str, nn.Module]:
    """The classifier of AlexNet and VGG as convolutions: fc6 and fc7, each with ReLU and dropout.

    Raises ValueError for an fc6_padding beyond half of fc6's kernel, or with a padded canvas.
    """
    if padding is not None and fc6_padding:
        raise ValueError("fc6_padding needs padding=None: with a padded canvas fc6 has none")
    if type(fc6_padding) is not int or not 0 <= fc6_padding <= kernel // 2:
        raise ValueError(f"fc6_padding must be 0 to {kernel // 2}, not {fc6_padding!r}")
    width = FULLY_CONNECTED
    fc6 = FullyConnected(channels, width, kernel, padding=fc6_padding)
    layers: dict[str, nn.Module] = {}
    for number, conv in ((6, fc6), (7, nn.Conv2d(width, width, 1))):
        drop: dict[str, nn.Module] = {f"drop{number}": dropout_layer(dropout)}
        unit = {f"fc{number}": conv, f"relu{number}": nn.ReLU(inplace=True)}
        layers |= drop | unit if dropout_first else unit | drop
    return layers


def vgg16(
    padding: int | None, fc6_padding: int, dropout: float, *, channels: int = 3, first: str = ""
) -> dict[str, nn.Module]:
    """The layers of VGG-16 up to fc7; `first`: the name of the first convolution, if it differs."""
    layers: dict[str, nn.Module] = {}
    for stage, widths in enumerate(STAGES, 1):
        for number, width in enumerate(widths, 1):
            name = f"{stage}_{number}"
            pad = 1 if layers or padding is None else padding
            conv = nn.Conv2d(channels, width, 3, padding=pad)
            layers[f"conv{name}" if layers or not first else first] = conv
            layers[f"relu{name}"] = nn.ReLU(inplace=True)
            channels = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
    return layers | fully_connected(channels, 7, dropout, padding, fc6_padding)


class FCNVGG16(SkipNet):
    """VGG-16 made fully convolutional, with skips from pool4 and pool3 (section 4 of the paper).

    Layers carry the names of the reference implementation. Poolings round up; the first
    convolution is padded by 100 pixels so that images of any size from 1 x 1 have a score map.
    Scores start at zero, upsampling bilinear, the trunk at random (He): load classifier weights.

    Args:
        num_classes: C.
        stride: 32, 16 or 8: the stride of the finest scores.
        at_once: scale the skips, for training all streams from the start (stride 8).
        geo_classes: classes of a second head, "geo" (SIFT Flow); layers are named _sem and _geo.
        padding: of the first convolution, at least 81, 73 or 69 for strides 32, 16 and 8. Weights
            only fit the padding that they were trained with, 100 for the released ones. None
            halves the work, for new training: every 3 x 3 convolution pads its own border, maps
            are sampled where they lie, and images are at least 193 x 193.
        fc6_padding: with padding=None, cells that fc6 pads: 3 for images of any size, 0 for half
            the work of fc6.
        dropout: after fc6 and fc7, elementwise.
        upsampling, final_upsampling: see `set_upsampling`.

    ValueError when a number of classes is below 1, the stride is not 32, 16 or 8, at_once is given
    without stride 8, or no crop fits the padding.
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        stride: int = 8,
        at_once: bool = False,
        geo_classes: int | None = None,
        padding: int | None = 100,
        fc6_padding: int = 0,
        dropout: float = 0.5,
        upsampling: Upsampling = "fixed",
        final_upsampling: Upsampling | None = None,
    ) -> None:
        super().__init__(num_classes, CAFFE, padding)
        taps = {"fc7": FULLY_CONNECTED, "pool4": STAGES[3][-1], "pool3": STAGES[2][-1]}
        taps = taps_of_stride(stride, taps)
        if at_once and stride != 8:
            raise ValueError(f"at_once needs stride 8, not {stride}")
        self.stride, self.at_once = stride, at_once
        self.add_trunk(vgg16(padding, fc6_padding, dropout))
        heads = {"out": ("", num_classes)}
        if geo_classes is not None:
            check_count("geo_classes", geo_classes)
            heads = {"out": ("_sem", num_classes), "geo": ("_geo", geo_classes)}
        self.add_heads(taps, heads)
        self.scales = AT_ONCE_SCALES if at_once else {}
        self.finish(upsampling, final_upsampling)


class FCNPool(SkipNet):
    """VGG-16 up to one pooling, whose map alone is scored: what each skip sees (PAMI 2016).

    Args:
        num_classes: C.
        pool: 5, 4 or 3, of stride 32, 16 or 8.
        padding, upsampling, final_upsampling: as of `FCNVGG16`.

    ValueError as of `FCNVGG16`.
    """

    cut_trunk = True

    def __init__(
        self,
        num_classes: int = 21,
        *,
        pool: int = 5,
        padding: int | None = 100,
        upsampling: Upsampling = "fixed",
        final_upsampling: Upsampling | None = None,
    ) -> None:
        super().__init__(num_classes, CAFFE, padding)
        tap, layers = f"pool{pool}", vgg16(padding, 0, 0.0)
        self.add_trunk(dict(list(layers.items())[: list(layers).index(tap) + 1]))
        self.add_heads({tap: STAGES[pool - 1][-1]})
        self.finish(upsampling, final_upsampling)

    def _score_name(self, tap: str, suffix: str) -> str:
        return f"score_{tap}"
