"""torchvision's and mmsegmentation's networks in plain torch; see `foreign_nets`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.foreign_nets import (
    BLOCK,
    BLOCKS,
    FULLY_CONNECTED,
    RESNET,
    STAGES,
    STEM,
    TORCHVISION_ALEXNET,
    VGG,
    rgb,
    upscore,
)


def windows(linear: nn.Linear, x: Tensor, size: int) -> Tensor:
    """A fully connected layer on every size x size window of a map."""
    n, _, height, width = x.shape
    columns = F.unfold(x, size).transpose(1, 2)
    return linear(columns).transpose(1, 2).reshape(n, -1, height - size + 1, width - size + 1)


class VGG16(VGG):
    """FCN-8s over torchvision's VGG-16, whose layers are sequences; `first` as in its classifier.

    `weights` are the classifier's alone.
    """

    def __init__(self, dropout_first: bool = False) -> None:
        super().__init__(8)
        layers: list[nn.Module] = []
        before = 3
        for widths in STAGES:
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        fc = [
            nn.Linear(before * 49, FULLY_CONNECTED),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(FULLY_CONNECTED, FULLY_CONNECTED),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(FULLY_CONNECTED, 17),
        ]
        if dropout_first:  # an early conversion
            fc = [nn.Dropout(), *fc[:2], nn.Dropout(), *fc[3:5], fc[6]]
        self.classifier = nn.Sequential(*fc)
        self.prepare = rgb

    def weights(self) -> dict[str, Tensor]:
        """What torchvision's file holds."""
        parts = ("features.", "classifier.")
        return {k: v.clone() for k, v in self.state_dict().items() if k.startswith(parts)}

    def scores(self) -> dict[str, Tensor]:
        """The score layers, which no classifier has."""
        return {k: v for k, v in self.state_dict().items() if k.startswith("score_")}

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pools = []
        for index, layer in enumerate(self.features):
            if index == 0:
                x = F.conv2d(x, layer.weight, layer.bias, padding=100)
            elif isinstance(layer, nn.MaxPool2d):
                x = F.max_pool2d(x, 2, 2, ceil_mode=True)
                pools.append(x)
            else:
                x = layer(x)
        fc6, fc7 = [layer for layer in self.classifier if isinstance(layer, nn.Linear)][:2]
        x = F.relu(windows(fc7, F.relu(windows(fc6, x, 7)), 1))
        return x, pools[3], pools[2]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[-2:]
        fc7, pool4, pool3 = self.trunk(self.prepare(images))
        h = self.upscore2(self.score_fr(fc7))
        h = h + self.score_pool4(pool4)[:, :, 5:, 5:][:, :, : h.shape[2], : h.shape[3]]
        h = self.upscore_pool4(h)
        h = h + self.score_pool3(pool3)[:, :, 9:, 9:][:, :, : h.shape[2], : h.shape[3]]
        return {"": self.upscore8(h)[:, :, 31 : 31 + height, 31 : 31 + width]}


