"""What holds for every network: outputs, losses, labels, starting values, files."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fcnfast.models
from fcnfast.errors import InputError
from fcnfast.models import FCN, create_model, list_models, load_model, save_model
from fcnfast.models.decoder import Upscore
from fcnfast.models.skipnet import SkipNet
from fcnfast.models.table import MODELS
from tests.model_tools import is_score, randomize_scores

pytestmark = pytest.mark.usefixtures("narrow")

NAMES = list_models()
SIZE = (65, 90)
HEADS = {"siftflow": ["out", "geo"], "fcn_resnet": ["out", "aux"]}


def talking(name, **options):
    torch.manual_seed(2)
    return randomize_scores(create_model(name, **options)).double().eval()


def some_input(model, size=SIZE, count=2):
    torch.manual_seed(3)
    return torch.randn(count, model.channels, *size, dtype=torch.float64)


def through_a_file(model, folder):
    save_model(model, folder / "net.safetensors")
    return load_model(folder / "net.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_losses_and_labels_belong_together(name, tmp_path):
    model = talking(name)
    x = some_input(model)
    outputs = model(x)
    heads = next((heads for start, heads in HEADS.items() if name.startswith(start)), ["out"])
    assert list(outputs) == heads
    assert outputs["out"].shape == (2, MODELS[name].classes, *SIZE)
    assert model.predict(x).dtype == torch.uint8
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
    # The same after a file, and of a copy.
    again = through_a_file(model, tmp_path).double()
    assert again.name == name and not again.training
    assert torch.equal(again(x)["out"], outputs["out"])
    assert torch.equal(copy.deepcopy(model).predict(x), model.predict(x))


@pytest.mark.parametrize("name", NAMES)
def test_new_networks_start_as_they_should(name):
    factory = getattr(fcnfast.models, name)
    assert "weights" in inspect.signature(factory).parameters and name in dir(fcnfast.models)
    assert MODELS[name].about in factory.__doc__
    model = factory()
    assert isinstance(model, FCN) and model.training
    assert (model.name, model.options) == (name, {})
    for key, value in model.named_parameters():
        if is_score(key.rpartition(".")[0]):
            assert not value.any(), key
        elif value.dim() == 4:
            assert value.any(), key
    assert not any(part.startswith("_") for key in model.state_dict() for part in key.split("."))
    assert all(m.inplace is False for m in model.modules() if isinstance(m, nn.Dropout))
    assert not any(isinstance(m, nn.Dropout2d) for m in model.modules())

    photo = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    more = {"_d": torch.rand(2, 1, 5, 7) * 5000, "_color_hha": photo.flip(0)}
    x = model.preprocess(photo, *(v for end, v in more.items() if name.endswith(end)))
    assert (x.dtype, x.shape) == (torch.float32, (2, model.channels, 5, 7))
    settings = model.preprocessing
    shown = photo.flip(1) if settings.order == "bgr" else photo
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (settings.mean, settings.std))
    assert torch.allclose(x[:, :3], (shown * settings.scale - mean) / std, atol=1e-5)
    assert model.default_preprocessing == settings


def test_counts_of_parameters(monkeypatch):
    """Learnable ones at the real widths: the papers', and torchvision's without its last layer."""
    counts = {
        "fcn32s_vgg16": 134_346_581,
        "fcn16s_vgg16": 134_357_354,
        "fcn8s_vgg16": 134_362_751,
        "fcn32s_alexnet": 56_954_261,
        "fcn32s_googlenet": 5_995_077,
        "nyud_fcn32s_vgg16_color": 134_424_424,
        "nyud_fcn32s_vgg16_color_d": 134_425_000,
        "nyud_fcn32s_vgg16_color_hha": 268_848_848,
        "siftflow_fcn8s_vgg16": 134_435_756,
        "pascalcontext_fcn8s_vgg16": 134_552_564,
        "fcn_resnet50": 35_322_218,
        "fcn_resnet101": 54_314_346,
        "fcn32s_alexnet torchvision": 61_100_840 - 4097 * 1000 + 4097 * 21,
        "fcn32s_googlenet torchvision": 6_624_904 - 1025 * 1000 + 1025 * 21,
        "fcn8s_resnet18": 11_689_512 - 513 * 1000 + (513 + 257 + 129) * 21,
        "fcn8s_resnet101": 44_549_160 - 2049 * 1000 + (2049 + 1025 + 513) * 21,
    }
    monkeypatch.undo()
    with torch.device("meta"):
        for name, count in counts.items():
            name, _, family = name.partition(" ")
            model = create_model(name, **({"family": family} if family else {}))
            assert sum(x.numel() for x in model.parameters()) == count, name


def test_depth_is_a_logarithm_and_unknown_depth_says_nothing():
    model = create_model("nyud_fcn32s_vgg16_color_d")
    photo = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    depth = torch.tensor([[[[2550.0, 0.0], [float("nan"), 1.0]]]])
    logs = model.preprocess(photo, depth)[:, 3]
    expected = torch.tensor([[[2550.0, 1.0], [1.0, 1.0]]]).log() - 7.844
    expected[0, 0, 1] = expected[0, 1, 0] = 0
    assert torch.allclose(logs, expected)
    assert torch.equal(model.preprocess(photo, depth.nan_to_num().int())[:, 3], logs)
    late = create_model("nyud_fcn32s_vgg16_color_hha")
    x = late.preprocess(photo, photo + 5)
    mean = torch.tensor([132.431, 94.076, 118.477])
    assert torch.equal(x[0, 3:, 0, 0], 5 - mean)  # as stored, not flipped
    for net, more, error, message in (
        (model, [], InputError, "color_d also needs the depth"),
        (model, [depth.numpy()], TypeError, "must be a tensor of torch.int32 or .*, not ndarray"),
        (model, [depth[0]], ValueError, "depth must be"),
        (model, [depth.to(torch.uint8)], TypeError, "uint8"),
        (late, [], InputError, "color_hha also needs the HHA"),
        (late, [photo.float()], TypeError, "HHA picture must be a tensor of torch.uint8"),
        (late, [photo[:, :2]], ValueError, "HHA picture must be"),
    ):
        with pytest.raises(error, match=message):
            net.preprocess(photo, *more)


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
        assert ups == {up.name for up in model.upscores() if not (final and up.final)}
    again = create_model(name, num_classes=3, **model.options)
    assert again.state_dict().keys() == model.state_dict().keys()
    model.set_upsampling("fixed")
    assert model.options == {}
    assert not any(isinstance(layer, Upscore) for layer in model.modules())


def test_learned_upsampling_learns_and_keeps_what_it_learned(tmp_path):
    model = talking("fcn8s_vgg16", num_classes=3, upsampling="dense", final_upsampling="depthwise")
    assert model.upscore2.weight.shape == (3, 3, 4, 4)
    assert model.upscore8.weight.shape == (3, 1, 16, 16)
    x = some_input(model)
    model(x, torch.randint(0, 3, (2, *SIZE)))["loss"].backward()
    assert all(getattr(model, up.name).weight.grad.any() for up in model.upscores())
    nn.init.ones_(model.upscore2.weight)
    model.set_upsampling("dense")
    assert model.upscore2.weight.eq(1).all()
    assert model.upscore8.weight.shape == (3, 3, 16, 16)
    assert torch.equal(through_a_file(model, tmp_path).double()(x)["out"], model(x)["out"])
    with pytest.raises(ValueError, match="upsampling must be one of fixed, depthwise, dense"):
        model.set_upsampling("bicubic")


def test_activations_and_norms_leave_a_map_its_name():
    model = create_model("fcn32s_alexnet")
    names, width = list(model.fields()), model.fc7.out_channels
    model.add_trunk({"act": nn.Hardswish(), "norm": nn.GroupNorm(1, width), "drop": nn.Dropout2d()})
    assert list(model.fields()) == names
    x = model.eval().features(torch.randn(1, 3, 40, 40))["fc7"].x
    assert x.mean().abs() < 1e-6  # normalized: the map is that behind all of them
    for name, message in (("conv.1", "it has a dot"), ("features", "AlexNet has that already")):
        with pytest.raises(ValueError, match=f"cannot be called {name!r}: .*{message}"):
            model.add_trunk({name: nn.ReLU()})


def test_compilers_see_one_graph():
    """The forward pass with targets, as training calls it."""
    model = randomize_scores(create_model("fcn8s_resnet18", num_classes=3)).eval()
    x, targets = some_input(model).float(), torch.randint(0, 3, (2, *SIZE))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x, targets)["loss"], model(x, targets)["loss"])
