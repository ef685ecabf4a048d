"""The classifiers of AlexNet and VGG as convolutions, fast for single pictures on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import dropout_layer

# A matrix product pays up to so many units for each output channel.
UNITS_PER_CHANNEL = 1 / 8


class FullyConnected(nn.Conv2d):
    """A convolution of stride 1 that has many more weights than its map has units.

    Convolutions on a CPU bring their weights into another order first, which takes longer here
    than the work itself. In evaluation without gradients this is a matrix product with the weights
    as they lie, two to three times as fast for one picture.
    """

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w to N x C' x h' x w'."""
        rows, columns = self.weight.shape[2:]
        up, left = (int(pad) for pad in self.padding)
        height, width = x.shape[2] + 2 * up - rows + 1, x.shape[3] + 2 * left - columns + 1
        units = x.shape[0] * height * width
        if not 0 < units <= self.out_channels * UNITS_PER_CHANNEL or not self._may_multiply(x):
            return super().forward(x)
        patches = F.pad(x, (left, left, up, up)).unfold(2, rows, 1).unfold(3, columns, 1)
        if self.weight.is_contiguous():
            patches, weight = patches.permute(0, 2, 3, 1, 4, 5), self.weight
        else:
            patches, weight = patches.permute(0, 2, 3, 4, 5, 1), self.weight.permute(0, 2, 3, 1)
        patches = patches.reshape(units, -1)
        if x.dtype == torch.float32:  # oneDNN's product needs no copy of the weights
            patches = patches.to_mkldnn()
        y = F.linear(patches, weight.flatten(1), self.bias).to_dense()
        return y.view(x.shape[0], height, width, -1).permute(0, 3, 1, 2)

    def _may_multiply(self, x: Tensor) -> bool:
        """Whether this is plain evaluation on a CPU, with weights in one of the usual orders."""
        weight = self.weight
        return (
            x.device.type == "cpu"
            and x.dtype == weight.dtype
            and x.dtype in (torch.float32, torch.bfloat16)
            and type(x) is Tensor
            and type(weight) is nn.Parameter
            and (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last))
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and torch.backends.mkldnn.is_available()
        )


def fully_connected(
    channels: int,
    kernel: int,
    width: int,
    dropout: float,
    padding: int,
    *,
    dropout_first: bool = False,
) -> dict[str, nn.Module]:
    """The classifier of AlexNet and VGG as convolutions: fc6 and fc7, each with ReLU and dropout.

    Raises:
        ValueError: for a padding that is not within fc6's kernel.
    """
    if type(padding) is not int or not 0 <= padding <= kernel // 2:
        raise ValueError(f"fc6_padding must be 0 to {kernel // 2}, not {padding!r}")
    fc6 = FullyConnected(channels, width, kernel, padding=padding)
    layers: dict[str, nn.Module] = {}
    for number, conv in ((6, fc6), (7, FullyConnected(width, width, 1))):
        drop: dict[str, nn.Module] = {f"drop{number}": dropout_layer(dropout)}
        unit = {f"fc{number}": conv, f"relu{number}": nn.ReLU(inplace=True)}
        layers |= drop | unit if dropout_first else unit | drop
    return layers
