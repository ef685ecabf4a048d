"""Measure the ops of fcnfast against plain torch, after checking that each result is right.

    python bench/run.py                                     # a few minutes on two CPU cores
    python bench/run.py --suite voc cityscapes              # whole batches on a GPU
    python bench/run.py --op upsample_argmax --dtype bfloat16 --json argmax.json --plot pictures
    python bench/run.py --against bench/results/cpu.json    # did fcnfast lose against a peer?
    python bench/run.py --static                            # what the kernels compile to

Exits with 1 when a result is wrong or fcnfast lost against a peer, with 2 when an option is wrong.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, nothing installed
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read by the profiler, which greets otherwise

import torch

from bench import amortization, compare, interop, plots, report
from bench.cases import CONTENTS, DRAWN, SUITES, Case, content, drawn, fitted, undecided
from bench.conditions import busy, conditions, summary
from bench.measure import Row, Settings, contestants, measured
from bench.operations import OPERATIONS, Operation
from bench.timing import copy_bandwidth
from fcnfast.files import write_json

# Suites of their own: no ops, but a network on a whole image and on its patches, and other people's
# networks with and without `fuse`.
AMORTIZATION, INTEROP = "amortization", "interop"
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


# Measured first, at every case: what there may be no time for is less.
HEADS = ("upsample_cross_entropy", "upsample_argmax")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _duration(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


_positive.__name__, _duration.__name__ = "positive integer", "number above 0"  # argparse's words


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="bench/run.py",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(dict.fromkeys(operation.name for operation in OPERATIONS))
    option = parser.add_argument
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    ops = f"any of {', '.join(names)} (default: all)"
    option("--op", choices=names, default=names, help=ops, **several)
    named = ", ".join([*SUITES, DRAWN])
    suites = f"which cases: any of {named} (default: quick); or {AMORTIZATION}, {INTEROP}"
    choices = [*SUITES, DRAWN, AMORTIZATION, INTEROP]
    option("--suite", choices=choices, default=["quick"], help=suites, **several)
    seed = f"of the suite {DRAWN}: the same cases again (default: others every time)"
    option("--seed", type=int, metavar="N", help=seed)
    option("--device", default=None, help="cpu, cuda or cuda:1 (default: a GPU where there is one)")
    option("--dtype", choices=list(DTYPES), default="float32", help="of the maps")
    compiled = "torch.compile as a further peer (default: on a GPU)"
    option("--compile", action=argparse.BooleanOptionalAction, default=None, help=compiled)
    calls = "timed calls of each (default: as many as fit in about a second)"
    option("--repeats", type=_positive, metavar="N", help=calls)
    option("--minutes", type=_duration, metavar="N", help="begin no further op after that time")
    option("--json", type=Path, metavar="FILE", help="write everything that was measured")
    option(
        "--plot", type=Path, metavar="DIR", help="draw bars of time and memory (needs matplotlib)"
    )
    against = "a JSON file of earlier: name the rows in which fcnfast lost against a peer"
    option("--against", type=Path, metavar="BASELINE", help=against)
    gate = "instead: what the kernels compile to (no GPU needed); see --static --help"
    option("--static", action="store_true", help=gate)
    return parser


def _cases(options: argparse.Namespace) -> list[Case]:
    """Those of the suites asked for."""
    seed = random.randrange(1 << 16) if options.seed is None else options.seed
    suites = {**SUITES, DRAWN: drawn(seed)}
    return [case for name in options.suite for case in suites[name]]


def _device(name: str | None) -> torch.device:
    """The device asked for; ValueError when there is no such CPU or GPU."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, not {name!r}")
    device = torch.device(name)
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"--device {name}: torch finds {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(device)
    return device


def rows(case: Case, operation: Operation, settings: Settings) -> Iterator[Row]:
    """Measure one operation at one case; a row is yielded when it is done."""
    rivals = contestants(operation, settings)
    for name in (name for name in CONTENTS if name in operation.contents):
        made = content(name, case, settings.dtype, settings.device)
        if operation.result == "labels":
            share = undecided(made.scores)
            print(f"({name}: {share:.0%} of the cells have corners of different classes)")
        problem = operation.problem(case, made)
        yield from measured(Row(case, operation, name, "forward"), rivals, problem, settings)


def run(
    cases: list[Case],
    operations: list[Operation],
    settings: Settings,
    seconds: float,
    keep: Callable[[list[Row]], None],
) -> list[Row]:
    """Measure everything and print each row when it is done; begin nothing after `seconds`.

    keep: gets all rows after each op, so that what stops the run does not take them along.
    """
    peers = [p for p in report.PEERS if any(p in o.peers for o in operations)]
    peers += ["compile"] * settings.compile
    begin = time.monotonic()
    done, left = [], []
    groups = ([o for o in operations if (o.name in HEADS) is heads] for heads in (True, False))
    for group, case in ((group, case) for group in groups if group for case in cases):
        print(f"\n{case}\n{report.header(peers)}", flush=True)
        for operation in group:
            if time.monotonic() - begin > seconds:
                left.append(f"{operation.name} {operation.variant}".strip() + f", {case}")
                continue
            for row in rows(case, operation, settings):
                print(report.line(row, peers), flush=True)
                done.append(row)
            keep(done)
    print("", *report.footnotes(done, peers, settings.device.type == "cuda"), sep="\n")
    print(*(f"NO TIME was left for {what}" for what in left), sep="\n", end="\n" * bool(left))
    return done


