"""The data sets by name: where each keeps its pictures and labels, and what the labels mean.

Each function opens one split, by the data set's own name; "a+b" joins two lists. `table` has the
classes, `options` are those of `SegmentationDataset`. Missing folders, lists, pictures or labels
raise DatasetError, which names them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DatasetError, ImageError, LabelError, NoSplitError
from ..files import PathLike, output_names
from . import tables
from .classes import IGNORE_INDEX, ClassTable
from .folder import SegmentationDataset, open_folder, shortened
from .images import IMAGE_EXTENSIONS, decode
from .labels import read_labels
from .matfiles import mat_labels, nyud_labels, nyud_picture, read_mat

# Two paths; or a name, followed in VOC's lists of one class by -1, 0 or 1.
_TWO_PATHS = re.compile(r"(.*?\.\w+)\s+(\S.*\.\w+)")
_NAME = re.compile(r"(.*?)(?:\s+-1|\s\s+[01])?")


def _read_list(path: Path) -> list[tuple[str, ...]]:
    """Read the lines of a list file, UTF-8 or Latin-1: a name or two paths, maybe with spaces."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot read the list: {error.strerror}") from error
    utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    how = ("utf-16", "replace") if utf16 else ("utf-8-sig", "surrogateescape")
    text = content.decode(*how)
    lines = [line.replace("\\", "/").strip() for line in text.splitlines()]
    rows = [_TWO_PATHS.fullmatch(line) or _NAME.fullmatch(line) for line in lines if line]
    if not rows:
        raise DatasetError(f"{path}: the list is empty")
    return [row.groups() for row in rows if row]


def _stem(text: str) -> str:
    name = PurePosixPath(text)
    return name.stem if name.suffix.lower() in IMAGE_EXTENSIONS else name.name


def _ids(folder: Path, split: str) -> list[str]:
    """Return the names in the list of a split, or in those of "a+b", sorted, each once."""
    found: set[str] = set()
    for name in [split] if _is_list(split) else split.split("+"):
        given = name.endswith(".txt") or _is_list(name)
        path = Path(name) if given else folder / f"{name}.txt"
        if not path.is_file():
            lists = sorted(entry.stem for entry in folder.glob("*.txt"))
            known = f": it has {shortened(lists)}" if lists else ""
            raise NoSplitError(f"{path}: no such list{known}")
        found |= {_stem(row[0]) for row in _read_list(path)}
    return sorted(found)


def _is_list(name: str) -> bool:
    """Tell whether this is the path of a file, not the name of a split."""
    return len(Path(name).parts) > 1 and Path(name).is_file()


def _below(root: PathLike, *patterns: str, needs: str) -> Path:
    """Return the one folder, `root` or a match of a pattern below it, that contains `needs`."""
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such data set folder")
    for found in ([root], *(sorted(root.glob(pattern)) for pattern in patterns)):
        places = [place for place in found if (place / needs).exists() and not _litter(place)]
        if len(places) > 1:
            names = shortened([place.name for place in places])
            raise DatasetError(f"{root}: holds {names}: name one of them")
        if places:
            return places[0]
    raise DatasetError(f"{root}: no {needs} in it or in {' or '.join(patterns)}")


def _litter(place: Path) -> bool:
    """Tell whether a folder is hidden, or what macOS puts beside others."""
    return place.name.startswith(".") or place.name == "__MACOSX"


Place = Path | Iterable[Path]  # a file, or several of which the first that exists counts


def _first(place: Place) -> Path | None:
    """Return the first path that exists, with composed or decomposed letters (NFC, NFD)."""
    for path in [place] if isinstance(place, Path) else place:
        for form in (None, "NFC", "NFD"):
            spelled = path if form is None else Path(unicodedata.normalize(form, str(path)))
            if spelled.exists():
                return spelled
    return None


def _present(places: Mapping[str, tuple[Place, Place]], where: Path) -> list[tuple[Path, Path]]:
    """Return the (picture, labels) of each name, in order; DatasetError if one is missing."""
    samples = {name: (_first(image), _first(labels)) for name, (image, labels) in places.items()}
    for place, kind in ((0, "picture"), (1, "labels")):
        missing = [name for name, pair in samples.items() if pair[place] is None]
        if missing:
            raise DatasetError(f"{where}: no {kind} for {shortened(missing)}")
    return [(image, labels) for image, labels in samples.values() if image and labels]


