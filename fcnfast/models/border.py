"""What a padded canvas holds around the picture, kept between pictures.

The paper's nets pad the image by 100 pixels. What their layers make of that canvas, as far as the
picture does not reach, depends on the weights and on the size alone. It is computed once, from an
image of zeros as the padding is, and each picture only needs the region that it reaches: at
500 x 500 two thirds of VGG-16's work, for the same result.

These values vary near the canvas' outer edge, and are the same along the middle of each side. So a
small image tells them all: its size leaves the same rest modulo the trunk's stride, and its middle
is repeated. Pictures of many sizes share one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from threading import Lock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .canvas import (
    Axis,
    Plan,
    Range,
    Stage,
    cut,
    plan_for,
    small_length,
    small_range,
    stages_of,
    stand_ins,
)
from .decoder import Located

# So many small images are remembered, each about 8 MB for VGG-16 in float32.
REMEMBERED = 8
MOST_SEEN = 256
# The canvas is not worth the trouble when the picture reaches more of the work than this.
MOST_REACHED = 0.9


class Around(NamedTuple):
    """A small image's map, 1 x C x h x w, and which of its units stand for those of a map."""

    values: Tensor
    rows: Tensor
    columns: Tensor


class Begun(NamedTuple):
    """How far a trunk was walked: `done` layers, up to `here`, the map named `name`."""

    done: int
    name: str
    here: Located
    found: dict[str, Located]


