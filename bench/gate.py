"""The judgment of the static table: limits in absolute numbers, and nothing worse than before."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from bench.static_case import Case

Row = Mapping[str, Any]

# Of processor time, so that other work on the machine does not count; the lesser of two tries.
COMPILE_SECONDS = 4.0
# A compiler moves registers and instructions about: less than this is no change for the worse.
MORE_REGISTERS, MORE_INSTRUCTIONS, MORE = 8, 8, 0.03
# The target whose figures for a unit of work are limited.
JUDGED = "sm_90"


class Fault(NamedTuple):
    """A row or a case, and what is wrong with it."""

    name: str
    what: str


def row_name(case: str, kernel: str, target: str) -> str:
    """How a row is called in the table."""
    return f"{case} / {kernel} / {target}"


def family_of(name: str) -> str:
    """The family of kernels that a row is of."""
    return name.partition(".")[0]


def _row_faults(row: Row, case: Case, wide: bool) -> Iterator[str]:
    if row["spills"]:
        yield f"spills ({row['spills']})"
    if wide and row["wide_stores"] < row["stores"]:
        yield f"only {row['wide_stores']} of {row['stores']} stores are 16 bytes wide"
    if row["seconds"] > COMPILE_SECONDS:
        yield f"takes {row['seconds']:.1f} s to compile, more than {COMPILE_SECONDS:.0f}"


def _sums(rows: Mapping[str, Row]) -> dict[str, dict[str, dict[str, float]]]:
    """By case and unit the figures on the judged target, summed over the kernels of the call."""
    sums: dict[str, dict[str, dict[str, float]]] = {}
    for name, row in rows.items():
        case, _, target = name.split(" / ")
        if target != JUDGED:
            continue
        for unit, figures in row.get("per_unit", {}).items():
            total = sums.setdefault(case, {}).setdefault(unit, {})
            for figure, value in figures.items():
                total[figure] = total.get(figure, 0.0) + value
    return sums


def over_limits(rows: Mapping[str, Row], cases: Mapping[str, Case]) -> list[Fault]:
    """What exceeds an absolute limit."""
    faults = []
    for name, row in rows.items():
        case, kernel, target = name.split(" / ")
        wide = kernel.split()[0] in cases[case].wide and target.startswith("sm_")
        faults += [Fault(name, what) for what in _row_faults(row, cases[case], wide)]
    sums = _sums(rows)
    for name, case in cases.items():
        for unit, limits in case.limits.items():
            found = sums.get(name, {}).get(unit, {})
            for figure, most in limits.items():
                if figure not in found:
                    faults.append(Fault(name, f"no {figure} a {unit} were found on {JUDGED}"))
                elif found[figure] > most:
                    much = f"{found[figure]:.3g} {figure} a {unit} on {JUDGED}"
                    faults.append(Fault(name, f"{much}, more than {most:g}"))
    return faults


def _more(figure: str, new: float, old: float) -> bool:
    least = MORE_INSTRUCTIONS if figure == "instructions" else 1e-3
    return new > old + max(old * MORE, least)


def _figures(row: Row, units: Collection[str]) -> dict[str, float]:
    """What a row is compared by: its figures a unit, or else those of the whole kernel."""
    if not units:
        return {figure: row[figure] for figure in ("instructions", "loads", "ex2")}
    return {
        f"{figure} a {unit}": value
        for unit in units
        for figure, value in row["per_unit"][unit].items()
    }


def changes_for_the_worse(new: Row, old: Row) -> list[str]:
    """What a row has more of than before, beyond what a compiler moves about."""
    found = []
    if new["registers"] > old["registers"] + MORE_REGISTERS:
        found.append(f"registers {old['registers']} -> {new['registers']}")
    if new["spills"] > old["spills"]:
        found.append(f"spills {old['spills']} -> {new['spills']}")
    if new["shared"] > old["shared"]:
        found.append(f"shared memory {old['shared']} -> {new['shared']}")
    if new["wide_stores"] * old["stores"] < old["wide_stores"] * new["stores"]:
        pair = [f"{row['wide_stores']} of {row['stores']}" for row in (old, new)]
        found.append(f"16-byte stores {pair[0]} -> {pair[1]}")
    units = [unit for unit in new.get("per_unit", {}) if unit in old.get("per_unit", {})]
    before, after = _figures(old, units), _figures(new, units)
    found += [
        f"{name} {before[name]:.4g} -> {value:.4g}"
        for name, value in after.items()
        if _more(name, value, before[name])
    ]
    return found


def worse(rows: Mapping[str, Row], kept: Mapping[str, Row]) -> list[Fault]:
    """The rows that changed for the worse against another table."""
    return [
        Fault(name, what)
        for name, row in rows.items()
        if name in kept
        for what in changes_for_the_worse(row, kept[name])
    ]
