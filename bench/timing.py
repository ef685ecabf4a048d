"""Time and memory of calls, in turns so that a disturbance hits every contestant."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]

# Without a given number, rounds go on for about this long; never fewer or more than these.
ROUNDS_SECONDS = 0.8
FEWEST, MOST = 3, 50
# Written before every call on a GPU, so that none finds its inputs in the second-level cache.
FLUSH_BYTES = 1 << 28


@dataclass(frozen=True)
class Time:
    """Milliseconds: the median, and the 20 % and 80 % quantiles, of so many calls."""

    median: float
    low: float
    high: float
    calls: int


def _summary(samples: list[float]) -> Time:
    if len(samples) == 1:
        return Time(samples[0], samples[0], samples[0], 1)
    tenths = quantiles(samples, n=10, method="inclusive")
    return Time(tenths[4], tenths[1], tenths[7], len(samples))


def _round_on_cpu(calls: Mapping[str, Call]) -> dict[str, float]:
    """The milliseconds of each call, one after the other."""
    result = {}
    for name, call in calls.items():
        begin = time.perf_counter()
        call()
        result[name] = 1e3 * (time.perf_counter() - begin)
    return result


def _round_on_gpu(calls: Mapping[str, Call]) -> dict[str, float]:
    """The same between events of the GPU; the flush lets the launches run ahead of it."""
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


def interleaved(
    calls: Mapping[str, Call], repeats: int | None, device: torch.device
) -> dict[str, Time]:
    """Time the calls in turns, A B C A B C ..., after a round that does not count.

    repeats: the rounds; by default as many as fit in about a second.
    """
    if not calls:
        return {}
    one_round = _round_on_cpu if device.type == "cpu" else _round_on_gpu
    gc.disable()  # as timeit does
    try:
        begin = time.perf_counter()
        one_round(calls)
        took = time.perf_counter() - begin
        rounds = repeats or min(MOST, max(FEWEST, int(ROUNDS_SECONDS / took)))
        samples = [one_round(calls) for _ in range(rounds)]
    finally:
        gc.enable()
    return {name: _summary([s[name] for s in samples]) for name in calls}


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
    return 2 * source.numel() / (1e-3 * times["copy"].median)
