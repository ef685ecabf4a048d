"""What a case of the static gate is: a call of a launcher, how its work is counted, its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.launches import Launch


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
    spills: whether kernels may spill (float64 alone).
    """

    name: str
    call: Callable[[], object]
    work: Mapping[str, tuple[Work, ...]] = field(default_factory=dict)
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    wide: tuple[str, ...] = ()
    spills: bool = False
