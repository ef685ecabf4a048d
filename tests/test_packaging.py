"""The package imports the same way from a wheel, an editable install and a bare checkout.

The floors of the package are contracts in pyproject.toml, checked by `make lint`.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

NOT_SOURCE = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "out", "results"
)
WHERE = "import fcnfast, fcnfast.kernels; print(fcnfast.__file__); print(*fcnfast.kernels.__path__)"


def run(*command, cwd):
    """Run a command without the variables that would show it the checkout; its output."""
    hidden = ("PYTHON", "PYTEST_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=env, **pipes, text=True, timeout=600)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done.stdout


def clean_environment(folder):
    """Make an environment that has the running one's dependencies but not its fcnfast; its Python.

    A .pth file names the running environment's site-packages. The .pth files inside that folder,
    of which an editable install consists, are not followed; a wheel installed there comes later on
    the path than one in the new environment.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(own.strip(), "shared.pth").write_text("\n".join(shared), encoding="utf-8")
    return python


@pytest.fixture(scope="module")
def source(root, tmp_path_factory):
    """A copy of the sources: a build writes into the tree that it builds."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(root, copy, ignore=NOT_SOURCE)
    return copy


@pytest.fixture(scope="module")
def built(source):
    """The source archive, and the wheel built from that archive."""
    run(sys.executable, "-m", "build", "--no-isolation", ".", cwd=source)
    (sdist,), (wheel,) = source.glob("dist/*.tar.gz"), source.glob("dist/*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The Python of an environment with the dependencies alone."""
    return clean_environment(tmp_path_factory.mktemp("bare") / "venv")


def imported_as(needs):
    """What distributions are imported as."""
    found = (re.split(r"[^\w-]", need)[0] for need in needs)
    return {{"pillow": "PIL"}.get(name, name.replace("-", "_")) for name in found}


@pytest.fixture(scope="module")
def extras(pyproject):
    """The packages of all extras for users, by their import names."""
    named = pyproject["project"]["optional-dependencies"].items()
    needs = [need for name, group in named if name not in ("test", "lint") for need in group]
    return imported_as(needs)


def imports(path):
    """The projects that a file imports from, not for types alone; of relative imports the dots."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level or node.module.partition(".")[0]


def test_what_is_imported_is_required(root, pyproject, extras):
    """The kernels import torch, Triton and each other alone."""
    core = imported_as(pyproject["project"]["dependencies"])
    stdlib = sys.stdlib_module_names
    ours = [set(imports(path)) for path in root.glob("fcnfast/**/*.py")]
    theirs = [set(imports(path)) for path in root.glob("kernels/*.py")]
    assert {"h5py"} < set.union(*ours) <= core | extras | stdlib | {".", ".."}
    assert set.union(*theirs) - stdlib == {".", "torch", "triton"}


def test_torch_and_triton_are_pinned_for_tests_alone(root, pyproject):
    """The package's own bounds are open."""
    needs = {n.name: n.specifier for n in map(Requirement, pyproject["project"]["dependencies"])}
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert sorted(pin.name for pin in pins) == ["torch", "triton"]
    for pin in pins:
        assert {bound.operator for bound in needs[pin.name]} == {">="}
        (exact,) = pin.specifier
        assert exact.operator == "==" and needs[pin.name].contains(exact.version)


def test_wheel_holds_the_package_and_nothing_else(built, root):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
    metadata = {name for name in names if re.match(r"fcnfast-[^/]+\.dist-info/", name)}
    assert any(name.endswith("/licenses/LICENSE") for name in metadata)

    assert not (root / "kernels" / "__init__.py").exists()
    wanted = {path.relative_to(root) for path in root.glob("fcnfast/**/*.py")}
    wanted |= {"fcnfast" / path.relative_to(root) for path in root.glob("kernels/**/*.py")}
    for data in ("fcnfast/data/demo/*", "fcnfast/weights/bundled/*"):
        wanted |= {path.relative_to(root) for path in root.glob(data)}
    wanted |= {Path("fcnfast/py.typed"), Path("fcnfast/report.html")}
    assert names - metadata == {path.as_posix() for path in wanted}


