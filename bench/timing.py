"""Time and memory of calls, in turns so that a disturbance hits every contestant.

On a GPU a call is timed in two ways. In a CUDA graph, replayed between two events: the GPU's own
time, whatever Python takes to launch the kernels. And as called: from the call to the end of its
work on the host's clock, launches included. Where a call cannot be captured (it waits for the GPU,
or captures fail) events around the call stand in for the first, and the row says so. The
second-level cache is overwritten before either.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]

# Without a given number, rounds go on for about so many seconds; never fewer or more than these.
ROUNDS_SECONDS = {"cpu": 0.8, "cuda": 0.3}
FEWEST, MOST = 3, 50
# Written before every call on a GPU, so that none finds its inputs in the second-level cache.
FLUSH_BYTES = 1 << 28
# Calls before a capture: compilers, workspaces and the allocator have their first ones behind them.
WARM_UP = 3


@dataclass(frozen=True)
class Time:
    """Milliseconds: the median, and the 20 % and 80 % quantiles, of so many calls."""

    median: float
    low: float
    high: float
    calls: int


@dataclass(frozen=True)
class Times:
    """What one call takes. called and graph are None on a CPU.

    own: on a GPU its time alone, on a CPU the call's. called: as called, on a GPU. graph: whether a
    CUDA graph gave `own`, or else why not.
    """

    own: Time
    called: Time | None = None
    graph: bool | str | None = None


def _summary(samples: list[float]) -> Time:
    if len(samples) == 1:
        return Time(samples[0], samples[0], samples[0], 1)
    tenths = quantiles(samples, n=10, method="inclusive")
    return Time(tenths[4], tenths[1], tenths[7], len(samples))


Round = Callable[[Mapping[str, Call]], dict[str, float]]


def _on_the_host(calls: Mapping[str, Call]) -> dict[str, float]:
    """The milliseconds of each call, one after the other."""
    result = {}
    for name, call in calls.items():
        begin = time.perf_counter()
        call()
        result[name] = 1e3 * (time.perf_counter() - begin)
    return result


def _as_called(calls: Mapping[str, Call]) -> dict[str, float]:
    """The same on a GPU, until its work is done."""
    cache = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def finished(call: Call) -> None:
        call()
        torch.cuda.synchronize()

    result = {}
    for name, call in calls.items():
        cache.zero_()
        torch.cuda.synchronize()
        result |= _on_the_host({name: lambda call=call: finished(call)})
    return result


def _between_events(calls: Mapping[str, Call]) -> dict[str, float]:
    """The milliseconds on the GPU; the flush lets the launches run ahead of it."""
    cache = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    events = {}
    for name, call in calls.items():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        begin.record()
        call()
        end.record()
        events[name] = begin, end
    torch.cuda.synchronize()
    return {name: begin.elapsed_time(end) for name, (begin, end) in events.items()}


def captured(call: Call) -> Call:
    """A call as a CUDA graph: what this returns replays it.

    It is captured on the current stream, which must not be the default one: a backward pass runs
    on the stream of its forward pass.

    Raises:
        RuntimeError: when it cannot be captured.
    """
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        result = call()

    def replay() -> object:
        graph.replay()
        return result  # keeps the memory that the graph writes to

    return replay


def _rounds(
    calls: Mapping[str, Call], repeats: int | None, one: Round, seconds: float
) -> dict[str, Time]:
    """Time the calls in turns, A B C A B C ..., after a round that does not count."""
    gc.disable()  # as timeit does
    try:
        begin = time.perf_counter()
        one(calls)
        took = time.perf_counter() - begin
        rounds = repeats or min(MOST, max(FEWEST, int(seconds / took)))
        samples = [one(calls) for _ in range(rounds)]
    finally:
        gc.enable()
    return {name: _summary([s[name] for s in samples]) for name in calls}


def on_gpu(
    calls: Mapping[str, Call], repeats: int | None, syncs: Mapping[str, str]
) -> dict[str, Times]:
    """Both times of calls on the current GPU. syncs: those not to be captured, and why."""
    replays, graphs = {}, {}
    for name, call in calls.items():
        replays[name], graphs[name] = call, syncs.get(name, True)
        if name not in syncs:
            try:
                replays[name] = captured(call)
            except RuntimeError as error:
                torch.cuda.synchronize()
                graphs[name] = str(error).strip().splitlines()[0]
    seconds = ROUNDS_SECONDS["cuda"]
    own = _rounds(replays, repeats, _between_events, seconds)
    called = _rounds(calls, repeats, _as_called, seconds)
    return {name: Times(own[name], called[name], graphs[name]) for name in calls}


def interleaved(
    calls: Mapping[str, Call],
    repeats: int | None,
    device: torch.device,
    syncs: Mapping[str, str] | None = None,
) -> dict[str, Times]:
    """The times of all calls, each in turn with the others.

    repeats: how often; by default as often as fits in a second. syncs: the calls that wait
    for the GPU, and what is to be said about them.
    """
    if not calls:
        return {}
    if device.type != "cpu":
        return on_gpu(calls, repeats, syncs or {})
    took = _rounds(calls, repeats, _on_the_host, ROUNDS_SECONDS["cpu"])
    return {name: Times(time_) for name, time_ in took.items()}


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
    source = torch.empty(1 << 29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, 30, device)
    return 2 * source.numel() / (1e-3 * times["copy"].own.median)
