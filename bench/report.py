"""The table and the JSON file."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from bench.measure import OURS, Entry, Row

PEERS = {
    "eager": "F.interpolate (for deconv, of the map in a ring of zeros), F.cross_entropy, "
    "argmax(1) (for counts max(1).indices), bincount, a slice and +; for learned filters "
    "F.conv_transpose2d in groups",
    "max": "the same with max(1).indices for argmax(1)",
    "channels_last": "argmax(1) of scores whose channels are innermost",
    "dense": "F.conv_transpose2d from all classes to all",
    "grouped": "F.conv_transpose2d with one group a class",
    "compile": "torch.compile of eager",
}
PASSES = {"forward": "fwd", "backward": "bwd", "forward+backward": "fwd+bwd"}
NOT_MEASURED = "not measured"
# Columns that only a GPU can fill.
GPU_COLUMNS = ("as called ms", "GB/s", "of copies")
WIDTHS = {"op": 40, "pass": 7, "time": 25, "peer": 14, "memory": 21, "gpu": 12}


def number(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    return f"{value:.{min(4, max(0, 2 - math.floor(math.log10(abs(value)))))}f}"


def times(ratio: float) -> str:
    """A ratio, as in "12.3x"."""
    return f"{ratio:.{1 if ratio >= 9.95 else 2}f}x"


def _line(cells: list[str], peers: list[str]) -> str:
    widths = [WIDTHS[name] for name in ("op", "pass", "time", *["peer"] * len(peers), "memory")]
    widths += [WIDTHS["gpu"]] * len(GPU_COLUMNS)
    pairs = list(zip(cells, widths, strict=True))
    return "  ".join([f"{c:<{w}}" for c, w in pairs[:2]] + [f"{c:>{w}}" for c, w in pairs[2:]])


def header(peers: list[str]) -> str:
    """The line above the table."""
    cells = ["op", "pass", "fcnfast ms [20 %, 80 %]", *(f"{p} ms" for p in peers)]
    return _line([*cells, "peak MB, ours / eager", *GPU_COLUMNS], peers)


def _time(entry: Entry) -> str:
    if entry.times is None:
        return entry.fault.upper() if entry.fault else ""
    own = entry.times.own
    mark = "" if entry.times.graph in (None, True) else "!"
    return f"{number(own.median)}{mark} [{number(own.low)}, {number(own.high)}]"


def _peer(row: Row, name: str) -> str:
    entry = row.entries.get(name)
    if entry is None:
        return "-"
    if entry.times is None:
        return entry.fault.upper() if entry.fault else ""
    mark = "" if entry.times.graph in (None, True) else "!"
    ratio = row.ratio(name)
    return number(entry.times.own.median) + mark + ("" if ratio is None else f"  {times(ratio)}")


def _memory(row: Row) -> str:
    ours, eager = row.ours.peak_bytes, row.entries["eager"].peak_bytes
    return " / ".join("-" if b is None else number(b / 1e6) for b in (ours, eager))


def _of_gpu(row: Row) -> list[str]:
    """Three cells that hold what a GPU gave, or say that none did."""
    called = row.ours.times.called if row.ours.times else None
    return [
        NOT_MEASURED if called is None else number(called.median),
        NOT_MEASURED if row.gb_s is None else number(row.gb_s),
        NOT_MEASURED if row.of_copy is None else f"{row.of_copy:.0%}",
    ]


def title(row: Row) -> str:
    """What a row is of, but for the case and the pass."""
    content = f"({row.content})" if len(row.operation.contents) > 1 else ""
    return " ".join(filter(None, (row.operation.name, row.operation.variant, content)))


def line(row: Row, peers: list[str]) -> str:
    """One row of the table."""
    cells = [title(row), PASSES[row.which], _time(row.ours)]
    cells += [*(_peer(row, name) for name in peers), _memory(row), *_of_gpu(row)]
    return _line(cells, peers)


def _faults(row: Row) -> list[str]:
    """Why entries have no number, or none from a CUDA graph."""
    found = []
    for name, entry in row.entries.items():
        if entry.fault == "wrong":
            found.append(f"WRONG: {name} in {title(row)}, {row.case}: error {entry.error:.2g}")
        elif entry.fault:
            reason = (entry.reason or "").strip().splitlines()[0]
            found.append(f"{entry.fault.upper()}: {name} in {row.operation.name}: {reason}")
        elif entry.times and isinstance(entry.times.graph, str):
            found.append(
                f"! {name} in {row.operation.name}, {PASSES[row.which]}: between events, not in a "
                f"CUDA graph: {entry.times.graph}"
            )
    return found


def footnotes(rows: list[Row], peers: list[str], gpu: bool) -> list[str]:
    """What the table's words mean, and why an entry has no number."""
    notes = [f"{name}: {PEERS[name]}" for name in peers]
    notes.append("2.0x: that peer takes twice as long as fcnfast; medians of calls made in turns")
    if gpu:
        notes.append("ms: the GPU's own, a CUDA graph replayed; caches flushed before each call")
    else:
        notes.append(f"{', '.join(GPU_COLUMNS)}: {NOT_MEASURED}, they need a GPU")
    return [*notes, *dict.fromkeys(fault for row in rows for fault in _faults(row))]


def _entry(row: Row, name: str) -> dict[str, Any]:
    entry = row.entries[name]
    took = entry.times
    error = entry.error
    if error is not None and not math.isfinite(error):
        error = str(error)  # JSON has neither infinity nor NaN
    found = {
        "error": error,
        "fault": entry.fault,
        "reason": entry.reason,
        "time_ms": asdict(took.own) if took else None,
        "as_called_ms": asdict(took.called) if took and took.called else None,
        "cuda_graph": took.graph if took else None,
        "peak_bytes": entry.peak_bytes,
    }
    return found if name == OURS else found | {"ratio": row.ratio(name)}


def as_dict(row: Row) -> dict[str, Any]:
    """A row with every entry; None is what was not measured."""
    return {
        "case": asdict(row.case),
        "op": row.operation.name,
        "variant": row.operation.variant,
        "content": row.content,
        "pass": row.which,
        "coarse_bytes": row.coarse_bytes,
        "outputs": row.outputs,
        "moved_bytes": row.moved_bytes,
        "entries": {name: _entry(row, name) for name in row.entries},
        "gb_s": row.gb_s,
        "of_copy": row.of_copy,
    }
