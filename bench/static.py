"""The static table: what the kernels compile to ahead of time, for GPUs that need not be there.

    python bench/run.py --static                  # compile what changed, judge, keep the table
    python bench/run.py --static --op upsample    # the kernels of some ops alone
    python bench/run.py --static --accept         # keep what got worse, too
    python bench/run.py --static --target sm_75   # does it compile there? Nothing is kept

A row is one kernel of one call for one GPU. Exits with 1 when a kernel does not compile, spills
registers, or got worse than the kept table says. It runs in a process of its own, because Triton's
interpreter, which the tests use, and its compiler cannot share one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, nothing installed

import torch
import triton
from torch import Tensor
from tqdm import tqdm

from bench.launches import FIGURES, compiled, fingerprint, record
from fcnfast.geometry import SamplingGrid
from fcnfast.kernels import (
    argmax,
    confusion,
    crop_add,
    cross_entropy,
    deconv,
    deconv_backward,
    upsample,
    upsample_backward,
)

KEPT = Path(__file__).resolve().parent / "results" / "static.json"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# A compiler moves registers and instructions about: less than this is no change for the worse.
MORE_REGISTERS, MORE_INSTRUCTIONS, MORE = 8, 8, 0.03
PROCESSES = 2
# A call's name, a launcher and its arguments.
Calls = Iterator[tuple[Any, ...]]

# Scores of FCN-8s for a batch of 16 at 512 x 512, 21 classes, stride 8; and a map to add a skip to.
SHAPE, SIZE = (16, 21, 64, 64), (512, 512)
SKIP, OFFSET = (16, 21, 80, 80), (5, 5)
GRID = SamplingGrid.resize(SHAPE[2:], SIZE)
GRIDS = {
    "zero": SamplingGrid.deconv(SHAPE[2:], 8, padding=4),
    "stride 4": SamplingGrid.resize((128, 128), SIZE),
    "stride 32": SamplingGrid.resize((16, 16), SIZE),
    "uneven": SamplingGrid.resize((63, 47), (500, 375)),
}
FLOAT, HALF = torch.float32, torch.bfloat16
FORMS: dict[str, tuple[Any, ...]] = {
    "fp32": (FLOAT,),
    "bf16": (HALF,),
    "fp32 channels_last": (FLOAT, torch.channels_last),
}


def meta(
    shape: tuple[int, ...],
    dtype: torch.dtype = FLOAT,
    form: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=form)


def _scores(grid: SamplingGrid, *rest: Any) -> Tensor:
    return meta((*SHAPE[:2], *grid.in_size), *rest)


def _crop_add() -> Calls:
    for name, rest in FORMS.items():
        x = meta(SHAPE, *rest)
        yield f"forward {name}", crop_add.forward, x, meta(SKIP, *rest), OFFSET
        yield f"backward_skip {name}", crop_add.backward_skip, x, SKIP, OFFSET


def _upsample() -> Calls:
    grids = [(name, GRID, rest) for name, rest in FORMS.items()]
    grids += [(f"fp32 {name}", grid, (FLOAT,)) for name, grid in GRIDS.items()]
    for name, grid, rest in grids:
        full = meta((*SHAPE[:2], *grid.size), *rest)
        yield f"forward {name}", upsample.forward, _scores(grid, *rest), grid
        yield f"adjoint {name}", upsample_backward.adjoint, full, grid
    step, skip = SamplingGrid.deconv(SHAPE[2:], 2, padding=1), meta((16, 21, 146, 146))
    yield "forward_add fp32", upsample.forward_add, meta(SHAPE), skip, step, (9, 9)


def _deconv() -> Calls:
    forms = [(name, rest, 64, 8, 16) for name, rest in FORMS.items()]
    forms += [("fp32 stride 2", (FLOAT,), 34, 2, 4), ("fp32 stride 32", (FLOAT,), 16, 32, 64)]
    forms += [("fp32 stride 3", (FLOAT,), 64, 3, 5)]
    backward = deconv_backward
    for name, rest, side, stride, kernel in forms:
        at, size = (stride, [(kernel - stride) // 2] * 2), [side * stride] * 2
        x, grad = (meta((*SHAPE[:2], n, n), *rest) for n in (side, side * stride))
        weight = meta((SHAPE[1], 1, kernel, kernel), rest[0])
        yield f"forward {name}", deconv.forward, x, weight, *at, size
        yield f"weight_gradient {name}", backward.weight_gradient, grad, x, *at, kernel, rest[0]
        yield f"input_gradient {name}", backward.input_gradient, grad, weight, *at, [side] * 2


def _cross_entropy() -> Calls:
    def loss(
        grid: SamplingGrid = GRID,
        *rest: Any,
        labels: torch.dtype = torch.int64,
        weighted: bool = False,
        reduction: str = "mean",
        gradient: bool = True,
    ) -> tuple[Any, ...]:
        target = meta((SHAPE[0], *grid.size), labels)
        weight, smoothing = (meta(SHAPE[1:2]), 0.1) if weighted else (None, 0.0)
        options = (grid, 255, reduction, smoothing, gradient)
        return cross_entropy.forward, _scores(grid, *rest), target, weight, *options

    for name, rest in FORMS.items():
        yield f"gradient {name}", *loss(GRID, *rest)
    for name in ("zero", "stride 4", "stride 32"):
        yield f"gradient fp32 {name}", *loss(GRIDS[name])
    yield "gradient fp32 uint8", *loss(labels=torch.uint8)
    yield "gradient fp32 weighted", *loss(weighted=True)
    yield "loss fp32", *loss(gradient=False)
    for name, weighted in (("fp32", False), ("fp32 weighted", True)):
        yield f"pixels {name}", *loss(reduction="none", weighted=weighted)
        target, grad = meta((SHAPE[0], *SIZE), torch.int64), meta((SHAPE[0], *SIZE))
        weight = meta(SHAPE[1:2]) if weighted else None
        given = (meta(SHAPE), target, weight, GRID, 255, 0.0, meta((0,)), grad)
        yield f"pixel_gradient {name}", cross_entropy.per_pixel_gradient, *given
    for name, dtype in (("fp32", FLOAT), ("bf16", HALF)):
        yield f"scaled {name}", cross_entropy.scaled, meta(SHAPE), meta(()), meta(()), dtype


def _argmax() -> Calls:
    maps = [(name, _scores(GRID, *rest), GRID) for name, rest in FORMS.items()]
    maps += [(f"fp32 {name}", _scores(grid), grid) for name, grid in GRIDS.items()]
    for name, *scores in maps:
        yield f"forward {name}", argmax.forward, *scores, torch.uint8, False
    yield "forward fp32 to int64", argmax.forward, meta(SHAPE), GRID, torch.int64, False
    yield "confidence fp32", argmax.forward, meta(SHAPE), GRID, torch.uint8, True


def _confusion() -> Calls:
    kinds = (("fp32 uint8", FLOAT, torch.uint8, 0), ("bf16 int64", HALF, torch.int64, 0))
    for name, dtype, labels, more in (*kinds, ("fp32 and others", FLOAT, torch.int64, 1)):
        out = meta((SHAPE[1] + more, SHAPE[1]), torch.int64)
        target = meta((SHAPE[0], *SIZE), labels)
        yield f"add {name}", confusion.add, out, meta(SHAPE, dtype), target, GRID, 255


OPS: dict[str, Callable[[], Calls]] = {
    "crop_add": _crop_add,
    "upsample": _upsample,
    "deconv": _deconv,
    "upsample_cross_entropy": _cross_entropy,
    "upsample_argmax": _argmax,
    "upsample_confusion": _confusion,
}


class Wanted(NamedTuple):
    """A row that the table has to have: which launch of which call, for which GPU."""

    op: str
    call: str
    launch: int
    target: str
    fingerprint: str


def wanted_rows(ops: Collection[str], targets: Collection[str]) -> dict[str, Wanted]:
    """The rows of ops by name, "OP.CALL / KERNEL / TARGET"."""
    rows = {}
    for op, (call, *launcher) in [(name, each) for name in ops for each in OPS[name]()]:
        launches = record(*launcher)
        names = [launch.kernel.__name__ for launch in launches]
        for place, launch in enumerate(launches):
            number = names[: place + 1].count(names[place])
            kernel = names[place] + f" {number}" * (number > 1)
            for target in targets:
                wanted = Wanted(op, call, place, target, fingerprint(launch, target))
                rows[f"{op}.{call} / {kernel} / {target}"] = wanted
    return rows


def compile_row(wanted: Wanted) -> dict[str, Any]:
    """A row of the table; the launch is recorded anew, in whatever process this is."""
    launcher = next(launcher for name, *launcher in OPS[wanted.op]() if name == wanted.call)
    figures = compiled(record(*launcher)[wanted.launch], wanted.target)
    return {"hash": wanted.fingerprint, **figures}


def compile_rows(stale: Mapping[str, Wanted]) -> tuple[dict[str, Any], dict[str, str]]:
    """Compile rows in a few processes: the rows, and why others failed."""
    rows: dict[str, Any] = {}
    failed: dict[str, str] = {}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as cache, ProcessPoolExecutor(PROCESSES, spawn) as pool:
        os.environ["TRITON_CACHE_DIR"] = cache  # so that equal kernels are compiled once
        futures = {pool.submit(compile_row, wanted): name for name, wanted in stale.items()}
        for future in tqdm(as_completed(futures), unit="row", total=len(futures), disable=None):
            try:
                rows[futures[future]] = future.result()
            except Exception as error:  # whatever the compiler says is the row's fault
                failed[futures[future]] = f"{type(error).__name__}: {error}".splitlines()[0]
    return rows, failed


def worse(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """What a row has more of than before, beyond what a compiler moves about."""
    allowed = {
        "registers": old["registers"] + MORE_REGISTERS,
        "spills": old["spills"],
        "shared": old["shared"],
        "instructions": old["instructions"] + max(MORE * old["instructions"], MORE_INSTRUCTIONS),
    }
    return [f"{key} {old[key]} -> {new[key]}" for key in FIGURES if new[key] > allowed[key]]


def read_table() -> dict[str, Any]:
    """The kept table; ValueError when the file holds none."""
    if not KEPT.exists():
        return {"triton": triton.__version__, "rows": {}}
    try:
        table = json.loads(KEPT.read_text(encoding="utf-8"))
        return {"triton": table["triton"], "rows": dict(table["rows"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{KEPT} is not a static table: {error!r}") from error


def write_table(rows: Mapping[str, Any]) -> None:
    """One line a row, so that a diff names it."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    text = f'{{\n "triton": {json.dumps(triton.__version__)},\n "rows": {{\n{lines}\n }}\n}}\n'
    KEPT.write_text(text, encoding="utf-8")


