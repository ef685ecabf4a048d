"""Pictures of a measurement: bars of time and of memory. Needs matplotlib.

python bench/run.py --plot pictures
python bench/plots.py pictures cpu.json       # the same from what --json wrote
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, nothing installed

from bench.cases import USUAL
from bench.compare import read
from bench.report import times

COLORS = {
    "fcnfast": "#1f6feb",
    "eager": "#9aa4af",
    "max": "#c8cdd3",
    "channels_last": "#5f6b76",
    "dense": "#d9822b",
    "grouped": "#f0c27b",
    "compile": "#7a5cc4",
}
Row = dict[str, Any]


def pyplot() -> Any:
    """matplotlib's, drawing into files; ImportError names the extra when it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'fcnfast[plots]'") from error
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt


def _worth_a_bar(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """By case the rows of usual content, of ops with a gradient both passes together."""
    trained = {(r["op"], r["variant"]) for r in rows if r["pass"] != "forward"}
    panels: dict[str, list[Row]] = {}
    for row in rows:
        whole = "forward+backward" if (row["op"], row["variant"]) in trained else "forward"
        if row["content"] == USUAL and row["pass"] == whole:
            case = row["case"]
            name = f"{case['data_set']}, {case['images']} x {case['classes']} classes"
            panels.setdefault(f"{name}, stride {case['stride']}", []).append(row)
    return panels


def _bars(axes: Any, rows: Sequence[Row], value: Callable[[Row, str], float | None]) -> None:
    """A group of bars for each row, one a contestant; beside ours how many times that eager is."""
    for place, row in enumerate(rows):
        names = [name for name in COLORS if name in row["entries"] and value(row, name)]
        for k, name in enumerate(names):
            height = 0.8 / len(names)
            y, length = place - 0.4 + (k + 0.5) * height, value(row, name)
            axes.barh(y, length, 0.9 * height, color=COLORS[name])
            eager = value(row, "eager") if name == "fcnfast" else None
            if eager:
                axes.text(length, y, f" eager {times(eager / length)}", va="center", size=7)
    labels = [" ".join(filter(None, (row["op"], row["variant"]))) for row in rows]
    axes.set_yticks(range(len(rows)), labels, size=8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _bar_picture(
    measured: Row, path: Path, value: Callable[[Row, str], float | None], title: str
) -> Path:
    plt = pyplot()
    panels = _worth_a_bar(measured["rows"])
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    height = 1 + 0.6 * max(map(len, panels.values()))
    figure, grid = plt.subplots(
        lines, columns, figsize=(7 * columns, height * lines + 1), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, (name, rows) in zip(grid.flat, panels.items(), strict=False):
        _bars(axes, rows, value)
        axes.set_title(name, size=10, loc="left")
    used = [n for n in COLORS if any(n in r["entries"] for r in measured["rows"])]
    patches = [plt.Rectangle((0, 0), 1, 1, color=COLORS[name]) for name in used]
    figure.legend(patches, used, loc="outside lower center", ncols=len(used), frameon=False)
    figure.suptitle(f"{title}\n{measured['device_name']}, {measured['dtype']}")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _median(row: Row, name: str) -> float | None:
    took = row["entries"].get(name, {}).get("time_ms")
    return took["median"] if took else None


def _megabytes(row: Row, name: str) -> float | None:
    peak = row["entries"].get(name, {}).get("peak_bytes")
    return peak * 1e-6 if peak else None


def draw(measured: Row, folder: Path, prefix: str = "") -> list[Path]:
    """Write the pictures of one measurement into a folder; those that were written.

    Raises:
        ImportError: when matplotlib is not installed.
        OSError: when a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    where = "in a CUDA graph" if measured["device"] == "cuda" else "of a call"
    time, memory = folder / f"{prefix}time.png", folder / f"{prefix}memory.png"
    return [
        _bar_picture(measured, time, _median, f"time {where}, ms"),
        _bar_picture(measured, memory, _megabytes, "peak memory beyond the inputs, MB"),
    ]


def main(folder: str, *files: str) -> None:
    """Draw the pictures of JSON files; their names begin the pictures'."""
    for file in files:
        path = Path(file)
        print(*draw(read(path), Path(folder), f"{path.stem}-"), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
