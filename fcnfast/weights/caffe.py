"""Caffe's binary models (``.caffemodel``), read from the protobuf wire format.

Read by hand rather than with the protobuf package: that copies every number into its own objects,
so that loading would take three times the size of the file, and only the few fields below matter.
Here the numbers go from the file into their tensor.

The format has no mark; field numbers are those of Caffe's schema. Its three generations differ in
where a layer keeps its name and its blobs: ``layer`` (V2), ``layers`` (V1), and ``layers`` around a
``layer`` (V0).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError
from .source import Source, Stored

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# Fields of NetParameter with the wire types that they have: name, layers (V1), input, input_dim,
# force_backward, state, debug_info, input_shape, layer (V2).
_NET = {
    1: (BYTES,),
    2: (BYTES,),
    3: (BYTES,),
    4: (VARINT, BYTES),
    5: (VARINT,),
    6: (BYTES,),
    7: (VARINT,),
    8: (BYTES,),
    100: (BYTES,),
}
_V1_LAYERS, _V2_LAYER = 2, 100
# A blob's numbers by their field: type, and the wire type of one that is not packed.
_NUMBERS = {5: (torch.float32, FIXED32), 8: (torch.float64, FIXED64)}
_LEGACY_DIMS = (1, 2, 3, 4)  # num, channels, height, width
# How many numbers that are not packed are looked at in one go.
_BLOCK = 1 << 16


class _Field(NamedTuple):
    """One field: its number, wire type, value (of a VARINT), and where its content is."""

    number: int
    wire: int
    value: int
    start: int
    end: int


class _Run(NamedTuple):
    """So many numbers, of which the first is at `start`, one every `step` bytes."""

    start: int
    length: int
    step: int


class _Blob(NamedTuple):
    """A blob's shape, type and numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    runs: list[_Run]


class _BrokenError(Exception):
    """No protobuf message stands here; the argument is the byte where that shows."""


class NotCaffeError(Exception):
    """The file holds no network of Caffe; the argument tells if it is a protobuf message at all."""


def read_caffe(source: Source) -> tuple[dict[str, Stored], list[str]]:
    """Find the blobs of all layers.

    Returns:
        ``LAYER.weight`` and ``LAYER.bias`` for a layer's first and second blob, ``LAYER.2`` and so
        on for what follows, with the shapes that the file says: a vector may be (1, 1, 1, N).
        And the names of all layers, in their order.

    Raises:
        NotCaffeError: it is something else, as far as one can see.
        WeightsError: cut, damaged, or a blob whose shape is not that of its numbers.
    """
    data = source.mapped()
    if _is_text(data[:512]):  # some words are messages
        raise NotCaffeError(False)
    fields, broken = _top(data, source.size)
    if any(field.wire not in _NET.get(field.number, (field.wire,)) for field in fields):
        raise NotCaffeError(broken is None)
    if broken is not None:
        if not (any(field.number in _NET for field in fields) or _starts_layer(data, broken)):
            raise NotCaffeError(False)
        raise WeightsError(
            f"{source.path}: a Caffe model that is cut or damaged: the file ends inside what "
            f"begins at byte {broken}, or that is no layer"
        )
    layers = [field for field in fields if field.number in (_V1_LAYERS, _V2_LAYER)]
    tensors, names = _blobs(source, data, layers)
    if not tensors:
        raise NotCaffeError(True)
    if len({field.number for field in layers}) > 1:
        raise WeightsError(f"{source.path}: damaged Caffe model: it has 'layer' beside 'layers'")
    return tensors, names


def _blobs(source: Source, data: mmap, layers: list[_Field]) -> tuple[dict[str, Stored], list[str]]:
    """Read the layers one by one; the first that is no layer shows what the file is not."""
    tensors: dict[str, Stored] = {}
    names: list[str] = []
    for field in layers:
        try:
            name, blobs = _layer(data, field)
        except _BrokenError as error:
            if not tensors:
                raise NotCaffeError(True) from None
            raise WeightsError(
                f"{source.path}: damaged Caffe model: no layer can be read at byte {error}"
            ) from None
        names.append(name)
        if blobs and f"{name}.weight" in tensors:
            raise WeightsError(f"{source.path}: two of its layers are called {name!r}")
        for index, blob in enumerate(blobs):
            key = f"{name}.{('weight', 'bias')[index] if index < 2 else index}"
            tensors[key] = _stored(source, data, key, blob)
    return tensors, names


def _top(data: mmap, size: int) -> tuple[list[_Field], int | None]:
    """Return the fields of the whole file, and where the first one begins that is broken."""
    found: list[_Field] = []
    try:
        for field in _fields(data, 0, size):
            found.append(field)
    except _BrokenError:
        return found, found[-1].end if found else 0
    return found, None


def _starts_layer(data: mmap, at: int) -> bool:
    """Tell whether the tag of a layer stands here, of a file that is cut inside its first one."""
    return data[at : at + 1] == b"\x12" or data[at : at + 2] == b"\xa2\x06"


