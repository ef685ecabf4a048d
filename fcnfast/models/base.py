"""The base of every network of fcnfast: coarse score maps, and the fused ops on top of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..data.classes import ClassTable
from ..errors import InputError
from ..geometry import SamplingGrid
from ..ops import Reduction, upsample, upsample_argmax, upsample_cross_entropy
from ..weights.preprocessing import CAFFE as CAFFE
from ..weights.preprocessing import IMAGENET as IMAGENET
from ..weights.preprocessing import Preprocessing

Shape = tuple[int, ...]
_T = TypeVar("_T")

# The weights of RGB in gray (ITU-R BT.601), as in PIL.
LUMA = (0.299, 0.587, 0.114)

# The weight of each head in the loss; heads that are not listed have weight 1.
HEAD_WEIGHTS = {"aux": 0.5}


class ScoreMap(NamedTuple):
    """Coarse class scores, N x C x h x w, and where each pixel of the image samples them."""

    scores: Tensor
    grid: SamplingGrid

    def labels(self, size: tuple[int, int] | None = None) -> Tensor:
        """The best class of each pixel, N x H x W, uint8 (int16 with more than 256 classes)."""
        grid = self.grid if size is None else self.grid.rescaled(size)
        dtype = torch.uint8 if self.scores.shape[1] <= 256 else torch.int16
        return upsample_argmax(self.scores, grid, dtype=dtype)


@dataclass(frozen=True)
class LoadReport:
    """The result of loading a weights file, and whose weights they are (`family`).

    Attributes:
        format: "safetensors", "PyTorch", "Caffe" or "HDF5".
        loaded: the network's tensors that came from the file, by the network's names.
        reshaped: those whose shape differs in the file: (the file's, the network's).
        missing: the network's tensors that keep their initial values.
        unexpected: the file's tensors, by its names, that this network does not have.
        dropped: by the file's names, why a known tensor was not used.
        preprocessing: what ``model.preprocess`` does now.
        notes: what may make the weights worse than at their origin; also given as warnings.
    """

    path: Path
    format: str
    family: str
    loaded: tuple[str, ...]
    reshaped: dict[str, tuple[Shape, Shape]]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    dropped: dict[str, str]
    preprocessing: Preprocessing
    notes: tuple[str, ...]

    def __str__(self) -> str:
        p = self.preprocessing
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (p.mean, p.std))
        lines = [f"{self.path}: {self.family} ({self.format})"]
        lines.append(f"  loaded      {len(self.loaded)} tensors")
        lines += [f"  reshaped    {key}: {a} to {b}" for key, (a, b) in self.reshaped.items()]
        lines += [f"  missing     {key}: unchanged" for key in self.missing]
        lines += [f"  unexpected  {key}" for key in self.unexpected]
        lines += [f"  dropped     {key}: {why}" for key, why in self.dropped.items()]
        lines.append(f"  input       {p.order.upper()} * {p.scale:g}, mean {mean}, std {std}")
        lines += [f"  note        {note}" for note in self.notes]
        return "\n".join(lines)


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless a number of classes or channels is a positive integer."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a positive integer, not {value!r}")


def check_model(model: object) -> None:
    """Raise TypeError unless this is a network of fcnfast."""
    if not isinstance(model, FCN):
        raise TypeError(f"model must be a network of fcnfast, not {type(model).__name__}")


def dropout_layer(share: float) -> nn.Dropout:
    """Elementwise dropout; TypeError or ValueError if its rate is not a number from 0 to 1."""
    number = isinstance(share, (int, float))
    if not number or not 0 <= share <= 1:
        error = ValueError if number else TypeError
        raise error(f"dropout must be a number from 0 to 1, not {share!r}")
    return nn.Dropout(share)


def conv_bn(
    channels: int, width: int, kernel: int, stride: int = 1, *, eps: float = 1e-5, **more: Any
) -> list[nn.Module]:
    """A convolution, which pads its own border unless `more` says otherwise, and its batch norm."""
    more = {"padding": kernel // 2, "bias": False, **more}
    return [nn.Conv2d(channels, width, kernel, stride, **more), nn.BatchNorm2d(width, eps)]


class FCN(nn.Module):
    """A fully convolutional network; a subclass only has to define `score_maps`.

    Attributes:
        num_classes: channels of the main head.
        table: the classes' names and colors, if known.
        name, options: the arguments of `create_model` that made the network.
        in_channels: channels of the pictures that `preprocess` takes: 3 (RGB), 4 (RGB and one
            more, such as near infrared), or 1: RGB, of which the network sees the luma.
        preprocessing: what `preprocess` does; it travels with the weights.
        default_preprocessing: what the network's own released weights expect.
        load_report: the report of the last weights file, if one was loaded.
        trunk_modules: names of the trunk's layers among the direct children; training may freeze
            them or give them their own learning rate. A weights file may lack the other layers.
        cut_trunk: whether the trunk is a part of a classifier's: a file may hold more layers.
        transplanting: for errors: how to get a trunk with a different first layer.
        variance: mode of kaiming_normal_ for the initial values.
    """

    transplanting = ""
    trunk_modules: Sequence[str] = ()
    cut_trunk = False
    variance: Literal["fan_in", "fan_out"] = "fan_in"

    _mean: Tensor
    _std: Tensor

    def __init__(self, num_classes: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        self.num_classes = num_classes
        self.table: ClassTable | None = None
        self.name = ""
        self.in_channels = 3
        self.options: dict[str, Any] = {}
        self.load_report: LoadReport | None = None
        self.default_preprocessing = preprocessing
        self.set_preprocessing(preprocessing)

    def set_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Set what `preprocess` does."""
        self.preprocessing = preprocessing
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        device = torch.device("cpu") if like.is_meta else like.device
        for name in ("mean", "std"):
            value = torch.tensor(getattr(preprocessing, name), dtype=like.dtype, device=device)
            if self.in_channels == 4:
                value = torch.cat((value, value.mean(0, keepdim=True)))
            elif self.in_channels == 1:
                value = value.mean(0, keepdim=True)
            self.register_buffer(f"_{name}", value.view(-1, 1, 1), persistent=False)

    def take_channels(self, in_channels: int) -> None:
        """Make the first layer take gray pictures (1), or RGB and one more channel (4).

        InputError for any other number, or a network whose own input is not RGB.
        """
        if in_channels not in (1, 3, 4):
            raise InputError(f"in_channels must be 1, 3 or 4, not {in_channels!r}")
        if self.channels != 3:
            raise InputError(f"in_channels: this network's own input has {self.channels} channels")
        name, layer = self.first_layer()
        count, _, *window = layer.weight.shape
        layer.in_channels = self.in_channels = in_channels
        layer.weight = nn.Parameter(layer.weight.new_empty(count, in_channels, *window))
        self.initialize(name, layer)
        self.set_preprocessing(self.preprocessing)

    def preprocess(self, images: Tensor) -> Tensor:
        """Convert uint8 pictures to the network's own input, in the network's dtype.

        RGB, N x 3 x H x W (N x 4 x H x W if `in_channels` is 4), to the same shape (N x 1 x H x W
        if it is 1). TypeError or ValueError for images of another dtype or shape.
        """
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images must be a uint8 tensor, not {kind}")
        channels = self.picture_channels
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(f"images must be N x {channels} x H x W, not {tuple(images.shape)}")
        settings = self.preprocessing
        if self.in_channels == 1:
            luma = self._mean.new_tensor(LUMA).view(3, 1, 1)
            images = (images * luma).sum(1, keepdim=True)
        elif settings.order == "bgr":
            images = torch.cat((images[:, :3].flip(1), images[:, 3:]), 1)
        # In float32 or wider, then the dtype of a network after half() or double().
        return ((images * settings.scale - self._mean) / self._std).to(self._mean.dtype)

    def initialize(self, name: str, layer: nn.Module) -> None:
        """Initialize the layer `name` of `named_modules`, also when a weights file lacks it.

        Scores start at zero. Override it for another start, or other names of score layers.
        """
        if isinstance(layer, nn.Conv2d):
            if name.rpartition(".")[2].startswith(("score", "conv_seg")):
                nn.init.zeros_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, mode=self.variance, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif hasattr(layer, "reset_parameters"):
            layer.reset_parameters()  # type: ignore[operator]

    def materialize(self) -> None:
        """Initialize everything that is still on the meta device, on the CPU."""
        for name, layer in self.named_modules():
            own = {k: t for k, t in (layer._parameters | layer._buffers).items() if t is not None}
            kept = {key: tensor.data for key, tensor in own.items() if not tensor.is_meta}
            if len(kept) < len(own):
                layer.to_empty(device="cpu", recurse=False)
                self.initialize(name, layer)
                for key, data in kept.items():
                    getattr(layer, key).data = data

    def score_map(self, images: Tensor, head: str) -> ScoreMap:
        """The coarse scores of one head; ValueError if the network does not have it."""
        maps = self.score_maps(images, (head,))
        if head not in maps:
            raise ValueError(f"this network has no head {head!r}")
        return maps[head]

    def score_maps(
        self, images: Tensor, heads: Collection[str] | None = None
    ) -> dict[str, ScoreMap]:
        """The coarse scores of every head, "out" first; of at least those in `heads`."""
        raise NotImplementedError(f"{type(self).__name__} defines no score_maps")

    def forward(
        self,
        images: Tensor,
        targets: Tensor | Mapping[str, Tensor] | None = None,
        *,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        normalizer: Tensor | float | Mapping[str, Tensor | float] | None = None,
    ) -> dict[str, Tensor]:
        """Full-resolution scores, or with `targets` the loss, without full-resolution scores.

        Args:
            images: the network's own input, N x 3 x H x W (see `preprocess`).
            targets: labels N x H x W, 255 ignored, or one such tensor for each head by name; a
                head without its own uses that of "out".
            weight, label_smoothing, reduction: as in `fcnfast.ops.upsample_cross_entropy`.
            normalizer: divide the summed loss by this instead, one number for all heads or one for
                each by name. If it is the number of valid pixels in all batches of a step, on all
                processes, the parts add up to the mean over them.

        Returns:
            ``{"out": N x C x H x W, ...}``, or ``{"loss": ..., "out": ..., ...}``: the sum and each
            head's weighted part of it.

        ValueError or TypeError as in `upsample_cross_entropy`, for images of another shape or
        dtype, targets or normalizers that do not fit the heads, settings of the loss without
        targets, or both `reduction` and `normalizer`.
        """
        self._check_input(images)
        maps = self.score_maps(images)
        if targets is None:
            if (weight, label_smoothing, reduction, normalizer) != (None, 0.0, "mean", None):
                raise ValueError("weight, label_smoothing, reduction and normalizer need targets")
            return {head: upsample(m.scores, m.grid) for head, m in maps.items()}
        divisors: Mapping[str, Tensor | float] = {}
        if normalizer is not None:
            if reduction != "mean":
                raise ValueError(f"give reduction={reduction!r} or a normalizer, not both")
            reduction, divisors = "sum", _by_head(normalizer, list(maps), "normalizer")
        if not isinstance(targets, (Tensor, Mapping)):
            raise TypeError(f"targets must be a tensor or a dict, not {type(targets).__name__}")
        by_head, losses = _by_head(targets, list(maps)), {}
        settings: Any = {"weight": weight, "label_smoothing": label_smoothing}
        settings |= {"reduction": reduction}
        for head, m in maps.items():
            loss = upsample_cross_entropy(m.scores, by_head[head], m.grid, **settings)
            loss = loss / divisors[head] if head in divisors else loss
            losses[head] = loss * HEAD_WEIGHTS.get(head, 1.0)
        return {"loss": torch.stack(list(losses.values())).sum(0), **losses}

    @property
    def title(self) -> str:
        """What messages call it: its name, or its class's."""
        return self.name or type(self).__name__

    @property
    def channels(self) -> int:
        """Channels of the network's own input: those that its first convolution takes."""
        return self.first_layer()[1].in_channels

    @property
    def picture_channels(self) -> int:
        """Channels of the pictures that `preprocess` takes: 3, or 4."""
        return max(3, self.in_channels)

    def first_layer(self) -> tuple[str, nn.Conv2d]:
        """The first convolution and its name."""
        return next((n, m) for n, m in self.named_modules() if isinstance(m, nn.Conv2d))

    def _check_input(self, images: Tensor) -> None:
        """Reject anything but a batch of the network's own input."""
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images must be the network's own input, not {kind}: see preprocess")
        if images.dim() != 4 or images.shape[1] != self.channels or 0 in images.shape[2:]:
            wanted = f"N x {self.channels} x H x W"
            raise ValueError(f"images must be {wanted}, not {tuple(images.shape)}")

    @torch.no_grad()
    def predict(
        self, images: Tensor, size: tuple[int, int] | None = None, *, head: str = "out"
    ) -> Tensor:
        """Labels of one head, by default the main one, without full-resolution scores.

        In training mode batch norm and dropout are active, as in `forward`: call `eval` first.

        Args:
            images: the network's own input, N x 3 x H x W.
            size: (H', W') of the label map, such as that of a photo before it was shrunk; H x W by
                default.
            head: the wanted output, such as "geo" of a SIFT Flow network.

        Returns:
            N x H' x W' labels, uint8 (int16 with more than 256 classes). TypeError or ValueError
            for images of another dtype or shape, or an unknown head.
        """
        self._check_input(images)
        if images.device.type == "cpu":  # makes convolutions a quarter faster
            images = images.contiguous(memory_format=torch.channels_last)
        return self.score_map(images, head).labels(size)


def _by_head(
    values: _T | Mapping[str, _T], heads: list[str], name: str = "targets"
) -> dict[str, _T]:
    """The value of every head; one without its own has that of "out"."""
    if not isinstance(values, Mapping):
        return dict.fromkeys(heads, values)
    unknown = sorted(set(values) - set(heads))
    if unknown:
        raise ValueError(f"{name} for {unknown[0]!r}, but the heads are {', '.join(heads)}")
    if "out" not in values and set(heads) - set(values):
        raise ValueError(f"{name} hold none for 'out'")
    return {head: values[head if head in values else "out"] for head in heads}