def voc(
    root: PathLike,
    split: str = "train",
    *,
    table: ClassTable = tables.VOC,
    labels: PathLike | None = None,
    **options: Any,
) -> SegmentationDataset:
    """Open PASCAL VOC 2007 to 2012, SBD, or both.

    Args:
        root: a folder such as ``VOCdevkit/VOC2012``, or one above it; or SBD's
            ``benchmark_RELEASE/dataset`` alone. Otherwise SBD is ``benchmark_RELEASE/dataset``,
            ``sbd`` or ``SBD`` in VOC's folder or up to three above it.
        split: a list of ``ImageSets/Segmentation``, or the path of any list file of one or two
            columns. "sbd-train" and "sbd-val" are SBD's own. Without a list, "seg11valid" is VOC
            2011's val without SBD's train, and "trainaug" is both trains without VOC's val.
        labels: the folder of the labels, by default the first of ``SegmentationClass``,
            ``SegmentationClassAug`` and SBD's ``cls`` that has a picture's labels.
    """
    home = Path(root)
    sbd: Path | None = home
    if not (home / "cls").is_dir():
        below = ("VOC20*", "VOCdevkit/VOC20*", "TrainVal/VOCdevkit/VOC20*")
        home = _below(root, *below, needs="JPEGImages")
        names = ("benchmark_RELEASE/dataset", "sbd", "SBD", "sbd/benchmark_RELEASE/dataset")
        near = [place / name for place in (home, *home.resolve().parents[:3]) for name in names]
        sbd = next((place for place in near if (place / "cls").is_dir()), None)
    folders = [labels] if labels else ["SegmentationClass", "SegmentationClassAug"]
    places: dict[str, tuple[Place, Place]] = {}
    for name in _voc_names(home, sbd, split):
        pictures = [home / "JPEGImages" / f"{name}.jpg"]
        truths = [home / folder / f"{name}.png" for folder in folders]
        if sbd is not None:
            pictures.append(sbd / "img" / f"{name}.jpg")
            if not labels:
                truths += [sbd / "cls" / f"{name}{suffix}" for suffix in (".mat", ".png")]
        places[name] = pictures, truths
    read = partial(_read, key="GTcls.Segmentation")
    return SegmentationDataset(_present(places, home), table, load_labels=read, **options)


def _read(path: Path, table: ClassTable, key: str) -> np.ndarray:
    return mat_labels(path, table, key) if path.suffix == ".mat" else read_labels(path, table)


def _voc_names(home: Path, sbd: Path | None, split: str) -> list[str]:
    """Return the names of a split: from its list, or by set arithmetic from other lists."""
    lists = home / "ImageSets" / "Segmentation"
    if split.endswith(".txt") or (lists / f"{split}.txt").is_file():
        return _ids(lists, split)
    if split not in ("seg11valid", "trainaug") and not split.startswith("sbd-"):
        return _ids(lists if lists.is_dir() or sbd is None else sbd, split)
    if split == "seg11valid" and home.name != "VOC2011":
        raise DatasetError(f"{home}: split 'seg11valid' needs its list, or VOC2011's val")
    if sbd is None:
        raise DatasetError(f"{home}: split {split!r} needs SBD's benchmark_RELEASE/dataset")
    if split == "seg11valid":
        return sorted({*_ids(lists, "val")} - {*_ids(sbd, "train")})
    if split == "trainaug":
        return sorted({*_ids(lists, "train"), *_ids(sbd, "train+val")} - {*_ids(lists, "val")})
    return _ids(sbd, split.removeprefix("sbd-"))


def nyud(
    root: PathLike,
    split: str = "train",
    *,
    table: ClassTable = tables.NYUD,
    modality: str = "color",
    **options: Any,
) -> SegmentationDataset:
    """Open NYUDv2: the layout of the reference implementation, or the official MATLAB file.

    `root` has ``data``, ``segmentation`` and the lists; or ``nyu_depth_v2_labeled.mat``,
    ``splits.mat`` and ``classMapping40.mat``, with the splits trainval and test and without HHA.
    `modality` is "color"; "depth", a picture of mode F in millimeters; or "hha", three channels as
    the file stores them. ValueError for any other.
    """
    if modality not in ("color", "depth", "hha"):
        raise ValueError(f'modality must be "color", "depth" or "hha", not {modality!r}')
    official = Path(root) / "nyu_depth_v2_labeled.mat"
    if official.exists():
        return _nyud_official(official, split, table, modality, options)
    home = _below(root, "nyud", needs="segmentation")
    if split == "trainval" and not (home / "trainval.txt").exists():
        split = "train+val"
    folder = home / "data" / ("images" if modality == "color" else modality)
    names, truth = [name.removeprefix("img_") for name in _ids(home, split)], home / "segmentation"
    places = {name: (folder / f"img_{name}.png", truth / f"img_{name}.mat") for name in names}
    options["load_labels"] = partial(mat_labels, key="segmentation")
    if modality == "depth":
        options["load_image"] = _read_depth
    return SegmentationDataset(_present(places, home), table, **options)


