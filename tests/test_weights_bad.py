"""Weights files that are cut, corrupt, unsafe or of something else: one clear error each.

The error names the file, and the network that was to be loaded stays as it was.
"""

import collections
import io
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fcnfast
from fcnfast.errors import WeightsError
from fcnfast.models import FCN, vgg
from tests import foreign_nets, wire_tools
from tests.foreign_nets import VGG, randomise
from tests.wire_tools import caffemodel, hdf5_model, integer, layer_v2, message, varint


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg, "STAGES", foreign_nets.STAGES)
    monkeypatch.setattr(vgg, "FULLY_CONNECTED", foreign_nets.FULLY_CONNECTED)


@pytest.fixture
def model() -> FCN:
    torch.manual_seed(1)
    return fcnfast.create_model("fcn16s_vgg16", num_classes=5)


def weights() -> dict[str, Tensor]:
    return randomise(VGG(16)).state_dict()


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


class Unchanged:
    """Tells whether a network is still what it was."""

    def __init__(self, model: FCN) -> None:
        self.model = model
        self.state = {key: value.clone() for key, value in model.state_dict().items()}
        self.parts = {name: id(part) for name, part in model.named_modules()}
        self.said = (model.preprocessing, model.options, model.table, model.training)

    def check(self) -> None:
        model = self.model
        state = model.state_dict()
        assert state.keys() == self.state.keys()
        assert all(torch.equal(state[key], value) for key, value in self.state.items())
        assert {name: id(part) for name, part in model.named_modules()} == self.parts
        assert (model.preprocessing, model.options, model.table, model.training) == self.said


def refuse(model: FCN, path: Path, says: str) -> str:
    """Load a file that must be refused, in all three ways."""
    before = Unchanged(model)
    with pytest.raises(WeightsError, match=says) as raised:
        fcnfast.load_weights(model, path)
    before.check()
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(WeightsError):
        fcnfast.create_model(model.name, weights=path)
    with pytest.raises(WeightsError):
        fcnfast.load_model(path)
    return str(raised.value)


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


def test_archives_of_something_else_are_refused(tmp_path: Path, model: FCN) -> None:
    path = tmp_path / "net"
    np.savez(tmp_path / "net.npz", a=np.ones(3))
    refuse(model, tmp_path / "net.npz", "a zip archive, but none of torch.save")
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "net.npz", "storages")
    refuse(model, path, "a tar archive.*save the weights again")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({}))
        archive.writestr("net/code/__torch__.py", "class Net: ...")
    refuse(model, path, "TorchScript")
    torch.save(nn.Linear(2, 2), path)
    refuse(model, path, "without a state dict.*whole module")
    torch.save({"a": 1}, path)
    refuse(model, path, "without a state dict")
    torch.save(torch.ones(3), path)
    refuse(model, path, "without a state dict")


