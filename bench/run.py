"""Measure the ops of fcnfast against plain torch, after checking that each result is right.

    python bench/run.py                                     # about a minute on two CPU cores
    python bench/run.py --suite voc cityscapes --compile    # whole batches on a GPU
    python bench/run.py --op upsample_argmax --dtype bfloat16 --json argmax.json

Exits with 1 when a result is wrong, with 2 when an option is.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, nothing installed
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read by the profiler, which greets otherwise

import torch

from bench import report
from bench.cases import CONTENTS, SUITES, Case, fitted, undecided
from bench.floor import Machine, issue_rate
from bench.measure import Row, Settings, measure, with_gradients
from bench.operations import OPERATIONS, Operation
from bench.timing import copy_bandwidth

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = "positive integer"  # argparse's word for it


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
    suites = f"which cases: any of {', '.join(SUITES)} (default: quick)"
    option("--suite", choices=list(SUITES), default=["quick"], help=suites, **several)
    option("--device", default=None, help="cpu, cuda or cuda:1 (default: a GPU where there is one)")
    option("--dtype", choices=list(DTYPES), default="float32", help="of the maps")
    option("--compile", action="store_true", help="torch.compile as a further peer")
    calls = "timed calls of each (default: as many as fit in about a second)"
    option("--repeats", type=_positive, metavar="N", help=calls)
    option("--json", type=Path, metavar="FILE", help="write everything that was measured")
    gate = "instead: what the kernels compile to (no GPU needed); see --static --help"
    option("--static", action="store_true", help=gate)
    return parser


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


def rows(case: Case, operations: list[Operation], settings: Settings) -> Iterator[Row]:
    """Measure the operations at one case; a row is yielded when it is done."""
    for content_name in CONTENTS:
        wanted = [o for o in operations if content_name in o.contents]
        if not wanted:
            continue
        content = CONTENTS[content_name](case, settings.dtype, settings.device)
        if any(o.result == "labels" for o in wanted):
            share = undecided(content.scores)
            print(f"({content_name}: {share:.0%} of the cells have corners of different classes)")
        for operation in wanted:
            problem = operation.problem(case, content)
            yield measure(Row(case, operation, content_name, False), problem, settings)
            if operation.trainable:
                problem = with_gradients(operation, problem)
                yield measure(Row(case, operation, content_name, True), problem, settings)


def run(cases: list[Case], operations: list[Operation], settings: Settings) -> list[Row]:
    """Measure everything and print each row when it is done."""
    peers = [p for p in report.PEERS if any(p in o.peers for o in operations)]
    peers += ["compile"] * settings.compile
    gpu = settings.device.type == "cuda"
    done = []
    for case in cases:
        print(f"\n{case}\n{report.header(peers, gpu)}", flush=True)
        for row in rows(case, operations, settings):
            print(report.line(row, peers, gpu), flush=True)
            done.append(row)
    print("", *report.footnotes(done, peers, gpu), sep="\n")
    return done


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--static" in arguments:
        return _static([a for a in arguments if a != "--static"])
    options = _parser().parse_args(arguments)
    try:
        device = _device(options.device)
        if options.json and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
            raise ValueError(f"--json: {options.json} cannot be written: no such folder, or is one")
    except ValueError as error:
        return _refuse(error)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 for the peers too
    machine = Machine(copy_bandwidth(device), issue_rate(device)) if device.type == "cuda" else None
    settings = Settings(device, DTYPES[options.dtype], options.repeats, options.compile, machine)

    about = report.conditions(settings)
    cases, notes = fitted([c for suite in options.suite for c in SUITES[suite]], device)
    print(report.summary(about), *report.busy(), *notes, sep="\n")
    done = run(cases, [o for o in OPERATIONS if o.name in options.op], settings)
    wrong = sum(bool(row.wrong) for row in done)
    agree = f"all results of {len(done)} rows agree with the float64 reference"
    print(f"WRONG results in {wrong} of {len(done)} rows" if wrong else agree)
    if options.json:
        try:
            report.write_json(options.json, done, about)
        except OSError as error:
            return _refuse(error)
    return 1 if wrong else 0


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
