"""Measure the ops of fcnfast against plain torch, after checking that each result is right.

    python bench/run.py                                     # a few minutes on two CPU cores
    python bench/run.py --suite voc cityscapes              # whole batches on a GPU
    python bench/run.py --op upsample_argmax --dtype bfloat16 --json argmax.json --plot pictures
    python bench/run.py --against bench/results/cpu.json    # did fcnfast lose against a peer?
    python bench/run.py --suite interop                     # or amortization, or shares
    python bench/run.py --static                            # what the kernels compile to

Exits with 1 when a result is wrong or fcnfast lost against a peer, with 2 when an option is wrong.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, nothing installed
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read by the profiler, which greets otherwise

import torch

from bench import networks, report, shares
from bench.cases import SUITES, Case, fitted
from bench.measure import Row, Settings, copy_bandwidth, measured
from bench.operations import OPERATIONS, Operation
from fcnfast.device import choose_device
from fcnfast.errors import InputError
from fcnfast.files import write_json

OWN_TABLES = {
    "amortization": networks.amortization,
    "interop": networks.interop,
    "shares": shares.shares,
}
DTYPES = ("float32", "bfloat16", "float16", "float64")
# Measured first, at every case, in case the time does not suffice for all.
HEADS = ("upsample_cross_entropy", "upsample_argmax")


def _options(arguments: list[str]) -> argparse.Namespace:
    """The options; SystemExit when one of them is wrong."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="bench/run.py",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    file: dict[str, Any] = {"metavar": "FILE", "type": Path}
    names = list(dict.fromkeys(operation.name for operation in OPERATIONS))
    ops = f"any of {', '.join(names)} (default: all)"
    option("--op", choices=names, default=names, help=ops, **several)
    suites = f"any of {', '.join(SUITES)} (default: quick), or {' or '.join(OWN_TABLES)}"
    option("--suite", choices=[*SUITES, *OWN_TABLES], default=["quick"], help=suites, **several)
    option("--device", help="cpu, cuda or cuda:1 (default: a GPU where there is one)")
    option("--dtype", choices=DTYPES, default="float32", help="of the maps")
    compiled = "torch.compile as a further peer (default: on a GPU)"
    option("--compile", action=argparse.BooleanOptionalAction, help=compiled)
    turns = "turns (default: those that fit in a second)"
    option("--repeats", type=int, metavar="N", help=turns)
    option("--minutes", type=float, default=math.inf, metavar="N", help="begin no op after these")
    option("--json", help="write everything that was measured", **file)
    option("--plot", type=Path, metavar="DIR", help="draw bars of time and memory")
    option("--against", help="earlier JSON: name the rows in which fcnfast lost", **file)
    static = "instead: what the kernels compile to, without a GPU; see --static --help"
    option("--static", action="store_true", help=static)
    options = parser.parse_args(arguments)
    others = (len(options.suite) > 1, options.plot, options.against, options.minutes < math.inf)
    if set(OWN_TABLES) & set(options.suite) and any(others):
        parser.error(
            f"--suite {' or '.join(OWN_TABLES)} takes no other, nor --plot, --against, --minutes"
        )
    for name in ("repeats", "minutes"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} must be above 0, not {value}")
    return options


def _settings(options: argparse.Namespace) -> Settings:
    """What holds for every row; measures the copy bandwidth of a GPU."""
    device = choose_device(options.device)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device must be cpu or cuda, not {device}")
    gpu = device.type == "cuda"
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 for the peers, too
    if gpu:  # graphs are captured on a stream of their own: all of it runs there
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))
    compiled = gpu if options.compile is None else options.compile
    if compiled:
        import torch._functorch.config as functorch

        functorch.donated_buffer = False  # or no backward pass can be repeated
    dtype, bandwidth = getattr(torch, options.dtype), copy_bandwidth(device) if gpu else None
    return Settings(device, dtype, options.repeats, compiled, bandwidth)


def run(
    cases: list[Case],
    operations: list[Operation],
    settings: Settings,
    seconds: float,
    keep: Callable[[list[Row]], None],
) -> list[Row]:
    """Measure everything and print each row when it is done; begin no op after `seconds`.

    keep: gets all rows after each op, so that they outlive what stops the run.
    """
    gpu, begin, last = settings.device.type == "cuda", time.monotonic(), None
    done: list[Row] = []
    left = []
    pairs = sorted(product(cases, operations), key=lambda pair: pair[1].name not in HEADS)
    for case, operation in pairs:
        if time.monotonic() - begin > seconds:
            left.append(f"NO TIME was left for {operation.title}, {case}")
            continue
        if case != last:
            print(f"\n{case}\n{report.header(gpu)}")
        last = case
        for row in measured(case, operation, settings):
            print(report.line(row, gpu), flush=True)
            done.append(row)
        keep(done)
    print("", *report.footnotes(done, gpu), *left, sep="\n")
    return done


def _judge(result: dict[str, Any], baseline: dict[str, Any] | None) -> int:
    """Say what is wrong, and what is slower than it was; the exit code."""
    rows = result["rows"]
    wrong = sum(map(report.wrong, rows))
    agree = f"all results of {len(rows)} rows agree with the float64 reference"
    print(f"WRONG results in {wrong} of {len(rows)} rows" if wrong else agree)
    if baseline is None:
        return 1 if wrong else 0
    lost, common = report.regressions(result, baseline)
    print(*(f"LOST: {what}\n" for what in lost), sep="", end="")
    print(f"{common} rows were compared with the baseline; in {len(lost)} ratios fcnfast lost")
    return 1 if wrong or lost or not common else 0


def _bench(options: argparse.Namespace) -> int:
    """Measure what the options say; the exit code."""
    settings = _settings(options)
    about, suite, seconds = report.conditions(settings), options.suite[0], 60 * options.minutes
    baseline = report.baseline(options.against, about) if options.against else None
    if options.plot:
        report.pyplot()  # is it there?

    def keep(found: Any) -> None:
        if options.json:
            write_json(options.json, {**about, suite if suite in OWN_TABLES else "rows": found})

    keep([])  # can it be written?
    print(report.summary(about))
    if suite in OWN_TABLES:
        for text, found in OWN_TABLES[suite](settings):
            print(text, flush=True)
            keep(found)
        return 0
    wanted = [case for name in options.suite for case in SUITES[name]]
    cases = fitted(wanted, settings.device)
    if not set(cases) >= set(wanted):
        print("batches are smaller than in training: one image on a CPU, what fits on a GPU")
    chosen = [o for o in OPERATIONS if o.name in options.op]
    result = {**about, "rows": run(cases, chosen, settings, seconds, keep)}
    if options.plot:
        print(*report.draw(result, options.plot), sep="\n")
    return _judge(result, baseline)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--static" in arguments:  # in a process whose Triton compiles
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        others = [a for a in arguments if a != "--static"]
        command = (sys.executable, str(Path(__file__).with_name("static.py")), *others)
        return subprocess.run(command, env=environment, check=False).returncode
    try:
        return _bench(_options(arguments))
    except networks.Disagreement as error:
        print(f"WRONG: {error}")
        return 1
    except (ImportError, OSError, InputError) as error:
        print(f"bench/run.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
