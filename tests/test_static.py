"""The static table: recording launches, judging rows, compiling again only what changed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")  # as the kernels' own tests need it, before Triton

pytest.importorskip("triton", reason="no Triton for this platform")

from bench import launches, run, static

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
    found = launch(kernel, **values, num_warps=2)
    assert found.kernel is kernel and found.options == {"num_warps": 2}
    types, fixed, attributes = launches.specialized(found, amd=False)
    names = ["x_ptr", "size", "stride", "more", "BLOCK"]
    assert types == dict(zip(names, (*signature, "constexpr"), strict=True))
    assert list(found.arguments) == names
    assert fixed.items() >= {**constants, "BLOCK": 8}.items()
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


def test_a_fingerprint_is_of_all_that_a_kernel_calls(tmp_path) -> None:
    def mark(old: str = "", new: str = "") -> str:
        changed = module_of(tmp_path, SOURCE.replace(old, new))
        return launches.fingerprint(launch(changed.kernel), "sm_90")

    usual = mark()
    assert mark("x + 1", "x + 2") == usual  # a function that the kernel does not call
    called = (("x * FACTOR", "x + FACTOR"), ("constexpr(2)", "constexpr(3)"))
    for change in (*called, ("+ stride", "- stride"), ('["size"]', '["stride"]')):
        assert mark(*change) != usual, change


def test_a_fingerprint_is_of_the_launch_and_the_target(kernel) -> None:
    def mark(target="sm_90", **values):
        return launches.fingerprint(launch(kernel, **values), target)

    narrow = torch.empty(64, dtype=torch.bfloat16, device="meta")
    others = (mark("sm_100"), mark("gfx942"), mark(stride=1), mark(num_warps=8), mark(x=narrow))
    assert len({mark(), *others}) == 1 + len(others) and mark() == mark(size=6)


ROW = {"registers": 100, "spills": 0, "shared": 0, "instructions": 900}
FEW = ROW | {"instructions": 20}


@pytest.mark.parametrize(
    ("row", "change", "said"),
    [
        (ROW, {"registers": 108, "instructions": 927}, []),
        (ROW, {"registers": 109}, ["registers 100 -> 109"]),
        (ROW, {"instructions": 928}, ["instructions 900 -> 928"]),
        (ROW, {"spills": 8, "shared": 512}, ["spills 0 -> 8", "shared 0 -> 512"]),
        (ROW, {"registers": 50, "instructions": 500}, []),
        (FEW, {"instructions": 28}, []),
        (FEW, {"instructions": 29}, ["instructions 20 -> 29"]),
    ],
)
def test_changes_for_the_worse(row: dict, change: dict, said: list[str]) -> None:
    assert static.worse(row | change, row) == said


@pytest.fixture
def check(kernel, tmp_path, monkeypatch, capsys):
    """Run the check on a table of one call; what stands for a compiler gives the figures, if any.

    Returns the exit code, for which GPUs it compiled, what it printed, and the kept rows.
    """
    compiled: list[str] = []
    monkeypatch.setattr(static, "KEPT", tmp_path / "static.json")
    monkeypatch.setattr(static, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.setitem(static.OPS, "crop_add", lambda: [("call", launcher)])

    def launcher() -> None:
        kernel[(1,)](torch.empty(64, device="meta"), 5, 7, None, BLOCK=8)

    def run_check(figures: dict | None, *arguments: str):
        def compile_for(_, target: str) -> dict:
            compiled.append(target)
            if figures is None:
                raise RuntimeError("no such instruction\nat line 7")
            return figures

        monkeypatch.setattr(static, "compiled", compile_for)
        compiled.clear()
        code = static.main(["--op", "crop_add", *arguments])
        rows = json.loads(static.KEPT.read_text())["rows"] if static.KEPT.exists() else {}
        return code, sorted(compiled), capsys.readouterr().out, rows

    return run_check


ALL = sorted(static.TARGETS)


def test_only_what_changed_is_compiled_again(check) -> None:
    code, compiled, said, first = check(ROW)
    assert (code, compiled) == (0, ALL) and "4 of them (*) compiled now" in said
    assert first.keys() == {f"crop_add.call / kernel / {target}" for target in ALL}
    assert check(ROW)[:2] == (0, [])

    changed = json.loads(static.KEPT.read_text())
    name = "crop_add.call / kernel / sm_90"
    changed["rows"][name] |= {"hash": "another", "registers": 90}
    changed["rows"]["upsample.call / kernel / sm_90"] = first[name]  # an op that is not asked for
    static.KEPT.write_text(json.dumps(changed))
    code, compiled, said, kept = check(ROW)
    assert (code, compiled) == (1, ["sm_90"]) and "static check failed" in said
    assert f"WORSE: {name}: registers 90 -> 100\n" in said
    assert kept == changed["rows"]  # so that it fails again
    code, _, said, kept = check(ROW, "--accept")
    assert code == 0 and f"ACCEPTED: {name}: registers 90 -> 100\n" in said
    assert kept == changed["rows"] | first

    code, compiled, said, again = check(ROW, "--target", "sm_75")
    assert (code, compiled) == (0, ["sm_75"]) and "/ sm_75*" in said
    assert again == kept  # another GPU: nothing is kept


@pytest.mark.parametrize("accept", [(), ("--accept",)])
def test_what_spills_or_does_not_compile_is_not_kept(check, accept) -> None:
    code, compiled, said, rows = check(ROW | {"spills": 8}, *accept)
    assert code == 1 and said.count("FAULT: crop_add.call / kernel / ") == 4
    assert ": spills (8)" in said and rows == {}
    code, compiled, said, rows = check(None, *accept)
    assert (code, compiled, rows) == (1, ALL, {})
    assert said.count(": RuntimeError: no such instruction\n") == 4


def test_bad_arguments_are_refused(check, capsys) -> None:
    for arguments, message in (
        (["--op", "nothing"], "invalid choice: 'nothing'"),
        (["--target", "H100"], "--target H100: not a GPU such as sm_90"),
    ):
        with pytest.raises(SystemExit, match="2"):
            static.main(arguments)
        assert message in capsys.readouterr().err
    static.KEPT.write_text("[]")
    assert static.main(["--op", "crop_add"]) == 2
    assert f"{static.KEPT} is not a static table" in capsys.readouterr().err


def test_the_command_compiles_in_a_process_without_the_interpreter(monkeypatch, root) -> None:
    def started(command, env, check):
        assert command == (sys.executable, str(root / "bench" / "static.py"), "--accept")
        assert "TRITON_INTERPRET" not in env
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(run.subprocess, "run", started)
    assert run.main(["--static", "--accept"]) == 7


def without_interpreter(root: Path, script: str, *arguments: str) -> list[str]:
    """The lines that a script prints where Triton compiles."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(root)}
    command = (sys.executable, "-c", script, *arguments)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# One small kernel of the real table, compiled by a real compiler in a process of its own.
