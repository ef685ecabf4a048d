"""Who may import whom: a file only from floors below its own, nothing in a circle, no strangers.

The sources are read, not run: imports inside functions count too. Under TYPE_CHECKING a file may
name types of its own floor as well, since no import is carried out.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

# A room is a file, or a folder with all below it; in a room the files may use each other. The file
# that hands on the public names, fcnfast/__init__.py, stands on the roof.
ROOF = "fcnfast"
KERNELS = "fcnfast.kernels"
FLOORS = {
    ROOF: 7,
    "fcnfast.__main__": 6,
    "fcnfast.cli": 5,
    "fcnfast.train": 4,
    "fcnfast.evaluate": 3.8,  # training scores with it
    "fcnfast.segment": 4,
    "fcnfast.models": 3,
    "fcnfast.lazy": 3,
    "bench": 3.5,  # above the networks
    "fcnfast.nn": 2.5,  # between the ops and the networks
    "fcnfast.ops": 2,
    "fcnfast.reference": 2,
    "fcnfast.theory": 3.2,  # reads the networks, too
    KERNELS: 1,
    "fcnfast.tiled": 1.5,  # between the geometry and the ops
    "fcnfast.geometry": 1,
    "fcnfast.weights": 1,
    "fcnfast.data": 1,
    "fcnfast.metrics": 1,
    "fcnfast.device": 1,
    "fcnfast.files": 0.5,
    "fcnfast.errors": 0,
    "fcnfast._version": 0,
}
# What a distribution is imported as, where that is not its own name.
IMPORTED_AS = {"pillow": "PIL", "protobuf": "google"}


When = Literal["import", "call", "never"]
TYPES_ONLY = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Module(NamedTuple):
    """A file's text, and the package that its relative imports start from."""

    package: str
    text: str


class Import(NamedTuple):
    """One imported name, and when it is carried out: as the file is imported, in a call, never."""

    target: str
    line: int
    when: When
    relative: bool


class Allowed(NamedTuple):
    """Other projects' packages by their import names: of the core and of all extras."""

    core: frozenset[str]
    extras: frozenset[str]


Project = Mapping[str, Module]


def read_project(root: Path) -> Project:
    """Every file of fcnfast/, kernels/ (as fcnfast.kernels) and bench/ by its module's name."""
    places = [(path, path.relative_to(root)) for path in root.glob("fcnfast/**/*.py")]
    places += [(path, path.relative_to(root)) for path in root.glob("bench/**/*.py")]
    places += [(path, ROOF / path.relative_to(root)) for path in root.glob("kernels/**/*.py")]
    project = {}
    for path, place in places:
        package = ".".join(place.parent.parts)
        name = package if place.stem == "__init__" else f"{package}.{place.stem}"
        project[name] = Module(package, path.read_text(encoding="utf-8"))
    return project


def statements(node: ast.AST, when: When = "import") -> Iterator[tuple[ast.AST, When]]:
    """Every node below `node`, with when it runs."""
    unseen: list[ast.stmt] = []
    if isinstance(node, ast.If) and ast.unparse(node.test) in TYPES_ONLY:
        unseen = node.body
    elif when == "import" and isinstance(node, FUNCTIONS):
        when = "call"
    for child in ast.iter_child_nodes(node):
        inner = "never" if child in unseen else when
        yield child, inner
        yield from statements(child, inner)


def find_imports(module: Module, known: Project) -> list[Import]:
    """What a file imports: statements, and importlib's or the built-in function on a plain string.

    `from a import b` means the module a.b where the project has one, otherwise a.
    """

    def absolute(name: str, level: int) -> str:
        parts = module.package.split(".")
        if level > len(parts):
            raise ValueError(f"a relative import climbs out of {module.package}")
        return ".".join([*parts[: len(parts) - level + 1], name]).rstrip(".") if level else name

    found = []
    for node, when in statements(ast.parse(module.text)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, when, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node.module or "", node.level)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                # kernels/ is a package without a file of its own
                target = inner if inner in known or inner == KERNELS else base
                found.append(Import(target, node.lineno, when, node.level > 0))
        elif isinstance(node, ast.Call) and re.search(
            r"\b(import_module|__import__)$", ast.unparse(node.func)
        ):
            given = node.args[0] if node.args else None
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                level = len(given.value) - len(given.value.lstrip("."))
                target = absolute(given.value.lstrip("."), level)
                found.append(Import(target, node.lineno, when, level > 0))
    return found


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in (ROOF, "bench")


def room_of(name: str) -> str | None:
    """The room that a module stands in: the longest name in the table that it begins with."""
    while name and name not in FLOORS:
        name = name.rpartition(".")[0]
    return name or None


def floor_faults(project: Project) -> list[str]:
    """Imports that lead to the same floor or up, and files that have no floor."""
    faults = []
    for name, module in project.items():
        room = room_of(name)
        if room is None or (room == ROOF and name != ROOF):
            faults.append(f"{name} has no floor")
            continue
        for found in find_imports(module, project):
            if not is_ours(found.target):
                continue
            other = room_of(found.target)
            if other == room:
                continue
            level = other is not None and FLOORS[other] == FLOORS[room]
            if other is None or FLOORS[other] > FLOORS[room] or (level and found.when != "never"):
                faults.append(f"{name}:{found.line} imports {found.target}")
    return faults


