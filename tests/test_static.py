"""The static gate: reading machine code, judging the table, compiling again only what changed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # as the kernels' own tests need it, before Triton

pytest.importorskip("triton", reason="no Triton for this platform")

from bench import gate, sass
from bench.static_case import Case
from bench.static_cases import cases

KERNEL = """\
def kernel(rows, channels):
    for row in rows:
        for c in range(channels):
            total += load(c)
        if rare:
            store(total)
"""


def machine_code(tmp_path: Path, lines: list[str]) -> str:
    """What nvdisasm would print: "N OP ..." is an instruction of line N, "L_x_1:" a label."""
    file = tmp_path / "kernel.py"
    file.write_text(KERNEL)
    text = []
    for place, line in enumerate(lines):
        if line.endswith(":"):
            text.append(f".{line}")
            continue
        number, _, instruction = line.partition(" ")
        text += [f'\t//## File "{file}", line {number}', f"        /*{place:04x}*/ {instruction} ;"]
    return "\n".join(text)


LOOP = ["3 LDG.E R1, desc[UR4][R2.64]", "4 FADD R0, R0, R1", "4 MUFU.EX2 R0, R0", "3 ISETP P0"]
NEST = [
    "2 MOV R0, RZ",
    "L_x_0:",
    "L_x_1:",
    *LOOP,
    "3 @P0 BRA `(.L_x_1)",
    "5 @!P1 BRA `(.L_x_2)",
    "6 IADD3 R2, R2",
    "6 @P2 STG.E.128 desc[UR4][R2.64], R4",
    "L_x_2:",
    "2 @P3 BRA `(.L_x_0)",
    "2 EXIT",
    "L_x_9:",
    "2 BRA `(.L_x_9)",
    "2 NOP",
]


def test_machine_code_is_read(tmp_path: Path) -> None:
    code, labels = sass.parse(machine_code(tmp_path, NEST))
    assert [i.stem for i in code[:3]] == ["MOV", "LDG", "FADD"] and len(code) == 12
    assert code[1].source == "kernel: for c in range(channels):" and code[8].op == "STG.E.128"
    assert sass.exponentials(code) == sass.count(code, "LDG") == 1
    loops, skipped = sass.regions(code, labels)
    assert {(r.first, r.last, r.source) for r in loops} == {
        (1, 6, "kernel: for c in range(channels):"),
        (1, 10, "kernel: for row in rows:"),
    }
    assert [(r.first, r.last, r.source) for r in skipped] == [(7, 9, "kernel: if rare:")]


def test_loops_and_branches_are_weighted(tmp_path: Path) -> None:
    text = machine_code(tmp_path, NEST)
    counted = sass.per_unit(text, {"kernel: for c in": 4}, {})
    assert counted == {"instructions": 5 / 4, "ex2": 1 / 4, "loads": 1 / 4}
    # The outer loop's own: the branch around the if, its two instructions, the branch back.
    both = sass.per_unit(
        text, {"kernel: for c in": 4, "kernel: for row": 2}, {"kernel: if rare": 0.25}
    )
    assert both["instructions"] == 5 / 4 + (2 + 2 * 0.25) / 2
    whole = sass.per_unit(text, {"": 10, "kernel: for c in": 4, "kernel: for row": 2}, {})
    assert whole["instructions"] == pytest.approx(5 / 4 + 4 / 2 + 3 / 10)


@pytest.mark.parametrize(
    ("trips", "odds", "message"),
    [
        ({"kernel: for d in": 4}, {}, "no loop begins with 'kernel: for d in'"),
        ({"kernel: for row": 2}, {}, "how many units does one trip of 'kernel: for c in range"),
        (
            {"kernel: for c in": 2},
            {"kernel: if often": 1},
            "no branch belongs to 'kernel: if often'",
        ),
    ],
)
def test_what_is_said_must_fit_the_code(tmp_path: Path, trips, odds, message) -> None:
    text = machine_code(tmp_path, NEST)
    with pytest.raises(ValueError, match=re.escape(message)):
        sass.per_unit(text, trips, odds)


def test_an_unrolled_loop_counts_once(tmp_path: Path) -> None:
    """Four trips at a time, then single ones for the rest: a quarter of the longer body."""
    long = ["L_x_1:", *LOOP[:3] * 4, LOOP[3], "3 @P0 BRA `(.L_x_1)"]
    short = ["L_x_2:", *LOOP, "3 @P0 BRA `(.L_x_2)"]
    figures = sass.per_unit(machine_code(tmp_path, [*long, *short]), {"kernel: for c in": 1}, {})
    assert figures == {"instructions": 14 / 4, "ex2": 1, "loads": 1}
    again = [line.replace("_1", "_2") for line in long]
    twice = sass.per_unit(machine_code(tmp_path, [*long, *again]), {"kernel: for c in": 4}, {})
    assert twice["loads"] == 2  # two loops alike are two passes


ROW = {
    "hash": "0", "registers": 100, "spills": 0, "shared": 0, "stores": 4, "wide_stores": 4,
    "loads": 8, "instructions": 900, "ex2": 4, "seconds": 1.0,
    "per_unit": {"pixel-class": {"instructions": 7.0, "ex2": 0.1, "loads": 0.1}},
}  # fmt: skip


def per_unit(instructions: float, ex2: float, loads: float = 0.1) -> dict:
    return {"per_unit": {"pixel-class": dict(instructions=instructions, ex2=ex2, loads=loads)}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"registers": 108, "seconds": 3.0, "instructions": 2000}, ""),
        ({"shared": 512}, "shared memory 0 -> 512"),
        ({"registers": 109}, "registers 100 -> 109"),
        ({"spills": 8}, "spills 0 -> 8"),
        ({"wide_stores": 3}, "16-byte stores 4 of 4 -> 3 of 4"),
        ({"stores": 8, "wide_stores": 8}, ""),
        (per_unit(7.2, 0.1), ""),
        (per_unit(7.3, 0.1), "instructions a pixel-class 7 -> 7.3"),
        (per_unit(7.0, 0.2), "ex2 a pixel-class 0.1 -> 0.2"),
        (per_unit(6.0, 0.0, 0.0), ""),
    ],
)
def test_changes_for_the_worse(change: dict, said: str) -> None:
    name = "upsample.forward fp32 / forward_kernel / sm_90"
    faults = gate.worse({name: ROW | change, "a new row": ROW}, {name: ROW, "an old row": ROW})
    assert faults == ([gate.Fault(name, said)] if said else [])


def test_rows_without_figures_a_unit_compare_the_whole_kernel() -> None:
    old = {k: v for k, v in ROW.items() if k != "per_unit"}
    assert gate.changes_for_the_worse(old | {"loads": 16}, old) == ["loads 8 -> 16"]
    assert gate.changes_for_the_worse(old | {"instructions": 927}, old) == []
    assert gate.changes_for_the_worse(old | {"instructions": 928}, old) == [
        "instructions 900 -> 928"
    ]
    few = old | {"instructions": 20}
    assert gate.changes_for_the_worse(few | {"instructions": 28}, few) == []
    assert gate.changes_for_the_worse(few | {"instructions": 29}, few) == ["instructions 20 -> 29"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"spills": 16}, "spills (16)"),
        ({"wide_stores": 3}, "only 3 of 4 stores are 16 bytes wide"),
        ({"seconds": 4.0}, ""),
        ({"seconds": 4.1}, "takes 4.1 s to compile, more than 4"),
        (per_unit(9.1, 0.1), "9.1 instructions a pixel-class on sm_90, more than 9"),
        ({"per_unit": {"pixel-class": {"instructions": 1}}}, "no ex2 a pixel-class were found"),
    ],
)
def test_absolute_limits(change: dict, said: str) -> None:
    limits = {"pixel-class": {"instructions": 9, "ex2": 0.2}}
    case = Case("op.f fp32", lambda: None, wide=("k",), limits=limits)
    rows = {"op.f fp32 / k / sm_90": ROW | change, "op.f fp32 / other / sm_90": ROW | {"stores": 9}}
    del rows["op.f fp32 / other / sm_90"]["per_unit"]
    found = [fault.what for fault in gate.over_limits(rows, {case.name: case})]
    assert len(found) == bool(said) and all(said in what for what in found)


def test_the_kernels_of_a_call_are_counted_together() -> None:
    case = Case("op.f", lambda: None, limits={"pixel-class": {"instructions": 9}})
    rows = {f"op.f / {kernel} / sm_90": ROW for kernel in ("first", "second")}
    (fault,) = gate.over_limits(rows, {case.name: case})
    assert fault == ("op.f", "14 instructions a pixel-class on sm_90, more than 9")


def test_a_limit_without_figures_is_exceeded() -> None:
    case = Case("op.f", lambda: None, limits={"pixel-class": {"instructions": 9}})
    row = {k: v for k, v in ROW.items() if k != "per_unit"}
    (fault,) = gate.over_limits({"op.f / k / sm_90": row}, {case.name: case})
    assert "no instructions" in fault.what


def run_gate(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user calls it, and from a process that set the interpreter's switch."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = (sys.executable, root / "bench" / "run.py", "--static", *arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the gate needs, which tests may change."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("bench", "kernels", "fcnfast"):
        leave = shutil.ignore_patterns("__pycache__", "results", "bundled")
        shutil.copytree(root / folder, copy / folder, ignore=leave)
    return copy


def test_only_what_changed_is_compiled_again(checkout: Path) -> None:
    table = checkout / "bench" / "results" / "static.json"
    arguments = ("--op", "crop_add")
    first = run_gate(checkout, *arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    rows = json.loads(table.read_text())["rows"]
    names = {f"{case} / " for case in cases(["crop_add"])}
    assert {name[: name.index("/") + 2] for name in rows} == names
    assert f"{len(rows)} of them (*) compiled now" in first.stdout
    assert all(row["registers"] > 0 and row["spills"] == 0 for row in rows.values())

    # One kernel's source changes, and now its rows are as if they had been better before.
    source = checkout / "kernels" / "crop_add.py"
    source.write_text(
        source.read_text().replace("y, x = at.y - oy, at.x", "y, x = at.y - oy,  at.x")
    )
    for row in rows.values():
        row["registers"] -= 9
    table.write_text(json.dumps({"triton": json.loads(table.read_text())["triton"], "rows": rows}))
    second = run_gate(checkout, *arguments)
    changed = [name for name in rows if "backward_skip" in name]
    assert second.returncode == 1
    assert f"{len(changed)} of them (*) compiled now" in second.stdout
    worse = re.findall(r"^WORSE: (.*): registers \d+ -> \d+$", second.stdout, re.MULTILINE)
    assert sorted(worse) == sorted(changed)
    assert json.loads(table.read_text())["rows"] == rows  # so that it fails again

    accepted = run_gate(checkout, *arguments, "--accept")
    assert accepted.returncode == 0 and accepted.stdout.count("ACCEPTED: ") == len(changed)
    after = json.loads(table.read_text())["rows"]
    assert {name for name in rows if after[name]["hash"] != rows[name]["hash"]} == set(changed)


# Which kernels the ops of a user compile whose pictures all have another size. Printed: the op, the
# dtype, and of each of its kernels how many.
SIZES = """
import random, sys
from collections import Counter
import torch
from bench.launches import record, variant
from fcnfast.geometry import SamplingGrid
from fcnfast.kernels import argmax, confusion, cross_entropy

