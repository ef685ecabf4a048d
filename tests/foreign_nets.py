"""The networks whose weights fcnfast reads, as their own projects define them, in torch functions.

Independent of fcnfast: nothing of it is imported here. Each network takes a uint8 RGB batch and
prepares it as its project does. Widths are narrow; kernels, strides, paddings, crops, poolings,
names and constants are the real ones.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F

STAGES = ((3, 4), (6, 6), (8, 7, 8), (8, 9, 9), (8, 9, 10))
FULLY_CONNECTED = 13
CAFFE_ALEXNET, TORCHVISION_ALEXNET = (6, 10, 8, 10, 8), (6, 8, 10, 8, 6)
STEM = (8, 6, 9)
BLOCK = (5, 4, 6, 3, 4, 5)  # 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj
BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
RESNET = 4

VOC_MEAN = (104.00699, 116.66877, 122.67892)


def bgr(images, mean=VOC_MEAN):
    """Caffe: blue, green, red in 0..255, minus a mean."""
    return images[:, [2, 1, 0]] - torch.tensor(mean, dtype=torch.float64).view(3, 1, 1)


def rgb(images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=255):
    """torchvision: red, green, blue in 0..1, minus a mean, over a deviation."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
    return (images / scale - mean) / std


def tent(size):
    """Caffe's bilinear filter."""
    f = -(-size // 2)
    c = (size - 1) / (2 * f)
    line = torch.tensor([1 - abs(i / f - c) for i in range(size)], dtype=torch.float64)
    return torch.outer(line, line)


def up(x, size, stride):
    """The bilinear transposed convolution."""
    return F.conv_transpose2d(
        x, tent(size).expand(x.shape[1], 1, -1, -1), None, stride, 0, 0, x.shape[1]
    )


def crop(x, offset, size):
    return x[..., offset : offset + size[0], offset : offset + size[1]]


def pool3(x):
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def lrn(x):
    """Caffe's normalization, written out: the squares of five neighboring channels."""
    squares = F.pad(x * x, (0, 0, 0, 0, 2, 2))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(5))
    return x / (1 + 1e-4 / 5 * total) ** 0.75


class Net:
    """A network by its function, `define(net, images)`, which gives the outputs by their names.

    Weights are float32, drawn when the function asks for them the first time, so that signals
    neither die nor explode. Upsampling weights start bilinear. Arithmetic is in float64.
    """

    def __init__(self, define, inputs=1):
        self.define = define
        self.state = OrderedDict()
        self.generator = torch.Generator().manual_seed(0)
        self(*[torch.zeros(1, 3, 33, 33, dtype=torch.uint8)] * inputs)

    @torch.no_grad()
    def __call__(self, *images):
        return self.define(self, *images)

    def state_dict(self):
        state = OrderedDict((key, value.clone()) for key, value in self.state.items())
        state._metadata = {"": {"version": 1}}  # as a module's
        return state

    def weights(self):
        """What a classifier's file has of them."""
        ours = ("score", "upscore")
        return {k: v for k, v in self.state_dict().items() if not k.startswith(ours)}

    def tensor(self, name, *shape, std=0.3, mean=0.0):
        if name not in self.state:
            self.state[name] = torch.randn(shape, generator=self.generator) * std + mean
        return self.state[name].double()

    def conv(self, name, x, width, kernel, bias=True, **settings):
        shape = (width, x.shape[1] // settings.get("groups", 1), kernel, kernel)
        weight = self.tensor(f"{name}.weight", *shape, std=(2 / (shape[1] * kernel**2)) ** 0.5)
        return F.conv2d(x, weight, self.tensor(f"{name}.bias", width) if bias else None, **settings)

    def norm(self, name, x, eps=1e-5):
        width = x.shape[1]
        weight, bias = (
            self.tensor(f"{name}.weight", width, mean=1),
            self.tensor(f"{name}.bias", width),
        )
        mean = self.tensor(f"{name}.running_mean", width)
        var = self.tensor(f"{name}.running_var", width, std=0.1, mean=1.2)
        self.state.setdefault(f"{name}.num_batches_tracked", torch.tensor(0))
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    def up(self, name, x, size, stride):
        """A dense transposed convolution, bilinear on its diagonal."""
        if f"{name}.weight" not in self.state:
            one = torch.eye(x.shape[1])[:, :, None, None]
            self.state[f"{name}.weight"] = one * tent(size).float()
        return F.conv_transpose2d(x, self.state[f"{name}.weight"].double(), stride=stride)


def randomize(net):
    """Let the upsampling, too, have random weights."""
    for key, value in net.state.items():
        if "upscore" in key:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=net.generator)
    return net


