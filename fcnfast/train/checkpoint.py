"""What a run keeps on disk: checkpoints with everything that a resumed run needs, a CSV log."""

from __future__ import annotations

import csv
import os
import random
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..errors import WeightsError
from ..files import replacing

FORMAT = "fcnfast checkpoint 1"
COLUMNS = ("iteration", "epoch", "lr", "loss", "seconds", "val_mean_iu", "val_pixel_accuracy")


def random_states() -> dict[str, Any]:
    """Return every global random state, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = cast(
        tuple[str, np.ndarray, int, int, float], np.random.get_state(legacy=True)
    )
    version, internal, gauss_next = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }
    if torch.cuda.is_initialized():  # a run on a CPU leaves GPUs alone
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in states and torch.cuda.is_available():
        for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, index)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint next to its place, flush it to the disk, then put it there.

    Killed at any moment, `path` holds the old checkpoint or the new one.

    Raises:
        OSError: when it cannot be written; the old checkpoint stays.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's zip writer hides a full disk behind its own
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(f"{path}: the checkpoint cannot be written: {cause}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running anything in it.

    Raises:
        WeightsError: when the file is missing, damaged or not a checkpoint of fcnfast.
        OSError: when it cannot be read.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of pickles that it then refuses
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of any kind: the bytes may be anything
            raise WeightsError(
                f"{path}: cut, damaged, or not a checkpoint of fcnfast; nothing in it was run"
            ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WeightsError(f"{path}: not a checkpoint of fcnfast")
    return content


class Log:
    """The CSV log of a run; going on from an iteration drops the rows after it."""

    def __init__(self, path: Path, iteration: int) -> None:
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [r for r in csv.DictReader(file) if _before(r, iteration)]
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self.seconds = float(rows[-1]["seconds"]) if rows else 0.0
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")

    def write(self, **row: Any) -> None:
        """Append a row; columns without a value stay empty."""
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _before(row: dict[str, Any], iteration: int) -> bool:
    # A killed run may have cut its last row.
    whole = None not in row.values() and None not in row
    return whole and row["iteration"].isdigit() and int(row["iteration"]) <= iteration
