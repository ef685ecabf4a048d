"""The device that a network runs on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from .errors import ImageError, InputError


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return an available device; by default a CUDA GPU if there is one, else the CPU.

    Raises:
        InputError: torch does not know the name, or this machine does not have the device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is not known; try cpu, cuda or cuda:1") from error
    try:
        if chosen.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=chosen)
    # torch asserts that it was built with CUDA, and some devices need extra modules
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used: {reason}") from error
    return chosen


def out_of_memory(error: BaseException) -> bool:
    """Tell whether Python, or torch on any device, ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # Messages of the CPU allocator, the C++ library and other parts of torch.
    told = r"can't allocate memory|std::bad_alloc|not enough memory|out of memory"
    return isinstance(error, RuntimeError) and re.search(told, str(error)) is not None


def too_small(error: BaseException) -> bool:
    """Tell whether a network rejected an image as too small."""
    return re.search("too small|Kernel size can't be greater than actual", str(error)) is not None


@contextlib.contextmanager
def image_errors(source: str, what: str, device: torch.device) -> Iterator[None]:
    """Raise ImageError if `what`, such as "8x8 pixels", exceeds the memory or is too small.

    The message begins with `source`. Other errors pass through.
    """
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as error:
        if out_of_memory(error):
            hint = "give a tile, or a smaller tile, max_size or batch_size"
            reason = f"too many for the memory of {device}; {hint}"
        elif too_small(error):
            reason = f"too few for the network: {' '.join(str(error).split())}"
        else:
            raise
        raise ImageError(f"{source}: {what} are {reason}") from error
