"""A tensor in a weights file, before it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import WeightsError


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, and the function that reads it while the file is open.

    ``read`` gives a contiguous tensor on the CPU, never a view of the file. If the format allows
    it, a tensor takes no memory until it is read.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a library raises of a damaged file into a WeightsError that begins so."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{path}: {what}: {why}") from error
