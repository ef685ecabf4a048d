"""A tensor in a weights file, before it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, and the function that reads it while the file is open.

    ``read`` gives a contiguous tensor on the CPU, never a view of the file. If the format allows
    it, a tensor takes no memory until it is read.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