def circle(project: Project) -> list[str]:
    """The modules of one circle of imports, or nothing."""
    graph = {
        name: {found.target for found in find_imports(module, project) if found.target != name}
        for name, module in project.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def stranger_faults(project: Project, allowed: Allowed) -> list[str]:
    """Imports that some supported installation cannot carry out.

    At a file's top level only the core's packages, without Triton, which is there on Linux alone:
    `import fcnfast` has to work everywhere. In functions also the extras' packages. Kernels use
    torch, Triton and, by relative imports, each other. The bench may use what it wants.
    """
    faults = []
    for name, module in project.items():
        kernel = name.startswith(f"{KERNELS}.")
        for found in find_imports(module, project):
            top = found.target.partition(".")[0]
            if top in sys.stdlib_module_names or room_of(name) == "bench":
                continue
            if kernel:
                sibling = found.relative and found.target.startswith(KERNELS)
                fine = sibling or top in ("torch", "triton")
                fine |= is_ours(found.target) and found.when == "never"
            elif is_ours(found.target):
                fine = found.when != "import" or room_of(found.target) != KERNELS
            else:
                fine = top in allowed.core - {"triton"}
                fine |= found.when != "import" and top in allowed.core | allowed.extras
            if not fine:
                faults.append(f"{name}:{found.line} imports {found.target}")
    return faults


@pytest.fixture(scope="module")
def project(root: Path) -> Project:
    return read_project(root)


@pytest.fixture(scope="module")
def allowed(pyproject: dict[str, Any]) -> Allowed:
    def names(needs: list[str]) -> frozenset[str]:
        found = [re.split(r"[^\w-]", need)[0] for need in needs]
        return frozenset(IMPORTED_AS.get(name, name.replace("-", "_")) for name in found)

    extras = pyproject["project"]["optional-dependencies"]
    for_users = [need for name in extras if name not in ("test", "lint") for need in extras[name]]
    return Allowed(names(pyproject["project"]["dependencies"]), names(for_users))


def test_files_import_from_floors_below(project: Project) -> None:
    assert len(project) > 10
    assert floor_faults(project) == []


def test_nothing_imports_in_a_circle(project: Project) -> None:
    assert circle(project) == []


def test_imports_work_in_every_installation(project: Project, allowed: Allowed) -> None:
    assert stranger_faults(project, allowed) == []


EXAMPLES = {
    "from .ops import upsample": ["floor"],
    "from . import cli": ["floor"],
    "import fcnfast.segment": ["floor"],
    "from fcnfast import Segmenter": ["floor"],
    "def f():\n    from .train import loop": ["floor"],
    "import importlib\nimportlib.import_module('.cli', 'fcnfast')": ["floor"],
    "from fcnfast import errors": [],
    "from .geometry import SamplingGrid": ["floor"],
    "import torch, numpy, PIL.Image, json": [],
    "import matplotlib.pyplot": ["stranger"],
    "import triton": ["stranger"],
    "class A:\n    import h5py": ["stranger"],
    "def f():\n    import matplotlib.pyplot": [],
    "if TYPE_CHECKING:\n    import h5py\nelse:\n    import matplotlib": ["stranger"],
    "if TYPE_CHECKING:\n    from .geometry import SamplingGrid": [],
    "if TYPE_CHECKING:\n    from .ops import upsample": ["floor"],
    "def f():\n    import pandas": ["stranger"],
    "import kernels": ["stranger"],
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_faults_are_found(text: str, allowed: Allowed) -> None:
    """The checks themselves, on a metrics file (floor 1) with this text."""
    names = ("fcnfast", "fcnfast.errors", "fcnfast.ops", "fcnfast.cli", "fcnfast.metrics")
    example = dict.fromkeys(names, Module(ROOF, "")) | {"fcnfast.metrics": Module(ROOF, text)}
    found = ["floor"] * len(floor_faults(example))
    found += ["stranger"] * len(stranger_faults(example, allowed))
    assert found == EXAMPLES[text]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("import math, torch, triton\nfrom ._tiles import load\nfrom . import upsample", 0),
        ("from fcnfast.kernels import upsample", 1),
        ("from ..geometry import SamplingGrid", 1),
        ("def f():\n    import numpy", 1),
        ("if TYPE_CHECKING:\n    from ..geometry import SamplingGrid", 0),
    ],
)
def test_kernels_import_torch_and_each_other(text: str, faults: int, allowed: Allowed) -> None:
    example = {f"{KERNELS}.upsample": Module(KERNELS, ""), f"{KERNELS}.one": Module(KERNELS, text)}
    assert len(stranger_faults(example, allowed)) == faults


def test_kernels_are_imported_late(allowed: Allowed) -> None:
    late, early = "def f():\n    from ..kernels import crop_add", "from .. import kernels"
    assert stranger_faults({"fcnfast.ops.crop_add": Module("fcnfast.ops", late)}, allowed) == []
    assert stranger_faults({"fcnfast.ops.crop_add": Module("fcnfast.ops", early)}, allowed) != []


def test_circles_are_found() -> None:
    example = {
        "fcnfast.ops.a": Module("fcnfast.ops", "from . import b"),
        "fcnfast.ops.b": Module("fcnfast.ops", "def f():\n    from .a import x"),
    }
    assert {"fcnfast.ops.a", "fcnfast.ops.b"} <= set(circle(example))


def test_files_without_a_floor_are_found() -> None:
    assert floor_faults({"fcnfast.news": Module(ROOF, "")}) == ["fcnfast.news has no floor"]
