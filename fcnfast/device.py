"""The device that a network runs on."""

from __future__ import annotations

import torch

from .errors import InputError


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return a device that is there; by default a CUDA GPU if there is one, else the CPU.

    Raises:
        InputError: a name that torch does not know, or a device that this machine does not have.
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
    # torch asserts that it was built with CUDA, and imports what some devices need
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used: {reason}") from error
    return chosen
