"""What all tests share: a fair part of the machine, hypothesis profiles, the project's settings."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Workers that each start a thread for every core slow each other down. Set before torch is
# imported, and in the environment, so that the commands which tests start follow it too.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))

# Read when triton is imported, which torch does, too: whatever test file comes first, the kernels'
# tests find an interpreter. TRITON_INTERPRET=0 runs them on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch  # noqa: E402 - reads the environment

# No deadline: the first example pays for imports and compilers. too_slow measures the machine.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", settings.get_profile("dev"), derandomize=True, max_examples=50, print_blob=True
)
# To find out whether a test fails, not of what.
settings.register_profile(
    "mutants", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's root folder."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def pyproject(root: Path) -> dict[str, Any]:
    """The settings in pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a generator is the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of a small network that sees several of CamVid's classes in any picture."""
    from tests.model_tools import write_small_weights

    return str(write_small_weights(tmp_path_factory.mktemp("weights") / "small.safetensors"))


@pytest.fixture(scope="session")
def segmenter(weights: str) -> Any:
    """A Segmenter of that network."""
    from fcnfast.segment import Segmenter

    return Segmenter(weights, "cpu")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few pictures of blocks in their classes' colors, train and val, and a tiny network."""
    from tests.train_tools import write_scenes

    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """New networks have few channels, and the same values each time."""
    from tests.model_tools import narrow_trunks

    narrow_trunks(monkeypatch)
    torch.manual_seed(0)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], here: Path) -> Any:
    """A command that must be refused: exit code 2, one line on stderr, and nothing written."""
    from fcnfast.cli import main
    from tests.model_tools import contents

    def check(*arguments: str, says: str) -> None:
        before = contents(here)
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"fcnfast: error: [^\n]+\n", err)
        assert re.search(says, err)
        assert contents(here) == before and not Path("out").exists()

    return check
