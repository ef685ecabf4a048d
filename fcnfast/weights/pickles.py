"""Pickles of ``torch.save``, and the older kind of its files, read without running anything.

A pickle is a small program that may call whatever it names. Here the only names it can reach are
those that put tensors together; objects of other classes (settings, loggers, arrays) become inert
placeholders, and a pickle that asks for a function of Python's own library is refused.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from ..errors import WeightsError
from .source import Source, Stored

# What the older files start with: the pickle of a magic number, in protocol 2.
LEGACY_MARK = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
# Names of Python's own library that checkpoints hold, and that only describe data.
_HARMLESS = {
    "builtins": "set frozenset list tuple int float complex bool str bytes bytearray slice range "
    "object getattr",
    "copyreg": "_reconstructor",
    "_codecs": "encode",
    "collections": "defaultdict deque Counter",
    "datetime": "datetime date time timedelta timezone",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "argparse": "Namespace",
    "types": "SimpleNamespace",
}


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file, of which tensors are parts; `start` counts its elements."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0


class _Dict(dict):
    """Stands for an ordered dict; attributes that a pickle wants to set on it are let go."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Inert:
    """Stands for every object whose class is not loaded: takes everything, does nothing."""

    __slots__ = ()

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def _take(self, *args: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _take


class _Call:
    """Lets a pickle call one function of ours, and do nothing else with it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("a function has no state")


class Unpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers, strings and `Stored` tensors.

    `read` takes a storage, an element's number in it, and a count; it is called when a tensor is
    wanted.
    """

    def __init__(
        self, file: Any, name: object, read: Callable[[Storage, int, int], Tensor]
    ) -> None:
        super().__init__(file, encoding="latin1")  # any string of Python 2 is read
        self._name, self._read = name, read
        self.storages: dict[str, torch.dtype] = {}
        data, tensor = _Call(lambda data, *_: data), _Call(self._tensor)
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Dict,
            ("builtins", "dict"): _Dict,
            ("torch", "Size"): _Call(tuple),
            ("torch._utils", "_rebuild_parameter"): data,
            ("torch._utils", "_rebuild_parameter_with_state"): data,
            ("torch._utils", "_rebuild_tensor"): tensor,
            ("torch._utils", "_rebuild_tensor_v2"): tensor,
            ("torch._tensor", "_rebuild_from_type_v2"): _Call(
                lambda function, kind, args, state: function(*args)
            ),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name of the pickle; nothing is imported."""
        # As pickle itself reads the names of Python 2, which older protocols still write.
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if (module, name) in self._known:
            return self._known[module, name]
        if module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES:
            return _STORAGES[name]
        library = module.partition(".")[0] in sys.stdlib_module_names
        if library and name not in _HARMLESS.get(module, "").split():
            raise WeightsError(
                f"{self._name}: its pickle asks for {module}.{name}, which weights do not need; "
                "nothing of it was run"
            )
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        """Resolve what a pickle points to: a storage, or the object of a module."""
        kind, *fields = pid
        if kind == "module":  # (object, name of its source, source)
            return fields[0]
        dtype, key, _, numel = fields[:4]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not _counts(numel):
            raise pickle.UnpicklingError(f"points to {kind!r}, which is no storage")
        self.storages[str(key)] = dtype
        if len(fields) > 4 and fields[4] is not None:  # a part of another storage
            _, start, count = fields[4]
            if not _counts(start, count) or start + count > numel:
                raise pickle.UnpicklingError("a storage reaches beyond the one it is part of")
            return Storage(str(key), dtype, count, start)
        return Storage(str(key), dtype, numel)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Stored:
        size, stride = tuple(size), tuple(stride)
        if not isinstance(storage, Storage) or not _counts(offset, *size, *stride):
            raise pickle.UnpicklingError("a tensor without a place in the file")
        if len(size) != len(stride):
            raise pickle.UnpicklingError(f"a tensor of size {size} and strides {stride}")
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        extent = 0 if 0 in size else last + 1
        if offset + extent > storage.numel:
            raise pickle.UnpicklingError(f"a tensor of size {size} reaches beyond its storage")

        def read() -> Tensor:
            flat = self._read(storage, storage.start + offset, extent)
            # What is not contiguous is copied; so are elements that share one place.
            return flat.as_strided(size, stride, 0).contiguous()

        return Stored(size, storage.dtype, read)


def _counts(*values: object) -> bool:
    """Tell whether all are integers from 0."""
    return all(type(value) is int and value >= 0 for value in values)


def load_pickle(source: Source, file: BinaryIO, unpickler: Unpickler) -> Any:
    """Read one pickle from `file`; whatever is wrong with it is a WeightsError."""
    try:
        _check_opcodes(file)
        return unpickler.load()
    except WeightsError:
        raise
    except Exception as error:  # of any kind: the bytes may be anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"{source.path}: a PyTorch file that is cut or damaged: {why}"
        ) from error


def _check_opcodes(file: BinaryIO) -> None:
    """Look through a pickle before it is loaded, and go back to its beginning.

    A damaged one may number an object in its list of objects by billions, for which Python would
    make room.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if "PUT" in opcode.name and argument is not None and argument > count:
            raise pickle.UnpicklingError(f"object {argument} among {count}")
        if opcode.name.startswith("EXT"):
            raise pickle.UnpicklingError("it names what only another program knows")
    file.seek(start)


def read_legacy(source: Source) -> Any:
    """What ``torch.save`` wrote before it wrote zip archives: pickles, then the storages.

    Raises:
        WeightsError: cut, damaged, or with code in it.
    """
    places: dict[str, tuple[int, int]] = {}

    def read(storage: Storage, start: int, count: int) -> Tensor:
        offset, numel = places.get(storage.key, (0, -1))
        if storage.start + storage.numel > numel:
            raise WeightsError(
                f"{source.path}: damaged: storage {storage.key!r} holds {max(numel, 0)} numbers, "
                f"{storage.start + storage.numel} were expected"
            )
        # Not aligned in the file, so read rather than mapped.
        return source.copy(offset + start * storage.dtype.itemsize, storage.dtype, (count,))

    source.file.seek(len(LEGACY_MARK))
    unpicklers = [Unpickler(source.file, source.path, read) for _ in range(4)]
    _, system, tree, keys = (load_pickle(source, source.file, each) for each in unpicklers)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightsError(f"{source.path}: its numbers are not in little-endian order")
    if not isinstance(keys, list):
        raise WeightsError(f"{source.path}: damaged PyTorch file: no list of its storages")
    offset = source.file.tell()
    for key in map(str, keys):
        numel = int.from_bytes(source.bytes_at(offset, 8), "little", signed=True)
        dtype = unpicklers[2].storages.get(key, torch.uint8)
        end = offset + 8 + numel * dtype.itemsize
        if numel < 0 or end > source.size:
            raise WeightsError(
                f"{source.path}: the file is cut or damaged: {end - source.size} bytes of its "
                f"storage {key!r} are missing"
            )
        places[key] = (offset + 8, numel)
        offset = end
    return tree