def _read_depth(path: Path) -> Image.Image:
    """Read a 16-bit depth picture as it is stored, in millimeters, as a picture of mode F."""
    values = decode(path, ImageError, lambda image: np.asarray(image).astype(np.float32))
    return Image.fromarray(values if values.ndim == 2 else values[..., 0])


def _nyud_official(
    path: Path, split: str, table: ClassTable, modality: str, options: dict[str, Any]
) -> SegmentationDataset:
    """Open a split of nyu_depth_v2_labeled.mat; picture n is called 5000 + n, as elsewhere."""
    key = {"trainval": "trainNdxs", "test": "testNdxs"}.get(split)
    if key is None:
        raise DatasetError(f"{path}: has no split {split}")
    if modality == "hha":
        raise DatasetError(f"{path}: has no modality {modality!r}")
    splits, mapping = path.with_name("splits.mat"), path.with_name("classMapping40.mat")
    for place in (splits, mapping):
        if not place.exists():
            raise DatasetError(f"{place}: is needed beside {path.name}")
    variables = read_mat(splits)
    if key not in variables:
        raise DatasetError(f"{splits}: has no variable {key!r}")
    numbers = [int(number) for number in np.ravel(variables[key])]
    options["load_image"] = partial(nyud_picture, modality=modality)
    options["load_labels"] = partial(nyud_labels, mapping=mapping)
    samples = [(path.with_name(f"{path.name}#{n}"),) * 2 for n in numbers]
    return SegmentationDataset(samples, table, names=[str(5000 + n) for n in numbers], **options)


_SIFTFLOW_SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
_SIFTFLOW_UNLABELED = ("highway_bost181", "street_urb506")


def siftflow(
    root: PathLike,
    split: str = "trainval",
    *,
    table: ClassTable = tables.SIFTFLOW,
    target: str = "both",
    **options: Any,
) -> SegmentationDataset:
    """Open SIFT Flow: 33 semantic and 3 geometric classes; trainval or test.

    `root` has ``Images``, ``SemanticLabels`` and ``GeoLabels``. Without a list, trainval is
    everything but the test pictures and the two unlabeled ones. `target` is "semantic" or
    "geometric", labels H×W; or "both", labels H×W×2 in this order. ValueError for any other.
    """
    if target not in ("semantic", "geometric", "both"):
        raise ValueError(f'target must be "semantic", "geometric" or "both", not {target!r}')
    home = _below(root, "*", needs="SemanticLabels")
    images = home / "Images" / _SIFTFLOW_SCENES
    if split == "trainval" and not (home / "trainval.txt").exists():
        left_out = {*_ids(home, "test"), *_SIFTFLOW_UNLABELED}
        names = sorted({path.stem for path in images.glob("[!.]*.jpg")} - left_out)
    else:
        names = [name for name in _ids(home, split) if name not in _SIFTFLOW_UNLABELED]
    kind, options["load_labels"] = "SemanticLabels", partial(mat_labels, key="S")
    if target == "geometric":
        kind, table = "GeoLabels", tables.SIFTFLOW_GEO
    if target == "both":
        options |= {"load_labels": _both_siftflow, "heads": ("out", "geo")}
    truth = home / kind / _SIFTFLOW_SCENES
    places = {name: (images / f"{name}.jpg", truth / f"{name}.mat") for name in names}
    return SegmentationDataset(_present(places, home), table, **options)


def _both_siftflow(path: Path, table: ClassTable) -> np.ndarray:
    geometric = path.parents[2] / "GeoLabels" / path.parent.name / path.name
    planes = mat_labels(path, table, "S"), mat_labels(geometric, tables.SIFTFLOW_GEO, "S")
    if planes[0].shape != planes[1].shape:
        sizes = " and ".join(f"{plane.shape[1]}x{plane.shape[0]}" for plane in planes)
        raise LabelError(f"{geometric}: the semantic and the geometric labels are {sizes} pixels")
    return np.stack(planes, axis=-1)