class AlexNet(nn.Module):
    """FCN-32s over torchvision's AlexNet, padded by 100 and with poolings that round up."""

    def __init__(self) -> None:
        super().__init__()
        w = TORCHVISION_ALEXNET
        self.features = nn.Sequential(
            nn.Conv2d(3, w[0], 11, 4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(w[0], w[1], 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(w[1], w[2], 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(w[2], w[3], 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(w[3], w[4], 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(w[4] * 36, FULLY_CONNECTED),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(FULLY_CONNECTED, FULLY_CONNECTED),
            nn.ReLU(),
            nn.Linear(FULLY_CONNECTED, 17),
        )
        self.score_fr = nn.Conv2d(FULLY_CONNECTED, 5, 1)
        self.upscore = upscore(5, 63, 32)

    weights, scores = VGG16.weights, VGG16.scores

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = rgb(images)
        for index, layer in enumerate(self.features):
            if index == 0:
                x = F.conv2d(x, layer.weight, layer.bias, stride=4, padding=100)
            elif isinstance(layer, nn.MaxPool2d):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            else:
                x = layer(x)
        x = F.relu(windows(self.classifier[4], F.relu(windows(self.classifier[1], x, 6)), 1))
        x = self.upscore(self.score_fr(x))
        return {"": x[:, :, 18 : 18 + images.shape[2], 18 : 18 + images.shape[3]]}


class ConvBN(nn.Module):
    def __init__(self, before: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    def __init__(self, before: int) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = BLOCK
        self.branch1 = ConvBN(before, one, 1)
        self.branch2 = nn.Sequential(ConvBN(before, reduce3, 1), ConvBN(reduce3, three, 3))
        self.branch3 = nn.Sequential(ConvBN(before, reduce5, 1), ConvBN(reduce5, five, 3))
        pool = nn.MaxPool2d(3, 1, padding=1, ceil_mode=True)
        self.branch4 = nn.Sequential(pool, ConvBN(before, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), 1)


class GoogLeNet(nn.Module):
    """FCN-32s over torchvision's GoogLeNet, which normalizes its input a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBN(3, STEM[0], 7, 2)
        self.conv2 = ConvBN(STEM[0], STEM[1], 1)
        self.conv3 = ConvBN(STEM[1], STEM[2], 3)
        before = STEM[2]
        for block in BLOCKS:
            self.add_module(f"inception{block}", Inception(before))
            before = BLOCK[0] + BLOCK[2] + BLOCK[4] + BLOCK[5]
        self.fc = nn.Linear(before, 17)
        self.score_fr = nn.Conv2d(before, 5, 1)
        self.upscore = upscore(5, 63, 32)

    scores = VGG16.scores

    def weights(self) -> dict[str, Tensor]:
        """What torchvision's file holds."""
        own = ("score_fr", "upscore")
        return {k: v.clone() for k, v in self.state_dict().items() if not k.startswith(own)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = rgb(images)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        channels = [x[:, k] * (std[k] / 0.5) + (mean[k] - 0.5) / 0.5 for k in range(3)]
        x = F.max_pool2d(self.conv1(torch.stack(channels, 1)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.conv3(self.conv2(x)), 3, 2, ceil_mode=True)
        for block in BLOCKS:
            if block == "4a":
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            if block == "5a":
                x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            x = self.get_submodule(f"inception{block}")(x)
        x = self.upscore(self.score_fr(x))
        return {"": x[:, :, 9 : 9 + images.shape[2], 9 : 9 + images.shape[3]]}


class Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or before != 4 * width:
            shortcut = nn.Conv2d(before, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet-50 of stride 8 or 32; `deep` is mmsegmentation's stem."""

    def __init__(self, dilated: bool, deep: bool = False, blocks: tuple[int, ...] = (3, 4, 6, 3)):
        super().__init__()
        if deep:
            half, layers = RESNET // 2, []
            for before, width, stride in ((3, half, 2), (half, half, 1), (half, RESNET, 1)):
                conv = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            self.stem = nn.Sequential(*layers)
        else:
            self.conv1 = nn.Conv2d(3, RESNET, 7, 2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(RESNET)
        before = RESNET
        strides, dilations = (1, 2, 2, 2), ((1, 1),) * 4
        if dilated:
            strides, dilations = (1, 2, 1, 1), ((1, 1), (1, 1), (1, 2), (2, 4))
        for k, (count, stride, (first, other)) in enumerate(
            zip(blocks, strides, dilations, strict=True)
        ):
            width, layers = RESNET * 2**k, []
            for index in range(count):
                start = index == 0
                layers.append(
                    Bottleneck(before, width, stride if start else 1, first if start else other)
                )
                before = 4 * width
            self.add_module(f"layer{k + 1}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x) if hasattr(self, "stem") else F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, padding=1)
        maps = []
        for k in range(1, 5):
            x = self.get_submodule(f"layer{k}")(x)
            maps.append(x)
        return maps


def head(before: int, width: int, classes: int) -> nn.Sequential:
    """torchvision's FCNHead."""
    return nn.Sequential(
        nn.Conv2d(before, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(width, classes, 1),
    )


class Segmentation(nn.Module):
    """torchvision's fcn_resnet50, with its auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(dilated=True)
        self.classifier = head(32 * RESNET, 8 * RESNET, 5)
        self.aux_classifier = head(16 * RESNET, 4 * RESNET, 5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(rgb(images))
        heads = {"": self.classifier(maps[3]), "aux": self.aux_classifier(maps[2])}
        size = images.shape[-2:]
        return {
            name: F.interpolate(x, size, mode="bilinear", align_corners=False)
            for name, x in heads.items()
        }
