"""mmsegmentation's FCN: a dilated ResNet, with a deep stem, and its heads under their names."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .base import Preprocessing, dropout_layer
from .resnet import DilatedFCN, resnet

# RGB in 0..255.
MMSEG = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


class ConvBN(nn.Module):
    """A 3 x 3 convolution, batch norm and ReLU, with mmsegmentation's names."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w to N x C' x h x w."""
        return self.relu(self.bn(self.conv(x)))


class Head(nn.Module):
    """3 x 3 convolutions to a quarter of the channels, then scores.

    concat: one more convolution over their input and result together.
    """

    def __init__(
        self, channels: int, convs: int, concat: bool, classes: int, dropout: float
    ) -> None:
        super().__init__()
        width = channels // 4
        widths = [channels, *[width] * convs]
        self.convs = nn.Sequential(*map(ConvBN, widths[:-1], widths[1:]))
        self.conv_cat = ConvBN(channels + width, width) if concat else None
        self.dropout = dropout_layer(dropout)
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w to scores of the same size."""
        y = self.convs(x)
        if self.conv_cat is not None:
            y = self.conv_cat(torch.cat((x, y), 1))
        return self.conv_seg(self.dropout(y))


def _deep_stem(width: int) -> nn.Sequential:
    """Three 3 x 3 convolutions of stride 2 together, instead of one 7 x 7."""
    stem = nn.Sequential()
    widths = (3, width // 2, width // 2, width)
    for number, (before, after_it) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        stride = 2 if number == 0 else 1
        stem.append(nn.Conv2d(before, after_it, 3, stride, padding=1, bias=False))
        stem.append(nn.BatchNorm2d(after_it))
        stem.append(nn.ReLU(inplace=True))
    return stem


class FCNMMSeg(DilatedFCN):
    """mmsegmentation's FCN: a dilated ResNet of stride 8, a head on layer4, another on layer3.

    Keys, inputs and outputs are those of its ``fcn_r50-d8`` and ``fcn_r101-d8``.

    Args:
        num_classes: C.
        depth: 50 or 101.
        deep_stem: three convolutions before the first pooling, as in its own ResNets, not one.
        aux_loss: have the auxiliary head, output "aux"; it counts half in the loss.
        dropout: before the scores, elementwise.
    """

    head_names = ("decode_head", "auxiliary_head")
    trunk_modules = ("backbone",)

    def __init__(
        self,
        num_classes: int = 19,
        *,
        depth: int = 50,
        deep_stem: bool = True,
        aux_loss: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes, MMSEG)
        self.deep_stem = deep_stem
        layers, widths = resnet(depth, dilate=True)
        if deep_stem:
            stem = _deep_stem(cast(nn.Conv2d, layers["conv1"]).out_channels)
            for name in ("conv1", "bn1", "relu"):
                del layers[name]
            layers = {"stem": stem, **layers}
        self.backbone = nn.ModuleDict(layers)
        self.decode_head = Head(widths["layer4"], 2, True, num_classes, dropout)
        auxiliary = Head(widths["layer3"], 1, False, num_classes, dropout) if aux_loss else None
        self.auxiliary_head = auxiliary
        for name, layer in self.named_modules():
            self.initialize(name, layer)

    def initialize(self, name: str, layer: nn.Module) -> None:
        """He for all but the scores, which start at zero."""
        if name.endswith("conv_seg"):
            for parameter in layer.parameters(recurse=False):
                nn.init.zeros_(parameter)
        else:
            super().initialize(name, layer)