def frame(x: Tensor, rows: Axis, columns: Axis, around: Around | None, relu: bool) -> Tensor:
    """What is wanted of a map: its reached region `x` within what is around it, or in zeros.

    With `relu` that is applied to the region on its way.
    """
    (top, bottom), (left, right) = (
        (max(axis.first, axis.begin), min(axis.last, axis.end)) for axis in (rows, columns)
    )
    x = part_of(x, (rows.first, columns.first), (top, bottom), (left, right))
    top, bottom = top - rows.begin, bottom - rows.begin
    left, right = left - columns.begin, right - columns.begin
    height, width = rows.end - rows.begin, columns.end - columns.begin
    if (top, left, bottom, right) == (0, 0, height, width):
        return F.relu(x, inplace=True) if relu else x
    shape = (*x.shape[:2], height, width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    inside = out[:, :, top:bottom, left:right]
    if relu:
        torch.clamp_min(x, 0, out=inside)
    else:
        inside.copy_(x)
    for strip_rows, strip_columns in (
        (slice(0, top), slice(0, width)),
        (slice(bottom, height), slice(0, width)),
        (slice(top, bottom), slice(0, left)),
        (slice(top, bottom), slice(right, width)),
    ):
        strip = out[:, :, strip_rows, strip_columns]
        if around is None:
            strip.zero_()
        elif strip.numel():
            values = around.values.index_select(2, around.rows[strip_rows])
            strip.copy_(values.index_select(3, around.columns[strip_columns]))
    return out


def part_of(x: Tensor, begin: tuple[int, int], rows: Range, columns: Range) -> Tensor:
    """The window `rows` x `columns` of a map of which `x` holds the units from `begin` on."""
    top, left = begin
    return x[:, :, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]


class Borders:
    """The canvas of one trunk. A copy or a pickle of it begins without memory."""

    def __init__(self) -> None:
        self._weights: list[Tensor] = []
        self._small: OrderedDict[Any, list[Tensor]] = OrderedDict()
        self._seen: set[Any] = set()
        self._lock = Lock()  # several threads may label pictures with one network

    def __reduce__(self) -> tuple[type[Borders], tuple[()]]:
        return Borders, ()

    def walk(
        self, layers: Sequence[tuple[str, nn.Module]], images: Tensor, wanted: Collection[str]
    ) -> Begun | None:
        """The first layers of a trunk, only where the picture reaches; without gradients.

        Args:
            layers: the trunk's, in evaluation mode.
            images: N x C x H x W on a CPU.
            wanted: names of maps to hand out.

        Returns:
            How far that is, with the wanted maps among those; None when nothing is gained.
        """
        known = stages_of(layers)
        plan = plan_for(images.shape[-2:], known, wanted)
        around = None if plan is None else self._around(known, plan, images, wanted)
        if plan is None or around is None:
            return None
        found: dict[str, Located] = {}
        before = plan.rows[0], plan.columns[0]
        x = frame(images, *before, None, False)
        for number, stage in enumerate(plan.stages, 1):
            here = plan.rows[number], plan.columns[number]
            begin = before[0].begin, before[1].begin
            read = [h.read(stage.window, b.size) for h, b in zip(here, before, strict=True)]
            x = stage.apply(part_of(x, begin, *read))
            only_relu = [type(layer) for layer in stage.pointwise] == [nn.ReLU]
            for layer in () if only_relu else stage.pointwise:
                x = layer(x)
            x = frame(x, *here, around[number - 1], only_relu)
            if stage.name in wanted:
                whole = [(0, axis.size) for axis in here]
                found[stage.name] = Located(
                    part_of(x, (here[0].begin, here[1].begin), *whole), stage.place
                )
            before = here
        return Begun(stage.end, stage.name, Located(x, stage.place), found)

    def _around(
        self, known: list[Stage], plan: Plan, images: Tensor, wanted: Collection[str]
    ) -> list[Around] | None:
        """What is around each map of the plan; None when that is not worth the work."""
        size = tuple(images.shape[-2:])
        small = tuple(small_length(length, plan.stages) for length in size)
        everything, reached = plan.work()
        if reached > MOST_REACHED * everything:
            return None
        key = (
            small,
            tuple(stage.settings for stage in plan.stages),
            tuple(stage.name in wanted for stage in plan.stages),
            images.dtype,
            torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        )
        own = plan_for(small, plan.stages, ())
        cost = everything if own is None else own.work()[0]
        with self._lock:
            self._forget_other_weights(known)
            # A picture pays for what is around it when that costs less than it saves at once;
            # otherwise the second of its kind does.
            if cost > (everything - reached) * len(images) and self._is_first(key):
                return None
            if key not in self._small:
                self._small[key] = _zero_maps(plan, size, small, images)
            self._small.move_to_end(key)
            while len(self._small) > REMEMBERED:
                self._small.popitem(last=False)
            maps = self._small[key]
        return [
            Around(values, *(stand_ins(*one, stage) for one in zip(axes, size, small, strict=True)))
            for values, stage, *axes in zip(
                maps, plan.stages, plan.rows[1:], plan.columns[1:], strict=True
            )
        ]

    def _is_first(self, key: Any) -> bool:
        """Whether no such picture was seen before; this one is from now on."""
        if key in self._seen:
            return False
        self._seen = {*self._seen, key} if len(self._seen) < MOST_SEEN else {key}
        return True

    def _forget_other_weights(self, known: list[Stage]) -> None:
        """Start anew unless every weight equals what it was."""
        layers = [stage.layer for stage in known]
        weights = [p for layer in layers for p in layer.parameters(recurse=False)]
        same = len(weights) == len(self._weights) and all(
            old.dtype == new.dtype and torch.equal(old, new)
            for old, new in zip(self._weights, weights, strict=True)
        )
        if not same:
            self._small.clear()
            self._seen.clear()
            with torch.inference_mode(False):  # kept for calls of every mode
                self._weights = [weight.detach().clone() for weight in weights]


@torch.no_grad()
def _zero_maps(
    plan: Plan, size: tuple[int, ...], small: tuple[int, ...], images: Tensor
) -> list[Tensor]:
    """The maps of a small image of zeros, as far as they are wanted."""
    with torch.inference_mode(False):
        x = torch.zeros(1, images.shape[1], *small, dtype=images.dtype)
        found = []
        for stage, *axes in zip(plan.stages, plan.rows[1:], plan.columns[1:], strict=True):
            for layer in (stage.layer, *stage.pointwise):
                x = layer(x)
            ranges = [small_range(*one, stage) for one in zip(axes, size, small, strict=True)]
            found.append(cut(x, *ranges))
    return found