def test_a_rezipped_file_is_refused(tmp_path: Path, model: FCN) -> None:
    torch.save(weights(), tmp_path / "whole")
    for name, wanted in (("compressed", "compressed"), ("without", "storage '0' is missing")):
        with (
            zipfile.ZipFile(tmp_path / "whole") as old,
            zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for info in old.infolist():
                if name == "without" and info.filename.endswith("data/0"):
                    continue
                kind = zipfile.ZIP_DEFLATED if name == "compressed" else zipfile.ZIP_STORED
                new.writestr(info.filename, old.read(info), kind)
        refuse(model, tmp_path / name, wanted)


class Runs:
    """A pickle of this calls a function when it is loaded."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize(
    "function", [os.system, open, exec, eval, subprocess.call, __import__, os.mkdir, print]
)
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, model: FCN, function: Callable, container: str, capfd: pytest.CaptureFixture
) -> None:
    target = tmp_path / "made"
    argument: object = f"touch {target}"
    if function in (exec, eval):
        argument = f"__import__('pathlib').Path({str(target)!r}).touch()"
    elif function is subprocess.call:
        argument = ["touch", str(target)]
    elif function in (open, os.mkdir):
        argument = str(target)
    arguments = (argument, "w") if function is open else (argument,)
    content = {"state_dict": weights(), "meta": Runs(function, *arguments)}
    path = tmp_path / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    refuse(model, path, r"net\.pth: its pickle asks for .*, which weights do not need; nothing")
    assert not target.exists()
    assert capfd.readouterr().out == ""


def test_that_code_does_run_in_other_readers(tmp_path: Path) -> None:
    torch.save({"meta": Runs(os.mkdir, str(tmp_path / "made"))}, tmp_path / "net.pth")
    torch.load(tmp_path / "net.pth", weights_only=False)
    assert (tmp_path / "made").exists()


@pytest.fixture
def vanished() -> Iterator[types.ModuleType]:
    """A package that is there when a file is written, and not when it is read."""
    module = types.ModuleType("somebodys_package")
    calls: list[str] = []

    class Buffer:
        def __init__(self, value: object = None) -> None:
            self.values = [value]

        def __setstate__(self, state: object) -> None:
            calls.append("set")

        def mean(self) -> None:
            calls.append("mean")

    class Names(list):
        pass

    class Settings(dict):
        def __setitem__(self, key: object, value: object) -> None:
            calls.append("item")
            super().__setitem__(key, value)

    def rebuild(*arguments: object) -> str:
        calls.append("rebuild")
        return "rebuilt"

    for part in (Buffer, Names, Settings, rebuild):
        part.__module__, part.__qualname__ = module.__name__, part.__name__
        setattr(module, part.__name__, part)
    Buffer.mean.__module__, Buffer.mean.__qualname__ = module.__name__, "Buffer.mean"
    module.calls = calls
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("installed", [False, True])
def test_objects_beside_the_weights_are_inert(
    tmp_path: Path, model: FCN, vanished: types.ModuleType, installed: bool, protocol: int
) -> None:
    """Whether their package is installed or not: its classes are not even looked up."""
    settings = vanished.Settings()
    settings["model"] = {"type": "FCN"}
    meta = {
        "buffer": vanished.Buffer(np.ones(3)),
        "names": vanished.Names(["a", "b"]),
        "settings": settings,
        "method": vanished.Buffer.mean,  # pickled as getattr(Buffer, "mean")
        "call": Runs(vanished.rebuild, 1),
        "path": Path("work_dirs"),
        "scalar": np.float64(0.5),
        "sets": {1, 2},
        "counts": collections.Counter("abc"),
        "default": collections.defaultdict(list, a=[1]),
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
    }
    path = tmp_path / "net.pth"
    torch.save({"meta": meta, "state_dict": weights()}, path, pickle_protocol=protocol)
    vanished.calls.clear()
    if not installed:
        del sys.modules[vanished.__name__]
    assert not fcnfast.load_weights(model, path).missing
    assert vanished.calls == []


def test_tensors_of_every_layout_are_read(tmp_path: Path, model: FCN) -> None:
    """Strided, shared, with an offset, as parameters, of other types, with attributes."""
    state = weights()
    state["conv2_1.weight"] = state["conv2_1.weight"].to(memory_format=torch.channels_last)
    state["fc7.weight"] = state["fc7.weight"].transpose(0, 1).contiguous().transpose(0, 1)
    state["fc6.weight"] = torch.stack([state["fc6.weight"]] * 2, -1)[..., 1]
    state["conv1_1.bias"] = nn.Parameter(state["conv1_1.bias"], requires_grad=False)
    state["conv1_2.bias"] = state["conv1_2.bias"].double()
    state["score_fr.bias"] = state["score_fr.bias"][:1].expand(5)
    state["conv3_1.bias"].note = "an attribute"
    ordered = collections.OrderedDict(state)
    ordered._metadata = {"": {"version": 1}}
    for zipped in (True, False):
        torch.save(ordered, tmp_path / "net", _use_new_zipfile_serialization=zipped)
        fcnfast.load_weights(model, tmp_path / "net")
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key].float()), key
        fresh = fcnfast.create_model("fcn16s_vgg16", weights=tmp_path / "net")
        with torch.no_grad():
            for parameter in fresh.parameters():  # each has a place of its own, not the file's
                parameter.zero_()
        fcnfast.load_weights(model, tmp_path / "net")
        assert torch.equal(model.fc7.weight, state["fc7.weight"])


def test_an_hdf5_file_of_something_else_is_refused(tmp_path: Path, model: FCN) -> None:
    h5py = pytest.importorskip("h5py")
    path, elsewhere = tmp_path / "net.h5", tmp_path / "elsewhere.h5"
    hdf5_model(elsewhere, weights())
    contents: dict[str, Callable[[object], object]] = {
        "no Caffe model": lambda file: file.create_dataset("model_weights/a", data=np.ones(3)),
        "no Caffe model.": lambda file: file.create_dataset("data", data=np.ones(3)),
        "no Caffe model..": lambda file: file.create_group("data/conv1_1"),
        "holds int64": lambda file: file.create_dataset("data/fc6/0", data=np.arange(3)),
        "no Caffe.model": lambda file: file.__setitem__(
            "data", h5py.ExternalLink(str(elsewhere), "data")
        ),
        "no.Caffe.model": lambda file: file.__setitem__("data", h5py.SoftLink("/data")),
    }
    for says, fill in contents.items():
        with h5py.File(path, "w") as file:
            fill(file)
        refuse(model, path, says.rstrip("."))


def test_hdf5_datasets_without_content_are_refused(tmp_path: Path, model: FCN) -> None:
    """A small file may claim large shapes: nothing is made of them."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "net.h5"
    hdf5_model(path, weights())
    with h5py.File(path, "a") as file:
        del file["data/fc6/0"]
        shape = file["data/fc7/0"].shape
        file["data"].create_dataset("fc6/0", (13, 10, 7, 7), np.float32, chunks=(1, 1, 7, 7))
        assert shape == (13, 13, 1, 1)
    refuse(model, path, r"'fc6.weight' of shape \(13, 10, 7, 7\) has no numbers in the file")
    with h5py.File(path, "a") as file:
        del file["data/fc6/0"]
        file["data"].create_dataset("fc6/0", (1 << 20, 1 << 20), np.float32, chunks=(1, 1 << 10))
    refuse(model, path, r"'fc6.weight' is \(1048576, 1048576\), but")


def test_hdf5_needs_an_extra(tmp_path: Path, model: FCN, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    monkeypatch.setitem(sys.modules, "h5py", None)
    refuse(model, tmp_path / "net", r"takes h5py: pip install 'fcnfast\[caffe\]'")


def test_blobs_whose_numbers_do_not_fill_their_shapes_are_refused(
    tmp_path: Path, model: FCN
) -> None:
    path, good = tmp_path / "net.caffemodel", caffemodel(weights())
    short = message(7, message(1, bytes([4, 3, 3, 3]))) + message(5, bytes(4 * 107))
    path.write_bytes(good + layer_v2("extra", "Convolution", [short]))
    refuse(model, path, r"'extra.weight' has the shape \(4, 3, 3, 3\), but holds 107 numbers")
    negative = message(7, message(1, varint(2**64 - 1))) + message(5, bytes(4))
    path.write_bytes(layer_v2("extra", "Convolution", [negative]))
    refuse(model, path, "'extra.weight' has the shape")
    path.write_bytes(good + layer_v2("fc6", "Convolution", [wire_tools.blob(torch.ones(2))]))
    refuse(model, path, "two of its layers are called 'fc6'")
    path.write_bytes(good + wire_tools.layer_v1("fc8", 4, [wire_tools.blob(torch.ones(2))]))
    refuse(model, path, "'layer' beside 'layers'")
    ragged = message(7, message(1, bytes([1]))) + message(5, bytes(5))
    path.write_bytes(good + layer_v2("extra", "Convolution", [ragged]))
    refuse(model, path, "damaged Caffe model")


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
        r"'fc7\.bias' holds values that are no finite",
    ),
    "infinite": (
        lambda: changed(fc7__bias=torch.full((13,), 1e39, dtype=torch.float64)),
        r"'fc7\.bias' holds values that are no finite",
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
    refuse(model, tmp_path / "net.pth", says)
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
    caffenet = randomise(foreign_nets.AlexNet()).state_dict()
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


def test_alexnet_is_not_caffenet(tmp_path: Path) -> None:
    """BVLC's AlexNet has CaffeNet's layers in another order."""
    state = randomise(foreign_nets.AlexNet()).state_dict()
    layers = {name: layer_v2(name, "LRN", []) for name in ("norm1", "pool1")}
    path = tmp_path / "net.caffemodel"
    path.write_bytes(layers["norm1"] + layers["pool1"] + caffemodel(state))
    with pytest.raises(WeightsError, match="BVLC's AlexNet, which normalises before it pools"):
        fcnfast.load_model(path)


def test_a_zip_that_claims_more_than_it_holds_is_refused(tmp_path: Path, model: FCN) -> None:
    state = weights()
    torch.save(state, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    program = zipfile.ZipFile(io.BytesIO(content)).read("whole/data.pkl")
    count = struct.pack("<H", state["conv1_1.weight"].numel())
    assert b"M" + count in program or bytes([75, state["conv1_1.weight"].numel()]) in program
    bigger = program.replace(bytes([75, 81]), b"M\xff\xff", 1)
    if bigger == program:
        pytest.skip("the count is written in another way")
    with zipfile.ZipFile(tmp_path / "net", "w") as archive:
        for info in zipfile.ZipFile(tmp_path / "whole").infolist():
            old = zipfile.ZipFile(tmp_path / "whole").read(info)
            archive.writestr(info.filename, bigger if info.filename.endswith(".pkl") else old)
    refuse(model, tmp_path / "net", "damaged: storage '0' holds 324 bytes")
