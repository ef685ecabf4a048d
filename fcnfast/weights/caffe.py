"""Caffe's models: binary ones (``.caffemodel``), and in HDF5 (``.caffemodel.h5``).

HDF5 has a group ``data`` with one group for each layer. The binary ones are protobuf's wire format,
read by hand rather than with the protobuf package, which needs Caffe's schema and copies every
number into objects of its own. Field numbers are those of Caffe's schema. Its three generations
differ in where a layer keeps its name and its blobs: ``layer`` (V2), ``layers`` (V1), and
``layers`` around a ``layer`` (V0).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError
from .stored import Stored, reading

Shape = tuple[int, ...]
# A blob's shape, and its numbers as they lie in the file.
_Blob = tuple[Shape, list[np.ndarray]]

HDF5_MARK = b"\x89HDF\r\n\x1a\n"

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# The fields of a NetParameter that are messages or strings (name, layers, input, input_dim, state,
# input_shape, layer), and those that are integers (input_dim, force_backward, debug_info).
_NET_BYTES, _NET_VARINT = (1, 2, 3, 4, 6, 8, 100), (4, 5, 7)
# The fields of layers (V1 and V2), and in them those of their name and of their blobs.
_LAYERS = {2: (4, 6), 100: (1, 7)}
# A blob's numbers by their field: type, and the wire type of one that is not packed.
_NUMBERS = {5: ("<f4", FIXED32), 8: ("<f8", FIXED64)}
_OTHER = "not a weights file that fcnfast reads (safetensors, PyTorch, Caffe or HDF5)"
_OTHER_MESSAGE = "a protobuf message, but not a Caffe model: it holds no layers with weights"
_LEGACY_DIMS = (1, 2, 3, 4)  # num, channels, height, width


class _Field(NamedTuple):
    """One field: its number, wire type, value (of a VARINT), and where its content is."""

    number: int
    wire: int
    value: int
    start: int
    end: int


class _BrokenError(Exception):
    """This is not a protobuf message; the argument is the byte that shows it."""


def read_caffe(path: Path) -> tuple[dict[str, Stored], list[str]]:
    """Find the blobs of all layers.

    Returns:
        ``LAYER.weight`` and ``LAYER.bias`` for a layer's first and second blob, ``LAYER.2`` and so
        on for what follows, with the shapes in the file: a vector may be (1, 1, 1, N). Then the
        names of all layers, in order.

    WeightsError when the file seems to be something else, is cut or damaged, or a blob's shape does
    not fit its numbers.
    """
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if all(byte >= 32 or byte in b"\t\n\f\r" for byte in data[:512]):  # text can parse as messages
        raise WeightsError(f"{path}: {_OTHER}")
    fields: list[_Field] = []
    broken = None
    try:
        for field in _fields(data, 0, len(data)):
            fields.append(field)
    except _BrokenError:
        broken = fields[-1].end if fields else 0
    of_net = [field for field in fields if field.number in (*_NET_BYTES, *_NET_VARINT)]
    for field in of_net:
        if field.number not in {BYTES: _NET_BYTES, VARINT: _NET_VARINT}.get(field.wire, ()):
            raise WeightsError(f"{path}: {_OTHER_MESSAGE if broken is None else _OTHER}")
    if broken is not None:
        if not (of_net or data[broken : broken + 2].startswith((b"\x12", b"\xa2\x06"))):
            raise WeightsError(f"{path}: {_OTHER}")
        raise WeightsError(
            f"{path}: a Caffe model that is cut or damaged: the file ends inside what begins at "
            f"byte {broken}, or that is not a layer"
        )
    return _tensors(path, data, fields)


def _tensors(
    path: Path, data: mmap.mmap, fields: list[_Field]
) -> tuple[dict[str, Stored], list[str]]:
    """The blobs of all layers, and the layers' names."""
    tensors: dict[str, Stored] = {}
    names: list[str] = []
    damaged = f"{path}: damaged Caffe model"
    for field in fields:
        if field.number not in _LAYERS:
            continue
        try:
            name, blobs = _layer(data, field, *_LAYERS[field.number])
        except _BrokenError as error:
            if not tensors:
                raise WeightsError(f"{path}: {_OTHER_MESSAGE}") from None
            raise WeightsError(f"{damaged}: no layer can be read at byte {error}") from None
        names.append(name)
        if blobs and f"{name}.weight" in tensors:
            raise WeightsError(f"{path}: two of its layers are called {name!r}")
        for index, (shape, runs) in enumerate(blobs):
            key, count = blob_name(name, index), sum(run.size for run in runs)
            if math.prod(shape) != count:
                what = f"{key!r} has the shape {shape}, but holds {count} numbers"
                raise WeightsError(f"{damaged}: {what}")
            tensors[key] = Stored(shape, partial(_joined, shape, runs))
    if not tensors:
        raise WeightsError(f"{path}: {_OTHER_MESSAGE}")
    if len({field.number for field in fields} & _LAYERS.keys()) > 1:
        raise WeightsError(f"{damaged}: it has both 'layer' and 'layers'")
    return tensors, names


