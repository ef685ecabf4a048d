"""Section 3 of the paper: fields by tracing, dense outputs in three ways, sampled losses."""

import copy
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from torch import nn

from fcnfast import ops, theory
from fcnfast.cli import main
from fcnfast.geometry import ReceptiveField, SamplingGrid
from fcnfast.models import create_model
from tests.foreign_nets import tent
from tests.model_tools import narrow_trunks


def field(size, stride, offset):
    return ReceptiveField(size, Fraction(stride), Fraction(offset))


KINDS = st.sampled_from(("conv", "max", "mean"))
# Kernel, stride, padding, dilation.
NUMBERS = (st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2))
layers = st.lists(st.tuples(KINDS, *NUMBERS), min_size=1, max_size=4)


def built(spec, padded=True, channels=2):
    """A chain of layers, with ReLUs between convolutions."""
    chain = []
    for kind, kernel, stride, padding, dilation in spec:
        padding = min(padding, kernel // 2) if padded else 0
        if kind == "conv":
            conv = nn.Conv2d(channels, channels, kernel, stride, padding, dilation)
            chain += [conv.double(), nn.ReLU()]
        elif kind == "max":
            chain.append(nn.MaxPool2d(kernel, stride, padding, dilation))
        else:
            chain.append(nn.AvgPool2d(kernel, stride, padding))
    return nn.Sequential(*chain)


@settings(max_examples=20)
@given(layers)
def test_a_chain_has_the_fields_of_the_calculus_and_of_its_gradients(spec):
    """No pixel outside of a unit's field has a gradient, and its corners have one."""
    model, expected = built(spec), ReceptiveField()
    for kind, kernel, stride, padding, dilation in spec:
        padding = min(padding, kernel // 2)
        expected = expected.conv(kernel, stride, padding, 1 if kind == "mean" else dilation)
    traced = theory.trace(model, 200, channels=2)
    assert traced.outputs == {"": expected}
    assert [layer.name for layer in traced.layers] == [str(i) for i in range(len(model))]
    smooth = built([("conv" if kind == "max" else kind, *rest) for kind, *rest in spec])
    for parameter in smooth.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    x = torch.rand(1, 2, 160, 160, dtype=torch.float64, requires_grad=True)
    out = smooth(x)
    unit = out.shape[2] // 2
    (grad,) = torch.autograd.grad(out[0, 0, unit, unit], x)
    rows = grad.abs().sum((0, 1, 3)).nonzero()[:, 0].tolist()
    center, reach = expected.stride * unit + expected.offset, Fraction(expected.size - 1, 2)
    assert (rows[0], rows[-1]) == (center - reach, center + reach)


def test_skips_and_fused_ops_count():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.second = nn.MaxPool2d(2, 2)
            self.third = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            skip = self.first(x)
            deep = self.third(self.second(skip))
            grid = SamplingGrid.deconv(deep.shape[2:], 2, size=None)
            return {"out": ops.upsample(deep, grid)[..., 1:-1, 1:-1] + skip}

    traced = theory.trace(Net(), 64)
    fields = {layer.name: layer.field for layer in traced.layers}
    wanted = {"first": field(3, 2, 0), "second": field(5, 4, 1), "third": field(13, 4, 1)}
    assert fields.items() >= wanted.items()
    assert traced.outputs["out"] == field(17, 2, 0)
    with pytest.raises(ValueError, match="did you mean third"):
        traced.layer("thrid")


def test_outputs_of_fused_and_resized_networks():
    with torch.device("meta"):
        light = create_model("fcn4s_light")
        learned = create_model("fcn16s_vgg16", upsampling="depthwise")
        resized = create_model("fcn_resnet50")
    assert theory.trace(light, 512).outputs == {"out": field(595, 1, 0)}
    assert theory.trace(learned, 512).outputs == {"out": field(453, 1, 0)}
    assert theory.trace(resized, 512).outputs["out"] == field(451, 1, "-7/2")


def test_what_a_trace_counts():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = copy.deepcopy(model.state_dict())
    model.train()
    traced = theory.trace(model, (20, 30))
    assert traced.macs == 20 * 30 * 8 * 3 * 9
    assert traced.layer("0").shape == (8, 20, 30) and traced.layer("0").parameters == 224
    assert traced.layer("1").field is None and traced.outputs == {}
    assert model.training and not model[0]._forward_hooks
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="not a map of the image"):
        theory.receptive_field(model)


class Classifier(nn.Module):
    """In torchvision's form: features, a pooling, a classifier."""

    def __init__(self, norm=False, pool=(3, 5)):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(6, 8, 3)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(8 * math.prod(pool), 10),
            nn.BatchNorm1d(10) if norm else nn.ReLU(),
            nn.Linear(10, 7, bias=False),
            nn.Softmax(dim=1),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


@pytest.mark.parametrize(("norm", "pool"), [(False, (3, 5)), (True, (3, 5)), (False, (1, 1))])
def test_convolutionalized_at_the_training_size_and_above(norm, pool):
    model = Classifier(norm, pool).double().eval()
    size = (23, 31)  # 3 x 5 units before the pooling
    dense = theory.convolutionalize(model, size).eval()
    images = torch.rand(2, 3, size[0] + 12, size[1] + 9, dtype=torch.float64)
    with torch.no_grad():
        result = dense(images)
        assert result.shape == (2, 7, 4, 3)
        for i in range(4):
            for j in range(3):
                window = images[..., 4 * i : 4 * i + size[0], 4 * j : 4 * j + size[1]]
                assert torch.allclose(result[:, :, i, j], model(window), rtol=1e-12, atol=1e-12)


@settings(max_examples=20)
@given(layers, st.integers(0, 12), st.integers(0, 12), st.integers(0, 10**6))
def test_rarefied_is_shifted_and_stitched(spec, more_rows, more_columns, seed):
    torch.manual_seed(seed)
    model = built(spec, padded=False)
    seen = theory.receptive_field(model)
    assume(seen.stride <= 9)
    event(f"stride {seen.stride}")
    size = (seen.size + int(seen.stride) - 1 + more_rows, seen.size + 10 + more_columns)
    images = torch.rand(1, 2, *size, dtype=torch.float64)
    dense = theory.rarefy(model)
    with torch.no_grad():
        whole, stitched = dense(images), theory.shift_and_stitch(model, images)
    assert whole.shape[2:] == (size[0] - seen.size + 1, size[1] - seen.size + 1)
    assert stitched.shape == whole.shape
    assert torch.allclose(whole, stitched, rtol=1e-12, atol=1e-13)
    assert theory.receptive_field(dense) == field(seen.size, 1, Fraction(seen.size - 1, 2))


def test_one_layer_rarefied():
    spec = [("conv", 3, 2, 1, 1), ("max", 2, 2, 0, 1), ("conv", 3, 2, 1, 1), ("conv", 3, 1, 1, 1)]
    model = built(spec)
    images = torch.rand(1, 2, 64, 64, dtype=torch.float64)
    finer = theory.rarefy(model, "2")  # the pooling
    with torch.no_grad():
        before, after = model(images), finer(images)
    assert theory.receptive_field(finer).stride == 4
    inner = slice(2, -2)  # the paddings of later layers differ
    assert torch.equal(after[..., ::2, ::2][..., inner, inner], before[..., inner, inner])
    assert model[2].stride == 2 and model[3].dilation == (1, 1)
    with pytest.raises(ValueError, match="no stride"):
        theory.rarefy(model, "5")


def test_rarefied_branches():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.main = nn.Conv2d(2, 2, 3, stride=2, padding=1)
            self.side = nn.Conv2d(2, 2, 1, stride=2)
            self.last = nn.Conv2d(2, 2, 3)

        def forward(self, x):
            return self.last(self.main(x) + self.side(x))

    model = Block().double()
    dense = theory.rarefy(model)
    images = torch.rand(1, 2, 40, 40, dtype=torch.float64)
    assert dense.last.dilation == (2, 2)
    assert torch.allclose(dense(images)[..., ::2, ::2], model(images), rtol=1e-12)


@given(st.tuples(*map(st.integers, (1, 1, 1), (3, 20, 20))), st.integers(1, 8), st.integers(0, 99))
def test_whole_cells_are_kept_or_dropped(shape, cell, seed):
    target = torch.randint(0, 5, shape, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    before = target.clone()
    sampled = theory.sample_patches(target, 0.5, cell, generator)
    assert torch.equal(target, before) and sampled.dtype == torch.uint8
    for rows, before_rows in zip(sampled.split(cell, 1), target.split(cell, 1), strict=True):
        for parts, wholes in zip(rows.split(cell, 2), before_rows.split(cell, 2), strict=True):
            for part, whole in zip(parts, wholes, strict=True):
                assert torch.equal(part, whole) or (part == 255).all()
    again = theory.sample_patches(target, 0.5, cell, torch.Generator().manual_seed(seed))
    assert torch.equal(sampled, again)
    assert torch.equal(theory.sample_patches(target, 1.0, cell), target)


def test_the_expected_gradient_of_a_sampled_sum():
    """E[gradient] = p times the whole gradient, within five standard errors at each place."""
    generator = torch.Generator().manual_seed(0)
    grid = SamplingGrid.resize((3, 3), (12, 12))
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4, (1, 12, 12))

    def gradient(labels):
        loss = ops.upsample_cross_entropy(x, labels, grid, reduction="sum")
        return torch.autograd.grad(loss, x)[0]

    p, draws = 0.3, 200
    sampled = [theory.sample_patches(target, p, 4, generator) for _ in range(draws)]
    samples = torch.stack(list(map(gradient, sampled)))
    error = (samples.mean(0) - p * gradient(target)).abs()
    assert (error <= 5 * samples.std(0) / draws**0.5).all()
    assert samples.std(0).max() > 0


# Table 1 of the paper. Its 907 for GoogLeNet counts the classifier's 7 x 7 pooling, which an FCN
# leaves out: 907 = 715 + 6 * 32.
@pytest.mark.parametrize(
    ("name", "size", "offset"),
    [("fcn32s_alexnet", 355, "13"), ("fcn32s_vgg16", 404, "25/2"), ("fcn32s_googlenet", 715, "30")],
)
def test_the_papers_fields(capsys, name, size, offset):
    assert main(["info", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("score_fr"))
    assert row[-4:-1] == [str(size), "32", offset]
    assert ("907 = 715 + 6 * 32" in lines[-1]) == (name == "fcn32s_googlenet")


def test_a_network_is_traced_with_the_channels_of_its_own_input(capsys, monkeypatch):
    """Six of a late fusion, whose first convolution takes three."""
    assert main(["info", "nyud_fcn32s_vgg16_color_hha"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for stream in ("color", "hha"):
        row = next(line.split() for line in lines if line.startswith(f"score_fr{stream}"))
        assert row[-4:-1] == ["404", "32", "25/2"]
    narrow_trunks(monkeypatch)
    model = create_model("nyud_fcn32s_vgg16_color_hha")
    assert theory.receptive_field(model, "fc7hha") == field(404, 32, "25/2")
    assert theory.receptive_field(model).stride == 1


def test_info_about_nothing(capsys):
    assert main(["info", "fcn99"]) == 2
    assert "fcn99" in capsys.readouterr().err
    assert main(["info", "fcn32s_googlenet", "--size", "7"]) == 2
    assert "too small" in capsys.readouterr().err


@given(st.lists(st.integers(2, 4), min_size=1, max_size=3), st.integers(2, 4), st.integers(2, 4))
@settings(max_examples=15)
def test_a_stack_of_deconvolutions_interpolates_in_place(strides, height, width):
    wanted = x = torch.randn(1, 2, height, width, dtype=torch.float64)
    for s in strides:
        filters = tent(2 * s - s % 2).expand(2, 1, -1, -1)
        wanted = F.conv_transpose2d(wanted, filters, stride=s, padding=s // 2, groups=2)
    stack = theory.stacked_deconvolutions(2, strides).double()
    assert torch.allclose(stack(x), wanted, rtol=1e-5, atol=1e-6)  # filters begin in float32
    kinds = [type(layer).__name__ for layer in theory.stacked_deconvolutions(1, (2, 2), nn.PReLU)]
    assert kinds == ["Deconv", "PReLU", "Deconv"]


class Mixed(nn.Module):
    def forward(self, x):
        return x[..., :8, :8] + F.max_pool2d(x, 2)[..., :8, :8]


class Twice(Classifier):
    def forward(self, x):
        return 2 * super().forward(x)


NET = nn.Conv2d(1, 1, 3, 2)
FINER = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ConvTranspose2d(1, 1, 4, 2))
ODD = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 4), nn.LayerNorm(4))
LABELS = torch.zeros(1, 2, 2, dtype=torch.long)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "says"),
    [
        ("trace", (nn.Conv2d(3, 1, (3, 1)), 32), ValueError, r"kernel of \(3, 1\)"),
        ("trace", (Mixed(), 32), ValueError, "strides 1 and 2"),
        ("receptive_field", (3,), TypeError, "model must be a torch.nn.Module, not 3"),
        ("rarefy", ("net",), TypeError, "model must be a torch.nn.Module, not 'net'"),
        ("rarefy", (NET, "pool"), ValueError, "no layer 'pool'"),
        ("convolutionalize", (None, 26), TypeError, "classifier must be .* not None"),
        ("convolutionalize", (nn.Sequential(NET), 8), ValueError, "no linear layer"),
        ("convolutionalize", (Twice(), (23, 31)), ValueError, "Twice does more"),
        ("convolutionalize", (ODD, 8), ValueError, "LayerNorm"),
        ("convolutionalize", (ODD, 9), ValueError, "do not fit"),
        ("convolutionalize", (Classifier(pool=(2, 2)), (23, 31)), ValueError, "not a fixed window"),
        ("shift_and_stitch", (NET, torch.zeros(1, 1, 3, 9)), ValueError, "too small"),
        ("shift_and_stitch", (FINER, torch.zeros(1, 1, 9, 9)), ValueError, "stride 1/2"),
        ("shift_and_stitch", (NET, torch.zeros(1, 9, 9)), ValueError, r"not \(1, 9, 9\)"),
        ("shift_and_stitch", (NET, [1]), TypeError, "images must be .* not list"),
        ("shift_and_stitch", (3, torch.zeros(1, 1, 9, 9)), TypeError, "model must"),
        ("sample_patches", (LABELS.float(), 0.5, 2), TypeError, "float32"),
        ("sample_patches", (LABELS[0], 0.5, 2), ValueError, "N x H x W"),
        ("sample_patches", (LABELS, 0.0, 2), ValueError, "0.0"),
        ("sample_patches", (LABELS, 1.5, 2), ValueError, "1.5"),
        ("sample_patches", (LABELS, 0.5, 0), ValueError, "cell"),
        ("sample_patches", (LABELS.to(torch.int8), 0.5, 2), ValueError, "255"),
        ("stacked_deconvolutions", (3, 2), TypeError, "strides must be .* not 2"),
        ("stacked_deconvolutions", (3, "22"), TypeError, "strides must be .* not '22'"),
        ("stacked_deconvolutions", ("3", (2,)), TypeError, "channels must be .* '3'"),
        ("stacked_deconvolutions", (0, (2,)), ValueError, "channels must be positive"),
        ("stacked_deconvolutions", (3, ()), ValueError, "strides must be 2 or more"),
        ("stacked_deconvolutions", (3, (2, 1)), ValueError, "strides must be 2 or more"),
    ],
)
def test_arguments_that_are_refused(function, arguments, error, says):
    with pytest.raises(error, match=says):
        getattr(theory, function)(*arguments)


