"""What holds for every network: outputs, losses, labels, starting values, options, files."""

import copy
import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fcnfast.models
from fcnfast.errors import InputError
from fcnfast.models import FCN, IMAGENET, create_model, list_models, load_model, save_model
from fcnfast.models.decoder import Upscore
from fcnfast.models.skipnet import SkipNet
from fcnfast.models.table import MODELS, Row
from tests.model_tools import ROOT, is_score, narrow_trunks, randomize_scores

NAMES = list_models()
SIZE = (65, 90)
HEADS = {"siftflow": ["out", "geo"], "fcn_resnet": ["out", "aux"]}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    narrow_trunks(monkeypatch)


def heads_of(name):
    return next((heads for start, heads in HEADS.items() if name.startswith(start)), ["out"])


def talking(name, **options):
    torch.manual_seed(2)
    return randomize_scores(create_model(name, **options)).double().eval()


def some_input(model, size=SIZE, count=2):
    torch.manual_seed(3)
    return torch.randn(count, model.channels, *size, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_losses_and_labels_belong_together(name):
    model = talking(name)
    x = some_input(model)
    outputs = model(x)
    assert list(outputs) == heads_of(name)
    assert outputs["out"].shape == (2, MODELS[name].classes, *SIZE)
    labels = model.predict(x)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), outputs["out"].argmax(1))
    assert model.predict(x, size=(33, 180)).shape == (2, 33, 180)
    for head, out in outputs.items():
        assert torch.equal(model.predict(x, head=head).long(), out.argmax(1))
    with pytest.raises(ValueError, match="no head 'depth'"):
        model.predict(x, head="depth")

    targets = {k: torch.randint(0, out.shape[1], (2, *SIZE)) for k, out in outputs.items()}
    targets["out"][:, :9] = 255
    losses = model(x, targets)
    assert list(losses) == ["loss", *outputs]
    total = 0.0
    for head, out in outputs.items():
        part = F.cross_entropy(out, targets[head], ignore_index=255) * (0.5 if head == "aux" else 1)
        assert losses[head].item() == pytest.approx(part.item(), rel=1e-10)
        total += part.item()
    assert losses["loss"].item() == pytest.approx(total, rel=1e-10)
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_new_networks_start_as_they_should(name):
    model = create_model(name)
    assert isinstance(model, FCN)
    assert model.training
    assert (model.name, model.options) == (name, {})
    for key, value in model.named_parameters():
        if is_score(key.rpartition(".")[0]):
            assert not value.any(), key
        elif value.dim() == 4:
            assert value.any(), key
    assert not any(part.startswith("_") for key in model.state_dict() for part in key.split("."))
    assert all(m.inplace is False for m in model.modules() if isinstance(m, nn.Dropout))
    assert not any(isinstance(m, nn.Dropout2d) for m in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_preprocess_makes_the_networks_own_input(name):
    model = create_model(name)
    photo = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    more = {"_d": torch.rand(2, 1, 5, 7) * 5000, "_color_hha": photo.flip(0)}
    extra = next((v for end, v in more.items() if name.endswith(end)), None)
    x = model.preprocess(photo) if extra is None else model.preprocess(photo, extra)
    assert (x.dtype, x.shape) == (torch.float32, (2, model.channels, 5, 7))
    settings = model.preprocessing
    shown = photo.flip(1) if settings.order == "bgr" else photo
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (settings.mean, settings.std))
    assert torch.allclose(x[:, :3], (shown * settings.scale - mean) / std, atol=1e-5)
    assert create_model(name).default_preprocessing == settings


@pytest.mark.parametrize("name", [name for name in NAMES if re.search(r"fcn\d+s_", name)])
@torch.no_grad()
def test_names_say_the_stride_of_the_scores(name):
    model = create_model(name).eval()
    sizes = [
        model.score_maps(torch.zeros(1, model.channels, 32, 32 * n))["out"].scores.shape[3]
        for n in (2, 4)
    ]
    assert f"fcn{64 // (sizes[1] - sizes[0])}s_" in name


