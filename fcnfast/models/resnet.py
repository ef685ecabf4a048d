"""FCNs over ResNets: torchvision's, mmsegmentation's, and FCN-8s over any of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from ..geometry import SamplingGrid
from .base import FCN, IMAGENET, Preprocessing, ScoreMap, dropout_layer
from .decoder import IMAGE, Located, Upsampling, after, image_grid_aligned
from .skipnet import SkipNet

# Blocks of the four layers, and whether they are bottlenecks.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
# Width of the stem and of the first layer; every layer doubles it.
WIDTH = 64
# A bottleneck's result is this many times wider than its middle.
EXPANSION = 4
LAYERS = ("layer1", "layer2", "layer3", "layer4")
# mmsegmentation's, of RGB in 0..255.
MMSEG = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


class Residual(nn.Module):
    """A residual block of torchvision's ResNets, with its names; the (first) 3 x 3 has the stride.

    Args:
        channels: of the input; width: of the middle; bottleneck: 1 x 1, 3 x 3, 1 x 1 instead of
            two 3 x 3; stride, dilation: of the first 3 x 3; project: a 1 x 1 shortcut.
    """

    def __init__(
        self, channels: int, width: int, bottleneck: bool, stride: int, dilation: int, project: bool
    ) -> None:
        super().__init__()
        out = width * EXPANSION if bottleneck else width

        def three(before: int, stride: int) -> nn.Conv2d:
            return nn.Conv2d(before, width, 3, stride, dilation, dilation, bias=False)

        convs = [three(channels, stride), three(width, 1)]
        if bottleneck:
            narrow = nn.Conv2d(channels, width, 1, bias=False)
            convs = [narrow, three(width, stride), nn.Conv2d(width, out, 1, bias=False)]
        self.count = len(convs)
        for number, conv in enumerate(convs, 1):
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(conv.out_channels))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if project:
            shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w to N x C' x h' x w', h' = h / stride rounded up."""
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < self.count:
                y = self.relu(y)
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))

    def branches(self) -> list[list[nn.Module]]:
        """The convolutions, and the shortcut."""
        convs = [getattr(self, f"conv{number}") for number in range(1, self.count + 1)]
        return [convs, [] if self.downsample is None else [self.downsample]]


def resnet(depth: int, dilate: bool) -> tuple[dict[str, nn.Module], dict[str, int]]:
    """The layers of a ResNet and the channels of its four maps.

    Every convolution pads its own border, so that unit u of a map of stride S lies on pixel S * u.
    With `dilate` the last two layers dilate, and the stride stays at 8.
    """
    counts, bottleneck = DEPTHS[depth]
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, WIDTH, 7, 2, padding=3, bias=False),
        "bn1": nn.BatchNorm2d(WIDTH),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, 2, padding=1),
    }
    channels, widths, dilation = WIDTH, {}, 1
    for number, (name, count) in enumerate(zip(LAYERS, counts, strict=True)):
        width = WIDTH * 2**number
        out = width * EXPANSION if bottleneck else width
        stride = 1 if number == 0 else 2
        before = dilation  # the first block of a layer still dilates as the layer before
        if dilate and number >= 2:
            stride, dilation = 1, 2 * dilation
        blocks = nn.Sequential()
        for index in range(count):
            project = index == 0 and (channels != out or number > 0)
            place = (stride, before) if index == 0 else (1, dilation)
            blocks.append(Residual(channels, width, bottleneck, *place, project))
            channels = out
        layers[name], widths[name] = blocks, out
    return layers, widths