class Runs(nn.Module):
    """A network of one function."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 3, 3, padding=1), function

    def forward(self, x):
        return self.function(x, self.conv)


def test_cuts_with_steps_and_from_the_end():
    strided = theory.receptive_field(Runs(lambda x, conv: conv(x[..., ::2, ::2])))
    assert strided == field(5, 2, 0)
    shortcut = Runs(lambda x, conv: F.max_pool2d(conv(x), 1, 2) + x[:, :, ::2, ::2])
    assert theory.receptive_field(shortcut) == field(3, 2, 0)
    last = theory.receptive_field(Runs(lambda x, conv: conv(x[..., -60:, -60:])))
    assert last == field(3, 1, theory.fields.INPUT_SIZE - 60)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, conv: x + conv(x.permute(0, 1, 3, 2)).permute(0, 3, 2, 1).permute(0, 3, 2, 1),
        lambda x, conv: x + F.interpolate(conv(x), size=x.shape[2:], mode="bicubic"),
        lambda x, conv: F.interpolate(conv(x), scale_factor=2, mode="nearest"),
        lambda x, conv: conv(x).flip(2),
        lambda x, conv: x + conv(x).transpose(2, 3),
    ],
)
def test_what_is_not_followed_has_no_field(function):
    with pytest.raises(ValueError, match="output has no receptive field: .* not followed"):
        theory.receptive_field(Runs(function))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, conv: F.max_pool2d(conv(x), 2),
        lambda x, conv: F.conv2d(x, conv.weight, stride=2),
        lambda x, conv: conv(x)[..., 1:-1, 1:-1],
    ],
)
def test_windows_outside_of_layers_cannot_be_rarefied(function):
    with pytest.raises(ValueError, match="only these layers can be dilated: Conv2d"):
        theory.rarefy(Runs(function))


def test_channels_may_move():
    def shuffled(x, conv):
        n, c, h, w = x.shape
        y = conv(x.flip(1))[:, torch.tensor([2, 0, 1])]
        return y.view(n, c, 1, h, w).transpose(1, 2).reshape(n, c, h, w)

    assert theory.receptive_field(Runs(shuffled)) == field(3, 1, 0)


def test_a_layer_that_runs_twice_cannot_be_rarefied():
    twice = Runs(lambda x, conv: conv(F.relu(conv(x))))
    twice.conv.stride = (2, 2)
    with pytest.raises(ValueError, match="conv runs more than once"):
        theory.rarefy(twice)


def test_gates_by_global_means_do_not_count():
    gated = Runs(lambda x, conv: conv(x) * conv(x).mean(3, keepdim=True).mean(2, keepdim=True))
    assert theory.receptive_field(gated) == field(3, 1, 0)


def test_a_shared_activation_runs_where_it_stands():
    act = nn.ReLU()
    linear = (nn.Flatten(), nn.Linear(4 * 36, 5), act, nn.Linear(5, 2))
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), act, *linear)
    assert theory.convolutionalize(chain, (8, 8))(torch.zeros(1, 3, 9, 9)).shape == (1, 2, 2, 2)
