"""Caffe's files, binary and HDF5, that do not hold what they say."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fcnfast.models import FCN
from tests import wire_tools
from tests.weights_tools import narrow_vgg, new_model, refuse, weights
from tests.wire_tools import caffemodel, hdf5_model, layer_v2, message, varint


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_vgg(monkeypatch)


@pytest.fixture
def model() -> FCN:
    return new_model()


def test_an_hdf5_file_of_something_else_is_refused(tmp_path: Path, model: FCN) -> None:
    h5py = pytest.importorskip("h5py")
    path, elsewhere = tmp_path / "net.h5", tmp_path / "elsewhere.h5"
    hdf5_model(elsewhere, weights())
    no_model = "an HDF5 file, but no Caffe model"
    contents: list[tuple[str, Callable[[h5py.File], object]]] = [
        (no_model, lambda file: file.create_dataset("model_weights/a", data=np.ones(3))),
        (no_model, lambda file: file.create_dataset("data", data=np.ones(3))),
        (no_model, lambda file: file.create_group("data/conv1_1")),
        (no_model, lambda file: file.update(data=h5py.ExternalLink(str(elsewhere), "data"))),
        (no_model, lambda file: file.update(data=h5py.SoftLink("/data"))),
        ("holds int64", lambda file: file.create_dataset("data/fc6/0", data=np.arange(3))),
    ]
    for says, fill in contents:
        with h5py.File(path, "w") as file:
            fill(file)
        refuse(model, path, says)


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