# Those of the 59 classes that the list of 459 spells differently.
_CONTEXT_SPELLINGS = {"table": "diningtable", "bedclothes": "bedcloth", "cloth": "clothes"}


def pascal_context(
    root: PathLike,
    split: str = "train",
    *,
    table: ClassTable = tables.PASCAL_CONTEXT,
    **options: Any,
) -> SegmentationDataset:
    """Open PASCAL-Context: 459 labels, mapped by name to 59 classes and "background".

    `root` has VOC2010 (``JPEGImages``) and the annotations (``labels.txt`` and
    ``trainval/ID.mat``); or a VOC2010 with ``SegmentationClassContext``. The splits are the lists
    of ``ImageSets/SegmentationContext`` or ``ImageSets/Main``. Labels that `table` does not name
    become "background", or no class if it has none.
    """
    home = _below(root, "VOC2010", "VOCdevkit/VOC2010", "*/VOC2010", needs="JPEGImages")
    lists = _first(home / "ImageSets" / name for name in ("SegmentationContext", "Main"))
    names = _ids(lists or home / "ImageSets" / "Main", split)
    truth, suffix = home / "SegmentationClassContext", ".png"
    if not truth.is_dir():
        annotations = _below(root, "*", needs="labels.txt")
        truth, suffix = annotations / "trainval", ".mat"
        table = _context_map(annotations / "labels.txt", table)
    photos, read = home / "JPEGImages", partial(_read, key="LabelMap")
    places = {name: (photos / f"{name}.jpg", truth / f"{name}{suffix}") for name in names}
    return SegmentationDataset(_present(places, truth), table, load_labels=read, **options)


def _context_map(path: Path, table: ClassTable) -> ClassTable:
    """Return a table with the label map from the list of the 459 names, "index: name"."""
    numbers = {}
    for row in _read_list(path):
        number, _, name = row[0].partition(":")
        if number.strip().isdigit():
            numbers[name.strip()] = int(number)
    rest = table.names.index("background") if "background" in table.names else IGNORE_INDEX
    labels = dict.fromkeys(range(len(numbers) + 1), rest)
    for label, name in enumerate(table.names):
        found = numbers.get(name, numbers.get(_CONTEXT_SPELLINGS.get(name, "")))
        if found is not None:
            labels[found] = label
        elif name != "background":
            raise DatasetError(f"{path}: has no class {name!r}")
    return replace(table, void_values=(), label_map=tuple(labels.items()))


def camvid(
    root: PathLike,
    split: str = "train",
    *,
    table: ClassTable = tables.CAMVID,
    labels: PathLike | None = None,
    **options: Any,
) -> SegmentationDataset:
    """Open CamVid as SegNet's authors give it: ``train`` and ``trainannot``, or their list files.

    A list ``train.txt`` takes precedence over the folders, but not over a folder of `labels`; its
    two columns are paths, which may begin with folders of another machine.
    """
    listed = Path(root) / f"{split}.txt"
    if not listed.is_file() or labels:
        return open_folder(root, split, table, labels, **options)
    rows = _read_list(listed)
    for row in rows:
        if len(row) != 2:
            raise DatasetError(f"{listed}: {row[0][:80]!r} is not a picture and its labels")
    ends = [(_ends(listed.parent, image), _ends(listed.parent, label)) for image, label in rows]
    names = output_names([image for image, _ in rows])  # folders may repeat a name
    samples = _present(dict(zip(names, ends, strict=True)), listed)
    return SegmentationDataset(samples, table, names=names, **options)


def _ends(root: Path, text: str) -> list[Path]:
    """Return where a path from another machine may be here: its endings, the longest first."""
    parts = PurePosixPath(text).parts
    return [root.joinpath(*parts[k:]) for k in range(text.startswith("/"), len(parts))]


