"""bench/gpu_check.sh: its phases go on when one fails, and the exit code tells."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Stands in for the Python of a machine with a GPU; without xdist and matplotlib. What it is called
# with goes to a log, and what the environment names fails.
PYTHON = """\
#!/usr/bin/env bash
case "$1" in
    -) cat >/dev/null; echo "Some GPU, torch 2, triton 3" >&2; echo some-gpu; exit 0 ;;
    -c) exit 1 ;;
    -m) what="tests" ;;
    bench/run.py) what="$5 $7"; [[ "$*" == *"--json"* ]] && echo "{}" >"${11}" ;;
esac
echo "$TRITON_INTERPRET $what: $*" >>"$LOG"
sleep "${SLOW:-0}"
echo "said by $what"
[[ "$what" != "$FAILS" ]]
"""


@pytest.fixture
def check(root: Path, tmp_path: Path):
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(*arguments: str, **settings: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        log.write_text("")
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {"PYTHON": str(python), "LOG": str(log), **settings}
        command = (root / "bench" / "gpu_check.sh", "--output", tmp_path / "out", *arguments)
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        return done, [line.partition(":")[0].strip() for line in log.read_text().splitlines()]

    return run


ALL = [f"{d} {s}" for d in ("float32", "bfloat16") for s in ("voc", "cityscapes", "ade20k", "coco")]


def test_all_phases(check, tmp_path: Path) -> None:
    done, ran = check()
    assert done.returncode == 0, done.stderr
    assert ran == ["0 tests", *ALL]
    assert "Some GPU" in done.stderr and "said by bfloat16 coco" in done.stdout
    files = {path.name for path in (tmp_path / "out").iterdir()}
    kinds = ("json", "txt")
    assert files == {"tests.txt"} | {f"{s.replace(' ', '-')}.{k}" for s in ALL for k in kinds}


@pytest.mark.parametrize("fails", ["tests", "float32 voc", "bfloat16 coco"])
def test_what_fails_does_not_stop_the_rest(check, fails: str) -> None:
    done, ran = check(FAILS=fails)
    assert done.returncode == 1
    assert len(ran) == 9 and done.stderr.splitlines()[-1] == f"FAILED: {fails}"


def test_chosen_phases_and_options(check) -> None:
    done, ran = check("--phases", "bfloat16", "--suites", "voc,coco", "--", "--no-compile")
    assert done.returncode == 0 and ran == ["bfloat16 voc", "bfloat16 coco"]


def test_time_is_shared_out(check) -> None:
    done, _ = check("--phases", "tests,float32", "--suites", "voc", "--minutes", "2", SLOW="1")
    assert "== tests (60 s)" in done.stdout
    assert re.search(r"== float32 voc \(11\d s\)", done.stdout)  # what the tests left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phases", "training"], "no phase 'training'"),
        (["--minutes", "0"], "--minutes must be a whole number of minutes, not '0'"),
        (["--fast"], "unknown option --fast"),
    ],
)
def test_bad_options(check, arguments, message) -> None:
    done, ran = check(*arguments)
    assert done.returncode == 2 and message in done.stderr and not ran


def test_without_a_gpu_it_says_so(root: Path, tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    environment["PYTHON"] = sys.executable
    command = (root / "bench" / "gpu_check.sh", "--output", tmp_path / "out")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "finds no GPU here: nothing to check" in done.stderr
    assert not (tmp_path / "out").exists()
