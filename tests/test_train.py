"""Training learns, is reproducible, survives being stopped, and names what is wrong."""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fcnfast import evaluate_model, load_model
from fcnfast.cli import main
from fcnfast.data import CAMVID, write_labels
from fcnfast.errors import DatasetError, DivergenceError, InputError, WeightsError
from fcnfast.train import add_arguments, checkpoint, given, resume, start
from fcnfast.train.batches import loader
from tests.model_tools import Runs
from tests.test_images import fail
from tests.train_tools import batch, final_state, rows, same, small, stopped_after, untimed


def test_a_run_learns_and_keeps_what_describes_it(scenes, tmp_path):
    settings = small(scenes, tmp_path / "run", epochs=30, augment=0.0, lr=0.03, val_freq=15)
    start(settings).train(progress=False)
    losses = [float(row["loss"]) for row in rows(tmp_path / "run") if row["loss"]]
    assert losses[-1] < 0.6 * losses[0]
    files = (tmp_path / "run" / "files.txt").read_text().splitlines()
    assert files[:2] == ["train/drive0_0.png", "trainannot/drive0_0.png"] and len(files) == 12
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["lr"] == 0.03
    scored = [row for row in rows(tmp_path / "run") if row["val_mean_iu"]]
    assert [row["iteration"] for row in scored] == ["45", "90"]
    run = resume(str(tmp_path / "run"), {})
    assert same(load_model(tmp_path / "run" / "checkpoint.pt").state_dict(), run.model.state_dict())
    expected = scored[-1]["val_mean_iu"], max(row["val_mean_iu"] for row in scored)
    for name, said in zip(("last", "best"), expected, strict=True):
        model = load_model(tmp_path / "run" / f"{name}.safetensors")
        assert f"{evaluate_model(model, run.val).scores().mean_iu:.4f}" == said
        assert model.table.names == CAMVID.names


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"amp": True, "workers": 1, "crop_size": 64, "batch_size": 1, "grad_accum": 2},
        {"amp": True, "amp_dtype": "fp16", "clip_grad_norm": 1.0},
        {"optimizer": "sgd", "ema_decay": 0.0, "cache": False, "checkpoint_activations": True},
        {"val_split": "", "print_freq": 5},
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(scenes, tmp_path, changes):
    """Also without the weights that it began with."""
    shutil.copy(scenes / "tiny.safetensors", tmp_path / "first.safetensors")
    changes = {**changes, "weights": str(tmp_path / "first.safetensors")}
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    start(small(scenes, whole, **changes)).train(progress=False)
    stopped_after(scenes, parted, 2, **changes)
    (tmp_path / "first.safetensors").unlink()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(1)
    resume(str(parted), {}).train(progress=False)
    a, b = final_state(whole), final_state(parted)
    for key in ("iteration", "model", "optimizer", "average", "best", "scaler"):
        assert same(a[key], b[key]), key
    assert untimed(whole) == untimed(parted)
    files = [(folder / "last.safetensors").read_bytes() for folder in (whole, parted)]
    assert files[0] == files[1]


def test_batches_depend_on_the_iteration_alone(scenes, tmp_path):
    s = small(scenes, tmp_path / "run", seed=5)
    crops = start(s).crops

    def drawn(settings=s, rank=0, world=1, last=7):
        return list(loader(crops, settings, 0, last, rank, world, False).sampler)

    whole = [b[:3] for b in loader(crops, s, 0, 7, 0, 1, False)]
    rest = [b[:3] for b in loader(crops, replace(s, workers=1), 4, 7, 0, 1, False)]
    assert same(whole[4:], rest)
    order = [index for part in drawn(last=3) for *_, index in part]
    assert sorted(order) == list(range(6))  # every picture once an epoch
    # Two processes have the halves of every batch; accumulation takes two batches for a step.
    halves = zip(drawn(rank=0, world=2), drawn(rank=1, world=2), strict=True)
    assert [a + b for a, b in halves] == drawn()
    singles = drawn(replace(s, batch_size=1, grad_accum=2))
    assert [a + b for a, b in zip(singles[::2], singles[1::2], strict=True)] == drawn()
    many = drawn(replace(s, replacement=True), last=30)
    counts = np.bincount([index for part in many for *_, index in part], minlength=6)
    assert counts.sum() == 60 and counts.min() > 0 and counts.max() > 10
    first = [item for part in many[:3] for item in part]
    assert len(set(first)) == 6  # a picture that comes twice is cropped in two ways


