"""Receptive fields of the layers of any network, from one run on tensors without data.

Every operation of the network is intercepted and maps the field of its input to that of its output,
so skips, branches and functions outside of modules count.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..geometry import ReceptiveField, SamplingGrid, Size, as_pair
from ..models.base import FCN
from ..models.decoder import single
from ..ops._checks import unpacked

# Large enough for the fields of the paper's networks; nothing is computed, so it costs nothing.
INPUT_SIZE = 1024


@dataclass(frozen=True)
class Layer:
    """A layer as a network ran it: name, class, number of parameters, how many times it ran.

    shape: of its result, without the batch: channels x height x width. field, given: of the units
    of its result and of its input; None where the map has no place on the image, as after global
    pooling, or was made by an operation that is not followed (such as a nearest-neighbor resize).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    field: ReceptiveField | None
    parameters: int
    given: ReceptiveField | None
    runs: int = 1


@dataclass(frozen=True)
class Trace:
    """A network's layers (leaf modules) in the order in which it first ran them.

    outputs: the field of every output that is a map, by its key ("" for a single tensor). macs:
    multiply-accumulates of all convolutions and matrix products. windows: how many convolutions,
    poolings and cuts of a map ran, in modules or not.
    """

    layers: tuple[Layer, ...]
    outputs: dict[str, ReceptiveField]
    macs: int
    windows: int = 0

    def layer(self, name: str) -> Layer:
        """The layer of that name; if none ran, ValueError with the nearest names."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        near = difflib.get_close_matches(name, [layer.name for layer in self.layers])
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"the network ran no layer {name!r}{hint}")


def _sampled(field: ReceptiveField, grid: SamplingGrid) -> ReceptiveField:
    """After bilinear sampling: each output reads two units."""
    reach = field.stride.numerator // field.stride.denominator
    offset = field.offset + field.stride * Fraction(grid.off[0], grid.den[0])
    step = field.stride * Fraction(grid.num[0], grid.den[0])
    return ReceptiveField(field.size + reach, step, offset)


def _union(fields: Sequence[ReceptiveField]) -> ReceptiveField:
    """The smallest field that contains all of them."""
    strides = {field.stride for field in fields}
    if len(strides) > 1:
        found = " and ".join(map(str, sorted(strides)))
        raise ValueError(f"maps of strides {found} are combined: their units lie differently")
    low = min(f.offset - Fraction(f.size - 1, 2) for f in fields)
    high = max(f.offset + Fraction(f.size - 1, 2) for f in fields)
    return ReceptiveField(int(high - low) + 1, strides.pop(), (low + high) / 2)


def _convolution(field: ReceptiveField, args: Sequence[Any]) -> ReceptiveField:
    _, weight, _, stride, padding, dilation, transposed = args[:7]
    kernel = single(weight.shape[2:], "kernel")
    step, pad = single(stride, "stride"), single(padding, "padding")
    if transposed:
        return field.deconv(kernel, step, pad)
    return field.conv(kernel, step, pad, single(dilation, "dilation"))


def _pooling(field: ReceptiveField, args: Sequence[Any], dilated: bool) -> ReceptiveField:
    # Trailing arguments may be missing; a stride of [] is the window's size.
    defaults: tuple[Any, ...] = ((), 0, 1)
    _, window, stride, padding, dilation, *_ = (*args, *defaults[len(args) - 2 :])
    settings = {"window": window, "stride": stride or window, "padding": padding}
    settings["dilation"] = dilation if dilated else 1
    return field.conv(*(single(value, name) for name, value in settings.items()))


def _resized(field: ReceptiveField, x: Tensor, out: Tensor, args: Sequence[Any]) -> ReceptiveField:
    """After ``F.interpolate(mode="bilinear")``."""
    scales = [s for s in args[3:5] if s is not None]
    given: Any = {"scale_factor": scales} if scales and not args[2] else {"size": out.shape[2:]}
    grid = SamplingGrid.resize(x.shape[2:], align_corners=args[2], **given)
    return _sampled(field, grid)


_WINDOWS = ("aten::convolution", "aten::max_pool2d_with_indices", "aten::avg_pool2d")
# The same size, perhaps, but pixels move: always, or if these axes are among the last two.
_UNFOLLOWED = ("upsample_nearest2d", "upsample_bicubic2d", "grid_sampler_2d", "bmm")
_AXES: dict[str, Callable[..., Sequence[int]]] = {
    "flip": lambda x, axes: axes,
    "roll": lambda x, shifts, axes=(): axes or (-1,),
    "cumsum": lambda x, axis: (axis,),
    "index_select": lambda x, axis, index: (axis,),
    "index": lambda x, indices: [k for k, index in enumerate(indices) if index is not None],
    "transpose": lambda x, *axes: axes,
}


def _moves_pixels(name: str, args: Sequence[Any]) -> bool:
    if name in _AXES:
        x = args[0]
        return any(axis % x.dim() >= x.dim() - 2 for axis in _AXES[name](*args))
    transposed = name == "convolution" and args[6]
    return name in _UNFOLLOWED or (transposed and max(args[5]) > 1)  # dilated


class _Watch(TorchDispatchMode):
    """Intercepts every operation and tracks the field of every map."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        # Keeping the tensors alive keeps their ids unique.
        self.known: dict[int, tuple[Tensor, ReceptiveField]] = {}
        # Maps that were made of known ones by an operation that is not followed.
        self.lost: dict[int, Tensor] = {}
        # Convolutions, poolings and cuts that have run.
        self.windows = 0
        self.set(images, ReceptiveField())

    def set(self, x: Tensor, field: ReceptiveField) -> None:
        self.known[id(x)] = (x, field)

    def lose(self, x: Tensor) -> None:
        self.known.pop(id(x), None)
        self.lost[id(x)] = x

    def get(self, x: object) -> ReceptiveField | None:
        return self.known[id(x)][1] if id(x) in self.known else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # A list holds parts of a map, all of them maps; in a tuple only the first may be a map.
        first = result[0] if isinstance(result, tuple) and result else result
        # `new_full` and the like read no values.
        made = func._overloadpacket.__name__.startswith("new_")
        read = [] if made else [id(x) for x in tree_leaves(args)]
        lost = any(key in self.lost for key in read)
        for out in result if isinstance(result, list) else [first]:
            if isinstance(out, Tensor) and out.dim() >= 3:
                field = None if lost else self._after(func, args, out)
                if field is not None:
                    self.set(out, field)
                elif out.shape[-2:].numel() > 1 and (
                    lost or any(key in self.known for key in read)
                ):
                    self.lose(out)
        return result

    def _cut(self, field: ReceptiveField, args: tuple[Any, ...]) -> ReceptiveField:
        """After ``x[..., start:stop:step, :]``; columns are cut and thinned as rows are."""
        defaults: tuple[Any, ...] = (None, None, 1)  # trailing arguments may be missing
        x, axis, start, stop, step = (*args, *defaults[len(args) - 2 :])
        length = x.shape[axis]
        first, last, _ = slice(start, stop).indices(length)
        self.windows += (first, last, step) != (0, length, 1)
        rows = axis % x.dim() == x.dim() - 2
        return field.crop(first).conv(1, step) if rows else field

    def _after(self, func: Any, args: tuple[Any, ...], out: Tensor) -> ReceptiveField | None:
        name = func._overloadpacket._qualified_op_name
        field = self.get(args[0]) if args else None
        if field is not None:
            if _moves_pixels(name.removeprefix("aten::"), args):
                return None
            self.windows += name in _WINDOWS
            if name == "aten::convolution":
                return _convolution(field, args)
            if name in ("aten::max_pool2d_with_indices", "aten::avg_pool2d"):
                return _pooling(field, args, dilated=name != "aten::avg_pool2d")
            if name == "aten::upsample_bilinear2d":
                return _resized(field, args[0], out, args)
            if name == "aten::slice" and args[1] % args[0].dim() >= args[0].dim() - 2:
                return self._cut(field, args)
            if name.endswith(("constant_pad_nd", "reflection_pad2d", "replication_pad2d")):
                return field.crop(-args[1][2]) if len(args[1]) > 2 else field
            if name == "fcnfast::upsample":
                return _sampled(field, unpacked(tuple(args[1]), args[2]))
            if name == "fcnfast::deconv":
                return field.deconv(single(args[1].shape[2:], "kernel"), args[2], args[3][0])
            if name in ("fcnfast::upsample_crop_add", "fcnfast::crop_add"):
                skip, offset = self.get(args[1]), args[2]
                if name == "fcnfast::upsample_crop_add":
                    field, offset = _sampled(field, unpacked(tuple(args[2]), args[3])), args[4]
                return field if skip is None else _union([field, skip.crop(offset[0])])
        # An operation that keeps the last two axes acts on each unit by itself.
        maps = [x for x in tree_leaves(args) if id(x) in self.known]
        fields = [self.known[id(x)][1] for x in maps if x.shape[-2:] == out.shape[-2:]]
        return _union(fields) if fields else None


