"""Files of torch.save: what is in them besides tensors is never run, nor even looked up."""

import argparse
import collections
import copyreg
import datetime
import decimal
import functools
import os
import pickle
import random
import subprocess
import sys
import tarfile
import typing
import uuid
import warnings
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fcnfast
from tests.model_tools import Runs
from tests.weights_tools import new_model, refuse, same, weights

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture
def model():
    return new_model()


def save(content, path, zipped=True, **options):
    torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def loads(model, path):
    """Whether the weights beside whatever else is in a file are read."""
    return not fcnfast.load_weights(model, path).missing and same(model)


def test_archives_of_something_else_are_refused(tmp_path, model):
    path = tmp_path / "net"
    np.savez(tmp_path / "net.npz", a=np.ones(3))
    refuse(model, tmp_path / "net.npz", "a zip archive, but not one of torch.save")
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "net.npz", "storages")
    refuse(model, path, "a tar archive.*save the weights again")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({}))
        archive.writestr("net/code/__torch__.py", "class Net: ...")
    refuse(model, path, "TorchScript")
    for whole in (nn.Linear(2, 2), {"net": nn.Linear(2, 2)}):
        refuse(model, save(whole, path), "without a state dict.*whole module")
    for empty in ({}, {"a": 1}, {"state_dict": {}}):
        refuse(model, save(empty, path), "without a state dict: no tensors$")
    refuse(model, save(torch.ones(3), path), "without a state dict")


def rezipped(path, change, kind=0):
    """A copy of an archive with other contents (None: without that member)."""
    to = path.with_suffix(".again")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", kind) as new:
        for info in old.infolist():
            content = change(info.filename, old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
    return to


def test_changed_archives_are_refused(tmp_path, model):
    whole = save(weights(), tmp_path / "net")
    again = rezipped(whole, lambda name, old: old, zipfile.ZIP_DEFLATED)
    refuse(model, again, "compressed")
    again = rezipped(whole, lambda name, old: None if name.endswith("data/0") else old)
    refuse(model, again, "failed locating file data/0")

    def claims_more(name, old):
        if not name.endswith(".pkl"):
            return old
        count = bytes([75, weights()["conv1_1.weight"].numel()])  # as one byte
        assert count in old
        return old.replace(count, b"M\xff\xff", 1)

    if torch.__version__ >= "2.8":  # older ones take the size from the archive
        refuse(model, rezipped(whole, claims_more), "damaged: .*324 bytes")


def test_a_flipped_bit_in_a_zip_is_found(tmp_path, model):
    """By the archive's own checksums, where it has them."""
    path, value = tmp_path / "net", weights()["fc7.weight"].flatten()[5:9].numpy().tobytes()
    for summed in (True, False):
        torch.serialization.set_crc32_options(summed)
        try:
            content = save(weights(), path).read_bytes()
        finally:
            torch.serialization.set_crc32_options(True)
        for mark, name in ((value, r"data/\d+"), (b"conv1_1", r"data\.pkl")):
            flipped = bytearray(content)
            flipped[content.index(mark)] ^= 1
            path.write_bytes(flipped)
            if summed:
                refuse(model, path, f"damaged: Bad CRC-32 for file 'net/{name}'")
            elif mark == value:
                assert not fcnfast.load_weights(model, path).missing


CALLS = [os.system, open, exec, eval, subprocess.call, __import__, os.mkdir, print]


@pytest.mark.parametrize("zipped", [True, False])
def test_code_beside_the_weights_is_not_run(tmp_path, model, zipped, capfd):
    target = str(tmp_path / "made")
    program = f"__import__('pathlib').Path({target!r}).touch()"
    arguments = {
        exec: [program], eval: [program], subprocess.call: [["touch", target]],
        open: [target, "w"], os.mkdir: [target],
    }  # fmt: skip
    meta = [Runs(function, *arguments.get(function, [f"touch {target}"])) for function in CALLS]
    path = save({"state_dict": weights(), "meta": meta}, tmp_path / "net.pth", zipped)
    assert loads(model, path)
    assert not Path(target).exists() and capfd.readouterr().out == ""
    # Other readers run it.
    save({"meta": Runs(os.mkdir, target)}, path, zipped)
    torch.load(path, weights_only=False)
    assert Path(target).exists()


# What is called of somebody's classes, which are there when a file is written.
seen = []


class Buffer:
    def __init__(self, value=None):
        self.values = [value]

    def __setstate__(self, state):
        seen.append("set")

    def mean(self, *_):
        seen.append("mean")


class Settings(dict):
    def __setitem__(self, key, value):
        seen.append("item")
        super().__setitem__(key, value)


@pytest.mark.parametrize(("installed", "protocol"), [(False, 2), (True, 4)])
def test_objects_beside_the_weights_are_inert(tmp_path, model, monkeypatch, installed, protocol):
    """Whether their classes are there or not: they are not even looked up."""
    settings = Settings()
    settings["model"] = {"type": "FCN"}
    meta = [
        Buffer(np.ones(3)), settings, Buffer.mean,  # pickled as getattr(Buffer, "mean")
        Runs(Buffer.mean, 1), functools.partial(Buffer.mean, 1, key=2), Path("work_dirs"),
        collections.Counter("abc"), collections.defaultdict(list, a=[1]), torch.float16,
        torch.Size([1, 2]), torch.device("cpu"), typing.Any, decimal.Decimal("1.5"),
        uuid.UUID(int=7), argparse.Namespace(lr=0.1), random.Random(3), list[int], {1, 2},
        datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc), np.float64(0.5),
    ]  # fmt: skip
    state = weights()
    state["fc6.weight"] = nn.Parameter(state["fc6.weight"])
    state["fc7.bias"].note = "an attribute"
    content = {"meta": meta, "state_dict": state}
    path = save(content, tmp_path / "net.pth", pickle_protocol=protocol)
    seen.clear()
    if not installed:
        monkeypatch.delattr(sys.modules[__name__], "Buffer")
        monkeypatch.delattr(sys.modules[__name__], "Settings")
    assert loads(model, path) and seen == []


def test_numbers_for_classes_of_another_program_are_refused(tmp_path, model):
    copyreg.add_extension("fractions", "Fraction", 77)
    try:
        path = save({"rate": Fraction(1, 2), **weights()}, tmp_path / "net.pth")
    finally:
        copyreg.remove_extension("fractions", "Fraction", 77)
    refuse(model, path, "uses pickle extension codes")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_module_beside_the_weights_is_a_placeholder(tmp_path, model, monkeypatch, zipped):
    """Older files hold the sources of its class, which torch would compare, and write a patch."""
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": weights(), "criterion": nn.CrossEntropyLoss(torch.ones(5))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loads(model, save(content, Path("net.pth"), zipped))
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_layout_are_read(tmp_path, model, zipped):
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
    path = save(ordered, tmp_path / "net", zipped)
    assert fcnfast.load_weights(model, path).unexpected == ()
    assert same(model, {k: state[k].float() for k in model.state_dict()})
