"""The table of the kernels that the static gate compiles: every launcher in the forms that ship.

A family of kernels adds its cases in a few lines: how its launcher is called on tensors without
data, what one trip of its loops covers, and what it must not exceed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from bench.launches import Launch
from fcnfast.geometry import SamplingGrid
from fcnfast.kernels import crop_add, upsample


@dataclass(frozen=True)
class Work:
    """How a kernel's machine code becomes figures for each unit of its work.

    unit: what is counted: "output", "pixel-class".
    trips, odds: as `bench.sass.per_unit` takes them, the trips from a launch, whose blocks and
        threads say how much of a program one thread does.
    """

    unit: str
    trips: Callable[[Launch], Mapping[str, float]]
    odds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One call of a launcher.

    name: of the launcher and of what is special about the call.
    call: calls it, on tensors of the device "meta".
    work: how to count, by the names of the kernels that it launches.
    limits: the most for each unit, all kernels of the call together, on sm_90.
    wide: the kernels all of whose stores have to be of 16 bytes on NVIDIA GPUs.
    spills: whether kernels may spill (float64 alone).
    """

    name: str
    call: Callable[[], object]
    work: Mapping[str, Work] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    wide: tuple[str, ...] = ()
    spills: bool = False


# Scores of FCN-8s for a batch of 16 at 512 x 512, 21 classes, stride 8; and a map to add a skip to.
SHAPE, SIZE = (16, 21, 64, 64), (512, 512)
SKIP, OFFSET = (16, 21, 80, 80), (5, 5)
GRID = SamplingGrid.resize(SHAPE[2:], SIZE)
DECONV = SamplingGrid.deconv(SHAPE[2:], 8, padding=4)
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


def upsample_cases() -> Iterator[Case]:
    """Upsampling and its adjoint: both borders, and positions beyond int32."""
    grids = [(*form, GRID) for form in _forms()]
    grids.append(("fp32 zero", torch.float32, "", DECONV))
    grids += [(f"fp32 int64{f}", torch.float32, f, _beyond_int32()) for f in FORMATS]
    for name, dtype, form, grid in grids:
        yield Case(
            f"upsample.forward {name}",
            partial(upsample.forward, _map(SHAPE, dtype, form), grid),
            wide=("forward_kernel",),
            spills=name == "fp64",
        )
        yield Case(
            f"upsample.adjoint {name}",
            partial(upsample.adjoint, _map((*SHAPE[:2], *SIZE), dtype, form), grid),
            spills=name == "fp64",
        )


FAMILIES = {"crop_add": crop_add_cases, "upsample": upsample_cases}


def cases(families: Collection[str] = FAMILIES.keys()) -> dict[str, Case]:
    """Every case of the families by its name."""
    return {case.name: case for family in families for case in FAMILIES[family]()}
