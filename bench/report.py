"""The table and the JSON file."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.measure import OURS, Entry, Row, Settings
from fcnfast._version import __version__
from fcnfast.data import outputs

PEERS = {
    "eager": "F.interpolate (for deconv, of the map in a ring of zeros), F.cross_entropy, "
    "argmax(1), a slice and +",
    "max": "the same with max(1).indices for argmax(1)",
    "dense": "F.conv_transpose2d from all classes to all",
    "grouped": "F.conv_transpose2d with one group a class",
    "compile": "torch.compile of eager",
}
WIDTHS = {"op": 30, "pass": 7, "time": 25, "peer": 14, "memory": 21, "gpu": 8}


def number(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    return f"{value:.{min(4, max(0, 2 - math.floor(math.log10(abs(value)))))}f}"


def times(ratio: float) -> str:
    """A ratio, as in "12.3x"."""
    return f"{ratio:.{1 if ratio >= 9.95 else 2}f}x"


def _line(cells: list[str], peers: list[str], gpu: bool) -> str:
    widths = [WIDTHS[name] for name in ("op", "pass", "time", *["peer"] * len(peers), "memory")]
    widths += [WIDTHS["gpu"]] * (2 * gpu)
    pairs = list(zip(cells, widths, strict=True))
    return "  ".join([f"{c:<{w}}" for c, w in pairs[:2]] + [f"{c:>{w}}" for c, w in pairs[2:]])


def header(peers: list[str], gpu: bool) -> str:
    """The line above the table."""
    cells = ["op", "pass", "fcnfast ms [20 %, 80 %]", *(f"{p} ms" for p in peers)]
    return _line([*cells, "peak MB, ours / eager", *(["GB/s", "of floor"] * gpu)], peers, gpu)


def _time(entry: Entry) -> str:
    if entry.time is None:
        return entry.fault.upper() if entry.fault else ""
    low, high = number(entry.time.low), number(entry.time.high)
    return f"{number(entry.time.median)} [{low}, {high}]"


def _peer(row: Row, name: str) -> str:
    entry = row.entries.get(name)
    if entry is None:
        return "-"
    if entry.time is None:
        return entry.fault.upper() if entry.fault else ""
    ratio = row.ratio(name)
    return number(entry.time.median) + ("" if ratio is None else f"  {times(ratio)}")


def _memory(row: Row) -> str:
    ours, eager = row.ours.peak_bytes, row.entries["eager"].peak_bytes
    return " / ".join("-" if b is None else number(b / 1e6) for b in (ours, eager))


def line(row: Row, peers: list[str], gpu: bool) -> str:
    """One row of the table."""
    operation = row.operation
    content = row.content if len(operation.contents) > 1 else ""
    title = " ".join(filter(None, (operation.name, operation.variant, content)))
    cells = [title, "fwd+bwd" if row.backward else "fwd", _time(row.ours)]
    cells += [*(_peer(row, name) for name in peers), _memory(row)]
    if gpu:
        cells += ["-"] * 2 if row.gb_s is None else [number(row.gb_s), f"{row.of_floor:.0%}"]
    return _line(cells, peers, gpu)


def footnotes(rows: list[Row], peers: list[str], gpu: bool) -> list[str]:
    """What the table's words mean, and why an entry has no number."""
    notes = [f"{name}: {PEERS[name]}" for name in peers]
    notes.append("2.0x: that peer takes twice as long as fcnfast; medians of calls made in turns")
    if not gpu:
        notes.append("GB/s and fraction of the floor: not measured, they need a GPU")
    reasons: dict[str, None] = {}
    for row in rows:
        for name, entry in row.entries.items():
            if entry.fault == "wrong":
                title = f"{row.operation.name} {row.operation.variant} {row.content}"
                reasons[f"WRONG: {name} in {title}, {row.case}: error {entry.error:.2g}"] = None
            elif entry.fault:
                reason = (entry.reason or "").strip().splitlines()[0]
                reasons[f"{entry.fault.upper()}: {name} in {row.operation.name}: {reason}"] = None
    return notes + list(reasons)


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [text for text in text.splitlines() if text.startswith("model name")]
        name = names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def commit() -> str | None:
    """The checkout's commit, with "-dirty" when files differ from it; None without git."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def conditions(settings: Settings) -> dict[str, Any]:
    """All that a number depends on besides the code."""
    try:
        import triton
    except ImportError:
        triton = None
    machine = settings.machine
    return {
        "device": settings.device.type,
        "device_name": device_name(settings.device),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "fcnfast": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "triton": triton.__version__ if triton else None,
        "python": platform.python_version(),
        "backend_forced": os.environ.get("FCNFAST_BACKEND"),
        "copy_gb_s": machine.bandwidth * 1e-9 if machine else None,
        "instructions_per_s": machine.issue if machine else None,
    }


def summary(about: dict[str, Any]) -> str:
    """The conditions in one line."""
    words = [f"fcnfast {about['fcnfast']}", f"commit {(about['commit'] or 'unknown')[:12]}"]
    words += [f"torch {about['torch']}", f"triton {about['triton'] or 'none'}", about["dtype"]]
    if about["backend_forced"]:
        words.append(f"FCNFAST_BACKEND={about['backend_forced']}")
    if about["copy_gb_s"]:
        words.append(f"copies at {number(about['copy_gb_s'])} GB/s")
    return f"{about['device_name']}: {', '.join(words)}"


def busy() -> list[str]:
    """A warning when other work keeps the processors of this machine."""
    load, processors = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0, os.cpu_count() or 1
    if load < 0.7 * processors:
        return []
    return [f"this machine is busy (load {load:.1f} on {processors} processors): expect noise"]


def _entry(row: Row, name: str) -> dict[str, Any]:
    entry = asdict(row.entries[name])
    entry["time_ms"] = entry.pop("time")
    if name != OURS:
        entry["ratio"] = row.ratio(name)
    if entry["error"] is not None and not math.isfinite(entry["error"]):
        entry["error"] = str(entry["error"])  # JSON has neither infinity nor NaN
    return entry


def write_json(path: Path, rows: list[Row], about: dict[str, Any]) -> None:
    """Every row with every entry; null is what was not measured. OSError when it cannot be."""
    table = [
        {
            "case": asdict(row.case),
            "op": row.operation.name,
            "variant": row.operation.variant,
            "content": row.content,
            "pass": "forward+backward" if row.backward else "forward",
            "entries": {name: _entry(row, name) for name in row.entries},
            "gb_s": row.gb_s,
            "floor_ms": row.floor_ms,
            "of_floor": row.of_floor,
        }
        for row in rows
    ]
    outputs.write_json(path, {**about, "rows": table})
