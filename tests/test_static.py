"""The static table: recording launches, judging rows, compiling again only what changed."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")  # as the kernels' own tests need it, before Triton

pytest.importorskip("triton", reason="no Triton for this platform")

from bench import launches, static

# The decorator would make interpreted functions here.
SOURCE = """\
import triton.language as tl
from triton.runtime.jit import JITFunction

FACTOR = tl.constexpr(2)

def jit(**options):
    return lambda function: JITFunction(function, **options)

@jit()
def helper(x):
    return x * FACTOR

@jit()
def unused(x):
    return x + 1

@jit(do_not_specialize=["size"])
def kernel(x_ptr, size, stride, more, BLOCK: tl.constexpr):
    tl.store(x_ptr, helper(size) + stride)
"""


def module_of(tmp_path: Path, source: str = SOURCE):
    path = tmp_path / "kernels_of_a_test.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kernel(tmp_path):
    return module_of(tmp_path).kernel


def launch(kernel, x=None, size=5, stride=7, more=None, **options):
    x = torch.empty(64, device="meta") if x is None else x
    (found,) = launches.record(lambda: kernel[(1,)](x, size, stride, more=more, BLOCK=8, **options))
    return found


def test_a_launch_is_recorded_by_name(kernel) -> None:
    found = launch(kernel, num_warps=2)
    assert found.kernel is kernel and found.options == {"num_warps": 2}
    assert list(found.arguments) == ["x_ptr", "size", "stride", "more", "BLOCK"]
    assert found.arguments["BLOCK"] == 8


@pytest.mark.parametrize(
    ("values", "signature", "constants", "divisible"),
    [
        ({}, ("*fp32", "i32", "i32", "constexpr"), {"more": None}, ["x_ptr"]),
        ({"stride": 1}, ("*fp32", "i32", "constexpr", "constexpr"), {"stride": 1}, ["x_ptr"]),
        ({"size": 1}, ("*fp32", "i32", "i32", "constexpr"), {}, ["x_ptr"]),
        ({"size": 16, "stride": 16}, ("*fp32", "i32", "i32", "constexpr"), {}, ["x_ptr", "stride"]),
        ({"stride": 2**40 + 1}, ("*fp32", "i32", "i64", "constexpr"), {}, ["x_ptr"]),
        ({"stride": -(2**31)}, ("*fp32", "i32", "i32", "constexpr"), {}, ["x_ptr", "stride"]),
        ({"more": True}, ("*fp32", "i32", "i32", "u1"), {}, ["x_ptr"]),
        ({"more": 0.5}, ("*fp32", "i32", "i32", "fp32"), {}, ["x_ptr"]),
    ],
)
def test_a_launch_is_specialized_as_on_a_device(
    kernel, values, signature, constants, divisible
) -> None:
    found = launch(kernel, **values)
    types, fixed, attributes = launches.specialized(found, amd=False)
    assert tuple(types.values()) == (*signature, "constexpr")
    assert fixed.items() >= {**constants, "BLOCK": 8}.items()
    names = list(found.arguments)
    assert [names[place] for (place,) in attributes] == divisible


def test_pointers(kernel) -> None:
    whole = torch.empty(64, dtype=torch.bfloat16, device="meta")
    for x, facts in ((whole[8:], [["tt.divisibility", 16]]), (whole[1:], None)):
        types, _, attributes = launches.specialized(launch(kernel, x), amd=False)
        assert types["x_ptr"] == "*bf16" and attributes.get((0,)) == facts
    small, large = torch.empty(64, device="meta"), torch.empty(2**29, device="meta")
    for x, buffers in ((small, True), (large, False)):
        _, _, attributes = launches.specialized(launch(kernel, x), amd=True)
        assert (["tt.pointer_range", 32] in attributes[(0,)]) is buffers


def test_unknown_arguments_are_named(kernel) -> None:
    with pytest.raises(TypeError, match="kernel: stride is a str"):
        launches.specialized(launch(kernel, stride="far"), amd=False)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("x + 1", "x + 2", True),  # a function that the kernel does not call
        ("x * FACTOR", "x + FACTOR", False),
        ("constexpr(2)", "constexpr(3)", False),
        ("+ stride)", "- stride)", False),
        ('["size"]', '["stride"]', False),
    ],
)
def test_a_fingerprint_is_of_all_that_a_kernel_calls(tmp_path, old, new, same) -> None:
    def mark(source: str) -> str:
        return launches.fingerprint(launch(module_of(tmp_path, source).kernel), "sm_90")

    assert (mark(SOURCE) == mark(SOURCE.replace(old, new))) is same


def test_a_fingerprint_is_of_the_launch_and_the_target(kernel) -> None:
    def mark(target="sm_90", **values):
        return launches.fingerprint(launch(kernel, **values), target)

    others = (
        mark("sm_100"),
        mark("gfx942"),
        mark(stride=1),
        mark(num_warps=8),
        mark(x=torch.empty(64, dtype=torch.bfloat16, device="meta")),
    )
    assert len({mark(), *others}) == 1 + len(others) and mark() == mark(size=6)


ROW = {"hash": "0", "registers": 100, "spills": 0, "shared": 0, "instructions": 900}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"registers": 108, "instructions": 927}, []),
        ({"registers": 109}, ["registers 100 -> 109"]),
        ({"instructions": 928}, ["instructions 900 -> 928"]),
        ({"spills": 8, "shared": 512}, ["spills 0 -> 8", "shared 0 -> 512"]),
        ({"registers": 50, "instructions": 500}, []),
    ],
)
def test_changes_for_the_worse(change: dict, said: list[str]) -> None:
    assert static.worse(ROW | change, ROW) == said
    few = ROW | {"instructions": 20}
    assert static.worse(few | {"instructions": 28}, few) == []
    assert static.worse(few | {"instructions": 29}, few) == ["instructions 20 -> 29"]


def run_static(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user calls it, and from a process that set the interpreter's switch."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = (sys.executable, root / "bench" / "run.py", "--static", *arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the check needs, which tests may change; it compiles for one GPU."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("bench", "kernels", "fcnfast"):
        leave = shutil.ignore_patterns("__pycache__", "results", "bundled")
        shutil.copytree(root / folder, copy / folder, ignore=leave)
    source = copy / "bench" / "launches.py"
    text, count = re.subn(r"TARGETS = .*", 'TARGETS = ("sm_90",)', source.read_text())
    assert count == 1
    source.write_text(text)
    return copy


def test_only_what_changed_is_compiled_again(checkout: Path) -> None:
    path = checkout / "bench" / "results" / "static.json"
    first = run_static(checkout, "--op", "crop_add")
    assert first.returncode == 0, first.stdout + first.stderr
    table = json.loads(path.read_text())
    rows = table["rows"]
    assert {name.split(" / ")[0] for name in rows} == {
        f"crop_add.{call}" for call, _ in static.OPS["crop_add"]()
    }
    assert f"{len(rows)} of them (*) compiled now" in first.stdout
    assert all(row["registers"] > 0 and row["spills"] == 0 for row in rows.values())

    # One kernel's source changes, and now its rows are as if they had been better before.
    source = checkout / "kernels" / "crop_add.py"
    text = source.read_text()
    assert "y, x = at.y - oy, at.x" in text
    source.write_text(text.replace("y, x = at.y - oy, at.x", "y, x = at.y - oy,  at.x"))
    for row in rows.values():
        row["registers"] -= 9
    path.write_text(json.dumps(table))
    second = run_static(checkout, "--op", "crop_add")
    changed = [name for name in rows if "backward_skip" in name]
    assert second.returncode == 1 and "static check failed" in second.stdout
    assert f"{len(changed)} of them (*) compiled now" in second.stdout
    worse = re.findall(r"^WORSE: (.*): registers \d+ -> \d+$", second.stdout, re.MULTILINE)
    assert sorted(worse) == sorted(changed)
    assert json.loads(path.read_text())["rows"] == rows  # so that it fails again

    accepted = run_static(checkout, "--op", "crop_add", "--accept")
    assert accepted.returncode == 0 and accepted.stdout.count("ACCEPTED: ") == len(changed)
    after = json.loads(path.read_text())["rows"]
    assert {name for name in rows if after[name]["hash"] != rows[name]["hash"]} == set(changed)

    before = path.read_text()
    other = run_static(checkout, "--op", "crop_add", "--target", "sm_75")
    assert other.returncode == 0 and "/ sm_75*" in other.stdout
    assert path.read_text() == before  # another GPU: nothing is kept


def test_bad_arguments_are_refused(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("[]")
    for arguments, message in (
        (("--op", "crop_add", "--table", str(path)), f"{path} is not a static table"),
        (("--op", "nothing"), "invalid choice: 'nothing'"),
        (("--target", "H100"), "--target H100: not a GPU such as sm_90"),
    ):
        run = run_static(root, *arguments)
        assert run.returncode == 2 and message in run.stderr


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
    assert len(counts) == 4 * (1 + 1 + 3 + 1)
    assert max(counts.values()) <= 2, counts


def test_every_kernel_that_is_launched_is_in_the_table(root: Path) -> None:
    """By its name: several files may have a forward_kernel."""
    text = "".join(path.read_text() for path in (root / "kernels").glob("*.py"))
    launched = set(re.findall(r"^\s+(\w+_kernel)\[", text, re.MULTILINE))
    rows = json.loads((root / "bench" / "results" / "static.json").read_text())["rows"]
    assert launched <= {name.split(" / ")[1].split()[0] for name in rows}
    calls = {f"{op}.{call}" for op, calls in static.OPS.items() for call, _ in calls()}
    assert {name.split(" / ")[0] for name in rows} == calls
