"""FCN-32s from color and depth (NYUDv2): early fusion of channels, late fusion of two nets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from . import vgg
from .base import FCN, Preprocessing
from .decoder import Located, Upsampling
from .skipnet import SkipNet

# Channel means of the data set: BGR, and HHA in the order in which its pictures store it.
NYUD_COLOR = Preprocessing(mean=(116.190, 97.203, 92.318), order="bgr")
NYUD_HHA = Preprocessing(mean=(132.431, 94.076, 118.477), order="rgb")
# Mean of the logarithm of the depth in millimeters.
NYUD_LOG_DEPTH = 7.844
_DEPTHS = (torch.int32, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _second(
    model: FCN, name: str, value: object, shape: Sequence[int], kinds: Sequence[torch.dtype]
) -> Tensor:
    """What a network takes beside the photo; an error unless it is of this shape and type."""
    if value is None:
        raise InputError(f"{model.title} also needs the {name} of a photo")
    kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
    if not isinstance(value, Tensor) or kind not in kinds:
        raise TypeError(f"{name} must be a tensor of {' or '.join(map(str, kinds))}, not {kind}")
    if value.shape != torch.Size(shape):
        raise ValueError(f"{name} must be {tuple(shape)}, not {tuple(value.shape)}")
    return value


class FCNColorMore(SkipNet):
    """FCN-32s over VGG-16 from color and more, with the arguments of `FCNVGG16`."""

    def __init__(
        self,
        num_classes: int = 40,
        *,
        padding: int | None = 100,
        fc6_padding: int = 0,
        dropout: float = 0.5,
        upsampling: Upsampling = "fixed",
        final_upsampling: Upsampling | None = None,
    ) -> None:
        super().__init__(num_classes, NYUD_COLOR, padding)
        self.add_layers(padding, fc6_padding, dropout)
        self.finish(upsampling, final_upsampling)

    @abstractmethod
    def add_layers(self, padding: int | None, fc6_padding: int, dropout: float) -> None:
        """Add trunk and scores."""


class FCNColorDepth(FCNColorMore):
    """FCN-32s over VGG-16 whose first layer takes four channels: BGR and the depth's logarithm.

    The network's own input is N x 4 x H x W, what `preprocess` makes of a photo and its depth.
    Arguments are those of `FCNVGG16`.
    """

    transplanting = (
        "from a network of three channels: models.transplant(source, model), then "
        "models.expand_input(source.conv1_1, model.conv1_1_bgrd)"
    )

    def add_layers(self, padding: int | None, fc6_padding: int, dropout: float) -> None:
        """VGG-16 with another first layer, and its scores."""
        self.add_trunk(vgg.vgg16(padding, fc6_padding, dropout, channels=4, first="conv1_1_bgrd"))
        self.add_heads({"fc7": vgg.FULLY_CONNECTED})

    def preprocess(self, images: Tensor, depth: Tensor | None = None) -> Tensor:
        """Convert photos and their depth to the network's own input, N x 4 x H x W.

        Photos are uint8 RGB, N x 3 x H x W; depth is N x 1 x H x W in millimeters, of a floating
        dtype or int32. Pixels without a depth (0, or not finite) get the mean. InputError without
        a depth; TypeError or ValueError for another dtype or shape.
        """
        color = super().preprocess(images)
        depth = _second(self, "depth", depth, (len(images), 1, *images.shape[2:]), _DEPTHS)
        depth = depth.to(torch.promote_types(depth.dtype, torch.float32))
        known = (depth > 0) & depth.isfinite()
        logs = torch.where(known, depth, 1.0).log() - NYUD_LOG_DEPTH
        logs = torch.where(known, logs, 0.0)
        return torch.cat((color, logs.to(color)), 1)


class FCNColorHHA(FCNColorMore):
    """Two FCN-32s over VGG-16, for color and for HHA, whose coarse scores are averaged.

    HHA is depth as three channels: disparity, height, angle. As in the reference implementation,
    layers are named as in one net, with "color" or "hha" appended. The network's own input is
    N x 6 x H x W, color first, what `preprocess` makes of a photo and its HHA picture.

    Arguments are those of `FCNVGG16`.
    """

    streams = ("color", "hha")
    joined: tuple[str, ...] = ("fc7",)
    transplanting = (
        "from networks of one stream: models.transplant(source, model, suffix='color'), then 'hha'"
    )

    def add_layers(self, padding: int | None, fc6_padding: int, dropout: float) -> None:
        """VGG-16 twice, each with its scores."""
        self.trunks: dict[str, list[str]] = {}
        for stream in self.streams:
            layers = vgg.vgg16(padding, fc6_padding, dropout)
            self.add_trunk({name + stream: layer for name, layer in layers.items()})
            self.trunks[stream], self.trunk = self.trunk, []
            widths = {"fc7": vgg.FULLY_CONNECTED, "pool4": vgg.STAGES[3][-1]}
            for tap in self.joined:
                score = nn.Conv2d(widths[tap], self.num_classes, 1)
                self.add_module(self._score_name(tap + stream, ""), score)
        self.trunk_modules = [name for names in self.trunks.values() for name in names]
        self.trunk = self.trunks["color"]  # where the units lie: both streams are alike
        self.taps, self.heads = tuple(f"{tap}color" for tap in self.joined), {"out": ""}

    @property
    def channels(self) -> int:
        """Channels of both streams."""
        return 6

    def _score_name(self, tap: str, suffix: str) -> str:
        return f"score_{tap.replace('fc7', 'fr')}"

    def preprocess(self, images: Tensor, hha: Tensor | None = None) -> Tensor:
        """Convert photos and their HHA pictures to the network's own input, N x 6 x H x W.

        Both are uint8, N x 3 x H x W: RGB, and HHA's channels in the order in which the picture
        has them. InputError without the latter; TypeError or ValueError for another dtype or shape.
        """
        color = super().preprocess(images)
        hha = _second(self, "HHA picture", hha, images.shape, (torch.uint8,))
        mean = torch.tensor(NYUD_HHA.mean, device=hha.device).view(3, 1, 1)
        return torch.cat((color, (hha - mean).to(color)), 1)

    def features(self, images: Tensor) -> dict[str, Located]:
        """The maps of both streams that scores are read from."""
        found: dict[str, Located] = {}
        for stream, part in zip(self.streams, images.split(3, 1), strict=True):
            wanted = [tap + stream for tap in self.joined]
            found |= self._walk(self.trunks[stream], part, wanted)
        return found

    def _score(self, features: Mapping[str, Located], tap: str, suffix: str) -> Located:
        """The mean of the two streams' scores."""
        names = [tap.removesuffix("color") + stream for stream in self.streams]
        scores = [getattr(self, self._score_name(name, ""))(features[name].x) for name in names]
        return Located(0.5 * scores[0] + 0.5 * scores[1], features[tap].field)


class FCN16sColorHHA(FCNColorHHA):
    """`FCNColorHHA` with a skip from pool4 of both streams (FCN-16s RGB-HHA).

    The paper does not say how the streams' skips are joined: here as their scores are.
    """

    joined = ("fc7", "pool4")
