"""Pictures of a measurement: bars of time and of memory. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.cases import USUAL
from bench.measure import OURS, Row
from bench.report import fastest

COLORS = {
    "fcnfast": "#1f6feb", "eager": "#9aa4af", "max": "#c8cdd3", "channels_last": "#5f6b76",
    "dense": "#d9822b", "grouped": "#f0c27b", "compile": "#7a5cc4",
}  # fmt: skip


def pyplot() -> Any:
    """matplotlib's, drawing into files; ImportError names the extra when it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'fcnfast[plots]'") from error
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt


def _panels(rows: list[Row]) -> dict[str, list[Row]]:
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


def _value(entry: dict[str, Any], what: str) -> float:
    """Milliseconds or megabytes; 0 where there are none."""
    if what == "memory":
        return (entry["peak_bytes"] or 0) * 1e-6
    return (entry["time_ms"] or {"median": 0})["median"]


def _bars(axes: Any, rows: list[Row], what: str) -> None:
    """A group of bars for each row; beside ours how many times that the fastest peer's is."""
    for place, row in enumerate(rows):
        values = {n: _value(e, what) for n, e in row["entries"].items() if _value(e, what)}
        for k, (name, length) in enumerate(values.items()):
            y = place - 0.4 + (k + 0.5) * 0.8 / len(values)
            axes.barh(y, length, 0.72 / len(values), color=COLORS[name])
            peer = fastest(row)[0][0]
            if name == OURS and peer in values:
                axes.text(length, y, f" {peer} {values[peer] / length:.2f}x", va="center", size=7)
    labels = [" ".join(filter(None, (row["op"], row["variant"]))) for row in rows]
    axes.set_yticks(range(len(rows)), labels, size=8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def draw(measured: dict[str, Any], folder: Path) -> list[Path]:
    """Write time.png and memory.png into a folder, a panel for each case; their paths.

    Raises:
        ImportError: when matplotlib is not installed.
        OSError: when a file cannot be written.
    """
    plt = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    where = "in a CUDA graph" if measured["device"] == "cuda" else "of a call"
    titles = {"time": f"time {where}, ms", "memory": "peak memory beyond the inputs, MB"}
    panels = _panels(measured["rows"])
    height = 1 + len(panels) * (1 + 0.6 * max(map(len, panels.values()), default=0))
    used = [n for n in COLORS if any(n in row["entries"] for row in measured["rows"])]
    paths = []
    for what, title in titles.items():
        figure = plt.figure(figsize=(9, height), layout="constrained")
        for place, (name, rows) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(len(panels), 1, place)
            _bars(axes, rows, what)
            axes.set_title(name, size=10, loc="left")
        patches = [plt.Rectangle((0, 0), 1, 1, color=COLORS[name]) for name in used]
        figure.legend(patches, used, loc="outside lower center", ncols=len(used), frameon=False)
        figure.suptitle(f"{title}\n{measured['device_name']}, {measured['dtype']}")
        paths.append(folder / f"{what}.png")
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths
