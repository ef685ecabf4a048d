"""Caffe's HDF5 models (``.caffemodel.h5``): a group ``data`` with one group for each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError
from .caffe import blob_name
from .stored import Stored, reading

HDF5_MARK = b"\x89HDF\r\n\x1a\n"

# Layer names may hold slashes, which HDF5 turns into nested groups.
_MAX_DEPTH = 8


def is_hdf5(path: Path) -> bool:
    """Tell whether the file has HDF5's mark at a permitted offset: 0, 512, 1024, ..."""
    size, offset = path.stat().st_size, 0
    with open(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            if file.read(len(HDF5_MARK)) == HDF5_MARK:
                return True
            offset = max(512, 2 * offset)
    return False


def open_hdf5(path: Path) -> Any:
    """Open the file with h5py; WeightsError if it is damaged, or h5py is not installed."""
    try:
        import h5py
    except ImportError as error:
        install = "pip install 'fcnfast[caffe]'"
        raise WeightsError(f"{path}: an HDF5 file, which needs h5py: {install}") from error
    with reading(path, "a cut or damaged HDF5 file"):
        return h5py.File(path, "r")


def read_hdf5(path: Path, file: Any) -> dict[str, Stored]:
    """Find the blobs of all layers in an open file of `open_hdf5`, named as in `read_caffe`.

    WeightsError if the file is damaged, or holds no Caffe model.
    """
    tensors: dict[str, Stored] = {}
    with reading(path, "damaged HDF5 file"):
        data = _child(file, "data")
        if data is not None and not hasattr(data, "dtype"):
            _visit(path, data, "", 0, tensors)
    if not tensors:
        what = "an HDF5 file, but not a Caffe model: there are no layers in its group 'data'"
        raise WeightsError(f"{path}: {what}")
    return tensors


def _child(group: Any, name: str) -> Any:
    """A member that is stored in this file itself; links elsewhere are not followed."""
    import h5py

    link = group.get(name, getlink=True)
    return group[name] if isinstance(link, h5py.HardLink) else None


def _visit(path: Path, group: Any, name: str, depth: int, tensors: dict[str, Stored]) -> None:
    """Collect the datasets 0, 1, ... of a layer, and the layers in it."""
    for key in group:
        member = _child(group, key)
        if member is None or depth > _MAX_DEPTH:
            continue
        if not hasattr(member, "dtype"):
            _visit(path, member, f"{name}/{key}" if name else key, depth + 1, tensors)
        elif name and key.isdecimal():
            blob = blob_name(name, int(key))
            tensors[blob] = _stored(path, blob, member)


def _stored(path: Path, key: str, dataset: Any) -> Stored:
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8):
        raise WeightsError(f"{path}: {key!r} holds {dataset.dtype}, not weights")
    if dataset.is_virtual or dataset.external:
        raise WeightsError(f"{path}: {key!r} lies in another file, which is not read")
    shape = tuple(int(n) for n in dataset.shape)

    def read() -> Tensor:
        if dataset.size and not dataset.id.get_storage_size():  # h5py would give zeros
            raise WeightsError(f"{path}: {key!r} of shape {shape} has no data in the file")
        with reading(path, f"{key!r} cannot be read"):
            return torch.from_numpy(np.asarray(dataset[()], dataset.dtype.newbyteorder("=")))

    return Stored(shape, read)
