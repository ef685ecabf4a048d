"""Class tables: which label value means what, and the color it is drawn in."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from operator import index
from pathlib import Path
from typing import Any

from ..errors import DatasetError

IGNORE_INDEX = 255
"""The label of pixels that belong to no class; in memory it is always this value."""

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set: label ``k`` is ``names[k]``, drawn in ``palette[k]``.

    Args:
        name: the table's name, as `class_table` finds it.
        names: 1 to 255 different names.
        palette: (red, green, blue) in 0..255 of each class; also decodes label pictures in colors.
        void_values: the values in label files that mean "no class", 255 in memory. 255 itself is
            void, listed or not, unless `label_map` names it.
        label_map: pairs of what a file stores, an integer or a color (red, green, blue), and the
            label that it becomes: 0 to C - 1, or 255 for no class. If it names any integers, only
            those and the void values are valid.

    ValueError if the table contradicts itself; the message says how.
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[Color, ...]
    void_values: tuple[int, ...] = (IGNORE_INDEX,)
    label_map: tuple[tuple[int | Color, int], ...] = ()

    def __post_init__(self) -> None:
        # Numbers of NumPy become Python's, which JSON can hold.
        plain: dict[str, Callable[[Any], Any]] = {
            "names": tuple,
            "palette": lambda colors: tuple(map(_plain, colors)),
            "void_values": lambda values: tuple(map(index, values)),
            "label_map": lambda pairs: tuple((_plain(key), index(label)) for key, label in pairs),
        }
        for field, convert in plain.items():
            value = getattr(self, field)
            try:
                object.__setattr__(self, field, convert(value))
            except (TypeError, ValueError) as error:
                told = f"{field} cannot be {value!r}: {error}"
                raise ValueError(f"class table {self.name!r}: {told}") from None
        count = len(self.names)
        if not 1 <= count <= IGNORE_INDEX:
            raise ValueError(f"class table {self.name!r} has {count} classes; 1 to 255 fit uint8")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ValueError(f"class table {self.name!r} repeats the name {repeated[0]!r}")
        if len(self.palette) != count:
            colors = f"{len(self.palette)} colors"
            raise ValueError(f"class table {self.name!r} has {count} names but {colors}")
        for name, color in zip(self.names, self.palette, strict=True):
            if len(color) != 3 or not all(0 <= channel <= 255 for channel in color):
                raise ValueError(f"class {name!r}: color {color!r} is not three values 0 to 255")
        keys = [key for key, _ in self.label_map]
        for key, label in self.label_map:
            if not isinstance(key, int) and len(key) != 3:
                raise ValueError(f"label map of {self.name!r}: {key} is no integer or color")
            if not 0 <= label < count and label != IGNORE_INDEX:
                raise ValueError(f"label map of {self.name!r}: {key} has no class {label}")
            if keys.count(key) > 1:
                raise ValueError(f"label map of {self.name!r} repeats {key}")
        for value in self.void_values:
            if not 0 <= value < 1 << 16:
                raise ValueError(f"void value {value} of {self.name!r} is not in 0..65535")
            label = self._meant().get(value, IGNORE_INDEX)
            if IGNORE_INDEX not in (value, label):
                also = f"is also the class {self.names[label]!r}"
                raise ValueError(f"void value {value} of {self.name!r} {also}")

    @property
    def has_map(self) -> bool:
        """Whether the label map names integers, so that they do not stand for themselves."""
        return any(isinstance(key, int) for key, _ in self.label_map)

    def _meant(self) -> dict[int, int]:
        """Return the label of each integer that stands for a class or is in the label map."""
        named = {key: label for key, label in self.label_map if isinstance(key, int)}
        return named or {value: value for value in range(len(self.names))}

    def stored(self) -> dict[int, int]:
        """Return the label that each stored integer becomes; all others are invalid."""
        return {value: IGNORE_INDEX for value in (*self.void_values, IGNORE_INDEX)} | self._meant()

    def colors(self) -> dict[Color, int]:
        """Return the label that each color becomes; the first of equal colors counts."""
        known = {color: label for label, color in reversed(list(enumerate(self.palette)))}
        return known | {key: label for key, label in self.label_map if not isinstance(key, int)}

    def __len__(self) -> int:
        return len(self.names)


def _plain(key: Any) -> Any:
    """Return an integer, or a color as a tuple of integers."""
    return tuple(map(index, key)) if hasattr(key, "__len__") else index(key)


def voc_palette(count: int) -> tuple[Color, ...]:
    """Return the first `count` (0 to 256) colors of PASCAL VOC's palette, the default of any table.

    Bits 0, 1, 2 of k are the top bits of red, green and blue in color k, bits 3, 4, 5 the next
    lower ones, and so on. All 256 colors differ. ValueError for any other count.
    """
    if not 0 <= count <= 256:
        raise ValueError(f"a palette has 0 to 256 colors, not {count}")

    def channel(k: int, first: int) -> int:
        return sum((k >> (3 * level + first) & 1) << (7 - level) for level in range(3))

    return tuple((channel(k, 0), channel(k, 1), channel(k, 2)) for k in range(count))


def read_json(path: Path, what: str) -> Any:
    """Read JSON in UTF-8, UTF-16 or UTF-32; DatasetError if the file cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}: cannot read {what}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not a JSON file: {error}") from error