class FCNHead(nn.Sequential):
    """torchvision's head: 3 x 3 convolution to a quarter of the channels, dropout, scores."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        width = channels // 4
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            dropout_layer(dropout),
            nn.Conv2d(width, classes, 1),
        )


class DilatedFCN(FCN):
    """A dilated ResNet of stride 8, a head on its layer4 ("out"), and one on layer3 ("aux").

    Scores are resized regardless of where their units lie, as in torchvision and mmsegmentation.
    head_names: attributes with the two heads; the second head may be None.
    """

    backbone: nn.ModuleDict
    head_names: tuple[str, str]
    heads_begin = ("classifier", "aux_classifier", "decode_head", "auxiliary_head")

    def features(self, images: Tensor) -> dict[str, Located]:
        """The maps of layer3 and layer4, both of stride 8."""
        found, here = {}, Located(images, IMAGE)
        for name, layer in self.backbone.items():
            here = found[name] = Located(layer(here.x), after(here.field, layer))
        return {name: found[name] for name in LAYERS[2:]}

    def score_maps(
        self, images: Tensor, heads: Collection[str] | None = None
    ) -> dict[str, ScoreMap]:
        """Scores at stride 8: "out", and "aux" if there is that head."""
        features, found = self.features(images), {}
        for head, name, attribute in zip(
            ("out", "aux"), ("layer4", "layer3"), self.head_names, strict=True
        ):
            layer = getattr(self, attribute)
            if layer is not None and (heads is None or head in heads):
                scores = Located(layer(features[name].x), features[name].field)
                found[head] = ScoreMap(scores.x, self._grid(scores, tuple(images.shape[-2:])))
        return found

    def _grid(self, scores: Located, size: tuple[int, ...]) -> SamplingGrid:
        return SamplingGrid.resize(tuple(scores.x.shape[-2:]), size)


class FCNResNet(DilatedFCN):
    """torchvision's FCN: a dilated ResNet of stride 8, a head on layer4, an auxiliary on layer3.

    Keys, inputs and outputs are torchvision's, and so is the resize, which draws unit u of the
    scores at pixel 8u + 3.5, though it lies on 8u. New scores start at zero, as in the paper.

    Args:
        num_classes: C.
        depth: 50 or 101.
        aux_loss: add the auxiliary head, output "aux"; it counts half in the loss.
        aligned: sample the scores where their units lie, for new training.
        dropout: before the scores, elementwise.
    """

    head_names = ("classifier", "aux_classifier")
    trunk_modules = ("backbone",)

    def __init__(
        self,
        num_classes: int = 21,
        *,
        depth: int = 50,
        aux_loss: bool = True,
        aligned: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes, IMAGENET)
        layers, widths = resnet(depth, dilate=True)
        self.backbone = nn.ModuleDict(layers)
        self.aligned = aligned
        self.classifier = FCNHead(widths["layer4"], num_classes, dropout)
        self.aux_classifier = FCNHead(widths["layer3"], num_classes, dropout) if aux_loss else None
        for name, layer in self.named_modules():
            self.initialize(name, layer)

    def initialize(self, name: str, layer: nn.Module) -> None:
        """As torchvision: He for the backbone, torch's default for the heads; scores are zero."""
        if name in ("classifier.4", "aux_classifier.4"):
            for parameter in layer.parameters(recurse=False):
                nn.init.zeros_(parameter)
        elif isinstance(layer, nn.Conv2d) and name.startswith("backbone."):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
            layer.reset_parameters()

    def _grid(self, scores: Located, size: tuple[int, ...]) -> SamplingGrid:
        return image_grid_aligned(scores, size) if self.aligned else super()._grid(scores, size)


class FCN8sResNet(SkipNet):
    """FCN-8s over a ResNet of stride 32: scores of layer4, layer3 and layer2, fused as over VGG.

    Every convolution pads its own border: no large padding, images of any size from 1 x 1. Score
    layers start at zero, upsampling is bilinear, the trunk starts at random (He).

    Args:
        num_classes: C.
        depth: 18, 34, 50 or 101.
        dropout: of layer4's map before its scores, elementwise.
        upsampling, final_upsampling: see `set_upsampling`.
    """

    variance = "fan_out"  # as torchvision

    def __init__(
        self,
        num_classes: int = 21,
        *,
        depth: int = 50,
        dropout: float = 0.0,
        upsampling: Upsampling = "fixed",
        final_upsampling: Upsampling | None = None,
    ) -> None:
        super().__init__(num_classes, IMAGENET)
        layers, widths = resnet(depth, dilate=False)
        self.add_trunk({**layers, "drop": dropout_layer(dropout)})
        self.add_heads({name: widths[name] for name in LAYERS[:0:-1]})
        self.finish(upsampling, final_upsampling)


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
    """mmsegmentation's FCN: a dilated ResNet of stride 8, a head on layer4, one on layer3.

    Keys, inputs and outputs are those of its ``fcn_r50-d8`` and ``fcn_r101-d8``.

    Args:
        num_classes: C.
        depth: 50 or 101.
        deep_stem: three convolutions before the first pooling, as in its own ResNets, not one.
        aux_loss: add the auxiliary head, output "aux"; it counts half in the loss.
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