def calls(dtype, size, clamp):
    coarse = [-(-n // 8) for n in size]
    if clamp:
        grid = SamplingGrid.resize(coarse, size)
    else:
        grid = SamplingGrid.centers(coarse, 8, 3.5, size, "zero")
    x, target = meta(2, 21, *coarse, dtype=dtype), meta(2, *size, dtype=torch.int64)
    yield "argmax", lambda: argmax.forward(x, grid, torch.uint8, False)
    yield "confusion", lambda: confusion.add(meta(21, 21, dtype=torch.int64), x, target, grid, 255)
    loss = (x, target, None, grid, 255, "mean", 0.0, True)
    yield "loss", lambda: cross_entropy.forward(*loss)
    yield "scaled", lambda: cross_entropy.scaled(x.float(), meta(), meta(), dtype)

def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")

pick, seen = random.Random(0), {}
for _ in range(int(sys.argv[1])):
    size = pick.randint(33, 1500), pick.randint(33, 1500)
    for dtype in (torch.float32, torch.bfloat16):
        for clamp in (True, False):
            for op, call in calls(dtype, size, clamp):
                for launch in record(call):
                    key = op, str(dtype), "clamp" if clamp else "zero", launch.kernel.__name__
                    seen.setdefault(key, set()).add(variant(launch))
for key, variants in seen.items():
    print(*key, len(variants))
"""


def test_pictures_of_any_size_share_kernels(root: Path) -> None:
    """A GPU's user waits for a compiler twice for a kernel and dtype at most."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(root)}
    command = (sys.executable, "-c", SIZES, "40")
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    counts = {line.rpartition(" ")[0]: int(line.split()[-1]) for line in run.stdout.splitlines()}
    assert len(counts) == 4 * (2 + 2 + 4 + 1)
    assert max(counts.values()) <= 2, counts


def test_bad_tables_and_families_are_refused(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("[]")
    run = run_gate(root, "--op", "crop_add", "--table", str(path))
    assert run.returncode == 2 and f"{path} is no table of the static gate" in run.stderr
    run = run_gate(root, "--op", "nothing")
    assert run.returncode == 2 and "invalid choice: 'nothing'" in run.stderr


def test_every_kernel_that_is_launched_is_in_the_table(root: Path) -> None:
    """By its name: several files may have a forward_kernel."""
    text = "".join(path.read_text() for path in (root / "kernels").glob("*.py"))
    launched = set(re.findall(r"^\s+(\w+_kernel)\[", text, re.MULTILINE))
    rows = json.loads((root / "bench" / "results" / "static.json").read_text())["rows"]
    assert launched <= {name.split(" / ")[1].split()[0] for name in rows}


def test_the_kept_table_names_every_case(root: Path) -> None:
    rows = json.loads((root / "bench" / "results" / "static.json").read_text())["rows"]
    assert {name.split(" / ")[0] for name in rows} == cases().keys()