_SYNONYMS = {"classes": "names", "ignore": "void_values"}


def table_from_json(path: Path, entries: object, also: tuple[str, ...] = ()) -> ClassTable:
    """Build a table from a file's JSON object without the entries in `also`, or DatasetError."""
    try:
        if not isinstance(entries, dict):
            raise TypeError(f"expected an object, found a {type(entries).__name__}")
        entries = {_SYNONYMS.get(k, str(k)): value for k, value in entries.items() if k not in also}
        unknown = sorted(entries.keys() - {f.name for f in fields(ClassTable)})
        if unknown:
            raise ValueError(f"unknown entry {unknown[0]!r}")
        names = entries["names"]
        if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
            raise TypeError('"names" is not a list of strings')
        voids = entries.get("void_values", [IGNORE_INDEX])
        voids = [voids] if type(voids) is int else voids
        if not isinstance(voids, list) or not all(type(item) is int for item in voids):
            raise TypeError('"void_values" is not a list of integers')
        palette = entries.get("palette", voc_palette(min(len(names), 256)))
        if not isinstance(palette, (list, tuple)):
            raise TypeError('"palette" is not a list of colors')
        for color in palette:
            if not isinstance(color, (list, tuple)) or [type(part) for part in color] != [int] * 3:
                raise TypeError(f"color {color!r} is not three integers")
        label_map = _label_map(entries.get("label_map", {}), names)
        name = str(entries.get("name", path.stem))
        return ClassTable(name, tuple(names), tuple(map(tuple, palette)), tuple(voids), label_map)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DatasetError(f"{path}: not a class table: {detail}") from error


def _label_map(entries: object, names: list[str]) -> tuple[tuple[int | Color, int], ...]:
    """Read {"stored integer or #rrggbb": "name of a class, or void"}; null is void, too."""
    if not isinstance(entries, Mapping):
        raise TypeError('"label_map" is not an object')
    labels: dict[str | None, int] = {None: IGNORE_INDEX, "void": IGNORE_INDEX}
    labels |= {name: label for label, name in enumerate(names)}
    pairs: list[tuple[int | Color, int]] = []
    for key, name in entries.items():
        if not isinstance(name, str | None) or name not in labels:
            raise ValueError(f'label map: {name!r} is neither a class nor "void"')
        stored: int | Color
        try:
            if key.startswith("#") and len(key) == 7:
                red, green, blue = bytes.fromhex(key[1:])
                stored = red, green, blue
            else:
                stored = int(key)
        except ValueError:
            raise ValueError(f"label map: {key!r} is neither an integer nor #rrggbb") from None
        pairs.append((stored, labels[name]))
    return tuple(pairs)


def table_to_json(table: ClassTable) -> dict[str, Any]:
    """Return a table as the JSON object that `table_from_json` reads."""
    void = None if "void" in table.names else "void"
    names = {IGNORE_INDEX: void} | dict(enumerate(table.names))
    keys = [str(k) if isinstance(k, int) else "#" + bytes(k).hex() for k, _ in table.label_map]
    return {
        "name": table.name,
        "names": list(table.names),
        "palette": [list(color) for color in table.palette],
        "void_values": list(table.void_values),
        "label_map": {k: names[label] for k, (_, label) in zip(keys, table.label_map, strict=True)},
    }
