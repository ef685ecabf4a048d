"""What `load_weights`, `create_model` and `load_model` make of a file: report, classes, memory."""

import hashlib
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fcnfast
from fcnfast.errors import WeightsError
from fcnfast.models import IMAGENET, Preprocessing
from fcnfast.weights import write_weights
from tests.foreign_nets import VGG, randomize
from tests.foreign_torch_nets import VGG16
from tests.model_tools import narrow_trunks
from tests.weights_tools import narrow_vgg
from tests.wire_tools import caffemodel


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_vgg(monkeypatch)


def classifier(path: Path) -> dict[str, Tensor]:
    """A narrow VGG-16 of torchvision's layout."""
    state = randomize(VGG16()).weights()
    torch.save(state, path)
    return state


@pytest.mark.usefixtures("narrow")
class TestReport:
    def test_a_classifier_becomes_a_trunk(self, tmp_path):
        path = tmp_path / "vgg16.pth"
        classifier(path)
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
        heads = ("score_fr", "score_pool4")
        assert report.missing == tuple(f"{n}.{w}" for n in heads for w in ("weight", "bias"))
        assert list(report.dropped) == ["classifier.6.weight", "classifier.6.bias"]
        assert report.unexpected == ()
        assert report.preprocessing == model.preprocessing == IMAGENET
        assert model.score_fr.weight is before and not before.any()
        text = str(report)
        for part in (str(path), "fc6.weight: (13, 490) to (13, 10, 7, 7)", "RGB", "0.485"):
            assert part in text
        assert "score_fr.weight: as it was" in text and "classifier.6.bias: the classifier" in text

    def test_another_number_of_classes(self, tmp_path):
        state = randomize(VGG(16, heads={"": 5})).state_dict()
        torch.save(state, tmp_path / "net.pth")
        model = fcnfast.create_model("fcn16s_vgg16", num_classes=3, weights=tmp_path / "net.pth")
        assert model.num_classes == 3 and model.upsampling == "fixed"
        assert torch.equal(model.fc7.weight, state["fc7.weight"])
        assert not model.score_fr.weight.any() and not model.score_pool4.bias.any()
        model = fcnfast.create_model("fcn16s_vgg16", num_classes=3)
        report = fcnfast.load_weights(model, tmp_path / "net.pth")
        assert report.missing == (
            "score_fr.weight",
            "score_fr.bias",
            "score_pool4.weight",
            "score_pool4.bias",
        )
        assert set(report.dropped) == set(report.missing) | {"upscore2.weight", "upscore16.weight"}
        assert report.dropped["score_fr.bias"] == "for 5 classes, the network has 3"

    def test_a_finer_net_takes_what_a_coarser_one_has_and_the_other_way_round(self, tmp_path):
        """Staging, 32s to 16s to 8s: score_fr stays, the new skip keeps its start."""
        coarse = fcnfast.create_model("fcn32s_vgg16", num_classes=5)
        coarse.load_state_dict(randomize(VGG(32)).state_dict(), strict=False)
        fcnfast.save_model(coarse, tmp_path / "32s.safetensors")
        report = fcnfast.load_weights(
            model := fcnfast.create_model("fcn16s_vgg16", num_classes=5),
            tmp_path / "32s.safetensors",
        )
        assert report.missing == ("score_pool4.weight", "score_pool4.bias")
        assert torch.equal(model.score_fr.weight, coarse.score_fr.weight)
        torch.save(randomize(VGG(8)).state_dict(), tmp_path / "8s.pth")
        report = fcnfast.load_weights(coarse, tmp_path / "8s.pth")
        assert report.missing == ()
        assert report.unexpected == (
            "upscore2.weight",
            "score_pool4.weight",
            "score_pool4.bias",
            "upscore_pool4.weight",
            "score_pool3.weight",
            "score_pool3.bias",
            "upscore8.weight",
        )

    def test_bilinear_weights_are_dropped_and_learned_ones_are_not(self, tmp_path):
        theirs = randomize(VGG(16))
        fixed = VGG(16)
        theirs.upscore16.load_state_dict(fixed.upscore16.state_dict())
        torch.save(theirs.state_dict(), tmp_path / "net.pth")
        model = fcnfast.create_model("fcn16s_vgg16", num_classes=5)
        report = fcnfast.load_weights(model, tmp_path / "net.pth")
        assert report.dropped == {"upscore16.weight": "bilinear: the network's fixed upsampling"}
        assert "upscore2.weight" in report.loaded
        assert model.options == {"upsampling": "dense", "final_upsampling": "fixed"}
        # A network that learns it keeps learning it.
        model = fcnfast.create_model("fcn16s_vgg16", num_classes=5, upsampling="depthwise")
        parameter = model.upscore16.weight
        report = fcnfast.load_weights(model, tmp_path / "net.pth")
        assert model.upscore16.weight is parameter
        assert torch.equal(parameter[:, 0], fixed.upscore16.weight.diagonal().permute(2, 0, 1))
        assert report.reshaped["upscore16.weight"] == ((5, 5, 32, 32), (5, 1, 32, 32))
        assert not report.dropped and model.upsampling == "dense"

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_bilinear_weights_of_other_types_are_bilinear(self, tmp_path, dtype):
        state = {key: value.to(dtype) for key, value in VGG(32).state_dict().items()}
        torch.save(state, tmp_path / "net.pth")
        model = fcnfast.create_model("fcn32s_vgg16", weights=tmp_path / "net.pth")
        assert model.final_upsampling == "fixed"
        state["upscore.weight"][3, 3, 30, 30] *= 1.01
        torch.save(state, tmp_path / "net.pth")
        model = fcnfast.create_model("fcn32s_vgg16", weights=tmp_path / "net.pth")
        assert model.final_upsampling == "depthwise"

    def test_filters_for_each_class_go_into_a_dense_upsampling(self, tmp_path):
        theirs = fcnfast.create_model("fcn32s_vgg16", num_classes=5, upsampling="depthwise")
        torch.nn.init.normal_(theirs.upscore.weight)
        fcnfast.save_model(theirs, tmp_path / "net.safetensors")
        model = fcnfast.create_model("fcn32s_vgg16", num_classes=5, upsampling="dense")
        fcnfast.load_weights(model, tmp_path / "net.safetensors")
        own = model.upscore.weight.diagonal().permute(2, 0, 1)
        assert torch.equal(own, theirs.upscore.weight[:, 0])
        assert int(model.upscore.weight.count_nonzero()) == 5 * 64 * 64

    def test_a_classifier_without_values_is_left_out(self, tmp_path):
        """torchvision's IMAGENET1K_FEATURES: the classifier is there, but holds nothing."""
        state = classifier(tmp_path / "whole.pth")
        for what, value in (("nan", torch.nan), ("zero", 0.0), ("rubbish", 3e30)):
            broken = {k: v.clone() for k, v in state.items()}
            for key in broken:
                if key.startswith("classifier"):
                    broken[key].fill_(value)
            if what == "rubbish":
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
            image = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
            expected = 255 - 255 * torch.tensor(p.mean)
            assert torch.allclose(model.preprocess(image).flatten(), expected)

    def test_caffe_values_in_torchvisions_layout_are_told_by_their_sum(self, tmp_path, monkeypatch):
        from fcnfast.weights import families

        classifier(tmp_path / "net.pth")
        digest = hashlib.md5((tmp_path / "net.pth").read_bytes()).hexdigest()
        monkeypatch.setattr(families, "_VGG16_FROM_CAFFE", digest)
        model = fcnfast.create_model("fcn8s_vgg16", weights_backbone=tmp_path / "net.pth")
        assert model.preprocessing.order == "bgr"
        assert model.preprocessing.mean == (104.00699, 116.66877, 122.67892)

    def test_the_family_brings_its_preprocessing_whatever_was_there_before(self, tmp_path):
        classifier(tmp_path / "vgg16.pth")
        torch.save(randomize(VGG(32, heads={"": 40})).state_dict(), tmp_path / "fcn.pth")
        path = tmp_path / "vgg16.pth"
        model = fcnfast.create_model("nyud_fcn32s_vgg16_color", weights_backbone=path)
        assert model.preprocessing == IMAGENET
        fcnfast.load_weights(model, tmp_path / "fcn.pth")
        assert model.preprocessing == Preprocessing((116.190, 97.203, 92.318), order="bgr")
        ours = Preprocessing((1, 2, 3), (4, 5, 6), scale=0.5, max_size=77)
        model.set_preprocessing(ours)
        fcnfast.save_model(model, tmp_path / "ours.safetensors")
        fcnfast.load_weights(model, tmp_path / "vgg16.pth")
        fcnfast.load_weights(model, tmp_path / "ours.safetensors")
        assert model.preprocessing == ours

    def test_a_training_checkpoint_of_pytorch_fcn_names_its_class(self, tmp_path):
        path = tmp_path / "model_best.pth.tar"
        for arch, name, other in (
            ("FCN8s", "fcn8s_vgg16", "fcn8s_atonce_vgg16"),
            ("FCN8sAtOnce", "fcn8s_atonce_vgg16", "fcn8s_vgg16"),
        ):
            state = randomize(VGG(8)).state_dict()
            torch.save({"arch": arch, "model_state_dict": state}, path)
            assert fcnfast.load_model(path).name == name
            with pytest.raises(WeightsError, match="two networks"):
                fcnfast.create_model(other, weights=path)

    def test_another_padding_than_released_networks_have_is_not_silent(self, tmp_path):
        torch.save(randomize(VGG(16)).state_dict(), tmp_path / "net.pth")
        (tmp_path / "net.caffemodel").write_bytes(caffemodel(randomize(VGG(16)).state_dict()))
        for path in (tmp_path / "net.pth", tmp_path / "net.caffemodel"):
            for padding in (None, 120):
                model = fcnfast.create_model("fcn16s_vgg16", num_classes=5, padding=padding)
                with pytest.warns(UserWarning, match=f"{path}.*padding=100.*padding={padding}"):
                    report = fcnfast.load_weights(model, path)
                assert report.notes and report.notes[0] in str(report)
                assert torch.equal(model.fc7.bias, randomize(VGG(16)).fc7.bias)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model = fcnfast.create_model("fcn16s_vgg16", weights=path)
                assert fcnfast.load_weights(model, path).notes == ()
        # A classifier's weights were trained without a canvas.
        classifier(tmp_path / "vgg16.pth")
        model = fcnfast.create_model("fcn16s_vgg16", padding=None)
        assert fcnfast.load_weights(model, tmp_path / "vgg16.pth").notes == ()

    def test_only_networks_of_fcnfast_are_loaded(self, tmp_path):
        with pytest.raises(TypeError, match="a network of fcnfast, not Linear"):
            fcnfast.load_weights(nn.Linear(2, 2), tmp_path / "net.pth")

    def test_parameters_keep_their_place_and_type(self, tmp_path):
        state = classifier(tmp_path / "net.pth")
        model = fcnfast.create_model("fcn32s_vgg16").double()
        parameters = dict(model.named_parameters())
        model.conv1_1.weight.requires_grad_(False)
        fcnfast.load_weights(model, tmp_path / "net.pth")
        for name, parameter in model.named_parameters():
            assert parameter is parameters[name] and parameter.dtype == torch.float64
        assert not model.conv1_1.weight.requires_grad and model.fc7.weight.requires_grad
        assert torch.equal(model.conv1_1.weight, state["features.0.weight"].double())

    def test_what_a_file_lacks_starts_as_in_a_new_network(self, tmp_path):
        torch.save(randomize(foreign_resnet()).state_dict(), tmp_path / "net.pth")
        path = tmp_path / "net.pth"
        model = fcnfast.create_model("fcn_resnet50", num_classes=4, weights_backbone=path)
        assert model.classifier[0].weight.std() > 0 and not model.classifier[0].weight.is_meta
        assert not model.classifier[4].weight.any() and not model.classifier[4].bias.any()
        assert torch.equal(model.classifier[1].running_var, torch.ones(512))
        assert model.training


