"""fcnfast's own weights files: safetensors with a description of the network in the metadata.

A file says which network it belongs to, how that network was built, what its classes are called and
which preprocessing it expects, so that loading it needs nothing else. Reading never runs code: a
pickle is recognised and refused.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import WeightsError

PathLike = str | os.PathLike[str]

METADATA_KEY = "fcnfast"
FORMAT_VERSION = 1

# What the safetensors library accepts as the length of a header.
_MAX_HEADER_BYTES = 100_000_000
# A pickle shows what it is in its first opcodes; a weights file may be gigabytes long.
_SNIFFED_BYTES = 1 << 20

_temporary_number = itertools.count()


@dataclass(frozen=True)
class WeightsMeta:
    """What a weights file says about its network.

    Args:
        model: the network's name, as `fcnfast.create_model` takes it.
        options: the other arguments of `create_model`; JSON values only.
        num_classes: channels of the score map.
        classes: the names of the classes, or empty when they have none.
        palette: their colours, (red, green, blue) in 0..255, or empty.
        preprocess: what the network expects of its input; JSON values only.

    Tuples inside `options` and `preprocess` come back from a file as lists.

    Raises:
        ValueError: the fields contradict each other; the message says how.
    """

    model: str
    options: dict[str, Any]
    num_classes: int
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    preprocess: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"the model's name must be a non-empty string, not {self.model!r}")
        for name in ("options", "preprocess"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} must be a dict, not {getattr(self, name)!r}")
        if type(self.num_classes) is not int or self.num_classes < 1:
            raise ValueError(f"num_classes must be a positive integer, not {self.num_classes!r}")
        for name in ("classes", "palette"):
            count = len(getattr(self, name))
            if count not in (0, self.num_classes):
                raise ValueError(f"{name} has {count} entries for {self.num_classes} classes")
        for entry in self.classes:
            if not isinstance(entry, str):
                raise ValueError(f"class name {entry!r} is not a string")
        for colour in self.palette:
            if len(colour) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in colour):
                raise ValueError(f"colour {colour!r} is not three integers 0 to 255")


def bundled_path() -> Path:
    """Return where the weights that come with the package are (a street-scene network)."""
    return Path(__file__).parent / "bundled" / "street.safetensors"


def write_weights(
    path: PathLike,
    state_dict: Mapping[str, Tensor],
    meta: WeightsMeta,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a weights file whole or not at all.

    Args:
        path: the file to make or replace.
        state_dict: the network's tensors, on any device.
        meta: the description that goes with them.
        dtype: floating-point type to store floating-point tensors in (``torch.float16`` halves the
            file); integer tensors keep theirs. ``None`` keeps all.

    Raises:
        TypeError: something in `state_dict` is no tensor, `dtype` is no floating-point type, or
            `meta` holds what JSON cannot.
        ValueError: a finite value becomes infinite in `dtype`; the message names the tensor.
        OSError: the file cannot be written; nothing is left behind.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"weights are stored in a floating-point type, not {dtype}")
    tensors = {name: _stored(name, tensor, dtype) for name, tensor in state_dict.items()}
    described = json.dumps({"format": FORMAT_VERSION, **asdict(meta)}, allow_nan=False)
    _write_whole(Path(path), safetensors.torch.save(tensors, {METADATA_KEY: described}))


def read_weights(path: PathLike) -> tuple[dict[str, Tensor], WeightsMeta]:
    """Read a weights file of `write_weights`.

    Returns:
        The tensors, on the CPU and in the type they are stored in (``load_state_dict`` converts
        them to the network's), and the description.

    Raises:
        WeightsError: missing, cut, damaged, a pickle (which is not run), no safetensors file, or
            one without a description of ours; the message names the file.
    """
    path = Path(path)
    content = _read_file(path)
    meta = _parse_meta(path, _parse_header(path, content))
    try:
        return safetensors.torch.load(content), meta
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{path}: damaged weights file: {error}") from error


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a contiguous copy of `tensor` on the CPU, in the type that the file gets."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name!r} is no tensor but {type(tensor).__name__}")
    tensor = tensor.detach().cpu()
    stored = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    if stored.dtype != tensor.dtype and bool((stored.isinf() & tensor.isfinite()).any()):
        raise ValueError(f"{name!r} holds values that are too large for {dtype}")
    # A copy, since safetensors refuses tensors that share memory, as tied weights do.
    return stored.clone(memory_format=torch.contiguous_format)


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside the file, follow links, take its name when everything is on the disk."""
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".fcnfast-{os.getpid()}-{next(_temporary_number)}.tmp"
    try:
        if target.exists() and not target.is_file():  # renaming would replace a device by a file
            raise OSError(errno.EINVAL, "not a regular file")
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # name the file that the user knows
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def _read_file(path: Path) -> bytes:
    """Return the bytes of a regular file; WeightsError says why there are none."""
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder, not a weights file")
    if not path.exists():
        raise WeightsError(f"{path}: no such weights file")
    if not path.is_file():  # a pipe would block, a device might never end
        raise WeightsError(f"{path}: not a regular file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    if not content:
        raise WeightsError(f"{path}: the file is empty (0 bytes)")
    return content


def _parse_header(path: Path, content: bytes) -> dict[str, Any]:
    """Return the JSON header: 8 bytes of length, little-endian, then the text, then the tensors.

    Parsed here as well as by the library, so that a cut file is called that.
    """
    length = int.from_bytes(content[:8], "little")
    # The brace is looked at before pickles are: the two bytes that start a pickle may also start
    # the length of a header.
    if length > _MAX_HEADER_BYTES or content[8:9] != b"{":
        if _is_pickle(content):
            raise WeightsError(
                f"{path}: is a Python pickle and is not run; weights are read from safetensors"
            )
        raise WeightsError(f"{path}: not a safetensors weights file")
    if len(content) < 8 + length:
        raise WeightsError(
            f"{path}: the file is cut: {8 + length - len(content)} bytes or more of "
            "its header are missing"
        )
    try:
        header = json.loads(content[8 : 8 + length])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        missing = 8 + length + max(ends, default=0) - len(content)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: damaged weights file: unreadable header") from error
    if missing > 0:
        raise WeightsError(f"{path}: the file is cut: {missing} of its bytes are missing")
    return header


def _parse_meta(path: Path, header: dict[str, Any]) -> WeightsMeta:
    """Return our description from a safetensors header."""
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or METADATA_KEY not in metadata:
        raise WeightsError(
            f"{path}: a safetensors file, but not of fcnfast: it does not say which "
            "network it belongs to"
        )
    try:
        entries = json.loads(metadata[METADATA_KEY])
        version = entries.pop("format")
        if version != FORMAT_VERSION:
            raise WeightsError(
                f"{path}: written in format {version!r}; this release of fcnfast "
                f"reads format {FORMAT_VERSION}"
            )
        entries["classes"] = tuple(entries["classes"])
        entries["palette"] = tuple(tuple(colour) for colour in entries["palette"])
        return WeightsMeta(**entries)
    except WeightsError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise WeightsError(
            f"{path}: its description of the network is damaged: {detail}"
        ) from error


def _is_pickle(content: bytes) -> bool:
    """Tell whether the bytes are a pickle or an archive of ``torch.save``; nothing is run."""
    if content[:4] == b"PK\x03\x04":
        try:
            names = zipfile.ZipFile(io.BytesIO(content)).namelist()
        except zipfile.BadZipFile:  # cut: the list of names is at the end
            return b"data.pkl" in content[:_SNIFFED_BYTES]
        return any(name.endswith(".pkl") for name in names)
    if content[:1] == b"\x80" and 1 < content[1] <= 5:
        return True
    try:  # the older text protocols have no mark; genops only reads opcodes
        return any(
            code.name == "STOP" for code, _, _ in pickletools.genops(content[:_SNIFFED_BYTES])
        )
    except Exception:
        return False