def blob_name(layer: str, index: int) -> str:
    """What a blob of a layer is called: its first and second are weight and bias."""
    return f"{layer}.{('weight', 'bias')[index] if index < 2 else index}"


def _joined(shape: Shape, runs: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, "f4"), *runs])).view(shape)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message in these bytes."""
    while start < end:
        tag, at = _varint(data, start, end)
        number, wire, value = tag >> 3, tag & 7, 0
        if wire == VARINT:
            value, stop = _varint(data, at, end)
        elif wire == BYTES:
            length, at = _varint(data, at, end)
            stop = at + length
        elif wire in (FIXED32, FIXED64):
            stop = at + (4 if wire == FIXED32 else 8)
        else:  # groups, which no schema of Caffe's has, and invalid wire types
            raise _BrokenError(start)
        if number == 0 or stop > end:
            raise _BrokenError(start)
        yield _Field(number, wire, value, at, stop)
        start = stop


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """Read 7 bits a byte, the lowest first; return the number and where the next field begins."""
    value = 0
    for index, byte in enumerate(data[at : min(end, at + 10)]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise _BrokenError(at)


def _layer(
    data: mmap.mmap, layer: _Field, name_field: int, blobs_field: int
) -> tuple[str, list[_Blob]]:
    """Return a layer's name and its blobs, from these fields."""
    name, blobs = "", []
    for field in _fields(data, layer.start, layer.end):
        if field.wire != BYTES:
            continue
        if field.number == name_field:
            name = data[field.start : field.end].decode("utf-8", "replace")
        elif field.number == blobs_field:
            blobs.append(_blob(data, field))
        elif (name_field, field.number) == (4, 1):  # V0: the layer is inside of one of V1
            name, blobs = _layer(data, field, 1, 50)
    return name, blobs


def _blob(data: mmap.mmap, blob: _Field) -> _Blob:
    """Read a blob's shape and find its numbers: in double precision, if it has those."""
    shape: Shape = ()
    legacy: dict[int, int] = {}
    runs: dict[int, list[np.ndarray]] = {5: [], 8: []}
    at = blob.start
    while at < blob.end:
        field = next(_fields(data, at, blob.end))
        at = field.end
        if field.number in _NUMBERS:
            kind, single = _NUMBERS[field.number]
            size = np.dtype(kind).itemsize
            if field.wire == BYTES:
                count, rest = divmod(field.end - field.start, size)
                if rest:
                    raise _BrokenError(field.start)
                runs[field.number].append(np.frombuffer(data, kind, count, field.start))
            elif field.wire == single:  # not packed: each number follows the same one-byte tag
                most = (blob.end - field.start + 1) // (size + 1)
                pairs = np.frombuffer(data, [("tag", "u1"), ("value", kind)], most, field.start - 1)
                other = np.flatnonzero(pairs["tag"] != data[field.start - 1])
                run = pairs["value"][: other[0] if other.size else most]
                runs[field.number].append(run)
                at = field.start - 1 + run.size * (size + 1)
        elif field.number == 7 and field.wire == BYTES:
            shape = _dims(data, field)
        elif field.number in _LEGACY_DIMS and field.wire == VARINT:
            legacy[field.number] = field.value
    if legacy:
        shape = tuple(legacy.get(number, 0) for number in _LEGACY_DIMS)
    return shape, runs[8] if any(run.size for run in runs[8]) else runs[5]


def _dims(data: mmap.mmap, field: _Field) -> Shape:
    """Read a BlobShape: field 1, packed or not."""
    dims: list[int] = []
    for dim in _fields(data, field.start, field.end):
        at = dim.start
        while dim.number == 1 and dim.wire in (VARINT, BYTES) and at < dim.end:
            value, at = _varint(data, at, dim.end)
            dims.append(value)
    return tuple(dims)


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

    def visit(name: str, member: Any) -> None:
        # Layer names may hold slashes, which HDF5 turns into nested groups.
        layer, _, blob = name.removeprefix("data/").rpartition("/")
        if layer and name.startswith("data/") and blob.isdecimal() and hasattr(member, "dtype"):
            key = blob_name(layer, int(blob))
            tensors[key] = _stored(path, key, member)

    with reading(path, "damaged HDF5 file"):
        file.visititems(visit)  # links, which may lead out of the file, are not followed
    if not tensors:
        what = "an HDF5 file, but not a Caffe model: there are no layers in its group 'data'"
        raise WeightsError(f"{path}: {what}")
    return tensors


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
