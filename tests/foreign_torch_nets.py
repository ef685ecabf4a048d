"""mmsegmentation's network in torch functions, and torchvision's classifiers by their files.

Their maps are compared with those of torchvision itself in tests/interop; see `foreign_nets`.
"""

import math

import torch
import torch.nn.functional as F

from tests.foreign_nets import FULLY_CONNECTED, RESNET, STAGES, TORCHVISION_ALEXNET, Net, rgb

# Blocks of ResNet-50, and numbers of torchvision's convolutions.
DEPTH = (3, 4, 6, 3)
VGG_NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
ALEXNET_NUMBERS = (0, 3, 6, 8, 10)


def drawn(shapes):
    """Weights and biases of layers."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        deviation = (2 / math.prod(shape[1:])) ** 0.5
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * deviation
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.3
    return state


def classifier(inputs, numbers):
    sizes = ((FULLY_CONNECTED, inputs), (FULLY_CONNECTED,) * 2, (17, FULLY_CONNECTED))
    return {f"classifier.{n}": size for n, size in zip(numbers, sizes, strict=True)}


def vgg16(dropout_first=False):
    """torchvision's VGG-16; `dropout_first`: its early layout, with Caffe's values."""
    widths = (3, *(width for stage in STAGES for width in stage))
    rows = zip(VGG_NUMBERS, widths[1:], widths[:-1], strict=True)
    shapes = {f"features.{n}": (width, before, 3, 3) for n, width, before in rows}
    numbers = (1, 4, 6) if dropout_first else (0, 3, 6)
    return drawn(shapes | classifier(widths[-1] * 7**2, numbers))


def alexnet():
    """torchvision's AlexNet."""
    widths, kernels = (3, *TORCHVISION_ALEXNET), (11, 5, 3, 3, 3)
    rows = zip(ALEXNET_NUMBERS, widths[1:], widths[:-1], kernels, strict=True)
    shapes = {f"features.{n}": (width, before, k, k) for n, width, before, k in rows}
    return drawn(shapes | classifier(widths[-1] * 6**2, (1, 4, 6)))


def residual_layers(net, x):
    """The four layers of ResNet-50, the last two dilated."""
    x, maps = F.max_pool2d(x, 3, 2, padding=1), []
    for layer, count in enumerate(DEPTH, 1):
        width, out = RESNET * 2 ** (layer - 1), RESNET * 2 ** (layer + 1)
        for block in range(count):
            name, first = f"backbone.layer{layer}.{block}", block == 0
            stride = 2 if layer == 2 and first else 1
            dilation = {3: (1, 2), 4: (2, 4)}.get(layer, (1, 1))[not first]

            def conv(k, x, width, kernel, name=name, **place):
                x = net.conv(f"{name}.conv{k}", x, width, kernel, False, **place)
                return net.norm(f"{name}.bn{k}", x)

            place = {"stride": stride, "padding": dilation, "dilation": dilation}
            y = conv(3, F.relu(conv(2, F.relu(conv(1, x, width, 1)), width, 3, **place)), out, 1)
            if first:
                x = net.conv(f"{name}.downsample.0", x, out, 1, False, stride=stride)
                x = net.norm(f"{name}.downsample.1", x)
            x = F.relu(x + y)
        maps.append(x)
    return maps


def MMSegmentation():
    """mmsegmentation's fcn_r50-d8: a deep stem, two heads."""

    def define(net, images):
        def unit(x, width, conv, norm, stride=1):
            x = net.conv(conv, x, width, 3, False, padding=1, stride=stride)
            return F.relu(net.norm(norm, x))

        x = rgb(images, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 1)
        for k, width in ((0, RESNET // 2), (3, RESNET // 2), (6, RESNET)):
            stem = "backbone.stem."
            x = unit(x, width, f"{stem}{k}", f"{stem}{k + 1}", 1 if k else 2)
        maps, outputs = residual_layers(net, x), {}
        for output, head, x in (
            ("out", "decode_head", maps[3]),
            ("aux", "auxiliary_head", maps[2]),
        ):
            y, width = x, x.shape[1] // 4
            for k in range(2 if output == "out" else 1):
                y = unit(y, width, f"{head}.convs.{k}.conv", f"{head}.convs.{k}.bn")
            if output == "out":
                both, last = torch.cat((x, y), 1), f"{head}.conv_cat"
                y = unit(both, width, f"{last}.conv", f"{last}.bn")
            y = net.conv(f"{head}.conv_seg", y, 5, 1)
            outputs[output] = F.interpolate(y, images.shape[2:], mode="bilinear")
        return outputs

    return Net(define)
