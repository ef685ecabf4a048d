"""What a measurement says: conditions, the table, what fcnfast lost since a baseline, pictures."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.cases import USUAL
from bench.measure import OURS, Row, Settings
from fcnfast._version import __version__
from fcnfast.errors import InputError

PEERS = {
    "eager": "F.interpolate (for deconv, of the map in a ring of zeros), F.cross_entropy, "
    "argmax(1) (for counts max(1).indices), bincount, a slice and +; for learned filters "
    "F.conv_transpose2d in groups",
    "max": "the same with max(1).indices for argmax(1)",
    "channels_last": "eager, max or grouped with scores in channels_last memory",
    "dense": "F.conv_transpose2d from all classes to all",
    "grouped": "F.conv_transpose2d with one group a class",
    "compile": "torch.compile of eager",
}
PASSES = {"forward": "fwd", "backward": "bwd", "forward+backward": "fwd+bwd"}
# Even the medians of quiet runs may differ by this much.
ALWAYS = 0.1
# What has to be the same for ratios to be comparable.
SAME = ("device_name", "dtype")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    name = text.partition("model name")[2].partition("\n")[0].partition(":")[2].strip()
    return name or platform.processor() or platform.machine()


def _commit() -> str | None:
    """The checkout's commit, "-dirty" when files differ from it; without git FCNFAST_COMMIT."""
    root = Path(__file__).resolve().parents[1]
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    if (root / ".git").exists() and shutil.which("git"):
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return os.environ.get("FCNFAST_COMMIT")


def conditions(settings: Settings) -> dict[str, Any]:
    """All that a number depends on besides the code, as in the JSON file."""
    try:
        import triton
    except ImportError:
        triton = None
    gpu = settings.device.type == "cuda"
    vectors = torch.backends.cpu.get_cpu_capability()
    processor = f"{_processor()}, {vectors}, {torch.get_num_threads()} threads"
    return {
        "device": settings.device.type,
        "device_name": torch.cuda.get_device_name(settings.device) if gpu else processor,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "fcnfast": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "triton": triton.__version__ if triton else None,
        "cuda": torch.version.cuda or torch.version.hip,
        "python": platform.python_version(),
        "backend_forced": os.environ.get("FCNFAST_BACKEND"),
        "copy_gb_s": settings.bandwidth * 1e-9 if settings.bandwidth else None,
    }


def summary(about: dict[str, Any]) -> str:
    """The conditions in a line, and a second one where other work keeps the processors."""
    words = [f"{name} {str(about[name])[:12]}" for name in ("fcnfast", "commit", "torch", "triton")]
    words.append(about["dtype"])
    if about["backend_forced"]:
        words.append(f"FCNFAST_BACKEND={about['backend_forced']}")
    if about["copy_gb_s"]:
        words.append(f"copies at {about['copy_gb_s']:.0f} GB/s")
    load, processors = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0, os.cpu_count() or 1
    busy = f"\nexpect noise: the load is {load:.1f} on {processors} processors"
    return f"{about['device_name']}: {', '.join(words)}" + busy * (load >= 0.7 * processors)


def number(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    return f"{value:.{min(4, max(0, 2 - math.floor(math.log10(abs(value)))))}f}"


def title(row: Row) -> str:
    """What a row is of, but for the case and the pass."""
    return " ".join(filter(None, (row["op"], row["variant"], f"({row['content']})")))


def fastest(row: Row) -> list[tuple[str, dict[str, Any]]]:
    """The peers' names and entries, the fastest first and those without a time at the end."""
    peers = [(name, entry) for name, entry in row["entries"].items() if name != OURS]
    return sorted(peers, key=lambda item: (item[1]["time_ms"] or {}).get("median", math.inf))


def _aligned(cells: list[str], gpu: bool) -> str:
    widths = ["<45", "<7", ">23", ">8", *[">12", ">7", ">9"] * gpu, ""]
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))


def header(gpu: bool) -> str:
    """The line above the table."""
    cells = ["op", "pass", "fcnfast ms [20 %, 80 %]", "peak MB"]
    cells += ["as called ms", "GB/s", "of copies"] * gpu
    return _aligned([*cells, "plain torch: ms (times fcnfast's, peak MB), fastest first"], gpu)


def _time(entry: dict[str, Any]) -> str:
    """The median, with "!" when no CUDA graph gave it; or the fault."""
    if entry["time_ms"] is None:
        return (entry["fault"] or "").upper()
    return number(entry["time_ms"]["median"]) + "!" * isinstance(entry["cuda_graph"], str)


def line(row: Row, gpu: bool) -> str:
    """One row of the table."""
    ours = row["entries"][OURS]
    took, peak, gpu_cells = "", "", [""] * 3 * gpu
    if ours["time_ms"]:
        low, high = (number(ours["time_ms"][key]) for key in ("low", "high"))
        took, peak = f" [{low}, {high}]", number(ours["peak_bytes"] / 1e6)
        if gpu:
            called = ours["as_called_ms"]["median"]
            gpu_cells = [number(called), number(row["gb_s"]), f"{row['of_copy']:.0%}"]
    peers = []
    for name, entry in fastest(row):
        facts = [f"{entry['ratio']:.2f}x"] if entry["ratio"] else []
        facts += [number(entry["peak_bytes"] / 1e6)] if entry["peak_bytes"] else []
        peers.append(f"{name} {_time(entry)}" + f" ({', '.join(facts)})" * bool(facts))
    cells = [title(row), PASSES[row["pass"]], _time(ours) + took, peak, *gpu_cells]
    return _aligned([*cells, "; ".join(peers)], gpu)


