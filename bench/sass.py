"""Machine code of NVIDIA GPUs as nvdisasm prints it: opcodes, lines of source, loops, branches."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from pathlib import Path

LINE = re.compile(r'//## File "(?P<file>[^"]+)", line (?P<line>\d+)')
LABEL = re.compile(r"^\s*\.(?P<label>L_x_\d+):")
INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<op>[A-Z][\w.]*)(?P<rest>.*)"
)
LABEL_OF_BRANCH = re.compile(r"`\(\.(L_x_\d+)\)")
LOOPS = ("for ", "while ")
LOADS = ("LDG", "LDGSTS", "LD")


@dataclass(frozen=True)
class Instruction:
    """An opcode with its modifiers ("LDG.E.128"), the label it jumps to, and its line of source.

    source: the function and the text of that line, "load: for c in range(channels):"; empty where
        it is not known.
    """

    op: str
    target: str | None
    source: str

    @property
    def stem(self) -> str:
        """The opcode without modifiers."""
        return self.op.partition(".")[0]


Code = Sequence[Instruction]


@dataclass(frozen=True)
class Region:
    """Instructions [first, last): the body of a loop, or what a branch may skip.

    source: the line of source behind it, a ``for``, a ``while`` or an ``if``, as of instructions.
    """

    first: int
    last: int
    source: str

    def of(self, code: Code) -> Code:
        """Its instructions."""
        return code[self.first : self.last]

    def holds(self, other: Region) -> bool:
        """Whether `other` lies inside of it."""
        return self.first <= other.first and other.last <= self.last and self != other


@lru_cache
def _lines(file: str) -> dict[int, str]:
    """The lines of a file by number, each behind the name of the function that it is of."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError:
        return {}
    owner = {
        line: node.name
        for node in ast.walk(ast.parse(text))  # outer functions first
        if isinstance(node, ast.FunctionDef)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(text.splitlines(), 1)
    return {n: f"{owner[n]}: {line.strip()}" for n, line in lines if n in owner}


def _is_loop(source: str) -> bool:
    return source.partition(": ")[2].startswith(LOOPS)


def parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions that ``nvdisasm -c -gi`` prints, without padding, and where labels stand."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    source = ""
    for line in text.splitlines():
        if found := LINE.search(line):
            source = _lines(found["file"]).get(int(found["line"]), "")
        elif found := LABEL.match(line):
            labels[found["label"]] = len(code)
        elif (found := INSTRUCTION.match(line)) and found["op"] != "NOP":
            jump = LABEL_OF_BRANCH.search(found["rest"]) if found["op"].startswith("BRA") else None
            code.append(Instruction(found["op"], jump[1] if jump else None, source))
    return code, labels


def count(code: Iterable[Instruction], *stems: str) -> int:
    """How many instructions have one of the opcodes, given without modifiers."""
    return sum(i.stem in stems for i in code)


def exponentials(code: Iterable[Instruction]) -> int:
    """How many instructions take an exponential."""
    return sum(i.op.startswith("MUFU.EX2") for i in code)


def _head(code: Code) -> str:
    """The line that a loop begins with: its branch's, or the one that its code names most often."""
    heads = [i.source for i in reversed(code) if _is_loop(i.source)]
    if not heads or code[-1].source == heads[0]:
        return heads[0] if heads else ""
    return Counter(heads).most_common(1)[0][0]


def _loops(code: Code, back: Mapping[int, Sequence[int]]) -> list[Region]:
    """The loops of backward branches, by where these lead to.

    Branches back to one place are of one loop, unless they belong to different lines of source: a
    loop inside of another may begin where the other does.
    """
    loops = []
    for first, branches in sorted(back.items()):
        ends: dict[str, int] = {}
        for place in branches:
            source = code[place].source
            head = source if _is_loop(source) else next(reversed(ends), "")
            ends[head] = place + 1
        loops += [
            Region(first, last, head or _head(code[first:last])) for head, last in ends.items()
        ]
    return loops


def regions(code: Code, labels: Mapping[str, int]) -> tuple[list[Region], list[Region]]:
    """Loops, from the target of a backward branch to it, and what forward branches skip.

    The endless loop at the end of a kernel, which is never reached, is left out.
    """
    back: dict[int, list[int]] = {}
    skipped = []
    for place, instruction in enumerate(code):
        if instruction.target is None:
            continue
        to = labels[instruction.target]
        if to < place:
            back.setdefault(to, []).append(place)
        elif to > place + 1:
            skipped.append(Region(place + 1, to, instruction.source))
    return _loops(code, back), skipped


def _working(code: Iterable[Instruction]) -> Counter[str]:
    """The opcodes of which an unrolled loop has a whole multiple: memory and float arithmetic."""
    return Counter(i.op for i in code if i.stem.startswith(("LDG", "STG", "MUFU", "F")))


def _unrolled(code: Code, loop: Region, rest: Region) -> int:
    """How many trips of `rest` one trip of `loop` makes, 0 when they have not the same work.

    The assembler unrolls a short loop and puts one of single trips behind it, for what is left.
    """
    mine, theirs = _working(loop.of(code)), _working(rest.of(code))
    if mine.keys() != theirs.keys():
        return 0
    factors = {mine[op] / n for op, n in theirs.items()}
    factor = factors.pop() if len(factors) == 1 else 0.0
    return int(factor) if factor > 1 and factor.is_integer() else 0


def _trips(code: Code, loops: Sequence[Region], units: float) -> dict[Region, float]:
    """The units that a trip of each of the loops, which are of one source, covers."""
    result: dict[Region, float] = {}
    former = None
    for loop in loops:
        factor = 0 if former is None or former.holds(loop) else _unrolled(code, former, loop)
        if former and factor:
            # From there to the end of `loop` code makes the trips that are left: none here.
            result[Region(former.first, loop.last, "")] = inf
            result[former] = units * factor
            former = None
        else:
            result[loop] = units
            former = loop
    return result


def per_unit(text: str, trips: Mapping[str, float], odds: Mapping[str, float]) -> dict[str, float]:
    """What a thread does for each unit of its work: instructions, exponentials, global loads.

    Args:
        text: what ``nvdisasm -c -gi`` prints of one kernel.
        trips: how many units one trip of a loop covers, by the beginning of the loop's source
            ("load: for c in"); "" stands for the whole kernel. Code in no such loop is left out.
        odds: the share of the trips that enter an ``if``, by the beginning of its source.

    Raises:
        ValueError: for a beginning that no loop or ``if`` has, and for a loop inside of a counted
            one about which nothing is said.
    """
    code, labels = parse(text)
    loops, skipped = regions(code, labels)
    units = {Region(0, len(code), ""): trips[""]} if "" in trips else {}
    for head in filter(None, trips):
        alike = [loop for loop in loops if loop.source.startswith(head)]
        if not alike:
            raise ValueError(f"no loop begins with {head!r}")
        units |= _trips(code, alike, trips[head])
    heads = tuple(filter(None, trips))
    for loop in loops:
        if not loop.source.startswith(heads or "\0") and any(u.holds(loop) for u in units):
            raise ValueError(f"how many units does one trip of {loop.source!r} cover?")
    weights = [0.0] * len(code)
    for region in sorted(units, key=lambda r: r.first - r.last):  # the innermost loop comes last
        weights[region.first : region.last] = [1 / units[region]] * (region.last - region.first)
    for head, share in odds.items():
        entered = [part for part in skipped if part.source.startswith(head)]
        if not entered:
            raise ValueError(f"no branch belongs to {head!r}")
        for part in entered:
            for place in range(part.first, part.last):
                weights[place] *= share
    pairs = list(zip(code, weights, strict=True))
    return {
        "instructions": sum(weights),
        "ex2": sum(w for i, w in pairs if i.op.startswith("MUFU.EX2")),
        "loads": sum(w for i, w in pairs if i.stem in LOADS),
    }