def test_source_archive_can_be_tested(built, root):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    paths = (*root.glob("tests/**/*.py"), *root.glob("bench/*.py"))
    wanted = {path.relative_to(root).as_posix() for path in paths}
    assert wanted | {"Makefile", "constraints.txt", "LICENSE", "README.md"} <= names


def test_a_wheel_imports_without_extras_and_triton(built, root, tmp_path, extras):
    """Installing touches no dependency: there is no index, and pip has to accept those there are.

    Every module but the kernels then imports where extras and Triton, which is there on Linux
    alone, are missing.
    """
    python = clean_environment(tmp_path / "venv")
    said = run(python, "-m", "pip", "install", "--no-index", built[1], cwd=tmp_path)
    (line,) = re.findall(r"^Successfully installed (.*)$", said, re.MULTILINE)
    assert re.fullmatch(r"fcnfast-\S+", line)

    def named(folder, prefix):
        paths = [prefix / path.relative_to(folder) for path in folder.glob("**/*.py")]
        return [".".join(path.with_suffix("").parts) for path in paths]

    kernels = named(root / "kernels", Path("fcnfast/kernels")) if sys.platform == "linux" else []
    code = f"""
import sys
from importlib import import_module
sys.modules |= dict.fromkeys({sorted(extras | {"triton"})})
{WHERE}
list(map(import_module, {named(root / "fcnfast", Path("fcnfast"))}))
del sys.modules["triton"]
list(map(import_module, {kernels}))
"""
    package, found = run(python, "-c", code, cwd=tmp_path).splitlines()
    assert python.parents[1] in Path(package).parents
    assert Path(found) == Path(package).parent / "kernels"
    assert "predict" in run(python.with_name("fcnfast"), "--help", cwd=tmp_path)


def test_editable_install_finds_the_kernels(source, tmp_path):
    python = clean_environment(tmp_path / "venv")
    options = ("--no-index", "--no-build-isolation", "--no-deps")
    run(python, "-m", "pip", "install", *options, "--editable", source, cwd=tmp_path)
    package, kernels = run(python, "-c", WHERE, cwd=tmp_path).splitlines()
    assert Path(package) == source / "fcnfast" / "__init__.py"
    assert Path(kernels) == source / "kernels"
    # A `kernels` that another project installed is found as before; ours is not in its way.
    find = "from importlib.util import find_spec; print(getattr(find_spec('kernels'), 'origin', 0))"
    assert str(source) not in run(python, "-c", find, cwd=tmp_path)


def test_checkout(bare, root, tmp_path):
    """-I, like `pytest` and unlike `python -m pytest`, does not put the root on the path."""
    ours = [str(root / "fcnfast" / "__init__.py"), str(root / "kernels")]
    assert run(bare, "-c", WHERE, cwd=root).splitlines() == ours
    assert "predict" in run(bare, "-m", "fcnfast", "--help", cwd=root)
    assert "usage:" in run(bare, root / "bench" / "run.py", "--help", cwd=tmp_path)  # anywhere
    probe = tmp_path / "test_probe.py"
    found = "[fcnfast.__file__, *fcnfast.kernels.__path__]"
    lines = ("import fcnfast, fcnfast.kernels", "def test_paths():", f" assert {found} == {ours}")
    probe.write_text("\n".join(lines), encoding="utf-8")
    options = ("-p", "no:cacheprovider", "-c", root / "pyproject.toml", "--rootdir", root)
    assert "1 passed" in run(bare, "-I", "-m", "pytest", *options, probe, cwd=root)


def test_make_says_what_an_incomplete_python_lacks(root, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\n', encoding="utf-8")
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}", "venv"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode != 0
    assert "apt install python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()
