"""The networks: alignment, sizes, the contract of forward, predict and preprocess, and memory."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fcnfast.errors import WeightsError
from fcnfast.geometry import SamplingGrid
from fcnfast.models import create_model, list_models, load_model, save_model
from fcnfast.models.decoder import IMAGE, after, image_grid
from fcnfast.weights import write_weights
from tests.model_tools import is_score, narrow_trunks, randomize_scores
from tests.test_geometry import bilinear_filter

VGGS = ["fcn16s_vgg16", "fcn32s_vgg16", "fcn8s_atonce_vgg16", "fcn8s_vgg16"]


@pytest.fixture
def narrow(monkeypatch):
    """Networks of the paper's layers with few channels."""
    narrow_trunks(monkeypatch)


def crops_of(model):
    """(pool3, pool4, final) crop offsets that the calculus gives for a VGG net."""
    found, field = {}, IMAGE
    for name in model.trunk:
        field = after(field, getattr(model, name))
        found[name] = field
    up, offsets = field, {}
    for skip in ("pool4", "pool3"):
        if up.stride > model.stride:
            up = up.deconv(4, 2)
            offsets[skip] = found[skip].crop_onto(up)
    step = model.stride
    offsets["image"] = up.deconv(2 * step, step).crop_onto(IMAGE)
    return offsets


def test_crops_of_the_paper_come_out_of_the_calculus(narrow):
    assert crops_of(create_model("fcn32s_vgg16")) == {"image": 19}
    assert crops_of(create_model("fcn16s_vgg16")) == {"pool4": 5, "image": 27}
    for name in ("fcn8s_vgg16", "fcn8s_atonce_vgg16"):
        assert crops_of(create_model(name)) == {"pool4": 5, "pool3": 9, "image": 31}


def as_plain_torch(model, x):
    """FCN-32s/16s/8s with torch's convolutions, dense-free deconvolutions and constant crops."""

    def up(x, kernel, stride):
        weight = bilinear_filter(kernel).to(x.dtype).expand(x.shape[1], 1, kernel, kernel)
        return F.conv_transpose2d(x, weight, stride=stride, groups=x.shape[1])

    def crop(x, offset, like):
        return x[..., offset : offset + like.shape[-2], offset : offset + like.shape[-1]]

    image, state, pools = x, dict(model.named_modules()), {}
    for stage, convs in enumerate((2, 2, 3, 3, 3), 1):
        for number in range(1, convs + 1):
            layer = state[f"conv{stage}_{number}"]
            padding = 100 if stage == number == 1 else 1
            x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=padding))
        x = pools[stage] = F.max_pool2d(x, 2, 2, ceil_mode=True)
    for name in ("fc6", "fc7"):
        x = F.relu(F.conv2d(x, state[name].weight, state[name].bias))
    x = F.conv2d(x, state["score_fr"].weight, state["score_fr"].bias)
    if model.stride == 32:
        return crop(up(x, 64, 32), 19, image)
    scale = (0.01, 0.0001) if model.at_once else (1, 1)
    skip = state["score_pool4"]
    x = up(x, 4, 2)
    x = x + crop(F.conv2d(pools[4] * scale[0], skip.weight, skip.bias), 5, x)
    if model.stride == 16:
        return crop(up(x, 32, 16), 27, image)
    skip = state["score_pool3"]
    x = up(x, 4, 2)
    x = x + crop(F.conv2d(pools[3] * scale[1], skip.weight, skip.bias), 9, x)
    return crop(up(x, 16, 8), 31, image)


