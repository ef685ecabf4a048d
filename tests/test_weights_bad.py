"""Weights files that are cut, corrupt, of something else or of another network."""

import itertools
import pickle
import random
import re
import sys

import h5py
import numpy as np
import pytest
import torch

import fcnfast
from fcnfast.errors import WeightsError
from tests import foreign_nets, foreign_torch_nets
from tests.weights_tools import FORMATS, new_model, refuse, unchanged, weights
from tests.wire_tools import (
    blob,
    caffe_messages,
    caffemodel,
    hdf5_model,
    integer,
    layer_v1,
    layer_v2,
    message,
    varint,
)

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture
def model():
    return new_model()


def content_of(kind, folder):
    FORMATS[kind](folder / "whole", weights())
    return (folder / "whole").read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_anywhere_is_refused(tmp_path, model, kind):
    content, path = content_of(kind, tmp_path), tmp_path / "net.weights"
    layer_starts = {content.find(b"fc7") - 8, len(content) - 1, len(content) - 5}
    ends = []  # where a Caffe model ends between two fields: the rest is one, of fewer layers
    if kind.startswith("caffe"):
        messages = caffe_messages(weights(), **getattr(FORMATS[kind], "keywords", {}))
        ends = [0, *itertools.accumulate(map(len, messages))]
    for length in {*range(0, len(content), len(content) // 17), 3, 40, *layer_starts} - set(ends):
        path.write_bytes(content[:length])
        with unchanged(model), pytest.raises(WeightsError, match=r"net\.weights: ") as raised:
            fcnfast.load_weights(model, path)
        assert length <= 1000 or "cut" in str(raised.value), (length, str(raised.value))
    if ends:
        path.write_bytes(content[: ends[-15]])
        refuse(model, path, "has no '(fc|conv|score)")


@pytest.mark.parametrize("kind", FORMATS)
def test_corrupt_files_are_refused_or_read(tmp_path, model, kind):
    """Whatever bytes are changed, nothing but a WeightsError comes of it."""
    content, path, rng = content_of(kind, tmp_path), tmp_path / "net", random.Random(5)
    # Where tensors are described: at the beginning, at the end, beside their names.
    places = [*range(0, 500), *range(len(content) - 3000, len(content))]
    found = [match.start() for match in re.finditer(b"conv|fc|score", content)]
    places += [at + k for at in found for k in range(-16, 40) if at + k < len(content)]
    refused = 0
    for _ in range(80):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 3))):
            changed[rng.choice(places)] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            fcnfast.load_weights(model, path)
        except WeightsError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 5


