"""Networks of other projects' files give what those projects' networks give.

Their definitions are `foreign_nets` and `foreign_torch_nets`; tests/interop has torchvision itself.
"""

import pytest
import torch
from safetensors.torch import save_file

import fcnfast
from tests import foreign_nets as nets
from tests.foreign_nets import VGG
from tests.foreign_torch_nets import MMSegmentation
from tests.weights_tools import FORMATS, same, weights
from tests.wire_tools import caffemodel

pytestmark = pytest.mark.usefixtures("narrow")

SIZES = ((33, 47), (51, 98))
CAFFE = dict(mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0), order="bgr", scale=1.0)


def check(model, net, sizes=SIZES):
    """Same scores of all heads, and their labels, at odd sizes."""
    model = model.double().eval()
    generator = torch.Generator().manual_seed(3)
    for size in sizes:
        images = [torch.randint(0, 256, (1, 3, *size), generator=generator).byte()]
        x = None
        if model.name.startswith("nyud"):
            images.append(images[0].flip(0, 2))
            if model.name.endswith("_d"):
                x = model.preprocess(images[0], images[1][:, :1] + 1.0)
        x = model.preprocess(*images) if x is None else x
        with torch.no_grad():
            ours, theirs = model(x), net(*images)
        assert ours.keys() == theirs.keys()
        for head, wanted in theirs.items():
            scale = wanted.abs().max()
            assert scale > 1e-3 and (wanted.std() > 1e-2 * scale or size == (1, 1))
            assert ours[head].shape == wanted.shape
            # The means and deviations were rounded to float32 once.
            assert (ours[head] - wanted).abs().max() <= 1e-6 * scale, (head, size)
            assert torch.equal(model.predict(x, head=head).long(), ours[head].argmax(1))


def siftflow():
    return VGG(8, heads={"_sem": 33, "_geo": 3}, mean=(114.578, 115.294, 108.353))


NETWORKS = [
    ("fcn32s_vgg16", "zip", VGG, [32]),
    ("fcn16s_vgg16", "zip", VGG, [16]),
    ("fcn8s_vgg16", "zip", VGG, [8]),
    ("fcn8s_vgg16", "hdf5", VGG, [8]),
    ("fcn8s_atonce_vgg16", "zip", VGG, [8, True]),
    ("fcn32s_alexnet", "caffe", nets.AlexNet, []),
    *((f"fcn{n}s_googlenet", "caffe", nets.GoogLeNet, [n]) for n in (32, 16, 8)),
    *((f"fcn{n}s_googlenet", "classifier", nets.GoogLeNet, [n, 5, False]) for n in (32, 16, 8)),
    ("siftflow_fcn8s_vgg16", "caffe", siftflow, []),
    ("nyud_fcn32s_vgg16_color_d", "caffe", nets.EarlyFusion, []),
    ("nyud_fcn32s_vgg16_color_hha", "caffe", nets.LateFusion, []),
    ("fcn_resnet50_mmseg", "safetensors", MMSegmentation, []),
]


@pytest.mark.parametrize(("name", "kind", "define", "arguments"), NETWORKS)
def test_networks_are_their_definitions(tmp_path, name, kind, define, arguments):
    net, path = define(*arguments), tmp_path / "net"
    state = net.weights() if kind == "classifier" else net.state_dict()
    if kind == "safetensors":  # without a description of ours
        save_file(state, path)
    else:
        FORMATS["zip" if kind == "classifier" else kind](path, state)
    if kind == "classifier":
        model = fcnfast.create_model(name, num_classes=5, weights_backbone=path)
        scores = {k: v for k, v in net.state.items() if k.startswith("score")}
        assert set(model.load_report.missing) == scores.keys()
        model.load_state_dict(scores, strict=False)
    elif name in ("fcn8s_vgg16", "fcn8s_atonce_vgg16") and kind == "zip":
        model = fcnfast.create_model(name, weights=path)
        assert model.preprocessing.to_json() == CAFFE | {"max_size": None}
    else:
        model = fcnfast.load_model(path)
    assert model.name == name and getattr(model, "upsampling", "fixed") == "fixed"
    check(model, net, (*SIZES, (1, 1)) if "vgg" in name or "alexnet" in name else SIZES)


