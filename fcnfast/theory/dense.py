"""Dense outputs: classifiers as convolutions, filter rarefaction, shift-and-stitch (3.1, 3.2)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import Size, as_pair
from ..models.decoder import single
from .fields import check_module, trace

# Layers that act on each value, or each channel, by itself: the same on maps as on vectors.
_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Dropout, nn.Identity,
)  # fmt: skip
_WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def _steps(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of a chain in order; a module that is not a chain itself is one step."""
    for key, child in module._modules.items():  # a child that stands there twice runs twice
        if child is None:
            continue
        path = f"{name}.{key}" if name else key
        if isinstance(child, nn.Sequential):
            yield from _steps(child, path)
        else:
            yield path, child


def _on_maps(step: nn.Module, name: str, kernel: tuple[int, ...]) -> nn.Module:
    """The form on maps of a layer from the first linear one on; `kernel`: what a linear one reads.

    ValueError if it has none.
    """
    if isinstance(step, nn.Linear):
        with torch.device("meta"):
            inputs, bias = step.in_features // math.prod(kernel), step.bias is not None
            conv = nn.Conv2d(inputs, step.out_features, (kernel[0], kernel[1]), bias=bias)
        state = copy.deepcopy(step.state_dict())
        state["weight"] = state["weight"].view(conv.weight.shape)
        conv.load_state_dict(state, assign=True)
        return conv
    if isinstance(step, nn.BatchNorm1d):
        norm = nn.BatchNorm2d(step.num_features, step.eps, step.momentum, step.affine)
        norm.__dict__.update(copy.deepcopy(step).__dict__)  # weights, averages, their types
        return norm
    if isinstance(step, (nn.Softmax, nn.LogSoftmax)) and step.dim in (1, -1):
        return type(step)(dim=1)
    if isinstance(step, _POINTWISE):
        return copy.deepcopy(step)
    raise ValueError(f"{name} ({type(step).__name__}) has no form that acts on maps")


def _fixed_pool(pool: nn.AdaptiveAvgPool2d, size: tuple[int, ...], name: str) -> nn.Module | None:
    """The fixed pooling that an adaptive one is on maps of `size`; None if it changes nothing."""
    wanted = pool.output_size if isinstance(pool.output_size, tuple) else (pool.output_size,) * 2
    out = tuple(n if w is None else w for n, w in zip(size, wanted, strict=True))
    if out == size:
        return None
    if any(n % w for n, w in zip(size, out, strict=True)):
        raise ValueError(f"{name} pools {size} to {out}: not a fixed window at other sizes")
    window = (size[0] // out[0], size[1] // out[1])
    return nn.AvgPool2d(window, stride=window if out != (1, 1) else 1)


def _chain(steps: list[tuple[str, nn.Module]], x: Tensor) -> tuple[nn.Sequential, Tensor]:
    """The layers on maps, and what the original ones make of `x`, one after another."""
    result, maps = nn.Sequential(), True
    for name, step in steps:
        if x.dim() == 4:
            shape = tuple(x.shape[1:])
        made: nn.Module | None = None
        if isinstance(step, nn.Linear) or not maps:
            made = _on_maps(step, name, shape[1:] if maps else (1, 1))
            x = x.flatten(1) if maps else x
            maps = False
        elif isinstance(step, nn.AdaptiveAvgPool2d):
            made = _fixed_pool(step, shape[1:], name)
        elif not isinstance(step, nn.Flatten):
            made = copy.deepcopy(step)
        if made is not None:
            result.add_module(name.replace(".", "_"), made)
        x = step(x)
    return result, x


def convolutionalize(classifier: nn.Module, input_size: Size) -> nn.Sequential:
    """A classifier as a fully convolutional network (section 3.1 of the paper).

    Its fully connected layers become convolutions, the first with a kernel as large as its map.
    At `input_size` the result is the classifier's, as N x K x 1 x 1. A larger image gives a grid of
    outputs; if the classifier pads nothing, each is its result for one window of `input_size`.

    Args:
        classifier: a chain of layers (as in torchvision's AlexNet, VGG and ResNet: the children in
            order, flattened before the first linear layer); copied, not changed.
        input_size: (H, W) of the images that it was trained on.

    TypeError when `classifier` is not a network; ValueError when it does more than run its children
    in order, has no linear layer, or a layer has no form on maps.
    """
    check_module("classifier", classifier)
    steps = list(_steps(classifier))
    if not any(isinstance(step, nn.Linear) for _, step in steps):
        raise ValueError("the classifier has no linear layer to turn into a convolution")
    parameter, mode = next(classifier.parameters()), classifier.training
    channels = next((m.in_channels for m in classifier.modules() if isinstance(m, nn.Conv2d)), 3)
    shape = (2, channels, *as_pair(input_size, "input_size"))
    x = torch.rand(shape, dtype=parameter.dtype, device=parameter.device)
    classifier.eval()
    try:
        with torch.no_grad():
            result, found = _chain(steps, x)
            same = torch.equal(found, classifier(x))
    except RuntimeError as error:
        raise ValueError(f"the layers do not fit one after another: {error}") from error
    finally:
        classifier.train(mode)
    if not same:
        raise ValueError(
            f"{type(classifier).__name__} does more than run its layers one after another"
        )
    return result.train(mode)


class _DilatedAvgPool(nn.Module):
    """A dilated average pooling (torch has none), at stride 1."""

    def __init__(self, kernel: int, dilation: int, padding: int) -> None:
        super().__init__()
        self.kernel, self.dilation, self.padding = kernel, dilation, padding

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = x.new_full((channels, 1, self.kernel, self.kernel), 1 / self.kernel**2)
        return F.conv2d(x, weight, padding=self.padding, dilation=self.dilation, groups=channels)


def _dilated(module: nn.Module, name: str, rate: int) -> nn.Module:
    """A layer with its taps `rate` times as far apart: itself, or another in its place."""
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str):
            raise ValueError(f"{name} pads {module.padding!r}: give the padding as a number")
        module.dilation = tuple(rate * d for d in module.dilation)
        module.padding = tuple(rate * p for p in module.padding)
        twice = [p for p in reversed(module.padding) for _ in range(2)]
        module._reversed_padding_repeated_twice = twice  # what other padding modes read
    elif isinstance(module, nn.MaxPool2d):
        module.dilation = rate * single(module.dilation, f"{name}.dilation")
        module.padding = rate * single(module.padding, f"{name}.padding")
    elif isinstance(module, nn.AvgPool2d) and rate > 1:
        if single(module.stride, f"{name}.stride") != 1:
            raise ValueError(f"{name}: an average pooling cannot keep its stride and be dilated")
        padding = rate * single(module.padding, f"{name}.padding")
        if padding and not module.count_include_pad:
            raise ValueError(f"{name} excludes its padding from the mean: no dilated form")
        kernel = single(module.kernel_size, f"{name}.kernel_size")
        return _DilatedAvgPool(kernel, rate, padding)
    return module