ONE = """
import pathlib, sys
from bench import static
calls = [call for call in static.OPS["crop_add"]() if call[0] == "forward fp32"]
static.OPS["crop_add"], static.KEPT = lambda: calls, pathlib.Path(sys.argv[1])
static.PROCESSES = 1
sys.exit(static.main(["--op", "crop_add", "--target", "sm_90", "gfx942"]))
"""


def test_a_real_kernel_has_figures(root: Path, tmp_path: Path) -> None:
    lines = without_interpreter(root, ONE, str(tmp_path / "none.json"))
    rows = [line.split() for line in lines if line.startswith("crop_add.forward fp32")]
    assert [row[5] for row in rows] == ["gfx942*", "sm_90*"]
    for *_, registers, spills, shared, instructions in rows:
        assert int(registers) > 4 and int(instructions) > 50 and spills == shared == "0"


# Which kernels the ops of a user compile whose pictures all have another size. Printed: the op, the
# dtype, the border, and of each of its kernels how many. Two launches of one variant share a
# compiled kernel on an NVIDIA GPU.
SIZES = """
import random
import torch
from bench.launches import record, specialized
from bench.static import meta
from fcnfast.geometry import SamplingGrid
from fcnfast.kernels import argmax, confusion, cross_entropy

def calls(dtype, size, clamp):
    coarse = [-(-n // 8) for n in size]
    if clamp:
        grid = SamplingGrid.resize(coarse, size)
    else:
        grid = SamplingGrid.centers(coarse, 8, 3.5, size, "zero")
    x, target = meta((2, 21, *coarse), dtype), meta((2, *size), torch.int64)
    yield "argmax", argmax.forward, x, grid, torch.uint8, False
    yield "confusion", confusion.add, meta((21, 21), torch.int64), x, target, grid, 255
    yield "loss", cross_entropy.forward, x, target, None, grid, 255, "mean", 0.0, True
    yield "scaled", cross_entropy.scaled, x.float(), meta(()), meta(()), dtype

pick, seen = random.Random(0), {}
for _ in range(40):
    size = pick.randint(33, 1500), pick.randint(33, 1500)
    for dtype in (torch.float32, torch.bfloat16):
        for clamp in (True, False):
            for op, *call in calls(dtype, size, clamp):
                for launch in record(*call):
                    kernel = f"{launch.kernel.__name__} {launch.arguments.get('EXACT', '')}"
                    key = op, str(dtype), "clamp" if clamp else "zero", kernel
                    variant = f"{specialized(launch, False)} {sorted(launch.options.items())}"
                    seen.setdefault(key, set()).add(variant)
for key, variants in seen.items():
    print(*key, len(variants))
"""


def test_pictures_of_any_size_share_kernels(root: Path) -> None:
    """A GPU's user waits for a compiler twice for a kernel and dtype at most."""
    counts = [int(line.split()[-1]) for line in without_interpreter(root, SIZES)]
    assert len(counts) == 4 * (1 + 1 + 3 + 1) and max(counts) <= 2, counts


def test_every_kernel_that_is_launched_is_in_the_table(root: Path) -> None:
    """By its name: several files may have a forward_kernel."""
    text = "".join(path.read_text() for path in (root / "kernels").glob("*.py"))
    launched = set(re.findall(r"^\s+(\w+_kernel)\[", text, re.MULTILINE))
    rows = json.loads((root / "bench" / "results" / "static.json").read_text())["rows"]
    assert launched <= {name.split(" / ")[1].split()[0] for name in rows}
    calls = {f"{op}.{call}" for op, calls in static.OPS.items() for call, *_ in calls()}
    assert {name.split(" / ")[0] for name in rows} == calls
