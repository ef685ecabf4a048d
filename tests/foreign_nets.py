"""The networks whose weights fcnfast reads, as their own projects define them, in plain torch.

Independent of fcnfast: nothing of it is imported here. Each network takes a uint8 RGB batch and
prepares it as its project does. Widths are narrow; kernels, strides, paddings, crops, poolings,
names and constants are the real ones.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((3, 4), (6, 6), (8, 7, 8), (8, 9, 9), (8, 9, 10))
FULLY_CONNECTED = 13
CAFFE_ALEXNET, TORCHVISION_ALEXNET = (6, 10, 8, 10, 8), (6, 8, 10, 8, 6)
STEM = (8, 6, 9)
BLOCK = (5, 4, 6, 3, 4, 5)  # 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj
BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
RESNET = 4

VOC_MEAN = (104.00699, 116.66877, 122.67892)


def bgr(images: Tensor, mean: Sequence[float] = VOC_MEAN) -> Tensor:
    """Caffe: blue, green, red in 0..255, minus a mean."""
    return images[:, [2, 1, 0]].float() - torch.tensor(mean).view(3, 1, 1)


def rgb(
    images: Tensor,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> Tensor:
    """torchvision: red, green, blue in 0..1, minus a mean, over a deviation."""
    return (images.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )


def randomize(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights under which signals neither die nor explode, statistics of norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.dim() > 1:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.3, generator=generator)
                if "bn" in name and name.endswith("weight"):
                    tensor.add_(1)
    return net.eval()


def tent(size: int) -> Tensor:
    """Caffe's bilinear filter."""
    f = -(-size // 2)
    c = (size - 1) / (2 * f)
    line = torch.tensor([1 - abs(i / f - c) for i in range(size)])
    return line[:, None] * line[None, :]


def upscore(classes: int, size: int, stride: int) -> nn.ConvTranspose2d:
    """A dense transposed convolution, bilinear on its diagonal."""
    layer = nn.ConvTranspose2d(classes, classes, size, stride, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        for k in range(classes):
            layer.weight[k, k] = tent(size)
    return layer


class VGG(nn.Module):
    """FCN-32s, 16s, 8s and 8s at-once over VGG-16, of Caffe's reference and of pytorch-fcn.

    `heads` maps a suffix of names to its classes.
    """

    def __init__(
        self,
        stride: int = 8,
        at_once: bool = False,
        heads: dict[str, int] | None = None,
        mean: Sequence[float] = VOC_MEAN,
    ) -> None:
        super().__init__()
        self.stride, self.mean = stride, mean
        self.at_once, self.heads = at_once, heads or {"": 5}
        before = 3
        for stage, widths in enumerate(STAGES, 1):
            for number, width in enumerate(widths, 1):
                pad = 100 if stage == number == 1 else 1
                setattr(self, f"conv{stage}_{number}", nn.Conv2d(before, width, 3, padding=pad))
                before = width
        self.fc6 = nn.Conv2d(before, FULLY_CONNECTED, 7)
        self.fc7 = nn.Conv2d(FULLY_CONNECTED, FULLY_CONNECTED, 1)
        for suffix, classes in self.heads.items():
            layers = {"score_fr": nn.Conv2d(FULLY_CONNECTED, classes, 1)}
            if stride == 32:
                layers["upscore"] = upscore(classes, 64, 32)
            else:
                layers["upscore2"] = upscore(classes, 4, 2)
                layers["score_pool4"] = nn.Conv2d(STAGES[3][-1], classes, 1)
            if stride == 16:
                layers["upscore16"] = upscore(classes, 32, 16)
            if stride == 8:
                layers["upscore_pool4"] = upscore(classes, 4, 2)
                layers["score_pool3"] = nn.Conv2d(STAGES[2][-1], classes, 1)
                layers["upscore8"] = upscore(classes, 16, 8)
            for name, layer in layers.items():
                setattr(self, name + suffix, layer)

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pools = []
        for stage, widths in enumerate(STAGES, 1):
            for number in range(1, len(widths) + 1):
                x = F.relu(getattr(self, f"conv{stage}_{number}")(x))
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            pools.append(x)
        x = F.relu(self.fc7(F.relu(self.fc6(x))))
        return x, pools[3], pools[2]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[-2:]
        fc7, pool4, pool3 = self.trunk(bgr(images, self.mean))
        if self.at_once:
            pool4, pool3 = pool4 * 0.01, pool3 * 0.0001
        outs = {}
        for suffix in self.heads:

            def layer(name: str, x: Tensor, suffix: str = suffix) -> Tensor:
                return getattr(self, name + suffix)(x)

            h = layer("score_fr", fc7)
            if self.stride == 32:
                h = layer("upscore", h)[:, :, 19 : 19 + height, 19 : 19 + width]
            else:
                h = layer("upscore2", h)
                skip = layer("score_pool4", pool4)
                h = h + skip[:, :, 5 : 5 + h.shape[2], 5 : 5 + h.shape[3]]
            if self.stride == 16:
                h = layer("upscore16", h)[:, :, 27 : 27 + height, 27 : 27 + width]
            if self.stride == 8:
                h = layer("upscore_pool4", h)
                skip = layer("score_pool3", pool3)
                h = h + skip[:, :, 9 : 9 + h.shape[2], 9 : 9 + h.shape[3]]
                h = layer("upscore8", h)[:, :, 31 : 31 + height, 31 : 31 + width]
            outs[suffix] = h
        return outs


class AlexNet(nn.Module):
    """FCN-AlexNet over CaffeNet: groups, pooling before normalization."""

    def __init__(self) -> None:
        super().__init__()
        w = CAFFE_ALEXNET
        self.conv1 = nn.Conv2d(3, w[0], 11, 4, padding=100)
        self.conv2 = nn.Conv2d(w[0], w[1], 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(w[1], w[2], 3, padding=1)
        self.conv4 = nn.Conv2d(w[2], w[3], 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(w[3], w[4], 3, padding=1, groups=2)
        self.fc6 = nn.Conv2d(w[4], FULLY_CONNECTED, 6)
        self.fc7 = nn.Conv2d(FULLY_CONNECTED, FULLY_CONNECTED, 1)
        self.score_fr = nn.Conv2d(FULLY_CONNECTED, 5, 1)
        self.upscore = upscore(5, 63, 32)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        def pool(x: Tensor) -> Tensor:
            return F.max_pool2d(x, 3, 2, ceil_mode=True)

        def norm(x: Tensor) -> Tensor:
            return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

        x = norm(pool(F.relu(self.conv1(bgr(images)))))
        x = norm(pool(F.relu(self.conv2(x))))
        x = pool(F.relu(self.conv5(F.relu(self.conv4(F.relu(self.conv3(x)))))))
        x = self.upscore(self.score_fr(F.relu(self.fc7(F.relu(self.fc6(x))))))
        return {"": x[:, :, 18 : 18 + images.shape[2], 18 : 18 + images.shape[3]]}


class GoogLeNet(nn.Module):
    """FCN-32s over BVLC's GoogLeNet; names hold slashes."""

    def __init__(self) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = BLOCK
        self.add_module("conv1/7x7_s2", nn.Conv2d(3, STEM[0], 7, 2, padding=3))
        self.add_module("conv2/3x3_reduce", nn.Conv2d(STEM[0], STEM[1], 1))
        self.add_module("conv2/3x3", nn.Conv2d(STEM[1], STEM[2], 3, padding=1))
        before = STEM[2]
        for block in BLOCKS:
            for name, inputs, width, kernel in (
                ("1x1", before, one, 1),
                ("3x3_reduce", before, reduce3, 1),
                ("3x3", reduce3, three, 3),
                ("5x5_reduce", before, reduce5, 1),
                ("5x5", reduce5, five, 5),
                ("pool_proj", before, pooled, 1),
            ):
                layer = nn.Conv2d(inputs, width, kernel, padding=kernel // 2)
                self.add_module(f"inception_{block}/{name}", layer)
            before = one + three + five + pooled
        self.score_fr = nn.Conv2d(before, 5, 1)
        self.upscore = upscore(5, 63, 32)

    def unit(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.get_submodule(name)(x))

    def inception(self, block: str, x: Tensor) -> Tensor:
        name = f"inception_{block}/"
        branches = (
            self.unit(f"{name}1x1", x),
            self.unit(f"{name}3x3", self.unit(f"{name}3x3_reduce", x)),
            self.unit(f"{name}5x5", self.unit(f"{name}5x5_reduce", x)),
            self.unit(f"{name}pool_proj", F.max_pool2d(x, 3, 1, padding=1)),
        )
        return torch.cat(branches, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        def pool(x: Tensor) -> Tensor:
            return F.max_pool2d(x, 3, 2, ceil_mode=True)

        def norm(x: Tensor) -> Tensor:
            return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

        x = norm(pool(self.unit("conv1/7x7_s2", bgr(images))))
        x = pool(norm(self.unit("conv2/3x3", self.unit("conv2/3x3_reduce", x))))
        for block in BLOCKS:
            x = self.inception(block, pool(x) if block in ("4a", "5a") else x)
        x = self.upscore(self.score_fr(x))
        return {"": x[:, :, 1 : 1 + images.shape[2], 1 : 1 + images.shape[3]]}


class LateFusion(nn.Module):
    """NYUD's two FCN-32s for color and HHA, whose scores are averaged before the upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = nn.ModuleDict({"color": VGG(32), "hha": VGG(32)})
        self.upscore = upscore(5, 64, 32)

    def weights(self) -> dict[str, Tensor]:
        """The state dict under the names that the reference implementation gives."""
        found = {"upscore.weight": self.upscore.weight.detach()}
        for stream, net in self.streams.items():
            for key, value in net.state_dict().items():
                layer, _, what = key.rpartition(".")
                if layer != "upscore":
                    found[f"{layer}{stream}.{what}"] = value
        return found

    def forward(self, images: Tensor, hha: Tensor) -> dict[str, Tensor]:
        color = bgr(images, (116.190, 97.203, 92.318))
        geometry = hha.float() - torch.tensor((132.431, 94.076, 118.477)).view(3, 1, 1)
        scores = [
            0.5 * net.score_fr(net.trunk(x)[0])
            for net, x in zip(self.streams.values(), (color, geometry), strict=True)
        ]
        x = self.upscore(scores[0] + scores[1])
        return {"": x[:, :, 19 : 19 + images.shape[2], 19 : 19 + images.shape[3]]}
