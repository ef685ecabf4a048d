"""fcnfast's own weights files: safetensors with a description of the network in the metadata.

A file says which network it belongs to, how that network was built, what its classes are called and
which preprocessing it expects, so that loading it needs nothing else.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from .safe import Buffer, is_safetensors, read_safetensors, safetensors_parts
from .source import PathLike, Source

METADATA_KEY = "fcnfast"
FORMAT_VERSION = 1

_temporary_number = itertools.count()


@dataclass(frozen=True)
class WeightsMeta:
    """What a weights file says about its network.

    Args:
        model: the network's name, as `fcnfast.create_model` takes it.
        options: the other arguments of `create_model`; JSON values only.
        num_classes: channels of the score map.
        classes: the names of the classes, or empty when they have none.
        palette: their colors, (red, green, blue) in 0..255, or empty.
        preprocess: what the network expects of its input; JSON values only.
        table: the class table as JSON, with what its label files store; or empty.

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
    table: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"the model's name must be a non-empty string, not {self.model!r}")
        for name in ("options", "preprocess", "table"):
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
        for color in self.palette:
            if len(color) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in color):
                raise ValueError(f"color {color!r} is not three integers 0 to 255")


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
    parts = safetensors_parts(tensors, {METADATA_KEY: described})
    _write_whole(Path(path), parts)


def read_weights(path: PathLike) -> tuple[dict[str, Tensor], WeightsMeta]:
    """Read a weights file of `write_weights`.

    Returns:
        The tensors, on the CPU and in the type they are stored in (``load_state_dict`` converts
        them to the network's), and the description. The tensors are views of the file: a page of
        it is read when it is used, and copied when it is written to.

    Raises:
        WeightsError: missing, cut, damaged, no safetensors file, or one without a description of
            ours; the message names the file.
    """
    with Source(path) as source:
        if not is_safetensors(source.bytes_at(0, 9)):
            raise WeightsError(f"{path}: not a safetensors weights file of fcnfast")
        stored, metadata = read_safetensors(source)
        meta = parse_meta(source.path, metadata)
        if meta is None:
            raise WeightsError(
                f"{path}: a safetensors file, but not of fcnfast: it does not say which network "
                "it belongs to"
            )
        return {name: tensor.read() for name, tensor in stored.items()}, meta


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return `tensor` contiguous on the CPU, in the type that the file gets."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name!r} is no tensor but {type(tensor).__name__}")
    tensor = tensor.detach().cpu()
    stored = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    if stored.dtype != tensor.dtype and bool((stored.isinf() & tensor.isfinite()).any()):
        raise ValueError(f"{name!r} holds values that are too large for {dtype}")
    return stored.contiguous()


def _write_whole(path: Path, parts: Iterable[Buffer]) -> None:
    """Write beside the file, follow links, take its name when everything is on the disk."""
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".fcnfast-{os.getpid()}-{next(_temporary_number)}.tmp"
    try:
        if target.exists() and not target.is_file():  # renaming would replace a device by a file
            raise OSError(errno.EINVAL, "not a regular file")
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # name the file that the user knows
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def parse_meta(path: Path, metadata: Mapping[str, Any]) -> WeightsMeta | None:
    """Return our description from the metadata of a safetensors file, None where it has none.

    Raises:
        WeightsError: damaged, or of another release.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        entries = json.loads(metadata[METADATA_KEY])
        version = entries.pop("format")
        if version != FORMAT_VERSION:
            raise WeightsError(
                f"{path}: written in format {version!r}; this release of fcnfast "
                f"reads format {FORMAT_VERSION}"
            )
        entries["classes"] = tuple(entries["classes"])
        entries["palette"] = tuple(tuple(color) for color in entries["palette"])
        return WeightsMeta(**entries)
    except WeightsError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise WeightsError(
            f"{path}: its description of the network is damaged: {detail}"
        ) from error
