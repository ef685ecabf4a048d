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
    bench/run.py)
        what="$5 $7"
        [[ "$5" == shares ]] && what="shares"
        [[ "$5" != shares && "$*" == *"--json"* ]] && echo "{}" >"${11}" ;;
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

    def run(*arguments: str, **settings: str):
        """How it ended, the steps that it took, and the log's lines."""
        log.write_text("")
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {"PYTHON": str(python), "LOG": str(log), "OUTPUT": str(tmp_path / "out")}
        environment |= settings
        command = (root / "bench" / "gpu_check.sh", *arguments)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        lines = log.read_text().splitlines()
        return done, [line.partition(":")[0].strip() for line in lines], lines

    return run


ALL = [f"{d} {s}" for d in ("float32", "bfloat16") for s in ("voc", "cityscapes", "ade20k", "coco")]


def test_all_phases(check, tmp_path: Path) -> None:
    done, steps, _ = check()
    assert done.returncode == 0, done.stderr
    assert steps == ["0 tests", *ALL, "shares"]
    assert "Some GPU" in done.stderr and "said by bfloat16 coco" in done.stdout
    files = {path.name for path in (tmp_path / "out").iterdir()}
    kinds = ("json", "txt")
    assert files == {"tests.txt", "shares.txt"} | {
        f"{s.replace(' ', '-')}.{k}" for s in ALL for k in kinds
    }


@pytest.mark.parametrize("fails", ["tests", "float32 voc", "bfloat16 coco"])
def test_what_fails_does_not_stop_the_rest(check, fails: str) -> None:
    done, steps, _ = check(FAILS=fails)
    assert done.returncode == 1
    assert len(steps) == 10 and done.stderr.splitlines()[-1] == f"FAILED: {fails}"


def test_chosen_phases_and_options(check) -> None:
    done, steps, log = check("--no-compile", PHASES="bfloat16", SUITES="voc coco")
    assert done.returncode == 0 and steps == ["bfloat16 voc", "bfloat16 coco"]
    assert all(line.endswith(" --no-compile") for line in log)


def test_time_is_shared_out(check) -> None:
    done, *_ = check(PHASES="tests float32", SUITES="voc", MINUTES="2", SLOW="1")
    assert re.search(r"== tests \((5[5-9]|60) s\)", done.stdout)  # a start may take seconds
    assert re.search(r"== float32 voc \(11\d s\)", done.stdout)  # what the tests left


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PHASES", "training", "no phase 'training'"),
        ("MINUTES", "0", "MINUTES must be a whole number of minutes, not '0'"),
        ("PYTHON", sys.executable, "finds no GPU here: nothing to check"),
    ],
)
def test_what_cannot_be_is_refused(check, tmp_path: Path, name, value, message) -> None:
    done, _, log = check(**{name: value, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""})
    assert done.returncode == 2 and message in done.stderr and not log
    assert name == "PHASES" or not (tmp_path / "out").exists()
