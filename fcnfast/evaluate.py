"""Score a network or a folder of label pictures: one confusion matrix for a data set."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from .data.classes import IGNORE_INDEX
from .data.folder import Sample, SegmentationDataset, main_labels, nfc, shortened
from .data.images import check_positive, shrink
from .data.labels import read_labels
from .device import image_errors
from .errors import DatasetError, LabelError
from .files import PathLike
from .inference import Views, blended_labels, coarse_scores, neighbors
from .metrics import ConfusionMatrix, keep_trimap
from .models import FCN
from .ops import upsample_argmax, upsample_confusion

Each = Callable[[Sample, np.ndarray], None]


class Dataset(Protocol):
    """Samples by index, such as a `SegmentationDataset` without a transform.

    Of labels for several heads, H×W×K, only the first head's count.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


def evaluate_model(
    model: FCN,
    dataset: Dataset,
    *,
    batch_size: int = 1,
    trimap: int | None = None,
    progress: bool = False,
    each: Each | None = None,
    **views: Any,
) -> ConfusionMatrix:
    """Label every picture of a data set at its own size and count all its pixels.

    Args:
        model: a network on any device, in evaluation mode while this runs.
        dataset: the pictures and their true labels.
        batch_size: the most neighboring pictures of one size that go through together, unpadded,
            if nothing is blended. The labels do not depend on it.
        trimap: also count the pixels within this distance of a true border (see `ConfusionMatrix`).
        progress: show a bar on stderr.
        each: called with every sample and its predicted labels, uint8 H×W.
        views: `max_size` (no limit by default), `tile`, `overlap`, `scales` and `flip`, as in a
            call of `fcnfast.Segmenter`.

    DatasetError if the data set is empty, or its classes are not the network's; TypeError or
    ValueError if a number is out of range; ImageError or LabelError if a file is damaged, or a
    picture is too small for the network or too large for the memory.

    Example:
        >>> scene = fcnfast.data.demo_scene()
        >>> matrix = fcnfast.evaluate_model(fcnfast.load_model(), [scene])
        >>> round(matrix.scores().pixel_accuracy, 1)
        0.8
    """
    check_positive("batch_size", batch_size)
    seen = Views(**views)
    _check_classes(model, dataset)
    matrix = ConfusionMatrix(model.num_classes, trimap=trimap)
    matrices = [matrix] if matrix.trimap is None else [matrix, matrix.trimap]
    device = next(model.parameters()).device
    counts = [torch.zeros_like(torch.from_numpy(part.matrix), device=device) for part in matrices]
    samples = (_sample(dataset, n) for n in range(len(dataset)))
    was_training = model.training
    model.eval()
    try:
        # no_grad, not inference_mode: the same network may be trained further afterwards.
        with torch.no_grad(), tqdm(total=len(dataset), unit="image", disable=not progress) as bar:
            for group in neighbors(samples, lambda sample: sample.image.size, batch_size):
                _count(model, group, seen, matrix, counts, each)
                bar.update(len(group))
    finally:
        model.train(was_training)
    for part, count in zip(matrices, counts, strict=True):
        part.matrix += count.cpu().numpy()
    return matrix


def _sample(dataset: Dataset, index: int) -> Sample:
    sample = dataset[index]
    if not (hasattr(sample, "image") and hasattr(sample, "labels")):
        found = f"must be a Sample, not a {type(sample).__name__}"
        told = "fcnfast.data.wrap_dataset makes them of (image, labels)"
        raise TypeError(f"item {index} of the data set {found}; {told}")
    return sample


def _count(
    model: FCN,
    group: Sequence[Sample],
    views: Views,
    matrix: ConfusionMatrix,
    counts: Sequence[torch.Tensor],
    each: Each | None,
) -> None:
    """Add pictures of one size to `counts` on the device, or to `matrix` if they are blended."""
    size, truths = group[0].image.size[::-1], [main_labels(sample.labels) for sample in group]
    guesses: Iterable[np.ndarray] = ()
    if views.single(size):
        images = [shrink(sample.image, views.max_size) for sample in group]
        what = f"{images[0].width}x{images[0].height} pixels"
        with image_errors(group[0].name, what, counts[0].device):
            scores, grid = coarse_scores(model, images, size)
        truth = torch.from_numpy(np.stack(truths)).to(scores.device)
        for out in counts:  # of all pixels, then of those in the trimap
            upsample_confusion(scores, truth, grid, out=out)
            truth = keep_trimap(truth, matrix.trimap_width) if matrix.trimap else truth
        if each is not None:
            guesses = upsample_argmax(scores, grid).cpu().numpy()
    else:
        guesses = [blended_labels(model, one.image, views, one.name)[0] for one in group]
        matrix.update(np.stack(truths), np.stack(guesses))
    if each is not None:
        for sample, guess in zip(group, guesses, strict=True):
            each(sample, guess)