LAYOUTS = {
    "V2 unpacked": {"packed": False},
    "V2 double": {"double": True},
    "V2 double unpacked": {"double": True, "packed": False},
    "V1 fully connected": {"generation": 1, "legacy": True, "flat": ("fc6", "fc7")},
    "V1 unpacked": {"generation": 1, "legacy": True, "packed": False},
    "V1 with shapes": {"generation": 1},
    "V0": {"generation": 0, "legacy": True},
    "V0 double": {"generation": 0, "legacy": True, "double": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_caffe_layouts(tmp_path, layout):
    (tmp_path / "net").write_bytes(caffemodel(weights(), **LAYOUTS[layout]))
    assert same(fcnfast.create_model("fcn16s_vgg16", weights=tmp_path / "net"))


def test_caffe_at_once_has_its_scales_in_the_file(tmp_path):
    net, path = VGG(8, at_once=True), tmp_path / "net.caffemodel"
    scales = {
        "scale_pool4.weight": torch.full((nets.STAGES[3][-1],), 0.01),
        "scale_pool3.weight": torch.full((nets.STAGES[2][-1],), 0.0001),
    }
    for more, name, other, says in (
        (scales, "fcn8s_atonce_vgg16", "fcn8s_vgg16", r"pool4 by 0\.01, fcn8s_vgg16 by 1"),
        ({}, "fcn8s_vgg16", "fcn8s_atonce_vgg16", r"pool4 by 1, fcn8s_atonce_vgg16"),
    ):
        path.write_bytes(caffemodel(net.state_dict() | more))
        model = fcnfast.load_model(path)
        assert model.name == name
        with pytest.raises(fcnfast.InputError, match=f"multiplies {says}"):
            fcnfast.create_model(other, weights=path)
        if more:
            check(model, net)


def test_auxiliary_heads_and_classes(tmp_path):
    path, state = tmp_path / "net.pth", fcnfast.create_model("fcn_resnet50").state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("aux")}, path)
    assert fcnfast.load_model(path).aux_classifier is None
    meta = {"CLASSES": tuple("abcde"), "PALETTE": [[k, 2 * k, 3 * k] for k in range(5)]}
    state = MMSegmentation().state_dict()
    torch.save({"meta": meta, "state_dict": state, "optimizer": {}}, path)
    table = fcnfast.load_model(path).table
    assert table.names == tuple("abcde") and table.palette[2] == (2, 4, 6)
    bare = fcnfast.create_model("fcn_resnet50_mmseg", num_classes=5, aux_loss=False)
    report = fcnfast.load_weights(bare, path)
    assert report.unexpected and all(key.startswith("auxiliary_head.") for key in report.unexpected)


@pytest.mark.parametrize("changed", ["upscore2", "upscore8"])
@pytest.mark.parametrize("mixing", [False, True])
def test_learned_upsampling_stays_learned(tmp_path, changed, mixing):
    """A dense one as it is; one whose classes do not mix without its zeros."""
    net = VGG(8)
    net.state[f"{changed}.weight"][1, 2 if mixing else 1, 0, 1] += 1e-3
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = fcnfast.create_model("fcn8s_vgg16", weights=tmp_path / "net.pth")
    kind = "dense" if mixing else "depthwise"
    kinds = (model.upsampling, model.final_upsampling)
    assert kinds == (("fixed", kind) if changed == "upscore8" else (kind, "fixed"))
    fcnfast.save_model(model, tmp_path / "ours.safetensors")
    check(model, net, SIZES[:1])
    check(fcnfast.load_model(tmp_path / "ours.safetensors"), net, SIZES[:1])
