"""Files of torch.save: what is in them besides tensors is never run, nor even looked up."""

import argparse
import collections
import copyreg
import datetime
import decimal
import functools
import io
import os
import pathlib
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import types
import typing
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fcnfast
from fcnfast.models import FCN
from tests.weights_tools import narrow_vgg, new_model, refuse, weights


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_vgg(monkeypatch)


@pytest.fixture
def model() -> FCN:
    return new_model()


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
    torch.save({"net": nn.Linear(2, 2)}, path)
    refuse(model, path, "without a state dict.*whole module")
    for empty in ({}, {"a": 1}, {"state_dict": {}}):
        torch.save(empty, path)
        refuse(model, path, "without a state dict: no tensors$")
    torch.save(torch.ones(3), path)
    refuse(model, path, "without a state dict")


def test_a_rezipped_file_is_refused(tmp_path: Path, model: FCN) -> None:
    torch.save(weights(), tmp_path / "whole")
    for name, wanted in (("compressed", "compressed"), ("without", "failed locating file data/0")):
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
def test_code_beside_the_weights_is_not_run(
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
    assert not fcnfast.load_weights(model, path).missing
    assert not target.exists()
    assert capfd.readouterr().out == ""


class Nested:
    """Makes a file when it is called, set, or filled: in every way that a pickle has."""

    class Inner(list):
        def __reduce__(self) -> tuple:
            made = Runs(os.mkdir, os.environ["MADE"])
            return Nested.Inner, (made,), {"state": made}, iter([made, made]), iter([(1, made)])

        def __setstate__(self, state: object) -> None:
            os.mkdir(os.environ["MADE"])

        def __setitem__(self, key: object, value: object) -> None:
            os.mkdir(os.environ["MADE"])


@pytest.mark.parametrize(("zipped", "protocol"), [(True, 1), (True, 2), (True, 4), (False, 2)])
def test_no_way_of_a_pickle_to_code_is_open(
    tmp_path: Path, model: FCN, monkeypatch: pytest.MonkeyPatch, zipped: bool, protocol: int
) -> None:
    """A nested class, its state, its items, an attribute of it, and a call in each."""
    monkeypatch.setenv("MADE", str(tmp_path / "made"))
    made = Runs(os.mkdir, str(tmp_path / "made"))
    nested = [made] if protocol == 1 else [Nested.Inner(), made]  # 1: no names of nested classes
    content = {"state_dict": weights(), "meta": nested, "more": {"made": made}}
    path = tmp_path / "net.pth"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert not fcnfast.load_weights(model, path).missing
    assert not (tmp_path / "made").exists()


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
        "call of it": Runs(vanished.Buffer.mean, 1),
        "path": Path("work_dirs"),
        "scalar": np.float64(0.5),
        "sets": {1, 2},
        "counts": collections.Counter("abc"),
        "default": collections.defaultdict(list, a=[1]),
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "any": typing.Any,
        "partial": functools.partial(vanished.rebuild, 1, key=2),
        "decimal": decimal.Decimal("1.5"),
        "uuid": uuid.UUID(int=7),
        "namespace": argparse.Namespace(lr=0.1),
        "date": datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
        "random": random.Random(3),
        "generic": list[int],
    }
    path, state = tmp_path / "net.pth", weights()
    state["fc6.weight"] = nn.Parameter(state["fc6.weight"])
    state["fc7.bias"].note = "an attribute"
    torch.save({"meta": meta, "state_dict": state}, path, pickle_protocol=protocol)
    vanished.calls.clear()
    if not installed:
        del sys.modules[vanished.__name__]
    assert not fcnfast.load_weights(model, path).missing
    assert vanished.calls == []
    assert torch.equal(model.fc6.weight, state["fc6.weight"])
    assert torch.equal(model.fc7.bias, state["fc7.bias"])


def test_numbers_for_classes_of_another_program_are_refused(tmp_path: Path, model: FCN) -> None:
    copyreg.add_extension("pathlib", "PurePosixPath", 77)
    try:
        torch.save({"path": pathlib.PurePosixPath("a"), **weights()}, tmp_path / "net.pth")
    finally:
        copyreg.remove_extension("pathlib", "PurePosixPath", 77)
    refuse(model, tmp_path / "net.pth", "names what only another program knows")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_module_beside_the_weights_is_a_placeholder(
    tmp_path: Path, model: FCN, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    """Older files hold the sources of its class, which torch would compare, and write a patch."""
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": weights(), "criterion": nn.CrossEntropyLoss(torch.ones(5))}
    torch.save(content, "net.pth", _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fcnfast.load_weights(model, "net.pth").missing
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


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
    state["a.sparse.one"] = torch.ones(3).to_sparse()
    state["a.quantized.one"] = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    ordered = collections.OrderedDict(state)
    ordered._metadata = {"": {"version": 1}}
    for zipped in (True, False):
        torch.save(ordered, tmp_path / "net", _use_new_zipfile_serialization=zipped)
        assert fcnfast.load_weights(model, tmp_path / "net").unexpected == ()
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key].float()), key
        fresh = fcnfast.create_model("fcn16s_vgg16", weights=tmp_path / "net")
        with torch.no_grad():
            for parameter in fresh.parameters():  # each has a place of its own, not the file's
                parameter.zero_()
        fcnfast.load_weights(model, tmp_path / "net")
        assert torch.equal(model.fc7.weight, state["fc7.weight"])


def test_a_flipped_bit_in_a_zip_is_found(tmp_path: Path, model: FCN) -> None:
    """By the archive's own checksums, where it has them."""
    path = tmp_path / "net"
    value = weights()["fc7.weight"].flatten()[5:9].numpy().tobytes()
    for summed in (True, False):
        torch.serialization.set_crc32_options(summed)
        try:
            torch.save(weights(), path)
        finally:
            torch.serialization.set_crc32_options(True)
        content = bytearray(path.read_bytes())
        place = content.index(value)
        content[place] ^= 1
        path.write_bytes(content)
        if summed:
            refuse(model, path, r"damaged: Bad CRC-32 for file 'net/data/\d+'")
            content[place] ^= 1
            content[content.index(b"conv1_1")] ^= 1
            path.write_bytes(content)
            refuse(model, path, r"damaged: Bad CRC-32 for file 'net/data\.pkl'")
        else:
            assert not fcnfast.load_weights(model, path).missing


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
    refuse(model, tmp_path / "net", "damaged: .*324 bytes")