def _is_text(head: bytes) -> bool:
    """Tell whether these are characters only, as no binary model's first numbers are."""
    return all(byte >= 32 or byte in b"\t\n\f\r" for byte in head)


def _fields(data: mmap, start: int, end: int) -> Iterator[_Field]:
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
        else:  # groups, which no schema of Caffe's has, and what is no wire type
            raise _BrokenError(start)
        if number == 0 or stop > end:
            raise _BrokenError(start)
        yield _Field(number, wire, value, at, stop)
        start = stop


def _varint(data: mmap, at: int, end: int) -> tuple[int, int]:
    """Read 7 bits a byte, the lowest first; return the number and where the next field begins."""
    value = 0
    for index, byte in enumerate(data[at : min(end, at + 10)]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise _BrokenError(at)


def _layer(data: mmap, layer: _Field) -> tuple[str, list[_Blob]]:
    """Return a layer's name and its blobs."""
    name, blobs = "", []
    name_field, blobs_field = (1, 7) if layer.number == _V2_LAYER else (4, 6)
    for field in _fields(data, layer.start, layer.end):
        if field.wire != BYTES:
            continue
        if layer.number == _V1_LAYERS and field.number == 1:  # V0: the layer is inside
            for inner in _fields(data, field.start, field.end):
                if inner.wire == BYTES and inner.number == 1:
                    name = data[inner.start : inner.end].decode("utf-8", "replace")
                elif inner.wire == BYTES and inner.number == 50:
                    blobs.append(_blob(data, inner))
        elif field.number == name_field:
            name = data[field.start : field.end].decode("utf-8", "replace")
        elif field.number == blobs_field:
            blobs.append(_blob(data, field))
    return name, blobs


def _blob(data: mmap, blob: _Field) -> _Blob:
    """Read a blob's shape and find its numbers: those of double precision, if it has any."""
    shape: tuple[int, ...] = ()
    legacy: dict[int, int] = {}
    runs: dict[int, list[_Run]] = {5: [], 8: []}
    at = blob.start
    while at < blob.end:
        field = next(_fields(data, at, blob.end))
        if field.number in _NUMBERS:
            dtype, single = _NUMBERS[field.number]
            if field.wire == BYTES:
                count, rest = divmod(field.end - field.start, dtype.itemsize)
                if rest:
                    raise _BrokenError(at)
                runs[field.number].append(_Run(field.start, count, dtype.itemsize))
            elif field.wire == single:
                runs[field.number].append(run := _unpacked(data, at, blob.end, dtype.itemsize))
                at += run.length * run.step
                continue
        elif field.number == 7 and field.wire == BYTES:
            shape = _dims(data, field)
        elif field.number in _LEGACY_DIMS and field.wire == VARINT:
            legacy[field.number] = field.value
        at = field.end
    if legacy:
        shape = tuple(legacy.get(number, 0) for number in _LEGACY_DIMS)
    chosen = 8 if any(run.length for run in runs[8]) else 5
    return _Blob(shape, _NUMBERS[chosen][0], runs[chosen])


def _dims(data: mmap, field: _Field) -> tuple[int, ...]:
    """Read a BlobShape: field 1, packed or not."""
    dims: list[int] = []
    for dim in _fields(data, field.start, field.end):
        if dim.number == 1 and dim.wire == VARINT:
            dims.append(dim.value)
        elif dim.number == 1 and dim.wire == BYTES:
            at = dim.start
            while at < dim.end:
                value, at = _varint(data, at, dim.end)
                dims.append(value)
    return tuple(dims)


def _unpacked(data: mmap, start: int, end: int, size: int) -> _Run:
    """Find how many numbers follow one another, each behind the same one-byte tag."""
    step, tag, count = size + 1, data[start], 0
    most = (end - start) // step
    while count < most:
        block = min(_BLOCK, most - count)
        tags = np.ndarray((block,), np.uint8, data, start + count * step, (step,))
        other = np.flatnonzero(tags != tag)
        if other.size:
            return _Run(start + 1, count + int(other[0]), step)
        count += block
    return _Run(start + 1, count, step)


def _stored(source: Source, data: mmap, key: str, blob: _Blob) -> Stored:
    """Make the blob a tensor that is read when it is wanted."""
    count = sum(run.length for run in blob.runs)
    if math.prod(blob.shape) != count:
        raise WeightsError(
            f"{source.path}: damaged Caffe model: {key!r} has the shape {blob.shape}, but holds "
            f"{count} numbers"
        )

    def read() -> Tensor:
        if len(blob.runs) == 1 and blob.runs[0].step == blob.dtype.itemsize:
            return source.copy(blob.runs[0].start, blob.dtype, blob.shape)
        flat, done = torch.empty(count, dtype=blob.dtype), 0
        kind = "<f4" if blob.dtype == torch.float32 else "<f8"
        for run in blob.runs:
            numbers = np.ndarray((run.length,), kind, data, run.start, (run.step,))
            flat.numpy()[done : done + run.length] = numbers
            done += run.length
        return flat.view(blob.shape)

    return Stored(blob.shape, blob.dtype, read)
