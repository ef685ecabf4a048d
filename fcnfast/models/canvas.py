"""Which units of a padded trunk's maps a picture reaches, and what the others are equal to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import ReceptiveField
from .decoder import IMAGE, Window, after, window_of

# Layers of more weights are not followed: the fully connected ones, which the picture fills.
MOST_WEIGHTS = 1 << 22
SUPPORTED = (nn.Conv2d, nn.MaxPool2d, nn.ReLU, nn.Dropout, nn.LocalResponseNorm)

Range = tuple[int, int]


@dataclass
class Stage:
    """A convolution or pooling, with the pointwise layers behind it; `end` counts the layers."""

    name: str
    layer: nn.Module
    window: Window
    place: ReceptiveField
    pointwise: list[nn.Module] = field(default_factory=list)
    end: int = 0

    def apply(self, x: Tensor) -> Tensor:
        """The layer on a region that holds all it reads: nothing is padded."""
        layer = self.layer
        if isinstance(layer, nn.Conv2d):
            step, spread = layer.stride, layer.dilation
            return F.conv2d(x, layer.weight, layer.bias, step, 0, spread, layer.groups)
        return layer(x)

    def work(self, rows: int, columns: int) -> int:
        """Multiplications for so many units."""
        weight = getattr(self.layer, "weight", None)
        return 0 if weight is None else weight.numel() * rows * columns

    @property
    def settings(self) -> Any:
        """What its result depends on besides its weights."""
        return self.name, self.window, str(self.layer), str(self.pointwise)


def stages_of(layers: Sequence[tuple[str, nn.Module]]) -> list[Stage]:
    """The trunk's first stages, up to a layer of another kind or one that a hook watches."""
    stages: list[Stage] = []
    for number, (name, layer) in enumerate(layers, 1):
        if type(layer) not in SUPPORTED or layer._forward_hooks or layer._forward_pre_hooks:
            break
        window = window_of(layer)
        if isinstance(layer, nn.Conv2d):
            if layer.padding_mode != "zeros" or layer.weight.numel() > MOST_WEIGHTS:
                break
        elif window is not None and (window.padding or window.dilation > 1):
            break
        if window is not None:
            before = stages[-1].place if stages else IMAGE
            stages.append(Stage(name, layer, window, after(before, layer)))
        elif not stages or (isinstance(layer, nn.Dropout) and layer.training):
            break
        elif not isinstance(layer, nn.Dropout):
            stages[-1].pointwise.append(layer)
        stages[-1].end = number
    return stages


class Axis(NamedTuple):
    """One map along one axis.

    The picture reaches the units first <= u < last of `size`; begin <= u < end are wanted, by the
    next layer or because scores are read from the whole map. Outside the map there is zero.
    """

    size: int
    first: int
    last: int
    begin: int
    end: int

    @property
    def full(self) -> bool:
        """Whether the picture reaches every unit."""
        return (self.first, self.last) == (0, self.size)

    def read(self, window: Window, before: int) -> Range:
        """First and last + 1 of the `before` units that a layer reads for the reached ones."""
        begin = self.first * window.stride - window.padding
        end = (self.last - 1) * window.stride - window.padding
        end += window.dilation * (window.kernel - 1) + 1
        # A last window of a pooling that looks beyond the map is cut there.
        return begin, min(end, before) if window.ceil else end


class Plan(NamedTuple):
    """The stages as far as the picture does not reach everything, and the axes of all maps.

    rows, columns: of the image, and of each stage's map.
    """

    stages: list[Stage]
    rows: list[Axis]
    columns: list[Axis]

    def work(self) -> tuple[int, int]:
        """Multiplications for all units, and for those that the picture reaches."""
        everything = reached = 0
        for stage, r, c in zip(self.stages, self.rows[1:], self.columns[1:], strict=True):
            everything += stage.work(r.size, c.size)
            reached += stage.work(r.last - r.first, c.last - c.first)
        return everything, reached


def plan_for(size: Sequence[int], known: list[Stage], wanted: Collection[str]) -> Plan | None:
    """The plan for an image of `size`; `wanted` maps are so whole. None for one too small."""
    rows, columns = (_axes(length, known) for length in size)
    if not known or min(axis.size for axis in rows + columns) < 1:
        return None
    filled = [r.full and c.full for r, c in zip(rows[1:], columns[1:], strict=True)]
    count = filled.index(True) + 1 if any(filled) else len(known)
    stages = known[:count]
    for axes in (rows, columns):
        for number, (stage, before, here) in enumerate(zip(stages, axes, axes[1:], strict=False)):
            begin, end = here.read(stage.window, before.size)
            if number and stages[number - 1].name in wanted:
                begin, end = min(begin, 0), max(end, before.size)
            axes[number] = before._replace(begin=begin, end=end)
    return Plan(stages, rows[: count + 1], columns[: count + 1])


def _axes(length: int, stages: Sequence[Stage]) -> list[Axis]:
    """What a picture reaches of each map along one axis."""
    found = [Axis(length, 0, length, 0, length)]
    for stage in stages:
        before, window = found[-1], stage.window
        reach = window.dilation * (window.kernel - 1)
        size = window.out_size(before.size)
        first = max(0, -(-(before.first + window.padding - reach) // window.stride))
        last = min(size, (before.last - 1 + window.padding) // window.stride + 1)
        found.append(Axis(size, first, last, 0, size))
    return found


def small_length(length: int, stages: Sequence[Stage]) -> int:
    """The length of the smallest image that has the same border: its middle is out of all reach."""
    step, pad = int(stages[-1].place.stride), stages[0].window.padding
    for small in range(length % step or step, length, step):
        for stage in stages:
            center = _middle(small, stage.place)[1]
            radius = Fraction(stage.place.size - 1, 2)
            if center - radius < -pad or center + radius > small - 1 + pad:
                break
        else:
            return small
    return length


def _middle(length: int, field: ReceptiveField) -> tuple[int, Fraction]:
    """The unit in the middle of an image, and the pixel that it is centered on."""
    unit = round((Fraction(length - 1, 2) - field.offset) / field.stride)
    return unit, field.stride * unit + field.offset


def small_range(axis: Axis, length: int, small: int, stage: Stage) -> Range:
    """The units of the small image's map that stand for the wanted ones."""
    return axis.begin, axis.end - int((length - small) / stage.place.stride)


def stand_ins(axis: Axis, length: int, small: int, stage: Stage) -> Tensor:
    """For each wanted unit the number, within `small_range`, of the one of the same value."""
    shift = int((length - small) / stage.place.stride)
    middle = _middle(small, stage.place)[0] - axis.begin
    units = torch.arange(axis.end - axis.begin, device="cpu")
    return torch.where(units <= middle, units, (units - shift).clamp_min(middle))


def cut(x: Tensor, rows: Range, columns: Range) -> Tensor:
    """A window of a map; outside the map there is zero."""
    height, width = x.shape[-2:]
    return F.pad(x, (-columns[0], columns[1] - width, -rows[0], rows[1] - height))