def evaluate_folder(
    predictions: PathLike,
    dataset: SegmentationDataset,
    *,
    trimap: int | None = None,
    progress: bool = False,
    each: Each | None = None,
) -> ConfusionMatrix:
    """Score label pictures written by any program; options as in `evaluate_model`.

    The folder `predictions` has ``NAME.png`` for every picture of the data set: palette indices or
    gray values 0 to C - 1, or colors of the palette, of the picture's size. DatasetError if one is
    missing; LabelError if one is damaged, has the wrong size or values that are not classes, or
    has no class where the truth has one.

    Example:
        >>> dataset = fcnfast.open_dataset("camvid", "CamVid", "val")
        >>> fcnfast.evaluate_folder("out/labels", dataset).scores().mean_iu  # of the truth itself
        1.0
    """
    folder = Path(predictions)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder with predictions")
    found = {nfc(name): folder / name for name in os.listdir(folder)}
    names = [nfc(f"{name}.png") for name in dataset.names]
    missing = [name for name in names if name not in found]
    if missing:
        raise DatasetError(f"{folder}: no prediction {shortened(missing, 3)}")
    matrix = ConfusionMatrix(len(dataset.table), trimap=trimap)
    # Predictions are labels 0 to C - 1, regardless of how the true labels are stored.
    plain = replace(dataset.table, void_values=(IGNORE_INDEX,), label_map=())
    for index, name in enumerate(tqdm(names, unit="image", disable=not progress)):
        truth, path = main_labels(dataset.labels(index)), found[name]
        guess = read_labels(path, plain, truth.shape)
        nothing = int(((guess == IGNORE_INDEX) & (truth != IGNORE_INDEX)).sum())
        if nothing:
            raise LabelError(f"{path}: no class in {nothing} pixels where the truth has one")
        matrix.update(truth, guess)
        if each is not None:
            each(dataset[index], guess)
    return matrix


def evaluate_oracle(
    dataset: SegmentationDataset,
    factors: Sequence[int] = (128, 64, 32, 16, 8, 4),
    *,
    trimap: int | None = None,
    progress: bool = False,
) -> dict[int, ConfusionMatrix]:
    """Score the true labels downsampled and upsampled again: the upper bound of each stride.

    All pixels of a cell of factor×factor pixels get its most frequent class (the first on a tie;
    void does not count). The paper gives such bounds for PASCAL VOC (arXiv v2, appendix A), but
    does not say how they were sampled. No picture is read.

    Returns a matrix for each factor. TypeError or ValueError for a factor or a width that is not a
    positive integer; LabelError for labels that cannot be used.
    """
    for factor in factors:
        check_positive("factors", factor)
    classes = len(dataset.table)
    matrices = {factor: ConfusionMatrix(classes, trimap=trimap) for factor in factors}
    for index in tqdm(range(len(dataset)), unit="image", disable=not progress):
        truth = main_labels(dataset.labels(index))
        valid = truth != IGNORE_INDEX
        for factor, matrix in matrices.items():
            rows, columns = (np.arange(n) // factor for n in truth.shape)
            cells = rows[:, None] * (columns[-1] + 1) + columns
            pairs, count = cells[valid] * classes + truth[valid], cells[-1, -1] + 1
            counts = np.bincount(pairs, minlength=count * classes).reshape(-1, classes)
            matrix.update(truth, counts.argmax(1).astype(np.uint8)[cells])
    return matrices


def scores_as_json(matrix: ConfusionMatrix, names: Sequence[str]) -> dict[str, Any]:
    """Return the scores as fractions, and the confusion matrix, as JSON values; None for NaN."""
    scores = matrix.scores()

    def number(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    kinds = {"iu": scores.iu, "accuracy": scores.accuracy, "dice": scores.dice}
    found = {
        "pixel_accuracy": number(scores.pixel_accuracy),
        **{f"mean_{kind}": number(getattr(scores, f"mean_{kind}")) for kind in kinds},
        "fw_iu": number(scores.fw_iu),
        "classes_in_mean": {kind: int(np.isfinite(values).sum()) for kind, values in kinds.items()},
        "classes": {
            name: {kind: number(values[k]) for kind, values in kinds.items()}
            for k, name in enumerate(names)
        },
        "confusion": matrix.matrix.tolist(),
    }
    if matrix.trimap is not None:
        found["trimap"] = {"width": matrix.trimap_width, **scores_as_json(matrix.trimap, names)}
    return found


def _check_classes(model: FCN, dataset: Dataset) -> None:
    if len(dataset) == 0:
        raise DatasetError("the data set has no pictures")
    table = getattr(dataset, "table", None)
    if table is None:
        return
    if len(table) != model.num_classes:
        told = f"the data set's table {table.name!r} has {len(table)}"
        raise DatasetError(f"the network has {model.num_classes} classes, {told}")
    own = getattr(model, "table", None)
    if own and table.names != own.names and {*table.names} == {*own.names}:
        moved = next(n for n, k in zip(table.names, own.names, strict=True) if n != k)
        order = f"the same classes in a different order, beginning with {moved!r}"
        raise DatasetError(f"the network and the data set's table {table.name!r} have {order}")