def foreign_resnet() -> nn.Module:
    from tests import foreign_torch_nets

    old, foreign_torch_nets.RESNET = foreign_torch_nets.RESNET, 64
    try:
        return foreign_torch_nets.ResNet(dilated=True)
    finally:
        foreign_torch_nets.RESNET = old


@pytest.mark.usefixtures("narrow")
class TestOurs:
    def test_another_number_of_classes_or_another_network(self, tmp_path):
        path = tmp_path / "net.safetensors"
        model = fcnfast.create_model("fcn8s_vgg16", num_classes=5)
        fcnfast.save_model(model, path)
        again = fcnfast.create_model("fcn8s_vgg16", num_classes=4, weights=path)
        assert torch.equal(again.fc6.weight, model.fc6.weight)
        with pytest.raises(WeightsError, match="multiplies pool4 by 1, fcn8s_atonce_vgg16 by 0.01"):
            fcnfast.create_model("fcn8s_atonce_vgg16", weights=path)

    def test_options_that_change_what_weights_mean_are_compared(self, tmp_path):
        path = tmp_path / "net.safetensors"
        fcnfast.save_model(fcnfast.create_model("fcn8s_vgg16", padding=81, dropout=0.1), path)
        model = fcnfast.create_model("fcn8s_vgg16")
        with pytest.raises(WeightsError, match="for padding=81, but fcn8s_vgg16.*padding=100"):
            fcnfast.load_weights(model, path)
        assert fcnfast.create_model("fcn8s_vgg16", weights=path).padding == 81
        fcnfast.load_weights(fcnfast.create_model("fcn8s_vgg16", padding=81), path)
        fcnfast.save_model(fcnfast.create_model("fcn8s_vgg16", padding=100), path)
        fcnfast.load_weights(model, path)
        fcnfast.save_model(fcnfast.create_model("fcn32s_vgg16"), path)  # the stage before
        fcnfast.load_weights(model, path)
        with pytest.raises(
            WeightsError, match="=100, but .*=None; create_model.*, padding=100, weights"
        ):
            fcnfast.create_model("fcn8s_vgg16", padding=None, weights=path)

    def test_what_is_missing_or_too_much_is_an_error(self, tmp_path):
        from fcnfast.weights import read_weights

        path = tmp_path / "net.safetensors"
        model = fcnfast.create_model("fcn8s_vgg16", num_classes=5)
        fcnfast.save_model(model, path)
        state, meta = read_weights(path)
        write_weights(path, {k: v for k, v in state.items() if k != "score_pool3.bias"}, meta)
        with pytest.raises(WeightsError, match="has no 'score_pool3.bias'"):
            fcnfast.load_weights(model, path)
        write_weights(path, {**state, "note": torch.ones(1)}, meta)
        with pytest.raises(WeightsError, match="holds 'note'"):
            fcnfast.load_weights(model, path)

    def test_a_checkpoint_of_a_training_says_what_it_is(self, tmp_path):
        model = fcnfast.create_model("fcn4s_light", num_classes=3, widths=(8,) * 5, decoder=8)
        model.set_preprocessing(Preprocessing((1, 2, 3), max_size=99))
        content = {
            "format": "fcnfast checkpoint 1",
            "settings": {"model": "fcn4s_light"},
            "network": {
                "options": model.options,
                "preprocessing": model.preprocessing.to_json(),
            },
            "model": model.state_dict(),
            "average": {"module.score.bias": torch.ones(3)},
        }
        torch.save(content, tmp_path / "checkpoint.pt")
        loaded = fcnfast.load_model(tmp_path / "checkpoint.pt")
        assert loaded.options == model.options and loaded.preprocessing == model.preprocessing
        assert torch.equal(loaded.score.weight, model.score.weight)


