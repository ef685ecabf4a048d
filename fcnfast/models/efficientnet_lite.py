"""FCN over EfficientNet-Lite: an ImageNet trunk that is fast on a CPU, skips at strides 4 to 32."""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Preprocessing, check_count, conv_bn
from .decoder import Located, after, fuse
from .light import SummedSkipNet

# What the TensorFlow models learned from: RGB, (x - 127) / 128.
LITE = Preprocessing(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))
# Width and depth multipliers of Lite0, Lite1 and Lite2.
SCALINGS = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
# The stages of Lite0: blocks, kernel, stride, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32


# TensorFlow's eps.
_unit = partial(conv_bn, eps=1e-3)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1 x 1 to `expansion` times wider, depthwise k x k, 1 x 1 to `width`.

    The input is added where channels agree and the stride is 1 (arXiv 1801.04381).
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        wider = [*_unit(channels, wide, 1), nn.ReLU6(inplace=True)] if expansion != 1 else []
        self.expand = nn.Sequential(*wider)
        depthwise = _unit(wide, wide, kernel, stride, groups=wide)
        self.depthwise = nn.Sequential(*depthwise, nn.ReLU6(inplace=True))
        self.project = nn.Sequential(*_unit(wide, width, 1))
        self.adds = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w to N x C' x h' x w', h' = h / stride rounded up."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y

    def branches(self) -> list[list[nn.Module]]:
        """The three convolutions, and the shortcut if there is one."""
        return [[self.expand, self.depthwise, self.project], *[[]][: self.adds]]


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, and never down by more than 10 %."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class FCNLite(SummedSkipNet):
    """An FCN over EfficientNet-Lite whose skips are summed in feature space, coarse to fine.

    The trunk's weights are TensorFlow's, whose strided convolutions pad one pixel less in front:
    unit u of a map of stride S lies on pixel S u + S - 1 there. Here padding is symmetric, and it
    lies on S u: away from the borders, values are TensorFlow's for the picture shifted by S - 1
    pixels. Pictures may have any size from 1 x 1 up.

    scaling: 0, 1 or 2, as in EfficientNet-Lite0. decoder: channels in which the skips are summed.
    dropout: before the scores. ValueError for any other scaling, or a decoder below 1.
    """

    taps = (1, 2, 4, 6)

    def __init__(
        self, num_classes: int = 11, *, scaling: int = 0, decoder: int = 80, dropout: float = 0.1
    ) -> None:
        super().__init__(num_classes, LITE)
        if scaling not in SCALINGS:
            raise ValueError(f"scaling must be 0, 1 or 2, not {scaling!r}")
        check_count("decoder", decoder)
        width, depth = SCALINGS[scaling]
        self.stem = nn.Sequential(*_unit(3, STEM, 3, 2), nn.ReLU6(inplace=True))
        self.stages, channels, taps = nn.ModuleList(), STEM, []
        for index, (count, kernel, stride, expansion, out) in enumerate(STAGES):
            out = _round_channels(out * width)
            # The first and the last stage keep their depth (EfficientNet-Lite).
            count = count if index in (0, len(STAGES) - 1) else math.ceil(count * depth)
            blocks = nn.Sequential()
            for number in range(count):
                step = stride if number == 0 else 1
                blocks.append(InvertedResidual(channels, out, kernel, step, expansion))
                channels = out
            self.stages.append(blocks)
            if index in self.taps:
                taps.append(out)
        self.lateral = nn.ModuleList(nn.Sequential(*_unit(out, decoder, 1)) for out in taps)
        self.blend = nn.ModuleList(
            nn.Sequential(*_unit(decoder, decoder, 3), nn.ReLU(inplace=True)) for _ in taps[1:]
        )
        self.finish(decoder, dropout)

    def blend_maps(self, maps: list[Located]) -> Located:
        """Fuse one map after the other, each followed by a convolution."""
        here = maps.pop()
        for blend, skip in zip(reversed(self.blend), reversed(maps), strict=True):
            x, field = fuse(here, skip, "clamp")
            here = Located(blend(F.relu(x, inplace=True)), after(field, blend))
        return here
