"""What the loop learns with: the optimizer, the class weights, the average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..models import FCN
from .settings import TrainSettings

Tensors = list[Tensor] | tuple[Tensor, ...]


def make_optimizer(model: FCN, s: TrainSettings) -> torch.optim.Optimizer:
    """Weight decay holds for the weights of convolutions, not for biases and norms."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": s.weight_decay}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    if s.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=s.lr)
    return torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum)


def median_frequency(labels: Iterable[np.ndarray], classes: int, power: float = 1.0) -> Tensor:
    """Class weights: the median class frequency over the class' own, to a power.

    A class' frequency is its pixels over the labeled pixels of the pictures that hold it; a class
    that no picture holds weighs 1.

    Args:
        labels: uint8 arrays, 255 ignored.
        classes: C.
        power: 0..1; less than 1 softens the weights.

    Returns:
        C weights, float32.

    Raises:
        InputError: when there is no labeled pixel.
    """
    pixels, room = np.zeros(classes), np.zeros(classes)
    for picture in labels:
        count = np.bincount(picture.ravel(), minlength=256)[:classes]
        pixels += count
        room += np.where(count > 0, count.sum(), 0)
    if not pixels.any():
        raise InputError("--class-weights: the pictures have no labeled pixel")
    frequency = np.divide(pixels, room, out=np.zeros(classes), where=room > 0)
    median = np.median(frequency[frequency > 0])
    weights = np.divide(median, frequency, out=np.ones(classes), where=frequency > 0)
    return torch.tensor(weights**power, dtype=torch.float32)


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """An exponential average that forgets its first, untrained values sooner than its decay."""

    @torch.no_grad()
    def update(averages: Tensors, currents: Tensors, count: Tensor | int) -> None:
        step = int(count)
        share = 1 - min(decay, (1 + step) / (10 + step))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, share)
        else:  # counters
            torch._foreach_copy_(averages, currents)

    return update
