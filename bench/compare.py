"""Two measurements of the same rows: where fcnfast lost against a peer, beyond noise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Even the medians of quiet runs may differ by this much.
ALWAYS = 0.1
# What has to be the same for ratios to be comparable.
SAME = ("device_name", "dtype")


def read(path: Path) -> dict[str, Any]:
    """What `bench/run.py --json` wrote; ValueError when the file holds none of it."""
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(measured["rows"], list) or not all(key in measured for key in SAME):
            raise ValueError("no rows of the benchmark")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of the benchmark: {error!r}") from error
    return measured


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["op"], row["variant"], row["content"], row["pass"], json.dumps(row["case"]))


def _name(row: dict[str, Any]) -> str:
    case = row["case"]
    what = " ".join(filter(None, (row["op"], row["variant"], f"({row['content']})")))
    where = f"{case['data_set']}, {case['images']} images, stride {case['stride']}"
    return f"{what}, {row['pass']}, {where}"


def _spread(entry: dict[str, Any]) -> float:
    """Half the distance of the quantiles, as a share of the median."""
    took = entry["time_ms"]
    return (took["high"] - took["low"]) / (2 * took["median"])


def _lost(new: dict[str, Any], old: dict[str, Any]) -> Iterator[str]:
    """The peers against whom a row's ratio fell by more than all four spreads explain."""
    for peer, entry in new["entries"].items():
        before = old["entries"].get(peer, {})
        if not (entry.get("ratio") and before.get("ratio")):
            continue
        entries = (entry, before, new["entries"]["fcnfast"], old["entries"]["fcnfast"])
        noise = ALWAYS + math.hypot(*map(_spread, entries))
        if entry["ratio"] * (1 + noise) < before["ratio"]:
            yield f"{peer} {before['ratio']:.2f}x -> {entry['ratio']:.2f}x (noise {noise:.0%})"


def require_same(new: dict[str, Any], old: dict[str, Any]) -> None:
    """ValueError when ratios of two measurements cannot be compared: another device or type."""
    for key in SAME:
        if new[key] != old[key]:
            raise ValueError(f"the baseline's {key} is {old[key]!r}, not {new[key]!r}")


def regressions(new: dict[str, Any], old: dict[str, Any]) -> tuple[list[str], int]:
    """The rows in which fcnfast lost against a peer, named; and how many rows both have."""
    before = {_key(row): row for row in old["rows"]}
    common = [(row, before[_key(row)]) for row in new["rows"] if _key(row) in before]
    lost = [f"{_name(row)}: {what}" for row, other in common for what in _lost(row, other)]
    return lost, len(common)