@pytest.mark.parametrize("name", VGGS)
@pytest.mark.parametrize("size", [(1, 1), (33, 70), (97, 64)])
def test_vgg_nets_equal_their_definition(narrow, name, size):
    torch.manual_seed(0)
    model = randomize_scores(create_model(name, num_classes=3)).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64) * 50
    expected = as_plain_torch(model, x)
    out = model(x)["out"]
    assert out.shape == (2, 3, *size)
    assert (out - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert torch.equal(model.predict(x).long(), expected.argmax(1))


def ramp(height, width):
    """An image whose value is a plane over its pixels."""
    rows = torch.arange(height, dtype=torch.float64)[:, None]
    return (3 * rows + torch.arange(width, dtype=torch.float64))[None, None] + 1000


def make_linear(model):
    """Turn a VGG net into one that only moves pixels: delta filters, average poolings."""
    for name, layer in list(model.named_children()):
        if isinstance(layer, nn.Conv2d):
            delta = nn.Conv2d(1, 1, layer.kernel_size, padding=layer.padding).double()
            nn.init.zeros_(delta.weight)
            nn.init.zeros_(delta.bias)
            if not name.startswith("score"):
                middle = layer.kernel_size[0] // 2
                delta.weight.data[0, 0, middle, middle] = 1
            setattr(model, name, delta)
        elif isinstance(layer, nn.MaxPool2d):
            setattr(model, name, nn.AvgPool2d(2, ceil_mode=True))
    return model.eval()


@pytest.mark.parametrize("name", VGGS[:4])
@pytest.mark.parametrize("size", [(224, 224), (250, 301), (301, 223)])
def test_no_stream_of_a_vgg_net_is_misaligned(narrow, name, size):
    model = make_linear(create_model(name, num_classes=1))
    image = ramp(*size)
    streams = [n for n in ("score_fr", "score_pool4", "score_pool3") if hasattr(model, n)]
    for stream in streams:
        for other in streams:
            nn.init.constant_(getattr(model, other).weight, float(other == stream))
        scale = 1.0
        if model.at_once:
            scale = {"score_pool4": 0.01, "score_pool3": 0.0001}.get(stream, 1.0)
        out = model(image)["out"]
        inner = (..., slice(64, -64), slice(64, -64))  # borders see the padding
        assert (out - image * scale)[inner].abs().max() < 1e-9


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (101, 83), (200, 131)])
def test_no_stream_of_the_light_net_is_misaligned(size):
    """Every map is filled with the place of its own units: the output must be the place again."""
    model = create_model("fcn4s_light", num_classes=1, decoder=1).double().eval()
    with torch.no_grad():
        located = model.features(torch.zeros(1, 3, *size, dtype=torch.float64))
        assert [int(m.field.stride) for m in located] == [4, 8, 16, 32]
        for chosen in range(4):
            maps = []
            for number, (x, field) in enumerate(located):
                rows = int(field.stride) * torch.arange(x.shape[2], dtype=torch.float64)
                columns = int(field.stride) * torch.arange(x.shape[3], dtype=torch.float64)
                plane = 3 * (rows + int(field.offset))[:, None] + columns + int(field.offset)
                maps.append(plane[None, None] * (number == chosen))
            model.features = lambda _, maps=maps: [
                m._replace(x=x) for m, x in zip(located, maps, strict=True)
            ]
            model.lateral = nn.ModuleList(nn.Identity() for _ in maps)
            model.smooth = nn.Identity()
            nn.init.ones_(model.score.weight)
            out = model(torch.zeros(1, 3, *size, dtype=torch.float64))["out"]
            # Up to the last unit's center; behind it the edge is repeated.
            height, width = ((n - 1) // 32 * 32 + 1 for n in size)
            expected = ramp(*size) - 1000
            assert (out - expected)[..., :height, :width].abs().max() < 1e-9


def test_units_of_the_light_net_see_what_the_calculus_says():
    model = create_model("fcn4s_light", num_classes=2).double().eval()
    x = torch.randn(1, 3, 300, 300, dtype=torch.float64, requires_grad=True)
    located = model.features(x)[1]
    (seen,) = torch.autograd.grad(located.x[0, :, 18, 18].sum(), x)
    touched = seen.abs().sum((0, 1, 3)).nonzero().flatten()
    center = int(located.field.stride) * 18 + int(located.field.offset)
    # What is seen is at most the field, around the same center.
    assert touched.min() + touched.max() == 2 * center
    assert touched.max() - touched.min() + 1 <= located.field.size


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3), (31, 33), (65, 64)])
def test_light_net_labels_images_of_any_size(size):
    model = randomize_scores(create_model("fcn4s_light", num_classes=5)).eval()
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    x = model.preprocess(images)
    with torch.no_grad():
        out = model(x)["out"]
    assert out.shape == (2, 5, *size)
    labels = model.predict(x)
    assert labels.dtype == torch.uint8
    picked = out.gather(1, labels.long()[:, None])[:, 0]
    assert (out.amax(1) - picked).max() <= 1e-5 * out.abs().max()
    assert model.predict(x, size=(7, 90)).shape == (2, 7, 90)


