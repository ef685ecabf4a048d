"""Which implementation runs: Triton on a GPU, plain torch elsewhere, or the one that is forced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from torch import Tensor

_forced: ContextVar[str | None] = ContextVar("fcnfast_backend", default=None)
_NAMES = ("torch", "triton")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force "torch" or "triton" for the ops within, over the variable FCNFAST_BACKEND.

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
    """Whether the Triton kernels take `x`."""
    forced = _forced.get()
    if forced is None and (variable := os.environ.get("FCNFAST_BACKEND")):
        forced = _checked(variable, "FCNFAST_BACKEND")
    if forced is not None:
        return forced == "triton"
    return x.device.type == "cuda" and _has_triton()