def rarefy(model: nn.Module, layer: str | None = None) -> nn.Module:
    """Filter rarefaction: remove the stride of a layer, and dilate all layers after it.

    The paper's f'_ij = f_(i/s)(j/s) where s divides both, and 0 elsewhere, is a dilation by s
    (section 3.2). The result of a network of stride f becomes f times as fine; every f-th value is
    unchanged, also at the borders if nothing is padded.

    `model` may be any network of convolutions and poolings; it is copied. `layer` is the dotted
    name of the layer whose stride is removed; None for all layers. ValueError when there is no such
    layer, it has no stride, or a layer cannot be dilated.
    """
    traced = trace(model)
    before = {seen.name: seen for seen in traced.layers}
    if layer is not None:
        traced.layer(layer)  # raises with the nearest names
    result, removed = copy.deepcopy(model), 0
    found = [(name, m) for name, m in result.named_modules() if isinstance(m, _WINDOWS)]
    windows = [(name, module) for name, module in found if name in before]
    if twice := [name for name, _ in windows if before[name].runs > 1]:
        raise ValueError(f"{twice[0]} runs more than once: it would need several dilations")
    if traced.windows > len(windows):
        kinds = ", ".join(kind.__name__ for kind in _WINDOWS)
        raise ValueError(
            f"only these layers can be dilated: {kinds}; the network has other windows"
        )
    for name, module in windows:
        if layer in (None, name) and single(module.stride, f"{name}.stride") > 1:
            removed += 1
            module.stride = (1, 1) if isinstance(module, nn.Conv2d) else 1
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = False  # no window is cut at stride 1
    if layer is not None and not removed:
        raise ValueError(f"{layer} has no stride to remove")
    # The strides removed before a layer are the dilation of its taps.
    after = {seen.name: seen for seen in trace(result).layers}
    for name, module in windows:
        was, now = before[name].given, after[name].given
        if was is None or now is None:
            raise ValueError(f"{name} does not read a map of the image")
        changed = _dilated(module, name, int(was.stride / now.stride))
        if changed is not module:
            parent, _, key = name.rpartition(".")
            setattr(result.get_submodule(parent), key, changed)
    return result


def shift_and_stitch(model: nn.Module, images: Tensor) -> Tensor:
    """Dense outputs from a network of stride f: f x f shifted runs, interlaced (section 3.2).

    Equal to those of ``rarefy(model)``, except at borders that the network pads.

    The network gives N x K x h x w for images N x C x H x W; the result is
    N x K x (H - F + 1) x (W - F + 1) if it pads nothing and has a receptive field of F.

    TypeError when `model` is not a network or `images` is not a tensor; ValueError when `images` is
    not 4-D or too small, or the output stride is fractional.
    """
    check_module("model", model)
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, not {type(images).__name__}")
    if images.dim() != 4:
        raise ValueError(f"images must be N x C x H x W, not {tuple(images.shape)}")
    outputs = trace(model).outputs
    if list(outputs) != [""]:
        raise ValueError("the network must give one map of the image")
    stride = outputs[""].stride
    if stride.denominator != 1 or stride < 1:
        raise ValueError(f"the network's output has stride {stride}: it must be an integer")
    f = int(stride)
    try:
        parts = {(a, b): model(images[..., a:, b:]) for a in range(f) for b in range(f)}
    except RuntimeError as error:
        small = f"images of {tuple(images.shape[2:])} are too small for shifts up to {f - 1}"
        raise ValueError(f"{small}: {error}") from error
    height = max(f * (part.shape[2] - 1) + a + 1 for (a, _), part in parts.items())
    width = max(f * (part.shape[3] - 1) + b + 1 for (_, b), part in parts.items())
    first = parts[0, 0]
    stitched = first.new_full((*first.shape[:2], height, width), math.nan)
    for (a, b), part in parts.items():
        stitched[..., a::f, b::f] = part
    return stitched
