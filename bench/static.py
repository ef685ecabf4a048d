"""The static gate: every kernel compiled ahead of time for the GPUs that it is meant for.

    python bench/run.py --static                  # compile what changed, judge, keep the table
    python bench/run.py --static --all            # compile everything
    python bench/run.py --static --against FILE   # compare with another table than the kept one
    python bench/run.py --static --accept         # keep what got worse; the limits hold still

No GPU is needed. Exits with 1 when a kernel exceeds a limit or got worse. It has a process of its
own, because Triton's interpreter, which the tests use, and its compiler cannot share one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, nothing installed

import triton

from bench.gate import Fault, family_of, over_limits, worse
from bench.static_cases import FAMILIES, cases
from bench.static_rows import compile_rows, wanted_rows

KEPT = Path(__file__).resolve().parent / "results" / "static.json"
COLUMNS = ("registers", "spills", "shared", "16-byte st", "loads", "instr", "EX2", "compile s")


def read_table(path: Path) -> dict[str, Any]:
    """A kept table; ValueError when the file holds none."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {"triton": table["triton"], "rows": dict(table["rows"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no table of the static gate: {error!r}") from error


def write_table(path: Path, triton: str, rows: Mapping[str, Any]) -> None:
    """One line a row, so that a change shows its row."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f'{{\n "triton": {json.dumps(triton)},\n "rows": {{\n{lines}\n }}\n}}\n'
    path.write_text(text, encoding="utf-8")


def table_lines(rows: Mapping[str, Any], fresh: Collection[str]) -> list[str]:
    """The table; rows that were compiled just now have an asterisk."""
    width = max(map(len, rows), default=0) + 2
    lines = [" " * width + "".join(f"{c:>11}" for c in COLUMNS) + "  for each unit of work"]
    for name, row in sorted(rows.items()):
        cells = [row["registers"], row["spills"], row["shared"]]
        cells += [f"{row['wide_stores']}/{row['stores']}", row["loads"], row["instructions"]]
        cells += [row["ex2"], f"{row['seconds']:.2f}"]
        units = [
            f"  {unit}: " + ", ".join(f"{value:.3g} {what}" for what, value in figures.items())
            for unit, figures in row.get("per_unit", {}).items()
        ]
        mark = "*" if name in fresh else " "
        cells = [f"{c:>11}" for c in cells]
        lines.append("".join([f"{name + mark:<{width}}", *cells, *units]))
    return lines


def gate(options: argparse.Namespace) -> int:
    """Compile what changed, print the table, judge it, and keep it; the exit code.

    Rows with a fault are kept as they were before, so that they stay faulty. Tables of different
    versions of Triton are compared, and one replaces the other, on request only.

    Raises:
        ValueError: when a file holds no table.
    """
    path, version = options.table, triton.__version__
    table = read_table(path) if path.exists() else {"triton": version, "rows": {}}
    other = read_table(options.against) if options.against else table
    chosen, untouched = cases(options.op), FAMILIES.keys() - set(options.op)
    wanted = wanted_rows(chosen)
    old = {name: row for name, row in table["rows"].items() if name in wanted}
    stale = {n: w for n, w in wanted.items() if old.get(n, {}).get("hash") != w.fingerprint}
    fresh, failed = compile_rows(wanted if options.all else stale)
    rows = {n: row for n, row in old.items() if n not in stale} | fresh
    print(*table_lines(rows, fresh.keys()), sep="\n")
    print(f"\nTriton {version}: {len(rows)} rows; {len(fresh)} of them (*) compiled now")

    faults = [Fault(*pair) for pair in failed.items()] + over_limits(rows, chosen)
    same = table["triton"] == version
    changes = worse(rows, other["rows"]) if same or options.against else []
    if not (same or options.against):
        print(f"not compared with the kept table, which is of Triton {table['triton']}")
    for word, found in (("FAULT", faults), ("ACCEPTED" if options.accept else "WORSE", changes)):
        print(*(f"{word}: {fault.name}: {fault.what}\n" for fault in found), sep="", end="")
    bad = {fault.name for fault in [*faults, *([] if options.accept else changes)]}
    if options.accept or (same and not options.against):
        others = {n: r for n, r in table["rows"].items() if family_of(n) in untouched}
        good = {name: row for name, row in rows.items() if name not in bad}
        write_table(path, version, others | old | good)
    print("the gate is shut" if bad else "no kernel exceeds a limit or got worse")
    return 1 if bad else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the gate; the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench/run.py --static",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    names = list(FAMILIES)
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME", "choices": names, "default": names}
    option("--op", help=f"only the kernels of: any of {', '.join(names)}", **several)
    option("--all", action="store_true", help="compile every row")
    option("--against", type=Path, metavar="FILE", help="compare with this table")
    option("--accept", action="store_true", help="keep rows that got worse")
    option("--table", type=Path, metavar="FILE", default=KEPT, help=f"the kept table ({KEPT})")
    options = parser.parse_args(arguments)
    try:
        return gate(options)
    except ValueError as error:
        print(f"bench/run.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
