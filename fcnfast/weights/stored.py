"""A tensor in a weights file, before it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, and the function that reads it while the file is open.

    What ``read`` gives is contiguous, on the CPU, and never a view of the file: whatever becomes
    of the file later, the tensor stays what it is. Where a format allows it, a tensor that nobody
    reads costs nothing, and a shape that a file only claims takes no memory.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
