"""Safetensors files: a length, a JSON header, and the tensors, which are views of the file."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from .source import ALIGNMENT, Source, Stored

Buffer = bytes | memoryview

# What the safetensors library accepts as the length of a header.
_MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def is_safetensors(head: bytes) -> bool:
    """Tell whether a file that begins with these 9 bytes (or more) may be safetensors."""
    return int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES and head[8:9] == b"{"


def read_safetensors(source: Source) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Read the header: 8 bytes of length, little-endian, then JSON.

    Returns:
        The tensors and the file's metadata (usually strings; nothing is sure of a foreign file).

    Raises:
        WeightsError: cut or damaged.
    """
    length = int.from_bytes(source.bytes_at(0, 8), "little")
    missing = 8 + length - source.size
    if missing > 0:
        raise WeightsError(
            f"{source.path}: the file is cut: {missing} bytes or more of its header are missing"
        )
    try:
        header = json.loads(source.bytes_at(8, length))
        metadata = header.pop("__metadata__", {})
        tensors = {key: _stored(source, 8 + length, **entry) for key, entry in header.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{source.path}: damaged weights file: unreadable header") from error
    if end != source.size:
        what = "the file is cut: {} of its bytes are missing"
        if end < source.size:
            what = "damaged weights file: {} bytes belong to no tensor"
        raise WeightsError(f"{source.path}: {what.format(abs(end - source.size))}")
    return tensors, metadata if isinstance(metadata, dict) else {}


def safetensors_parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[Buffer]:
    """The content of a safetensors file, part by part: nothing is copied.

    The tensors, contiguous and on the CPU, begin at multiples of 64 bytes as far as their sizes
    allow without gaps, which the format does not have: those of odd sizes come last.

    Raises:
        TypeError: a type that the format does not have.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    order = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT > 0, name))
    place = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in names:
            raise TypeError(f"{name!r} is {tensor.dtype}, which safetensors files do not hold")
        end = place + tensor.nbytes
        offsets, shape = [place, end], list(tensor.shape)
        header[name] = {"dtype": names[tensor.dtype], "shape": shape, "data_offsets": offsets}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return _parts(text, [tensors[name] for name in order])


def _parts(header: bytes, tensors: list[Tensor]) -> Iterator[Buffer]:
    yield struct.pack("<Q", len(header))
    yield header
    for tensor in tensors:
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _stored(
    source: Source, base: int, dtype: str, shape: list[int], data_offsets: list[int]
) -> Stored:
    """Make an entry of the header a tensor that is read when it is wanted."""
    kind, size = _DTYPES[dtype], tuple(shape)
    start, end = data_offsets
    if not all(type(n) is int and n >= 0 for n in (*size, start, end)):
        raise ValueError("a size or a place is no number")
    if end - start != math.prod(size) * kind.itemsize:
        raise ValueError("the place does not have the tensor's size")

    def read() -> Tensor:
        return source.view(base + start, kind, size)

    return Stored(size, kind, read)
