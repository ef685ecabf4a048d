"""The map ops in the static gate: crop_add, upsample, deconv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import inf

import torch

from bench.launches import Launch
from bench.static_case import (
    DECONV,
    GRID,
    GRIDS,
    OFFSET,
    SHAPE,
    SIZE,
    SKIP,
    STRIDE,
    Case,
    Work,
    forms,
    meta,
)
from fcnfast.geometry import SamplingGrid
from fcnfast.kernels import crop_add, deconv, upsample, upsample_backward


def crop_add_cases() -> Iterator[Case]:
    """x plus a window of skip, and the gradient of skip."""
    for name, dtype, form in forms():
        x, skip = meta(SHAPE, dtype, form), meta(SKIP, dtype, form)
        yield Case(
            f"crop_add.forward {name}",
            partial(crop_add.forward, x, skip, OFFSET),
            wide=("forward_kernel",),
        )
        yield Case(
            f"crop_add.backward_skip {name}",
            partial(crop_add.backward_skip, x, SKIP, OFFSET),
            wide=("backward_skip_kernel",),
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
        )
        yield Case(
            f"upsample.adjoint {name}",
            partial(upsample_backward.adjoint, meta((*SHAPE[:2], *SIZE), dtype, form), grid),
            ADJOINT_WORK,
        )
    x, small = meta(SHAPE), meta((16, 21, 63, 47))
    step = SamplingGrid.deconv(SHAPE[2:], 2, padding=1)
    skip = meta((16, 21, 146, 146))
    yield Case("upsample.forward fp32 uneven", partial(upsample.forward, small, GRIDS[" uneven"]))
    yield Case("upsample.forward_add fp32", partial(upsample.forward_add, x, skip, step, (9, 9)))


def _phase_trips(kernel: str, launch: Launch) -> Mapping[str, float]:
    """Every so many rows of the result, or of its gradient: one trip makes, or reads, one."""
    return {f"{kernel}: for q in": launch.arguments["BLOCK"] / launch.threads}


def _cell_trips(launch: Launch) -> Mapping[str, float]:
    """One row of the gradient; and for each coarse row a sum over columns."""
    sizes = launch.arguments
    values = sizes["IMAGES"] * sizes["TILE"] / launch.threads
    return {"input_kernel: for phase": values, "input_kernel: for step": sizes["STRIDE"] * values}


def _phase_work(kernel: str, unit: str) -> dict[str, tuple[Work, ...]]:
    return {kernel: (Work(unit, partial(_phase_trips, kernel)),)}


def _deconv(
    name: str, dtype: torch.dtype, form: str, in_size: Sequence[int], stride: int, kernel: int
) -> Iterator[Case]:
    start, size = [(kernel - stride) // 2] * 2, [n * stride for n in in_size]
    x, grad = (meta((*SHAPE[:2], *s), dtype, form) for s in (in_size, size))
    weight = meta((SHAPE[1], 1, kernel, kernel), dtype)
    counted = stride == STRIDE
    calls = {
        "forward": (
            partial(deconv.forward, x, weight, stride, start, size),
            _phase_work("forward_kernel", "output"),
        ),
        "weight_gradient": (
            partial(deconv.weight_gradient, grad, x, stride, start, kernel, dtype),
            _phase_work("weight_kernel", "gradient value"),
        ),
        "input_gradient": (
            partial(deconv.input_gradient, grad, weight, stride, start, in_size),
            {"input_kernel": (Work("gradient value", _cell_trips),)},
        ),
    }
    for what, (call, work) in calls.items():
        wide = ("forward_kernel",) if what == "forward" and stride == STRIDE else ()
        yield Case(f"deconv.{what} {name}", call, work if counted else {}, wide=wide)


def deconv_cases() -> Iterator[Case]:
    """Learned upsampling and both its gradients: FCN-8s, a fusion step, FCN-32s, an odd kernel."""
    for name, dtype, form in forms():
        yield from _deconv(name, dtype, form, SHAPE[2:], STRIDE, 2 * STRIDE)
    yield from _deconv("fp32 stride 2", torch.float32, "", (34, 34), 2, 4)
    yield from _deconv("fp32 stride 32", torch.float32, "", (16, 16), 32, 64)
    yield from _deconv("fp32 stride 3", torch.float32, "", SHAPE[2:], 3, 5)
