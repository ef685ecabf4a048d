"""The light network, memory, fc6, and arguments that are refused."""

import pytest
import torch
import torch.nn.functional as F

import fcnfast
from fcnfast import create_model, reference
from fcnfast.models.vgg import FullyConnected
from tests.model_tools import randomize_scores
from tests.op_tools import allocations


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3), (31, 33), (65, 64)])
def test_light_net_labels_images_of_any_size(size):
    model = randomize_scores(create_model("fcn4s_light", num_classes=5)).double().eval()
    x = model.preprocess(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
    with torch.no_grad():
        out = model(x)["out"]
    assert out.shape == (2, 5, *size) and torch.equal(model.predict(x).long(), out.argmax(1))
    # At another size it is one resize further.
    scores, grid = model.score_maps(x)["out"]
    expected = reference.upsample(scores, grid.rescaled((7, 90))).argmax(1)
    assert torch.equal(model.predict(x, size=(7, 90)).long(), expected)


def test_settings_of_the_loss():
    model = randomize_scores(create_model("fcn4s_light", num_classes=4)).double().eval()
    x = torch.randn(2, 3, 30, 45, dtype=torch.float64)
    target = torch.randint(0, 4, (2, 30, 45), dtype=torch.uint8)
    target[:, :5] = 255
    settings = {"weight": torch.tensor([1.0, 2.0, 0.5, 1.0]).double(), "label_smoothing": 0.1}
    out, labels = model(x)["out"], target.long()
    expected = F.cross_entropy(out, labels, ignore_index=255, **settings).item()
    for targets in (target, {"out": target}):
        losses = model(x, targets, **settings)
        assert losses["loss"].item() == pytest.approx(expected, rel=1e-12)
        assert losses["out"].item() == pytest.approx(expected, rel=1e-12)


def test_preprocess_has_the_networks_type():
    pixels = torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8)
    model = create_model("fcn4s_light").eval()
    expected = model.double().preprocess(pixels)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = model.to(dtype).preprocess(pixels)
        assert x.dtype == dtype and torch.allclose(x.double(), expected, atol=2e-2)
        assert model.predict(x).shape == (1, 4, 5)
    for wrong, error, message in (
        (pixels.float(), TypeError, "uint8"),
        (pixels[0], ValueError, "N x 3"),
        (pixels.numpy(), TypeError, "ndarray"),
    ):
        with pytest.raises(error, match=message):
            model.preprocess(wrong)


def test_full_resolution_logits_are_never_allocated():
    # With many classes the logits would dwarf the network's own maps.
    model = randomize_scores(create_model("fcn4s_light", num_classes=150))
    x, target = torch.randn(1, 3, 192, 256), torch.randint(0, 150, (1, 192, 256))
    logits = 150 * 192 * 256 * 4
    assert max(allocations(lambda: model(x, target)["loss"].backward())) < logits / 4
    assert max(allocations(lambda: model.eval().predict(x))) < logits / 4
    # The measure sees them where they are made.
    with torch.no_grad():
        assert max(allocations(lambda: model(x))) >= logits


LIGHT, VGG = "fcn4s_light", "fcn8s_vgg16"


@pytest.mark.usefixtures("narrow")
def test_options_that_cannot_be_are_refused():
    for name, options, error, message in (
        ("fcn8_vgg16", {}, ValueError, "did you mean fcn8s_vgg16"),
        ("zzz", {}, ValueError, "known: "),
        (None, {"weights": "net.pth"}, TypeError, "name must be the name of a network .* not None"),
        (VGG, {"stride": 16}, TypeError, "fixes stride"),
        ("siftflow_fcn8s_vgg16", {"geo_classes": 4}, TypeError, "fixes geo_classes"),
        (VGG, {"paddings": 3}, TypeError, "fcn8s_vgg16 has no .*'paddings'; .*padding?"),
        (LIGHT, {"x": 3}, TypeError, "fcn4s_light .* its options: widths, depths, decoder"),
        (VGG, {"weights": ""}, fcnfast.InputError, "path .* is empty"),
        (VGG, {"weights": {}}, TypeError, "by its path, not by dict"),
        (VGG, {"dropout": "a"}, TypeError, "dropout must be .* 0 to 1, not 'a'"),
        (LIGHT, {"dropout": 1.5}, ValueError, "dropout must be .* 0 to 1, not 1.5"),
        ("fcn_resnet50_mmseg", {"dropout": 1.5}, ValueError, "dropout must be .* not 1.5"),
        ("fcn32s_googlenet", {"dropout": 1.5}, ValueError, "dropout must be .* not 1.5"),
        (LIGHT, {"num_classes": 2.0}, ValueError, "num_classes must be a positive"),
        (VGG, {"geo_classes": 0}, ValueError, "geo_classes must be a positive .* not 0"),
        (LIGHT, {"widths": (1, 2)}, ValueError, "widths and depths"),
        (VGG, {"padding": 68}, ValueError, "padding 68 is too small for stride 8"),
        ("fcn32s_alexnet", {"padding": 84}, ValueError, "would miss the last 1"),
        ("fcn32s_alexnet", {"padding": 70}, ValueError, "begin 12 pixels inside"),
        ("fcn8s_googlenet", {"padding": 2}, ValueError, "padding 2 is too small for stride 8"),
        (VGG, {"padding": 2.5}, ValueError, "padding must be None or"),
        (VGG, {"fc6_padding": 3}, ValueError, "needs padding=None"),
        (VGG, {"padding": None, "fc6_padding": 4}, ValueError, "must be 0 to 3"),
        ("fcn32s_alexnet", {"family": "keras"}, ValueError, "caffe, torchvision, not 'keras'"),
        ("fcn32s_alexnet", {"fc6_padding": 1}, ValueError, "needs padding=None"),
        ("fcn8s_googlenet", {"family": "keras"}, ValueError, "not 'keras'"),
        ("fcn4s_lite0", {"decoder": 0}, ValueError, "decoder must be"),
        (VGG, {"final_upsampling": "bicubic"}, ValueError, "final_upsampling must be"),
        (LIGHT, {"decoder": -1}, ValueError, "decoder must be a positive integer, not -1"),
    ):
        with pytest.raises(error, match=message):
            create_model(name, **options)