def test_predict_at_another_size_is_one_resize_further():
    model = randomize_scores(create_model("fcn4s_light", num_classes=4)).double().eval()
    x = torch.randn(1, 3, 40, 56, dtype=torch.float64)
    scores, grid = model.score_maps(x)["out"]
    labels = model.predict(x, size=(81, 113))
    from fcnfast import reference

    expected = reference.upsample(scores, grid.rescaled((81, 113))).argmax(1)
    assert torch.equal(labels.long(), expected)
    assert torch.equal(model.predict(x, size=(40, 56)), model.predict(x))


def test_forward_with_targets_is_the_cross_entropy_of_forward():
    torch.manual_seed(0)
    model = randomize_scores(create_model("fcn4s_light", num_classes=4)).double().eval()
    x = torch.randn(2, 3, 30, 45, dtype=torch.float64)
    target = torch.randint(0, 4, (2, 30, 45), dtype=torch.uint8)
    target[:, :5] = 255
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    expected = F.cross_entropy(model(x)["out"], target.long(), weight=weight, ignore_index=255)
    for targets in (target, {"out": target}):
        losses = model(x, targets, weight=weight)
        assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-12)
        assert losses["out"].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"targets": {"aux": None}}, ValueError, "'aux', but the heads are out"),
        ({"targets": {}}, ValueError, "none for 'out'"),
        ({"targets": [0]}, TypeError, "list"),
        ({"weight": torch.ones(4)}, ValueError, "need targets"),
        ({"label_smoothing": 0.1}, ValueError, "need targets"),
        ({"reduction": "sum"}, ValueError, "need targets"),
    ],
)
def test_arguments_of_forward_that_would_be_ignored_are_refused(arguments, error, message):
    model = create_model("fcn4s_light", num_classes=4).eval()
    with pytest.raises(error, match=message):
        model(torch.zeros(1, 3, 8, 8), **arguments)


def test_preprocess_is_what_the_weights_expect():
    pixels = torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8)
    light = create_model("fcn4s_light")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.allclose(light.preprocess(pixels), (pixels / 255 - mean) / std, atol=1e-6)
    assert not any(name.startswith("_") for name in light.state_dict())
    with pytest.raises(TypeError, match="uint8"):
        light.preprocess(pixels.float())
    with pytest.raises(ValueError, match="N x 3"):
        light.preprocess(pixels[0])
    with pytest.raises(TypeError, match="ndarray"):
        light.preprocess(pixels.numpy())
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        x = light.to(dtype).preprocess(pixels)
        assert x.dtype == dtype
        assert torch.allclose(x.double(), ((pixels / 255 - mean) / std).double(), atol=2e-2)
        assert light.eval().predict(x).shape == (1, 4, 5)


def test_vgg_preprocess_is_caffes(narrow):
    pixels = torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8)
    bgr = pixels.flip(1).float() - torch.tensor([104.00699, 116.66877, 122.67892]).view(3, 1, 1)
    assert torch.equal(create_model("fcn8s_vgg16").preprocess(pixels), bgr)


