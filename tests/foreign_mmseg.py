"""mmsegmentation's FCN (fcn_r50-d8) in plain torch, and the objects that its checkpoints pickle."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.foreign_nets import RESNET
from tests.foreign_torch_nets import ResNet


class ConvModule(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class FCNHead(nn.Module):
    def __init__(self, before: int, width: int, convs: int, concat: bool) -> None:
        super().__init__()
        layers = [ConvModule(before if k == 0 else width, width) for k in range(convs)]
        self.convs = nn.Sequential(*layers)
        self.concat = concat
        if concat:
            self.conv_cat = ConvModule(before + width, width)
        self.conv_seg = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs(x)
        if self.concat:
            y = self.conv_cat(torch.cat([x, y], dim=1))
        return self.conv_seg(y)


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(dilated=True, deep=True)
        self.decode_head = FCNHead(32 * RESNET, 8 * RESNET, 2, True)
        self.auxiliary_head = FCNHead(16 * RESNET, 4 * RESNET, 1, False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        mean, std = torch.tensor((123.675, 116.28, 103.53)), torch.tensor((58.395, 57.12, 57.375))
        maps = self.backbone((images.float() - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        size = images.shape[-2:]
        heads = {"": self.decode_head(maps[3]), "aux": self.auxiliary_head(maps[2])}
        return {
            name: F.interpolate(x, size, mode="bilinear", align_corners=False)
            for name, x in heads.items()
        }