def wrong(row: Row) -> bool:
    """Whether a result is wrong; ours must not fail either."""
    faults = {name: entry["fault"] for name, entry in row["entries"].items()}
    return bool(faults[OURS]) or "wrong" in faults.values()


def footnotes(rows: list[Row], gpu: bool) -> list[str]:
    """What the table's words mean, and why an entry has no number, or none from a CUDA graph."""
    used = {name for row in rows for name in row["entries"]}
    notes = [f"{name}: {words}" for name, words in PEERS.items() if name in used]
    notes.append("2.00x: that peer takes twice as long as fcnfast; medians of calls made in turns")
    if gpu:
        notes.append("ms: the GPU's own, a CUDA graph replayed; caches cleared before each call")
    for row in rows:
        for name, entry in row["entries"].items():
            what = f"{name} in {title(row)}, {PASSES[row['pass']]}, {row['case']['data_set']}"
            if entry["fault"]:
                why = entry["reason"] or f"error {entry['error']}"
                notes.append(f"{entry['fault'].upper()}: {what}: {why.strip().splitlines()[0]}")
            elif isinstance(entry["cuda_graph"], str):
                notes.append(f"! {what}: not in a CUDA graph: {entry['cuda_graph']}")
    return notes


def baseline(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What `bench/run.py --json` wrote before; InputError if not, or on another device or dtype."""
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        found = {key: measured[key] for key in ("rows", *SAME)}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is not a result of the benchmark: {error!r}") from error
    for key in SAME:
        if found[key] != about[key]:
            raise InputError(f"the baseline's {key} is {found[key]!r}, not {about[key]!r}")
    return measured


def _lost(new: Row, old: Row) -> Iterator[str]:
    """The peers against whom a row's ratio fell by more than all four spreads explain."""
    for peer, entry in new["entries"].items():
        before = old["entries"].get(peer, {})
        if entry.get("ratio") and before.get("ratio"):
            entries = (entry, before, new["entries"][OURS], old["entries"][OURS])
            times = [each["time_ms"] for each in entries]
            spreads = [(took["high"] - took["low"]) / (2 * took["median"]) for took in times]
            noise = ALWAYS + math.hypot(*spreads)
            if entry["ratio"] * (1 + noise) < before["ratio"]:
                case = new["case"]
                where = f"{case['data_set']}, {case['images']} images, stride {case['stride']}"
                change = f"{before['ratio']:.2f}x -> {entry['ratio']:.2f}x (noise {noise:.0%})"
                yield f"{title(new)}, {new['pass']}, {where}: {peer} {change}"


def regressions(new: dict[str, Any], old: dict[str, Any]) -> tuple[list[str], int]:
    """The rows in which fcnfast lost against a peer, named; and how many rows both have."""

    def key(row: Row) -> str:
        return json.dumps([row[k] for k in ("op", "variant", "content", "pass", "case")])

    before = {key(row): row for row in old["rows"]}
    common = [(row, before[key(row)]) for row in new["rows"] if key(row) in before]
    return [lost for row, other in common for lost in _lost(row, other)], len(common)


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


def _bars(axes: Any, place: int, row: Row, values: dict[str, float]) -> None:
    """A row's group of bars; beside ours how many times that the fastest peer's is."""
    peer, width = fastest(row)[0][0], 0.8 / max(1, len(values))
    for k, (name, length) in enumerate(values.items()):
        y = place - 0.4 + (k + 0.5) * width
        axes.barh(y, length, 0.9 * width, color=COLORS[name])
        if name == OURS and peer in values:
            axes.text(length, y, f" {peer} {values[peer] / length:.2f}x", va="center", size=7)


def draw(measured: dict[str, Any], folder: Path) -> list[Path]:
    """Write time.png and memory.png into a folder, a group of bars for each op; their paths.

    Of usual content; of ops with a gradient both passes together.
    """
    plt = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    where = "in a CUDA graph" if measured["device"] == "cuda" else "of a call"
    titles = {"time": f"time {where}, ms", "memory": "peak memory beyond the inputs, MB"}
    trained = {(r["op"], r["variant"]) for r in measured["rows"] if r["pass"] == "backward"}
    rows, labels = [], []
    for row in measured["rows"]:
        op, case = (row["op"], row["variant"]), row["case"]
        whole = "forward+backward" if op in trained else "forward"
        if row["content"] == USUAL and row["pass"] == whole:
            rows.append(row)
            size = f"{case['images']} x {case['classes']}, stride {case['stride']}"
            labels.append(f"{' '.join(op)}\n{case['data_set']}, {size}")
    used = [n for n in COLORS if any(n in row["entries"] for row in rows)]
    paths = []
    for what, title in titles.items():
        figure, axes = plt.subplots(figsize=(9, 2 + 0.6 * len(rows)), layout="constrained")
        for place, row in enumerate(rows):
            times = {n: (e["time_ms"] or {}).get("median") for n, e in row["entries"].items()}
            sizes = {n: (e["peak_bytes"] or 0) / 1e6 for n, e in row["entries"].items()}
            values = times if what == "time" else sizes
            _bars(axes, place, row, {n: value for n, value in values.items() if value})
        axes.set_yticks(range(len(rows)), labels, size=8)
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        patches = [plt.Rectangle((0, 0), 1, 1, color=COLORS[name]) for name in used]
        figure.legend(patches, used, loc="outside lower center", ncols=len(used), frameon=False)
        figure.suptitle(f"{title}\n{measured['device_name']}, {measured['dtype']}")
        paths.append(folder / f"{what}.png")
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths
