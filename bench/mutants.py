"""Change the kernels' device code by rule, and see whether the tests notice.

    python bench/mutants.py                           # every file of kernels/ with device code
    python bench/mutants.py upsample.py --each 9999   # all mutants of one file
    python bench/mutants.py --list                    # name them, run nothing

A mutant is one change in a function under ``triton.jit``: a comparison moved by one or reversed, a
sign, a whole number plus or minus one, a mask or a condition left out, minimum for maximum. Of each
file --each are drawn, the same every time, functions and rules in turn. Each runs against the
file's tests, unshrunk, and stops at the first failure. Survivors are listed, and those that hang;
those in equivalent_mutants.txt, where every reader can see why no test can tell them, are counted
apart. Exits with 1 if there are others.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("fcnfast", "kernels", "tests")
# What tests a file, where that is not tests/test_kernel_NAME.py of a name that its own begins with.
SHARED = {
    "grid": ("grid", "crop_add", "upsample", "deconv", "argmax", "confusion", "cross_entropy"),
    "winners": ("argmax", "confusion"),
}
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip
CONTEXT = 20  # letters, at least, of what is shown around a change, if it is of these kinds
SHOWN = ast.expr | ast.keyword | ast.Assign | ast.AugAssign
PATIENCE = 4  # the time of the unchanged tests, before a mutant is said to hang
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")


class Mutant(NamedTuple):
    """One change: where, by which rule, and the source of the whole file with it."""

    file: str
    function: str
    line: int
    rule: str
    before: str
    after: str
    source: str

    @property
    def name(self) -> str:
        """The same as long as the changed expression is; its line may move."""
        return f"{self.file} {self.function}: {self.before}  ->  {self.after}"


def _changed(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in a node's place: the rule and the other node."""
    other = copy.deepcopy(node)
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in COMPARISONS:
                other = copy.deepcopy(node)
                other.ops[i] = COMPARISONS[type(op)]()
                yield "comparison", other
    elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub):
        other.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
        yield "sign", other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", other.operand
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        if not any(isinstance(n, ast.Constant) for n in (node.left, node.right)):
            yield "mask", other.left
            yield "mask", other.right
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        for step in (1, -1):
            yield "constant", ast.Constant(node.value + step)
    elif isinstance(node, ast.Constant) and type(node.value) is float:
        yield "constant", ast.Constant(node.value + 1)
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called in ("tl.minimum", "tl.maximum"):
            name = "maximum" if called == "tl.minimum" else "minimum"
            other.func = ast.parse(f"tl.{name}", mode="eval").body
            yield "bound", other
        if called in ("tl.load", "tl.store") and any(k.arg == "mask" for k in node.keywords):
            other.keywords = [k for k in node.keywords if k.arg not in ("mask", "other")]
            yield "mask", other
        if called == "tl.where":
            yield "condition", other.args[1]
            yield "condition", other.args[2]


def _replace(parent: ast.AST, node: ast.AST, other: ast.AST) -> None:
    """Put `other` in the place of `node`."""
    for field, value in ast.iter_fields(parent):
        if value is node:
            setattr(parent, field, other)
        elif isinstance(value, list):
            value[:] = [other if item is node else item for item in value]


def mutants(path: Path) -> list[Mutant]:
    """All of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        if not any("triton.jit" in ast.unparse(d) for d in function.decorator_list):
            continue
        for node in (n for statement in function.body for n in ast.walk(statement)):
            for rule, other in _changed(node):
                around: ast.AST = node
                while len(ast.unparse(around)) < CONTEXT and isinstance(parents[around], SHOWN):
                    around = parents[around]
                before = ast.unparse(around)
                _replace(parents[node], node, other)
                after = ast.unparse(other if around is node else around)
                source = ast.unparse(ast.fix_missing_locations(tree))
                _replace(parents[node], other, node)
                where = path.name, function.name, node.lineno, rule
                found.append(Mutant(*where, before, after, source))
    return found


def drawn(every: list[Mutant], number: int) -> list[Mutant]:
    """Some of a file's mutants: functions and rules in turn, in a random order, always the same."""
    groups: dict[tuple[str, str], list[Mutant]] = {}
    for mutant in random.Random(0).sample(every, len(every)):
        groups.setdefault((mutant.function, mutant.rule), []).append(mutant)
    return [m for turn in zip_longest(*groups.values()) for m in turn if m][:number]


