"""Checks that a data set can be trained on: every pair is readable, every class has pixels."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..errors import DatasetError, InputError, LabelError
from .classes import IGNORE_INDEX, ClassTable
from .folder import SegmentationDataset, count_pixels, shortened
from .images import IMAGE_EXTENSIONS
from .labels import stored_integers


class Findings(NamedTuple):
    """What `examine` found in a data set."""

    sizes: Counter[tuple[int, int]]  # pictures of each (width, height)
    pixels: np.ndarray  # of each label, int64 256; 255 is not a class
    faults: list[str]  # a line for each pair that cannot be used, beginning with the file


class _Examined(Dataset[Any]):
    """(size, pixels of each label, fault) of every sample."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any, str]:
        try:
            image, labels, _ = self.dataset[index]
        except (InputError, OSError) as error:
            return None, None, str(error)
        except MemoryError:
            return None, None, f"{self.dataset.samples[index][0]}: too large for the memory"
        return image.size, count_pixels(labels), ""


def examine(dataset: SegmentationDataset, workers: int = 0, progress: bool = False) -> Findings:
    """Read every pair of a data set without a transform, in `workers` processes (0: this one).

    `progress` shows a bar on stderr. InputError if a process was killed.
    """
    findings = Findings(Counter(), np.zeros(256, np.int64), [])
    items = _Examined(dataset)  # tuples, which `tuple` leaves alone
    loader = DataLoader(items, batch_size=None, num_workers=workers, collate_fn=tuple)
    with explained_workers(workers):
        for size, pixels, fault in tqdm(loader, unit="picture", disable=not progress):
            if fault:
                findings.faults.append(fault)
            else:
                findings.sizes[size] += 1
                findings.pixels[:] += pixels
    return findings


@contextlib.contextmanager
def explained_workers(workers: int) -> Iterator[None]:
    """Raise InputError, naming the flag, if one of a loader's processes died."""
    try:
        yield
    except RuntimeError as error:
        died = re.search(r"DataLoader worker .*?(killed by signal: \w+|exited)", str(error))
        if died is None:
            raise
        told = f"a process that reads pictures was lost ({died[1]}), maybe out of memory"
        raise InputError(f"--workers {workers}: {told}: give fewer workers") from error


def require_every_class(dataset: SegmentationDataset) -> None:
    """Read labels in random order until every class has been seen.

    DatasetError if one never is, or there is only one.
    """
    if len(dataset.table) == 1:
        raise DatasetError(without_pixels(dataset, np.ones(1)))
    pixels = np.zeros(256, np.int64)
    order = np.random.default_rng(0).permutation(len(dataset))
    hide = None if len(order) > 500 else True  # None: shown only on a terminal
    for index in tqdm(order, "looking for every class", unit="picture", leave=False, disable=hide):
        pixels += count_pixels(dataset.labels(int(index)))
        if pixels[: len(dataset.table)].all():
            return
    raise DatasetError(without_pixels(dataset, pixels))


def without_pixels(dataset: SegmentationDataset, pixels: np.ndarray) -> str:
    """Name the classes that have no pixel, or the only class, and what may be wrong, or ""."""
    if len(dataset.table) == 1:
        told = f"the only class is {dataset.table.names[0]!r}, so there is nothing to learn"
        return f"{dataset.samples[0][1].parent}: {told}; add a background class"
    missing = [name for name, n in zip(dataset.table.names, pixels, strict=False) if not n]
    if not missing:
        return ""
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    what = f"class {missing[0]!r}{more} has no pixel"
    if len(missing) == len(dataset.table):
        what = "the labels have no labeled pixel"
    return f"{dataset.samples[0][1].parent}: {what}; {_suggestion(dataset)}"


def _suggestion(dataset: SegmentationDataset) -> str:
    table = dataset.table
    if dataset.guessed:
        named = "name your own by --classes or dataset.json"
        return f"so these are not {table.name}'s classes: {named}"
    stored: set[int] = set()
    for _, path in dataset.samples[:20]:
        if path.suffix.lower() not in IMAGE_EXTENSIONS:
            return "is this the right class table?"
        with contextlib.suppress(LabelError):
            values = stored_integers(path)
            if values.ndim == 3:
                for k, color in enumerate(table.palette):
                    first = table.palette.index(color)
                    if first < k:
                        both = f"{table.names[first]!r} and {table.names[k]!r}"
                        return f"the labels are colors, and {both} have the same"
                return "the labels are colors: is this the right class table?"
            stored |= set(np.unique(values).tolist())
    values_seen = sorted(stored)
    are = f"the labels are {shortened(list(map(str, values_seen)))}"
    if len(values_seen) == len(table) and values_seen != list(range(len(table))):
        return f"{are}: add {_map_line(values_seen, table.names)} to the class table"
    if 0 not in stored and not table.has_map and 1 in stored:
        line = _map_line(range(len(table) + 1), ("void", *table.names))
        return f"the labels begin at 1: add {line} to the class table?"
    return f"{are}: is this the right class table?"


def _map_line(values: Iterable[int], names: Iterable[str]) -> str:
    """Write a label map as a line of JSON; the middle of a long one is left out."""
    parts = [f'"{value}": "{name}"' for value, name in zip(values, names, strict=True)]
    if len(parts) > 4:
        parts[2:-1] = ["..."]
    return f'"label_map": {{{", ".join(parts)}}}'


def share_lines(table: ClassTable, pixels: np.ndarray) -> list[str]:
    """Return a line for each class, and one for no class, with its share of all pixels."""
    total = max(int(pixels.sum()), 1)
    rows = [*zip(table.names, pixels, strict=False), ("(no class)", pixels[IGNORE_INDEX])]
    width, lines = max(len(name) for name, _ in rows), []
    for name, n in rows:
        share = f"{100 * n / total:.2f} %" if n / total >= 0.0001 else "<0.01 %" if n else "-"
        lines.append(f"  {name:<{width}}  {share:>7}")
    return lines
