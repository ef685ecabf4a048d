"""Zip archives of ``torch.save``: a pickle of the state dict, and a record for every storage."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import Any

from torch import Tensor

from ..errors import WeightsError
from .pickles import Storage, Unpickler, load_pickle
from .source import Source

ZIP_MARK = b"PK\x03\x04"


def read_zip(source: Source) -> Any:
    """What ``torch.save`` wrote into a zip archive; its tensors are views of the file.

    A tensor whose bytes are not those that were written is refused when it is read: the archive
    holds their checksum.

    Raises:
        WeightsError: cut, damaged, no archive of ``torch.save``, or one with code in it.
    """
    try:
        with zipfile.ZipFile(source.file) as archive:
            records = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise WeightsError(
            f"{source.path}: a zip archive (PyTorch's files are such) that is cut or damaged"
        ) from error
    names = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise WeightsError(f"{source.path}: a zip archive, but none of torch.save")
    prefix = names[0].removesuffix("data.pkl")
    if any(name.startswith(f"{prefix}code/") for name in records):
        raise WeightsError(f"{source.path}: holds a TorchScript program, not only weights")
    checked: set[str] = set()

    def checked_span(record: zipfile.ZipInfo) -> tuple[int, int]:
        span = _span(source, record)
        if record.filename not in checked:
            _check_sum(source, record, *span)
            checked.add(record.filename)
        return span

    order = records.get(f"{prefix}byteorder")
    if order is not None and source.bytes_at(*_span(source, order)) != b"little":
        raise WeightsError(f"{source.path}: its numbers are not in little-endian order")

    def read(storage: Storage, start: int, count: int) -> Tensor:
        record = records.get(f"{prefix}data/{storage.key}")
        if record is None:
            raise WeightsError(f"{source.path}: damaged: storage {storage.key!r} is missing")
        offset, length = checked_span(record)
        if storage.numel * storage.dtype.itemsize > length:
            raise WeightsError(
                f"{source.path}: damaged: storage {storage.key!r} holds {length} bytes, "
                f"{storage.numel} numbers of {storage.dtype} were expected"
            )
        return source.view(offset + start * storage.dtype.itemsize, storage.dtype, (count,))

    program = io.BytesIO(source.bytes_at(*checked_span(records[names[0]])))
    return load_pickle(source, program, Unpickler(program, source.path, read))


def _span(source: Source, record: zipfile.ZipInfo) -> tuple[int, int]:
    """Return where a record's bytes begin and how many they are."""
    header = source.bytes_at(record.header_offset, 30)
    if len(header) < 30 or header[:4] != ZIP_MARK:
        raise WeightsError(f"{source.path}: damaged: record {record.filename!r} is not there")
    if record.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(
            f"{source.path}: record {record.filename!r} is compressed, which torch.save does not do"
        )
    name, extra = struct.unpack("<HH", header[26:30])
    start = record.header_offset + 30 + name + extra
    if start + record.file_size > source.size:
        raise WeightsError(f"{source.path}: the file is cut inside {record.filename!r}")
    return start, record.file_size


def _check_sum(source: Source, record: zipfile.ZipInfo, start: int, length: int) -> None:
    """Refuse a record whose bytes do not have the CRC-32 that the archive says.

    A sum of 0 is none: ``torch.serialization.set_crc32_options(False)`` writes that.
    """
    with memoryview(source.mapped())[start : start + length] as content:
        if record.CRC and zlib.crc32(content) != record.CRC:
            raise WeightsError(
                f"{source.path}: damaged: the bytes of {record.filename!r} are not those that were "
                "written (their CRC-32 differs)"
            )
