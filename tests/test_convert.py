"""``fcnfast convert``: files of other projects become fcnfast's."""

import json
from pathlib import Path

import pytest
import torch

import fcnfast
from fcnfast.cli import main
from tests.foreign_nets import VGG
from tests.foreign_torch_nets import vgg16
from tests.model_tools import make_photo
from tests.weights_tools import read_weights, same, weights
from tests.wire_tools import caffemodel

pytestmark = pytest.mark.usefixtures("here", "narrow")


def test_a_file_that_tells_its_network(capsys):
    Path("net.caffemodel").write_bytes(caffemodel(weights()))
    assert main(["convert", "net.caffemodel", "ours.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "net.caffemodel: Caffe's network (Caffe)" in out
    assert "Written as fcn16s_vgg16, 5 classes: ours.safetensors" in out
    _, meta = read_weights("ours.safetensors")
    assert (meta.model, meta.num_classes, meta.classes) == ("fcn16s_vgg16", 5, ())
    assert meta.preprocess["order"] == "bgr" and meta.options == {"upsampling": "dense"}
    assert same(fcnfast.load_model("ours.safetensors"))
    make_photo().save("photo.png")  # the foreign file can be used without converting, too
    assert main(["predict", "photo.png", "--weights", "net.caffemodel"]) == 0
    assert json.loads(Path("out/predictions.json").read_text())["model"] == "fcn16s_vgg16"


def test_the_network_and_the_classes_can_be_named(refused, capsys):
    torch.save(VGG(8, heads={"": 3}).state_dict(), "net.pth")
    table = {"names": ["road", "sky", "car"], "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}
    Path("classes.json").write_text(json.dumps(table))
    refused("convert", "net.pth", "ours.safetensors", says="which have the same layers.*--model N")
    arguments = ["--model", "fcn8s_atonce_vgg16", "--classes", "classes.json", "--half"]
    assert main(["convert", "net.pth", "ours.safetensors", *arguments]) == 0
    tensors, meta = read_weights("ours.safetensors")
    assert meta.model == "fcn8s_atonce_vgg16" and meta.classes == ("road", "sky", "car")
    assert meta.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    model = fcnfast.load_model("ours.safetensors")
    assert model.at_once and model.score_fr.weight.dtype == torch.float32
    assert "3 classes of" in capsys.readouterr().out


def test_a_classifier_becomes_a_network_to_train(refused, capsys):
    torch.save(vgg16(), "vgg16.pth")
    refused("convert", "vgg16.pth", "ours.safetensors", says="choose one for it")
    assert main(["convert", "vgg16.pth", "ours.safetensors", "--model", "fcn32s_vgg16"]) == 0
    out = capsys.readouterr().out
    assert "reshaped    fc6.weight" in out and "missing     score_fr.weight" in out
    assert fcnfast.load_model("ours.safetensors").preprocessing == fcnfast.models.IMAGENET


def test_mistakes_are_refused(refused):
    torch.save(weights(), "net.pth")
    torch.save({k: v * 1e6 for k, v in weights().items() if "upscore" not in k}, "big.pth")
    Path("folder").mkdir()
    for arguments, model, says in (
        (["missing.pth", "out.safetensors"], "fcn16s_vgg16", "no such weights file"),
        (["net.pth", "folder"], "fcn16s_vgg16", "is a folder"),
        (["net.pth", "net.pth"], "fcn16s_vgg16", "would replace the file"),
        (["net.pth", "o", "--classes", "voc"], "fcn16s_vgg16", "21 classes, but net.pth has 5"),
        (["net.pth", "o"], "fcn16_vgg16", "did you mean fcn16s_vgg16"),
        (["net.pth", "o"], "fcn_resnet50", "has no"),
        (["net.pth", "nowhere/out.safetensors"], "fcn16s_vgg16", "No such file"),
        (["big.pth", "o", "--half"], "fcn16s_vgg16", "too large for torch.float16"),
    ):
        refused("convert", *arguments, "--model", model, says=says)
