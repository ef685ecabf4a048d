"""The rows: each op against its peers, checked first, then timed in turns.

On a GPU a call has two times. Its own, in CUDA graphs (Triton's `do_bench_cudagraph`), where inputs
may still be in the second-level cache, as behind a network; and as called: on the host's clock,
launches included, until its work is done. For a call that cannot be captured `do_bench` gives the
first, and the row says so.
"""

from __future__ import annotations

import math
import timeit
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import quantiles
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils import benchmark

from bench.cases import Case, content, noise
from bench.check import Parts, errors, tolerance
from bench.operations import Contestant, Operation, Problem

OURS = "fcnfast"
Call = Callable[[], Any]
Row = dict[str, Any]  # as in the JSON file; what was not measured is None

# Without a given number, turns go on for so many seconds; never fewer or more than these.
SECONDS = {"cpu": 0.8, "cuda": 0.3}
FEWEST, MOST = 3, 50


@dataclass(frozen=True)
class Settings:
    """What holds for every row. repeats: turns. bandwidth: of copies on a GPU, bytes a second."""

    device: torch.device
    dtype: torch.dtype
    repeats: int | None = None
    compile: bool = False
    bandwidth: float | None = None


def _summary(samples: list[float]) -> dict[str, float]:
    tenths = quantiles(samples, n=10, method="inclusive") if len(samples) > 1 else samples * 9
    return {"median": tenths[4], "low": tenths[1], "high": tenths[7], "calls": len(samples)}


def _milliseconds(call: Call) -> float:
    """On the host's clock until the work is done, without garbage collection."""
    return 1e3 * timeit.Timer(call, timer=benchmark.timer).timeit(1)