def check_module(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a torch network."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, not {value!r}")


def trace(model: nn.Module, input_size: Size = INPUT_SIZE, *, channels: int | None = None) -> Trace:
    """Run a network on an image without data and record the receptive field of each layer.

    Args:
        model: any network of images N x C x H x W; not changed, and run without memory.
        input_size: (H, W) of the image. Fields do not depend on it, shapes and MACs do.
        channels: C; by default those of an fcnfast network, else of the first convolution, else 3.

    TypeError when `model` is not a network; ValueError for kernels that are not square, or combined
    maps of different strides.
    """
    check_module("model", model)
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    size = as_pair(input_size, "input_size")
    own = (*model.named_parameters(), *model.named_buffers())
    state = {name: x.detach().to("meta") for name, x in own}
    dtype = next((x.dtype for x in state.values() if x.is_floating_point()), None)
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    # A network of fcnfast may read its input in parts.
    channels = channels or (model.channels if isinstance(model, FCN) else first)
    images = torch.empty(1, channels, *size, dtype=dtype, device="meta")
    watch, layers = _Watch(images), dict[str, Layer]()

    def seen(name: str, module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        if not isinstance(result, Tensor):
            return
        if name in layers:
            layers[name] = replace(layers[name], runs=layers[name].runs + 1)
            return
        count = sum(p.numel() for p in module.parameters(recurse=False))
        read = watch.get(given[0]) if given else None
        kind, shape = type(module).__name__, tuple(result.shape[1:])
        layers[name] = Layer(name, kind, shape, watch.get(result), count, read)

    counter = FlopCounterMode(display=False)
    modes = {module: module.training for module in model.modules()}
    leaves = [(n, m) for n, m in model.named_modules() if next(m.children(), None) is None]
    handles = [module.register_forward_hook(partial(seen, name)) for name, module in leaves]
    model.eval()
    try:
        with torch.no_grad(), counter, watch:
            outputs = torch.func.functional_call(model, state, (images,))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    named = outputs if isinstance(outputs, dict) else {"": outputs}
    fields = {key: watch.get(value) for key, value in named.items()}
    known = {key: field for key, field in fields.items() if field is not None}
    macs = counter.get_total_flops() // 2
    return Trace(tuple(layers.values()), known, macs, watch.windows)


def receptive_field(model: nn.Module, layer: str | None = None) -> ReceptiveField:
    """Size, stride and offset of the units of a layer, or of the network's (first) output.

    Table 1 of the paper gives them for the last layer before the upsampling, "score_fr": 355, 404
    and 907 pixels for AlexNet, VGG-16 and GoogLeNet, all at stride 32. The output has stride 1,
    and a field that is larger by one stride of the scores.

    TypeError when `model` is not a network; ValueError when there is no such layer, or its result
    has no place on the image.
    """
    seen = trace(model)
    if layer is not None:
        field, name = seen.layer(layer).field, f"the result of {layer}"
    else:
        field, name = next(iter(seen.outputs.values()), None), "the network's output"
    if field is None:
        why = "it is not a map of the image, or an operation made it that is not followed"
        raise ValueError(f"{name} has no receptive field: {why}")
    return field
