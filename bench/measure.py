"""One row of the benchmark: an op at a case, in one direction or both, against its peers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from bench.cases import Case
from bench.check import call, errors, tolerance
from bench.floor import Machine
from bench.operations import Operation
from bench.peers import Contestant, Problem
from bench.timing import Time, interleaved, peak_bytes

OURS = "fcnfast"


@dataclass
class Entry:
    """One contestant's part of a row. What was not measured is None.

    fault: "wrong" (see the error), or "no memory" or "failed" with `reason`.
    """

    error: float | None = None
    fault: str | None = None
    reason: str | None = None
    time: Time | None = None
    peak_bytes: int | None = None


@dataclass
class Row:
    """What was measured. The last three are of our op, and None without a GPU."""

    case: Case
    operation: Operation
    content: str
    backward: bool
    entries: dict[str, Entry] = field(default_factory=dict)
    gb_s: float | None = None
    floor_ms: float | None = None
    of_floor: float | None = None

    @property
    def ours(self) -> Entry:
        """The entry of fcnfast itself."""
        return self.entries[OURS]

    @property
    def wrong(self) -> list[str]:
        """Who gave a wrong result; ours must not fail either."""
        return [n for n, e in self.entries.items() if e.fault and (e.fault == "wrong" or n == OURS)]

    def ratio(self, peer: str) -> float | None:
        """How many times as long as ours a peer took."""
        ours, theirs = self.ours.time, self.entries[peer].time
        return theirs.median / ours.median if ours and theirs else None


@dataclass(frozen=True)
class Settings:
    """What holds for every row."""

    device: torch.device
    dtype: torch.dtype
    repeats: int | None
    compile: bool
    machine: Machine | None


def _contestants(operation: Operation, settings: Settings) -> dict[str, Contestant]:
    contestants = {OURS: operation.ours, **operation.peers}
    if settings.compile:
        torch._dynamo.reset()  # or the variants of one function count as too many recompilations
        contestants["compile"] = torch.compile(operation.peers["eager"], dynamic=False)
    return contestants


def with_gradients(operation: Operation, problem: Problem, seed: int = 6) -> Problem:
    """The problem with maps that require a gradient, and one that comes down to the result."""
    x = problem.maps[0]
    maps = tuple(m.detach().requires_grad_() for m in problem.maps)
    if operation.result == "loss":
        return replace(problem, maps=maps)
    generator = torch.Generator(x.device).manual_seed(seed)
    shape = (*x.shape[:2], *problem.grid.size)
    cotangent = torch.randn(shape, generator=generator, device=x.device).to(x.dtype)
    return replace(problem, maps=maps, cotangent=cotangent)


def _checked(
    row: Row, calls: dict[str, Any], problem: Problem, settings: Settings
) -> dict[str, Any]:
    """The calls whose results are right; the others' faults are entered in the row."""
    outcomes = {}
    for name, run in calls.items():
        entry = row.entries[name] = Entry()
        try:
            # On the host, so that results that wait for their check take nothing from the next.
            outcomes[name] = tuple(part.detach().cpu() for part in run())
        except torch.OutOfMemoryError as error:
            entry.fault, entry.reason = "no memory", str(error)
        except Exception as error:  # a compiler that is missing, a type that a peer cannot do
            entry.fault, entry.reason = "failed", f"{type(error).__name__}: {error}"
    for name, found in errors(row.operation, problem, outcomes).items():
        row.entries[name].error = found
        if not found <= tolerance(settings.dtype, name == OURS):  # NaN is wrong too
            row.entries[name].fault = "wrong"
    return {name: run for name, run in calls.items() if row.entries[name].fault is None}


def measure(row: Row, problem: Problem, settings: Settings) -> Row:
    """Check every contestant, then take the memory and the time of those that are right."""
    calls = {
        name: partial(call, contestant, problem, row.backward)
        for name, contestant in _contestants(row.operation, settings).items()
    }
    right = _checked(row, calls, problem, settings)
    for name, run in right.items():
        row.entries[name].peak_bytes = peak_bytes(run, settings.device)
    for name, took in interleaved(right, settings.repeats, settings.device).items():
        row.entries[name].time = took
    if settings.machine and row.ours.time:
        least = row.operation.least(problem, row.backward)
        row.gb_s = least.bytes / row.ours.time.median * 1e-6
        row.floor_ms = settings.machine.milliseconds(least)
        row.of_floor = row.floor_ms / row.ours.time.median
    return row
