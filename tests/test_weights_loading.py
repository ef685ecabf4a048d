"""What `load_weights`, `create_model` and `load_model` make of a file: report, classes, options."""

import hashlib
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fcnfast
from fcnfast.errors import WeightsError
from fcnfast.models import IMAGENET, Preprocessing
from fcnfast.weights import families, write_weights
from tests.foreign_nets import VGG, randomize
from tests.foreign_torch_nets import vgg16
from tests.weights_tools import FORMATS, read_weights, weights

pytestmark = pytest.mark.usefixtures("narrow")

HEADS = ("score_fr.weight", "score_fr.bias", "score_pool4.weight", "score_pool4.bias")


def loaded(path, name="fcn16s_vgg16", **options):
    """A network of 5 classes after load_weights."""
    model = fcnfast.create_model(name, **{"num_classes": 5, **options})
    fcnfast.load_weights(model, path)
    return model


def test_a_classifier_becomes_a_trunk(tmp_path):
    path = tmp_path / "vgg16.pth"
    torch.save(vgg16(), path)
    model = fcnfast.create_model("fcn16s_vgg16", num_classes=7)
    before = model.score_fr.weight
    report = fcnfast.load_weights(model, path)
    assert (report.path, report.format) == (path, "PyTorch")
    assert report.family == "torchvision's VGG-16"
    assert len(report.loaded) == 30 and "fc6.weight" in report.loaded
    assert report.reshaped == {
        "fc6.weight": ((13, 490), (13, 10, 7, 7)),
        "fc7.weight": ((13, 13), (13, 13, 1, 1)),
    }
    assert report.missing == HEADS and report.unexpected == ()
    assert list(report.dropped) == ["classifier.6.weight", "classifier.6.bias"]
    assert report.preprocessing == model.preprocessing == IMAGENET
    assert model.score_fr.weight is before and not before.any()
    for part in (str(path), "fc6.weight: (13, 490) to (13, 10, 7, 7)", "RGB", "0.485",
                 "score_fr.weight: unchanged", "classifier.6.bias: the classifier"):  # fmt: skip
        assert part in str(report)


def test_another_number_of_classes(tmp_path):
    torch.save(weights(), tmp_path / "net.pth")
    model = fcnfast.create_model("fcn16s_vgg16", num_classes=3, weights=tmp_path / "net.pth")
    assert model.num_classes == 3 and model.upsampling == "fixed"
    assert torch.equal(model.fc7.weight, weights()["fc7.weight"])
    assert not model.score_fr.weight.any() and not model.score_pool4.bias.any()
    report = loaded(tmp_path / "net.pth", num_classes=3).load_report
    assert report.missing == HEADS
    assert set(report.dropped) == {*HEADS, "upscore2.weight", "upscore16.weight"}
    assert report.dropped["score_fr.bias"] == "for 5 classes, the network has 3"


def test_bilinear_weights_are_dropped_and_learned_ones_are_not(tmp_path):
    fixed, state = VGG(16).state["upscore16.weight"], weights()
    state["upscore16.weight"] = fixed
    torch.save(state, tmp_path / "net.pth")
    model = loaded(tmp_path / "net.pth")
    report = model.load_report
    assert report.dropped == {"upscore16.weight": "bilinear: the network's fixed upsampling"}
    assert "upscore2.weight" in report.loaded
    assert model.options == {"upsampling": "dense", "final_upsampling": "fixed"}
    # A network that learns it keeps learning it.
    model = fcnfast.create_model("fcn16s_vgg16", num_classes=5, upsampling="depthwise")
    parameter = model.upscore16.weight
    report = fcnfast.load_weights(model, tmp_path / "net.pth")
    assert model.upscore16.weight is parameter
    assert torch.equal(parameter[:, 0], fixed.diagonal().permute(2, 0, 1))
    assert report.reshaped["upscore16.weight"] == ((5, 5, 32, 32), (5, 1, 32, 32))
    assert not report.dropped and model.upsampling == "dense"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bilinear_weights_of_other_types_are_bilinear(tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in VGG(32).state.items()}
    for factor, kind in ((1, "fixed"), (1.01, "depthwise")):
        state["upscore.weight"][3, 3, 30, 30] *= factor
        torch.save(state, tmp_path / "net.pth")
        model = fcnfast.create_model("fcn32s_vgg16", weights=tmp_path / "net.pth")
        assert model.final_upsampling == kind