def test_class_weights_are_median_over_frequency(scenes, tmp_path):
    run = start(small(scenes, tmp_path / "run", class_weights="median-frequency"))
    count = np.zeros((6, 11))
    for i in range(6):
        count[i] = np.bincount(run.pictures[i].labels.ravel(), minlength=11)[:11]
    frequency = np.array([c.sum() / count[c > 0].sum() if c.any() else np.nan for c in count.T])
    expected = np.where(np.isnan(frequency), 1.0, np.nanmedian(frequency) / frequency)
    assert torch.allclose(run.weight, torch.tensor(expected, dtype=torch.float32))
    changes = {"class_weights": "median-frequency", "class_weight_power": 0.5}
    soft = start(small(scenes, tmp_path / "b", **changes))
    assert torch.allclose(soft.weight, run.weight.sqrt())


def test_the_schedule_rises_then_falls_as_a_power(scenes, tmp_path):
    run = start(small(scenes, tmp_path / "run", epochs=20, warmup=0.15, power=2.0))
    factors = [run._lr_factor(i) for i in range(run.iterations + 1)]
    assert factors[0] == pytest.approx(0.1) and factors[-1] == 0
    assert factors[30] == pytest.approx((1 - 30 / 60) ** 2)


def test_the_average_follows_its_formula(scenes, tmp_path):
    run = start(small(scenes, tmp_path / "run", ema_decay=0.9))
    group, expected = [batch()], None
    for step in range(5):
        run.step(group)
        now = run.model.stem[0][0].weight.detach()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = now.clone() if step == 0 else decay * expected + (1 - decay) * now
    assert torch.allclose(run.averaged.stem[0][0].weight, expected, rtol=1e-5, atol=1e-7)
    assert int(run.averaged.stem[0][1].num_batches_tracked) == 5


def test_a_loss_that_is_not_finite_stops_the_run(scenes, tmp_path):
    run = start(small(scenes, tmp_path / "run"))
    torch.nn.init.constant_(run.model.score.bias, float("nan"))
    with pytest.raises(DivergenceError, match="iteration 2: .*there is no checkpoint yet"):
        run.train(progress=False)
    start(small(scenes, tmp_path / "run"))  # nothing is in the way of another try


def test_weights_that_are_not_finite_are_never_written(scenes, tmp_path):
    """Neither when rows of the log are far apart, nor when the loss was still a number."""
    out = tmp_path / "run"
    run = start(small(scenes, out, print_freq=100, checkpoint_freq=1, val_freq=1))
    whole = run.step

    def step(*batch):
        whole(*batch)
        if run.iteration == 3:
            run.model.stem[0][0].weight.data[0, 0] = float("inf")

    run.step = step
    with pytest.raises(DivergenceError, match="a weight is not finite at iteration 3.*iteration 2"):
        run.train(progress=False)
    state = final_state(out)
    assert state["iteration"] == 2
    assert all(v.isfinite().all() for v in state["model"].values())
    assert not (out / "last.safetensors").exists()  # due after iteration 3


