"""Surgery: transplants and their report, stages, more classes, more input channels."""

import copy

import pytest
import torch
from torch import nn

from fcnfast import CAMVID, create_model
from fcnfast.models.surgery import expand_input, expand_score, refine, transplant
from tests.model_tools import randomize_scores

pytestmark = pytest.mark.usefixtures("narrow")


def test_fully_connected_layers_become_convolutions():
    sizes = {"fc6": (10 * 7 * 7, 13), "fc7": (13, 13), "fc8": (13, 10)}
    source = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})
    source["conv5_3"] = nn.Conv2d(9, 10, 3, padding=1)
    target = create_model("fcn32s_vgg16", num_classes=3, dropout=0.0)
    report = transplant(source, target)
    assert report.reshaped == {
        "fc6.weight": ((13, 490), (13, 10, 7, 7)),
        "fc7.weight": ((13, 13), (13, 13, 1, 1)),
    }
    assert report.dropped == ("fc8.weight", "fc8.bias")
    assert {name.partition(".")[0] for name in report.copied} == {"conv5_3", "fc6", "fc7"}
    assert {"conv1_1.weight", "score_fr.bias"} <= set(report.untouched)
    for line in ("6 tensors copied, 2 of them reshaped", "fc6.weight: (13, 490) to (13, 10, 7, 7)"):
        assert line in str(report)
    x = torch.randn(1, 10, 7, 7)
    there = source["fc7"](source["fc6"](x.flatten(1)).relu())
    here = target.fc7(target.fc6(x).relu())
    assert torch.allclose(here.flatten(1), there, atol=1e-6)


def test_other_names_suffixes_and_layers_to_skip():
    source = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 4, 3))
    target = create_model("nyud_fcn32s_vgg16_color_hha")
    names = {"0": "conv1_1", "1": "conv1_2"}
    report = transplant(source, target, names=names, suffix="hha", skip={"conv1_2hha"})
    assert report.copied == ("conv1_1hha.weight", "conv1_1hha.bias")
    assert report.dropped == ("1.weight", "1.bias")
    assert torch.equal(target.conv1_1hha.weight, source[0].weight)
    nested, trunk = (create_model("fcn8s_resnet18", num_classes=n) for n in (21, 4))
    report = transplant(trunk, nested, skip={"score_fr", "score_layer3", "score_layer2"})
    assert len(report.untouched) == 6
    assert torch.equal(nested.layer4[1].bn2.weight, trunk.layer4[1].bn2.weight)


def test_a_transplant_that_does_not_fit_changes_nothing():
    target = create_model("fcn32s_vgg16", num_classes=3)
    before = copy.deepcopy(target.state_dict())
    for state, arguments, message in (
        ({"fc6.weight": (7, 5)}, {}, r"fc6.weight is \(7, 5\).*\(13, 10, 7, 7\).*35 elements"),
        ({"fc6.bias": (13,)}, {"skip": ["fc9"]}, "skip: there is no layer 'fc9'"),
        ({"fc6.bias": (13,)}, {"names": {"fc9": "fc6"}}, "names: there is no layer 'fc9'"),
        ({"fc6.bias": (13,)}, {"suffix": "x"}, "no layer name in common"),
    ):
        source = {"conv1_1.weight": torch.ones(3, 3, 3, 3)}  # would fit
        source |= {key: torch.ones(shape) for key, shape in state.items()}
        with pytest.raises(ValueError, match=message):
            transplant(source, target, **arguments)
        assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