NOISE = random.Random(0).randbytes(3000)
MESSAGE = "a protobuf message, but not a Caffe model"
OTHERS = {
    "empty": (b"", "empty"),
    "text": (b"name: 'VGG'\nlayer { name: 'conv1' }\n" * 30, "not a weights file"),
    "text that begins as a message": (b"(hello\n", "not a weights file"),
    "longer text": ("(Überall Wörter,\tund so weiter)\r\n".encode() * 99, "not a weights file"),
    "noise": (NOISE, "not a weights file"),
    "mean of a data set": (
        integer(1, 1) + integer(2, 3) + integer(3, 2) + integer(4, 2) + message(5, bytes(48)),
        MESSAGE,
    ),
    "graph of another framework": (
        integer(1, 8) + message(2, b"exporter") + message(7, message(1, b"node")) + integer(5, 1),
        MESSAGE,
    ),
    "state of a solver": (integer(1, 4000) + message(2, b"net") + message(3, bytes(40)), MESSAGE),
    "no weights": (message(1, b"a net") + layer_v2("conv1", "Convolution", []), "holds no layers"),
    "pickle": (pickle.dumps({"a": [1, 2]}), "a Python pickle"),
    "old pickle": (pickle.dumps({"a": [1, 2]}, protocol=0), "a Python pickle"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_something_else_are_refused(tmp_path, model, kind):
    content, says = OTHERS[kind]
    (tmp_path / "net").write_bytes(content)
    refuse(model, tmp_path / "net", says)


# One layer's tensor, or None, and what is said of it.
BROKEN = {
    "wrong count": ("conv3_2.weight", torch.ones(7, 8, 3, 2), r"\(7, 8, 3, 3\) \(336 numbers"),
    "missing layer": ("conv5_3.weight", None, r"has no 'conv5_3\.weight'"),
    "deeper network": ("conv3_4.weight", torch.ones(8, 8, 3, 3), "which fcn16s_vgg16 does not"),
    "not a number": ("fc7.bias", torch.full((13,), torch.nan), r"'fc7\.bias' holds .* not finite"),
    "integers": ("fc7.bias", torch.ones(13, dtype=torch.int8), r"'fc7\.bias' holds torch\.int8"),
    "other stride": ("upscore2.weight", torch.ones(5, 5, 8, 8), r"of fcn16s.* is \(5, 5, 4, 4\)"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_layers_that_do_not_fit_are_named(tmp_path, model, kind):
    """What comes before is not loaded either, nor is a learned upsampling left behind."""
    key, value, says = BROKEN[kind]
    state = {k: v for k, v in (weights() | {key: value}).items() if v is not None}
    torch.save(state, tmp_path / "net.pth")
    # The file is of this network, only not whole.
    said = refuse(model, tmp_path / "net.pth", says, load_model=kind == "missing layer")
    assert "it holds weights of" not in said


def test_weights_of_other_networks_are_refused(tmp_path, model):
    path = tmp_path / "net"
    fcnfast.save_model(fcnfast.create_model("fcn4s_light"), path)
    with pytest.raises(WeightsError, match="holds weights of fcn4s_light, not of fcn16s_vgg16"):
        fcnfast.load_weights(model, path)
    torch.save(weights(), path)
    with pytest.raises(WeightsError, match="has no 'conv1.7x7_s2.weight'"):
        fcnfast.create_model("fcn32s_googlenet", weights=path)
    vgg19 = {f"features.{k}.weight": torch.ones(1) for k in (0, 2, 5, 7, 10, 12, 14, 16)}
    torch.save(vgg19, path)
    refuse(model, path, "neither VGG-16's nor AlexNet's")
    caffenet = caffemodel(foreign_nets.AlexNet().state_dict())
    path.write_bytes(caffenet)
    with pytest.raises(WeightsError, match="has no 'conv1_1.weight'.*not of fcn16s_vgg16"):
        fcnfast.load_weights(model, path)
    # BVLC's AlexNet has CaffeNet's layers in another order.
    path.write_bytes(b"".join(layer_v2(name, "LRN", []) for name in ("norm1", "pool1")) + caffenet)
    with pytest.raises(WeightsError, match="BVLC's AlexNet, which normalizes before it pools"):
        fcnfast.load_model(path)


def test_a_missing_layer_has_the_files_name(tmp_path):
    path, state = tmp_path / "net", foreign_nets.GoogLeNet().state_dict()
    del state["inception_4b/5x5_reduce.weight"], state["inception_4b/5x5_reduce.bias"]
    path.write_bytes(caffemodel(state))
    googlenet = fcnfast.create_model("fcn32s_googlenet")
    refuse(googlenet, path, "has no 'inception_4b/5x5_reduce.weight'$")
    state = foreign_torch_nets.alexnet()
    del state["features.8.bias"]
    torch.save(state, path)
    alexnet = fcnfast.create_model("fcn32s_alexnet", family="torchvision")
    refuse(alexnet, path, r"has no 'features\.8\.bias'$")
    with pytest.raises(WeightsError, match="it holds weights of torchvision's AlexNet, not of fcn"):
        fcnfast.load_weights(new_model(), path)
    state = {f"net.{key}": value for key, value in weights().items() if key != "conv3_2.bias"}
    torch.save(state, path)
    refuse(new_model(), path, r"has no 'net\.conv3_2\.bias'$", load_model=False)


def test_an_hdf5_file_of_something_else_is_refused(tmp_path, model):
    path, elsewhere = tmp_path / "net.h5", tmp_path / "elsewhere.h5"
    hdf5_model(elsewhere, weights())
    no_model = "an HDF5 file, but not a Caffe model"
    contents = [
        (no_model, lambda file: file.create_dataset("model_weights/a", data=np.ones(3))),
        (no_model, lambda file: file.create_dataset("data", data=np.ones(3))),
        (no_model, lambda file: file.create_dataset("data/note", data=np.ones(3))),
        (no_model, lambda file: file.create_group("data/conv1_1")),
        (no_model, lambda file: file.update(data=h5py.ExternalLink(str(elsewhere), "data"))),
        (no_model, lambda file: file.update(data=h5py.SoftLink("/data"))),
        ("holds int64", lambda file: file.create_dataset("data/fc6/0", data=np.arange(3))),
    ]
    for says, fill in contents:
        with h5py.File(path, "w") as file:
            fill(file)
        refuse(model, path, says)


def test_hdf5_datasets_without_content_are_refused(tmp_path, model):
    """A small file may claim large shapes: nothing is made of them."""
    path = tmp_path / "net.h5"
    hdf5_model(path, weights())
    for shape, chunks, says in (
        ((13, 10, 7, 7), (1, 1, 7, 7), r"of shape \(13, 10, 7, 7\) has no data in the file"),
        ((1 << 20, 1 << 20), (1, 1 << 10), r"is \(1048576, 1048576\), but"),
    ):
        with h5py.File(path, "a") as file:
            del file["data/fc6/0"]
            file["data"].create_dataset("fc6/0", shape, np.float32, chunks=chunks)
        refuse(model, path, f"'fc6.weight' {says}")
    with h5py.File(path, "a") as file:  # one that cannot be unpacked
        del file["data/fc6/0"]
        values = weights()["fc6.weight"].numpy()
        packed = file["data"].create_dataset("fc6/0", data=values, compression="gzip")
        file.flush()
        place = packed.id.get_chunk_info(0).byte_offset
    content = path.read_bytes()
    path.write_bytes(content[:place] + bytes(9) + content[place + 9 :])
    refuse(model, path, "'fc6.weight' cannot be read")


def test_hdf5_needs_an_extra(tmp_path, model, monkeypatch):
    (tmp_path / "net").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    monkeypatch.setitem(sys.modules, "h5py", None)
    refuse(model, tmp_path / "net", r"needs h5py: pip install 'fcnfast\[caffe\]'")


def test_blobs_whose_numbers_do_not_fit_are_refused(tmp_path, model):
    path, good, ones = tmp_path / "net.caffemodel", caffemodel(weights()), blob(torch.ones(2))

    def extra(*fields):
        return layer_v2("extra", "Convolution", [b"".join(fields)])

    short = extra(message(7, message(1, bytes([4, 3, 3, 3]))), message(5, bytes(4 * 107)))
    negative = extra(message(7, message(1, varint(2**64 - 1))), message(5, bytes(4)))
    ragged = extra(message(7, message(1, bytes([1]))), message(5, bytes(5)))
    for content, says in (
        (good + short, r"'extra.weight' has the shape \(4, 3, 3, 3\), but holds 107 numbers"),
        (negative, "'extra.weight' has the shape"),
        (good + layer_v2("fc6", "Convolution", [ones]), "two of its layers are called 'fc6'"),
        (good + layer_v1("fc8", 4, [ones]), "both 'layer' and 'layers'"),
        (good + ragged, "damaged Caffe model"),
    ):
        path.write_bytes(content)
        refuse(model, path, says)


def test_what_was_downloaded_in_place_of_weights(tmp_path, model):
    path = tmp_path / "net.pth"
    for content, told in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page, not weights"),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"net\.pth: {told}"):
            fcnfast.load_model(path)


def test_a_state_dict_under_any_key(tmp_path, model):
    path, state = tmp_path / "net.pth", model.state_dict()
    torch.save({"student": state, "epoch": 3, "optimizer": {"state": {0: {"step": 1}}}}, path)
    assert fcnfast.load_weights(model, path).loaded
    torch.save({"student": state, "teacher": state}, path)
    with pytest.raises(WeightsError, match="which entry is the state dict: 'student', 'teacher'"):
        fcnfast.load_weights(model, path)
