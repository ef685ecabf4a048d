"""Weights files that are cut, corrupt, of something else or of another network.

The error names the file, and the network that was to be loaded stays as it was.
"""

import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fcnfast
from fcnfast.errors import WeightsError
from fcnfast.models import FCN
from tests import foreign_nets
from tests.foreign_nets import randomize
from tests.model_tools import narrow_trunks
from tests.weights_tools import Unchanged, narrow_vgg, new_model, refuse, weights
from tests.wire_tools import caffemodel, hdf5_model, integer, layer_v2, message


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_vgg(monkeypatch)


@pytest.fixture
def model() -> FCN:
    return new_model()


def write_ours(path: Path) -> None:
    model = fcnfast.create_model("fcn16s_vgg16", num_classes=5)
    model.load_state_dict(weights(), strict=False)
    fcnfast.save_model(model, path)


def write_hdf5(path: Path) -> None:
    pytest.importorskip("h5py")
    hdf5_model(path, weights())


FORMATS: dict[str, Callable[[Path], None]] = {
    "safetensors": write_ours,
    "zip": lambda path: torch.save(weights(), path),
    "legacy": lambda path: torch.save(weights(), path, _use_new_zipfile_serialization=False),
    "caffe": lambda path: path.write_bytes(caffemodel(weights())) and None,
    "caffe v1": lambda path: path.write_bytes(caffemodel(weights(), 1, legacy=True)) and None,
    "caffe v0": lambda path: path.write_bytes(caffemodel(weights(), 0, packed=False)) and None,
    "hdf5": write_hdf5,
}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_whole_files_load(tmp_path: Path, model: FCN, kind: str) -> None:
    path = tmp_path / "net"
    FORMATS[kind](path)
    report = fcnfast.load_weights(model, path)
    assert not report.missing and not report.unexpected
    assert all(torch.equal(value, weights()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, model: FCN, kind: str) -> None:
    whole, path = tmp_path / "whole", tmp_path / "net.weights"
    FORMATS[kind](whole)
    content = whole.read_bytes()
    layer_starts = {content.find(b"fc7") - 8, len(content) - 1, len(content) - 5}
    before = Unchanged(model)
    for length in sorted({*range(0, len(content), len(content) // 23), 3, 40, *layer_starts}):
        if kind.startswith("caffe") and length in whole_messages(content):
            continue
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"net\.weights: ") as raised:
            fcnfast.load_weights(model, path)
        if length > 1000:
            assert "cut" in str(raised.value), (length, str(raised.value))
    before.check()


def whole_messages(content: bytes) -> set[int]:
    """Where a Caffe model ends between two fields: the rest is one, of fewer layers."""
    ends, at = {0}, 0
    while at < len(content):
        at += 2 if content[at] == 0xA2 else 1
        if content[at - 1] == 0x28:  # an integer
            at += 1
        else:
            length, shift = 0, 0
            while True:
                byte = content[at]
                length |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
                if byte < 128:
                    break
            at += length
        ends.add(at)
    return ends


def test_a_caffe_model_cut_between_layers_lacks_them(tmp_path: Path, model: FCN) -> None:
    content = caffemodel(weights())
    end = sorted(whole_messages(content))[-15]
    (tmp_path / "net").write_bytes(content[:end])
    refuse(model, tmp_path / "net", "has no '(fc|conv|score)")


@pytest.mark.parametrize("kind", FORMATS)
def test_corrupt_files_are_refused_or_read(tmp_path: Path, model: FCN, kind: str) -> None:
    """Whatever bytes are changed, nothing but a WeightsError comes of it."""
    whole, path = tmp_path / "whole", tmp_path / "net"
    FORMATS[kind](whole)
    content = whole.read_bytes()
    rng = random.Random(5)
    # Where tensors are described: at the beginning, at the end, beside their names.
    places = [*range(0, 500), *range(len(content) - 3000, len(content))]
    for name in (b"conv", b"fc", b"score"):
        found = [match.start() for match in re.finditer(name, content)]
        places += [place + k for place in found for k in range(-16, 40)]
    places = [place for place in places if place < len(content)]
    refused = 0
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 3))):
            changed[rng.choice(places)] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            fcnfast.load_weights(model, path)
        except WeightsError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 10


