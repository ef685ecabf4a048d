"""Each network against a plain definition: torch functions and constants, no calculus."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fcnfast.models import create_model
from tests.model_tools import narrow_trunks, randomize_scores
from tests.test_geometry import bilinear_filter


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    narrow_trunks(monkeypatch)


class Plain:
    """A state dict's layers as functions: ``p("conv1", x, stride=2)``."""

    def __init__(self, model):
        self.state = model.state_dict()

    def __call__(self, name, x, **settings):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **settings)

    def norm(self, name, x, eps=1e-5):
        s = {key: self.state[f"{name}.{key}"] for key in ("weight", "bias")}
        mean, var = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, s["weight"], s["bias"], eps=eps)


def up(x, kernel, stride):
    weight = bilinear_filter(kernel).to(x.dtype).expand(x.shape[1], 1, kernel, kernel)
    return F.conv_transpose2d(x, weight, stride=stride, groups=x.shape[1])


def crop(x, offset, size):
    return x[..., offset : offset + size[0], offset : offset + size[1]]


def lrn(x):
    """Caffe's, written out: the squares of five neighboring channels."""
    squares = F.pad(x * x, (0, 0, 0, 0, 2, 2))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(5))
    return x / (1 + 1e-4 / 5 * total) ** 0.75


def pool3(x):
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def random_state(model):
    """Biases and norms start at constants: let all of them matter."""
    torch.manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value in (layer.weight.data, layer.running_var):
                value.uniform_(0.5, 1.5)
            layer.bias.data.normal_()
            layer.running_mean.normal_()
        elif isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias)
    return randomize_scores(model).double().eval()


def assert_same(out, expected):
    assert out.shape == expected.shape
    assert (out - expected).abs().max() <= 1e-10 * expected.abs().max()


def alexnet(p, x, family):
    groups = 2 if family == "caffe" else 1
    norm = lrn if family == "caffe" else nn.Identity()
    size = x.shape[-2:]
    x = norm(pool3(F.relu(p("conv1", x, stride=4, padding=100))))
    x = norm(pool3(F.relu(p("conv2", x, padding=2, groups=groups))))
    x = F.relu(p("conv3", x, padding=1))
    x = F.relu(p("conv4", x, padding=1, groups=groups))
    x = pool3(F.relu(p("conv5", x, padding=1, groups=groups)))
    x = F.relu(p("fc7", F.relu(p("fc6", x))))
    return crop(up(p("score_fr", x), 63, 32), 18, size)


@pytest.mark.parametrize("family", ["caffe", "torchvision"])
@pytest.mark.parametrize("size", [(1, 1), (97, 64), (131, 200)])
def test_alexnet(family, size):
    model = random_state(create_model("fcn32s_alexnet", num_classes=3, family=family))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert_same(model(x)["out"], alexnet(Plain(model), x, family))


def googlenet(p, x, family, stride):
    caffe = family == "caffe"
    size = x.shape[-2:]

    def unit(name, x, **settings):
        if caffe:
            return F.relu(p(name, x, **settings))
        return F.relu(p.norm(f"{name}.bn", p(f"{name}.conv", x, **settings), eps=1e-3))

    def inception(name, x):
        five = 2 if caffe else 1
        return torch.cat(
            [
                unit(f"{name}.1x1", x),
                unit(f"{name}.3x3", unit(f"{name}.3x3_reduce", x), padding=1),
                unit(f"{name}.5x5", unit(f"{name}.5x5_reduce", x), padding=five),
                unit(f"{name}.pool_proj", F.max_pool2d(x, 3, 1, padding=1)),
            ],
            1,
        )

    norm = lrn if caffe else nn.Identity()
    x = norm(pool3(unit("conv1.7x7_s2", x, stride=2, padding=3)))
    x = norm(unit("conv2.3x3", unit("conv2.3x3_reduce", x), padding=1))
    x = pool3(x)
    maps = {}
    for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        if block == "4a":
            x = pool3(x)
        if block == "5a":
            x = pool3(x) if caffe else F.max_pool2d(x, 2, 2, ceil_mode=True)
        x = maps[block] = inception(f"inception_{block}", x)
    scores = p("score_fr", x)
    if stride == 32:
        return crop(up(scores, 63, 32), 1 if caffe else 9, size)
    skip = p("score_inception_4e", maps["4e"])
    scores = crop(
        up(scores, 3, 2) if caffe else up(scores, 4, 2), 0 if caffe else 1, skip.shape[2:]
    )
    scores = scores + skip
    if stride == 16:
        return crop(up(scores, 31, 16), 1, size)
    skip = p("score_inception_3b", maps["3b"])
    return crop(up(crop(up(scores, 3, 2), 0, skip.shape[2:]) + skip, 15, 8), 1, size)


@pytest.mark.parametrize("family", ["caffe", "torchvision"])
@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("size", [(31, 64), (97, 130)])
def test_googlenet(family, stride, size):
    name = f"fcn{stride}s_googlenet"
    model = random_state(create_model(name, num_classes=3, family=family))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert_same(model(x)["out"], googlenet(Plain(model), x, family, stride))


