"""Files whose layers stand behind a wrapper's name, among tensors of something else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fcnfast
from fcnfast.errors import WeightsError
from tests.foreign_mmseg import EncoderDecoder
from tests.foreign_nets import randomize
from tests.foreign_torch_nets import VGG16
from tests.model_tools import narrow_trunks
from tests.weights_tools import narrow_vgg, new_model, weights

EXTRA = {
    "n_averaged": torch.tensor(3),
    "criterion.weight": torch.ones(5),
    "val_metric.confmat": torch.zeros(5, 5),
    "criterion.vgg.features.0.weight": torch.zeros(3, 3, 3, 3),
    "criterion.conv9.weight": torch.zeros(1),
}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "_orig_mod.", "ema.", "task.net._orig_mod.module."]
)
@pytest.mark.parametrize("wrapped", [None, "state_dict", "ema"])
def test_prefixes_are_found_from_the_layers(tmp_path, monkeypatch, prefix, wrapped):
    narrow_vgg(monkeypatch)
    state = EXTRA | prefixed(prefix, weights())
    torch.save(state if wrapped is None else {wrapped: state, "epoch": 1}, tmp_path / "net.pth")
    model = new_model()
    report = fcnfast.load_weights(model, tmp_path / "net.pth")
    assert not report.missing and report.unexpected == tuple(EXTRA)
    assert all(torch.equal(value, weights()[key]) for key, value in model.state_dict().items())
    assert fcnfast.load_model(tmp_path / "net.pth").name == "fcn16s_vgg16"


def test_the_network_is_where_most_layers_are(tmp_path, monkeypatch):
    """An average of it stands behind it, a part of another one before it."""
    narrow_vgg(monkeypatch)
    average = prefixed("ema.", {key: value + 1 for key, value in weights().items()})
    part = {"old.conv1_1.weight": torch.zeros(3, 3, 3, 3)}
    torch.save(part | prefixed("net.", weights()) | average, tmp_path / "net.pth")
    model = new_model()
    report = fcnfast.load_weights(model, tmp_path / "net.pth")
    assert torch.equal(model.fc7.bias, weights()["fc7.bias"])
    assert set(report.unexpected) == {*part, *average}


def test_what_is_wrong_has_the_files_name(tmp_path, monkeypatch):
    narrow_vgg(monkeypatch)
    state = prefixed("net.", weights())
    del state["net.conv3_2.bias"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"has no 'net\.conv3_2\.bias'$"):
        fcnfast.load_weights(new_model(), tmp_path / "net.pth")
    torch.save(prefixed("net.", weights() | {"conv3_4.bias": torch.ones(8)}), tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"holds 'net\.conv3_4\.bias'"):
        fcnfast.load_weights(new_model(), tmp_path / "net.pth")


def test_a_trunk_of_a_task(tmp_path, monkeypatch):
    """Classifiers and mmsegmentation's networks, inside of somebody's module."""
    narrow_vgg(monkeypatch)
    state = prefixed("encoder.", randomize(VGG16()).weights()) | {"head.weight": torch.ones(2)}
    torch.save(state, tmp_path / "vgg16.pth")
    model = fcnfast.create_model("fcn8s_vgg16", weights_backbone=tmp_path / "vgg16.pth")
    assert torch.equal(model.conv5_3.bias, state["encoder.features.28.bias"])
    assert model.load_report.unexpected == ("head.weight",)
    assert "encoder.classifier.6.bias" in model.load_report.dropped


def test_other_networks_behind_a_prefix(tmp_path, monkeypatch):
    narrow_trunks(monkeypatch)
    for name in ("fcn4s_light", "fcn8s_resnet18", "fcn32s_googlenet", "nyud_fcn32s_vgg16_color_d"):
        model = fcnfast.create_model(name, num_classes=3)
        averaged = torch.optim.swa_utils.AveragedModel(nn.Sequential(model))
        torch.save(averaged.state_dict(), tmp_path / "net.pth")
        again = fcnfast.create_model(name, weights=tmp_path / "net.pth")
        assert again.num_classes == 3 and again.load_report.unexpected == ("n_averaged",)
        assert not again.load_report.missing


def test_mmsegmentation_behind_a_prefix(tmp_path, monkeypatch):
    narrow_trunks(monkeypatch)
    from fcnfast.models import resnet
    from tests import foreign_nets

    monkeypatch.setattr(resnet, "WIDTH", foreign_nets.RESNET)
    state = prefixed("model.", randomize(EncoderDecoder()).state_dict())
    torch.save(state, tmp_path / "net.pth")
    model = fcnfast.load_model(tmp_path / "net.pth")
    assert model.name == "fcn_resnet50_mmseg" and not model.load_report.unexpected


def test_layers_of_no_network_are_shown_beside_the_nearest(tmp_path: Path, monkeypatch):
    narrow_trunks(monkeypatch)
    model = fcnfast.create_model("fcn8s_resnet34")
    state = {f"block{k}.w": value for k, value in enumerate(model.state_dict().values())}
    torch.save(state, tmp_path / "net.pth")
    says = (
        r"net\.pth: of no network that fcnfast knows by its layers \('block0\.w', 'block1\.w', "
        r"'block2\.w', 'block3\.w', \.\.\.\); the nearest is fcn8s_resnet34: (\d+) of its \1 t"
    )
    with pytest.raises(WeightsError, match=says):
        fcnfast.load_weights(model, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=says):
        fcnfast.create_model("fcn8s_resnet34", weights=tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=says):
        fcnfast.load_model(tmp_path / "net.pth")
