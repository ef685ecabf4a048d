"""torchvision's and mmsegmentation's networks in torch functions; see `foreign_nets`."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tests import foreign_nets
from tests.foreign_nets import (
    FULLY_CONNECTED,
    RESNET,
    STAGES,
    TORCHVISION_ALEXNET,
    Net,
    alexnet,
    alexnet_scores,
    bgr,
    rgb,
    skips,
)

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Numbers of torchvision's convolutions.
VGG_NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def VGG16(dropout_first: bool = False) -> Net:
    """FCN-8s over torchvision's VGG-16; `dropout_first`: its early layout, with Caffe's values."""
    fc6, fc7, fc8 = (1, 4, 6) if dropout_first else (0, 3, 6)
    prepare = partial(bgr, mean=(103.939, 116.779, 123.68)) if dropout_first else rgb

    def define(net: Net, images: Tensor) -> dict[str, Tensor]:
        x, pools, numbers = prepare(images), [], iter(VGG_NUMBERS)
        for widths in STAGES:
            for width in widths:
                number = next(numbers)
                padding = 1 if number else 100
                x = F.relu(net.conv(f"features.{number}", x, width, 3, padding=padding))
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            pools.append(x)
        for number, size in ((fc6, 7), (fc7, 1)):
            x = F.relu(net.windows(f"classifier.{number}", x, FULLY_CONNECTED, size))
        net.windows(f"classifier.{fc8}", x, 17, 1)
        return {"out": skips(net, [*pools[2:4], x], images.shape[2:], 8)}

    return Net(define)


def AlexNet() -> Net:
    """FCN-32s over torchvision's AlexNet, padded by 100 and with poolings that round up."""

    def define(net: Net, images: Tensor) -> dict[str, Tensor]:
        names = [f"features.{number}" for number in (0, 3, 6, 8, 10)]
        x = alexnet(net, rgb(images), names, TORCHVISION_ALEXNET, False)
        for number, size in ((1, 6), (4, 1)):
            x = F.relu(net.windows(f"classifier.{number}", x, FULLY_CONNECTED, size))
        net.windows("classifier.6", x, 17, 1)
        return alexnet_scores(net, x, images.shape[2:])

    return Net(define)


def GoogLeNet(stride: int = 32) -> Net:
    return foreign_nets.GoogLeNet(stride, caffe=False)


def resnet(
    net: Net, x: Tensor, depth: int, prefix: str = "", dilated: bool = False
) -> list[Tensor]:
    """torchvision's four maps, of strides 4 to 32; dilated, the last two keep the stride of 8."""
    x = F.relu(
        net.norm(
            f"{prefix}bn1", net.conv(f"{prefix}conv1", x, RESNET, 7, False, stride=2, padding=3)
        )
    )
    return residual_layers(net, x, depth, prefix, dilated)


def residual_layers(net: Net, x: Tensor, depth: int, prefix: str, dilated: bool) -> list[Tensor]:
    x = F.max_pool2d(x, 3, 2, padding=1)
    maps = []
    for layer, count in enumerate(DEPTHS[depth], 1):
        width, out = (
            RESNET * 2 ** (layer - 1),
            RESNET * 2 ** (layer + 1 if depth > 34 else layer - 1),
        )
        for block in range(count):
            name, first = f"{prefix}layer{layer}.{block}", block == 0
            stride, dilation = 2 if layer > 1 and first else 1, 1
            if dilated and layer > 2:
                stride, dilation = 1, {3: (1, 2), 4: (2, 4)}[layer][not first]

            def conv(
                k: int, x: Tensor, width: int, kernel: int, name: str = name, **place: int
            ) -> Tensor:
                return net.norm(
                    f"{name}.bn{k}", net.conv(f"{name}.conv{k}", x, width, kernel, False, **place)
                )

            place = {"stride": stride, "padding": dilation, "dilation": dilation}
            if depth > 34:  # a bottleneck
                y = F.relu(conv(2, F.relu(conv(1, x, width, 1)), width, 3, **place))
                y = conv(3, y, out, 1)
            else:
                y = conv(2, F.relu(conv(1, x, width, 3, **place)), width, 3, padding=1)
            if stride > 1 or x.shape[1] != out:
                x = net.conv(f"{name}.downsample.0", x, out, 1, False, stride=stride)
                x = net.norm(f"{name}.downsample.1", x)
            x = F.relu(x + y)
        maps.append(x)
    return maps


def ResNet(depth: int, classes: int = 5) -> Net:
    """FCN-8s over a ResNet. Unit u of stride S lies on pixel S u: resizes that keep the corners
    put it there when the picture is of 32 n + 1 pixels."""

    def define(net: Net, images: Tensor) -> dict[str, Tensor]:
        maps = resnet(net, rgb(images), depth)
        scores = net.conv("score_fr", maps[3], classes, 1)
        for k in (2, 1):
            skip = net.conv(f"score_layer{k + 1}", maps[k], classes, 1)
            scores = F.interpolate(scores, skip.shape[2:], None, "bilinear", True) + skip
        return {"out": F.interpolate(scores, images.shape[2:], None, "bilinear", True)}

    return Net(define)


def Segmentation(depth: int = 50) -> Net:
    """torchvision's fcn_resnet50 or 101, with its auxiliary head."""

    def define(net: Net, images: Tensor) -> dict[str, Tensor]:
        maps = resnet(net, rgb(images), depth, "backbone.", dilated=True)
        outputs = {}
        for output, head, x in (("out", "classifier", maps[3]), ("aux", "aux_classifier", maps[2])):
            x = net.conv(f"{head}.0", x, x.shape[1] // 4, 3, False, padding=1)
            x = net.conv(f"{head}.4", F.relu(net.norm(f"{head}.1", x)), 5, 1)
            outputs[output] = F.interpolate(x, images.shape[2:], mode="bilinear")
        return outputs

    return Net(define)


def MMSegmentation() -> Net:
    """mmsegmentation's fcn_r50-d8: a deep stem, two heads."""

    def define(net: Net, images: Tensor) -> dict[str, Tensor]:
        def unit(x: Tensor, width: int, conv: str, norm: str, stride: int = 1) -> Tensor:
            x = net.conv(conv, x, width, 3, False, padding=1, stride=stride)
            return F.relu(net.norm(norm, x))

        x = rgb(images, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 1)
        for k, width in ((0, RESNET // 2), (3, RESNET // 2), (6, RESNET)):
            stem = "backbone.stem."
            x = unit(x, width, f"{stem}{k}", f"{stem}{k + 1}", 1 if k else 2)
        maps, outputs = residual_layers(net, x, 50, "backbone.", True), {}
        for output, head, x in (
            ("out", "decode_head", maps[3]),
            ("aux", "auxiliary_head", maps[2]),
        ):
            y, width = x, x.shape[1] // 4
            for k in range(2 if output == "out" else 1):
                y = unit(y, width, f"{head}.convs.{k}.conv", f"{head}.convs.{k}.bn")
            if output == "out":
                y = unit(
                    torch.cat((x, y), 1), width, f"{head}.conv_cat.conv", f"{head}.conv_cat.bn"
                )
            y = net.conv(f"{head}.conv_seg", y, 5, 1)
            outputs[output] = F.interpolate(y, images.shape[2:], mode="bilinear")
        return outputs

    return Net(define)
