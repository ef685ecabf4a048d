"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ._version import __version__
from .data.classes import IGNORE_INDEX, ClassTable
from .data.folder import Sample, main_labels
from .data.images import shrink
from .data.labels import colored
from .files import PathLike, write_bytes
from .metrics import ConfusionMatrix, percent

KEPT = 6
"""How many of the best and of the worst pictures a page shows."""

SIDE = 320  # longest side of a picture on the page, pixels
_WRONG, _FADED = (214, 40, 40), (236, 238, 242)
_NAMED_CELLS = 24  # the matrix shows its numbers for at most this many classes
_CONFUSIONS = 10


def clean(text: str) -> str:
    """Escape a text for HTML; unprintable characters become a replacement character."""
    return html.escape("".join(c if c.isprintable() else "\ufffd" for c in text))


class Shown(NamedTuple):
    """One picture: its name, its scores, and photo, truth, prediction, error as data URIs."""

    name: str
    mean_iu: float
    accuracy: float
    pictures: dict[str, str]


class Gallery:
    """The `kept` best and worst pictures by mean IU over the classes of their true labels."""

    def __init__(self, table: ClassTable, kept: int = KEPT) -> None:
        self.table, self.kept, self.count = table, kept, 0
        self._shown: list[tuple[tuple[float, int], Shown]] = []  # from the best to the worst

    def add(self, sample: Sample, labels: np.ndarray) -> None:
        """Add a picture and its predicted labels, uint8 H×W; one with no true label is ignored."""
        truth = main_labels(sample.labels)
        matrix = ConfusionMatrix(len(self.table))
        matrix.update(truth, labels)
        scores = matrix.scores("truth")
        if np.isnan(scores.mean_iu):
            return
        self.count += 1
        rank = (scores.mean_iu, -self.count)  # on a tie the later one is worse
        full, middle = len(self._shown) == 2 * self.kept, self._shown[self.kept - 1 : self.kept + 1]
        if full and middle[0][0] > rank > middle[1][0]:
            return
        pictures = self._pictures(sample.image, truth, labels)
        shown = Shown(sample.name, scores.mean_iu, scores.pixel_accuracy, pictures)
        self._shown = sorted([*self._shown, (rank, shown)], reverse=True)
        del self._shown[self.kept : -self.kept]

    def best_and_worst(self) -> tuple[list[Shown], list[Shown]]:
        """Return the best, best first, and the worst, worst first; no picture is in both."""
        shown, half = [shown for _, shown in self._shown], (len(self._shown) + 1) // 2
        return shown[:half], shown[half:][::-1]

    def _pictures(
        self, image: Image.Image, truth: np.ndarray, labels: np.ndarray
    ) -> dict[str, str]:
        """Draw a picture at small size: photo, truth, prediction, and the wrong pixels in red."""
        photo = shrink(image, SIDE).convert("RGB")
        seen, guess, wrong = (
            np.asarray(Image.fromarray(values).resize(photo.size, Image.Resampling.NEAREST))
            for values in (truth, labels, (truth != labels).astype(np.uint8))
        )
        faded = Image.blend(photo.convert("L"), Image.new("L", photo.size, 255), 0.5)
        error = np.array(faded.convert("RGB"))
        error[wrong > 0] = _WRONG
        error[seen == IGNORE_INDEX] = _FADED
        palette = [*self.table.palette, *[_FADED] * (256 - len(self.table))]
        truth_map, guess_map = (_uri(colored(values, palette), "PNG") for values in (seen, guess))
        pictures = {"photo": _uri(photo), "truth": truth_map, "prediction": guess_map}
        return pictures | {"error": _uri(Image.fromarray(error))}


def _uri(image: Image.Image, kind: str = "JPEG") -> str:
    options: dict[str, Any] = {"quality": 80} if kind == "JPEG" else {"optimize": True}
    content = io.BytesIO()
    image.save(content, kind, **options)
    text = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}"


def _title(key: str) -> str:
    words = {"iu": "IU", "fw": "frequency-weighted"}
    return " ".join(words.get(word, word) for word in key.split("_"))


def _tiles(scores: Mapping[str, Any]) -> str:
    classes = scores["classes"].values()
    parts = []
    for key, value in scores.items():
        if value is None or isinstance(value, float):
            counted = [c for c in classes if c.get(key.removeprefix("mean_"), 0) is not None]
            note = f"<small>over {len(counted)} of {len(classes)} classes</small>"
            note = note if len(counted) < len(classes) else ""
            parts.append(f"<div><b>{percent(value)}</b><span>{_title(key)}</span>{note}</div>")
    return f'<div class="tiles">{"".join(parts)}</div>'