def vgg16(net, x, first="conv1_1", suffix=""):
    """pool3, pool4 and fc7 on a canvas padded by 100."""
    pools = []
    for stage, widths in enumerate(STAGES, 1):
        for number, width in enumerate(widths, 1):
            begin = stage == number == 1
            name = first if begin else f"conv{stage}_{number}"
            x = F.relu(net.conv(name + suffix, x, width, 3, padding=100 if begin else 1))
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        pools.append(x)
    for name, kernel in (("fc6", 7), ("fc7", 1)):
        x = F.relu(net.conv(name + suffix, x, FULLY_CONNECTED, kernel))
    return [*pools[2:4], x]


def skips(net, maps, size, stride, classes=5, suffix="", scales=(1, 1)):
    """The scores of FCN-32s, 16s and 8s over VGG-16."""

    def score(name, x):
        return net.conv(f"score_{name}{suffix}", x, classes, 1)

    pool3, pool4, fc7 = maps
    x = score("fr", fc7)
    if stride == 32:
        return crop(net.up(f"upscore{suffix}", x, 64, 32), 19, size)
    x = net.up(f"upscore2{suffix}", x, 4, 2)
    x = x + crop(score("pool4", pool4 * scales[0]), 5, x.shape[2:])
    if stride == 16:
        return crop(net.up(f"upscore16{suffix}", x, 32, 16), 27, size)
    x = net.up(f"upscore_pool4{suffix}", x, 4, 2)
    x = x + crop(score("pool3", pool3 * scales[1]), 9, x.shape[2:])
    return crop(net.up(f"upscore8{suffix}", x, 16, 8), 31, size)


def VGG(stride=8, at_once=False, heads=None, mean=VOC_MEAN):
    """FCN-32s, 16s, 8s and 8s at-once over VGG-16, of Caffe's reference and of pytorch-fcn.

    `heads` maps a suffix of names to its classes.
    """
    scales = (0.01, 0.0001) if at_once else (1, 1)
    names = {"": "out", "_sem": "out", "_geo": "geo"}

    def define(net, images):
        maps, size = vgg16(net, bgr(images, mean)), images.shape[2:]
        return {
            names[suffix]: skips(net, maps, size, stride, classes, suffix, scales)
            for suffix, classes in (heads or {"": 5}).items()
        }

    return Net(define)


def LateFusion(classes=5):
    """NYUD's two FCN-32s for color and HHA, whose scores are averaged before the upsampling."""

    def define(net, images, hha):
        inputs = {"color": bgr(images, (116.190, 97.203, 92.318))}
        inputs["hha"] = rgb(hha, (132.431, 94.076, 118.477), (1, 1, 1), 1)
        scores = [
            0.5 * net.conv(f"score_fr{stream}", vgg16(net, x, suffix=stream)[2], classes, 1)
            for stream, x in inputs.items()
        ]
        return {"out": crop(net.up("upscore", sum(scores), 64, 32), 19, images.shape[2:])}

    return Net(define, 2)


def EarlyFusion():
    """NYUD's FCN-32s of four channels: color, and the logarithm of a depth of 1 to 256."""

    def define(net, images, depth):
        logs = (depth[:, :1].double() + 1).log() - 7.844
        x = torch.cat((bgr(images, (116.190, 97.203, 92.318)), logs), 1)
        return {"out": skips(net, vgg16(net, x, "conv1_1_bgrd"), images.shape[2:], 32)}

    return Net(define, 2)