def test_half_a_head_is_of_another_network(tmp_path):
    """Other heads of mmsegmentation end in the same layer; what comes before it differs."""
    with torch.device("meta"):
        state = fcnfast.create_model("fcn_resnet50_mmseg", num_classes=2).state_dict()
    tensors = {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()}
    torch.save({k: v for k, v in tensors.items() if "decode_head.convs" not in k}, tmp_path / "net")
    with pytest.raises(WeightsError, match="has no 'decode_head.convs.0.conv.weight'"):
        fcnfast.load_model(tmp_path / "net")


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_a_plain_state_dict_of_a_resnet_tells_its_depth(tmp_path, monkeypatch, depth):
    narrow_trunks(monkeypatch)
    model = fcnfast.create_model(f"fcn8s_resnet{depth}", num_classes=3)
    state = model.state_dict()
    torch.save(state, tmp_path / "net.pth")
    loaded = fcnfast.load_model(tmp_path / "net.pth")
    assert (loaded.name, loaded.num_classes) == (model.name, 3)
    assert torch.equal(loaded.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    if depth == 34:  # of no ResNet that there is
        torch.save({k: v for k, v in state.items() if "layer1.2" not in k}, tmp_path / "net.pth")
        with pytest.raises(WeightsError, match=r"has no 'layer1\.2\.conv1\.weight'"):
            fcnfast.load_model(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["fcn4s_light", "fcn4s_lite0"])
def test_a_plain_state_dict_tells_its_network_and_a_trunk_alone_that_it_is_one(tmp_path, name):
    """Of networks whose layers no other program names so; behind a wrapper's prefix, too."""
    model = fcnfast.create_model(name, num_classes=3)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    loaded = fcnfast.load_model(tmp_path / "net.pth")
    assert (loaded.name, loaded.num_classes) == (name, 3)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    trunk = {k: v for k, v in state.items() if not k.startswith("module.score")}
    torch.save(trunk, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=rf"no scores .*create_model\('{name}', weights_b"):
        fcnfast.load_model(tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"is a classifier; .*weights_backbone"):
        fcnfast.create_model(name, weights=tmp_path / "net.pth")
    again = fcnfast.create_model(name, weights_backbone=tmp_path / "net.pth")
    assert again.load_report.missing == ("score.weight", "score.bias")
