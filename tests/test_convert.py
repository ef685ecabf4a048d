"""``fcnfast convert``: files of other projects become fcnfast's."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

import fcnfast
from fcnfast.cli import main
from fcnfast.weights import read_weights
from tests.foreign_nets import VGG, randomize
from tests.foreign_torch_nets import VGG16
from tests.weights_tools import narrow_vgg
from tests.wire_tools import caffemodel


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_vgg(monkeypatch)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail: exit code 2, one line on stderr, no new file."""
    before = sorted(os.listdir())
    assert main(["convert", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"fcnfast: error: [^\n]+\n", err)
    assert sorted(os.listdir()) == before
    return err


def test_a_file_that_tells_its_network(here, capsys):
    state = randomize(VGG(16)).state_dict()
    Path("net.caffemodel").write_bytes(caffemodel(state))
    assert main(["convert", "net.caffemodel", "ours.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "net.caffemodel: Caffe's network (Caffe)" in out
    assert "Written as fcn16s_vgg16, 5 classes: ours.safetensors" in out
    tensors, meta = read_weights("ours.safetensors")
    assert (meta.model, meta.num_classes, meta.classes) == ("fcn16s_vgg16", 5, ())
    assert meta.preprocess["order"] == "bgr"
    assert meta.options == {"upsampling": "dense"}
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[key], value) for key, value in state.items())


def test_the_network_and_the_classes_can_be_named(here, capsys):
    bilinear = {k: v for k, v in VGG(8, heads={"": 3}).state_dict().items() if "upscore" in k}
    torch.save(randomize(VGG(8, heads={"": 3})).state_dict() | bilinear, "net.pth")
    table = {"names": ["road", "sky", "car"], "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}
    Path("classes.json").write_text(json.dumps(table))
    said = refused(capsys, "net.pth", "ours.safetensors")
    assert "whose layers are alike" in said and "--model NAME" in said
    arguments = ["--model", "fcn8s_atonce_vgg16", "--classes", "classes.json", "--half"]
    assert main(["convert", "net.pth", "ours.safetensors", *arguments]) == 0
    tensors, meta = read_weights("ours.safetensors")
    assert meta.model == "fcn8s_atonce_vgg16" and meta.classes == ("road", "sky", "car")
    assert meta.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    model = fcnfast.load_model("ours.safetensors")
    assert model.at_once and model.score_fr.weight.dtype == torch.float32
    assert "3 classes of" in capsys.readouterr().out


def test_a_classifier_becomes_a_network_to_train(here, capsys):
    torch.save(randomize(VGG16()).weights(), "vgg16.pth")
    assert "choose one for it" in refused(capsys, "vgg16.pth", "ours.safetensors")
    assert main(["convert", "vgg16.pth", "ours.safetensors", "--model", "fcn32s_vgg16"]) == 0
    out = capsys.readouterr().out
    assert "reshaped    fc6.weight" in out and "missing     score_fr.weight" in out
    assert fcnfast.load_model("ours.safetensors").preprocessing == fcnfast.models.IMAGENET


def test_mistakes_are_refused(here, capsys):
    torch.save(randomize(VGG(32)).state_dict(), "net.pth")
    Path("folder").mkdir()
    assert "no such weights file" in refused(capsys, "missing.pth", "out.safetensors")
    assert "is a folder" in refused(capsys, "net.pth", "folder")
    assert "would replace the file" in refused(capsys, "net.pth", "net.pth")
    assert "would replace the file" in refused(capsys, "net.pth", "./folder/../net.pth")
    assert "21 classes, but net.pth has 5" in refused(capsys, "net.pth", "o", "--classes", "voc")
    assert "did you mean fcn32s_vgg16" in refused(capsys, "net.pth", "o", "--model", "fcn32_vgg16")
    assert "has no" in refused(capsys, "net.pth", "o", "--model", "fcn_resnet50")
    assert "No such file" in refused(capsys, "net.pth", "nowhere/out.safetensors")
    big = {k: v * 1e6 for k, v in randomize(VGG(32)).state_dict().items() if "upscore" not in k}
    torch.save(big, "big.pth")
    assert "too large for torch.float16" in refused(capsys, "big.pth", "o", "--half")


def test_foreign_files_are_used_without_converting(here, capsys):
    from tests.model_tools import make_photo

    net = VGG(32)
    torch.save(randomize(net).state_dict(), "net.pth")
    make_photo().save("photo.png")
    assert main(["predict", "photo.png", "--weights", "net.pth"]) == 0
    assert "class 4" in capsys.readouterr().out or Path("out/labels/photo.png").exists()
    report = json.loads(Path("out/predictions.json").read_text())
    assert report["model"] == "fcn32s_vgg16"
