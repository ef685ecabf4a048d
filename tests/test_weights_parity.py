"""Networks loaded from other projects' files give what those projects' networks give.

The definitions are those of `foreign_nets` and its neighbors, the files are written from raw bytes
or by torch and h5py; every comparison begins with the same uint8 pictures.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fcnfast
from fcnfast.models import alexnet, googlenet, resnet, vgg
from tests import foreign_nets, foreign_torch_nets
from tests.foreign_mmseg import EncoderDecoder
from tests.foreign_nets import randomize
from tests.wire_tools import caffemodel, close, hdf5_model

SIZES = ((33, 47), (65, 39), (51, 97))
ONE_SIZE = SIZES[:1]
CAFFE = dict(mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0), order="bgr", scale=1.0)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """fcnfast's networks with the widths of the foreign ones."""
    monkeypatch.setattr(vgg, "STAGES", foreign_nets.STAGES)
    monkeypatch.setattr(vgg, "FULLY_CONNECTED", foreign_nets.FULLY_CONNECTED)
    widths = {"caffe": foreign_nets.CAFFE_ALEXNET, "torchvision": foreign_nets.TORCHVISION_ALEXNET}
    monkeypatch.setattr(alexnet, "WIDTHS", widths)
    monkeypatch.setattr(alexnet, "FULLY_CONNECTED", foreign_nets.FULLY_CONNECTED)
    monkeypatch.setattr(googlenet, "STEM", foreign_nets.STEM)
    blocks = {name: googlenet.Widths(*foreign_nets.BLOCK) for name in foreign_nets.BLOCKS}
    monkeypatch.setattr(googlenet, "BLOCKS", blocks)
    monkeypatch.setattr(resnet, "WIDTH", foreign_nets.RESNET)


def photos(height: int, width: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)


def check(
    model: nn.Module,
    theirs: nn.Module,
    heads: dict[str, str] | None = None,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> None:
    """Same outputs at three odd sizes; `heads`: theirs by ours."""
    model.eval()
    for size in sizes:
        images = photos(*size)
        with torch.no_grad():
            ours, expected = model(model.preprocess(images)), theirs(images)
        assert len(ours) == len(expected)
        for name, output in ours.items():
            assert close(output, expected[(heads or {"out": "", "aux": "aux"})[name]]), (name, size)


# What a training script of pytorch-fcn and others wrap their state dicts in.
WRAPPINGS: dict[str, Callable[[dict], object]] = {
    "plain": lambda state: state,
    "training": lambda state: {
        "epoch": 3,
        "arch": "FCN",
        "optim_state_dict": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
        "model_state_dict": state,
        "best_mean_iu": 0.5,
    },
    "parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "parameters": lambda state: {k: nn.Parameter(v) for k, v in state.items()},
}


@pytest.mark.parametrize(
    ("name", "stride", "at_once"),
    [
        ("fcn32s_vgg16", 32, False),
        ("fcn16s_vgg16", 16, False),
        ("fcn8s_vgg16", 8, False),
        ("fcn8s_atonce_vgg16", 8, True),
    ],
)
def test_pytorch_fcn(tmp_path: Path, name: str, stride: int, at_once: bool) -> None:
    theirs = randomized(foreign_nets.VGG(stride, at_once))
    path = tmp_path / "net.pth"
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=stride == 16)
    model = fcnfast.create_model(name, weights=path)
    assert model.num_classes == 5
    assert model.preprocessing.to_json() == CAFFE | {"max_size": None}
    assert model.upsampling == "fixed"
    check(model, theirs)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_checkpoints(tmp_path: Path, wrapping: str, zipped: bool) -> None:
    theirs = randomized(foreign_nets.VGG(16))
    path = tmp_path / "checkpoint.pth.tar"
    content = WRAPPINGS[wrapping](theirs.state_dict())
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    check(fcnfast.load_model(path), theirs, sizes=ONE_SIZE)


def randomized(net: nn.Module) -> nn.Module:
    """Random weights, but for the upsampling, which stays bilinear."""
    kept = {k: v.clone() for k, v in net.state_dict().items() if "upscore" in k}
    randomize(net).load_state_dict(kept, strict=False)
    return net


