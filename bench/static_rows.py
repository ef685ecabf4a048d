"""The rows of the static table: which there have to be, and the compiling of those that changed."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

from bench import static_cases
from bench.gate import COMPILE_SECONDS, row_name
from bench.launches import TARGETS, Launch, compiled, fingerprint, record
from bench.resources import measured
from bench.static_case import Case, Work

PROCESSES = 2
TRIES = 2


class Wanted(NamedTuple):
    """A row that the table has to have: which launch of which case, for which target."""

    case: str
    launch: int
    target: str
    fingerprint: str


def _counted(case: Case, launch: Launch) -> tuple[Work, ...]:
    return case.work.get(launch.kernel.__name__, ())


def wanted_rows(cases: Mapping[str, Case]) -> dict[str, Wanted]:
    """The rows of the cases by name, from the calls of the launchers.

    Raises:
        RuntimeError: when a case launches nothing.
    """
    rows = {}
    for case in cases.values():
        seen: list[str] = []
        launches = record(case.call)
        if not launches:
            raise RuntimeError(f"{case.name} launches no kernel")
        for place, launch in enumerate(launches):
            kernel = launch.kernel.__name__
            seen.append(kernel)
            number = seen.count(kernel)
            work = [(w.unit, w.trips(launch), w.odds) for w in _counted(case, launch)]
            for target in TARGETS:
                name = row_name(case.name, kernel + f" {number}" * (number > 1), target)
                mark = fingerprint(launch, target, work)
                rows[name] = Wanted(case.name, place, target, mark)
    return rows


def compile_row(wanted: Wanted) -> dict[str, Any]:
    """Compile one row and measure it; seconds are of the processor, the lesser of two tries."""
    case = static_cases.cases()[wanted.case]
    launch = record(case.call)[wanted.launch]
    seconds: list[float] = []
    while not seconds or (min(seconds) > COMPILE_SECONDS and len(seconds) < TRIES):
        before = os.times()
        kernel = compiled(launch, wanted.target)
        after = os.times()
        seconds.append(sum(after[:4]) - sum(before[:4]))  # of this process and its children
    row = measured(kernel, launch, _counted(case, launch))
    return {"hash": wanted.fingerprint, **row, "seconds": round(min(seconds), 2)}


def _prepare() -> None:
    """In a new process: compile for the first time, which takes longer."""
    name, case = next(iter(static_cases.cases().items()))
    for wanted in wanted_rows({name: case}).values():
        compile_row(wanted)


def compile_rows(stale: Mapping[str, Wanted]) -> tuple[dict[str, Any], dict[str, str]]:
    """Compile rows in a few processes: the rows, and why others failed.

    Rows of the same fingerprint are compiled once: cases share kernels.
    """
    rows: dict[str, Any] = {}
    failed: dict[str, str] = {}
    if not stale:
        return rows, failed
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(min(PROCESSES, len(stale)), spawn, _prepare) as pool,
    ):
        os.environ |= {"TRITON_CACHE_DIR": cache, "TRITON_ALWAYS_COMPILE": "1"}
        alike: dict[str, list[str]] = {}
        for name, wanted in stale.items():
            alike.setdefault(wanted.fingerprint, []).append(name)
        futures = {pool.submit(compile_row, stale[names[0]]): names for names in alike.values()}
        for future in as_completed(futures):
            names = futures[future]
            try:
                rows |= dict.fromkeys(names, future.result())
            except Exception as error:  # whatever the compiler says is the row's fault
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                failed |= dict.fromkeys(names, why)
            took = rows.get(names[0], {}).get("seconds")
            done = f"{len(rows) + len(failed)} of {len(stale)}"
            print(f"{done}: {names[0]}: {took} s", file=sys.stderr, flush=True)
    return rows, failed
