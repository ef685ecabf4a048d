"""The CSV log of a run."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

COLUMNS = ("iteration", "epoch", "lr", "loss", "seconds", "val_mean_iu", "val_pixel_accuracy")


class Log:
    """Rows of `COLUMNS`; going on from an iteration drops the rows behind it."""

    def __init__(self, path: Path, iteration: int) -> None:
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [r for r in csv.DictReader(file) if _before(r, iteration)]
        fresh = path.with_suffix(".tmp")
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(fresh, path)
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
