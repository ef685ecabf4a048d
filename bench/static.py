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
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, nothing installed

import torch
import triton
from torch import Tensor

from bench.launches import TARGETS, Launch, compiled, fingerprint, record
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
FIGURES = ("registers", "spills", "shared", "instructions")
# A compiler moves registers and instructions about: less than this is no change for the worse.
MORE_REGISTERS, MORE_INSTRUCTIONS, MORE = 8, 8, 0.03
PROCESSES = 2
Calls = Iterator[tuple[str, Callable[[], object]]]

# Scores of FCN-8s for a batch of 16 at 512 x 512, 21 classes, stride 8; and a map to add a skip to.
SHAPE, SIZE = (16, 21, 64, 64), (512, 512)
SKIP, OFFSET = (16, 21, 80, 80), (5, 5)
GRID = SamplingGrid.resize(SHAPE[2:], SIZE)
ZERO = SamplingGrid.deconv(SHAPE[2:], 8, padding=4)
GRIDS = {
    "zero": ZERO,
    "stride 4": SamplingGrid.resize((128, 128), SIZE),
    "stride 32": SamplingGrid.resize((16, 16), SIZE),
    "uneven": SamplingGrid.resize((63, 47), (500, 375)),
}
FLOAT, HALF = torch.float32, torch.bfloat16
LAST = torch.channels_last
FORMS: dict[str, tuple[torch.dtype, torch.memory_format]] = {
    "fp32": (FLOAT, torch.contiguous_format),
    "bf16": (HALF, torch.contiguous_format),
    "fp32 channels_last": (FLOAT, LAST),
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
        yield (
            f"forward {name}",
            partial(crop_add.forward, meta(SHAPE, *rest), meta(SKIP, *rest), OFFSET),
        )
        yield (
            f"backward_skip {name}",
            partial(crop_add.backward_skip, meta(SHAPE, *rest), SKIP, OFFSET),
        )


def _upsample() -> Calls:
    grids = [(name, GRID, rest) for name, rest in FORMS.items()]
    grids += [(f"fp32 {name}", grid, (FLOAT,)) for name, grid in GRIDS.items()]
    for name, grid, rest in grids:
        full = meta((*SHAPE[:2], *grid.size), *rest)
        yield f"forward {name}", partial(upsample.forward, _scores(grid, *rest), grid)
        yield f"adjoint {name}", partial(upsample_backward.adjoint, full, grid)
    step, skip = SamplingGrid.deconv(SHAPE[2:], 2, padding=1), meta((16, 21, 146, 146))
    yield "forward_add fp32", partial(upsample.forward_add, meta(SHAPE), skip, step, (9, 9))


def _deconv() -> Calls:
    forms = [(name, rest, 64, 8, 16) for name, rest in FORMS.items()]
    forms += [("fp32 stride 2", (FLOAT,), 34, 2, 4), ("fp32 stride 32", (FLOAT,), 16, 32, 64)]
    forms += [("fp32 stride 3", (FLOAT,), 64, 3, 5)]
    for name, rest, side, stride, kernel in forms:
        start, size = [(kernel - stride) // 2] * 2, [side * stride] * 2
        x, grad = (meta((*SHAPE[:2], n, n), *rest) for n in (side, side * stride))
        weight = meta((SHAPE[1], 1, kernel, kernel), rest[0])
        yield f"forward {name}", partial(deconv.forward, x, weight, stride, start, size)
        yield (
            f"weight_gradient {name}",
            partial(deconv_backward.weight_gradient, grad, x, stride, start, kernel, rest[0]),
        )
        yield (
            f"input_gradient {name}",
            partial(deconv_backward.input_gradient, grad, weight, stride, start, [side] * 2),
        )


def _cross_entropy() -> Calls:
    def loss(
        grid: SamplingGrid = GRID,
        *rest: Any,
        labels: torch.dtype = torch.int64,
        weighted: bool = False,
        reduction: str = "mean",
        gradient: bool = True,
    ) -> Callable[[], object]:
        target = meta((SHAPE[0], *grid.size), labels)
        weight, smoothing = (meta(SHAPE[1:2]), 0.1) if weighted else (None, 0.0)
        options = (grid, 255, reduction, smoothing, gradient)
        return partial(cross_entropy.forward, _scores(grid, *rest), target, weight, *options)

    for name, rest in FORMS.items():
        yield f"gradient {name}", loss(GRID, *rest)
    for name in ("zero", "stride 4", "stride 32"):
        yield f"gradient fp32 {name}", loss(GRIDS[name])
    yield "gradient fp32 uint8", loss(labels=torch.uint8)
    yield "gradient fp32 weighted", loss(weighted=True)
    yield "loss fp32", loss(gradient=False)
    for name, weighted in (("fp32", False), ("fp32 weighted", True)):
        yield f"pixels {name}", loss(reduction="none", weighted=weighted)
        target, grad = meta((SHAPE[0], *SIZE), torch.int64), meta((SHAPE[0], *SIZE))
        weight = meta(SHAPE[1:2]) if weighted else None
        given = (meta(SHAPE), target, weight, GRID, 255, 0.0, meta((0,)), grad)
        yield f"pixel_gradient {name}", partial(cross_entropy.per_pixel_gradient, *given)
    for name, dtype in (("fp32", FLOAT), ("bf16", HALF)):
        yield (
            f"scaled {name}",
            partial(cross_entropy.scaled, meta(SHAPE), meta(()), meta(()), dtype),
        )


def _argmax() -> Calls:
    def labels(
        grid: SamplingGrid, *rest: Any, out: torch.dtype = torch.uint8, confidence: bool = False
    ) -> Callable[[], object]:
        return partial(argmax.forward, _scores(grid, *rest), grid, out, confidence)

    for name, rest in FORMS.items():
        yield f"forward {name}", labels(GRID, *rest)
    for name, grid in GRIDS.items():
        yield f"forward fp32 {name}", labels(grid)
    yield "forward fp32 to int64", labels(GRID, out=torch.int64)
    yield "confidence fp32", labels(GRID, confidence=True)


def _confusion() -> Calls:
    kinds = (("fp32 uint8", FLOAT, torch.uint8, 0), ("bf16 int64", HALF, torch.int64, 0))
    for name, dtype, labels, more in (*kinds, ("fp32 and others", FLOAT, torch.int64, 1)):
        out = meta((SHAPE[1] + more, SHAPE[1]), torch.int64)
        target = meta((SHAPE[0], *SIZE), labels)
        yield f"add {name}", partial(confusion.add, out, meta(SHAPE, dtype), target, GRID, 255)


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

    @property
    def recorded(self) -> Launch:
        """Its launch, recorded anew: a process of its own compiles it."""
        return record(dict(OPS[self.op]())[self.call])[self.launch]


def wanted_rows(ops: Collection[str], targets: Collection[str]) -> dict[str, Wanted]:
    """The rows of ops by name, "OP.CALL / KERNEL / TARGET".

    Raises:
        RuntimeError: when a call launches nothing.
    """
    rows = {}
    for op in ops:
        for call, run in OPS[op]():
            launches, seen = record(run), []
            if not launches:
                raise RuntimeError(f"{op}.{call} launches no kernel")
            for place, launch in enumerate(launches):
                seen.append(launch.kernel.__name__)
                number = seen.count(seen[-1])
                kernel = seen[-1] + f" {number}" * (number > 1)
                for target in targets:
                    mark = fingerprint(launch, target)
                    row = Wanted(op, call, place, target, mark)
                    rows[f"{op}.{call} / {kernel} / {target}"] = row
    return rows


def _nvidia(kernel: Any) -> dict[str, int]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def tool(name: str, *arguments: str) -> str:
        command = [str(tools / name), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = tool("cuobjdump", "--dump-resource-usage", file.name)
        code = tool("nvdisasm", "-c", file.name)
    registers, stack, local = (
        int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")
    )
    found = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", code, re.MULTILINE)
    return {
        "registers": registers,
        "spills": stack + local + sum(op in ("LDL", "STL") for op in found),
        "shared": kernel.metadata.shared,
        "instructions": sum(op != "NOP" for op in found),
    }


def _amd(kernel: Any) -> dict[str, int]:
    text = kernel.asm["amdgcn"]

    def noted(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", text)[1])

    return {
        "registers": noted("vgpr_count"),
        "spills": noted("vgpr_spill_count"),
        "shared": noted("group_segment_fixed_size"),
        "instructions": len(
            re.findall(r"^\s+(?:[vs]|ds|global|buffer|flat)_\w+", text, re.MULTILINE)
        ),
    }


def compile_row(wanted: Wanted) -> dict[str, Any]:
    """Compile one row: registers a thread, spills (NVIDIA: bytes of stack plus accesses to it; AMD:
    registers), bytes of shared memory, instructions."""
    kernel = compiled(wanted.recorded, wanted.target)
    figures = _amd(kernel) if "amdgcn" in kernel.asm else _nvidia(kernel)
    return {"hash": wanted.fingerprint, **figures}


def compile_rows(stale: Mapping[str, Wanted]) -> tuple[dict[str, Any], dict[str, str]]:
    """Compile rows in a few processes: the rows, and why others failed.

    Rows of the same fingerprint are compiled once: calls share kernels.
    """
    rows: dict[str, Any] = {}
    failed: dict[str, str] = {}
    alike: dict[str, list[str]] = {}
    for name, wanted in stale.items():
        alike.setdefault(wanted.fingerprint, []).append(name)
    if not stale:
        return rows, failed
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(min(PROCESSES, len(alike)), spawn) as pool,
    ):
        os.environ |= {"TRITON_CACHE_DIR": cache}
        futures = {pool.submit(compile_row, stale[names[0]]): names for names in alike.values()}
        for future in as_completed(futures):
            names = futures[future]
            try:
                rows |= dict.fromkeys(names, future.result())
            except Exception as error:  # whatever the compiler says is the row's fault
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                failed |= dict.fromkeys(names, why)
            if sys.stderr.isatty():
                done = f"{len(rows) + len(failed)} of {len(stale)}"
                print(f"\r{done}", end="", file=sys.stderr, flush=True)
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


def read_table(path: Path) -> dict[str, Any]:
    """A kept table; ValueError when the file holds none."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {"triton": table["triton"], "rows": dict(table["rows"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a static table: {error!r}") from error


def write_table(path: Path, version: str, rows: Mapping[str, Any]) -> None:
    """One line a row, so that a change shows its row."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f'{{\n "triton": {json.dumps(version)},\n "rows": {{\n{lines}\n }}\n}}\n'
    path.write_text(text, encoding="utf-8")


def table_lines(rows: Mapping[str, Any], fresh: Collection[str]) -> list[str]:
    """The table; rows that were compiled just now have an asterisk."""
    width = max(map(len, rows), default=0) + 2
    lines = [" " * width + "".join(f"{figure:>14}" for figure in FIGURES)]
    for name, row in sorted(rows.items()):
        cells = "".join(f"{row[figure]:>14}" for figure in FIGURES)
        lines.append(f"{name + '*' * (name in fresh):<{width}}{cells}")
    return lines


def check(options: argparse.Namespace) -> int:
    """Compile what changed, print the table, judge it, and keep it; the exit code.

    Rows with a fault are kept as they were, so that they stay faulty. A table of another version of
    Triton is replaced on request only, and not compared with.

    Raises:
        ValueError: when a file holds no table.
    """
    path, version = options.table, triton.__version__
    table = read_table(path) if path.exists() else {"triton": version, "rows": {}}
    known, same = table["rows"], table["triton"] == version
    wanted = wanted_rows(options.op, options.target)
    stale = {n: w for n, w in wanted.items() if known.get(n, {}).get("hash") != w.fingerprint}
    fresh, failed = compile_rows(stale)
    rows = {n: known[n] for n in wanted if n not in stale} | fresh
    print(*table_lines(rows, fresh), sep="\n")
    print(f"\nTriton {version}: {len(rows)} rows, {len(fresh)} of them (*) compiled now")

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
        others = {n: r for n, r in known.items() if n.partition(".")[0] not in options.op}
        before = {n: known[n] for n in rows if n in known}
        good = {name: row for name, row in rows.items() if name not in bad}
        write_table(path, version, others | before | good)
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
    option("--table", type=Path, metavar="FILE", default=KEPT, help="another table than the kept")
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