def test_the_readme_names_every_kind_of_network():
    """And the released ones' numbers of classes are those of their data sets."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {row.make for name, row in MODELS.items() if f"`{name}`" in readme}
    assert {row.make.__name__ for row in MODELS.values()} == {make.__name__ for make in named}
    classes = {"nyud_": 40, "siftflow_": 33, "pascalcontext_": 60, "fcn_resnet50": 21}
    for start, count in {**classes, "fcn_resnet50_mmseg": 19, "fcn4s_": 11}.items():
        assert count in {MODELS[name].classes for name in NAMES if name.startswith(start)}


def test_preprocessing_of_the_data_sets():
    """Means in the order of the channels."""
    for name, order, mean in (
        ("fcn32s_alexnet", "bgr", (104.00699, 116.66877, 122.67892)),
        ("nyud_fcn32s_vgg16_color", "bgr", (116.190, 97.203, 92.318)),
        ("nyud_fcn32s_vgg16_hha", "rgb", (132.431, 94.076, 118.477)),
        ("siftflow_fcn16s_vgg16", "bgr", (114.578, 115.294, 108.353)),
        ("pascalcontext_fcn8s_vgg16", "bgr", (104.007, 116.669, 122.679)),
        ("fcn_resnet50", "rgb", (0.485, 0.456, 0.406)),
    ):
        settings = create_model(name).preprocessing
        assert (settings.order, settings.mean) == (order, mean)


def test_depth_is_a_logarithm_and_unknown_depth_says_nothing():
    model = create_model("nyud_fcn32s_vgg16_color_d", depth_mean=7.0)
    photo = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    depth = torch.tensor([[[[2550.0, 0.0], [float("nan"), 1.0]]]])
    logs = model.preprocess(photo, depth)[:, 3]
    expected = torch.tensor([[[2550.0, 1.0], [1.0, 1.0]]]).log() - 7
    expected[0, 0, 1] = expected[0, 1, 0] = 0
    assert torch.allclose(logs, expected)
    assert torch.equal(model.preprocess(photo, depth.nan_to_num().int())[:, 3], logs)
    with pytest.raises(InputError, match="color_d needs the depth"):
        model.preprocess(photo)
    with pytest.raises(TypeError, match="must be a tensor, not ndarray"):
        model.preprocess(photo, depth.numpy())
    with pytest.raises(ValueError, match="depth must be"):
        model.preprocess(photo, depth[0])
    with pytest.raises(TypeError, match="uint8"):
        model.preprocess(photo, depth.to(torch.uint8))
    late = create_model("nyud_fcn32s_vgg16_color_hha", hha_mean=[1.0, 2.0, 3.0])
    x = late.preprocess(photo, photo + 5)
    assert torch.equal(x[0, 3:, 0, 0], torch.tensor([4.0, 3.0, 2.0]))  # as stored, not flipped
    with pytest.raises(InputError, match="color_hha needs the HHA"):
        late.preprocess(photo)
    with pytest.raises(TypeError, match="hha must be a uint8 tensor"):
        late.preprocess(photo, photo.float())
    with pytest.raises(ValueError, match="hha must be"):
        late.preprocess(photo, photo[:, :2])


@pytest.mark.parametrize("name", [n for n in NAMES if issubclass(MODELS[n].make, SkipNet)])
@pytest.mark.parametrize("kind", ["depthwise", "dense"])
def test_learned_upsampling_starts_as_the_fixed_one(name, kind):
    model = talking(name, num_classes=3)
    x = some_input(model)
    fixed = model(x)
    for final in (None, "fixed"):
        model.set_upsampling(kind, final)
        for head, out in model(x).items():
            assert (out - fixed[head]).abs().max() < 1e-12 * fixed[head].abs().max()
        ups = {key for key, layer in model.named_modules() if isinstance(layer, Upscore)}
        assert ups == set(model.upscores) - (set(model.final_upscores) if final else set())
    again = create_model(name, num_classes=3, **model.options)
    assert again.state_dict().keys() == model.state_dict().keys()
    model.set_upsampling("fixed")
    assert model.options == {}
    assert not any(isinstance(layer, Upscore) for layer in model.modules())


def test_learned_upsampling_learns_and_keeps_what_it_learned():
    model = talking("fcn8s_vgg16", num_classes=3, upsampling="dense", final_upsampling="depthwise")
    assert model.upscore2.weight.shape == (3, 3, 4, 4)
    assert model.upscore8.weight.shape == (3, 1, 16, 16)
    x = some_input(model)
    loss = model(x, torch.randint(0, 3, (2, *SIZE)))["loss"]
    expected = F.cross_entropy(model(x)["out"], torch.randint(0, 3, (2, *SIZE)))
    assert loss.isfinite() and expected.isfinite()
    loss.backward()
    for name in model.upscores:
        assert getattr(model, name).weight.grad.abs().sum() > 0
    nn.init.ones_(model.upscore2.weight)
    model.set_upsampling("dense")
    assert model.upscore2.weight.eq(1).all()
    assert model.upscore8.weight.shape == (3, 3, 16, 16)
    with pytest.raises(ValueError, match="upsampling must be one of fixed, depthwise, dense"):
        model.set_upsampling("bicubic")
    with pytest.raises(ValueError, match="final_upsampling must be"):
        create_model("fcn8s_vgg16", final_upsampling="bicubic")


@pytest.mark.parametrize("name", NAMES)
def test_every_network_has_a_factory_and_survives_a_file(name, tmp_path):
    factory = getattr(fcnfast.models, name)
    assert "weights" in inspect.signature(factory).parameters
    assert name in dir(fcnfast.models)
    assert MODELS[name].about in factory.__doc__
    model = randomize_scores(factory(num_classes=4)).eval()
    save_model(model, tmp_path / "net.safetensors")
    loaded = load_model(tmp_path / "net.safetensors")
    assert loaded.name == name
    x = some_input(model, count=1).float()
    assert torch.equal(loaded(x)["out"], model(x)["out"])
    assert torch.equal(copy.deepcopy(model).predict(x), model.predict(x))


def test_options_travel_in_files(tmp_path):
    cases = [
        ("fcn8s_vgg16", {"padding": None, "fc6_padding": 3, "upsampling": "depthwise"}),
        ("fcn32s_alexnet", {"family": "torchvision", "padding": 90, "dropout": 0.1}),
        ("fcn16s_googlenet", {"family": "torchvision", "final_upsampling": "dense"}),
        ("nyud_fcn32s_vgg16_color_hha", {"hha_mean": [1.0, 2.0, 3.0]}),
        ("fcn_resnet50", {"aux_loss": False, "aligned": True}),
    ]
    for name, options in cases:
        model = randomize_scores(create_model(name, num_classes=2, **options)).eval()
        save_model(model, tmp_path / "net.safetensors")
        loaded = load_model(tmp_path / "net.safetensors")
        assert loaded.options == options
        x = some_input(model, (40, 50)).float()
        assert torch.equal(loaded(x)["out"], model(x)["out"])


def test_a_learned_upsampling_set_later_travels_too(tmp_path):
    model = talking("fcn16s_vgg16", num_classes=2).float()
    model.set_upsampling("depthwise", "fixed")
    nn.init.normal_(model.upscore2.weight)
    save_model(model, tmp_path / "net.safetensors")
    loaded = load_model(tmp_path / "net.safetensors")
    x = some_input(model).float()
    assert torch.equal(loaded(x)["out"], model.eval()(x)["out"])


@pytest.mark.parametrize(
    ("name", "options", "size", "message"),
    [
        ("fcn8s_vgg16", {"padding": None}, (192, 300), "pool5 is .6, 10., fc6 needs 7 x 7"),
        ("fcn32s_alexnet", {"padding": None}, (188, 300), "pool5 is .5, 9., fc6 needs 6 x 6"),
        ("fcn32s_googlenet", {}, (30, 64), "for a padding of 3: .*pool4 needs 3 x 3"),
        ("fcn8s_vgg16", {"padding": 90}, (14, 300), "for a padding of 90: pool5 is"),
    ],
)
def test_images_that_are_too_small_are_named(name, options, size, message):
    model = create_model(name, num_classes=2, **options).eval()
    with pytest.raises(
        ValueError, match=f"an image of .{size[0]}, {size[1]}. is too small.*{message}"
    ):
        model(torch.zeros(1, 3, *size))
    larger = (size[0] + 1, size[1])
    assert model(torch.zeros(1, 3, *larger))["out"].shape[-2:] == larger


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("fcn32s_alexnet", {"padding": 84}, ValueError, "would miss the last 1"),
        ("fcn32s_alexnet", {"padding": 70}, ValueError, "begin 12 pixels inside"),
        ("fcn8s_googlenet", {"padding": 2}, ValueError, "padding 2 is too small for stride 8"),
        (None, {}, TypeError, "name must be that of a network .* not None"),
        (None, {"weights": "net.pth"}, TypeError, "name must be that of a network .* not None"),
        ("fcn8s_vgg16", {"paddings": 3}, TypeError, "fcn8s_vgg16 has no .*'paddings'; .*padding?"),
        ("fcn4s_light", {"x": 3}, TypeError, "fcn4s_light .* its options: widths, depths, decoder"),
        ("fcn8s_vgg16", {"weights": ""}, fcnfast.InputError, "path .* is empty"),
        ("fcn8s_vgg16", {"weights": {}}, TypeError, "by its path, not by dict"),
        *(
            (name, {"dropout": value}, error, f"dropout must be .* 0 to 1, not {value!r}")
            for name in ("fcn8s_vgg16", "fcn32s_googlenet", "fcn4s_light", "fcn_resnet50_mmseg")
            for value, error in (("a", TypeError), (None, TypeError), (1.5, ValueError))
        ),
        ("fcn8s_vgg16", {"num_classes": 0}, ValueError, "num_classes must be a positive .* not 0"),
        ("fcn8s_vgg16", {"geo_classes": 0}, ValueError, "geo_classes must be a positive .* not 0"),
        ("fcn8s_vgg16", {"geo_classes": True}, ValueError, "geo_classes .* not True"),
        ("fcn8s_vgg16", {"padding": 2.5}, ValueError, "padding must be None or"),
        ("fcn8s_vgg16", {"padding": True}, ValueError, "padding must be None or"),
        ("fcn8s_vgg16", {"fc6_padding": 3}, ValueError, "needs padding=None"),
        ("fcn8s_vgg16", {"padding": None, "fc6_padding": 4}, ValueError, "must be 0 to 3"),
        ("fcn32s_alexnet", {"fc6_padding": 1}, ValueError, "needs padding=None"),
        ("fcn32s_alexnet", {"family": "keras"}, ValueError, "caffe, torchvision, not 'keras'"),
        ("fcn8s_googlenet", {"family": "keras"}, ValueError, "not 'keras'"),
        ("fcn8s_googlenet", {"stride": 8}, TypeError, "fixes stride"),
        ("siftflow_fcn8s_vgg16", {"geo_classes": 4}, TypeError, "fixes geo_classes"),
        ("nyud_fcn32s_vgg16_color_d", {"stride": 8}, TypeError, "stride"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        create_model(name, **options)


def test_inputs_that_are_not_the_networks_own_are_refused():
    model = create_model("nyud_fcn32s_vgg16_color_d").eval()
    for call in (model, model.predict):
        with pytest.raises(ValueError, match="N x 4 x H x W, not .1, 3, 8, 8."):
            call(torch.zeros(1, 3, 8, 8))
        with pytest.raises(TypeError, match="uint8: see preprocess"):
            call(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))
        with pytest.raises(ValueError, match="N x 4"):
            call(torch.zeros(1, 4, 0, 8))


def test_what_is_on_the_meta_device_gets_starting_values():
    """As when a file has only a part of a network."""
    with torch.device("meta"):
        model = create_model("fcn8s_resnet18", num_classes=3, upsampling="depthwise")
    kept = nn.Parameter(torch.full((3, 8, 1, 1), 7.0))
    assert model.score_layer3.weight.shape == kept.shape
    model.score_layer3.weight = kept
    model.materialize()
    assert model.score_layer3.weight is kept
    assert not model.score_layer3.bias.any()
    assert model.layer1[0].conv1.weight.std() > 0
    assert model.layer1[0].bn1.running_var.eq(1).all()
    fresh = create_model("fcn8s_resnet18", num_classes=3, upsampling="depthwise")
    assert torch.equal(model.upscore2.weight, fresh.upscore2.weight)
    x = some_input(model, count=1).float()
    assert model.eval().predict(x).shape == (1, *SIZE)


class FCN4sTiny(SkipNet):
    """A network of one's own: its layers, where it reads scores, and nothing else."""

    def __init__(self, num_classes=21, *, width=8, upsampling="fixed", final_upsampling=None):
        super().__init__(num_classes, IMAGENET)
        self.add_trunk(
            {
                "conv1": nn.Conv2d(3, width, 5, stride=2, padding=2),
                "relu1": nn.ReLU(inplace=True),
                "pool1": nn.MaxPool2d(2, ceil_mode=True),
                "conv2": nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
                "relu2": nn.ReLU(inplace=True),
            }
        )
        self.add_heads({"conv2": 2 * width, "pool1": width})
        self.finish(upsampling, final_upsampling)


