"""The table of the kernels that the static gate compiles: every launcher in the forms that ship.

A family of kernels adds its cases in a few lines: how its launcher is called on tensors without
data, what one trip of its loops covers, and what it must not exceed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from bench.launches import Launch
from bench.static_case import Case, Work
from fcnfast.geometry import SamplingGrid
from fcnfast.kernels import argmax, confusion, crop_add, cross_entropy, upsample

# Scores of FCN-8s for a batch of 16 at 512 x 512, 21 classes, stride 8; and a map to add a skip to.
SHAPE, SIZE = (16, 21, 64, 64), (512, 512)
SKIP, OFFSET = (16, 21, 80, 80), (5, 5)
STRIDE = 8
GRID = SamplingGrid.resize(SHAPE[2:], SIZE)
DECONV = SamplingGrid.deconv(SHAPE[2:], STRIDE, padding=4)
# Other shapes of the same scores: strides 4 and 32, no stride at all.
GRIDS = {
    " stride 4": SamplingGrid.resize((128, 128), SIZE),
    " stride 32": SamplingGrid.resize((16, 16), SIZE),
    " uneven": SamplingGrid.resize((63, 47), (500, 375)),
}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORMATS = {"": torch.contiguous_format, " channels_last": torch.channels_last}


def _map(shape: tuple[int, ...], dtype: torch.dtype, form: str = "") -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=FORMATS[form])


def _beyond_int32() -> SamplingGrid:
    """The same positions in integers that int32 does not hold."""
    large = ([v * 2**40 for v in values] for values in (GRID.num, GRID.off, GRID.den))
    return SamplingGrid(SHAPE[2:], SIZE, *large, "zero")


def _forms() -> Iterator[tuple[str, torch.dtype, str]]:
    """The types and memory formats that every map op is compiled for: name, dtype, format."""
    for name, dtype in TYPES.items():
        for form in FORMATS:
            yield name + form, dtype, form
    yield "fp64", torch.float64, ""


def crop_add_cases() -> Iterator[Case]:
    """x plus a window of skip, and the gradient of skip."""
    for name, dtype, form in _forms():
        x, skip = _map(SHAPE, dtype, form), _map(SKIP, dtype, form)
        yield Case(
            f"crop_add.forward {name}",
            partial(crop_add.forward, x, skip, OFFSET),
            wide=("forward_kernel",),
            spills=name == "fp64",
        )
        yield Case(
            f"crop_add.backward_skip {name}",
            partial(crop_add.backward_skip, x, SKIP, OFFSET),
            wide=("backward_skip_kernel",),
            spills=name == "fp64",
        )


def _row_trips(launch: Launch) -> Mapping[str, float]:
    """One row of the result."""
    return {"forward_kernel: for y in": launch.arguments["BLOCK"] / launch.threads}


def _gradient_trips(launch: Launch) -> Mapping[str, float]:
    """One row of the gradient; and for each coarse row a sum over columns. Rows that look at a
    coarse row itself, without a second one, are repeated edges here: few."""
    values = launch.arguments["TILE"] / launch.threads
    return {
        "cell_sums: for y in": values,
        "cell_sums: for _ in": inf,
        "adjoint_kernel: for step in": STRIDE * values,
        "adjoint_kernel: for chunk in": inf,
    }


# A strip of 32 rows looks at 5 cells, and loads at most two coarse rows for each.
UPSAMPLE_ODDS = {"forward_kernel: if row != held": 5 / 32}
UPSAMPLE_WORK = {"forward_kernel": (Work("output", _row_trips, UPSAMPLE_ODDS),)}
ADJOINT_WORK = {"adjoint_kernel": (Work("gradient value", _gradient_trips),)}


def upsample_cases() -> Iterator[Case]:
    """Upsampling, alone and with a skip, and its adjoint: borders, strides, large integers."""
    grids = [(*form, GRID) for form in _forms()]
    grids.append(("fp32 zero", torch.float32, "", DECONV))
    for name, dtype, form, grid in grids:
        x = _map(SHAPE, dtype, form)
        yield Case(
            f"upsample.forward {name}",
            partial(upsample.forward, x, grid),
            UPSAMPLE_WORK,
            {"output": {"loads": 0.1}},
            wide=("forward_kernel",),
            spills=name == "fp64",
        )
        yield Case(
            f"upsample.adjoint {name}",
            partial(upsample.adjoint, _map((*SHAPE[:2], *SIZE), dtype, form), grid),
            ADJOINT_WORK,
            spills=name == "fp64",
        )
    x, small = _map(SHAPE, torch.float32), _map((16, 21, 63, 47), torch.float32)
    step = SamplingGrid.deconv(SHAPE[2:], 2, padding=1)
    skip = _map((16, 21, 146, 146), torch.float32)
    yield Case("upsample.forward fp32 uneven", partial(upsample.forward, small, GRIDS[" uneven"]))
    yield Case("upsample.forward_add fp32", partial(upsample.forward_add, x, skip, step, (9, 9)))
    for form in FORMATS:
        x, grad = (_map(s, torch.float32, form) for s in (SHAPE, (*SHAPE[:2], *SIZE)))
        name, grid = f"fp32 int64{form}", _beyond_int32()
        yield Case(f"upsample.forward {name}", partial(upsample.forward, x, grid))
        yield Case(f"upsample.adjoint {name}", partial(upsample.adjoint, grad, grid))


def _patch(launch: Launch) -> float:
    """Pixels that one thread of the loss covers. A program's first cell is its neighbour's too."""
    sizes = launch.arguments
    lanes = sizes["BLOCK"] - sizes["GROUPS"]
    return sizes["ROWS"] * sizes["COLUMNS"] * lanes / launch.threads


def _class_trips(launch: Launch) -> Mapping[str, float]:
    """All loops over classes; the labels' sums are of the pixels (below)."""
    loops = ("highest_of: for channel", "exponential_sums: for channel", "progressive: for channel")
    return dict.fromkeys(loops, _patch(launch)) | {"label_sums: for i": inf}


