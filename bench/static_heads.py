"""The fused heads in the static gate: the loss, label maps, confusion matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from math import inf
from typing import Any

import torch

from bench.launches import Launch
from bench.static_case import (
    DECONV,
    GRID,
    GRIDS,
    LABELS,
    SHAPE,
    SIZE,
    STRIDE,
    TYPES,
    Case,
    Work,
    meta,
)
from fcnfast.geometry import SamplingGrid
from fcnfast.kernels import argmax, confusion, cross_entropy


def _patch(launch: Launch) -> float:
    """Pixels that one thread of the loss covers. A program's first cell is its neighbor's too."""
    sizes = launch.arguments
    lanes = sizes["BLOCK"] - sizes["GROUPS"]
    return sizes["ROWS"] * sizes["COLUMNS"] * lanes / launch.threads


def _class_trips(launch: Launch) -> Mapping[str, float]:
    """All loops over classes; the labels are read for pixels (below)."""
    loops = ("highest_of: for _", "exponential_sums: for channel", "patch_loss: for channel")
    return dict.fromkeys(loops, _patch(launch)) | {"classes_of: for i": inf}


def _pixel_trips(launch: Launch) -> Mapping[str, float]:
    """What else there is: labels are read once for all classes."""
    patch, rows = _patch(launch), launch.arguments["ROWS"]
    # Two loops, each over half of the rows, if these are more than four.
    once = {"": patch, "classes_of: for i": patch / min(rows, 4)}
    return dict.fromkeys(_class_trips(launch), inf) | once


# Classes whose labels a program sees, of 21: two regions, as in natural pictures.
PRESENT = 2
LOSS_WORK = (
    Work("pixel-class", _class_trips, {"patch_loss: if named": PRESENT / SHAPE[1]}),
    Work("pixel", _pixel_trips),
)


def _loss(
    name: str,
    dtype: torch.dtype = torch.float32,
    grid: SamplingGrid = GRID,
    labels: torch.dtype = torch.int64,
    weighted: bool = False,
    reduction: str = "mean",
    gradient: bool = True,
    form: str = "",
    **rest: Any,
) -> Case:
    shape = (*SHAPE[:2], *grid.in_size)
    target = torch.empty(SHAPE[0], *grid.size, dtype=labels, device="meta")
    weight = meta(SHAPE[1:2]) if weighted else None
    smoothing = 0.1 if weighted else 0.0
    call = partial(
        cross_entropy.forward,
        meta(shape, dtype, form), target, weight, grid, 255, reduction, smoothing, gradient,
    )  # fmt: skip
    return Case(f"upsample_cross_entropy.{name}", call, **rest)


def cross_entropy_cases() -> Iterator[Case]:
    """The loss with its gradient, in all that makes another kernel; alone; pixel by pixel."""
    counted = {"work": {"patch_kernel": LOSS_WORK}}
    limits = {"pixel-class": {"instructions": 9, "ex2": 0.2}}
    yield _loss("gradient fp32", limits=limits, **counted)
    yield _loss("gradient bf16", torch.bfloat16, **counted)
    yield _loss("gradient fp16", torch.float16, **counted)
    yield _loss("gradient fp32 channels_last", form=" channels_last", **counted)
    yield _loss("gradient fp32 zero", grid=DECONV, **counted)
    yield _loss("gradient fp32 stride 4", grid=GRIDS[" stride 4"], **counted)
    yield _loss("gradient fp32 stride 32", grid=GRIDS[" stride 32"])
    for name, labels in LABELS.items():
        if labels != torch.int64:
            yield _loss(f"gradient fp32 {name}", labels=labels, **counted)
    for name, dtype in TYPES.items():
        yield _loss(f"gradient {name} weighted", dtype, weighted=True)
    yield _loss("loss fp32", gradient=False, **counted)
    target = torch.empty(SHAPE[0], *SIZE, dtype=torch.int64, device="meta")
    for (name, dtype), weighted in product(TYPES.items(), (False, True)):
        kind = f"{name}{' weighted' if weighted else ''}"
        yield _loss(f"pixels {kind}", dtype, reduction="none", weighted=weighted)
        nothing, grad, weight = meta((0,)), meta((SHAPE[0], *SIZE)), meta(SHAPE[1:2])
        given = (meta(SHAPE, dtype), target, weight if weighted else None, GRID, 255, 0.0)
        call = partial(cross_entropy.per_pixel_gradient, *given, nothing, grad)
        yield Case(f"upsample_cross_entropy.pixel_gradient {kind}", call)
    for name, dtype in TYPES.items():
        call = partial(cross_entropy.scaled, meta(SHAPE), meta(()), meta(()), dtype)
        yield Case(f"upsample_cross_entropy.scaled {name}", call, wide=("scale_kernel",))


def _interpolated_trips(launch: Launch) -> Mapping[str, float]:
    """A cell whose corners differ, and a class that may be the largest: the worst, as in noise."""
    sizes = launch.arguments
    patch = sizes["ROWS"] * sizes["COLUMNS"] * sizes["BLOCK"] / launch.threads
    return {"largest_candidates: for channel": patch}


def _point_trips(launch: Launch) -> Mapping[str, float]:
    """Some classes of the coarse points, which stand for the pixels of a cell each."""
    sizes = launch.arguments
    points = sizes["BLOCK"] / launch.threads
    return {"point_winners: for first": sizes["UNROLL"] * points * STRIDE**2}


POINT_WORK = {"table_kernel": (Work("pixel-class", _point_trips),)}
ARGMAX_WORK = POINT_WORK | {"label_kernel": (Work("pixel-class", _interpolated_trips),)}
CONFUSION_WORK = POINT_WORK | {"confusion_kernel": (Work("pixel-class", _interpolated_trips),)}


def argmax_cases() -> Iterator[Case]:
    """Label maps of every type of scores; the winners' softmax."""
    for name, dtype in TYPES.items():
        call = partial(argmax.forward, meta(SHAPE, dtype), GRID, torch.uint8, True)
        yield Case(f"upsample_argmax.confidence {name}", call)
        yield Case(
            f"upsample_argmax.forward {name}",
            partial(argmax.forward, meta(SHAPE, dtype), GRID, torch.uint8, False),
            ARGMAX_WORK,
            {"pixel-class": {"instructions": 5}} if name == "fp32" else {},
        )
    scores = meta(SHAPE)
    others = {" zero": DECONV, **GRIDS}
    for name, grid in others.items():
        call = partial(argmax.forward, meta((*SHAPE[:2], *grid.in_size)), grid)
        yield Case(f"upsample_argmax.forward fp32{name}", partial(call, torch.uint8, False))
    for name, labels in LABELS.items():
        if labels != torch.uint8:
            call = partial(argmax.forward, scores, GRID, labels, False)
            yield Case(f"upsample_argmax.forward fp32 to {name}", call, ARGMAX_WORK)
    call = partial(argmax.forward, meta(SHAPE, form=" channels_last"), GRID, torch.uint8, False)
    yield Case("upsample_argmax.forward fp32 channels_last", call, ARGMAX_WORK)


def confusion_cases() -> Iterator[Case]:
    """Counts by true class and label, of every type of scores and of labels; and of others."""
    # Every type of scores and of labels, not all pairs.
    types = {**TYPES, "fp32 int64": torch.float32}
    for (name, dtype), labels in zip(types.items(), LABELS.values(), strict=True):
        target = torch.empty(SHAPE[0], *SIZE, dtype=labels, device="meta")
        for rows, rest in ((SHAPE[1], ""), (SHAPE[1] + 1, " and others")):
            out = torch.empty(rows, SHAPE[1], dtype=torch.int64, device="meta")
            call = partial(confusion.add, out, meta(SHAPE, dtype), target, GRID, 255)
            yield Case(f"upsample_confusion.add {name}{rest}", call, CONFUSION_WORK)
