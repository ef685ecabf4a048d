"""Upsampling weights of a file: bilinear ones are the fixed fast path, others must be learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from ..errors import WeightsError
from ..weights import WeightsFile
from .decoder import UPSAMPLINGS, Upsampling, Upscore, bilinear_filter
from .skipnet import SkipNet


def kind_of(weight: Tensor) -> Upsampling:
    """What a transposed convolution's weight, C x C x k x k or C x 1 x k x k, needs to be.

    "fixed" only when every class has exactly the bilinear filter (as the weight's type holds it)
    and the classes do not mix; "depthwise" when they do not mix; otherwise "dense".
    """
    own = weight
    if weight.shape[1] > 1:
        own = weight.diagonal().permute(2, 0, 1).unsqueeze(1)
        # What is not zero must be on the diagonal.
        if int(weight.count_nonzero()) != int(own.count_nonzero()):
            return "dense"
    tent = bilinear_filter(weight.shape[-1]).to(weight.dtype)
    # Caffe and others make the filter in float32, where thirds and fifths round differently.
    slack = 2**-23 if weight.dtype in (torch.float32, torch.float64) else 0.0
    same = weight.shape[-1] == weight.shape[-2] and bool(((own - tent).abs() <= slack).all())
    return "fixed" if same else "depthwise"


def as_kind(weight: Tensor, dense: bool) -> Tensor:
    """The same upsampling as C x C x k x k, or without its zeros as C x 1 x k x k."""
    if weight.shape[0] == 1 or dense == (weight.shape[1] > 1):
        return weight
    if not dense:
        return weight.diagonal().permute(2, 0, 1).unsqueeze(1).contiguous()
    full = weight.new_zeros(weight.shape[0], weight.shape[0], *weight.shape[2:])
    channel = torch.arange(weight.shape[0])
    full[channel, channel] = weight[:, 0]
    return full


class Kept:
    """How a network upsamples, with the layers that do it, to be put back."""

    def __init__(self, model: SkipNet) -> None:
        self._model = model
        self._layers = {name: model._modules.get(name) for name in model.upscores}
        self._kinds = model.upsampling, model.final_upsampling, model.options

    def put_back(self) -> None:
        """Make the network what it was."""
        for name, layer in self._layers.items():
            if layer is None:
                self._model._modules.pop(name, None)
            else:
                self._model._modules[name] = layer
        self._model.upsampling, self._model.final_upsampling, self._model.options = self._kinds


def choose_upsampling(
    model: SkipNet, file: WeightsFile, mine: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Give the network the upsampling that a file's weights need: no less than it has.

    Args:
        model: the network; `Kept` puts it back.
        file: an open file.
        mine: the file's names by the network's.

    Returns:
        Upsampling weights by the network's names, and what was dropped, and why, by the file's.

    Raises:
        WeightsError: a weight of another shape than this network's.
    """
    found: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for name, (classes, _, *window) in _shapes(model).items():
        key = mine.get(f"{name}.weight")
        if key is None:
            continue
        shape = file.tensors[key].shape
        if len(shape) != 4 or shape[1] not in (1, shape[0]) or list(shape[2:]) != window:
            raise WeightsError(
                f"{file.path}: {key!r} is {shape}, but the upsampling {name!r} of {model.name} is "
                f"{(classes, classes, *window)}, or {(classes, 1, *window)} without its zeros"
            )
        if shape[0] == classes:
            found[name] = file.tensors[key].read()
        else:
            dropped[key] = f"for {shape[0]} classes, the network has {classes}"
    kinds = {name: kind_of(weight) for name, weight in found.items()}
    finals = set(model.final_upscores)
    model.set_upsampling(
        _most(model.upsampling, *(kind for name, kind in kinds.items() if name not in finals)),
        _most(model.final_upsampling, *(kind for name, kind in kinds.items() if name in finals)),
    )
    weights = {}
    for name, weight in found.items():
        layer = model._modules.get(name)
        if layer is None:
            dropped[mine[f"{name}.weight"]] = "bilinear: the network's fixed upsampling"
        else:
            weights[f"{name}.weight"] = as_kind(weight, cast(Upscore, layer).dense)
    return weights, dropped


def _shapes(model: SkipNet) -> dict[str, tuple[int, ...]]:
    """The weights that learned upsamplings have where classes do not mix: C x 1 x k x k."""
    kept = Kept(model)
    model.set_upsampling("depthwise")
    layers = {name: cast(Upscore, model.get_submodule(name)) for name in model.upscores}
    kept.put_back()
    return {name: tuple(layer.weight.shape) for name, layer in layers.items()}


def _most(*kinds: Upsampling) -> Upsampling:
    """The kind that can be all of these."""
    return max(kinds, key=UPSAMPLINGS.index)