def _pixel_trips(launch: Launch) -> Mapping[str, float]:
    """What else there is: labels are read once for all classes, and once for each that is there."""
    patch, rows = _patch(launch), launch.arguments["ROWS"]
    once = {"": patch, "label_survey: for i": patch / rows}
    return (
        once
        | dict.fromkeys(_class_trips(launch), inf)
        | {"label_sums: for i": patch / rows / PRESENT}
    )


# Classes whose labels a program sees, of 21: two regions, as in natural pictures.
PRESENT = 2
LOSS_WORK = (
    Work("pixel-class", _class_trips, {"progressive: if ((present": PRESENT / SHAPE[1]}),
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
    **rest: Any,
) -> Case:
    shape = (*SHAPE[:2], *grid.in_size)
    target = torch.empty(SHAPE[0], *grid.size, dtype=labels, device="meta")
    weight = torch.empty(SHAPE[1], device="meta") if weighted else None
    smoothing = 0.1 if weighted else 0.0
    call = partial(
        cross_entropy.forward,
        _map(shape, dtype), target, weight, grid, 255, reduction, smoothing, gradient,
    )  # fmt: skip
    return Case(f"upsample_cross_entropy.{name}", call, **rest)


def cross_entropy_cases() -> Iterator[Case]:
    """The loss with its gradient, in all that makes another kernel; alone; pixel by pixel."""
    counted = {"work": {"patch_kernel": LOSS_WORK}}
    limits = {"pixel-class": {"instructions": 9, "ex2": 0.2}}
    yield _loss("gradient fp32", limits=limits, **counted)
    yield _loss("gradient bf16", torch.bfloat16, **counted)
    yield _loss("gradient fp64", torch.float64, spills=True)
    yield _loss("gradient fp32 zero", grid=DECONV, **counted)
    yield _loss("gradient fp32 int64", grid=_beyond_int32())
    yield _loss("gradient fp32 stride 4", grid=GRIDS[" stride 4"], **counted)
    yield _loss("gradient fp32 stride 32", grid=GRIDS[" stride 32"])
    yield _loss("gradient fp32 uint8", labels=torch.uint8, **counted)
    yield _loss("gradient fp32 weighted", weighted=True)
    yield _loss("loss fp32", gradient=False, **counted)
    yield _loss("pixels fp32", reduction="none")
    yield _loss("pixels fp64", torch.float64, reduction="none", spills=True)
    target = torch.empty(SHAPE[0], *SIZE, dtype=torch.int64, device="meta")
    grad = torch.empty(SHAPE[0], *SIZE, device="meta")
    nothing, one = torch.empty(0, device="meta"), torch.empty((), device="meta")
    scores = _map(SHAPE, torch.float32)
    parts = (scores, target, None, GRID, 255, 0.0, nothing, grad)
    call = partial(cross_entropy.per_pixel_gradient, *parts)
    yield Case("upsample_cross_entropy.pixel_gradient fp32", call)
    for name, dtype in TYPES.items():
        call = partial(cross_entropy.scaled, scores, one, one, dtype)
        yield Case(f"upsample_cross_entropy.scaled {name}", call, wide=("scale_kernel",))