def interleaved(
    calls: Mapping[str, Call], repeats: int | None, seconds: float = SECONDS["cpu"]
) -> dict[str, dict[str, float]]:
    """Milliseconds of each call in turns, A B C A B C ..., after a round that does not count.

    repeats: turns; by default as many as fit in `seconds`.
    """
    took = sum(map(_milliseconds, calls.values()))
    rounds = repeats or min(MOST, max(FEWEST, int(1e3 * seconds / max(took, 1.0))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(_milliseconds(call))
    return {name: _summary(found) for name, found in samples.items()}


def _on_gpu(
    calls: Mapping[str, Call], repeats: int | None, syncs: set[str]
) -> dict[str, dict[str, Any]]:
    """The times that entries hold. syncs: the calls that wait for the GPU: no graph holds them."""
    from triton.testing import do_bench, do_bench_cudagraph

    rounds = repeats or FEWEST
    turn = max(1, round(1e3 * SECONDS["cuda"] / (rounds * len(calls))))
    own: dict[str, list[float]] = {name: [] for name in calls}
    graphs: dict[str, Any] = dict.fromkeys(calls, True)
    graphs |= dict.fromkeys(syncs & calls.keys(), "it waits for the GPU")
    for _ in range(rounds):
        for name, call in calls.items():
            if graphs[name] is True:
                try:
                    own[name] += do_bench_cudagraph(call, rep=turn, return_mode="all")
                    continue
                except RuntimeError as error:
                    torch.cuda.synchronize()
                    graphs[name] = str(error).strip().splitlines()[0]
            own[name] += do_bench(call, warmup=1, rep=turn, return_mode="all")
    called = interleaved(calls, repeats, SECONDS["cuda"])
    return {
        n: {"time_ms": _summary(own[n]), "as_called_ms": called[n], "cuda_graph": graphs[n]}
        for n in calls
    }


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most memory that a call holds at one time beyond its inputs, its result included.

    On a CPU as the profiler sees it: what torch allocates, without a library's own buffers.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that this GPU reads and writes when it copies half a gibibyte."""
    from triton.testing import do_bench

    source = torch.empty(1 << 29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2e3 * source.numel() / do_bench(lambda: target.copy_(source), return_mode="median")


def call(contestant: Contestant, problem: Problem, backward: bool) -> Parts:
    """The result and, with `backward`, the gradient of every leaf: what is checked and timed."""
    if not backward:
        with torch.no_grad():
            return (contestant(problem),)
    result = contestant(problem)
    return (result, *torch.autograd.grad(result, problem.leaves, problem.grad_output))


def backward_call(contestant: Contestant, problem: Problem) -> Call:
    """The backward pass alone, as often as wanted, of a forward pass made here."""
    grad, result = torch.autograd.grad, contestant(problem)
    return partial(grad, result, problem.leaves, problem.grad_output, retain_graph=True)


def with_gradients(operation: Operation, problem: Problem) -> Problem:
    """The problem with leaves that require a gradient, and a gradient of its result."""
    maps, shared = (
        tuple(leaf.detach().requires_grad_() for leaf in leaves)
        for leaves in (problem.maps, problem.shared)
    )
    x, grad = maps[0], None
    if operation.result != "loss":
        grad = noise((*x.shape[:2], *problem.grid.size), 6, x.device).to(x.dtype)
    return replace(problem, maps=maps, shared=shared, grad_output=grad)


def _attempt(entry: dict[str, Any], make: Call) -> Any:
    """What `make` gives, or None with the fault entered."""
    try:
        return make()
    except torch.OutOfMemoryError as error:
        entry.update(fault="no memory", reason=str(error))
    except Exception as error:  # a compiler that is missing, a type that a peer cannot do
        entry.update(fault="failed", reason=f"{type(error).__name__}: {error}")
    return None


def _check(row: Row, calls: Mapping[str, Call], operation: Operation, problem: Problem) -> None:
    """Enter errors and faults."""
    entries = row["entries"]
    outcomes = {name: _attempt(entries[name], run) for name, run in calls.items()}
    outcomes = {name: parts for name, parts in outcomes.items() if parts is not None}
    for name, error in errors(operation, problem, outcomes).items():
        entries[name]["error"] = error if math.isfinite(error) else str(error)  # for JSON
        if not error <= tolerance(problem.maps[0].dtype, name == OURS):  # NaN is wrong, too
            entries[name]["fault"] = "wrong"


def _time(row: Row, calls: Mapping[str, Call], operation: Operation, settings: Settings) -> Row:
    """Enter the memory and the times of the calls without a fault."""
    entries = row["entries"]
    calls = {name: run for name, run in calls.items() if entries[name]["fault"] is None}
    for name, run in calls.items():
        entries[name]["peak_bytes"] = peak_bytes(run, settings.device)
    if settings.device.type == "cuda" and calls:
        for name, found in _on_gpu(calls, settings.repeats, set(operation.syncs)).items():
            entries[name].update(found)
    else:
        for name, took in interleaved(calls, settings.repeats).items():
            entries[name]["time_ms"] = took
    if OURS in calls:
        ours = entries[OURS]["time_ms"]["median"]
        for name in calls.keys() - {OURS}:
            entries[name]["ratio"] = entries[name]["time_ms"]["median"] / ours
        if settings.bandwidth:
            row["gb_s"] = row["moved_bytes"] / ours * 1e-6
            row["of_copy"] = row["gb_s"] * 1e9 / settings.bandwidth
    return row


def measured(case: Case, operation: Operation, settings: Settings) -> Iterator[Row]:
    """The rows of an op at a case: each content, and every pass that the op has.

    An entry's keys: error, relative to the truth; fault, "wrong", or "no memory" or "failed" with
    the reason; time_ms, on a GPU its own; as_called_ms; cuda_graph, True or why there is none;
    peak_bytes, beyond the inputs; ratio, how many times as long as ours a peer took. A row's:
    moved_bytes, which no implementation can avoid to move; gb_s, these by our time; of_copy, the
    same as a share of the speed of copies.
    """
    rivals = {OURS: operation.ours, **operation.peers}
    if settings.compile and operation.compiles:
        torch._dynamo.reset()  # or the variants of one function count as too many recompilations
        rivals["compile"] = torch.compile(operation.peers["eager"], dynamic=False)
    for name in operation.contents:
        yield from _passes(case, operation, name, rivals, settings)


def _passes(
    case: Case, operation: Operation, name: str, rivals: dict[str, Contestant], settings: Settings
) -> Iterator[Row]:
    problem = operation.problem(case, *content(name, case, settings.dtype, settings.device))

    def row(which: str) -> Row:
        keys = ("error", "fault", "reason", "time_ms", "as_called_ms", "cuda_graph", "peak_bytes")
        entries = {n: dict.fromkeys(keys if n == OURS else (*keys, "ratio")) for n in rivals}
        return {
            "case": asdict(case), "op": operation.name, "variant": operation.variant,
            "content": name, "pass": which, "coarse_bytes": 4 * problem.maps[0].numel(),
            "outputs": problem.outputs, "moved_bytes": operation.moved(problem)[which],
            "entries": entries, "gb_s": None, "of_copy": None,
        }  # fmt: skip

    forward = row("forward")
    calls = {n: partial(call, rival, problem, False) for n, rival in rivals.items()}
    _check(forward, calls, operation, problem)
    yield _time(forward, calls, operation, settings)
    if not operation.trainable:
        return
    problem = with_gradients(operation, problem)
    both, backward = row("forward+backward"), row("backward")
    calls = {n: partial(call, rival, problem, True) for n, rival in rivals.items()}
    _check(both, calls, operation, problem)
    alone = {}
    for n, entry in backward["entries"].items():
        entry.update({key: both["entries"][n][key] for key in ("error", "fault", "reason")})
        if entry["fault"] is None:
            alone[n] = _attempt(entry, partial(backward_call, rivals[n], problem))
            if alone[n] is not None:
                _attempt(entry, alone[n])
    yield _time(backward, alone, operation, settings)
    yield _time(both, calls, operation, settings)
