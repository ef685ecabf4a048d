"""The FCNs over VGG-16 of the paper: FCN-32s, FCN-16s, FCN-8s staged and at-once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .base import CAFFE, FCN, ScoreMap
from .decoder import IMAGE, Located, after, fuse, image_grid

# Output channels of the convolutions between two poolings.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Output channels of the fully connected layers, made convolutions.
FULLY_CONNECTED = 4096
# The at-once net scales its skips, so that all streams learn at similar rates.
AT_ONCE_SCALES = {"pool4": 0.01, "pool3": 0.0001}


class FCNVGG16(FCN):
    """VGG-16 made fully convolutional, with skips from pool4 and pool3 (section 4 of the paper).

    Layers carry the names of the reference implementation. Poolings round up; the first
    convolution is padded by 100 pixels so that images of any size from 1 x 1 have a score map.
    Score layers start at zero, upsampling is bilinear and fixed; the trunk starts at random (He)
    and is meant to be replaced by a classifier's weights.

    Args:
        num_classes: C.
        stride: 32, 16 or 8: the stride of the finest scores.
        at_once: scale the skips, for training all streams from the start (stride 8).
        padding: of the first convolution, at least 81, 73 or 69 for strides 32, 16 and 8.
        dropout: behind fc6 and fc7, elementwise.

    Raises:
        ValueError: on another stride, on at_once without stride 8, on a padding that no crop fits.
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        stride: int = 8,
        at_once: bool = False,
        padding: int = 100,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_classes, CAFFE)
        if stride not in (32, 16, 8):
            raise ValueError(f"stride must be 32, 16 or 8, not {stride}")
        if at_once and stride != 8:
            raise ValueError(f"at_once needs stride 8, not {stride}")
        self.stride, self.at_once, self.padding = stride, at_once, padding
        self.trunk: list[str] = []
        channels = 3
        for stage, widths in enumerate(STAGES, 1):
            for number, width in enumerate(widths, 1):
                first = stage == number == 1
                conv = nn.Conv2d(channels, width, 3, padding=padding if first else 1)
                self._add(f"conv{stage}_{number}", conv)
                channels = width
            self._add(f"pool{stage}", nn.MaxPool2d(2, ceil_mode=True))
        self._add("fc6", nn.Conv2d(channels, FULLY_CONNECTED, 7))
        self._add("fc7", nn.Conv2d(FULLY_CONNECTED, FULLY_CONNECTED, 1))
        self.drop = nn.Dropout(dropout)
        self.score_fr = nn.Conv2d(FULLY_CONNECTED, num_classes, 1)
        if stride <= 16:
            self.score_pool4 = nn.Conv2d(STAGES[3][-1], num_classes, 1)
        if stride == 8:
            self.score_pool3 = nn.Conv2d(STAGES[2][-1], num_classes, 1)
        self._initialise()
        self._check_padding(padding)

    def _add(self, name: str, layer: nn.Module) -> None:
        self.add_module(name, layer)
        self.trunk.append(name)

    def _initialise(self) -> None:
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d):
                if name.startswith("score"):
                    nn.init.zeros_(layer.weight)
                else:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def _check_padding(self, padding: int) -> None:
        """The score map's last crop must not be negative."""
        field = IMAGE
        for name in self.trunk:
            field = after(field, getattr(self, name))
        step = self.stride
        while field.stride > step:
            field = field.deconv(4, 2)
        try:
            field.deconv(2 * step, step).crop_onto(IMAGE)
        except ValueError as error:
            raise ValueError(f"padding {padding} is too small for stride {step}: {error}") from None

    def features(self, images: Tensor) -> dict[str, Located]:
        """The maps that scores are read from: pool3, pool4 and fc7."""
        found, here = {}, Located(images, IMAGE)
        for name in self.trunk:
            layer = getattr(self, name)
            if name == "fc6" and min(here.x.shape[-2:]) < layer.kernel_size[0]:
                raise ValueError(
                    f"an image of {tuple(images.shape[-2:])} is too small for a padding of "
                    f"{self.padding}: pool5 is {tuple(here.x.shape[-2:])}, fc6 needs 7 x 7"
                )
            x = layer(here.x)
            if isinstance(layer, nn.Conv2d):
                x = F.relu(x, inplace=True)
            if name in ("fc6", "fc7"):
                x = self.drop(x)
            here = Located(x, after(here.field, layer))
            if name in ("pool3", "pool4", "fc7"):
                found[name] = here
        return found

    def _score(self, layer: nn.Conv2d, features: dict[str, Located], name: str) -> Located:
        x, field = features[name]
        if self.at_once and name in AT_ONCE_SCALES:
            x = x * AT_ONCE_SCALES[name]
        return Located(layer(x), field)

    def score_maps(self, images: Tensor) -> dict[str, ScoreMap]:
        """Scores at the network's stride."""
        features = self.features(images)
        scores = self._score(self.score_fr, features, "fc7")
        if self.stride <= 16:
            scores = fuse(scores, self._score(self.score_pool4, features, "pool4"))
        if self.stride == 8:
            scores = fuse(scores, self._score(self.score_pool3, features, "pool3"))
        return {"out": ScoreMap(scores.x, image_grid(scores, images.shape[-2:]))}