def resnet(p, x, counts, prefix="", dilated=False):
    """The four maps; blocks are bottlenecks where they have a third convolution."""
    x = F.relu(p.norm(f"{prefix}bn1", p(f"{prefix}conv1", x, stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, padding=1)
    maps = []
    for layer, count in enumerate(counts, 1):
        for block in range(count):
            name = f"{prefix}layer{layer}.{block}"
            stride, dilation = 2 if layer > 1 and block == 0 else 1, 1
            if dilated and layer > 2:
                stride, dilation = 1, {(3, 0): 1, (3, 1): 2, (4, 0): 2, (4, 1): 4}[layer, block > 0]
            moved = {"stride": stride, "padding": dilation, "dilation": dilation}
            if f"{name}.conv3.weight" in p.state:
                y = F.relu(p.norm(f"{name}.bn1", p(f"{name}.conv1", x)))
                y = F.relu(p.norm(f"{name}.bn2", p(f"{name}.conv2", y, **moved)))
                y = p.norm(f"{name}.bn3", p(f"{name}.conv3", y))
            else:
                y = F.relu(p.norm(f"{name}.bn1", p(f"{name}.conv1", x, **moved)))
                y = p.norm(f"{name}.bn2", p(f"{name}.conv2", y, padding=1))
            if f"{name}.downsample.0.weight" in p.state:
                x = p.norm(f"{name}.downsample.1", p(f"{name}.downsample.0", x, stride=stride))
            x = F.relu(x + y)
        maps.append(x)
    return maps


@pytest.mark.parametrize(("name", "blocks"), [("fcn_resnet50", 6), ("fcn_resnet101", 23)])
def test_torchvisions_resnets(name, blocks):
    model = random_state(create_model(name, num_classes=3))
    p = Plain(model)
    for size in ((33, 57), (64, 40)):
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        maps = resnet(p, x, (3, 4, blocks, 3), "backbone.", dilated=True)
        outputs = model(x)
        assert list(outputs) == ["out", "aux"]
        for key, features in (("classifier", maps[3]), ("aux_classifier", maps[2])):
            y = F.relu(p.norm(f"{key}.1", p(f"{key}.0", features, padding=1)))
            expected = F.interpolate(p(f"{key}.4", y), size, mode="bilinear", align_corners=False)
            assert_same(outputs["out" if key == "classifier" else "aux"], expected)
    assert list(create_model(name, aux_loss=False).eval()(x.float())) == ["out"]


@pytest.mark.parametrize(
    ("depth", "counts"), [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3))]
)
def test_resnets_with_skips(depth, counts):
    """Unit u of stride S lies on pixel S * u: a resize that keeps corners, of the extended map."""
    model = random_state(create_model(f"fcn8s_resnet{depth}", num_classes=3))
    p = Plain(model)
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)  # 32 n + 1: corners meet at every stride
    maps = resnet(p, x, counts)

    def resize(scores, size):
        return F.interpolate(scores, size, mode="bilinear", align_corners=True)

    scores = p("score_fr", maps[3])
    for name, skip in (("score_layer3", maps[2]), ("score_layer2", maps[1])):
        scores = resize(scores, skip.shape[2:]) + p(name, skip)
    assert_same(model(x)["out"], resize(scores, x.shape[2:]))


def vgg16(p, x, first="conv1_1", suffix=""):
    """pool3, pool4, fc7."""
    pools = []
    for stage, convs in enumerate((2, 2, 3, 3, 3), 1):
        for number in range(1, convs + 1):
            name = first if stage == number == 1 else f"conv{stage}_{number}"
            x = F.relu(p(name + suffix, x, padding=100 if stage == number == 1 else 1))
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        pools.append(x)
    x = F.relu(p(f"fc7{suffix}", F.relu(p(f"fc6{suffix}", x))))
    return pools[2], pools[3], x


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_sift_flow_has_two_heads(stride):
    model = random_state(create_model(f"siftflow_fcn{stride}s_vgg16"))
    p = Plain(model)
    x = torch.randn(1, 3, 70, 45, dtype=torch.float64)
    pool3, pool4, fc7 = vgg16(p, x)
    outputs = model(x)
    assert {name: out.shape[1] for name, out in outputs.items()} == {"out": 33, "geo": 3}
    for head, suffix in (("out", "_sem"), ("geo", "_geo")):
        scores = p(f"score_fr{suffix}", fc7)
        if stride == 32:
            expected = crop(up(scores, 64, 32), 19, x.shape[2:])
        else:
            scores = up(scores, 4, 2)
            scores = scores + crop(p(f"score_pool4{suffix}", pool4), 5, scores.shape[2:])
            expected = crop(up(scores, 32, 16), 27, x.shape[2:])
        if stride == 8:
            scores = up(scores, 4, 2)
            scores = scores + crop(p(f"score_pool3{suffix}", pool3), 9, scores.shape[2:])
            expected = crop(up(scores, 16, 8), 31, x.shape[2:])
        assert_same(outputs[head], expected)


def test_nyud_early_fusion_takes_four_channels():
    model = random_state(create_model("nyud_fcn32s_vgg16_color_d", num_classes=3))
    p = Plain(model)
    x = torch.randn(1, 4, 50, 61, dtype=torch.float64)
    scores = p("score_fr", vgg16(p, x, "conv1_1_bgrd")[2])
    assert_same(model(x)["out"], crop(up(scores, 64, 32), 19, x.shape[2:]))


def test_nyud_late_fusion_averages_two_streams():
    model = random_state(create_model("nyud_fcn32s_vgg16_color_hha", num_classes=3))
    p = Plain(model)
    x = torch.randn(1, 6, 50, 61, dtype=torch.float64)
    color = p("score_frcolor", vgg16(p, x[:, :3], suffix="color")[2])
    hha = p("score_frhha", vgg16(p, x[:, 3:], suffix="hha")[2])
    expected = crop(up(0.5 * color + 0.5 * hha, 64, 32), 19, x.shape[2:])
    assert_same(model(x)["out"], expected)


def test_counts_of_parameters_are_the_papers(monkeypatch):
    """Learnable parameters at the nets' own numbers of classes, on no device."""
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
    }
    monkeypatch.undo()  # the full widths
    with torch.device("meta"):
        for name, count in counts.items():
            model = create_model(name)
            assert sum(x.numel() for x in model.parameters()) == count, name