def cityscapes(
    root: PathLike, split: str = "train", *, table: ClassTable | None = None, **options: Any
) -> SegmentationDataset:
    """Open Cityscapes: `root` has ``leftImg8bit`` and ``gtFine``; the splits are train, val, test.

    The classes are by default the 19. Labels are read from ``_gtFine_labelIds``, or from
    ``_gtFine_labelTrainIds`` if there are none.
    """
    home = _below(root, "*", needs="leftImg8bit")
    pictures = sorted((home / "leftImg8bit" / split).glob("*/[!.]*_leftImg8bit.png"))
    if not pictures:
        raise NoSplitError(f"{home / 'leftImg8bit' / split}: no CITY/*_leftImg8bit.png in it")
    truth = home / "gtFine" / split
    kind = "labelIds" if any(truth.glob("*/[!.]*_gtFine_labelIds.png")) else "labelTrainIds"
    places = {}
    for path in pictures:
        name = path.stem.removesuffix("_leftImg8bit")
        places[path.stem] = path, truth / path.parent.name / f"{name}_gtFine_{kind}.png"
    table = table or (tables.CITYSCAPES_IDS if kind == "labelIds" else tables.CITYSCAPES)
    return SegmentationDataset(_present(places, truth), table, **options)


def ade20k(
    root: PathLike, split: str = "training", *, table: ClassTable = tables.ADE20K, **options: Any
) -> SegmentationDataset:
    """Open ADE20K's scene parsing benchmark, training or validation: labels from 1, 0 is no class.

    `root` is ``ADEChallengeData2016``, or the folder above it.
    """
    home = _below(root, "*", needs="annotations")
    return open_folder(home, split, table, f"annotations/{split}", **options)


DATASETS: dict[str, Callable[..., SegmentationDataset]] = {
    "voc": voc,
    "nyud": nyud,
    "nyud-hha": partial(nyud, modality="hha"),
    "siftflow": siftflow,
    "pascal-context": pascal_context,
    "camvid": camvid,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "folder": open_folder,
}
# What to train and to validate on, where that is not called train and val.
SPLITS = {"siftflow": ("trainval", "test"), "ade20k": ("training", "validation")}


def open_dataset(
    name: str,
    root: PathLike,
    split: str,
    *,
    table: ClassTable | str | None = None,
    labels: PathLike | None = None,
    default: ClassTable | None = None,
    **options: Any,
) -> SegmentationDataset:
    """Open a split of a data set by name.

    Args:
        name: voc, nyud, nyud-hha, siftflow, pascal-context, camvid, cityscapes, ade20k or folder.
        root: its folder.
        split: one of its splits; "train" and "val" are understood everywhere.
        table: the classes, as `class_table` takes them, in place of its own.
        labels: a different folder with the labels (voc, camvid and folder).
        default: the classes of a folder that does not name its own.
        options: arguments of `SegmentationDataset`.

    DatasetError if the name is unknown, or the data set is missing or not laid out as expected.

    Example:
        >>> dataset = fcnfast.open_dataset("camvid", "CamVid", "train")
        >>> image, labels, name = dataset[0]
        >>> image.size, labels.shape
        ((480, 360), (360, 480))
    """
    if name not in DATASETS:
        raise DatasetError(f"--dataset {name}: not one of {', '.join(DATASETS)}")
    if table:
        options["table"] = tables.class_table(table)
    if labels:
        if name not in ("voc", "camvid", "folder"):
            raise DatasetError(f"--labels-dir {labels}: {name} keeps its labels in one place")
        options["labels"] = labels
    if name == "folder":
        options["default"] = default
    own = dict(zip(("train", "val"), SPLITS.get(name, ()), strict=False))
    return DATASETS[name](root, own.get(split, split), **options)


def open_chosen(
    chosen: Any, split: str, include: str, exclude: str, **options: Any
) -> SegmentationDataset:
    """Open a split of the data set that settings of a run, or parsed arguments, name."""
    options |= {"table": chosen.classes, "labels": chosen.labels_dir}
    options |= {"include": include, "exclude": exclude}
    depth = getattr(chosen, "bit_depth", None) or None
    return open_dataset(chosen.dataset, chosen.data_path, split, bit_depth=depth, **options)


def refuse_overlap(train: SegmentationDataset, val: SegmentationDataset, by_name: bool) -> None:
    """Raise DatasetError if a validation set has pictures of the training set.

    Equal paths are the same picture; `by_name`, as for VOC and SBD, equal names are.
    """
    names, others = (
        set(d.names if by_name else [str(image) for image, _ in d.samples]) for d in (train, val)
    )
    if both := [Path(name).name for name in sorted(names & others)]:
        told = f"{len(both)} of its pictures are also in the training list"
        raise DatasetError(f"--val-split: {told}: {shortened(both, 3)}")
