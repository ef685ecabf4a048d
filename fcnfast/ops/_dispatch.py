"""Which implementation runs: Triton on a GPU, plain torch elsewhere, or the one that is forced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

_forced: ContextVar[str | None] = ContextVar("fcnfast_backend", default=None)
_NAMES = ("torch", "triton")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force "torch" or "triton" for the ops called within, over the variable FCNFAST_BACKEND.

    An op's gradients run where the op ran, also when they are taken later. `upsample_argmax` and
    `upsample_cross_entropy` have no Triton kernels: they always run in plain torch.

    Raises:
        ValueError: when the name is neither.
    """
    token = _forced.set(_checked(name, "backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def _checked(name: str, source: str) -> str:
    if name not in _NAMES:
        raise ValueError(f"{source} must be 'torch' or 'triton', not {name!r}")
    return name


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def use_triton(x: Tensor) -> bool:
    """Whether the Triton kernels take `x`.

    Raises:
        ValueError: when FCNFAST_BACKEND is no name of a backend, or Triton is forced on a CPU
            tensor outside its interpreter.
    """
    forced = _forced.get()
    if forced is None and (variable := os.environ.get("FCNFAST_BACKEND")):
        forced = _checked(variable, "FCNFAST_BACKEND")
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if forced == "triton" and x.device.type == "cpu" and not interpreted:
        raise ValueError("Triton kernels need tensors on a GPU, or TRITON_INTERPRET=1")
    if forced is not None:
        return forced == "triton"
    return x.device.type == "cuda" and _has_triton()


def implementation(op: str, triton: bool) -> ModuleType:
    """The functions of an op: the launchers of its kernels, or the same in plain torch."""
    return import_module(f"..{'kernels' if triton else 'tiled'}.{op}", __package__)
