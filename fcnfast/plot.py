"""The curves of training runs, from their log.csv to SVG or PNG.

A drawing is a list of lines and texts; two short functions write it as SVG or as pixels.
"""

from __future__ import annotations

import csv
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .data.images import write_image
from .errors import InputError
from .files import PathLike, write_bytes

PANELS = {"loss": "loss", "lr": "learning rate", "val_mean_iu": "validation mean IU, %,"}
"""The columns of log.csv that are drawn, and their titles."""

WIDTH, HEIGHT = 400, 250  # of a panel, pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 20, 30, 30
_MOST_POINTS = 400
_SERIES = ("#3d7fe0", "#e07b00", "#12936a", "#d0489c", "#8a63d8", "#d64545", "#1597ad", "#7c8a1c")
_LIGHT = {"paper": "#ffffff", "ink": "#1f2430", "faint": "#667085", "grid": "#dfe3ea"}
_DARK = {"paper": "#14171d", "ink": "#e6e9ef", "faint": "#98a2b3", "grid": "#2e3440"}

Point = tuple[float, float]


class Curves(NamedTuple):
    """A run's name and, by column of its log, (iteration, value) points in order."""

    name: str
    points: dict[str, list[Point]]


class Line(NamedTuple):
    """Connected points; `color` is "ink", "faint", "grid" or a number of a series."""

    points: list[Point]
    color: str | int
    width: float = 1.0


class Text(NamedTuple):
    """A text whose start, middle or end (`anchor`) is at (x, y), on the baseline."""

    x: float
    y: float
    text: str
    color: str = "faint"
    anchor: str = "start"


def clean(text: str) -> str:
    """Escape a text for HTML and SVG; unprintable characters become a replacement character."""
    return html.escape("".join(c if c.isprintable() else "\ufffd" for c in text))


def read_curves(run: PathLike) -> Curves:
    """Read the log of a run: its folder, or the file itself. A truncated last row is skipped.

    InputError if there is no log, or it has no rows, or holds what is not a finite number.
    """
    path = Path(run)
    if path.is_dir():
        path = path / "log.csv"
        below = sorted(log.parent.name for log in Path(run).glob("*/log.csv"))
        if below and not path.exists():
            raise InputError(f"{run}: no log.csv, but {', '.join(below[:3])} below it have one")
    try:
        text = path.read_text(encoding="utf-8")
        rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        if rows.fieldnames is None:
            raise InputError(f"{path}: the log is empty")
        known = [column for column in PANELS if column in rows.fieldnames]
        if "iteration" not in rows.fieldnames or not known:
            told = f"it needs the columns iteration and {' or '.join(PANELS)}"
            has = ", ".join(rows.fieldnames)
            raise InputError(f"{path}: not the log of a run: {told}, and has {has}")
        found: dict[str, list[Point]] = {column: [] for column in known}
        for row in rows:
            for column in known:
                if row[column]:
                    where = f"{path}: line {rows.line_num}"
                    value = _number(row, column, where) * (100 if column == "val_mean_iu" else 1)
                    found[column].append((_number(row, "iteration", where), value))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path}: not a CSV file") from None
    if not any(found.values()):
        raise InputError(f"{path}: no row of the log has a {' or '.join(known)} yet")
    return Curves(str(run), found)


