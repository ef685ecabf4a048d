"""Which implementation runs: Triton on a GPU, plain torch elsewhere, or the one that is forced.

The public functions read what is forced and hand it to their raw ops as the argument `backend`,
so that an op's gradients run where the op ran, in whatever thread, and a compiled graph keeps it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_NAMES = ("torch", "triton")
# Of the whole process: autograd's threads see it, and a compiled function is compiled again.
_forced: str | None = None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force "torch" or "triton" for the ops called within, over the variable FCNFAST_BACKEND.

    It holds for all threads. An op's gradients run where the op ran, also when they are taken
    later. A function that torch.compile has compiled reads FCNFAST_BACKEND only then.

    Raises:
        ValueError: when the name is neither.
    """
    global _forced
    before, _forced = _forced, _checked(name, "backend")
    try:
        yield
    finally:
        _forced = before


def _checked(name: str, source: str) -> str:
    if name not in _NAMES:
        raise ValueError(f"{source} must be 'torch' or 'triton', not {name!r}")
    return name


def forced() -> str | None:
    """The name of the backend that is forced, if one is.

    Raises:
        ValueError: when FCNFAST_BACKEND is no name of a backend.
    """
    if _forced is not None:
        return _forced
    variable = os.environ.get("FCNFAST_BACKEND")
    return _checked(variable, "FCNFAST_BACKEND") if variable else None


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on tensors of a CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _module(room: str, file: str) -> ModuleType | None:
    """An op's file in "kernels" or "tiled"; None where there is none."""
    name = f"{__package__.partition('.')[0]}.{room}.{file}"
    return import_module(name) if find_spec(name) else None


def uses_triton(file: str, function: str, name: str | None, device: torch.device) -> bool:
    """Whether a Triton launcher takes tensors of `device` when the backend `name` is asked for.

    Raises:
        ValueError: when `name` is none, or Triton is forced on a CPU outside its interpreter, or
            is not installed.
        NotImplementedError: when Triton is forced for an op without a kernel.
    """
    if (name is None and device.type != "cuda") or name == "torch":
        return False
    if name is not None:
        _checked(name, "backend")
    if name == "triton" and not _has_triton():
        raise ValueError("Triton is forced, but it is not installed")
    if name == "triton" and device.type == "cpu" and not is_interpreted():
        raise ValueError("Triton kernels need tensors on a GPU, or TRITON_INTERPRET=1")
    exists = _has_triton() and hasattr(_module("kernels", file), function)
    if name == "triton" and not exists:
        raise NotImplementedError(f"Triton is forced, but {file} has no kernel: {function}")
    return exists


def launcher(file: str, function: str, name: str | None, x: Tensor) -> Callable[..., Any]:
    """A function of an op: the launcher of its kernel, or the same in plain torch.

    Raises:
        ValueError, NotImplementedError: as `uses_triton`.
    """
    room = "kernels" if uses_triton(file, function, name, x.device) else "tiled"
    return getattr(_module(room, file), function)