def _settings(options: argparse.Namespace, device: torch.device) -> Settings:
    """What holds for every row; measures the copy bandwidth of a GPU."""
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 for the peers too
    gpu = device.type == "cuda"
    if gpu:  # graphs are captured on a stream of their own: all of it runs there
        torch.cuda.set_stream(torch.cuda.Stream(device))
    compiled = gpu if options.compile is None else options.compile
    if compiled:
        import torch._functorch.config as functorch

        functorch.donated_buffer = False  # or no backward pass can be repeated
    bandwidth = copy_bandwidth(device) if gpu else None
    return Settings(device, DTYPES[options.dtype], options.repeats, compiled, bandwidth)


def _checked(options: argparse.Namespace) -> tuple[torch.device, dict[str, Any] | None]:
    """The device, and the baseline to compare with; ValueError for options that cannot be."""
    device = _device(options.device)
    path = options.json
    alone = len(options.suite) == 1 and not options.plot and not options.against
    for name in (AMORTIZATION, INTEROP):
        if name in options.suite and not alone:
            raise ValueError(f"--suite {name} takes no other suite, --plot or --against")
    if options.seed is not None and DRAWN not in options.suite:
        raise ValueError(f"--seed belongs to --suite {DRAWN}")
    if path and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ValueError(f"--json: {path} cannot be written: no such folder, or is one")
    if options.plot:
        if options.plot.exists() and not options.plot.is_dir():
            raise ValueError(f"--plot: {options.plot} is no folder")
        try:
            plots.pyplot()
        except ImportError as error:
            raise ValueError(f"--plot: {error}") from error
    return device, compare.read(options.against) if options.against else None


def _judge(done: list[Row], result: dict[str, Any], baseline: dict[str, Any] | None) -> int:
    """Say what is wrong, and what is slower than it was; the exit code."""
    wrong = sum(bool(row.wrong) for row in done)
    agree = f"all results of {len(done)} rows agree with the float64 reference"
    print(f"WRONG results in {wrong} of {len(done)} rows" if wrong else agree)
    if baseline is None:
        return 1 if wrong else 0
    lost, common = compare.regressions(result, baseline)
    print(*(f"LOST: {what}\n" for what in lost), sep="", end="")
    print(f"{common} rows were compared with the baseline; in {len(lost)} ratios fcnfast lost")
    return 1 if wrong or lost or not common else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--static" in arguments:
        return _static([a for a in arguments if a != "--static"])
    options = _parser().parse_args(arguments)
    try:
        device, baseline = _checked(options)
        settings = _settings(options, device)
        about = conditions(settings)
        if baseline:
            compare.require_same(about, baseline)
    except ValueError as error:
        return _refuse(error)

    if options.suite == [AMORTIZATION]:
        return _amortization(options, settings, about)
    if options.suite == [INTEROP]:
        return _interop(options, settings, about)

    def result(done: list[Row]) -> dict[str, Any]:
        return {**about, "rows": [report.as_dict(row) for row in done]}

    def keep(done: list[Row]) -> None:
        if options.json:
            write_json(options.json, result(done))

    cases, notes = fitted(_cases(options), device)
    print(summary(about), *busy(), *notes, sep="\n")
    chosen = [o for o in OPERATIONS if o.name in options.op]
    try:
        done = run(cases, chosen, settings, 60 * (options.minutes or math.inf), keep)
        if options.plot:
            print(*plots.draw(result(done), options.plot), sep="\n")
    except OSError as error:
        return _refuse(error)
    return _judge(done, result(done), baseline)


def _amortization(options: argparse.Namespace, settings: Settings, about: dict[str, Any]) -> int:
    """Whole images against patches; the exit code."""
    print(summary(about), *busy(), sep="\n")
    try:
        found = amortization.measure(settings)
        if options.json:
            write_json(options.json, {**about, **amortization.as_dict(found)})
    except (OSError, ValueError) as error:
        return _refuse(error)
    print(*amortization.lines(found), sep="\n")
    return 0


def _interop(options: argparse.Namespace, settings: Settings, about: dict[str, Any]) -> int:
    """Other people's networks, fused and not; the exit code."""
    print(summary(about), *busy(), interop.HEADER, sep="\n")
    begin, found = time.monotonic(), []
    try:
        for row in interop.measure(settings):
            print(interop.line(row), flush=True)
            found.append(row)
            if options.json:
                write_json(options.json, {**about, "interop": found})
            if time.monotonic() - begin > 60 * (options.minutes or math.inf):
                break
    except (ImportError, OSError, ValueError) as error:
        return _refuse(error)
    return 0


def _static(arguments: list[str]) -> int:
    """The static gate, in a process whose Triton compiles; the exit code."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = (sys.executable, str(Path(__file__).with_name("static.py")), *arguments)
    return subprocess.run(command, env=environment, check=False).returncode


def _refuse(error: Exception) -> int:
    print(f"bench/run.py: error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