def print_table(rows: Mapping[str, Any], fresh: Collection[str]) -> None:
    """Print the table; rows that were compiled just now have an asterisk."""
    width = max(map(len, rows), default=0) + 2
    print(" " * width + "".join(f"{figure:>14}" for figure in FIGURES))
    for name, row in sorted(rows.items()):
        cells = "".join(f"{row[figure]:>14}" for figure in FIGURES)
        print(f"{name + '*' * (name in fresh):<{width}}{cells}")
    print(f"\nTriton {triton.__version__}: {len(rows)} rows, {len(fresh)} of them (*) compiled now")


def check(options: argparse.Namespace) -> int:
    """Compile what changed, print the table, judge it, and keep it; the exit code.

    Rows with a fault are kept as they were, so that they stay faulty. A table of another version of
    Triton is replaced on request only, and not compared with. ValueError if the file holds none.
    """
    table = read_table()
    known, same = table["rows"], table["triton"] == triton.__version__
    wanted = wanted_rows(options.op, options.target)
    stale = {n: w for n, w in wanted.items() if known.get(n, {}).get("hash") != w.fingerprint}
    fresh, failed = compile_rows(stale)
    rows = {n: known[n] for n in wanted if n not in stale} | fresh
    print_table(rows, fresh)

    faults = [*failed.items()]
    faults += [(n, f"spills ({row['spills']})") for n, row in rows.items() if row["spills"]]
    changes = []
    if same:
        changes = [(n, w) for n in rows if n in known for w in worse(rows[n], known[n])]
    else:
        print(f"not compared with the kept table, which is of Triton {table['triton']}")
    for word, found in (("FAULT", faults), ("ACCEPTED" if options.accept else "WORSE", changes)):
        print(*(f"{word}: {name}: {what}\n" for name, what in found), sep="", end="")
    bad = {name for name, _ in [*faults, *([] if options.accept else changes)]}
    if set(options.target) == set(TARGETS) and (same or options.accept):
        kept = {
            n: r for n, r in known.items() if n in rows or n.partition(".")[0] not in options.op
        }
        write_table(kept | {n: row for n, row in rows.items() if n not in bad})
    print("static check failed" if bad else "no kernel spills or got worse")
    return 1 if bad else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the check; the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench/run.py --static",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    help_text = f"only the kernels of: any of {', '.join(OPS)}"
    option("--op", choices=list(OPS), default=list(OPS), help=help_text, **several)
    gpus = f"compile for these, such as sm_86 or gfx942 ({' '.join(TARGETS)})"
    option("--target", default=list(TARGETS), help=gpus, **several)
    option("--accept", action="store_true", help="keep rows that got worse")
    options = parser.parse_args(arguments)
    for target in options.target:
        if not re.fullmatch(r"sm_\d{2,3}|gfx\w+", target):
            parser.error(f"--target {target}: not a GPU such as sm_90 or gfx942")
    try:
        return check(options)
    except ValueError as error:
        print(f"bench/run.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
