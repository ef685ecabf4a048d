"""Checkpoints that hold everything to go on, and are whole or not there at all."""

from __future__ import annotations

import os
import pickle
import random
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..errors import WeightsError

FORMAT = "fcnfast checkpoint 1"


def random_states() -> dict[str, Any]:
    """Every global random state, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = cast(
        tuple[str, np.ndarray, int, int, float], np.random.get_state(legacy=True)
    )
    version, internal, gauss_next = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states["torch"])
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint next to its place, flush it to the disk, then put it there.

    Killed at any moment, `path` holds the old checkpoint or the new one.

    Raises:
        OSError: when it cannot be written; the old checkpoint stays.
    """
    descriptor, name = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # torch's zip writer reports a full disk so
            raise OSError(f"{path}: the checkpoint cannot be written: {error}") from error
        raise


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is ever run.

    Raises:
        WeightsError: when the file is missing, damaged or no checkpoint of fcnfast.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: damaged or not a checkpoint of fcnfast: {first}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WeightsError(f"{path}: not a checkpoint of fcnfast")
    return content


def clear_unfinished(folder: Path, name: str) -> None:
    """Remove what a write that was killed left behind."""
    for leftover in folder.glob(f"{name}*.tmp"):
        leftover.unlink(missing_ok=True)
