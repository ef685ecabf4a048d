"""What a case of the static gate is: a call, how its work is counted, limits; and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.launches import Launch
from fcnfast.geometry import SamplingGrid


@dataclass(frozen=True)
class Work:
    """How a kernel's machine code becomes figures for each unit of its work.

    unit: what is counted: "output", "pixel-class", "pixel".
    trips, odds: as `bench.sass.per_unit` takes them, the trips from a launch, whose blocks and
        threads say how much of a program one thread does.
    """

    unit: str
    trips: Callable[[Launch], Mapping[str, float]]
    odds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One call of a launcher.

    name: the op's, a dot, and what is called and how: "upsample.forward fp32".
    call: calls it, on tensors of the device "meta".
    work: how to count, by the names of the kernels that it launches: one unit or several.
    limits: the most for a unit, all kernels of the call together, on sm_90.
    wide: the kernels all of whose stores have to be of 16 bytes on NVIDIA GPUs.
    """

    name: str
    call: Callable[[], object]
    work: Mapping[str, tuple[Work, ...]] = field(default_factory=dict)
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    wide: tuple[str, ...] = ()


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
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LABELS = {"uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64}
FORMATS = {"": torch.contiguous_format, " channels_last": torch.channels_last}


def meta(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, form: str = "") -> Tensor:
    """A tensor without data; form: of FORMATS."""
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=FORMATS[form])


def forms() -> Iterator[tuple[str, torch.dtype, str]]:
    """The types and memory formats that every map op is compiled for: name, dtype, format."""
    for name, dtype in TYPES.items():
        for form in FORMATS:
            yield name + form, dtype, form