def test_one_short_class_and_one_row_make_a_network(monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS, "fcn4s_tiny", Row(FCN4sTiny, "a network of one's own", classes=5))
    model = talking("fcn4s_tiny", width=4)
    assert list(model.fields()) == ["conv1", "pool1", "conv2"]
    assert model.upscores == ["upscore2", "upscore4"]
    x = some_input(model)
    out = model(x)["out"]
    assert out.shape == (2, 5, *SIZE)
    assert torch.equal(model.predict(x).long(), out.argmax(1))
    save_model(model, tmp_path / "net.safetensors")
    assert load_model(tmp_path / "net.safetensors").options == {"width": 4}
    assert fcnfast.models.fcn4s_tiny(num_classes=2).num_classes == 2


@pytest.mark.parametrize(
    ("name", "message"), [("conv.1", "it holds a dot"), ("features", "FCN4sTiny has that already")]
)
def test_names_that_layers_cannot_have(name, message):
    with pytest.raises(ValueError, match=f"cannot be called {name!r}: {message}"):
        FCN4sTiny().add_trunk({name: nn.ReLU()})


def test_activations_and_norms_leave_a_map_its_name():
    model = FCN4sTiny()
    model.add_trunk({"act": nn.Hardswish(), "norm": nn.GroupNorm(1, 16), "drop": nn.Dropout2d()})
    assert list(model.fields()) == ["conv1", "pool1", "conv2"]
    x = model.eval().features(torch.randn(1, 3, 20, 20))["conv2"].x
    assert x.mean().abs() < 1e-6  # normalized: the map is that behind all of them


def test_compilers_see_one_graph():
    """The forward pass with targets, as training calls it."""
    model = randomize_scores(create_model("fcn8s_resnet18", num_classes=3)).eval()
    x, targets = some_input(model).float(), torch.randint(0, 3, (2, *SIZE))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x, targets)["loss"], model(x, targets)["loss"])
