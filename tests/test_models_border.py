"""What is kept of a padded canvas between pictures: the same results, less work, never stale."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fcnfast.models import border, create_model
from fcnfast.models.canvas import plan_for, stages_of
from tests.model_tools import narrow_trunks, randomize_scores


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    narrow_trunks(monkeypatch)
    torch.manual_seed(0)


def make(name="fcn8s_vgg16", dtype=torch.float64, **options):
    model = randomize_scores(create_model(name, num_classes=3, **options))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.bias)  # what the canvas holds comes from these
    return model.to(dtype).eval()


def plain(model, x):
    """The same network without memory."""
    model.keep_borders = False
    with torch.no_grad():
        out = model(x)["out"]
    model.keep_borders = True
    return out


def remembered(model):
    return sum(len(borders._small) for borders in model._borders.values())


def assert_same(model, x):
    expected = plain(model, x)
    with torch.no_grad():
        for _ in range(2):  # building, and from memory
            out = model(x)["out"]
            assert (out - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert torch.equal(model.predict(x).long(), expected.argmax(1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcn8s_vgg16", {}),
        ("fcn8s_vgg16", {"padding": 69}),
        ("fcn16s_vgg16", {"padding": 131}),
        ("fcn32s_vgg16", {}),
        ("fcn32s_alexnet", {}),
        ("fcn32s_alexnet", {"family": "torchvision", "padding": 95}),
        ("nyud_fcn32s_vgg16_color_hha", {}),
        ("siftflow_fcn8s_vgg16", {}),
    ],
)
def test_outputs_are_those_of_the_whole_canvas(name, options):
    model = make(name, **options)
    for size in ((350, 275), (123, 214), (64, 90)):
        x = 30 * torch.randn(2, model.channels, *size, dtype=torch.float64)
        assert_same(model, x)
        assert_same(model, x[:1] + 5)
    assert remembered(model) >= 3


def test_sizes_with_the_same_rest_share_their_border():
    model = make()
    for size in ((224, 256), (256, 224), (480, 512), (288, 800)):
        assert_same(model, torch.randn(1, 3, *size, dtype=torch.float64))
        assert remembered(model) == 1
    assert_same(model, torch.randn(1, 3, 225, 256, dtype=torch.float64))
    assert remembered(model) == 2


def test_the_work_is_what_the_picture_reaches():
    model = make()
    x = torch.randn(1, 3, 500, 500, dtype=torch.float64)

    def flops():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x)
        return counter.get_total_flops()

    model.keep_borders = False
    everything = flops()
    model.keep_borders = True
    with torch.no_grad():
        model(x)
    known = [(name, getattr(model, name)) for name in model.trunk]
    whole, reached = plan_for((500, 500), stages_of(known), ("pool3", "pool4")).work()
    assert everything - flops() == 2 * (whole - reached)


def test_the_work_of_the_full_widths(monkeypatch):
    """180.9 to 124.6 billion multiplications at 500 x 500."""
    monkeypatch.undo()
    with torch.device("meta"):
        model = create_model("fcn8s_vgg16")
    stages = stages_of([(name, getattr(model, name)) for name in model.trunk])
    whole, reached = plan_for((500, 500), stages, ()).work()
    rest = 26_306_674_688 + 4_294_967_296  # fc6 and fc7 on 16 x 16 units
    assert round((whole + rest) / 1e8) == 1809
    assert round((reached + rest) / 1e8) == 1246


@pytest.mark.parametrize("change", ["in place", "data", "assigned", "loaded", "bias", "dtype"])
def test_other_weights_are_noticed(change):
    model = make()
    x = torch.randn(1, 3, 230, 260, dtype=torch.float64)
    assert_same(model, x)
    before = plain(model, x)
    layer = model.conv2_2
    if change == "in place":
        with torch.no_grad():
            layer.weight[0, 0, 0, 0] += 1
    elif change == "data":  # which torch's own version counters do not see
        layer.weight.data.mul_(1.5)
    elif change == "assigned":
        layer.weight = nn.Parameter(layer.weight * 2)
    elif change == "loaded":
        state = {key: value.clone() for key, value in model.state_dict().items()}
        state["conv1_1.bias"] += 1
        model.load_state_dict(state)
    elif change == "bias":
        model.conv4_1.bias.data += 0.5
    else:
        model.float()
        x = x.float()
        with torch.no_grad():
            assert torch.allclose(model(x)["out"], before.float(), rtol=1e-3, atol=1e-2)
        return
    assert not torch.allclose(plain(model, x), before)
    assert_same(model, x)


def test_only_evaluation_without_gradients_remembers():
    model = make()
    x = torch.randn(1, 3, 230, 260, dtype=torch.float64)
    target = torch.zeros(1, 230, 260, dtype=torch.uint8)
    model(x)
    model.train()
    with torch.no_grad():
        model(x)
        model(x, target)
    model(x, target)["loss"].backward()
    assert remembered(model) == 0
    assert model.conv1_1.weight.grad.abs().sum() > 0
    model.eval()
    with torch.inference_mode():
        model.predict(x)
    assert remembered(model) == 1
    assert_same(model, x)  # what inference mode made serves other modes
    again = model.eval()(x)["out"]
    assert again.requires_grad


def test_copies_and_pickles_begin_without_memory():
    model = make()
    x = torch.randn(1, 3, 230, 260, dtype=torch.float64)
    model.predict(x)
    assert remembered(model) == 1
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert remembered(other) == 0
        assert_same(other, x)
    assert not any("border" in key for key in model.state_dict())


def test_hooks_and_other_layers_are_respected():
    model, x = make(), torch.randn(1, 3, 230, 260, dtype=torch.float64)
    seen = []
    handle = model.conv3_2.register_forward_hook(lambda *call: seen.append(call[2].shape))
    assert_same(model, x)
    assert len(seen) == 4 and seen[0] == seen[-1]
    handle.remove()
    nn.utils.parametrizations.weight_norm(model.conv2_1)
    assert_same(model, x)
    model.relu4_1 = nn.LeakyReLU(0.1)
    assert_same(model, x)
    model.conv1_2 = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect").double()
    assert_same(model, x)


def test_a_dropout_that_is_left_on_drops():
    model = make("fcn32s_alexnet", family="torchvision", dropout=0.5)
    model.drop6.train()
    x = torch.randn(1, 3, 230, 260, dtype=torch.float64)
    with torch.no_grad():
        assert not torch.equal(model(x)["out"], model(x)["out"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_has_a_memory_of_its_own(dtype):
    model = make(dtype=torch.float32)
    x = torch.randn(1, 3, 230, 260)
    model.predict(x)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = plain(model, x)
        with torch.no_grad():
            out = model(x)["out"]
    assert out.dtype == expected.dtype
    assert (out.float() - expected.float()).abs().max() <= 0.05 * expected.float().abs().max()
    assert remembered(model) == (2 if dtype == torch.bfloat16 else 1)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(border, "REMEMBERED", 2)
    monkeypatch.setattr(border, "MOST_SEEN", 3)
    model = make()
    for rest in range(5):
        assert_same(model, torch.randn(1, 3, 230 + rest, 260, dtype=torch.float64))
        assert_same(model, torch.randn(1, 3, 20 + rest, 26, dtype=torch.float64))
    assert remembered(model) == 2
    assert all(len(borders._seen) <= 3 for borders in model._borders.values())


def test_nothing_that_is_no_number_leaks():
    """A picture's NaN reaches what it reaches, and not the next picture."""
    model = make()
    x = torch.randn(1, 3, 230, 260, dtype=torch.float64)
    bad = x.clone()
    bad[0, 0, 100, 100] = float("nan")
    model.predict(bad)
    model.predict(bad)
    assert_same(model, x)


def test_threads_may_share_a_network():
    model = make(dtype=torch.float32)
    pictures = [torch.randn(1, 3, 225 + n % 3, 230) for n in range(9)]
    expected = [plain(model, x).argmax(1) for x in pictures]
    with ThreadPoolExecutor(4) as pool:
        labels = list(pool.map(model.predict, pictures))
    same = [(a == b).float().mean() for a, b in zip(labels, expected, strict=True)]
    assert min(same) > 0.999