def test_pictures_without_a_label_do_not_stop_a_run(scenes, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(scenes, root)
    for path in sorted((root / "trainannot").iterdir())[:3]:
        write_labels(path, np.full((48, 64), 255, np.uint8), CAMVID.palette)
    settings = small(root, tmp_path / "run", batch_size=1, print_freq=1, crop_size=64, val_split="")
    start(settings).train(progress=False)
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert len(losses) == 24 and losses.count("") == 12
    assert all(float(loss) > 0 for loss in losses if loss)
    changes = {"include": "drive0_[02]*", "class_weights": "median-frequency"}
    with pytest.raises(InputError, match="no labeled pixel"):
        start(small(root, tmp_path / "b", **changes))


def test_a_run_goes_on_where_its_checkpoint_lies(scenes, tmp_path):
    stopped_after(scenes, tmp_path / "run", 4)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "copy" / ".fcnfast-1-0.tmp").write_bytes(b"a write that was killed")
    path = str(tmp_path / "copy" / "checkpoint.pt")
    for change, message in (
        ({"output_dir": "elsewhere"}, "--output-dir elsewhere"),
        ({"lr": 0.5}, "--lr 0.5 differs"),
    ):
        with pytest.raises(InputError, match=message):
            resume(path, change)
    with pytest.raises(InputError, match="already holds a run"):
        start(small(scenes, tmp_path / "run"))
    assert resume(path, {"workers": 1}).settings.workers == 1
    resume(path, {"output_dir": str(tmp_path / "copy")}).train(progress=False)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    names = {p.name for p in (tmp_path / "copy").iterdir()}
    expected = {"checkpoint.pt", "files.txt", "log.csv", "settings.json"}
    assert names == expected | {"last.safetensors", "best.safetensors"}
    assert final_state(tmp_path / "copy")["iteration"] == 12


def test_a_moved_data_set_is_found_and_another_one_refused(scenes, tmp_path):
    stopped_after(scenes, tmp_path / "run", 2)
    path = str(tmp_path / "run" / "checkpoint.pt")
    shutil.copytree(scenes, tmp_path / "moved")
    changes = {"data_path": str(tmp_path / "moved")}
    assert resume(path, changes).settings.data_path == changes["data_path"]
    for folder in ("train", "trainannot"):
        (tmp_path / "moved" / folder / "drive0_0.png").unlink()
    with pytest.raises(InputError, match="not those that the run began with .6 then, 5 now"):
        resume(path, changes)


def test_leaving_pictures_out(scenes, tmp_path):
    apart = {"exclude": "drive0*", "val_split": "train", "val_include": "drive0*"}
    run = start(small(scenes, tmp_path / "run", **apart))
    assert {p.stem[:6] for p, _ in run.pictures.samples} == {"drive1"}
    assert {p.stem[:6] for p, _ in run.val.samples} == {"drive0"}


def test_flags_are_the_settings():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = "--data-path D --output-dir O -b 3 --lr 0.5 --amp --no-cache --optimizer sgd -j 0"
    found = {"data_path": "D", "output_dir": "O", "batch_size": 3, "lr": 0.5, "amp": True}
    found |= {"cache": False, "optimizer": "sgd", "workers": 0}
    assert given(parser.parse_args(text.split())) == found
    assert given(parser.parse_args(["--resume", "x", "--config", "y"])) == {}


