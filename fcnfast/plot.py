"""The curves of training runs, from their log.csv to SVG or PNG, drawn by matplotlib."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError
from .files import PathLike, write_bytes

PANELS = {"loss": "loss", "lr": "learning rate", "val_mean_iu": "validation mean IU, %,"}
"""The columns of log.csv that are drawn, and their titles."""

_INK = "#7a8290"  # texts and axes: readable on white and, in a report, on a dark page


class Curves(NamedTuple):
    """A run's name and, by column of its log, (iteration, value) points in order."""

    name: str
    points: dict[str, list[tuple[float, float]]]


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
        text = path.read_text(encoding="utf-8-sig")
        rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        if rows.fieldnames is None:
            raise InputError(f"{path}: the log is empty")
        known = [column for column in PANELS if column in rows.fieldnames]
        if "iteration" not in rows.fieldnames or not known:
            told = f"it needs the columns iteration and {' or '.join(PANELS)}"
            has = ", ".join(rows.fieldnames)
            raise InputError(f"{path}: not the log of a run: {told}, and has {has}")
        found: dict[str, list[tuple[float, float]]] = {column: [] for column in known}
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


def best(run: Curves) -> str:
    """Return the best mean IU of a run and its iteration as text; "" without a validation."""
    points = run.points.get("val_mean_iu")
    if not points:
        return ""
    iteration, value = max(points, key=lambda point: point[1])
    return f"best mean IU {value:.1f} at iteration {iteration:g}"


def drawn(runs: Sequence[Curves], kind: str) -> bytes:
    """Draw the loss, the rate and the mean IU of runs together, as a transparent "svg" or "png".

    An axis is logarithmic where values differ by 1:100. InputError without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("curves need matplotlib: pip install 'fcnfast[plots]'") from error
    columns = [column for column in PANELS if any(run.points.get(column) for run in runs)]
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "fcnfast", "axes.grid": True}
    style |= {f"{part}.color": _INK for part in ("text", "xtick", "ytick")}
    style |= {f"axes.{part}color": _INK for part in ("edge", "label", "title")}
    style |= {"grid.alpha": 0.3, "font.size": 9, "axes.titlesize": 9}
    with rc_context(style):
        figure = Figure((4 * len(columns), 2.7 + 0.2 * len(runs)), layout="constrained")
        for panel, column in zip(
            figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True
        ):
            lines = [run.points.get(column, []) for run in runs]
            for k, points in enumerate(lines):
                x, y = zip(*points or [(math.nan, math.nan)], strict=True)
                panel.plot(x, y, "o" if len(points) == 1 else "", color=f"C{k}")
            values = [value for points in lines for _, value in points]
            log = min(values) > 0 and max(values) >= 100 * min(values)
            panel.set_yscale("log" if log else "linear")
            title = f"{PANELS[column]} by iteration{', logarithmic' if log else ''}"
            panel.set_title(title, loc="left")
        named = [f" {': '.join(filter(None, (run.name, best(run))))}" for run in runs]
        legend = figure.legend(panel.get_lines(), named, loc="outside lower left", frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a $ in a name is a $
        content = io.BytesIO()
        options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 200}
        figure.savefig(content, format=kind, transparent=True, **options)
    return content.getvalue()


def plot_runs(runs: Sequence[PathLike], path: PathLike) -> None:
    """Draw the loss, the rate and the mean IU of runs (folders, or log.csv files) together.

    The file is written atomically. InputError if `path` is neither .svg nor .png, or as in
    `read_curves` and `drawn`.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".svg", ".png"):
        raise InputError(f"{path}: must end in .svg or .png")
    write_bytes(path, drawn([read_curves(run) for run in runs], kind[1:]))
