"""Imports that import-linter cannot judge: which installation can carry them out, and when.

The floors themselves are contracts in pyproject.toml, checked by `make lint`.
"""

import ast
import re
import sys

import pytest

# What a distribution is imported as, where that is not its own name.
IMPORTED_AS = {"pillow": "PIL"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def imports(text, in_calls):
    """The modules that a file's statements import, relative ones with their dots.

    Only for types (under TYPE_CHECKING) nothing is imported; in functions only if `in_calls`.
    """
    nodes: list[ast.AST] = [ast.parse(text)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            nodes += node.orelse
            continue
        if in_calls or not isinstance(node, FUNCTIONS):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            dot = "" if base.endswith(".") else "."
            yield from (f"{base}{dot}{alias.name}" for alias in node.names)


def faults(text, allowed, in_calls=False):
    """Imports of other projects that are not allowed, and of our kernels, which need Triton."""
    found = []
    for name in imports(text, in_calls):
        ours = name.startswith((".", "fcnfast."))
        top = name.partition(".")[0]
        if ours:
            fine = in_calls or not re.match(r"(fcnfast|\.+)\.?kernels\b", name)
        else:
            fine = top in sys.stdlib_module_names | allowed
        found += [] if fine else [name]
    return found


@pytest.fixture(scope="module")
def allowed(pyproject):
    """Other projects' packages by their import names: of the core, and of all extras for users."""

    def names(needs):
        found = [re.split(r"[^\w-]", need)[0] for need in needs]
        return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in found}

    project = pyproject["project"]
    extras = project["optional-dependencies"]
    needs = [need for name in extras.keys() - {"test", "lint"} for need in extras[name]]
    return names(project["dependencies"]), names(needs)


def test_imports_work_in_every_installation(root, allowed):
    """`import fcnfast` needs neither an extra nor Triton, which is there on Linux alone."""
    core, extras = allowed
    paths = list(root.glob("fcnfast/**/*.py"))
    assert len(paths) > 10
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert faults(text, core - {"triton"}) == [], path
        assert faults(text, core | extras, in_calls=True) == [], path


def test_kernels_import_torch_triton_and_each_other(root):
    for path in root.glob("kernels/*.py"):
        for name in imports(path.read_text(encoding="utf-8"), in_calls=True):
            assert re.match(r"\.\w|(torch|triton)\b", name) or (
                name.partition(".")[0] in sys.stdlib_module_names
            ), f"{path} imports {name}"


@pytest.mark.parametrize(
    ("text", "early", "late"),
    [
        ("import torch, numpy, PIL.Image, json\nfrom . import errors", 0, 0),
        ("import matplotlib.pyplot\nimport triton", 2, 0),
        ("class A:\n    import h5py", 1, 0),
        ("def f():\n    import h5py, pandas", 0, 1),
        ("if TYPE_CHECKING:\n    import h5py\nelse:\n    import matplotlib", 1, 0),
        ("from .. import kernels\nfrom ..kernels.grid import Axis", 2, 0),
        ("def f():\n    from ..kernels import crop_add", 0, 0),
        ("import kernels", 1, 1),
    ],
)
def test_faults_are_found(text, early, late, allowed):
    core, extras = allowed
    assert len(faults(text, core - {"triton"})) == early
    assert len(faults(text, core | extras, in_calls=True)) == late