def AlexNet(classes=5):
    """FCN-AlexNet over CaffeNet: groups, pooling before normalization."""

    def define(net, images):
        x = bgr(images)
        for k, (width, kernel) in enumerate(zip(CAFFE_ALEXNET, (11, 5, 3, 3, 3), strict=True), 1):
            settings = {"padding": kernel // 2} if k > 1 else {"padding": 100, "stride": 4}
            groups = 2 if k in (2, 4, 5) else 1
            x = F.relu(net.conv(f"conv{k}", x, width, kernel, groups=groups, **settings))
            x = pool3(x) if k in (1, 2, 5) else x
            x = lrn(x) if k in (1, 2) else x
        for name, kernel in (("fc6", 6), ("fc7", 1)):
            x = F.relu(net.conv(name, x, FULLY_CONNECTED, kernel))
        x = net.conv("score_fr", x, classes, 1)
        return {"out": crop(net.up("upscore", x, 63, 32), 18, images.shape[2:])}

    return Net(define)


def GoogLeNet(stride=32, classes=5, caffe=True):
    """FCNs over BVLC's GoogLeNet, or torchvision's, which normalizes its input a second time.

    In the paper there is only the 32s; the others sum the scores of 4e and 3b, too.
    """
    inside = ["1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj"]
    if not caffe:
        inside = ["branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1"]

    def define(net, images):
        def unit(name, x, width, kernel, stride=1):
            place = {"stride": stride, "padding": kernel // 2}
            if caffe:
                return F.relu(net.conv(name, x, width, kernel, **place))
            x = net.conv(f"{name}.conv", x, width, kernel, False, **place)
            return F.relu(net.norm(f"{name}.bn", x, 1e-3))

        def inception(block, x):
            begin = f"inception_{block}/" if caffe else f"inception{block}."
            names = [begin + name for name in inside]
            one, three, five = (unit(names[k], x, BLOCK[k], 1) for k in (0, 1, 3))
            three = unit(names[2], three, BLOCK[2], 3)
            five = unit(names[4], five, BLOCK[4], 5 if caffe else 3)
            pooled = unit(names[5], F.max_pool2d(x, 3, 1, padding=1), BLOCK[5], 1)
            return torch.cat((one, three, five, pooled), 1)

        half = (0.5, 0.5, 0.5)
        x = bgr(images) if caffe else rgb(images, half, half)
        norm = lrn if caffe else lambda x: x
        stem = ["conv1/7x7_s2", "conv2/3x3_reduce", "conv2/3x3"]
        stem = stem if caffe else ["conv1", "conv2", "conv3"]
        x = norm(pool3(unit(stem[0], x, STEM[0], 7, 2)))
        x = pool3(norm(unit(stem[2], unit(stem[1], x, STEM[1], 1), STEM[2], 3)))
        maps = {}
        for block in BLOCKS:
            if block in ("4a", "5a"):
                x = pool3(x) if caffe or block == "4a" else F.max_pool2d(x, 2, 2, ceil_mode=True)
            x = maps[block] = inception(block, x)
        x, size = net.conv("score_fr", x, classes, 1), images.shape[2:]
        if stride == 32:
            return {"out": crop(net.up("upscore", x, 63, 32), 1 if caffe else 9, size)}
        skip = net.conv("score_inception_4e", maps["4e"], classes, 1)
        x = crop(up(x, 3 if caffe else 4, 2), 0 if caffe else 1, skip.shape[2:]) + skip
        if stride == 8:
            skip = net.conv("score_inception_3b", maps["3b"], classes, 1)
            x = crop(up(x, 3, 2), 0, skip.shape[2:]) + skip
        return {"out": crop(up(x, 2 * stride - 1, stride), 1, size)}

    return Net(define)
