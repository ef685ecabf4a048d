"""The metrics of the FCN paper and Dice, from one confusion matrix over a whole data set.

With n_ij the pixels of true class i labeled j, t_i = Σ_j n_ij, and C classes:

    pixel accuracy           Σ_i n_ii / Σ_i t_i
    mean accuracy            1/C Σ_i n_ii / t_i
    mean IU                  1/C Σ_i n_ii / (t_i + Σ_j n_ji - n_ii)
    frequency-weighted IU    Σ_i t_i n_ii / (t_i + Σ_j n_ji - n_ii) / Σ_k t_k
    mean Dice (F1)           1/C Σ_i 2 n_ii / (t_i + Σ_j n_ji)

(Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", section 5).
The formulas do not say how a class without pixels counts; see `ConfusionMatrix.scores`.
A trimap restricts them to a band along the true borders (Kohli, Ladický, Torr, "Robust Higher Order
Potentials for Enforcing Label Consistency", IJCV 2009).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

_IGNORE_INDEX = 255

Absent = Literal["union", "truth", "zero"]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores as fractions of 1; NaN where there is nothing to score.

    `iu`, `accuracy` and `dice` (F1) are float64 of length C, NaN for a class that does not count;
    the means skip such classes.
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    fw_iu: float
    iu: np.ndarray
    accuracy: np.ndarray
    mean_dice: float
    dice: np.ndarray


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


class ConfusionMatrix:
    """Counts of (true class, predicted class) over any number of label maps.

    Args:
        num_classes: C, 1 to 255; ValueError for others.
        ignore_index: the true label of pixels that are not counted; TypeError if not an integer.
        trimap: also keep a matrix of the pixels within this distance, at least 1, of a different
            true label (see `keep_trimap`).

    Attributes:
        matrix: int64 C×C, rows truth, columns prediction.
        trimap: the matrix of the pixels near a border; None if not requested.
        trimap_width: the argument `trimap`; 0 if not given.
    """

    def __init__(
        self, num_classes: int, ignore_index: int = _IGNORE_INDEX, trimap: int | None = None
    ) -> None:
        if not _is_whole(num_classes) or not 1 <= num_classes <= _IGNORE_INDEX:
            raise ValueError(f"num_classes must be an integer, 1 to 255, not {num_classes!r}")
        if not _is_whole(ignore_index):
            raise TypeError(f"ignore_index must be an integer, not {ignore_index!r}")
        self.ignore_index = int(ignore_index)
        self.num_classes = num_classes
        self.matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
        self.trimap_width = trimap or 0
        if trimap is not None and not (_is_whole(trimap) and trimap >= 1):
            raise ValueError(f"trimap must be a positive integer, not {trimap!r}")
        self.trimap = None if trimap is None else ConfusionMatrix(num_classes)

    def update(
        self, target: np.ndarray | torch.Tensor, prediction: np.ndarray | torch.Tensor
    ) -> None:
        """Add the pixels of label maps: integers of one shape, [N×]H×W for a trimap.

        Raises:
            TypeError: labels that are not integers.
            ValueError: unequal shapes; a true label that is neither a class nor `ignore_index`; a
                predicted label that is not a class where the truth is one. Nothing is added then.
        """
        truth = _labels(target, "target", self.ignore_index)
        guess = _labels(prediction, "prediction")
        if truth.shape != guess.shape:
            raise ValueError(f"target has shape {truth.shape} but the prediction has {guess.shape}")
        if self.trimap is not None and truth.ndim not in (2, 3):
            raise ValueError(f"a trimap needs labels H×W or N×H×W, not {truth.shape}")
        # All 256×256 pairs are counted in one pass without a mask; invalid ones show up there.
        pairs = truth.astype(np.uint16) << 8 | guess
        joint = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
        self._refuse(joint[:_IGNORE_INDEX].sum(axis=1), "target")
        self._refuse(joint[: self.num_classes].sum(axis=0), "prediction")
        self.matrix += joint[: self.num_classes, : self.num_classes]
        if self.trimap is not None:
            near = keep_trimap(torch.from_numpy(truth.copy()), self.trimap_width)
            self.trimap.update(near, guess)

    def _refuse(self, counts: np.ndarray, what: str) -> None:
        bad = np.flatnonzero(counts[self.num_classes :])
        if bad.size:
            value = self.num_classes + int(bad[0])
            extra = f", or {self.ignore_index} to ignore" if what == "target" else ""
            told = f"is not a class (0 to {self.num_classes - 1}{extra})"
            raise ValueError(f"{what}: value {value} (pixels: {counts[value]}) {told}")

    def scores(self, absent: Absent = "union") -> Scores:
        """Return the metrics of the pixels seen so far; `absent` says what the means are over.

        "union": mean IU and Dice over the classes in the truth or in the prediction, mean accuracy
        over those in the truth (the paper's own code); "truth": all means over the classes in the
        truth (the paper, for SIFT Flow); "zero": all means over all classes, absent ones counting
        as 0. ValueError for any other.
        """
        if absent not in ("union", "truth", "zero"):
            raise ValueError(f'absent must be "union", "truth" or "zero", not {absent!r}')
        counts = self.matrix.astype(np.float64)
        correct, truth = np.diag(counts), counts.sum(axis=1)
        union = truth + counts.sum(axis=0) - correct

        def ratio(denominator: np.ndarray, where: np.ndarray, fill: float) -> np.ndarray:
            return np.divide(correct, denominator, out=np.full(len(correct), fill), where=where)

        # Fill values: 0 keeps an absent class in a mean, NaN leaves it out.
        fill = 0.0 if absent == "zero" else np.nan
        accuracy = ratio(truth, truth > 0, fill)
        iu = ratio(union, truth > 0 if absent == "truth" else union > 0, fill)
        dice = 2 * iu / (1 + iu)
        total = truth.sum()
        weighted = truth * ratio(union, union > 0, 0.0)
        right, fw_iu = (float(x.sum() / total) if total else np.nan for x in (correct, weighted))
        means = _mean(accuracy), _mean(iu)
        return Scores(right, *means, fw_iu, iu, accuracy, _mean(dice), dice)


def keep_trimap(target: torch.Tensor, width: int) -> torch.Tensor:
    """Return labels [N×]H×W with 255 in all pixels farther than `width` from a different label.

    The distance is the larger of rows and columns. Void (255) is a label here: the rim of void
    around the objects of PASCAL VOC is a border, though its own pixels do not count.
    """
    planes = target.float().reshape(-1, *target.shape[-2:])
    width = min(width, max(target.shape[-2:]))
    around = 2 * width + 1

    def highest(values: torch.Tensor) -> torch.Tensor:
        values = F.max_pool2d(values, (around, 1), 1, (width, 0))
        return F.max_pool2d(values, (1, around), 1, (0, width))

    alone = highest(planes) == -highest(-planes)
    return target.masked_fill(alone.view(target.shape), _IGNORE_INDEX)


def _labels(
    labels: np.ndarray | torch.Tensor, what: str, ignore_index: int = _IGNORE_INDEX
) -> np.ndarray:
    """Return labels as uint8, 255 for those to ignore; reject values that do not fit."""
    values = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else labels
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"{what} must hold integers, not {values.dtype}")
    if values.dtype == np.uint8 and ignore_index == _IGNORE_INDEX:
        return values
    ignored = values == ignore_index
    outside = ~ignored & ((values < 0) | (values > 255 - (ignore_index != _IGNORE_INDEX)))
    if outside.any():
        value = int(values[outside].flat[0])
        count = (values == value).sum()
        raise ValueError(f"{what}: value {value} (pixels: {count}) is not a label")
    return np.where(ignored, _IGNORE_INDEX, values).astype(np.uint8)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def format_scores(matrix: ConfusionMatrix, names: Sequence[str]) -> str:
    """Format all scores in percent: a line for each class, then the metrics over all classes.

    A class that does not count shows "-", and each mean says how many classes it is over.
    ValueError unless there is one name for each class.
    """
    if len(names) != matrix.num_classes:
        raise ValueError(f"{len(names)} names for {matrix.num_classes} classes")
    scores = matrix.scores()
    columns = {"IU": scores.iu, "accuracy": scores.accuracy, "Dice": scores.dice}
    if matrix.trimap is not None:
        columns["trimap IU"] = matrix.trimap.scores().iu
    shown = [map(percent, values) for values in columns.values()]
    totals = _totals(matrix)
    width = max(len(text) for text in (*names, *(total[0] for total in totals)))
    lines = [*_table([("class".ljust(width), *columns), *zip(names, *shown, strict=True)]), ""]
    for label, value, counted in totals:
        over = "" if counted is None else f"  over {_of(counted)} classes"
        lines.append(f"{label:<{width}}  {percent(value):>6}{over}")
    return "\n".join(lines)


def format_oracle(matrices: Mapping[int, ConfusionMatrix]) -> str:
    """Format upper bounds by factor as a table in percent; "classes" are those of the mean IU."""
    rows, totals = [], _totals(next(iter(matrices.values())))
    for factor, matrix in matrices.items():
        values = [percent(total[1]) for total in _totals(matrix)]
        rows.append([str(factor), *values, _of(matrix.scores().iu)])
    return "\n".join(_table([["factor", *(total[0] for total in totals), "classes"], *rows]))


def _totals(matrix: ConfusionMatrix) -> list[tuple[str, float, np.ndarray | None]]:
    """Return the metrics over all classes: name, value and, for a mean, the values it is over."""
    scores = matrix.scores()
    totals: list[tuple[str, float, np.ndarray | None]] = [
        ("pixel accuracy", scores.pixel_accuracy, None),
        ("mean accuracy", scores.mean_accuracy, scores.accuracy),
        ("mean IU", scores.mean_iu, scores.iu),
        ("frequency-weighted IU", scores.fw_iu, None),
        ("mean Dice", scores.mean_dice, scores.dice),
    ]
    if matrix.trimap is not None:
        near = matrix.trimap.scores()
        totals.append((f"mean IU, trimap of {matrix.trimap_width} px", near.mean_iu, near.iu))
    return totals


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the columns of a table, the first to the left and the others to the right."""
    widths = [max(6, *map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def _of(values: np.ndarray) -> str:
    """Say how many classes a mean is over, as "k of C" if not all."""
    counted = int(np.isfinite(values).sum())
    return str(counted) if counted == len(values) else f"{counted} of {len(values)}"


def percent(value: float | None) -> str:
    """Write a fraction as percent with one decimal, NaN and None as a dash."""
    return "-" if value is None or np.isnan(value) else f"{100 * value:.1f}"
