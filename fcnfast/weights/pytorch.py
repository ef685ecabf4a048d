"""Files of ``torch.save``, read without importing or running anything that their pickles name."""

from __future__ import annotations

import pickle
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import WeightsError
from .stored import Stored, reading

ZIP_MARK = b"PK\x03\x04"
# What the older files start with: the pickle of a magic number, in protocol 2.
LEGACY_MARK = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# Where checkpoints keep their state dict.
_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network", "module")
_AVERAGES = ("ema", "state_dict_ema", "model_ema")
_MAX_NESTING = 4
# Plain values, unlike a pickled module.
_PLAIN = (int, float, str, bytes, list, tuple, type(None))


class _Placeholder:
    """Stands for anything but tensors that a pickle names: accepts everything, does nothing."""

    dump_patches = False  # torch reads this from the classes of modules in its older files

    def __new__(cls, *args: object, **kwargs: object) -> _Placeholder:
        return object.__new__(_Placeholder)

    def _take(*args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> _Placeholder:
        return self

    __init__ = __setstate__ = __setitem__ = append = extend = add = _take


class _Dict(dict):
    """Stands for an ordered dict: a plain one that discards attributes."""

    def __setstate__(self, state: object) -> None:
        pass


def _data(data: Tensor, *_: object) -> Tensor:
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch", "UntypedStorage"): torch.UntypedStorage,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _data,
    ("torch._utils", "_rebuild_parameter_with_state"): _data,
    # A tensor with attributes, or of a subclass: as a plain one.
    ("torch._tensor", "_rebuild_from_type_v2"): lambda make, kind, args, state: make(*args),
}


class _Unpickler(pickle._Unpickler):
    """Knows the functions that rebuild tensors, and has a placeholder for every other name.

    Python's own, because the one in C allocates as many objects as a damaged file claims to have.
    """

    def find_class(self, module: str, name: str) -> Any:
        return _KNOWN.get((module, name), _Placeholder)

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("it uses pickle extension codes")


# What `torch.load` uses in place of the pickle module; it reads storages itself.
_INERT = types.SimpleNamespace(
    __name__="inert pickles",
    Unpickler=_Unpickler,
    load=lambda file, **options: _Unpickler(file, **options).load(),
)


def read_pytorch(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The state dict of a file of ``torch.save``, and what else a checkpoint holds beside it.

    What training frameworks pickle besides tensors and plain values (settings, loggers, arrays)
    becomes placeholders.

    WeightsError when the file is cut, damaged, a TorchScript program, or has no state dict.
    """
    with open(path, "rb") as file:
        if file.read(4) == ZIP_MARK:
            with reading(path, "a zip archive (as PyTorch's files are) that is cut or damaged"):
                _check_archive(path)
        with reading(path, "a PyTorch file that is cut or damaged"):
            tree = _load(file)
    notes: dict[str, Any] = {}
    for _ in range(_MAX_NESTING):
        inner = next((key for key in _WRAPPINGS + _AVERAGES if _is_dict(tree, key)), None)
        if inner is None and isinstance(tree, dict) and not _holds_tensors(tree):
            holding = [key for key, value in dict.items(tree) if _holds_tensors(value)]
            inner = holding[0] if len(holding) == 1 else None  # whatever it is called
        if inner is None:
            break
        notes.update({key: value for key, value in dict.items(tree) if key != inner})
        tree = tree[inner]
    if isinstance(tree, dict):
        values = dict.items(tree)
        tensors = {k: _stored(v) for k, v in values if isinstance(k, str) and _is_tensor(v)}
        if tensors:
            return tensors, notes
        if all(isinstance(value, _PLAIN) for _, value in values):
            raise WeightsError(f"{path}: a PyTorch file without a state dict: no tensors")
        if inside := [repr(k) for k, v in values if isinstance(v, dict)]:
            told = f"cannot tell which entry is the state dict: {', '.join(inside)}"
            raise WeightsError(f"{path}: {told}; save it by itself")
    hint = "a whole module? save its state_dict() instead"
    raise WeightsError(f"{path}: a PyTorch file without a state dict ({hint})")


def _load(file: BinaryIO) -> Any:
    # "latin1": any string of Python 2 is read. A map would make tensors views of the file.
    options: dict[str, Any] = {"map_location": "cpu", "mmap": False, "encoding": "latin1"}
    with warnings.catch_warnings(), torch.device("cpu"):  # whatever the default device is
        warnings.simplefilter("ignore")
        try:
            file.seek(0)
            return torch.load(file, weights_only=True, **options)
        except pickle.UnpicklingError:
            pass  # goes on below, so that the exception does not keep what was read
        file.seek(0)
        return torch.load(file, weights_only=False, pickle_module=_INERT, **options)


def _check_archive(path: Path) -> None:
    """Reject an archive of something else, and one whose content does not match its checksums."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if sum(n.count("/") == 1 and n.endswith("/data.pkl") for n in names) != 1:
            raise WeightsError(f"{path}: a zip archive, but not one of torch.save")
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise WeightsError(f"{path}: holds a TorchScript program, not only weights")
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                what = f"record {record.filename!r} is compressed"
                raise WeightsError(f"{path}: {what}, which torch.save does not do")
            if record.CRC:  # 0: torch was told to write none
                with archive.open(record) as content:
                    while content.read(1 << 20):
                        pass


def _is_dict(tree: Any, key: str) -> bool:
    return isinstance(tree, dict) and isinstance(dict.get(tree, key), dict)


def _holds_tensors(value: Any) -> bool:
    """Whether this looks like a state dict: tensors by the names of layers, which have a dot."""
    if not isinstance(value, dict):
        return False
    return any(_is_tensor(v) and isinstance(k, str) and "." in k for k, v in dict.items(value))


def _is_tensor(value: object) -> bool:
    """Whether this is a dense CPU tensor that is not quantized."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return False
    return not value.is_quantized and value.device.type == "cpu"


def _stored(tensor: Tensor) -> Stored:
    def read() -> Tensor:
        own = tensor.detach().contiguous()
        # A part of a larger storage would keep all of it.
        return own.clone() if own.untyped_storage().nbytes() > own.nbytes else own

    return Stored(tuple(tensor.shape), read)