def random_bytes(count: int) -> bytes:
    return random.Random(0).randbytes(count)


OTHERS = {
    "empty": (b"", "empty"),
    "text": (b"name: 'VGG'\nlayer { name: 'conv1' }\n" * 30, "not a weights file"),
    "text that begins as a message": (b"(hello\n", "not a weights file"),
    "longer text": ("(Überall Wörter,\tund so weiter)\r\n".encode() * 99, "not a weights file"),
    "zeros": (bytes(3000), "not a weights file"),
    "noise": (random_bytes(3000), "not a weights file"),
    "picture": (b"\x89PNG\r\n\x1a\n" + random_bytes(300), "not a weights file"),
    "mean of a data set": (
        integer(1, 1) + integer(2, 3) + integer(3, 2) + integer(4, 2) + message(5, bytes(48)),
        "a protobuf message, but no Caffe model",
    ),
    "graph of another framework": (
        integer(1, 8) + message(2, b"exporter") + message(7, message(1, b"node")) + integer(5, 1),
        "a protobuf message, but no Caffe model",
    ),
    "state of a solver": (
        integer(1, 4000) + message(2, b"net_iter_4000.caffemodel") + message(3, bytes(40)),
        "a protobuf message, but no Caffe model",
    ),
    "net without weights": (
        message(1, b"deploy") + layer_v2("conv1", "Convolution", []),
        "holds no layers with weights",
    ),
    "pickle": (pickle.dumps({"a": [1, 2]}), "a Python pickle"),
    "old pickle": (pickle.dumps({"a": [1, 2]}, protocol=0), "a Python pickle"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_something_else_are_refused(tmp_path: Path, model: FCN, kind: str) -> None:
    content, says = OTHERS[kind]
    (tmp_path / "net").write_bytes(content)
    refuse(model, tmp_path / "net", says)


def changed(**layers: Tensor | None) -> dict[str, Tensor]:
    state = weights() | {key.replace("__", "."): value for key, value in layers.items()}
    return {key: value for key, value in state.items() if value is not None}


BROKEN = {
    "wrong count": (
        lambda: changed(conv3_2__weight=torch.ones(7, 8, 3, 2)),
        r"'conv3_2\.weight' is \(7, 8, 3, 2\), but fcn16s_vgg16 with 5 classes needs "
        r"\(7, 8, 3, 3\) \(336 numbers for 504\)",
    ),
    "other layout": (
        lambda: changed(fc6__weight=torch.ones(13, 7, 7, 10)),
        r"'fc6\.weight' is \(13, 7, 7, 10\)",
    ),
    "missing layer": (lambda: changed(conv5_3__weight=None), r"has no 'conv5_3\.weight'"),
    "layer of a deeper network": (
        lambda: changed(conv3_4__weight=torch.ones(8, 8, 3, 3)),
        r"holds 'conv3_4\.weight', which fcn16s_vgg16 does not have",
    ),
    "not a number": (
        lambda: changed(fc7__bias=torch.full((13,), torch.nan)),
        r"'fc7\.bias' holds values that are not finite",
    ),
    "infinite": (
        lambda: changed(fc7__bias=torch.full((13,), 1e39, dtype=torch.float64)),
        r"'fc7\.bias' holds values that are not finite",
    ),
    "integers": (
        lambda: changed(fc7__bias=torch.ones(13, dtype=torch.int8)),
        r"'fc7\.bias' holds torch\.int8",
    ),
    "upsampling of another stride": (
        lambda: changed(upscore2__weight=torch.ones(5, 5, 8, 8)),
        r"'upscore2\.weight' is \(5, 5, 8, 8\), but the upsampling 'upscore2' of fcn16s_vgg16 is "
        r"\(5, 5, 4, 4\)",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_layers_that_do_not_fit_are_named(tmp_path: Path, model: FCN, kind: str) -> None:
    make, says = BROKEN[kind]
    torch.save(make(), tmp_path / "net.pth")
    # The file is of this network, only not whole.
    assert "it holds weights of" not in refuse(model, tmp_path / "net.pth", says)
    # What comes before is not loaded either, nor is a learned upsampling left behind.
    state = make() | {"upscore16.weight": torch.ones(5, 5, 32, 32)}
    torch.save(state, tmp_path / "net.pth")
    refuse(model, tmp_path / "net.pth", says)


def test_weights_of_other_networks_are_refused(tmp_path: Path, model: FCN) -> None:
    path = tmp_path / "net"
    with torch.device("meta"):
        resnet = fcnfast.create_model("fcn_resnet50")
    fcnfast.save_model(fcnfast.create_model("fcn4s_light"), path)
    with pytest.raises(WeightsError, match="holds weights of fcn4s_light, not of fcn16s_vgg16"):
        fcnfast.load_weights(model, path)
    vgg19 = {f"features.{k}.weight": torch.ones(1) for k in (0, 2, 5, 7, 10, 12, 14, 16)}
    torch.save(vgg19, path)
    refuse(model, path, "neither VGG-16's nor AlexNet's")
    caffenet = randomize(foreign_nets.AlexNet()).state_dict()
    path.write_bytes(caffemodel(caffenet))
    with pytest.raises(WeightsError, match="has no 'conv1_1.weight'.*not of fcn16s_vgg16"):
        fcnfast.load_weights(model, path)
    # A deeper network has all the layers of a shallower one.
    deeper = {key: value.clone() for key, value in small(resnet).items()}
    deeper["backbone.layer3.22.conv3.weight"] = torch.zeros(1)
    torch.save(deeper, path)
    with pytest.raises(WeightsError, match=r"holds 'backbone\.layer3\.22\.conv3\.weight'"):
        fcnfast.create_model("fcn_resnet50", weights=path)


def small(model: FCN) -> dict[str, Tensor]:
    """A state dict of a network's shapes that takes no space: one element, seen everywhere."""
    return {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in model.state_dict().items()
    }


def test_a_missing_layer_has_the_files_name(tmp_path: Path, monkeypatch) -> None:
    narrow_trunks(monkeypatch)
    path = tmp_path / "net"
    googlenet = fcnfast.create_model("fcn32s_googlenet")
    state = {key.replace(".", "/", key.count(".") - 1): v for key, v in small(googlenet).items()}
    del state["inception_4b/5x5_reduce.weight"], state["inception_4b/5x5_reduce.bias"]
    path.write_bytes(caffemodel(state))
    refuse(googlenet, path, "has no 'inception_4b/5x5_reduce.weight'$")
    alexnet = fcnfast.create_model("fcn32s_alexnet", family="torchvision")
    numbers = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
    names = {name: f"features.{number}" for name, number in numbers.items()}
    names |= {"fc6": "classifier.1", "fc7": "classifier.4"}
    state = {
        f"{names[layer]}.{what}": value
        for key, value in small(alexnet).items()
        for layer, _, what in [key.partition(".")]
        if layer in names
    }
    del state["features.8.bias"]
    torch.save(state, path)
    refuse(alexnet, path, r"has no 'features\.8\.bias'$")
    model = fcnfast.create_model("fcn8s_vgg16")
    with pytest.raises(WeightsError, match="it holds weights of torchvision's AlexNet, not of fcn"):
        fcnfast.load_weights(model, path)


def test_alexnet_is_not_caffenet(tmp_path: Path) -> None:
    """BVLC's AlexNet has CaffeNet's layers in another order."""
    state = randomize(foreign_nets.AlexNet()).state_dict()
    layers = {name: layer_v2(name, "LRN", []) for name in ("norm1", "pool1")}
    path = tmp_path / "net.caffemodel"
    path.write_bytes(layers["norm1"] + layers["pool1"] + caffemodel(state))
    with pytest.raises(WeightsError, match="BVLC's AlexNet, which normalizes before it pools"):
        fcnfast.load_model(path)
