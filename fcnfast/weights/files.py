"""Any weights file, told by its content: what tensors are in it, and what it says of itself."""

from __future__ import annotations

import contextlib
import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import WeightsError
from .archives import ZIP_MARK, read_zip
from .caffe import NotCaffeError, read_caffe
from .hdf5 import is_hdf5, open_hdf5, read_hdf5
from .native import WeightsMeta, parse_meta
from .pickles import LEGACY_MARK, read_legacy
from .safe import is_safetensors, read_safetensors
from .source import PathLike, Source, Stored

# Where checkpoints keep their state dict, and what wrappers put before each of its names.
_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_MAX_NESTING = 4
# Values that are no objects of a class, as modules are.
_PLAIN = (int, float, str, bytes, list, tuple, type(None))
# A pickle shows what it is in its first opcodes.
_SNIFFED_BYTES = 1 << 16


@dataclass(frozen=True)
class WeightsFile:
    """An open weights file.

    Attributes:
        path: where it is.
        format: "safetensors", "PyTorch", "Caffe" or "HDF5".
        tensors: by the names that the file has, without wrappers' prefixes.
        meta: our description of the network, in files of fcnfast.
        notes: what else a checkpoint holds beside its state dict; of a Caffe model, all "layers".
    """

    path: Path
    format: str
    tensors: Mapping[str, Stored]
    meta: WeightsMeta | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def open_weights(path: PathLike) -> Iterator[WeightsFile]:
    """Open a weights file of any kind; its tensors are read inside the ``with`` block.

    Safetensors and zip archives of ``torch.save`` are mapped: their tensors are views of the
    file. Nothing in a file is ever run.

    Raises:
        WeightsError: missing, cut, damaged, of no known kind, or with code in it; the message
            names the file.
    """
    with Source(path) as source:
        head = source.bytes_at(0, 512)
        if is_safetensors(head):
            tensors, metadata = read_safetensors(source)
            meta = parse_meta(source.path, metadata)
            yield WeightsFile(source.path, "safetensors", tensors, meta)
        elif head.startswith(ZIP_MARK):
            yield _checkpoint(source, read_zip(source))
        elif head.startswith(LEGACY_MARK):
            yield _checkpoint(source, read_legacy(source))
        elif is_hdf5(source):
            with open_hdf5(source) as file:
                yield WeightsFile(source.path, "HDF5", read_hdf5(source, file))
        elif head[257:262] == b"ustar":
            raise WeightsError(
                f"{path}: a tar archive; PyTorch's oldest files are such: save the weights again "
                "with a PyTorch that reads them"
            )
        elif _is_pickle(head[:1], source):
            raise WeightsError(f"{path}: a Python pickle, not of torch.save, and is not run")
        else:
            tensors, layers = _caffe(source)
            yield WeightsFile(source.path, "Caffe", tensors, None, {"layers": layers})


def _caffe(source: Source) -> tuple[dict[str, Stored], list[str]]:
    """Read what has no mark of its own: a Caffe model, or no weights at all."""
    try:
        return read_caffe(source)
    except NotCaffeError as error:
        what = "not a weights file that fcnfast reads (safetensors, PyTorch, Caffe or HDF5)"
        if error.args[0]:
            what = "a protobuf message, but no Caffe model: it holds no layers with weights"
        raise WeightsError(f"{source.path}: {what}") from None


def _is_pickle(first: bytes, source: Source) -> bool:
    """Tell whether the file is a bare pickle; it is not run."""
    if first == b"\x80":
        return source.bytes_at(1, 1) in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05")
    try:  # the oldest protocol has no mark; genops only reads opcodes
        opcodes = pickletools.genops(source.bytes_at(0, _SNIFFED_BYTES))
        return any(code.name == "STOP" for code, _, _ in opcodes)
    except Exception:
        return False


def _checkpoint(source: Source, tree: Any) -> WeightsFile:
    """Find the state dict in what a checkpoint holds."""
    notes: dict[str, Any] = {}
    for _ in range(_MAX_NESTING):
        if not isinstance(tree, dict):
            break
        inner = next((key for key in _WRAPPINGS if isinstance(tree.get(key), dict)), None)
        if inner is None:
            break
        notes.update({key: value for key, value in tree.items() if key != inner})
        tree = tree[inner]
    if isinstance(tree, dict):
        tensors = {k: v for k, v in tree.items() if isinstance(k, str) and isinstance(v, Stored)}
        if tensors:
            tensors = {key: _named(key, stored) for key, stored in _bare(tensors).items()}
            return WeightsFile(source.path, "PyTorch", tensors, None, notes)
        if all(isinstance(value, _PLAIN) for value in tree.values()):
            raise WeightsError(f"{source.path}: a PyTorch file without a state dict: no tensors")
    raise WeightsError(
        f"{source.path}: a PyTorch file without a state dict (a whole module? save its "
        "state_dict() instead)"
    )


def _named(key: str, stored: Stored) -> Stored:
    """Let what is wrong with a tensor's bytes be said with the tensor's name."""

    def read() -> Tensor:
        try:
            return stored.read()
        except WeightsError as error:
            raise WeightsError(f"{error}: it holds {key!r}") from None

    return replace(stored, read=read)


def _bare(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Strip what wrappers such as DataParallel put before every name."""
    for _ in range(_MAX_NESTING):
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), None)
        if prefix is None:
            break
        tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
    return tensors
