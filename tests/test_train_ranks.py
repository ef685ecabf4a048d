"""Two processes train as one does; one that is killed goes on; errors end all, told once."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from fcnfast.cli.commands import STOPPED
from tests.train_tools import final_state, same, untimed


@pytest.fixture(scope="module")
def ranks(scenes, tmp_path_factory, root):
    """Run all scenarios of rank_tools; gives their folder and how their processes ended."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(root / "tests" / "rank_tools.py"), str(scenes), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def close(a, b):
    """The same nested values, to rounding."""
    assert a.keys() == b.keys()
    for key in a:
        atol = max(2e-6, 1e-5 * float(b[key].abs().max()))
        torch.testing.assert_close(
            a[key], b[key], rtol=2e-4, atol=atol, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("kind", ["plain", "heads", "norms"])
def test_steps_of_two_processes_are_those_of_one(ranks, kind):
    """Unequal shares of pixels without a label, one share all of it, three batches a step."""
    out, report = ranks
    assert report[f"{kind}1"]["codes"] == [0] and report[f"{kind}2"]["codes"] == [0, 0]
    one, first, second = (
        torch.load(out / f"{name}.pt") for name in (f"{kind}1.0", f"{kind}2.0", f"{kind}2.1")
    )
    torch.testing.assert_close(first["loss"], one["loss"], rtol=1e-5, atol=0)
    for key in ("gradients", "weights"):
        assert same(first[key], second[key]), key
        close(first[key], one[key])
    assert all(g.abs().max() > 0 for n, g in one["gradients"].items() if "score" in n)


def test_a_run_on_two_processes_is_that_on_one(ranks):
    out, report = ranks
    assert report["two"]["codes"] == report["again"]["codes"] == [0, 0]
    one, two, again = (final_state(out / name) for name in ("one", "two", "again"))
    close(two["model"], one["model"])
    assert two["best"] == pytest.approx(one["best"], abs=1e-3)
    logs = [untimed(out / name) for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 16  # 12 iterations and 4 validations
    for a, b in zip(*logs, strict=True):
        for key in ("loss", "val_mean_iu", "val_pixel_accuracy"):
            assert a[key] == b[key] == "" or float(a[key]) == pytest.approx(float(b[key]), abs=1e-3)
    for key in ("model", "optimizer", "average", "best"):
        assert same(two[key], again[key]), key


def test_sigterm_writes_a_checkpoint_that_another_number_of_processes_takes(ranks):
    out, report = ranks
    assert report["stopped"]["codes"] == [STOPPED, STOPPED]
    assert report["resumed"]["codes"] == [0]
    close(final_state(out / "stopped")["model"], final_state(out / "unstopped")["model"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "the loss is not finite at iteration 5.*checkpoint.pt, iteration 3"),
        ("full", "full/checkpoint.pt: No space left on device"),
        ("classes", "the processes differ in the classes: 11 .*Sky.* in process 0, 11 .class 0"),
        ("pictures", r"the processes differ in the pictures: 6 \(.*, 5 \(.* in process 1"),
        ("folder", "process 1: nowhere: no such data set folder"),
        ("port", "process 0 cannot join the 2 of this run at 127.0.0.1:.*in use"),
        ("odd", "--batch-size 3 counts all processes and must be divisible by 2"),
    ],
)
def test_an_error_ends_all_processes_and_is_told_once(ranks, name, message):
    out, report = ranks
    first, *others = report[name]["errors"]
    assert report[name]["codes"] == [2] * (1 + len(others))
    assert len(first.splitlines()) == 1 and not "".join(others)
    assert re.search(message, first), first
    if name in ("nan", "full"):
        assert final_state(out / name)["iteration"] == 3  # the last good one


def test_a_killed_process_ends_the_others(ranks):
    out, report = ranks
    assert report["killed"]["codes"] == [2, -9]  # and no hang
    assert "process 0 lost another process of this run" in report["killed"]["errors"][0]
    assert final_state(out / "killed")["iteration"] == 3


def test_killed_again_and_again_a_run_ends_with_the_same_bits(ranks):
    out, report = ranks
    assert report["kills"]["write"] == [-9, -9]
    assert set(report["kills"]["anywhere"]) <= {0, -9} and -9 in report["kills"]["anywhere"]
    assert report["long"]["codes"] == report["in one go"]["codes"] == [0]
    a, b = (final_state(out / name) for name in ("in one go", "long"))
    for key in ("iteration", "model", "optimizer", "average", "best"):
        assert same(a[key], b[key]), key
    weights = [(out / name / "last.safetensors").read_bytes() for name in ("in one go", "long")]
    assert weights[0] == weights[1]
    assert not list((out / "long").glob("*.tmp"))


def test_torchrun(scenes, tmp_path, root):
    """The command line as it is used."""
    launch = "-m torch.distributed.run --standalone --nproc_per_node=2 -m fcnfast train"
    flags = f"--data-path {scenes} --weights {scenes / 'tiny.safetensors'} --output-dir run"
    flags += " --crop-size 64 --batch-size 2 --grad-accum 3 --epochs 2 --device cpu -j 1"
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch.split(), *flags.split()]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Finished after 2 iterations (2 epochs)") == 1
    assert "fcnfast predict PHOTOS --weights run/best.safetensors" in done.stdout
    assert final_state(tmp_path / "run")["iteration"] == 2
