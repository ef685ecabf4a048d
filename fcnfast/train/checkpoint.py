"""Checkpoints: everything that a resumed run needs, in one file."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from ..errors import WeightsError
from ..files import replacing

FORMAT = "fcnfast checkpoint 2"
# The files of a run: the checkpoint, and the weights of the last and the best validation.
CHECKPOINT, LAST, BEST = "checkpoint.pt", "last.safetensors", "best.safetensors"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically and flush it; after an OSError the old one remains."""
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's zip writer hides a full disk behind its own error
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(f"{path}: the checkpoint cannot be written: {cause}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running anything in it; WeightsError if it is not one."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of pickles that it then refuses
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # the bytes may be anything, and so may the error
            raise WeightsError(
                f"{path}: cut, damaged, or not a checkpoint of fcnfast; nothing in it was run"
            ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WeightsError(f"{path}: not a checkpoint of this release of fcnfast")
    return content
