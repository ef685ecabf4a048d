"""One row of the benchmark: an op at a case, one pass or both, against its peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bench.cases import Case
from bench.check import backward_call, call, errors, tolerance
from bench.operations import Operation
from bench.peers import Contestant, Problem, logits
from bench.timing import Call, Times, interleaved, peak_bytes

OURS = "fcnfast"
Pass = Literal["forward", "backward", "forward+backward"]
PASSES = get_args(Pass)
WAITS = "it waits for the GPU"


@dataclass
class Entry:
    """One contestant's part of a row. What was not measured is None.

    fault: "wrong" (see the error), or "no memory" or "failed" with `reason`.
    """

    error: float | None = None
    fault: str | None = None
    reason: str | None = None
    times: Times | None = None
    peak_bytes: int | None = None

    @property
    def median(self) -> float | None:
        """Milliseconds: on a GPU its own time, on a CPU the call's."""
        return self.times.own.median if self.times else None


@dataclass
class Row:
    """What was measured. The last two are of our op, and None without a GPU.

    coarse_bytes: of the coarse scores as float32, which the peak memory is to be compared with.
    outputs: pixels times classes. moved_bytes: what no implementation can avoid to move; gb_s: it
    by our time; of_copy: as a share of the speed of copies.
    """

    case: Case
    operation: Operation
    content: str
    which: Pass
    coarse_bytes: int = 0
    outputs: int = 0
    moved_bytes: float = 0.0
    entries: dict[str, Entry] = field(default_factory=dict)
    gb_s: float | None = None
    of_copy: float | None = None

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
        ours, theirs = self.ours.median, self.entries[peer].median
        return theirs / ours if ours and theirs else None


@dataclass(frozen=True)
class Settings:
    """What holds for every row. bandwidth: of copies on a GPU, bytes a second."""

    device: torch.device
    dtype: torch.dtype
    repeats: int | None
    compile: bool
    bandwidth: float | None


def contestants(operation: Operation, settings: Settings) -> dict[str, Contestant]:
    """Ours and the peers; torch.compile's starts with nothing compiled."""
    found = {OURS: operation.ours, **operation.peers}
    if settings.compile and operation.compiles:
        torch._dynamo.reset()  # or the variants of one function count as too many recompilations
        found["compile"] = torch.compile(operation.peers["eager"], dynamic=False)
    return found


def with_gradients(operation: Operation, problem: Problem, seed: int = 6) -> Problem:
    """The problem with leaves that require a gradient, and one that comes down to the result."""
    x = problem.maps[0]
    maps, shared = (
        tuple(leaf.detach().requires_grad_() for leaf in leaves)
        for leaves in (problem.maps, problem.shared)
    )
    problem = replace(problem, maps=maps, shared=shared)
    if operation.result == "loss":
        return problem
    generator = torch.Generator(x.device).manual_seed(seed)
    shape = (*x.shape[:2], *problem.grid.size)
    cotangent = torch.randn(shape, generator=generator, device=x.device).to(x.dtype)
    return replace(problem, cotangent=cotangent)


def _attempt(entry: Entry, make: Callable[[], Any]) -> Any:
    """What `make` gives, or None with the fault entered."""
    try:
        return make()
    except torch.OutOfMemoryError as error:
        entry.fault, entry.reason = "no memory", str(error)
    except Exception as error:  # a compiler that is missing, a type that a peer cannot do
        entry.fault, entry.reason = "failed", f"{type(error).__name__}: {error}"
    return None


def _kept(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Results that wait for their check: on the host where they would take much of a GPU."""
    bytes_ = sum(part.nbytes for part in parts)
    there = parts[0].is_cuda and 8 * bytes_ < torch.cuda.mem_get_info()[0]
    return tuple(part.detach() if there else part.detach().cpu() for part in parts)


def _checked(
    row: Row, calls: dict[str, Call], problem: Problem, settings: Settings
) -> dict[str, Call]:
    """The calls whose results are right; the others' faults are entered in the row."""
    outcomes = {}
    for name, run in calls.items():
        entry = row.entries[name] = Entry()
        parts = _attempt(entry, lambda run=run: _kept(run()))
        if parts is not None:
            outcomes[name] = parts
    for name, found in errors(row.operation, problem, outcomes).items():
        row.entries[name].error = found
        if not found <= tolerance(settings.dtype, name == OURS):  # NaN is wrong too
            row.entries[name].fault = "wrong"
    return {name: run for name, run in calls.items() if row.entries[name].fault is None}


def _timed(row: Row, calls: dict[str, Call], problem: Problem, settings: Settings) -> Row:
    """Take the memory and the time of the calls."""
    row.coarse_bytes, row.outputs = 4 * problem.maps[0].numel(), logits(problem)
    row.moved_bytes = row.operation.moved(problem)[PASSES.index(row.which)]
    for name, run in calls.items():
        row.entries[name].peak_bytes = peak_bytes(run, settings.device)
    syncs = dict.fromkeys(row.operation.syncs, WAITS)
    for name, took in interleaved(calls, settings.repeats, settings.device, syncs).items():
        row.entries[name].times = took
    if settings.bandwidth and row.ours.median:
        row.gb_s = row.moved_bytes / row.ours.median * 1e-6
        row.of_copy = row.gb_s * 1e9 / settings.bandwidth
    return row


def _backward(both: Row, right: dict[str, Contestant], problem: Problem, settings: Settings) -> Row:
    """The backward pass alone, of contestants whose results are known to be right."""
    row = replace(both, which="backward", entries={})
    calls = {}
    for name, entry in both.entries.items():
        mine = row.entries[name] = Entry(entry.error, entry.fault, entry.reason)
        if name in right:
            gradients = _attempt(mine, partial(backward_call, right[name], problem))
            if gradients is not None and _attempt(mine, gradients) is not None:
                calls[name] = gradients
    return _timed(row, calls, problem, settings)


def measured(
    row: Row, rivals: dict[str, Contestant], problem: Problem, settings: Settings
) -> Iterator[Row]:
    """The rows of an op at a case with a content: every pass that it has, each checked first."""
    calls = {name: partial(call, rival, problem, False) for name, rival in rivals.items()}
    yield _timed(row, _checked(row, calls, problem, settings), problem, settings)
    if not row.operation.trainable:
        return
    problem = with_gradients(row.operation, problem)
    both = Row(row.case, row.operation, row.content, "forward+backward")
    calls = {name: partial(call, rival, problem, True) for name, rival in rivals.items()}
    right = _checked(both, calls, problem, settings)
    yield _backward(both, {name: rivals[name] for name in right}, problem, settings)
    yield _timed(both, right, problem, settings)