def test_filters_for_each_class_go_into_a_dense_upsampling(tmp_path):
    theirs = fcnfast.create_model("fcn32s_vgg16", num_classes=5, upsampling="depthwise")
    nn.init.normal_(theirs.upscore.weight)
    fcnfast.save_model(theirs, tmp_path / "net.safetensors")
    model = loaded(tmp_path / "net.safetensors", "fcn32s_vgg16", upsampling="dense")
    own = model.upscore.weight.diagonal().permute(2, 0, 1)
    assert torch.equal(own, theirs.upscore.weight[:, 0])
    assert int(model.upscore.weight.count_nonzero()) == 5 * 64 * 64


def test_a_classifier_without_values_is_left_out(tmp_path):
    """torchvision's IMAGENET1K_FEATURES: the classifier is there, but holds nothing."""
    state = vgg16()
    for value in (torch.nan, 0.0, 3e30):
        broken = {k: v.clone().fill_(value) if "classifier" in k else v for k, v in state.items()}
        if value == 3e30:
            broken["classifier.0.weight"][0, 0] = 1
        torch.save(broken, tmp_path / "features.pth")
        model = fcnfast.create_model("fcn8s_vgg16")
        before = model.fc6.weight.clone()
        report = fcnfast.load_weights(model, tmp_path / "features.pth")
        assert len(report.loaded) == 26
        assert report.missing[:4] == ("fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias")
        assert report.dropped["classifier.0.weight"].startswith("no weights")
        assert torch.equal(model.fc6.weight, before) and before.any()
        p = model.preprocessing
        assert (p.mean, p.order) == ((0.48235, 0.45882, 0.40784), "rgb")
        pixels = model.preprocess(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
        assert torch.allclose(pixels.flatten(), 255 - 255 * torch.tensor(p.mean))


def test_caffe_values_in_torchvisions_layout_are_told_by_their_sum(tmp_path, monkeypatch):
    torch.save(vgg16(), tmp_path / "net.pth")
    digest = hashlib.md5((tmp_path / "net.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(families, "_VGG16_FROM_CAFFE", digest)
    model = fcnfast.create_model("fcn8s_vgg16", weights_backbone=tmp_path / "net.pth")
    assert model.preprocessing == Preprocessing((104.00699, 116.66877, 122.67892), order="bgr")
    early = vgg16(dropout_first=True)
    torch.save(early, tmp_path / "net.pth")
    model = fcnfast.create_model("fcn8s_vgg16", weights_backbone=tmp_path / "net.pth")
    assert model.preprocessing == Preprocessing((103.939, 116.779, 123.68), order="bgr")
    assert torch.equal(model.fc7.weight.flatten(1), early["classifier.4.weight"])


def test_the_family_brings_its_preprocessing_whatever_was_there_before(tmp_path):
    path = tmp_path / "vgg16.pth"
    torch.save(vgg16(), path)
    torch.save(randomize(VGG(32, heads={"": 40})).state_dict(), tmp_path / "fcn.pth")
    model = fcnfast.create_model("nyud_fcn32s_vgg16_color", weights_backbone=path)
    assert model.preprocessing == IMAGENET
    fcnfast.load_weights(model, tmp_path / "fcn.pth")
    assert model.preprocessing == Preprocessing((116.190, 97.203, 92.318), order="bgr")
    ours = Preprocessing((1, 2, 3), (4, 5, 6), scale=0.5, max_size=77)
    model.set_preprocessing(ours)
    fcnfast.save_model(model, tmp_path / "ours.safetensors")
    fcnfast.load_weights(model, path)
    fcnfast.load_weights(model, tmp_path / "ours.safetensors")
    assert model.preprocessing == ours


def test_a_training_checkpoint_of_pytorch_fcn_names_its_class(tmp_path):
    path, names = tmp_path / "model_best.pth.tar", ["fcn8s_vgg16", "fcn8s_atonce_vgg16"]
    for arch, name in zip(("FCN8s", "FCN8sAtOnce"), names, strict=True):
        torch.save({"arch": arch, "model_state_dict": randomize(VGG(8)).state_dict()}, path)
        assert fcnfast.load_model(path).name == name
        with pytest.raises(WeightsError, match="different networks"):
            fcnfast.create_model(next(n for n in names if n != name), weights=path)


def test_another_padding_than_released_networks_have_is_not_silent(tmp_path):
    for kind in ("zip", "caffe"):
        path = tmp_path / kind
        FORMATS[kind](path, weights())
        for padding in (None, 120):
            with pytest.warns(UserWarning, match=f"{path}.*padding=100.*padding={padding}"):
                model = loaded(path, padding=padding)
            assert model.load_report.notes and model.load_report.notes[0] in str(model.load_report)
            assert torch.equal(model.fc7.bias, weights()["fc7.bias"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert loaded(path).load_report.notes == ()
    # A classifier's weights were trained without a canvas.
    torch.save(vgg16(), tmp_path / "vgg16.pth")
    assert loaded(tmp_path / "vgg16.pth", padding=None).load_report.notes == ()


def test_parameters_keep_their_place_and_type(tmp_path):
    state = vgg16()
    torch.save(state, tmp_path / "net.pth")
    model = fcnfast.create_model("fcn32s_vgg16").double()
    parameters = dict(model.named_parameters())
    model.conv1_1.weight.requires_grad_(False)
    fcnfast.load_weights(model, tmp_path / "net.pth")
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name] and parameter.dtype == torch.float64
    assert not model.conv1_1.weight.requires_grad and model.fc7.weight.requires_grad
    assert torch.equal(model.conv1_1.weight, state["features.0.weight"].double())
    with pytest.raises(TypeError, match="a network of fcnfast, not Linear"):
        fcnfast.load_weights(nn.Linear(2, 2), tmp_path / "net.pth")


def test_options_that_change_what_weights_mean_are_compared(tmp_path):
    path, name = tmp_path / "net.safetensors", "fcn8s_vgg16"

    def save(name=name, **options):
        fcnfast.save_model(fcnfast.create_model(name, num_classes=5, **options), path)

    save(padding=81, dropout=0.1)
    with pytest.raises(WeightsError, match="for padding=81, but fcn8s_vgg16.*padding=100"):
        loaded(path, name)
    assert fcnfast.create_model(name, weights=path).padding == 81
    assert loaded(path, name, padding=81).num_classes == 5
    save(padding=100)
    loaded(path, name)
    save("fcn32s_vgg16")  # the stage before
    loaded(path, name)
    says = "=100, but .*=None; create_model.*, padding=100, weights"
    with pytest.raises(WeightsError, match=says):
        fcnfast.create_model(name, padding=None, weights=path)
    save()
    with pytest.raises(WeightsError, match="multiplies pool4 by 1, fcn8s_atonce_vgg16 by 0.01"):
        fcnfast.create_model("fcn8s_atonce_vgg16", weights=path)


def test_our_own_files_lack_and_hold_nothing_else(tmp_path):
    path, name = tmp_path / "net.safetensors", "fcn8s_vgg16"
    fcnfast.save_model(fcnfast.create_model(name, num_classes=5), path)
    assert fcnfast.create_model(name, num_classes=4, weights=path).num_classes == 4
    state, meta = read_weights(path)
    write_weights(path, {k: v for k, v in state.items() if k != "score_pool3.bias"}, meta)
    with pytest.raises(WeightsError, match="has no 'score_pool3.bias'"):
        loaded(path, name)
    write_weights(path, {**state, "note": torch.ones(1)}, meta)
    with pytest.raises(WeightsError, match="holds 'note'"):
        loaded(path, name)
    for options in ({"padding": -1}, {"padding": 1.5}, {"widths": 3}):
        write_weights(path, state, type(meta)(**{**vars(meta), "options": options}))
        with pytest.raises(WeightsError, match="net.safetensors: "):
            fcnfast.load_model(path)


def test_wrapped_networks_are_saved_as_themselves(tmp_path):
    path, options = tmp_path / "a", {"num_classes": np.int64(3), "in_channels": np.int64(1)}
    model = fcnfast.create_model("fcn4s_light", **options)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for wrapped in (torch.compile(model), nn.DataParallel(model), averaged):
        fcnfast.save_model(wrapped, path)
        loaded = fcnfast.load_model(path)
        assert (loaded.num_classes, loaded.in_channels) == (3, 1)
        assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    with pytest.raises(TypeError, match="network of fcnfast, not Conv2d"):
        fcnfast.save_model(nn.Conv2d(1, 1, 1), path)
