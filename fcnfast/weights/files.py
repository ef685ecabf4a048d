"""Weights files: opens any kind, recognized by its content; writes fcnfast's own (safetensors).

The metadata of a file of fcnfast names its network, the network's options and classes, and the
preprocessing it expects, so that loading it needs nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import WeightsError
from ..files import PathLike, replacing
from .caffe import is_hdf5, open_hdf5, read_caffe, read_hdf5
from .pytorch import LEGACY_MARK, ZIP_MARK, read_pytorch
from .stored import Stored, reading

METADATA_KEY = "fcnfast"
FORMAT_VERSION = 1
# What the safetensors library accepts as the length of a header.
_MAX_HEADER_BYTES = 100_000_000
# safetensors maps the file; after this many bytes have been read, their pages are released.
_MAPPED_BYTES = 1 << 23
# A pickle shows what it is in its first opcodes.
_SNIFFED_BYTES = 1 << 16


@dataclass(frozen=True)
class WeightsMeta:
    """What a weights file says about its network.

    Args:
        model: the network's name, as `fcnfast.create_model` takes it.
        options: the other arguments of `create_model`; JSON values only.
        num_classes: channels of the score map.
        classes, palette: names and (red, green, blue) colors of the classes, 0..255; or empty.
        preprocess: what the network expects of its input; JSON values only.
        table: the class table as JSON, with what its label files store; or empty.

    Tuples inside `options` and `preprocess` come back from a file as lists.

    ValueError when the fields contradict each other; the message says how.
    """

    model: str
    options: dict[str, Any]
    num_classes: int
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    preprocess: dict[str, Any] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = self.num_classes
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"the model's name must be a non-empty string, not {self.model!r}")
        for name in ("options", "preprocess", "table"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} must be a dict, not {getattr(self, name)!r}")
        if type(count) is not int or count < 1:
            raise ValueError(f"num_classes must be a positive integer, not {count!r}")
        for name in ("classes", "palette"):
            if (given := len(getattr(self, name))) not in (0, count):
                raise ValueError(f"{name} has {given} entries for {count} classes")
        for entry in self.classes:
            if not isinstance(entry, str):
                raise ValueError(f"class name {entry!r} is not a string")
        for color in self.palette:
            if len(color) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in color):
                raise ValueError(f"color {color!r} is not three integers 0 to 255")


@dataclass(frozen=True)
class WeightsFile:
    """An open weights file.

    format: "safetensors", "PyTorch", "Caffe" or "HDF5". meta: our description of the network, in
    files of fcnfast. notes: what else a checkpoint holds beside its state dict; of a Caffe model,
    all "layers".
    """

    path: Path
    format: str
    tensors: Mapping[str, Stored]
    meta: WeightsMeta | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def open_weights(path: PathLike) -> Iterator[WeightsFile]:
    """Open a weights file of any kind; its tensors are read inside the ``with`` block.

    Nothing in a file is ever run, and no tensor is a view of it.

    TypeError when `path` is not a path; WeightsError when the file is missing, cut, damaged, or of
    no known kind; the message names it.
    """
    path, head = _begin(path)
    if int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES and head[8:9] == b"{":
        tensors, metadata = _read_safetensors(path)
        yield WeightsFile(path, "safetensors", tensors, parse_meta(path, metadata))
    elif head[257:262] == b"ustar":
        hint = "PyTorch's oldest format: save the weights again with a PyTorch that reads it"
        raise WeightsError(f"{path}: a tar archive; {hint}")
    elif head.startswith((ZIP_MARK, LEGACY_MARK)):
        tensors, notes = read_pytorch(path)
        yield WeightsFile(path, "PyTorch", tensors, None, notes)
    elif is_hdf5(path):
        with open_hdf5(path) as file:
            yield WeightsFile(path, "HDF5", read_hdf5(path, file))
    elif _is_pickle(path):
        raise WeightsError(f"{path}: a Python pickle, not made by torch.save, and is not run")
    else:  # Caffe's models have no mark
        tensors, layers = read_caffe(path)
        yield WeightsFile(path, "Caffe", tensors, None, {"layers": layers})


def _begin(path: PathLike) -> tuple[Path, bytes]:
    """The path of a regular file and its first 512 bytes."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"a weights file is given by its path, not by {type(path).__name__}")
    if path == "":
        raise WeightsError("the path of the weights file is empty ('')")
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder, not a weights file")
    if not path.exists():
        raise WeightsError(f"{path}: no such weights file")
    if not path.is_file():  # a pipe would block, a device might never end
        raise WeightsError(f"{path}: not a regular file")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    if not head:
        raise WeightsError(f"{path}: the file is empty (0 bytes)")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: a Git LFS pointer, not the weights: run git lfs pull")
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise WeightsError(f"{path}: a web page, not weights: the download failed")
    return path, head