LAYOUTS = {
    "V2": {},
    "V2 unpacked": {"packed": False},
    "V2 double": {"double": True},
    "V2 double unpacked": {"double": True, "packed": False},
    "V1": {"generation": 1, "legacy": True},
    "V1 fully connected": {"generation": 1, "legacy": True, "flat": ("fc6", "fc7")},
    "V1 unpacked": {"generation": 1, "legacy": True, "packed": False},
    "V1 with shapes": {"generation": 1},
    "V0": {"generation": 0, "legacy": True},
    "V0 double": {"generation": 0, "legacy": True, "double": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_caffe_layouts(tmp_path: Path, layout: str) -> None:
    theirs = randomized(foreign_nets.VGG(16))
    path = tmp_path / "net"
    path.write_bytes(caffemodel(theirs.state_dict(), **LAYOUTS[layout]))
    model = fcnfast.load_model(path)
    assert model.name == "fcn16s_vgg16"
    check(model, theirs, sizes=ONE_SIZE)


def test_caffe_at_once_has_its_scales_in_the_file(tmp_path: Path) -> None:
    theirs = randomized(foreign_nets.VGG(8, at_once=True))
    scales = {
        "scale_pool4.weight": torch.full((foreign_nets.STAGES[3][-1],), 0.01),
        "scale_pool3.weight": torch.full((foreign_nets.STAGES[2][-1],), 0.0001),
    }
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel(theirs.state_dict() | scales))
    model = fcnfast.load_model(path)
    assert model.name == "fcn8s_atonce_vgg16"
    check(model, theirs)
    with pytest.raises(fcnfast.InputError, match=r"multiplies pool4 by 0\.01, fcn8s_vgg16 by 1"):
        fcnfast.create_model("fcn8s_vgg16", weights=path)
    path.write_bytes(caffemodel(theirs.state_dict()))
    assert fcnfast.load_model(path).name == "fcn8s_vgg16"
    with pytest.raises(fcnfast.InputError, match=r"multiplies pool4 by 1, fcn8s_atonce_vgg16"):
        fcnfast.create_model("fcn8s_atonce_vgg16", weights=path)


@pytest.mark.parametrize("generation", [2, 1])
def test_caffenet(tmp_path: Path, generation: int) -> None:
    theirs = randomized(foreign_nets.AlexNet())
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel(theirs.state_dict(), generation, legacy=generation == 1))
    model = fcnfast.load_model(path)
    assert (model.name, model.family) == ("fcn32s_alexnet", "caffe")
    check(model, theirs)


@pytest.mark.parametrize("kind", ["caffemodel", "hdf5"])
def test_bvlc_googlenet(tmp_path: Path, kind: str) -> None:
    theirs = randomized(foreign_nets.GoogLeNet())
    state = theirs.state_dict() | {"loss3/classifier.weight": torch.ones(7, 3)}
    path = tmp_path / "net"
    if kind == "hdf5":
        pytest.importorskip("h5py")
        hdf5_model(path, state)
    else:
        path.write_bytes(caffemodel(state))
    model = fcnfast.load_model(path)
    assert (model.name, model.family) == ("fcn32s_googlenet", "caffe")
    check(model, theirs)


def test_hdf5(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    theirs = randomized(foreign_nets.VGG(8))
    hdf5_model(tmp_path / "net.caffemodel.h5", theirs.state_dict())
    model = fcnfast.load_model(tmp_path / "net.caffemodel.h5")
    assert model.name == "fcn8s_vgg16"
    check(model, theirs)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_siftflow_has_two_heads_and_its_own_mean(tmp_path: Path, stride: int) -> None:
    mean = (114.578, 115.294, 108.353)
    theirs = randomized(foreign_nets.VGG(stride, heads={"_sem": 33, "_geo": 3}, mean=mean))
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel(theirs.state_dict()))
    model = fcnfast.load_model(path)
    assert model.name == f"siftflow_fcn{stride}s_vgg16"
    check(model, theirs, {"out": "_sem", "geo": "_geo"})


def test_nyud_late_fusion(tmp_path: Path) -> None:
    theirs = randomized(foreign_nets.LateFusion())
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel(theirs.weights()))
    model = fcnfast.load_model(path)
    assert model.name == "nyud_fcn32s_vgg16_color_hha"
    for size in SIZES:
        images, hha = photos(*size), photos(*size, seed=4)
        with torch.no_grad():
            ours = model(model.preprocess(images, hha))["out"]
            assert close(ours, theirs(images, hha)[""])


@pytest.mark.parametrize("old", [False, True])
def test_torchvision_vgg16(tmp_path: Path, old: bool) -> None:
    theirs = randomized(foreign_torch_nets.VGG16())
    path = tmp_path / "vgg16.pth"
    torch.save(theirs.weights(), path, _use_new_zipfile_serialization=not old)
    model = fcnfast.create_model("fcn8s_vgg16", num_classes=5, weights_backbone=path)
    model.load_state_dict(theirs.scores(), strict=False)
    check(model, theirs)


