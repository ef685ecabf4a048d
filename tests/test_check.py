"""`fcnfast check`, and what users bring: each fault is one line that begins with the file."""

import json
import os
import re
import resource
import unicodedata
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcnfast.cli import main
from fcnfast.cli.errors import complain, explain, one_line
from fcnfast.data import CAMVID, Sample, class_table, open_folder
from fcnfast.data.check import examine, require_every_class
from fcnfast.errors import DatasetError, InputError
from fcnfast.evaluate import evaluate_model
from fcnfast.models import load_model
from fcnfast.train import Processes, TrainSettings, batches, resume, start
from fcnfast.train.processes import explained
from tests.model_tools import run_command, write_small_weights

SMALL = ["--epochs", "1", "-b", "1", "--crop-size", "64", "-j", "0", "--device", "cpu"]


def pairs(root: Path, values: list[int], split: str = "train", count: int = 2) -> None:
    """Pictures and masks in a plain folder; each value has a pixel in each mask."""
    for folder in (f"images/{split}", f"labels/{split}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for k in range(count):
        chance = np.random.default_rng(k)
        pixels = chance.integers(0, 256, (36, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{split}/p{k}.png")
        labels = np.resize(np.array(values, np.uint8), (36, 48))
        Image.fromarray(labels).save(root / f"labels/{split}/p{k}.png")


def describe(root: Path, **entries: object) -> None:
    (root / "dataset.json").write_text(json.dumps(entries))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestClassesWithoutPixels:
    def test_masks_of_0_and_255(self, here, capsys):
        """An error that prints the line to add; with the line all is well."""
        pairs(here, [0, 255])
        describe(here, classes=["background", "object"])
        line = '"label_map": {"0": "background", "255": "object"}'
        for command in (
            ["check", ".", "-j", "0"],
            ["train", "--data-path", ".", "--val-split", ""],
        ):
            extra = [*SMALL, "--output-dir", "run"] if command[0] == "train" else []
            assert main([*command, *extra]) == 2
            err = capsys.readouterr().err
            assert err.startswith("fcnfast: error: labels/train: class 'object' has no pixel")
            assert line in err and len(err) <= 301
        assert not Path("run").exists()
        described = json.loads("{" + line + "}")
        describe(here, classes=["background", "object"], **described)
        assert main(["check", ".", "-j", "0"]) == 0
        out = capsys.readouterr().out
        assert re.search(r"train: 2 pictures; width x height: 48x36 \(2\)", out)
        assert re.search(r"background +50\.00 %\n +object +50\.00 %\n +\(no class\) +-\n", out)

    def test_labels_that_begin_at_1(self, here):
        pairs(here, [1, 2])
        table = json.dumps({"names": ["a", "b", "c"]})
        Path("t.json").write_text(table)
        dataset = open_folder(here, "train", class_table("t.json"))
        expected = r'begin at 1: add "label_map": {"0": "void", "1": "a", "2": "b", "3": "c"}'
        with pytest.raises(DatasetError, match=expected):
            require_every_class(dataset)

    def test_values_in_steps(self, here):
        pairs(here, [0, 128, 255])
        describe(here, classes=["a", "b", "c"], ignore=[128, 255])
        with pytest.raises(DatasetError, match=r'{"0": "a", "128": "b", "255": "c"}'):
            require_every_class(open_folder(here, "train"))

    def test_another_table(self, here):
        pairs(here, [0, 3, 4])
        describe(here, classes=list("abcde"))
        with pytest.raises(DatasetError, match=r"'b' \(and 1 more\).*are 0, 3, 4: is this the"):
            require_every_class(open_folder(here, "train"))

    def test_no_label_at_all(self, here):
        pairs(here, [255])
        describe(here, classes=["a", "b"])
        with pytest.raises(DatasetError, match="have no labeled pixel"):
            require_every_class(open_folder(here, "train"))

    def test_in_the_validation_set_it_is_a_warning_and_a_dash(self, here, capsys):
        pairs(here, [0, 1, 2])
        pairs(here, [0, 1], "val")
        describe(here, classes=["a", "b", "c"])
        assert main(["check", ".", "-j", "0"]) == 0
        err = capsys.readouterr().err
        assert re.fullmatch(r"fcnfast: warning: labels/val: class 'c' has no pixel[^\n]*\n", err)
        assert main(["evaluate", "--data-path", ".", "--predictions", "labels/val"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "c - -" in out
        assert "mean IU 100.0 over 2 of 3 classes" in out

    def test_two_classes_are_never_trained_as_camvids(self, here, capsys):
        pairs(here, [0, 1])
        arguments = ["train", "--data-path", ".", "--output-dir", "run", "--val-split", "", *SMALL]
        assert main(arguments) == 2
        assert "nothing names its classes: give --classes" in capsys.readouterr().err
        os.rename("images/train", "train")
        os.rename("labels/train", "trainannot")
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert "class 'Pole' (and 8 more) has no pixel; so these are not camvid's" in err
        assert main([*arguments, "--classes", "voc"]) == 2
        assert "is this the right class table?" in capsys.readouterr().err


class TestCheck:
    def test_every_faulty_pair_is_told(self, here, capsys):
        pairs(here, [0, 1], count=4)
        describe(here, classes=["a", "b"])
        Path("images/train/p0.png").write_bytes(b"no picture")
        Image.new("L", (48, 36), 7).save("labels/train/p1.png")
        Image.new("L", (36, 48)).save("labels/train/p2.png")
        Path("images/train/notes.txt").touch()
        for workers in ("0", "2"):
            assert main(["check", ".", "-j", workers]) == 1
            lines = capsys.readouterr().err.splitlines()
            assert [line.split(": ")[2] for line in lines[:3]] == [
                "images/train/p0.png",
                "labels/train/p1.png",
                "labels/train/p2.png",
            ]
            assert lines[3].endswith("1 file passed over, not pictures by their names: notes.txt")
        for k in (3,):
            Path(f"images/train/p{k}.png").write_bytes(b"")
        assert main(["check", ".", "-j", "0"]) == 2
        assert main(["check", "nowhere"]) == 2
        assert "nowhere: no such data set folder" in capsys.readouterr().err

    def test_a_lack_of_memory_is_one_pairs(self, here, monkeypatch):
        pairs(here, [0, 1])
        describe(here, classes=["a", "b"])
        dataset = open_folder(here, "train")

        def full(_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(dataset, "_image", full)
        assert all("too large for the memory" in fault for fault in examine(dataset).faults)

    def test_one_split_and_none(self, here, capsys):
        pairs(here, [0, 1], "extra")
        describe(here, classes=["a", "b"])
        assert main(["check", ".", "--split", "extra", "-j", "0"]) == 0
        assert capsys.readouterr().out.startswith("extra: 2 pictures")
        assert main(["check", "."]) == 2
        assert (
            "split 'train' needs the folders train and trainannot or images/train"
            in capsys.readouterr().err
        )


class TestDescriptions:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("{", "not a JSON file"),
            ("[]", "expected an object"),
            ('{"labels": 3}', '"labels" must be a folder'),
            ('{"classes": ["a"], "color": 1}', "unknown entry 'color'"),
            ('{"classes": "vok"}', "vok: no class table"),
        ],
    )
    def test_bad_ones_are_named(self, here, text, reason):
        pairs(here, [0])
        Path("dataset.json").write_text(text)
        with pytest.raises(DatasetError, match=reason):
            open_folder(here, "train")

    def test_classes_by_name_or_in_another_file(self, here):
        pairs(here, [0])
        describe(here, classes="voc", labels="labels/train")
        assert open_folder(here, "train").table.name == "voc"
        Path("t.json").write_text('{"names": ["a"]}')
        describe(here, classes="t.json")
        assert open_folder(here, "train").table.names == ("a",)
        describe(here, images="images/{split}")
        assert open_folder(here, "train", default=CAMVID).table is CAMVID


class TestOnePlaceForClasses:
    def test_the_table_travels_with_the_weights(self, here, capsys):
        """Also what its label files store."""
        pairs(here, [0, 255])
        pairs(here, [0, 255], "val")
        entries = {"names": ["no", "yes"], "label_map": {"0": "no", "255": "yes"}}
        Path("t.json").write_text(json.dumps(entries))
        data = ["--data-path", ".", "--labels-dir", "labels/{split}"]
        train = ["train", *data, "--classes", "t.json", "--output-dir", "run", *SMALL]
        assert main(train) == 0
        weights = ["--weights", "run/best.safetensors", "--device", "cpu"]
        assert main(["evaluate", *data, *weights, "--json", "s.json"]) == 0
        confusion = np.array(json.loads(Path("s.json").read_text())["confusion"])
        assert confusion.sum(axis=1).tolist() == [36 * 48, 36 * 48]
        assert main(["predict", "images/val", *weights]) == 0
        assert json.loads(Path("out/predictions.json").read_text())["classes"][1]["name"] == "yes"
        Path("swapped.json").write_text(json.dumps({**entries, "names": ["yes", "no"]}))
        capsys.readouterr()
        assert main(["evaluate", *data, *weights, "--classes", "swapped.json"]) == 2
        assert "the same classes in another order, beginning with 'yes'" in capsys.readouterr().err


class TestNames:
    def test_composed_and_decomposed(self, here, capsys):
        pairs(here, [0, 1], count=1)
        describe(here, classes=["a", "b"])
        composed = unicodedata.normalize("NFC", "straße-né")
        apart = unicodedata.normalize("NFD", composed)
        os.rename("images/train/p0.png", f"images/train/{composed}.png")
        os.rename("labels/train/p0.png", f"labels/train/{apart}.png")
        dataset = open_folder(here, "train", include="*né")
        assert len(dataset) == 1 and dataset[0].labels.max() == 1
        arguments = ["--split", "train", "--predictions", "labels/train"]
        assert main(["evaluate", "--data-path", ".", *arguments]) == 0

    def test_names_in_latin_1(self, here):
        pairs(here, [0, 1], count=2)
        describe(here, classes=["a", "b"])
        name = os.fsdecode(b"caf\xe9.png")
        try:
            for folder in ("images", "labels"):
                os.rename(f"{folder}/train/p0.png", f"{folder}/train/{name}")
        except OSError:
            pytest.skip("this file system takes no such name")
        data = ["--data-path", "."]
        assert main(["train", *data, "--output-dir", "r", "--val-split", "", *SMALL]) == 0
        assert b"images/train/caf\xe9.png\n" in Path("r/files.txt").read_bytes()
        assert main(["train", "--resume", "r/checkpoint.pt"]) == 0
        assert main(["check", ".", "-j", "0"]) == 0
        weights = ["--weights", "r/last.safetensors", "--device", "cpu"]
        assert main(["evaluate", *data, "--split", "train", *weights]) == 0


class TestErrors:
    @pytest.mark.parametrize("workers", ["0", "1"])
    def test_a_damaged_picture_in_training(self, here, workers, capsys):
        pairs(here, [0, 1])
        describe(here, classes=["a", "b"])
        path = Path("images/train/p1.png")
        path.write_bytes(path.read_bytes()[:-900])
        arguments = [*SMALL, "-j", workers, "--val-split", "", "--output-dir", "run"]
        assert main(["train", "--data-path", ".", *arguments]) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith("fcnfast: error: images/train/p1.png: the picture is damaged")

    def test_debug_shows_the_traceback(self, here, capsys):
        assert main(["check", "nowhere", "--debug"]) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err and err.splitlines()[-1].startswith("fcnfast: error: nowhere: ")
        assert main(["--debug", "check", "nowhere"]) == 2
        assert "Traceback" in capsys.readouterr().err

    def test_lines_are_never_long(self, capsys):
        complain("x" * 900 + "\n reason")
        err = capsys.readouterr().err
        assert len(err) <= 301 and err.count("\n") == 1
        assert err.startswith("fcnfast: error: xxx") and err.endswith("x reason\n")
        assert one_line("a  b\nc\x1b[2J \udce9") == "a b c\\x1b[2J \\udce9"

    @pytest.mark.parametrize(
        ("error", "says"),
        [
            (
                RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
                "--workers 3:",
            ),
            (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "--workers 3:"),
            (torch.OutOfMemoryError("CUDA out of memory."), "--batch-size 8, --crop-size 64: out"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "--batch-size 8, --crop"),
            (MemoryError(), "--batch-size 8, --crop-size 64: out of memory"),
            (ValueError("Expected more than 1 value per channel when training"), "batch norm has"),
            (ValueError("an image of (16, 16) is too small"), "--crop-size 64: too small for the"),
        ],
    )
    def test_what_training_can_meet(self, error, says):
        settings = TrainSettings(workers=3, crop_size=64, output_dir="run")
        with pytest.raises(InputError, match=says), explained(Processes(), settings):
            raise error

    def test_a_full_disk(self):
        full, args = "No space left on device", Namespace(output_dir="run")
        assert explain(OSError(28, full), args) == f"run: {full}"
        assert explain(OSError(28, full, "run/a"), args) == f"run/a: {full}"

    def test_what_is_a_fault_of_ours(self):
        with pytest.raises(RuntimeError, match="a bug"), explained(Processes(), TrainSettings()):
            raise RuntimeError("a bug")
        assert explain(RuntimeError("a bug"), Namespace()) is None
        assert explain(KeyError("a bug"), Namespace()) is None
        told = explain(MemoryError(), Namespace(weights="w.pth"))
        assert told == "w.pth: too large for the memory"

    def test_a_killed_worker(self, here, monkeypatch, capsys):
        pairs(here, [0, 1])
        describe(here, classes=["a", "b"])

        def killed(*_: object) -> None:
            os.kill(os.getpid(), 9)

        monkeypatch.setattr(batches.Crops, "__getitem__", killed)
        arguments = [*SMALL, "-j", "1", "--val-split", "", "--output-dir", "run"]
        assert main(["train", "--data-path", ".", *arguments]) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith("fcnfast: error: --workers 1: a process that reads pictures was")
        assert len(err) <= 300

    def test_a_full_disk_in_training(self, here):
        pairs(here, [0, 1])
        describe(here, classes=["a", "b"])
        arguments = ["train", "--data-path", ".", "--output-dir", "run", "--val-split", "", *SMALL]
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (3000, 3000))
        done = run_command(*arguments, cwd=here, preexec_fn=limit)
        assert done.returncode == 2
        assert re.fullmatch(r"fcnfast: error: run/[^\n]{,280}\n", done.stderr.split("\r")[-1])

    def test_evaluation_names_what_it_cannot_take(self, monkeypatch, tmp_path):
        model = load_model(write_small_weights(tmp_path / "w.safetensors"))
        sample = Sample(Image.new("RGB", (20, 16)), np.zeros((16, 20), np.uint8), "thumb")
        for error, says in (
            (RuntimeError("Output size is too small"), "thumb: 20x16 pixels are too few"),
            (MemoryError(), "thumb: 20x16 pixels are too many for the memory of cpu"),
        ):

            def fail(*_: object, error: Exception = error, **__: object) -> None:
                raise error

            monkeypatch.setattr(model, "score_maps", fail)
            with pytest.raises(ValueError, match=says):
                evaluate_model(model, [sample])
        monkeypatch.setattr(model, "score_maps", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate_model(model, [sample])


def test_training_on_any_dataset(tmp_path):
    """(image, labels) pairs of any torch data set, from Python."""
    items = []
    for k in range(4):
        chance = np.random.default_rng(k)
        pixels = torch.from_numpy(chance.integers(0, 256, (3, 36, 48), dtype=np.uint8))
        items.append((pixels, torch.from_numpy(np.resize(np.array([0, 1, 255]), (36, 48)))))
    table = class_table("voc")
    table = type(table)("two", ("a", "b"), ((0, 0, 0), (9, 9, 9)))
    settings = TrainSettings(
        output_dir=str(tmp_path / "run"),
        crop_size=32,
        batch_size=2,
        epochs=1,
        workers=0,
        device="cpu",
        val_freq=1,
    )
    run = start(settings, train=items, val=items[:1], table=table)
    run.train(progress=False)
    assert run.model.table == table
    with pytest.raises(ValueError, match="no pixel"):
        plain = [(items[0][0], torch.zeros(36, 48, dtype=torch.int32))] * 4
        start(replace(settings, output_dir=str(tmp_path / "b")), train=plain, table=table)
    with pytest.raises(ValueError, match="needs table="):
        start(replace(settings, output_dir=str(tmp_path / "b")), train=plain)
    path = str(tmp_path / "run" / "checkpoint.pt")
    assert resume(path, {}, train=items, val=items[:1], table=table).iteration == 2
