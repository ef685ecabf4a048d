"""A light FCN for CPUs: residual trunk, skips at strides 4, 8 and 16 (`fcn4s_light`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from .base import FCN, IMAGENET, ScoreMap, check_count, conv_bn, dropout_layer
from .decoder import IMAGE, Located, after, fuse, on_image


class Residual(nn.Sequential):
    """Two 3 x 3 convolutions and a shortcut; the map keeps its size, position and width."""

    def __init__(self, width: int) -> None:
        first, second = (nn.Sequential(*conv_bn(width, width, 3)) for _ in range(2))
        super().__init__(first, nn.ReLU(inplace=True), second)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w to the same."""
        return F.relu(x + super().forward(x), inplace=True)


def _unit(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Sequential(*conv_bn(channels, width, 3, stride))
    return nn.Sequential(conv, nn.ReLU(inplace=True))


class SummedSkipNet(FCN):
    """A network whose skips, at strides 4, 8, 16 and 32, are summed in feature space.

    Attributes:
        taps: the stages whose maps are skips.
        lateral: a layer for each of them, to a common number of channels.
    """

    taps: Collection[int] = (0, 1, 2, 3)
    trunk_modules = ("stem", "stages")
    variance = "fan_out"
    stem: nn.Module
    stages: nn.ModuleList
    lateral: nn.ModuleList

    def finish(self, decoder: int, dropout: float) -> None:
        """Add the score layer, and initialize all; call this last."""
        self.drop = dropout_layer(dropout)
        self.score = nn.Conv2d(decoder, self.num_classes, 1)
        for name, layer in self.named_modules():
            self.initialize(name, layer)

    def features(self, images: Tensor) -> list[Located]:
        """The maps of strides 4, 8, 16 and 32."""
        x, field = self.stem(images), after(IMAGE, self.stem)
        found = []
        for index, stage in enumerate(self.stages):
            x, field = stage(x), after(field, stage)
            if index in self.taps:
                found.append(Located(x, field))
        return found

    @abstractmethod
    def blend_maps(self, maps: list[Located]) -> Located:
        """The sum of the lateral maps, finest first, at stride 4."""

    def score_maps(
        self, images: Tensor, heads: Collection[str] | None = None
    ) -> dict[str, ScoreMap]:
        """Scores at stride 4."""
        features = zip(self.lateral, self.features(images), strict=True)
        x, field = self.blend_maps([Located(layer(x), field) for layer, (x, field) in features])
        scores = Located(self.score(self.drop(x)), field)
        return {"out": on_image(scores, images.shape[-2:], "clamp")}


class FCNLight(SummedSkipNet):
    """A small FCN whose skips are summed in feature space, by the paper's fused steps.

    Every convolution pads its own border, so that unit u of a map of stride S lies on pixel S * u,
    and any image from 1 x 1 up has scores at stride 4.

    widths: channels at strides 2, 4, 8, 16 and 32. depths: residual blocks at strides 4 to 32.
    decoder: channels in which the skips are summed. dropout: before the scores. ValueError for any
    other number of widths or depths, or one below 1.
    """

    def __init__(
        self,
        num_classes: int = 11,
        *,
        widths: tuple[int, ...] = (32, 48, 96, 160, 224),
        depths: tuple[int, ...] = (1, 2, 2, 2),
        decoder: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes, IMAGENET)
        if len(widths) != 5 or len(depths) != 4 or min(*widths, *depths) < 1:
            raise ValueError(
                f"widths and depths must be 5 and 4 positive numbers, not {widths} and {depths}"
            )
        check_count("decoder", decoder)
        self.stem = _unit(3, widths[0], 2)
        self.stages = nn.ModuleList()
        for before, width, depth in zip(widths[:-1], widths[1:], depths, strict=True):
            down = _unit(before, width, 2)
            self.stages.append(nn.Sequential(down, *(Residual(width) for _ in range(depth))))
        self.lateral = nn.ModuleList(nn.Sequential(*conv_bn(n, decoder, 1)) for n in widths[1:])
        self.smooth = _unit(decoder, decoder)
        self.finish(decoder, dropout)

    def blend_maps(self, maps: list[Located]) -> Located:
        """Fuse all maps, and smooth the sum."""
        here = maps.pop()
        while maps:
            here = fuse(here, maps.pop(), "clamp")
        return Located(self.smooth(F.relu(here.x, inplace=True)), after(here.field, self.smooth))
