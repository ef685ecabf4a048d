"""FCNs over ResNets: torchvision's, mmsegmentation's, and FCN-8s over any of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..geometry import SamplingGrid
from ..weights.preprocessing import MMSEG
from .base import FCN, IMAGENET, ScoreMap, conv_bn, dropout_layer
from .decoder import IMAGE, Located, Upsampling, after, on_image
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


class Residual(nn.Module):
    """A residual block of torchvision's ResNets, with its names; the (first) 3 x 3 has the stride.

    width: of the middle. bottleneck: 1 x 1, 3 x 3, 1 x 1 instead of two 3 x 3. project: a 1 x 1
    convolution as shortcut.
    """

    def __init__(
        self, channels: int, width: int, bottleneck: bool, stride: int, dilation: int, project: bool
    ) -> None:
        super().__init__()
        out = width * EXPANSION if bottleneck else width
        sizes = [(channels, width, 3), (width, width, 3)]
        if bottleneck:
            sizes = [(channels, width, 1), (width, width, 3), (width, out, 1)]
        self.count = len(sizes)
        for number, (before, after_it, kernel) in enumerate(sizes, 1):
            step = stride if number == self.count - 1 else 1
            apart = dilation if kernel == 3 else 1
            conv = nn.Conv2d(before, after_it, kernel, step, kernel // 2 * apart, apart, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(after_it))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if project:
            self.downsample = nn.Sequential(*conv_bn(channels, out, 1, stride))

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
    layers: dict[str, nn.Module] = dict(zip(("conv1", "bn1"), conv_bn(3, WIDTH, 7, 2), strict=True))
    layers |= {"relu": nn.ReLU(inplace=True), "maxpool": nn.MaxPool2d(3, 2, padding=1)}
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
        unit = [*conv_bn(channels, width, 3), nn.ReLU(inplace=True)]
        super().__init__(*unit, dropout_layer(dropout), nn.Conv2d(width, classes, 1))


class DilatedFCN(FCN):
    """A dilated ResNet of stride 8, a head on its layer4 ("out"), and one on layer3 ("aux").

    Scores are resized regardless of where their units lie, as in torchvision and mmsegmentation.
    head_names: attributes with the two heads; the second head may be None.
    """

    backbone: nn.ModuleDict
    head_names: tuple[str, str]
    trunk_modules = ("backbone",)
    aligned = False

    def score_maps(
        self, images: Tensor, heads: Collection[str] | None = None
    ) -> dict[str, ScoreMap]:
        """Scores at stride 8: "out", and "aux" if there is that head."""
        here = before = Located(images, IMAGE)
        for layer in self.backbone.values():
            before, here = here, Located(layer(here.x), after(here.field, layer))
        found, size = {}, tuple(images.shape[-2:])
        both = zip(("out", "aux"), self.head_names, (here, before), strict=True)
        for head, name, (x, field) in both:
            layer = getattr(self, name)
            if layer is not None and (heads is None or head in heads):
                x = layer(x)
                found[head] = ScoreMap(x, SamplingGrid.resize(tuple(x.shape[-2:]), size))
                if self.aligned:
                    found[head] = on_image(Located(x, field), size, "clamp")
        return found


class FCNResNet(DilatedFCN):
    """torchvision's FCN: a dilated ResNet of stride 8, a head on layer4, an auxiliary on layer3.

    Keys, inputs and outputs are torchvision's, and so is the resize, which draws unit u of the
    scores at pixel 8u + 3.5, though it lies on 8u. New scores start at zero, as in the paper.

    Args:
        depth: 50 or 101.
        aux_loss: add the auxiliary head, output "aux"; it counts half in the loss.
        aligned: sample the scores where their units lie, for new training.
        num_classes, dropout: C, and before the scores.
    """

    head_names = ("classifier", "aux_classifier")
    variance = "fan_out"

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
            super().initialize(name, layer)
        elif isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
            layer.reset_parameters()


class FCN8sResNet(SkipNet):
    """FCN-8s over a ResNet of stride 32: scores of layer4, layer3 and layer2, fused as over VGG.

    Every convolution pads its own border: no large padding, images of any size from 1 x 1. Score
    layers start at zero, upsampling is bilinear, the trunk starts at random (He).

    depth: 18, 34, 50 or 101. dropout: of layer4's map before its scores. Others: as in `FCNVGG16`.
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


def _unit(channels: int, width: int) -> nn.Sequential:
    """A 3 x 3 convolution, batch norm and ReLU, with mmsegmentation's names."""
    conv, norm = conv_bn(channels, width, 3)
    return nn.Sequential(OrderedDict(conv=conv, bn=norm, relu=nn.ReLU(inplace=True)))


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
        self.convs = nn.Sequential(*map(_unit, widths[:-1], widths[1:]))
        self.conv_cat = _unit(channels + width, width) if concat else None
        self.dropout = dropout_layer(dropout)
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w to scores of the same size."""
        y = self.convs(x)
        if self.conv_cat is not None:
            y = self.conv_cat(torch.cat((x, y), 1))
        return self.conv_seg(self.dropout(y))


class FCNMMSeg(DilatedFCN):
    """mmsegmentation's FCN: a dilated ResNet of stride 8, a head on layer4, one on layer3.

    Keys, inputs and outputs are those of its ``fcn_r50-d8`` and ``fcn_r101-d8``.

    deep_stem: three convolutions before the first pooling, as in its own ResNets, not one. The
    other arguments are those of `FCNResNet`.
    """

    head_names = ("decode_head", "auxiliary_head")

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
            stem, half = nn.Sequential(), WIDTH // 2
            for before, width, stride in ((3, half, 2), (half, half, 1), (half, WIDTH, 1)):
                stem.extend([*conv_bn(before, width, 3, stride), nn.ReLU(inplace=True)])
            layers = {"stem": stem, **dict(list(layers.items())[3:])}
        self.backbone = nn.ModuleDict(layers)
        self.decode_head = Head(widths["layer4"], 2, True, num_classes, dropout)
        auxiliary = Head(widths["layer3"], 1, False, num_classes, dropout) if aux_loss else None
        self.auxiliary_head = auxiliary
        for name, layer in self.named_modules():
            self.initialize(name, layer)
