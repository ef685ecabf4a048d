"""The map ops in the static gate: crop_add, upsample, deconv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from math import inf

import torch

from bench.launches import Launch
from bench.static_case import (
    DECONV,
    FORMATS,
    GRID,
    GRIDS,
    OFFSET,
    SHAPE,
    SIZE,
    SKIP,
    STRIDE,
    Case,
    Work,
    beyond_int32,
    forms,
    meta,
)
from fcnfast.geometry import SamplingGrid
from fcnfast.kernels import crop_add, upsample


def crop_add_cases() -> Iterator[Case]:
    """x plus a window of skip, and the gradient of skip."""
    for name, dtype, form in forms():
        x, skip = meta(SHAPE, dtype, form), meta(SKIP, dtype, form)
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
    grids = [(*form, GRID) for form in forms()]
    grids.append(("fp32 zero", torch.float32, "", DECONV))
    for name, dtype, form, grid in grids:
        x = meta(SHAPE, dtype, form)
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
            partial(upsample.adjoint, meta((*SHAPE[:2], *SIZE), dtype, form), grid),
            ADJOINT_WORK,
            spills=name == "fp64",
        )
    x, small = meta(SHAPE), meta((16, 21, 63, 47))
    step = SamplingGrid.deconv(SHAPE[2:], 2, padding=1)
    skip = meta((16, 21, 146, 146))
    yield Case("upsample.forward fp32 uneven", partial(upsample.forward, small, GRIDS[" uneven"]))
    yield Case("upsample.forward_add fp32", partial(upsample.forward_add, x, skip, step, (9, 9)))
    for form in FORMATS:
        x, grad = (meta(s, torch.float32, form) for s in (SHAPE, (*SHAPE[:2], *SIZE)))
        name, grid = f"fp32 int64{form}", beyond_int32()
        yield Case(f"upsample.forward {name}", partial(upsample.forward, x, grid))
        yield Case(f"upsample.adjoint {name}", partial(upsample.adjoint, grad, grid))
