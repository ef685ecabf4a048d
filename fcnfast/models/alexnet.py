"""FCN-AlexNet of the paper, over CaffeNet or over torchvision's variant."""

from __future__ import annotations

from typing import Literal

from torch import nn

from . import vgg
from .base import CAFFE, IMAGENET
from .decoder import Upsampling
from .skipnet import SkipNet

Variant = Literal["caffe", "torchvision"]
# Output channels of the five convolutions.
WIDTHS = {"caffe": (96, 256, 384, 384, 256), "torchvision": (64, 192, 384, 256, 256)}


def check_family(family: str) -> None:
    """Raise ValueError for an unknown `family` of layers."""
    if family not in WIDTHS:
        raise ValueError(f"family must be one of {', '.join(WIDTHS)}, not {family!r}")


def alexnet(
    family: Variant, padding: int | None, fc6_padding: int, dropout: float
) -> dict[str, nn.Module]:
    """The layers up to fc7. CaffeNet pools before it normalizes, and groups three convolutions."""
    caffe = family == "caffe"
    w1, w2, w3, w4, w5 = WIDTHS[family]
    groups = 2 if caffe else 1
    layers: dict[str, nn.Module] = {}

    convs = (
        nn.Conv2d(3, w1, 11, 4, padding=5 if padding is None else padding),
        nn.Conv2d(w1, w2, 5, padding=2, groups=groups),
        nn.Conv2d(w2, w3, 3, padding=1),
        nn.Conv2d(w3, w4, 3, padding=1, groups=groups),
        nn.Conv2d(w4, w5, 3, padding=1, groups=groups),
    )
    for number, conv in enumerate(convs, 1):
        layers |= {f"conv{number}": conv, f"relu{number}": nn.ReLU(inplace=True)}
        if number in (1, 2, 5):
            layers[f"pool{number}"] = nn.MaxPool2d(3, 2, ceil_mode=True)
        if caffe and number in (1, 2):
            layers[f"norm{number}"] = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
    settings = (dropout, padding, fc6_padding)
    return layers | vgg.fully_connected(w5, 6, *settings, dropout_first=not caffe)


class FCNAlexNet(SkipNet):
    """FCN-32s over CaffeNet: units lie on whole pixels, so the last kernel is 63, not 64.

    Score layers start at zero, upsampling is bilinear, and the trunk starts at random (He).

    Args:
        family: "caffe" for CaffeNet (the paper's), "torchvision" for the layers of torchvision's
            AlexNet, whose poolings round up here, so that crops fit.
        padding: of the first convolution, at least 82; weights only fit the padding that they were
            trained with. None: no padded canvas, images of at least 189 x 189.
        fc6_padding: with padding=None, cells that fc6 pads, 0 to 3.
        num_classes, dropout, upsampling, final_upsampling: as in `FCNVGG16`.

    ValueError when the family is unknown, or no crop fits the padding.
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        family: Variant = "caffe",
        padding: int | None = 100,
        fc6_padding: int = 0,
        dropout: float = 0.5,
        upsampling: Upsampling = "fixed",
        final_upsampling: Upsampling | None = None,
    ) -> None:
        check_family(family)
        super().__init__(num_classes, CAFFE if family == "caffe" else IMAGENET, padding)
        self.family = family
        self.add_trunk(alexnet(family, padding, fc6_padding, dropout))
        self.add_heads({"fc7": vgg.FULLY_CONNECTED})
        self.finish(upsampling, final_upsampling)