def test_caffe_values_in_an_early_layout_of_torchvisions(tmp_path: Path) -> None:
    theirs = randomized(foreign_torch_nets.VGG16(dropout_first=True))
    theirs.prepare = lambda images: foreign_nets.bgr(images, (103.939, 116.779, 123.68))
    torch.save(theirs.weights(), tmp_path / "vgg16.pth")
    path = tmp_path / "vgg16.pth"
    model = fcnfast.create_model("fcn8s_vgg16", num_classes=5, weights_backbone=path)
    model.load_state_dict(theirs.scores(), strict=False)
    check(model, theirs)


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("fcn32s_alexnet", foreign_torch_nets.AlexNet),
        ("fcn32s_googlenet", foreign_torch_nets.GoogLeNet),
    ],
)
def test_torchvision_classifiers_choose_their_layers(
    tmp_path: Path, name: str, definition: type[nn.Module]
) -> None:
    theirs = randomized(definition())
    torch.save(theirs.weights(), tmp_path / "net.pth")
    model = fcnfast.create_model(name, num_classes=5, weights_backbone=tmp_path / "net.pth")
    assert model.options["family"] == "torchvision"
    model.load_state_dict(theirs.scores(), strict=False)
    check(model, theirs)
    says = f"family='caffe'; create_model\\('{name}', weights_backbone="
    with pytest.raises(fcnfast.InputError, match=says):
        fcnfast.load_weights(fcnfast.create_model(name, num_classes=5), tmp_path / "net.pth")


@pytest.mark.parametrize("dilated", [False, True])
def test_torchvision_resnet(tmp_path: Path, dilated: bool) -> None:
    theirs = randomize(foreign_torch_nets.ResNet(dilated))
    state = theirs.state_dict() | {"fc.weight": torch.ones(9, 4), "fc.bias": torch.ones(9)}
    torch.save(state, tmp_path / "net.pth")
    name = "fcn_resnet50" if dilated else "fcn8s_resnet50"
    model = fcnfast.create_model(name, weights_backbone=tmp_path / "net.pth").eval()
    for size in SIZES:
        images = photos(*size)
        with torch.no_grad():
            maps = theirs(foreign_nets.rgb(images))
            features = model.features(model.preprocess(images))
        assert close(features["layer4"].x, maps[3]) and close(features["layer3"].x, maps[2])


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_torchvision_segmentation(tmp_path: Path, kind: str) -> None:
    theirs = randomize(foreign_torch_nets.Segmentation())
    path = tmp_path / "net"
    if kind == "pth":
        torch.save(theirs.state_dict(), path)
    else:
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(theirs.state_dict(), path)
    model = fcnfast.load_model(path)
    assert model.name == "fcn_resnet50"
    check(model, theirs)
    without = {k: v for k, v in theirs.state_dict().items() if not k.startswith("aux")}
    torch.save(without, path)
    assert fcnfast.load_model(path).aux_classifier is None


def test_mmsegmentation(tmp_path: Path) -> None:
    theirs = randomize(EncoderDecoder())
    meta = {"CLASSES": tuple("abcde"), "PALETTE": [[k, 2 * k, 3 * k] for k in range(5)]}
    path = tmp_path / "iter_80000.pth"
    torch.save({"meta": meta, "state_dict": theirs.state_dict(), "optimizer": {}}, path)
    model = fcnfast.load_model(path)
    assert model.name == "fcn_resnet50_mmseg"
    assert model.table.names == tuple("abcde") and model.table.palette[2] == (2, 4, 6)
    check(model, theirs)
    bare = fcnfast.create_model("fcn_resnet50_mmseg", num_classes=5, aux_loss=False)
    report = fcnfast.load_weights(bare, path)
    assert report.unexpected and all(key.startswith("auxiliary_head.") for key in report.unexpected)


@pytest.mark.parametrize("changed", ["upscore2", "upscore_pool4", "upscore8"])
@pytest.mark.parametrize("mixing", [False, True])
def test_learned_upsampling_stays_learned(tmp_path: Path, changed: str, mixing: bool) -> None:
    """A dense one as it is; one whose classes do not mix without its zeros."""
    theirs = randomized(foreign_nets.VGG(8))
    weight = getattr(theirs, changed).weight.data
    weight[1, 2 if mixing else 1, 0, 1] += 1e-3
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    model = fcnfast.create_model("fcn8s_vgg16", weights=tmp_path / "net.pth")
    kind = "dense" if mixing else "depthwise"
    kinds = (model.upsampling, model.final_upsampling)
    assert kinds == (("fixed", kind) if changed == "upscore8" else (kind, "fixed"))
    check(model, theirs, sizes=SIZES if changed == "upscore2" else ONE_SIZE)
    fcnfast.save_model(model, tmp_path / "ours.safetensors")
    check(fcnfast.load_model(tmp_path / "ours.safetensors"), theirs, sizes=ONE_SIZE)


def test_ours_after_theirs_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    theirs = randomized(foreign_nets.VGG(8))
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    first = fcnfast.create_model("fcn8s_vgg16", weights=tmp_path / "net.pth").eval()
    fcnfast.save_model(first, tmp_path / "ours.safetensors")
    second = fcnfast.load_model(tmp_path / "ours.safetensors")
    third = fcnfast.create_model("fcn8s_vgg16", num_classes=5).eval()
    fcnfast.load_weights(third, tmp_path / "ours.safetensors")
    images = photos(65, 81)
    with torch.no_grad():
        results = [
            m(m.preprocess(images))["out"] for m in (first, second, third, copy.deepcopy(second))
        ]
    assert all(torch.equal(results[0], other) for other in results[1:])