def _interpolated_trips(launch: Launch) -> Mapping[str, float]:
    """A cell whose corners differ, and a class that may be the largest: the worst, as in noise."""
    sizes = launch.arguments
    patch = sizes["ROWS"] * sizes["COLUMNS"] * sizes["BLOCK"] / launch.threads
    return {"largest_classes: for channel": patch}


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
    for name, dtype in (*TYPES.items(), ("fp64", torch.float64)):
        yield Case(
            f"upsample_argmax.forward {name}",
            partial(argmax.forward, _map(SHAPE, dtype), GRID, torch.uint8, False),
            ARGMAX_WORK,
            {"pixel-class": {"instructions": 5}} if name == "fp32" else {},
            spills=name == "fp64",
        )
    scores = _map(SHAPE, torch.float32)
    others = {" zero": DECONV, " int64": _beyond_int32(), **GRIDS}
    for name, grid in others.items():
        call = partial(argmax.forward, _map((*SHAPE[:2], *grid.in_size), torch.float32), grid)
        yield Case(f"upsample_argmax.forward fp32{name}", partial(call, torch.uint8, False))
    call = partial(argmax.forward, scores, GRID, torch.int64, False)
    yield Case("upsample_argmax.forward fp32 to int64", call, ARGMAX_WORK)
    call = partial(argmax.forward, scores, GRID, torch.uint8, True)
    yield Case("upsample_argmax.confidence fp32", call)


def confusion_cases() -> Iterator[Case]:
    """Counts by true class and label: of float32 and int64, of the smallest types."""
    for name, labels in (("fp32", torch.int64), ("bf16", torch.uint8)):
        out = torch.empty(SHAPE[1], SHAPE[1], dtype=torch.int64, device="meta")
        target = torch.empty(SHAPE[0], *SIZE, dtype=labels, device="meta")
        call = partial(confusion.add, out, _map(SHAPE, TYPES[name]), target, GRID, 255)
        yield Case(f"upsample_confusion.add {name}", call, CONFUSION_WORK)


FAMILIES = {
    "crop_add": crop_add_cases,
    "upsample": upsample_cases,
    "upsample_cross_entropy": cross_entropy_cases,
    "upsample_argmax": argmax_cases,
    "upsample_confusion": confusion_cases,
}


def cases(families: Collection[str] = FAMILIES.keys()) -> dict[str, Case]:
    """Every case of the families by its name."""
    return {case.name: case for family in families for case in FAMILIES[family]()}
