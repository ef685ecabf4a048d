"""Score a network, or a folder of label pictures, against the truth: one matrix for a data set."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .data.classes import IGNORE_INDEX
from .data.folder import Sample, SegmentationDataset, main_labels, shortened
from .data.images import photo_tensor, shrink
from .data.labels import read_labels
from .device import refusal
from .errors import DatasetError, ImageError, LabelError
from .files import PathLike
from .metrics import ConfusionMatrix
from .models import FCN
from .ops import upsample_argmax, upsample_confusion

Each = Callable[[Sample, np.ndarray], None]


class Dataset(Protocol):
    """Samples by index, such as a `SegmentationDataset` without a transform."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int, /) -> Sample:
        """Return one sample; its labels have the picture's size, 255 for none.

        Of labels for several heads, H×W×K, the first counts.
        """


def evaluate_model(
    model: FCN,
    dataset: Dataset,
    *,
    batch_size: int = 1,
    max_size: int | None = None,
    progress: bool = False,
    each: Each | None = None,
) -> ConfusionMatrix:
    """Label every picture of a data set at a single scale and count all its pixels.

    Args:
        model: a network, on any device; it is in evaluation mode while this runs, and afterwards
            as it was.
        dataset: the pictures and their true labels.
        batch_size: up to so many neighboring pictures of one size go through together. Nothing
            is padded, so that the labels do not depend on it.
        max_size: longest side that the network sees; labels are made, and counted, at the
            pictures' own size.
        progress: show a bar on stderr.
        each: called with every sample and its predicted labels, uint8 H×W.

    Raises:
        DatasetError: a data set without samples, or with other classes.
        ValueError: `batch_size` or `max_size` below 1.
        ImageError, LabelError: a damaged file, or a picture too small for the network or too large
            for the memory.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    _check_classes(model, dataset)
    device = next(model.parameters()).device
    classes = model.num_classes
    matrix = ConfusionMatrix(classes)
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    was_training = model.training
    model.eval()
    try:
        # no_grad, not inference_mode: training goes on with the same network afterwards.
        with torch.no_grad(), tqdm(total=len(dataset), unit="image", disable=not progress) as bar:
            for group in _groups(_samples(dataset), batch_size):
                images = [shrink(sample.image, max_size) for sample in group]
                _count(model, images, group, device, counts, each)
                bar.update(len(group))
    finally:
        model.train(was_training)
    matrix.matrix += counts.cpu().numpy()
    return matrix


def _count(
    model: FCN,
    images: Sequence[Image.Image],
    group: Sequence[Sample],
    device: torch.device,
    counts: torch.Tensor,
    each: Each | None,
) -> None:
    """Add pictures of one size to the counts; name them when the network cannot take them."""
    labels = torch.from_numpy(np.stack([main_labels(sample.labels) for sample in group])).to(device)
    try:
        pixels = model.preprocess(torch.cat([photo_tensor(image) for image in images]).to(device))
        if device.type == "cpu":  # convolutions are a quarter faster so
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        scores, grid = model.score_maps(pixels, ("out",))["out"]
    except (MemoryError, RuntimeError, ValueError) as error:
        width, height = images[0].size
        reason = refusal(error, f"{width}x{height} pixels", device)
        if reason is None:
            raise
        raise ImageError(f"{group[0].name}: {reason}") from error
    grid = grid.rescaled(_size(group[0]))
    upsample_confusion(scores, labels, grid, out=counts)
    if each is not None:
        for sample, guess in zip(group, upsample_argmax(scores, grid).cpu().numpy(), strict=True):
            each(sample, guess)


def evaluate_folder(
    predictions: PathLike,
    dataset: SegmentationDataset,
    *,
    progress: bool = False,
    each: Each | None = None,
) -> ConfusionMatrix:
    """Score label pictures that any program has written.

    Args:
        predictions: a folder with ``NAME.png`` for every picture of the data set: palette indices
            or gray values 0 to C - 1, or colors of the palette, of the picture's size. Other files
            are ignored.
        dataset: the true labels.
        progress: show a bar on stderr.
        each: called with every sample and its predicted labels, uint8 H×W.

    Raises:
        DatasetError: no such folder, or predictions are missing; they are named.
        LabelError: a prediction that is damaged, of another size, or that has values that are
            not classes, or no class where the truth has one.
    """
    paths = _prediction_paths(Path(predictions), dataset.names)
    matrix = ConfusionMatrix(len(dataset.table))
    # Predictions are labels 0 to C - 1, whatever integers the true labels are stored as.
    plain = replace(dataset.table, void_values=(IGNORE_INDEX,), label_map=())
    for index, path in enumerate(tqdm(paths, unit="image", disable=not progress)):
        truth = main_labels(dataset.labels(index))
        guess = read_labels(path, plain, size=(truth.shape[0], truth.shape[1]))
        nothing = int(((guess == IGNORE_INDEX) & (truth != IGNORE_INDEX)).sum())
        if nothing:
            raise LabelError(f"{path}: no class in {nothing} pixels where the truth has one")
        matrix.update(truth, guess)
        if each is not None:
            each(dataset[index], guess)
    return matrix


def scores_as_json(matrix: ConfusionMatrix, names: Sequence[str]) -> dict[str, Any]:
    """Return the scores as fractions, and the confusion matrix, as JSON values; None for NaN."""
    scores = matrix.scores()

    def number(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    return {
        "pixel_accuracy": number(scores.pixel_accuracy),
        "mean_accuracy": number(scores.mean_accuracy),
        "mean_iu": number(scores.mean_iu),
        "fw_iu": number(scores.fw_iu),
        "classes": {
            name: {"iu": number(iu), "accuracy": number(accuracy)}
            for name, iu, accuracy in zip(names, scores.iu, scores.accuracy, strict=True)
        },
        "confusion": matrix.matrix.tolist(),
    }


def _check_classes(model: FCN, dataset: Dataset) -> None:
    """Refuse a data set that is empty or has another number of classes than the network."""
    if len(dataset) == 0:
        raise DatasetError("the data set has no pictures")
    table = getattr(dataset, "table", None)
    if table is not None and len(table) != model.num_classes:
        raise DatasetError(
            f"the network has {model.num_classes} classes, the data set's table "
            f"{table.name!r} has {len(table)}"
        )
    own = getattr(model, "table", None)
    if table is not None and own is not None and table.names != own.names:
        moved = [name for name, other in zip(table.names, own.names, strict=True) if name != other]
        if set(table.names) == set(own.names):
            raise DatasetError(
                f"the network and the data set's table {table.name!r} have the same classes in "
                f"another order, beginning with {moved[0]!r}"
            )


def _samples(dataset: Dataset) -> Iterator[Sample]:
    """Yield all samples in order."""
    for index in range(len(dataset)):
        yield dataset[index]


def _size(sample: Sample) -> tuple[int, int]:
    """Return (height, width)."""
    return sample.image.height, sample.image.width


def _groups(samples: Iterable[Sample], most: int) -> Iterator[list[Sample]]:
    """Yield neighboring samples of one size together, at most so many."""
    group: list[Sample] = []
    for sample in samples:
        if group and (len(group) == most or _size(sample) != _size(group[0])):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _prediction_paths(folder: Path, samples: Sequence[str]) -> list[Path]:
    """Return the label picture for every sample, or name what is missing."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder with predictions")
    found = {unicodedata.normalize("NFC", name): name for name in os.listdir(folder)}
    names = [unicodedata.normalize("NFC", f"{name}.png") for name in samples]
    missing = [name for name in names if name not in found]
    if missing:
        raise DatasetError(f"{folder}: no prediction {shortened(missing, 3)}")
    return [folder / found[name] for name in names]
