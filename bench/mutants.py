"""Change the kernels' device code by rule, and see whether the tests notice.

    python bench/mutants.py                       # every file of kernels/ with device code
    python bench/mutants.py upsample.py --all     # all mutants of one file
    python bench/mutants.py --list                # name them, run nothing

A mutant is one change in a function under ``triton.jit``: a comparison moved by one or reversed, a
sign, a whole number plus or minus one, a mask or a condition left out, minimum for maximum. Of
each file some are drawn, the same every time, the rules in turn: at least --each of a file, and of
every kernel in it. Each runs against the file's tests (TESTS), unshrunk, and stops at the first
failure. Survivors are listed, and those that hang; those in EQUIVALENT, where every reader can see
why no test can tell them, are counted apart. Exits with 1 if there are others.
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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("fcnfast", "kernels", "tests", "pyproject.toml")
HEADS = ("argmax", "confusion", "cross_entropy")
TESTS = {
    "argmax": ("argmax",),
    "confusion": ("confusion",),
    "crop_add": ("crop_add",),
    "cross_entropy": ("cross_entropy",),
    "cross_entropy_corners": ("cross_entropy",),
    "cross_entropy_exact": ("cross_entropy",),
    "cross_entropy_progressions": ("cross_entropy",),
    "deconv": ("deconv",),
    "deconv_backward": ("deconv",),
    "grid": ("grid", "crop_add", "upsample", "deconv", *HEADS),
    "upsample": ("upsample",),
    "upsample_backward": ("upsample",),
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


def _device_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
    ]


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


def mutants(path: Path) -> list[Mutant]:
    """All of a file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for function in _device_functions(tree):
        # Not the annotations, nor the docstring.
        for node in (n for statement in function.body for n in ast.walk(statement)):
            for rule, other in _changed(node):
                names = path.name, function.name, node.lineno, rule
                around: ast.AST = node
                while len(ast.unparse(around)) < CONTEXT and isinstance(parents[around], SHOWN):
                    around = parents[around]
                before = ast.unparse(around)
                with _replaced(parents[node], node, other):
                    after = ast.unparse(other if around is node else around)
                    source = ast.unparse(ast.fix_missing_locations(tree))
                found.append(Mutant(*names, before, after, source))
    return found


@contextlib.contextmanager
def _replaced(parent: ast.AST, node: ast.AST, other: ast.AST) -> Iterator[None]:
    """Within, `other` stands in the place of `node`."""
    for field, value in ast.iter_fields(parent):
        if value is node:
            setattr(parent, field, other)
            yield
            setattr(parent, field, node)
        elif isinstance(value, list) and any(item is node for item in value):
            value[value.index(node)] = other
            yield
            value[value.index(other)] = node


def _source(stem: str) -> Path:
    return ROOT / "kernels" / f"{stem}.py"


def drawn(path: Path, each: int) -> list[Mutant]:
    """Some of a file's: the rules in turn, each in a random order that is always the same."""
    every = mutants(path)
    random.Random(path.name).shuffle(every)
    kernels = sorted({m.function for m in every if m.function.endswith("_kernel")})

    def take(among: list[Mutant], least: int) -> None:
        rules = {m.rule: [o for o in among if o.rule == m.rule] for m in among}
        while any(rules.values()) and sum(m in taken for m in among) < least:
            taken.update(dict.fromkeys(rule.pop() for rule in rules.values() if rule))

    taken: dict[Mutant, None] = {}
    take(every, each * max(1, len(kernels)))
    for kernel in kernels:
        take([m for m in every if m.function == kernel], each)
    return list(taken)


@contextlib.contextmanager
def checkout(files: dict[str, str]) -> Iterator[Path]:
    """A copy of the checkout in which some kernels have another source."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for name in COPIED:
            if (ROOT / name).is_dir():
                skip = shutil.ignore_patterns("__pycache__", "*.safetensors")
                shutil.copytree(ROOT / name, Path(folder, name), ignore=skip)
            else:
                shutil.copy(ROOT / name, Path(folder, name))
        for name, source in files.items():
            Path(folder, "kernels", name).write_text(source, encoding="utf-8")
        yield Path(folder)


def verdict(files: dict[str, str], tests: Mapping[str, float | None]) -> str:
    """ "survived", "killed", or "too long", of the checkout with these sources.

    A test file has its seconds, or all the time it takes.
    """
    environment = {
        **os.environ, "TRITON_INTERPRET": "1", "HYPOTHESIS_PROFILE": "mutants",
        "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    with checkout(files) as folder:
        for test, seconds in tests.items():
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


def known() -> dict[str, str]:
    """The mutants that no test can tell, by name, and why."""
    reasons: dict[str, str] = {}
    names: list[str] = []
    for line in EQUIVALENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            names.append(line.strip())
        elif line and not line.startswith("#"):
            reasons.update(dict.fromkeys(names, line))
            names = []
    return reasons


def main() -> int:
    """Run the mutants; the exit code."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("files", nargs="*", metavar="FILE", help="of kernels/ (default: all with device code)")
    option("--each", type=int, default=15, metavar="N", help="mutants a kernel (default: 15)")
    option("--all", action="store_true", help="every mutant there is")
    option("--jobs", type=int, default=2, metavar="N", help="at a time (default: 2)")
    option("--list", action="store_true", help="name them and run nothing")
    options = parser.parse_args()
    unknown = [f for f in options.files if f.removesuffix(".py") not in TESTS]
    if unknown:
        parser.error(f"no device code in kernels/{unknown[0]}; there is {', '.join(TESTS)}")
    stems = [f.removesuffix(".py") for f in options.files] or list(TESTS)
    chosen = []
    for path in map(_source, stems):
        chosen += mutants(path) if options.all else drawn(path, options.each)
    if options.list:
        print(*(f"{m.file}:{m.line} {m.name}" for m in chosen), sep="\n")
        return 0
    excused = known()
    unknown = excused.keys() - {m.name for stem in TESTS for m in mutants(_source(stem))}
    if unknown:
        print(*(f"no such mutant: {name}" for name in unknown), sep="\n", file=sys.stderr)
        return 2
    left, begin = [], time.monotonic()
    limits: dict[str, float] = {}

    def unchanged(test: str) -> str | None:
        started = time.monotonic()
        if verdict({}, {test: None}) != "survived":
            return test
        limits[test] = PATIENCE * (time.monotonic() - started)
        return None

    def run(mutant: Mutant) -> tuple[Mutant, str]:
        tests = TESTS[mutant.file.removesuffix(".py")]
        return mutant, verdict({mutant.file: mutant.source}, {t: limits[t] for t in tests})

    counts: dict[str, int] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for fails in pool.map(unchanged, dict.fromkeys(t for stem in stems for t in TESTS[stem])):
            if fails:
                print(f"tests/test_kernel_{fails}.py fails without any change", file=sys.stderr)
                return 2
        for number, (mutant, found) in enumerate(pool.map(run, chosen), 1):
            if found == "survived" and mutant.name in excused:
                found = "equivalent"
            counts[found] = counts.get(found, 0) + 1
            if found != "killed":
                print(f"{found}: {mutant.file}:{mutant.line} {mutant.name}", flush=True)
            if found in ("survived", "too long"):
                left.append(mutant)
            if sys.stderr.isatty():
                print(f"{number} of {len(chosen)}", end="\r", file=sys.stderr, flush=True)
    said = ", ".join(f"{n} {found}" for found, n in sorted(counts.items()))
    print(f"{len(chosen)} mutants in {(time.monotonic() - begin) / 60:.0f} minutes: {said}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
