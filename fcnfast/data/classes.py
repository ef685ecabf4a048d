"""Class tables: which label value means what, and the color it is drawn in."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError

IGNORE_INDEX = 255
"""The label of pixels that belong to no class; in memory it is always this value."""


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set: label ``k`` is ``names[k]``, drawn in ``palette[k]``.

    Args:
        name: the table's name, as `class_table` finds it.
        names: one name for each class; 1 to 255 of them, all different.
        palette: one (red, green, blue) in 0..255 for each class.
        void_values: the values in label files that mean "no class". They become 255 in memory;
            255 itself always counts as void, listed or not.

    Raises:
        ValueError: a table that contradicts itself; the message says how.
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    void_values: tuple[int, ...] = (IGNORE_INDEX,)

    def __post_init__(self) -> None:
        count = len(self.names)
        if not 1 <= count <= IGNORE_INDEX:
            raise ValueError(f"class table {self.name!r} has {count} classes; 1 to 255 fit uint8")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ValueError(f"class table {self.name!r} repeats the name {repeated[0]!r}")
        if len(self.palette) != count:
            raise ValueError(
                f"class table {self.name!r} has {count} names but {len(self.palette)} colors"
            )
        for name, color in zip(self.names, self.palette, strict=True):
            if len(color) != 3 or not all(0 <= channel <= 255 for channel in color):
                raise ValueError(f"class {name!r}: color {color!r} is not three values 0 to 255")
        for value in self.void_values:
            if not 0 <= value <= 255:
                raise ValueError(f"void value {value} of {self.name!r} is not in 0..255")
            if value < count:
                raise ValueError(
                    f"void value {value} of {self.name!r} is also the class {self.names[value]!r}"
                )

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.names)


def voc_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return the first `count` colors of PASCAL VOC's palette, a default for any table.

    Color k takes the bits 0, 1, 2 of k as the top bits of red, green and blue, the bits 3, 4, 5
    as the next lower ones, and so on; no two of the 256 colors are equal.

    Raises:
        ValueError: `count` outside 0..256.
    """
    if not 0 <= count <= 256:
        raise ValueError(f"a palette has 0 to 256 colors, not {count}")
    colors = []
    for index in range(count):
        channels = [0, 0, 0]
        for level in range(3):  # 8 bits of the index: three each for red and green, two for blue
            for channel in range(3):
                bit = index >> (3 * level + channel) & 1
                channels[channel] |= bit << (7 - level)
        colors.append((channels[0], channels[1], channels[2]))
    return tuple(colors)


_CAMVID_NAMES = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"
_VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
)

CAMVID = ClassTable(
    name="camvid",
    names=tuple(_CAMVID_NAMES.split()),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    void_values=(11, 255),
)
"""CamVid's 11 classes in SegNet's order; 11 is "unlabeled"."""

VOC = ClassTable(
    name="voc",
    names=tuple(_VOC_NAMES.split()),
    palette=voc_palette(21),
)
"""PASCAL VOC's background and 20 object classes; 255 is the border around objects."""

_TABLES = {table.name: table for table in (CAMVID, VOC)}


def class_table(spec: str | Path | ClassTable) -> ClassTable:
    """Return the class table that `spec` stands for.

    Args:
        spec: a table; the name of a known one ("camvid", "voc"); or the path of a JSON file
            ``{"names": [...], "palette": [[r, g, b], ...], "void_values": [...]}`` in which the
            palette (default: VOC's) and the void values (default: 255) may be left out.

    Raises:
        DatasetError: an unknown name, or a file that is missing or holds no such table.
    """
    if isinstance(spec, ClassTable):
        return spec
    if str(spec).lower() in _TABLES:
        return _TABLES[str(spec).lower()]
    path = Path(spec)
    if path.suffix.lower() != ".json":
        known = ", ".join(sorted(_TABLES))
        raise DatasetError(f"{spec}: no class table of that name ({known}), nor a .json file")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path}: cannot read the class table: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not a JSON file: {error}") from error
    try:
        return _from_json(path.stem, entries)
    except (KeyError, TypeError, ValueError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DatasetError(f"{path}: not a class table: {detail}") from error


def _from_json(name: str, entries: object) -> ClassTable:
    """Build a table from parsed JSON; KeyError, TypeError or ValueError say what is wrong."""
    if not isinstance(entries, dict):
        raise TypeError(f"expected an object, found a {type(entries).__name__}")
    unknown = sorted(set(entries) - {"names", "palette", "void_values"})
    if unknown:
        raise ValueError(f"unknown entry {unknown[0]!r}")
    names = entries["names"]
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise TypeError('"names" is not a list of strings')
    palette = entries.get("palette", voc_palette(min(len(names), 256)))
    void_values = entries.get("void_values", [IGNORE_INDEX])
    if not isinstance(void_values, list) or not all(type(item) is int for item in void_values):
        raise TypeError('"void_values" is not a list of integers')
    colors = []
    for color in palette:
        red, green, blue = color
        if not all(type(channel) is int for channel in (red, green, blue)):
            raise TypeError(f"color {color!r} is not three integers")
        colors.append((red, green, blue))
    return ClassTable(name, tuple(names), tuple(colors), tuple(void_values))
