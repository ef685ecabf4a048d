"""The network of a run: initialization, freezing, optimizer, class weights, averaged weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..data import ClassTable, SegmentationDataset
from ..data.folder import count_pixels
from ..errors import InputError
from ..files import PathLike
from ..models import FCN, Preprocessing, create_model
from ..models.loading import network_of
from ..weights import bundled_path
from .settings import TrainSettings

Tensors = list[Tensor] | tuple[Tensor, ...]


def default_model(s: TrainSettings) -> str:
    """The network of a run's weights, or the light one; WeightsError if the file does not tell."""
    return network_of(_weights(s)) if s.weights else "fcn4s_light"


def _weights(s: TrainSettings) -> PathLike:
    return bundled_path() if s.weights == "bundled" else s.weights


def make_model(
    s: TrainSettings,
    table: ClassTable,
    pictures: SegmentationDataset,
    device: torch.device,
    saved: dict[str, Any] | None,
) -> FCN:
    """Return the network of a run that trains on `pictures`, on its device.

    `saved` holds the options and the preprocessing of a resumed run, whose weights may be gone.
    Raises as `create_model` does, and InputError for `sync_bn` without GPUs.
    """
    if saved is None:
        options: dict[str, Any] = {} if s.in_channels == 3 else {"in_channels": s.in_channels}
        if s.weights:
            options["weights"] = _weights(s)
        if s.weights_backbone:
            options["weights_backbone"] = s.weights_backbone
        model = create_model(s.model, num_classes=len(table), **options)
        if model.in_channels != s.in_channels:
            raise InputError(f"{s.weights}: its network needs --in-channels {model.in_channels}")
        longest = max(max(pictures.size(k)) for k in range(len(pictures)))
        size = int(longest * s.scale_max)
        model.set_preprocessing(replace(model.preprocessing, max_size=size))
    else:
        model = create_model(s.model, num_classes=len(table), **saved["options"])
        model.set_preprocessing(Preprocessing(**saved["preprocessing"]))
    model.table = table
    if s.sync_bn:
        if device.type != "cuda":
            raise InputError(f"--sync-bn needs GPUs: SyncBatchNorm takes no tensors on {device}")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if s.channels_last else model  # type: ignore[call-overload]


def _in_trunk(model: FCN, name: str) -> bool:
    return name.partition(".")[0] in model.trunk_modules


def freeze(model: FCN, what: str) -> list[nn.Module]:
    """Freeze the trunk or all batch norms; return the norms to keep in evaluation mode.

    A frozen batch norm normalizes by its running statistics and no longer learns them.
    """
    if what == "none":
        return []
    if what == "trunk":
        for name, parameter in model.named_parameters():
            if _in_trunk(model, name):
                parameter.requires_grad_(False)
    norms: list[nn.Module] = []
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and (what == "bn" or _in_trunk(model, name)):
            norms.append(layer.requires_grad_(False))
    if what == "bn" and not norms:
        raise InputError(f"--freeze bn: {model.name} has no batch norms")
    return norms


def checkpoint_blocks(model: FCN) -> None:
    """Make the trunk's blocks keep only their input, and recompute in the backward pass."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    layers = [layer for name, layer in model.named_modules() if _in_trunk(model, name)]
    blocks = [b for b in layers if type(b) not in containers and any(b.children())]
    if not blocks:
        told = f"the trunk of {model.name} is not made of blocks"
        raise InputError(f"--checkpoint-activations: {told}")
    inner = {part for block in blocks for part in block.modules() if part is not block}
    for block in blocks:
        if block not in inner:
            _checkpoint(block)


def _checkpoint(block: nn.Module) -> None:
    forward = block.forward
    norms = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        """Do not update the running statistics: they have seen this batch."""
        kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, values in zip(norms, kept, strict=True):
                norm.momentum, norm.num_batches_tracked = values

    def call(x: Tensor) -> Any:
        if not torch.is_grad_enabled():
            return forward(x)
        contexts = contextlib.nullcontext(), again()
        return checkpoint(forward, x, use_reentrant=False, context_fn=lambda: contexts)

    block.forward = call


def make_optimizer(model: FCN, s: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimizer; "share" of each group is its multiple of the learning rate.

    The trunk learns at `lr_backbone`; biases and the parameters of norms learn at `lr_bias`,
    without weight decay. InputError if everything is frozen, or the trunk is not known.
    """
    if (s.lr_backbone != 1 or s.freeze == "trunk") and not model.trunk_modules:
        raise InputError(f"{model.name} does not say which of its layers are its trunk")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            share = s.lr_backbone if _in_trunk(model, name) else 1.0
            key = (share, s.weight_decay) if p.dim() > 1 else (share * s.lr_bias, 0.0)
            groups.setdefault(key, []).append(p)
    if not groups:
        raise InputError("nothing is left to learn: all parameters are frozen")
    settings = [
        {"params": params, "share": share, "lr": s.lr * share, "weight_decay": decay}
        for (share, decay), params in groups.items()
    ]
    if s.optimizer == "adamw":
        return torch.optim.AdamW(settings, lr=s.lr)
    return torch.optim.SGD(settings, lr=s.lr, momentum=s.momentum)


def median_frequency(pictures: SegmentationDataset, power: float) -> Tensor:
    """Return C class weights in float32: (median class frequency / class frequency) ** power.

    The frequency of a class is its number of pixels divided by the labeled pixels of the pictures
    that contain it; a class in no picture gets weight 1. InputError if no pixel is labeled.
    """
    classes = len(pictures.table)
    pixels, room = np.zeros(classes), np.zeros(classes)
    for index in range(len(pictures)):
        count = count_pixels(pictures.labels(index))[:classes]
        pixels += count
        room += np.where(count > 0, count.sum(), 0)
    if not pixels.any():
        raise InputError("--class-weights: the pictures have no labeled pixel")
    frequency = np.divide(pixels, room, out=np.zeros(classes), where=room > 0)
    median = np.median(frequency[frequency > 0])
    weights = np.divide(median, frequency, out=np.ones(classes), where=frequency > 0)
    return torch.tensor(weights**power, dtype=torch.float32, device="cpu")


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return the update of an exponential average whose decay is smaller in the first steps."""

    @torch.no_grad()
    def update(averages: Tensors, currents: Tensors, count: Tensor | int) -> None:
        step = int(count)
        share = 1 - min(decay, (1 + step) / (10 + step))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, share)
        else:  # counters
            torch._foreach_copy_(averages, currents)

    return update
