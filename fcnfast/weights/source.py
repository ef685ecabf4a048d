"""The bytes of a weights file, and its tensors before they are read.

Readers of the formats only say where the tensors are; a tensor's bytes are touched when it is
wanted and fits, so that a layer that no network asks for costs nothing, and a file that claims
absurd shapes cannot fill the memory.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import WeightsError

PathLike = str | os.PathLike[str]
# Where torch's own tensors begin in memory.
ALIGNMENT = 64


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, its type, and the function that reads it.

    What ``read`` gives is contiguous, on the CPU, and free to be written to: the file never
    changes. It must be called while the file is open.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


class Source:
    """An open regular file of weights.

    Raises:
        TypeError: for what is no path.
        WeightsError: when there is no such file, or it cannot be read.
    """

    file: BinaryIO

    def __init__(self, path: PathLike) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"a weights file is given by its path, not by {type(path).__name__}")
        if path == "":
            raise WeightsError("the path of the weights file is empty ('')")
        self.path = Path(path)
        if self.path.is_dir():
            raise WeightsError(f"{path}: is a folder, not a weights file")
        if not self.path.exists():
            raise WeightsError(f"{path}: no such weights file")
        if not self.path.is_file():  # a pipe would block, a device might never end
            raise WeightsError(f"{path}: not a regular file")
        try:
            self.file = open(self.path, "rb")  # noqa: SIM115 (closed by __exit__)
            self.size = os.fstat(self.file.fileno()).st_size
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
        self._map: mmap.mmap | None = None
        if not self.size:
            self.file.close()
            raise WeightsError(f"{path}: the file is empty (0 bytes)")

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Tensors that were made by `view` keep the mapping, which needs no open file.
        self.file.close()

    def bytes_at(self, offset: int, length: int) -> bytes:
        """Read up to so many bytes; fewer only at the end of the file."""
        if offset < 0 or length < 0:
            raise WeightsError(f"{self.path}: damaged: something begins before the file does")
        self.file.seek(offset)
        return self.file.read(length)

    def mapped(self) -> mmap.mmap:
        """The file in memory, page by page as it is used; what is written there stays there."""
        if self._map is None:
            self._map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._map

    def view(self, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """A tensor over the file's own pages, copied only when it is written to.

        The pages are read when they are first used and shared with the system's file cache.
        Replacing the file is safe, cutting it short while the tensor lives is not. Where it does
        not begin as torch's own tensors begin in memory, it is read instead: sums would round
        differently, and slower.
        """
        if math.prod(shape) == 0 or offset % ALIGNMENT:
            return self.copy(offset, dtype, shape)
        self._check(offset, dtype, shape)
        flat = torch.frombuffer(self.mapped(), dtype=dtype, count=math.prod(shape), offset=offset)
        return flat.view(tuple(shape))

    def copy(self, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """A tensor of its own, read without passing through a second copy."""
        self._check(offset, dtype, shape)
        tensor = torch.empty(tuple(shape), dtype=dtype)
        if tensor.numel():
            self.file.seek(offset)
            target = tensor.view(-1).view(torch.uint8).numpy().data
            if self.file.readinto(target) != target.nbytes:  # type: ignore[attr-defined]
                raise WeightsError(f"{self.path}: the file became shorter while it was read")
        return tensor

    def _check(self, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> None:
        """Readers check what a file claims; here nothing can reach beyond its end."""
        missing = offset + math.prod(shape) * dtype.itemsize - self.size
        if missing > 0:
            raise WeightsError(f"{self.path}: the file is cut: {missing} of its bytes are missing")