def _classes(scores: Mapping[str, Any], table: ClassTable) -> str:
    """The table of the classes, with a bar for IU; a click on a header sorts it."""
    classes = scores["classes"]
    columns = list(next(iter(classes.values())))
    pixels = np.array(scores["confusion"], dtype=np.int64).sum(axis=1)
    heads = ["class", *(f"{_title(column)}, %" for column in columns), "share, %"]
    rows = []
    for index, (name, values) in enumerate(classes.items()):
        dot = f'<i class="dot" style="background:#{bytes(table.palette[index]).hex()}"></i>'
        cells = [f'<td data-v="{index}">{dot}{clean(name)}</td>']
        for column, value in values.items():
            bar = ""
            if column == "iu" and value is not None:
                bar = f'<i class="bar"><i style="width:{100 * value:.1f}%"></i></i>'
            sort = -1 if value is None else value
            cells.append(f'<td class="n" data-v="{sort}">{bar}<span>{percent(value)}</span></td>')
        share = pixels[index] / max(1, pixels.sum())
        cells.append(f'<td class="n" data-v="{pixels[index]}">{100 * share:.2f}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f'<th scope="col"><button>{text}</button></th>' for text in heads)
    body = "\n".join(["<tbody>", *rows, "</tbody></table></div>"])
    return f'<div class="wide"><table id="classes"><thead><tr>{head}</tr></thead>{body}'


def _matrix(counts: np.ndarray, names: Sequence[str]) -> str:
    """The confusion matrix as a heat map: each row in shares of the class's true pixels."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    count, numbered = len(names), len(names) <= _NAMED_CELLS
    cell, font = (32, 12) if numbered else (11, 8)
    short = [clean(name if len(name) <= 20 else f"{name[:18]}…") for name in names]
    left = 14 + round(0.62 * font * max(min(len(name), 20) for name in names))
    top = round(0.8 * left)
    width, height = round(left + count * cell + 0.6 * left), top + count * cell + 6
    parts = []
    for k, name in enumerate(short):
        at = (k + 0.5) * cell + font / 3
        parts.append(f'<text x="{left - 6}" y="{top + at:g}" text-anchor="end">{name}</text>')
        turned = f"translate({left + at:g} {top - 6}) rotate(-50)"
        parts.append(f'<text transform="{turned}">{name}</text>')
    for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
        share = shares[row, column]
        x, y = left + column * cell, top + row * cell
        kind = "right" if row == column else "wrong"
        told = f"{clean(names[row])} labeled {clean(names[column])}: {100 * share:.1f} %"
        parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
            f'fill-opacity="{0.1 + 0.9 * share**0.7:.2f}"><title>{told}</title></rect>'
        )
        if numbered:
            strong = ' class="on"' if share > 0.45 else ""
            place = f'x="{x + cell / 2:g}" y="{y + cell / 2 + 4:g}"'
            parts.append(f'<text {place} text-anchor="middle"{strong}>{100 * share:.0f}</text>')
    body = "\n".join(parts)
    return (
        f'<div class="wide"><svg class="matrix" viewBox="0 0 {width} {height}" width="{width}" '
        f'font-size="{font}" role="img" aria-label="confusion matrix">{body}</svg></div>'
    )


def _confusions(counts: np.ndarray, names: Sequence[str]) -> str:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    items = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]:
        row, column = np.unravel_index(place, wrong.shape)
        if wrong[row, column]:
            share = 100 * wrong[row, column] / counts[row].sum()
            told = f"{wrong[row, column]:,} pixels, {share:.1f} % of the class"
            items.append(f"<li>{clean(names[row])} labeled {clean(names[column])}: {told}</li>")
    return f"<div><h3>Most pixels confused</h3><ol>{''.join(items)}</ol></div>" if items else ""


def _pictures(title: str, shown: Sequence[Shown]) -> str:
    parts = []
    for one in shown:
        images = "".join(
            f'<figure><img src="{uri}" alt="{kind}"><figcaption>{kind}</figcaption></figure>'
            for kind, uri in one.pictures.items()
        )
        told = f"mean IU {percent(one.mean_iu)}, pixel accuracy {percent(one.accuracy)}"
        head = f"<h3>{clean(one.name)}</h3><p>{told}</p>"
        parts.append(f'<div class="picture">{head}<div class="four">{images}</div></div>')
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>" if parts else ""


def write_report(
    folder: PathLike,
    scores: Mapping[str, Any],
    table: ClassTable,
    gallery: Gallery,
    *,
    facts: Mapping[str, str],
    curves: bytes | None = None,
) -> Path:
    """Write ``index.html`` into an existing folder, atomically, and return its path.

    `scores` come from `fcnfast.evaluate.scores_as_json`. `facts`, at the top, say what was
    evaluated; `curves` is an SVG of the training (`fcnfast.plot.drawn`), if there is one.
    """
    names, confusion = list(scores["classes"]), np.array(scores["confusion"], dtype=np.int64)
    about = "".join(f"<dt>{clean(key)}</dt><dd>{clean(text)}</dd>" for key, text in facts.items())
    best, worst = gallery.best_and_worst()
    maps = f'<div class="pair">{_matrix(confusion, names)}{_confusions(confusion, names)}</div>'
    about_matrix = "Rows are the truth, columns the prediction, in percent of the row's pixels; "
    about_matrix = f"<p>{about_matrix}values below 0.5 are not shown.</p>"
    training = f"data:image/svg+xml;base64,{base64.b64encode(curves or b'').decode()}"
    parts = [
        f"<header><h1>Evaluation</h1><dl>{about}</dl></header>",
        f"<section>{_tiles(scores)}</section>",
        f"<section><h2>Classes</h2>{_classes(scores, table)}</section>",
        f"<section><h2>Confusion matrix</h2>{about_matrix}{maps}</section>",
        _pictures("The best pictures", best),
        _pictures("The worst pictures", worst),
        f'<section><h2>Training</h2><img alt="curves" src="{training}"></section>'
        if curves
        else "",
        f"<footer>fcnfast {__version__}</footer>",
    ]
    path = Path(folder) / "index.html"
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    write_bytes(path, page.replace("%BODY%", "\n".join(parts)).encode())
    return path