def _number(row: dict[str, str], column: str, where: str) -> float:
    try:
        value = float(row[column] or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {column} is {row[column]!r}, not a finite number")
    return value


def _thinned(points: list[Point]) -> list[Point]:
    """Return means of neighbors where there are more points than a panel has pixels."""
    step = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[k : k + step] for k in range(0, len(points), step)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers, the first at most `low` and the last at least `high`."""
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size + 1e-290:  # a constant, or as good as one
        low, high = (low - size / 2, high + size / 2) if size > 1e-280 else (-1.0, 1.0)
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [k * step for k in range(first, last + 1)]


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if size * 10 <= abs(value) < 1e9:
            return f"{value / size:g}{letter}"
    if 0 < abs(value) < 1e-3:
        power = math.floor(math.log10(abs(value)) + 1e-9)
        return f"{value / 10.0**power:.3g}e{power}"
    return f"{value:.4g}"


def panel(column: str, runs: Sequence[Curves], start: float = 0) -> list[Line | Text]:
    """Draw one column of the logs of all runs from x = `start`; logarithmic from 1:100 on."""
    begin, end = start + _LEFT, start + WIDTH - _RIGHT
    curves = {k: run.points[column] for k, run in enumerate(runs) if run.points.get(column)}
    xs, ys = zip(*(point for points in curves.values() for point in points), strict=True)
    log = min(ys) > 0 and max(ys) >= 100 * min(ys)
    across, up = _ticks(min(0.0, min(xs)), max(xs)), _ticks(min(ys), max(ys))
    top = up[-1]
    if log:
        first, top = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
        up = [float(k) for k in range(first, top + 1, math.ceil((top - first) / 6))]

    def place(x: float, y: float) -> Point:
        right = (x - across[0]) / (across[-1] - across[0]) * (end - begin)
        above = ((math.log10(y) if log else y) - up[0]) / (top - up[0])
        return begin + right, HEIGHT - _BOTTOM - above * (HEIGHT - _TOP - _BOTTOM)

    title = f"{PANELS[column]} by iteration{', logarithmic' if log else ''}"
    shapes: list[Line | Text] = [Text(begin, _TOP - 14, title, "ink")]
    for tick in up:
        value = 10**tick if log else tick
        _, y = place(0, value)
        shapes.append(Line([(begin, y), (end, y)], "grid"))
        shapes.append(Text(begin - 6, y + 4, _short(value), anchor="end"))
    for tick in across:
        x, _ = place(tick, max(ys))
        shapes.append(Text(x, HEIGHT - _BOTTOM + 16, _short(tick), anchor="middle"))
    for k, points in curves.items():
        places = [place(*point) for point in _thinned(points)]
        if len(places) == 1:  # a dash, to be visible
            (x, y) = places[0]
            places = [(x - 3, y), (x + 3, y)]
        shapes.append(Line(places, k, 2.0))
    return shapes


def panels(runs: Sequence[Curves]) -> list[str]:
    """Return the columns that at least one run has values for."""
    return [column for column in PANELS if any(run.points.get(column) for run in runs)]


def _sheet(runs: Sequence[Curves]) -> tuple[list[Line | Text], tuple[int, int]]:
    """Lay out all panels in a row, with the runs' names and best scores below; shapes and size."""
    columns = panels(runs)
    shapes = [s for k, column in enumerate(columns) for s in panel(column, runs, k * WIDTH)]
    for k, run in enumerate(runs):
        y = HEIGHT + 20 * k + 10
        name = run.name if len(run.name) <= 60 else f"{run.name[:28]}...{run.name[-28:]}"
        shapes.append(Line([(_LEFT, y - 4), (_LEFT + 24, y - 4)], k, 2.0))
        shapes.append(Text(_LEFT + 32, y, ": ".join(filter(None, (name, best(run)))), "ink"))
    return shapes, (WIDTH * max(2, len(columns)), HEIGHT + 20 * len(runs) + 8)


def best(run: Curves) -> str:
    """Return the best mean IU of a run and its iteration as text; "" without a validation."""
    points = run.points.get("val_mean_iu")
    if not points:
        return ""
    iteration, value = max(points, key=lambda point: point[1])
    return f"best mean IU {value:.1f} at iteration {iteration:g}"


def as_svg(shapes: Sequence[Line | Text], size: tuple[int, int], label: str) -> str:
    """Write a drawing as an SVG element that follows the reader's light or dark setting."""
    light, dark = (
        "".join(f".c-{k}{{stroke:{color}}}.t-{k}{{fill:{color}}}" for k, color in colors.items())
        for colors in (dict(zip("01234567", _SERIES, strict=True)) | _LIGHT, _DARK)
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="{clean(label)}" font-family="system-ui,sans-serif" font-size="12">',
        f"<style>{light}@media screen and (prefers-color-scheme:dark){{{dark}}}</style>",
        '<rect class="t-paper" width="100%" height="100%"/>',
    ]
    for shape in shapes:
        if isinstance(shape, Text):
            parts.append(
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" class="t-{shape.color}" '
                f'text-anchor="{shape.anchor}">{clean(shape.text)}</text>'
            )
        else:
            color = shape.color if isinstance(shape.color, str) else shape.color % len(_SERIES)
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            parts.append(
                f'<polyline points="{points}" class="c-{color}" fill="none" '
                f'stroke-width="{shape.width:g}" stroke-linejoin="round"/>'
            )
    return "\n".join([*parts, "</svg>"])


def _as_picture(shapes: Sequence[Line | Text], size: tuple[int, int]) -> Image.Image:
    """Draw at four times the size, then halve it: antialiased, two pixels per unit."""
    scale = 4
    image = Image.new("RGB", (size[0] * scale, size[1] * scale), _LIGHT["paper"])
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12 * scale)
    for shape in shapes:
        if isinstance(shape, Text):
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
            where = (shape.x * scale, shape.y * scale)
            text = "".join(c if c.isprintable() else "\ufffd" for c in shape.text)
            draw.text(where, text, _LIGHT[shape.color], font, anchor=anchor)
        else:
            key = shape.color
            color = _LIGHT[key] if isinstance(key, str) else _SERIES[key % len(_SERIES)]
            points = [(x * scale, y * scale) for x, y in shape.points]
            draw.line(points, color, round(shape.width * scale), joint="curve")
    return image.reduce(2)


def plot_runs(runs: Sequence[PathLike], path: PathLike) -> None:
    """Draw the loss, the rate and the mean IU of runs (folders, or log.csv files) together.

    The file is written atomically. InputError if `path` is neither .svg nor .png, or as in
    `read_curves`.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".svg", ".png"):
        raise InputError(f"{path}: must end in .svg or .png")
    shapes, size = _sheet([read_curves(run) for run in runs])
    if kind == ".png":
        write_image(path, _as_picture(shapes, size))
    else:
        label = "loss, learning rate and mean IU of training runs"
        write_bytes(path, as_svg(shapes, size, label).encode())