def test_bad_settings_are_named(scenes, tmp_path):
    for changes, message in (
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"lr": 0.0}, "--lr"),
        ({"scale_min": 3.0}, "--scale-min"),
        ({"label_smoothing": 2.0}, "--label-smoothing"),
        ({"batch_size": 7}, "--batch-size 7 is more than the 6 pictures"),
        ({"data_path": ""}, "--data-path is needed"),
        ({"output_dir": ""}, "--output-dir is needed"),
        ({"model": "fcn9", "weights": ""}, "fcn9"),
        ({"classes": "camvit"}, "camvit"),
        ({"device": "hpu"}, "hpu"),
        ({"optimizer": "Adam"}, "--optimizer must be adamw or sgd, not 'Adam'"),
        ({"dataset": "vok"}, "--dataset"),
        ({"epochs": 2.5}, "--epochs must be of type int, not 2.5"),
        ({"lr": float("inf")}, "--lr must be a finite number"),
        ({"seed": 1 << 63}, "--seed"),
        ({"momentum": 0.5}, "--momentum has no meaning without --optimizer sgd"),
        ({"class_weight_power": 0.5}, "--class-weight-power has no meaning"),
        ({"val_split": "", "val_include": "drive0*"}, "--val-include has no meaning"),
        ({"sync_bn": True}, "--sync-bn needs GPUs: SyncBatchNorm"),
        ({"weights": "", "weights_backbone": "none.pth", "model": "fcn8s_resnet18"}, "none.pth"),
    ):
        with pytest.raises(ValueError, match=message):
            start(small(scenes, tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()


def test_checkpoints_that_cannot_be_used(scenes, tmp_path):
    start(small(scenes, tmp_path / "run", epochs=1)).train(progress=False)
    path = tmp_path / "run" / "checkpoint.pt"
    content = path.read_bytes()
    with pytest.raises(WeightsError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    for cut in (b"", content[:100], content[: len(content) // 2], content[:-5], b"hello\n" * 50):
        path.write_bytes(cut)
        with pytest.raises(WeightsError, match="checkpoint.pt"):
            checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT, "x": Runs(os.mkdir, str(tmp_path / "ran"))}, path)
    with pytest.raises(WeightsError, match="checkpoint.pt.*nothing in it was run") as caught:
        checkpoint.load(path)
    assert "weights_only" not in str(caught.value)  # torch's advice to run it
    assert not (tmp_path / "ran").exists()
    torch.save({"format": "other"}, path)
    with pytest.raises(WeightsError, match="not a checkpoint of this release"):
        checkpoint.load(path)
    path.write_bytes(content)
    state = checkpoint.load(path)
    for key, value in {
        "settings": {**state["settings"], "of_a_later_release": 1},
        "model": {},
        "optimizer": {"state": {}},
        "best": [],
        "network": {"options": {"decoder": -4}, "preprocessing": {}},
    }.items():
        for changed in ({**state, key: value}, {k: v for k, v in state.items() if k != key}):
            torch.save(changed, path)
            with pytest.raises(WeightsError, match="checkpoint.pt: "):
                resume(str(path), {})


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"iteration": 1})

    full, hidden = OSError(28, "No space left on device"), RuntimeError("unexpected pos 768")
    hidden.__context__ = full  # as torch hides it
    for error in (full, hidden):
        monkeypatch.setattr(checkpoint.torch, "save", fail(error))
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(path, {"iteration": 2})
    assert checkpoint.load(path)["iteration"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_weights_say_up_to_which_size_the_network_learned(scenes, tmp_path):
    run = start(small(scenes, tmp_path / "run", scale_max=1.5))
    assert run.model.preprocessing.max_size == 96  # 64 pixels wide, at 1.5


def test_one_run_a_folder_and_its_classes(scenes, tmp_path, capsys):
    out = tmp_path / "run"
    run = start(small(scenes, out))
    with locked_elsewhere(out), pytest.raises(InputError, match="run: another run is training"):
        run.train(progress=False)
    run.train(progress=False)
    assert not (out / ".lock").exists()
    state = torch.load(out / "checkpoint.pt", weights_only=False)
    torch.save({**state, "classes": ["a", "b"]}, out / "checkpoint.pt")
    with pytest.raises(InputError, match="began with: class 0 was 'a', and is 'Sky'"):
        resume(str(out), {})
    (out / "checkpoint.pt").unlink()
    fresh = ["--data-path", str(scenes), "--weights", str(scenes / "tiny.safetensors")]
    fresh += ["--crop-size", "32", "--epochs", "1", "-b", "2", "-j", "0", "--device", "cpu"]
    assert main(["train", *fresh, "--output-dir", str(out)]) == 2
    assert "best.safetensors: would be replaced" in capsys.readouterr().err
    assert main(["train", "--resume", str(out), "--epochs", "1"]) == 0
    assert "no checkpoint yet, so the run starts over" in capsys.readouterr().err


@contextlib.contextmanager
def locked_elsewhere(folder):
    """Another process that holds the folder."""
    folder.mkdir()
    program = "import sys; from fcnfast.files import locked; from pathlib import Path\n"
    program += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        yield
        process.stdin.close()


def test_one_class_cannot_be_learned(scenes, tmp_path):
    (scenes / "dataset.json").write_text(
        json.dumps({"classes": ["a"], "ignore": list(range(1, 255))})
    )
    try:
        with pytest.raises(DatasetError, match="the only class is 'a', .* add a background"):
            start(small(scenes, tmp_path / "run", weights="", model="fcn4s_light"))
    finally:
        (scenes / "dataset.json").unlink()