@pytest.mark.parametrize("family", ["{}_vgg16", "{}_googlenet", "siftflow_{}_vgg16"])
def test_stages_begin_where_the_coarser_net_ended(family):
    """The paper's unmodified predictions: the skip is silent at first."""
    net = randomize_scores(create_model(family.format("fcn32s"), num_classes=11)).eval()
    net.table = CAMVID
    x = torch.randn(1, 3, 224, 256)
    for stage, names in (("fcn16s", 2), ("fcn8s", 3)):
        finer = refine(net)
        assert finer.name == family.format(stage)
        assert (finer.table, finer.preprocessing) == (CAMVID, net.preprocessing)
        assert not finer.training
        skips = [layer for name, layer in finer.named_children() if name.startswith("score_")]
        assert len(skips) == names * len(finer.heads)
        new = set(finer.state_dict()) - set(net.state_dict())
        assert new and not any(finer.state_dict()[key].any() for key in new)
        assert all(torch.equal(finer.state_dict()[k], v) for k, v in net.state_dict().items())
        out, coarse = finer(x)["out"], net(x)["out"]
        inner = (..., slice(64, -64), slice(64, -64))
        assert (out - coarse)[inner].abs().mean() < 0.25 * coarse[inner].std()
        randomize_scores(finer)
        net = finer
    with pytest.raises(ValueError, match="no next stage"):
        refine(net)


def test_stages_keep_options_dtype_and_what_upsamplings_learned():
    net = create_model("fcn16s_vgg16", num_classes=3, padding=90, upsampling="depthwise").double()
    nn.init.normal_(net.upscore2.weight)
    finer = refine(net)
    assert finer.options == {"padding": 90, "upsampling": "depthwise"}
    assert finer.upscore2.weight.dtype == torch.float64
    assert torch.equal(finer.upscore2.weight, net.upscore2.weight)
    assert finer.upscore_pool4.weight[0, 0, 1, 1] == 0.75**2
    assert finer.training
    with pytest.raises(ValueError, match="no next stage"):
        refine(create_model("fcn8s_atonce_vgg16"))


def test_more_classes_leave_the_scores_of_the_old_ones():
    x = torch.randn(1, 3, 70, 80, dtype=torch.float64)
    for name, options in (
        ("fcn8s_vgg16", {"upsampling": "dense"}),
        ("fcn_resnet50", {}),
        ("fcn_resnet50_mmseg", {}),
        ("siftflow_fcn16s_vgg16", {}),
    ):
        net = randomize_scores(create_model(name, num_classes=4, **options)).double().eval()
        more = expand_score(net, 6)
        assert more.num_classes == 6
        old, new = net(x), more(x)
        assert torch.allclose(new["out"][:, :4], old["out"], rtol=0, atol=1e-9)
        for head in {"out", "aux"} & new.keys():
            assert not new[head][:, 4:].any() and old[head].any()
        if "geo" in old:
            assert torch.equal(new["geo"], old["geo"])
    for count, message in ((3, "at least 4, not 3"), (6.0, "num_classes must be .* not 6.0")):
        with pytest.raises(ValueError, match=message):
            expand_score(net, count)
    net.name = ""
    with pytest.raises(ValueError, match="made by create_model"):
        expand_score(net, 6)
    for make in (refine, lambda model: expand_score(model, 30)):
        with pytest.raises(TypeError, match="model must be a network of fcnfast, not Sequential"):
            make(nn.Sequential())


def test_a_fourth_channel_starts_as_the_mean_of_three():
    net = create_model("fcn32s_vgg16", num_classes=40)
    early = create_model("nyud_fcn32s_vgg16_color_d")
    nn.init.normal_(net.conv1_1.bias)
    transplant(net, early)
    expand_input(net.conv1_1, early.conv1_1_bgrd)
    weight = early.conv1_1_bgrd.weight
    assert torch.equal(weight[:, :3], net.conv1_1.weight)
    assert torch.allclose(weight[:, 3], net.conv1_1.weight.mean(1))
    assert torch.equal(early.conv1_1_bgrd.bias, net.conv1_1.bias)
    with pytest.raises(ValueError, match="more input channels"):
        expand_input(early.conv1_1_bgrd, net.conv1_1)
    with pytest.raises(ValueError, match="has a bias"):
        expand_input(net.conv1_1, nn.Conv2d(4, 3, 3, bias=False))