def tests_of(file: str) -> tuple[str, ...]:
    """The names of the test files of one of kernels/."""
    stem, paths = Path(file).stem, (ROOT / "tests").glob("test_kernel_*")
    names = [path.stem.removeprefix("test_kernel_") for path in paths]
    return SHARED.get(stem) or tuple(name for name in names if f"{stem}_".startswith(f"{name}_"))


def verdict(limits: dict[str, float | None], file: str = "", source: str = "") -> str:
    """ "survived", "killed" or "too long": tests, each with its seconds, of a copy of the checkout
    in which a file of kernels/ may have another source."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        skip = shutil.ignore_patterns("__pycache__", "*.safetensors")
        for name in COPIED:
            shutil.copytree(ROOT / name, Path(folder, name), ignore=skip)
        shutil.copy(ROOT / "pyproject.toml", folder)
        if file:
            Path(folder, "kernels", file).write_text(source, encoding="utf-8")
        return _tested(folder, limits)


def _tested(folder: str, limits: dict[str, float | None]) -> str:
    environment = {
        **os.environ, "TRITON_INTERPRET": "1", "HYPOTHESIS_PROFILE": "mutants",
        "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    for test, seconds in limits.items():
        command = (
            sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=line",
            "-p", "no:cacheprovider", "-p", "no:xdist", f"tests/test_kernel_{test}.py",
        )  # fmt: skip
        process = subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            if process.wait(seconds) != 0:
                return "killed"
        except subprocess.TimeoutExpired:
            return "too long"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "survived"


def run(chosen: list[Mutant], equivalent: set[str], jobs: int) -> int:
    """Run mutants and print what was not killed; the exit code."""
    limits: dict[str, float | None] = {}
    for test in dict.fromkeys(test for m in chosen for test in tests_of(m.file)):
        begin = time.monotonic()
        if verdict({test: None}) != "survived":
            print(f"tests/test_kernel_{test}.py fails without any change", file=sys.stderr)
            return 2
        limits[test] = PATIENCE * (time.monotonic() - begin)

    def one(mutant: Mutant) -> str:
        own = {test: limits[test] for test in tests_of(mutant.file)}
        found = verdict(own, mutant.file, mutant.source)
        found = "equivalent" if found == "survived" and mutant.name in equivalent else found
        if found != "killed":
            print(f"{found}: {mutant.file}:{mutant.line} {mutant.name}", flush=True)
        return found

    begin = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        counts = Counter(pool.map(one, chosen))
    said = ", ".join(f"{n} {found}" for found, n in sorted(counts.items()))
    print(f"{len(chosen)} mutants in {(time.monotonic() - begin) / 60:.0f} minutes: {said}")
    return 1 if counts["survived"] or counts["too long"] else 0


def main() -> int:
    """Choose and run the mutants; the exit code."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("files", nargs="*", metavar="FILE", help="of kernels/ (default: all with device code)")
    option("--each", type=int, default=15, metavar="N", help="mutants of a file (default: 15)")
    option("--jobs", type=int, default=2, metavar="N", help="at a time (default: 2)")
    option("--list", action="store_true", help="name them and run nothing")
    options = parser.parse_args()
    paths = [ROOT / "kernels" / file for file in options.files]
    for path in (path for path in paths if not path.exists()):
        parser.error(f"there is no kernels/{path.name}")
    found = {path: mutants(path) for path in paths or sorted((ROOT / "kernels").glob("*.py"))}
    chosen = [m for every in found.values() for m in drawn(every, options.each)]
    if not chosen:
        parser.error(f"no device code in {', '.join(options.files)}")
    if options.list:
        print(*(f"{m.file}:{m.line} {m.name}" for m in chosen), sep="\n")
        return 0
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines()
    equivalent = {line.strip() for line in lines if line.startswith("    ")}
    names = {m.name for every in found.values() for m in every}
    for name in sorted(n for n in equivalent - names if n.split()[0] in {p.name for p in found}):
        print(f"{EQUIVALENT.name}: no such mutant any more: {name}", file=sys.stderr)
    return run(chosen, equivalent, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
