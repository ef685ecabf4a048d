"""The named class tables, each in the order of its data set's own labels."""

from dataclasses import replace
from pathlib import Path

from ..errors import DatasetError
from .classes import IGNORE_INDEX, ClassTable, Color, read_json, table_from_json, voc_palette


def _colors(text: str) -> tuple[Color, ...]:
    return tuple((c[0], c[1], c[2]) for c in map(bytes.fromhex, text.split()))


def _names(text: str) -> tuple[str, ...]:
    return tuple(map(str.strip, text.split("," if "," in text else None)))


CAMVID = ClassTable(
    name="camvid",
    names=_names("Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"),
    palette=_colors("808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0"),
    void_values=(11, 255),
    label_map=(((0, 0, 0), IGNORE_INDEX),),
)
"""CamVid's 11 classes in SegNet's order; 11 is "unlabeled"."""

VOC = ClassTable(
    name="voc",
    names=_names(
        "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog "
        "horse motorbike person pottedplant sheep sofa train tvmonitor"
    ),
    palette=voc_palette(21),
    label_map=(((224, 224, 192), IGNORE_INDEX),),
)
"""PASCAL VOC's background and 20 object classes; 255 is the border around objects."""

_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

CITYSCAPES = ClassTable(
    name="cityscapes",
    names=_names(
        "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, "
        "terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle"
    ),
    palette=_colors(
        "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 "
        "4682b4 dc143c ff0000 00008e 000046 003c64 005064 0000e6 770b20"
    ),
)
"""Cityscapes' 19 classes as train ids; `CITYSCAPES_IDS` reads ``_gtFine_labelIds``."""

CITYSCAPES_IDS = replace(
    CITYSCAPES,
    label_map=tuple(
        (value, _CITYSCAPES_IDS.index(value) if value in _CITYSCAPES_IDS else IGNORE_INDEX)
        for value in range(34)
    ),
)
"""The same classes, read from label ids 0 to 33; the other 15 ids are no class."""


def _from_one(name: str, text: str) -> ClassTable:
    """Return a table whose files store 1 to C for the classes and 0 for none."""
    names = _names(text)
    label_map = ((0, IGNORE_INDEX), *((k + 1, k) for k in range(len(names))))
    return ClassTable(name, names, voc_palette(len(names)), label_map=label_map)


ADE20K = _from_one(
    "ade20k",
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, "
    "person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, "
    "shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, "
    "bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, "
    "sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool "
    "table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, "
    "flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, "
    "boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, "
    "streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, "
    "bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer "
    "belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, "
    "lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, "
    "ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, "
    "clock, flag",
)
"""ADE20K's 150 classes of the scene parsing benchmark; files store 1 to 150, and 0 for none."""

NYUD = _from_one(
    "nyud",
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, "
    "blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, "
    "refridgerator, television, paper, towel, shower curtain, box, whiteboard, person, night "
    "stand, toilet, sink, lamp, bathtub, bag, otherstructure, otherfurniture, otherprop",
)
"""NYUDv2's 40 classes; files store 1 to 40, and 0 for none."""

SIFTFLOW = _from_one(
    "siftflow",
    "awning balcony bird boat bridge building bus car cow crosswalk desert door fence field grass "
    "moon mountain person plant pole river road rock sand sea sidewalk sign sky staircase "
    "streetlight sun tree window",
)
"""SIFT Flow's 33 semantic classes; files store 1 to 33, and 0 for none."""

SIFTFLOW_GEO = replace(
    _from_one("siftflow-geo", "sky horizontal vertical"),
    label_map=((-1, IGNORE_INDEX), (0, IGNORE_INDEX), (1, 0), (2, 1), (3, 2)),
)
"""SIFT Flow's 3 geometric classes; files store 1 to 3, and -1 for none."""

_CONTEXT = (
    "aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat "
    "ceiling chair cloth computer cow cup curtain dog door fence floor flower food grass ground "
    "horse keyboard light motorbike mountain mouse person plate platform pottedplant road rock "
    "sheep shelves sidewalk sign sky snow sofa table track train tree truck tvmonitor wall water "
    "window wood"
)

PASCAL_CONTEXT = ClassTable("pascal-context", ("background", *_names(_CONTEXT)), voc_palette(60))
"""PASCAL-Context's 59 classes after "background", which is everything else and is trained."""

PASCAL_CONTEXT_59 = _from_one("pascal-context-59", _CONTEXT)
"""PASCAL-Context's 59 classes alone; everything else is no class."""

_ALL = (
    *(ADE20K, CAMVID, CITYSCAPES, NYUD, PASCAL_CONTEXT, PASCAL_CONTEXT_59, SIFTFLOW),
    *(SIFTFLOW_GEO, VOC),
)
TABLES = {table.name: table for table in _ALL}


def class_table(spec: str | Path | ClassTable) -> ClassTable:
    """Return the class table that `spec` stands for.

    That is a table; the name of a known one, such as "camvid" or "voc"; or the path of a JSON file
    ``{"names": [...], "palette": [[r, g, b], ...], "void_values": [...], "label_map": {"0": "void",
    "1": "wall", "#ff0000": "wall"}}`` in which everything but the names is optional: the palette is
    then VOC's, 255 is void, and values stand for themselves. The label map's keys are stored
    integers or colors, its values the names of classes or "void". DatasetError if the name is
    unknown, or the file is missing or not such a table.
    """
    if isinstance(spec, ClassTable):
        return spec
    if str(spec).lower() in TABLES:
        return TABLES[str(spec).lower()]
    path = Path(spec)
    if path.suffix.lower() != ".json":
        known = ", ".join(sorted(TABLES))
        raise DatasetError(f"{spec}: no class table of that name ({known}), nor a .json file")
    return table_from_json(path, read_json(path, "the class table"))