def _is_pickle(path: Path) -> bool:
    """Tell whether the file is a bare pickle; it is not run."""
    with open(path, "rb") as file:
        head = file.read(_SNIFFED_BYTES)
    if head[:1] == b"\x80":
        return head[1:2] in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05")
    with contextlib.suppress(Exception):  # the oldest protocol has no mark; only opcodes are read
        return any(code.name == "STOP" for code, _, _ in pickletools.genops(head))
    return False


def _read_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a safetensors file, each read into memory of its own, and its metadata."""

    def opened() -> Any:
        with reading(path, "a safetensors file that is cut or damaged"):
            return safe_open(path, "pt", device="cpu")

    file, used = opened(), 0

    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        """Copy a tensor out of the mapped file, a few megabytes at a time."""
        nonlocal file, used
        with torch.device("cpu"):  # whatever the default is
            if 0 in shape or not shape:
                return file.get_tensor(name).clone()
            tensor = torch.empty(0)
            step = max(1, _MAPPED_BYTES // (8 * math.prod(shape[1:])))  # of 8 bytes at most
            for start in range(0, shape[0], step):
                if used > _MAPPED_BYTES:
                    file, used = opened(), 0
                part = file.get_slice(name)[start : start + step]
                tensor = tensor if start else part.new_empty(shape)
                tensor[start : start + step] = part
                used += part.nbytes
        return tensor

    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    tensors = {name: Stored(shape, partial(read, name, shape)) for name, shape in shapes.items()}
    return tensors, file.metadata() or {}


def parse_meta(path: Path, metadata: Mapping[str, Any]) -> WeightsMeta | None:
    """Our description in a safetensors file's metadata, if any; WeightsError if it is damaged."""
    if METADATA_KEY not in metadata:
        return None
    with reading(path, "its description of the network is damaged"):
        entries = json.loads(metadata[METADATA_KEY])
        version = entries.pop("format")
        if version != FORMAT_VERSION:
            ours = f"this release of fcnfast reads format {FORMAT_VERSION}"
            raise WeightsError(f"{path}: written in format {version!r}; {ours}")
        entries["classes"] = tuple(entries["classes"])
        entries["palette"] = tuple(tuple(color) for color in entries["palette"])
        return WeightsMeta(**entries)


def bundled_path() -> Path:
    """The weights that come with the package (a street-scene network)."""
    return Path(__file__).parent / "bundled" / "street.safetensors"


def write_weights(
    path: PathLike,
    state_dict: Mapping[str, Tensor],
    meta: WeightsMeta,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a weights file, or replace it, atomically; links are followed.

    Floating-point tensors, which may be on any device, are stored in `dtype` if it is given.

    Raises:
        TypeError: something in `state_dict` is not a tensor, `dtype` is not a floating-point type,
            or `meta` holds what JSON cannot.
        ValueError: a finite value becomes infinite in `dtype`.
        OSError: the file cannot be written; nothing is left behind.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"weights are stored in a floating-point type, not {dtype}")
    tensors, places = {}, set()
    for name, tensor in state_dict.items():
        stored = _as_stored(name, tensor, dtype)
        # The format does not support tensors that share memory.
        tensors[name] = stored.clone() if stored.data_ptr() in places else stored
        places.add(tensors[name].data_ptr())
    described = json.dumps({"format": FORMAT_VERSION, **asdict(meta)}, allow_nan=False)
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, {METADATA_KEY: described})  # puts a new file there
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error


def _as_stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name!r} must be a tensor, not {type(tensor).__name__}")
    tensor = tensor.detach().cpu()
    stored = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    if stored.dtype != tensor.dtype and bool((stored.isinf() & tensor.isfinite()).any()):
        raise ValueError(f"{name!r} holds values that are too large for {dtype}")
    return stored.contiguous()