@pytest.mark.usefixtures("narrow")
def test_images_that_are_too_small_are_named():
    for name, options, size, message in (
        (VGG, {"padding": None}, (192, 300), "pool5 is .6, 10., fc6 needs 7 x 7"),
        ("fcn32s_alexnet", {"padding": None}, (188, 300), "pool5 is .5, 9., fc6 needs 6 x 6"),
        ("fcn32s_googlenet", {}, (30, 64), "for a padding of 3: .*pool4 needs 3 x 3"),
        (VGG, {"padding": 90}, (14, 300), "for a padding of 90: pool5 is"),
    ):
        model = create_model(name, num_classes=2, **options).eval()
        says = f"an image of .{size[0]}, {size[1]}. is too small.*{message}"
        with pytest.raises(ValueError, match=says):
            model(torch.zeros(1, 3, *size))
        larger = (size[0] + 1, size[1])
        assert model(torch.zeros(1, 3, *larger))["out"].shape[-2:] == larger


def test_arguments_of_forward_that_are_refused():
    model = create_model("fcn4s_light", num_classes=4).eval()
    for arguments, error, message in (
        ({"targets": {"aux": None}}, ValueError, "'aux', but the heads are out"),
        ({"targets": {}}, ValueError, "none for 'out'"),
        ({"targets": [0]}, TypeError, "list"),
        ({"weight": torch.ones(4)}, ValueError, "need targets"),
        ({"label_smoothing": 0.1}, ValueError, "need targets"),
        ({"images": torch.zeros(1, 4, 8, 8)}, ValueError, "N x 3 x H x W, not .1, 4, 8, 8."),
        ({"images": torch.zeros(1, 3, 0, 8)}, ValueError, "N x 3"),
        ({"images": torch.zeros(1, 3, 8, 8).byte()}, TypeError, "uint8: see preprocess"),
    ):
        with pytest.raises(error, match=message):
            model(**{"images": torch.zeros(1, 3, 8, 8), **arguments})
        if "images" in arguments:
            with pytest.raises(error, match=message):
                model.predict(arguments["images"])


@pytest.fixture
def products(monkeypatch):
    """The shapes of the matrix products that are carried out."""
    calls, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda *args: calls.append(args[0].shape) or linear(*args))
    return calls


def test_fc6_of_a_small_map_is_a_matrix_product(products):
    for kernel, padding, size, bias, dtype in (
        (7, 0, (9, 8), True, torch.float32),
        (7, 3, (3, 1), False, torch.float32),
        (1, 0, (3, 4), True, torch.bfloat16),
        (6, 2, (7, 3), False, torch.bfloat16),
        (7, 3, (3, 2), True, torch.float64),
    ):
        layer = FullyConnected(24, 256, kernel, padding=padding, bias=bias).to(dtype)
        for order in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 24, *size).to(dtype).contiguous(memory_format=order)
            numbers = (x, layer.weight, layer.bias)
            truth = F.conv2d(*(n if n is None else n.double() for n in numbers), padding=padding)
            with torch.no_grad():
                y = layer(x)
            assert (y.dtype, y.shape) == (dtype, truth.shape)
            assert y.is_contiguous(memory_format=torch.channels_last)
            tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
            assert (y - truth).abs().max() <= tolerance * truth.abs().max()
    assert len(products) == 2 * 5


def test_other_uses_of_fc6_are_convolutions(products):
    """Gradients, large maps, weights that a product would have to copy, shapes that are wrong."""
    layer, x = FullyConnected(8, 64, 3), torch.randn(1, 8, 4, 4)
    layer(x).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    with torch.no_grad():
        layer(torch.randn(1, 8, 5, 5))
        layer.to(memory_format=torch.channels_last)(x)
        layer.weight = torch.nn.Parameter(layer.weight.contiguous().transpose(2, 3))
        assert torch.allclose(layer(x), F.conv2d(x, layer.weight, layer.bias), atol=1e-6)
        for shape in ((1, 8, 2, 2), (1, 7, 4, 4)):
            with pytest.raises(RuntimeError):
                layer(torch.randn(shape))
    assert not products
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert FullyConnected(8, 64, 3)(x).dtype == torch.bfloat16
