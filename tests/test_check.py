"""`fcnfast check`, and what users bring: each fault is one line that begins with the file."""

import json
import os
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from fcnfast.cli import main
from fcnfast.cli.errors import complain, explain, one_line
from fcnfast.data import CAMVID, ClassTable, open_folder
from fcnfast.data.check import examine, require_every_class
from fcnfast.errors import DatasetError, InputError
from fcnfast.train import Processes, TrainSettings, batches, resume, start
from fcnfast.train.processes import explained
from tests.model_tools import make_photo
from tests.test_images import fail, full_disk

SMALL = ["--epochs", "1", "-b", "1", "--crop-size", "64", "-j", "0", "--device", "cpu"]
TRAIN = ["train", "--data-path", ".", "--output-dir", "run", "--val-split", "", *SMALL]


def pairs(values, split="train", count=2):
    """Pictures and masks in a plain folder; each value has a pixel in each mask."""
    for folder in (f"images/{split}", f"labels/{split}"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    for k in range(count):
        make_photo(seed=k).save(f"images/{split}/p{k}.png")
        labels = np.resize(np.array(values, np.uint8), (36, 48))
        Image.fromarray(labels).save(f"labels/{split}/p{k}.png")


def describe(**entries):
    Path("dataset.json").write_text(json.dumps(entries))


@pytest.fixture
def two(here):
    pairs([0, 1])
    describe(classes=["a", "b"])
    return here


def test_masks_of_0_and_255(here, capsys):
    """An error that prints the line to add; with the line all is well."""
    pairs([0, 255])
    describe(classes=["background", "object"])
    line = '"label_map": {"0": "background", "255": "object"}'
    for command in (["check", ".", "-j", "0"], TRAIN):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert err.startswith("fcnfast: error: labels/train: class 'object' has no pixel")
        assert line in err and len(err) <= 301
    assert not Path("run").exists()
    describe(classes=["background", "object"], **json.loads("{" + line + "}"))
    assert main(["check", ".", "-j", "0"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"train: 2 pictures; width x height: 48x36 \(2\)", out)
    assert re.search(r"background +50\.00 %\n +object +50\.00 %\n +\(no class\) +-\n", out)


def test_what_stored_values_suggest(here):
    for values, entries, message in (
        ([1, 2], {}, r'begin at 1: add "label_map": {"0": "void", "1": "a", "2": "b", "3": "c"}'),
        ([0, 128, 255], {"ignore": [128, 255]}, r'{"0": "a", "128": "b", "255": "c"}'),
        ([0, 3, 4], {"classes": list("abcde")}, r"'b' \(and 1 more\).*are 0, 3, 4: is this the"),
        ([255], {}, "have no labeled pixel"),
    ):
        pairs(values)
        describe(**{"classes": list("abc"), **entries})
        with pytest.raises(DatasetError, match=message):
            require_every_class(open_folder(here, "train"))


def test_a_class_without_pixels_in_validation_is_a_warning_and_a_dash(here, capsys):
    pairs([0, 1, 2])
    pairs([0, 1], "val")
    describe(classes=["a", "b", "c"])
    assert main(["check", ".", "-j", "0"]) == 0
    err = capsys.readouterr().err
    assert re.fullmatch(r"fcnfast: warning: labels/val: class 'c' has no pixel[^\n]*\n", err)
    assert main(["evaluate", "--data-path", ".", "--predictions", "labels/val"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "c - -" in out and "mean IU 100.0 over 2 of 3 classes" in out


def test_two_classes_are_never_trained_as_camvids(here, capsys):
    pairs([0, 1])
    assert main(TRAIN) == 2
    assert "nothing names its classes: give --classes" in capsys.readouterr().err
    os.rename("images/train", "train")
    os.rename("labels/train", "trainannot")
    assert main(TRAIN) == 2
    told = "class 'Pole' (and 8 more) has no pixel; so these are not camvid's"
    assert told in capsys.readouterr().err
    assert main([*TRAIN, "--classes", "voc"]) == 2
    assert "is this the right class table?" in capsys.readouterr().err


def test_every_faulty_pair_is_told(here, capsys):
    pairs([0, 1], count=4)
    describe(classes=["a", "b"])
    faulty = ["images/train/p0.png", "labels/train/p1.png", "labels/train/p2.png"]
    Path(faulty[0]).write_bytes(b"no picture")
    Image.new("L", (48, 36), 7).save(faulty[1])
    Image.new("L", (36, 48)).save(faulty[2])
    Path("images/train/notes.txt").touch()
    for workers in ("0", "2"):
        assert main(["check", ".", "-j", workers]) == 1
        *lines, last = capsys.readouterr().err.splitlines()
        assert [line.split(": ")[2] for line in lines] == faulty
        assert last.endswith("1 file skipped, no picture extension: notes.txt")
    Path("images/train/p3.png").write_bytes(b"")
    assert main(["check", ".", "-j", "0"]) == 2


def test_a_lack_of_memory_is_one_pairs(two, monkeypatch):
    dataset = open_folder(two, "train")
    monkeypatch.setattr(dataset, "_image", fail(MemoryError))
    assert all("too large for the memory" in fault for fault in examine(dataset).faults)


def test_one_split_and_none(here, capsys):
    pairs([0, 1], "extra")
    describe(classes=["a", "b"])
    assert main(["check", ".", "--split", "extra", "-j", "0"]) == 0
    assert capsys.readouterr().out.startswith("extra: 2 pictures")
    assert main(["check", "."]) == 2
    told = "split 'train' needs the folders train and trainannot or images/train"
    assert told in capsys.readouterr().err


def test_descriptions(here):
    """Classes are listed, named or in another file; a mistake is told."""
    pairs([0])
    describe(classes="voc", labels="labels/train")
    assert open_folder(here, "train").table.name == "voc"
    Path("t.json").write_text('{"names": ["a"]}')
    describe(classes="t.json")
    assert open_folder(here, "train").table.names == ("a",)
    describe(images="images/{split}")
    assert open_folder(here, "train", default=CAMVID).table is CAMVID
    for text, reason in (
        ("{", "not a JSON file"),
        ("[]", "expected an object"),
        ('{"labels": 3}', '"labels" must be a folder'),
        ('{"classes": ["a"], "color": 1}', "unknown entry 'color'"),
        ('{"classes": "vok"}', "vok: no class table"),
    ):
        Path("dataset.json").write_text(text)
        with pytest.raises(DatasetError, match=reason):
            open_folder(here, "train")


def test_the_table_travels_with_the_weights(here, capsys):
    """Also what its label files store."""
    pairs([0, 255])
    pairs([0, 255], "val")
    entries = {"names": ["no", "yes"], "label_map": {"0": "no", "255": "yes"}}
    Path("t.json").write_text(json.dumps(entries))
    data = ["--data-path", ".", "--labels-dir", "labels/{split}"]
    assert main(["train", *data, "--classes", "t.json", "--output-dir", "run", *SMALL]) == 0
    weights = ["--weights", "run/best.safetensors", "--device", "cpu"]
    assert main(["evaluate", *data, *weights, "--json", "s.json"]) == 0
    confusion = np.array(json.loads(Path("s.json").read_text())["confusion"])
    assert confusion.sum(axis=1).tolist() == [36 * 48, 36 * 48]
    assert main(["predict", "images/val", *weights]) == 0
    assert json.loads(Path("out/predictions.json").read_text())["classes"][1]["name"] == "yes"
    Path("swapped.json").write_text(json.dumps({**entries, "names": ["yes", "no"]}))
    capsys.readouterr()
    assert main(["evaluate", *data, *weights, "--classes", "swapped.json"]) == 2
    assert "the same classes in a different order, beginning with 'yes'" in capsys.readouterr().err


def test_names_in_latin_1(two):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        for folder in ("images", "labels"):
            os.rename(f"{folder}/train/p0.png", f"{folder}/train/{name}")
    except OSError:
        pytest.skip("this file system takes no such name")
    assert main(TRAIN) == 0
    assert b"images/train/caf\xe9.png\n" in Path("run/files.txt").read_bytes()
    assert main(["train", "--resume", "run/checkpoint.pt"]) == 0
    assert main(["check", ".", "-j", "0"]) == 0
    weights = ["--weights", "run/last.safetensors", "--device", "cpu"]
    assert main(["evaluate", "--data-path", ".", "--split", "train", *weights]) == 0
    assert main(["predict", "images/train", *weights]) == 0
    assert Path("out/labels", name).is_file()


def test_a_damaged_picture_in_training(two, capsys):
    path = Path("images/train/p1.png")
    path.write_bytes(path.read_bytes()[:-900])
    for workers in ("0", "1"):
        assert main([*TRAIN, "-j", workers]) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith("fcnfast: error: images/train/p1.png: the picture is damaged")


def test_a_killed_worker_and_a_full_disk(two, monkeypatch, capsys):
    with full_disk(3000):
        assert main(TRAIN) == 2
    err = capsys.readouterr().err.split("\r")[-1]
    assert re.fullmatch(r"fcnfast: error: run/[^\n]{,280}\n", err)
    monkeypatch.setattr(batches.Crops, "__getitem__", lambda *_: os.kill(os.getpid(), 9))
    assert main([*TRAIN, "-j", "1"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("fcnfast: error: --workers 1: a process that reads pictures was")
    assert len(err) <= 300


def test_lines_of_errors(here, capsys):
    """Never long, without the traceback but with --debug."""
    complain("x" * 900 + "\n reason")
    err = capsys.readouterr().err
    assert len(err) <= 301 and err.count("\n") == 1
    assert err.startswith("fcnfast: error: xxx") and err.endswith("x reason\n")
    assert one_line("a  b\nc\x1b[2J \udce9") == "a b c\\x1b[2J \\udce9"
    for command in (["check", "no", "--debug"], ["--debug", "check", "no"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        told = "fcnfast: error: no: no such data set folder"
        assert "Traceback" in err and err.splitlines()[-1] == told


def test_what_training_can_meet():
    settings = TrainSettings(workers=3, crop_size=64, output_dir="run")
    for error, says in (
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "--workers 3:"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "--workers 3:"),
        (torch.OutOfMemoryError("CUDA out of memory."), "--batch-size 8, --crop-size 64: out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "--batch-size 8, --crop"),
        (MemoryError(), "--batch-size 8, --crop-size 64: out of memory"),
        (ValueError("Expected more than 1 value per channel when training"), "batch norm needs"),
        (ValueError("an image of (16, 16) is too small"), "--crop-size 64: too small for the"),
    ):
        with pytest.raises(InputError, match=says), explained(Processes(), settings):
            raise error


def test_what_is_explained_and_what_is_a_fault_of_ours():
    full, args = "No space left on device", Namespace(output_dir="run", weights="w.pth")
    for error, told in (
        (OSError(28, full), f"run: {full}"),
        (OSError(28, full, "run/a"), f"run/a: {full}"),
        (MemoryError(), "w.pth: too large for the memory"),
        (RuntimeError("a bug"), None),
        (KeyError("a bug"), None),
    ):
        assert explain(error, args) == told
    with pytest.raises(RuntimeError, match="a bug"), explained(Processes(), TrainSettings()):
        raise RuntimeError("a bug")


def test_training_on_any_dataset(here):
    """(image, labels) pairs of any torch data set, from Python."""
    labels = torch.from_numpy(np.resize(np.array([0, 1, 255]), (36, 48)))
    items = [(torch.randint(0, 256, (3, 36, 48), dtype=torch.uint8), labels) for _ in range(4)]
    table = ClassTable("two", ("a", "b"), ((0, 0, 0),) * 2)
    small = {"crop_size": 32, "batch_size": 2, "epochs": 1, "workers": 0, "device": "cpu"}
    settings = TrainSettings(output_dir="run", val_freq=1, **small)
    run = start(settings, train=items, val=items[:1], table=table)
    run.train(progress=False)
    assert run.model.table == table
    plain = [(items[0][0], torch.zeros(36, 48, dtype=torch.int32))] * 4
    for options, message in (({"table": table}, "no pixel"), ({}, "needs table=")):
        with pytest.raises(ValueError, match=message):
            start(replace(settings, output_dir="b"), train=plain, **options)
    again = resume("run/checkpoint.pt", {}, train=items, val=items[:1], table=table)
    assert again.iteration == 2


def files_to_damage():
    photo, labels = make_photo(), np.resize(np.arange(3, dtype=np.uint8), (36, 48))
    for folder, image, kinds in (
        ("images/train", photo, "jpg png tif webp gif bmp ppm"),
        ("labels/train", Image.fromarray(labels), "png png tif bmp gif pgm png"),
        ("sbd/img", photo, "jpg"),
    ):
        Path(folder).mkdir(parents=True)
        for name, kind in zip("abcdefg", kinds.split(), strict=False):
            image.save(f"{folder}/{name}.{kind}")
    describe(classes="t.json")
    label_map = {"0": "a", "1": "b", "2": "c", "#ff0000": "void"}
    Path("t.json").write_text(json.dumps({"names": list("abc"), "label_map": label_map}))
    Path("sbd/cls").mkdir()
    scipy.io.savemat("sbd/cls/a.mat", {"GTcls": {"Segmentation": labels}})
    Path("sbd/train.txt").write_text("a\n")
    return sorted(path for path in Path().rglob("*") if path.is_file())


def damaged(content, other, chance):
    """Cut, flip a bit, swap a part with another file's, or take out a part."""
    place, changed = int(chance.integers(len(content))), bytearray(content)
    flipped = bytes([changed[place] ^ 1 << int(chance.integers(8))])
    end = place + int(chance.integers(1, 30))
    ways = [(None, b""), (place + 1, flipped), (place + 40, other[place : place + 40]), (end, b"")]
    stop, part = ways[int(chance.integers(4))]
    changed[place:stop] = part
    return bytes(changed)


def test_damaged_files_give_results_or_one_line(here, weights, capsys):
    """100 mutated pictures, labels, tables and lists: never a traceback."""
    paths = files_to_damage()
    chance, codes = np.random.default_rng(0), []
    for turn in range(100):
        path = paths[turn % len(paths)]
        content = path.read_bytes()
        other = paths[int(chance.integers(len(paths)))].read_bytes()
        path.write_bytes(damaged(content, other, chance))
        arguments = ["check", ".", "-j", "0"]
        if "sbd" in path.parts:
            arguments = ["check", "sbd", "--dataset", "voc", "--split", "train", "-j", "0"]
        elif turn % 3 == 0 and path.parent.name == "train":
            arguments = ["predict", str(path), "--weights", weights, "--device", "cpu"]
        codes.append(main(arguments))
        path.write_bytes(content)
        err = capsys.readouterr().err
        assert codes[-1] == 0 or err.startswith("fcnfast: ")
        for line in err.splitlines():
            assert line.startswith("fcnfast: ") and len(line) <= 300, (path, line)
    assert {0, 1, 2} == set(codes)


@pytest.mark.usefixtures("here")
def test_colors_that_two_classes_share(capsys):
    pairs([0])
    for path in Path("labels/train").iterdir():
        Image.fromarray(np.full((36, 48, 3), 9, np.uint8)).save(path)
    describe(classes=["a", "b"], palette=[[9, 9, 9], [9, 9, 9]])
    assert main(["check", ".", "--split", "train", "-j", "0"]) == 2
    assert "the labels are colors, and 'a' and 'b' have the same" in capsys.readouterr().err
