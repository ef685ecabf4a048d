"""What a run shows as it goes: log.csv, a progress line, TensorBoard on request."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data import SegmentationDataset
from ..data.images import photo_tensor
from ..data.labels import colored
from ..errors import import_extra
from ..files import replacing
from ..models import FCN

COLUMNS = (
    *("iteration", "epoch", "lr", "loss", "seconds"),
    *("images_per_second", "loader_images_per_second", "memory_mib"),
    *("val_mean_iu", "val_pixel_accuracy"),
)
PICTURES = 3  # shown by TensorBoard for each validation


class Log:
    """The log of a run: log.csv, and with `tensorboard` its curves and some validated pictures.

    Resuming from an iteration drops the rows after it. InputError without the extra ``log``.
    """

    def __init__(self, folder: Path, iteration: int, tensorboard: bool = False) -> None:
        self.board: Any = None
        if tensorboard:
            told = "--log tensorboard needs TensorBoard"
            writer = import_extra("torch.utils.tensorboard", "log", told).SummaryWriter
            self.board = writer(str(folder), purge_step=iteration + 1)
        path, rows = folder / "log.csv", []
        if path.exists():
            with path.open(newline="") as file:
                # A killed run may have cut its last row.
                whole = [row for row in csv.DictReader(file) if None not in (*row, *row.values())]
            rows = [row for row in whole if int(row["iteration"]) <= iteration]
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self.seconds = float(rows[-1]["seconds"]) if rows else 0.0
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; columns without a value stay empty."""
        self._writer.writerow(row)
        self._file.flush()
        if self.board is not None:
            for name, value in row.items():
                if name not in ("iteration", "epoch", "seconds") and value != "":
                    self.board.add_scalar(name, float(value), row["iteration"])
            self.board.flush()

    @torch.no_grad()
    def show(self, model: FCN, dataset: SegmentationDataset, iteration: int) -> None:
        """Add a few pictures to the board, each as photo, truth and prediction side by side."""
        if self.board is None:
            return
        device = next(model.parameters()).device
        palette = dataset.table.palette
        for index in range(min(PICTURES, len(dataset))):
            image, truth, name = dataset[index]
            labels = model.predict(model.preprocess(photo_tensor(image).to(device)))
            parts = [image, colored(truth, palette), colored(labels[0].cpu().numpy(), palette)]
            picture = np.concatenate([np.asarray(part.convert("RGB")) for part in parts], 1)
            self.board.add_image(f"val/{name}", picture, iteration, dataformats="HWC")

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self.board is not None:
            self.board.close()


class Progress:
    """A bar on a terminal, plain lines elsewhere, nothing where `shown` is false."""

    def __init__(self, first: int, last: int, shown: bool) -> None:
        self.first, self.last, self.shown = first, last, shown
        self.started = time.perf_counter()
        on_terminal = shown and sys.stderr.isatty()
        self.bar = tqdm(total=last, initial=first, unit="it", disable=not on_terminal)

    def tell(self, iteration: int, loss: float | None, best: float | None, row: Any) -> None:
        """Show where the run is: the loss, the best mean IU, the images per second, time left."""
        facts = {"loss": "-" if loss is None else f"{loss:.4g}"}
        if best is not None:
            facts["best mean IU"] = f"{100 * best:.1f}"
        self.bar.set_postfix(facts)
        if self.shown and self.bar.disable:
            spent = time.perf_counter() - self.started
            left = spent / max(1, iteration - self.first) * (self.last - iteration)
            loader = row["loader_images_per_second"]
            facts["lr"] = row["lr"]
            facts["images/s"] = f"{row['images_per_second']} (loader {loader})"
            text = ", ".join(f"{name} {value}" for name, value in facts.items())
            print(f"{iteration}/{self.last}: {text}, left {tqdm.format_interval(left)}", flush=True)

    def say(self, text: str) -> None:
        """Print a line beside the bar."""
        if self.shown:
            tqdm.write(text)
            sys.stdout.flush()