def largest_allocation(function):
    """The bytes of the largest single allocation while `function` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("job", ["loss", "predict"])
def test_full_resolution_logits_are_never_allocated(job):
    # With many classes the logits would dwarf the network's own maps.
    model = randomize_scores(create_model("fcn4s_light", num_classes=150))
    x = torch.randn(1, 3, 256, 320)
    target = torch.randint(0, 150, (1, 256, 320))
    logits = 150 * 256 * 320 * 4

    def loss():
        model(x, target)["loss"].backward()

    largest = largest_allocation(loss if job == "loss" else lambda: model.eval().predict(x))
    assert largest < logits / 4
    # The measure sees them where they are made.
    with torch.no_grad():
        assert largest_allocation(lambda: model(x)) >= logits


def test_trunks_are_never_zero_and_scores_start_at_zero(narrow):
    for name in list_models():
        model = create_model(name)
        assert any(is_score(key) for key, _ in model.named_modules()), name
        for key, value in model.named_parameters():
            if is_score(key.rpartition(".")[0]):
                assert not value.any(), key
            elif key.endswith("weight") and value.dim() == 4:
                assert value.any(), key


def test_light_net_is_light():
    assert sum(p.numel() for p in create_model("fcn4s_light").parameters()) < 4_000_000


def test_paddings(narrow):
    model = create_model("fcn8s_vgg16", num_classes=2, padding=69).eval()
    assert model(torch.zeros(1, 3, 60, 70))["out"].shape == (1, 2, 60, 70)
    with pytest.raises(ValueError, match="too small for a padding of 69"):
        model(torch.zeros(1, 3, 20, 20))
    with pytest.raises(ValueError, match="padding 68 is too small for stride 8"):
        create_model("fcn8s_vgg16", padding=68)
    with pytest.raises(ValueError, match="padding 72 is too small for stride 16"):
        create_model("fcn16s_vgg16", padding=72)


def test_bad_names_and_options_are_named():
    with pytest.raises(ValueError, match="did you mean fcn8s_vgg16"):
        create_model("fcn8_vgg16")
    with pytest.raises(ValueError, match="known: "):
        create_model("zzz")
    with pytest.raises(TypeError, match="stride"):
        create_model("fcn8s_vgg16", stride=16)
    with pytest.raises(TypeError, match="color"):
        create_model("fcn4s_light", color=True)
    for wrong in (0, 2.0, True):
        with pytest.raises(ValueError, match="num_classes"):
            create_model("fcn4s_light", num_classes=wrong)
    with pytest.raises(ValueError, match="widths and depths"):
        create_model("fcn4s_light", widths=(1, 2))


def test_weights_travel_with_everything_that_belongs_to_them(tmp_path):
    from fcnfast.data import CAMVID

    model = randomize_scores(create_model("fcn4s_light", decoder=32)).eval()
    model.table = CAMVID
    path = tmp_path / "net.safetensors"
    save_model(model, path)
    loaded = load_model(path)
    assert loaded.options == {"decoder": 32}
    assert loaded.table.names == CAMVID.names
    assert loaded.preprocessing == model.preprocessing
    assert not loaded.training
    x = torch.randn(1, 3, 20, 20)
    assert torch.equal(loaded(x)["out"], model(x)["out"])


def test_weights_that_do_not_fit_are_refused(tmp_path):
    model = create_model("fcn4s_light")
    path = tmp_path / "net.safetensors"
    save_model(model, path)
    with pytest.raises(WeightsError, match="of fcn4s_light, not of fcn8s_vgg16"):
        create_model("fcn8s_vgg16", weights=path)
    from fcnfast.weights import read_weights

    state, meta = read_weights(path)
    missing = {k: v for k, v in state.items() if k != "score.bias"}
    write_weights(path, missing, meta)
    with pytest.raises(WeightsError, match="has no 'score.bias'"):
        load_model(path)
    for options in ({"decoder": -1}, {"decoder": 1.5}, {"widths": 3}, {"color": 1}):
        write_weights(path, state, replace(meta, options=options))
        with pytest.raises(WeightsError, match="net.safetensors"):
            load_model(path)
    write_weights(path, {**state, "extra": torch.zeros(1)}, meta)
    with pytest.raises(WeightsError, match="holds 'extra'"):
        load_model(path)


def test_the_last_kernel_is_odd_for_units_on_whole_pixels():
    """AlexNet's score units lie on whole pixels: a kernel of 63, crop 18."""
    layers = [
        nn.Conv2d(1, 1, 11, 4, padding=100),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(1, 1, 5, padding=2),
    ]
    layers += [nn.MaxPool2d(3, 2), nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(1, 1, 6)]
    field = after(IMAGE, nn.Sequential(*layers))
    from fcnfast.models.decoder import Located

    grid = image_grid(Located(torch.zeros(1, 1, 16, 16), field), (300, 300))
    assert grid == SamplingGrid.deconv(16, 32, 63, crop=18, size=300)
