"""Data sets of pictures and labels, folders paired by file name, and finding pictures on disk."""

import glob
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..errors import DatasetError, ImageError, LabelError, NoSplitError
from ..files import PathLike
from .classes import ClassTable, read_json, table_from_json, table_to_json
from .images import IMAGE_EXTENSIONS, as_photo, picture_size, read_image, rgbx
from .labels import read_labels, size_error, to_labels
from .tables import CAMVID, class_table

_LAYOUTS = (
    ("{split}", "{split}annot"),
    *(("images/{split}", f"{labels}/{{split}}") for labels in ("labels", "annotations", "masks")),
)

Patterns = str | Sequence[str] | None


class Sample(NamedTuple):
    """A picture (RGB, or RGBX of four channels), its labels (uint8 H×W, 255: none), its name."""

    image: Image.Image
    labels: np.ndarray
    name: str


def main_labels(labels: np.ndarray) -> np.ndarray:
    """Return labels H×W unchanged, or those of the first head of labels H×W×K."""
    return labels if labels.ndim == 2 else labels[..., 0]


def count_pixels(labels: np.ndarray) -> np.ndarray:
    """Return the number of pixels of each label, int64 256, in `main_labels`."""
    return np.bincount(main_labels(labels).ravel(), minlength=256)


def demo_scene() -> Sample:
    """Return the package's own picture: a drawn street, 480×360, with exact labels of `CAMVID`."""
    folder = Path(__file__).with_name("demo")
    labels = read_labels(folder / "street_labels.png", CAMVID)
    return Sample(read_image(folder / "street.png"), labels, "street")


class SegmentationDataset(Dataset[Any]):
    """Pictures and their labels, read on demand.

    Args:
        samples: (picture, labels) of each item: paths, which the two loaders read.
        table: the classes that the labels must fit.
        load_image: reads a picture as 8-bit RGB, or with `channels`.
        load_labels: reads labels, uint8 H×W, or H×W×K for K heads.
        names: a name for each item, by default the stem of the picture's file.
        heads: what the K planes of the labels are for, as networks name their outputs.
        include, exclude: glob patterns of the file names, stems or names to keep or to leave out,
            such as "0016E5*" for one drive.
        transform: makes the item of (image, labels), such as `train_transform`'s two tensors. By
            default an item is a `Sample`.
        cache: keep decoded samples in memory (H·W·4 bytes each) after their first use.
        bit_depth, channels: as in `read_image`.
        pairs: a data set of (image, labels) items instead of files; see `wrap_dataset`.
        guessed: the table was not named, but is the usual one of the layout.
        passed_over: files of its folders that are not pictures.

    DatasetError if there are no pictures, or the patterns leave none.
    """

    def __init__(
        self,
        samples: Sequence[tuple[Path, Path]],
        table: ClassTable,
        *,
        load_image: Callable[[Path], Image.Image] | None = None,
        load_labels: Callable[[Path, ClassTable], np.ndarray] = read_labels,
        names: Sequence[str] | None = None,
        heads: tuple[str, ...] = ("out",),
        include: Patterns = None,
        exclude: Patterns = None,
        transform: Callable[[Image.Image, np.ndarray], Any] | None = None,
        cache: bool = False,
        bit_depth: int | None = None,
        channels: int = 3,
        pairs: Any = None,
        guessed: bool = False,
        passed_over: Sequence[Path] = (),
    ) -> None:
        names = [image.stem for image, _ in samples] if names is None else names
        if not samples:
            raise DatasetError("data set: no pictures")
        kept = [k for k, n in enumerate(names) if _passes(samples[k][0], n, include, exclude)]
        if not kept:
            raise DatasetError(f"{samples[0][0].parent}: the patterns leave no pictures")
        self.samples = [samples[k] for k in kept]
        self.names = [names[k] for k in kept]
        self.table, self.heads, self.guessed = table, heads, guessed
        self.transform, self.cache, self.channels = transform, cache, channels
        self.passed_over = list(passed_over)
        self._image = load_image or partial(read_image, bit_depth=bit_depth, channels=channels)
        self._labels, self._pairs = load_labels, pairs
        self._sized_by_file = load_image is None and pairs is None
        self._decoded: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        """Read one sample; its labels are read-only.

        ImageError or LabelError if a file is damaged, sizes differ, or a value is not a class.
        """
        index = range(len(self.samples))[index]  # negative indices, IndexError
        if index in self._decoded:
            pixels, labels = self._decoded[index]
            image = rgbx(pixels)
        else:
            image, labels = self._read(index)
            if image.size != labels.shape[1::-1]:
                path, label_path = self.samples[index]
                where = label_path if self._pairs is None else f"item {self.names[index]}"
                error = size_error(where, labels.shape, image.size[::-1])
                if self._sized_by_file and picture_size(path) == labels.shape[1::-1]:
                    told = "EXIF turns it upright, and the labels were drawn on the unrotated photo"
                    error = LabelError(f"{error}: {told}")
                raise error
            if self.cache:
                self._decoded[index] = (np.asarray(image), labels)
        if self.transform is not None:
            return self.transform(image, labels)
        return Sample(image, labels, self.names[index])

    def _read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        if self._pairs is None:
            return self._image(self.samples[index][0]), self.labels(index)
        name = self.names[index]
        item = self._pairs[int(name)]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            found = f"a {type(item).__name__}"
            if isinstance(item, Mapping):
                found += f" with {', '.join(map(repr, item))}"
            raise TypeError(f"item {name}: must be (image, labels), not {found}")
        image, labels = item[:2]
        labels = np.asarray(labels)
        if labels.ndim != 2 or labels.dtype.kind not in "ui":
            found = f"{labels.dtype} {labels.shape}"
            raise TypeError(f"item {name}: labels must be integers H×W, not {found}")
        labels = to_labels(labels, self.table, f"item {name}")
        labels.setflags(write=False)
        return as_photo(image, channels=self.channels), labels

    def labels(self, index: int) -> np.ndarray:
        """Read only the labels of one sample, read-only; LabelError as for the sample."""
        if index in self._decoded:
            return self._decoded[index][1]
        if self._pairs is not None:
            return self._read(index)[1]
        labels = self._labels(self.samples[index][1], self.table)
        labels.setflags(write=False)
        return labels

    def size(self, index: int) -> tuple[int, int]:
        """Return a picture's (width, height) before EXIF rotation; ImageError as for the sample."""
        path = self.samples[index][0]
        return picture_size(path) if self._sized_by_file else self._read(index)[0].size


def wrap_dataset(dataset: Any, table: ClassTable, channels: int = 3) -> SegmentationDataset:
    """Wrap any data set of (image, labels) pairs for fcnfast's training and evaluation.

    `dataset` has ``len`` (DatasetError if 0) and, by index, items that begin with an image of 3 or
    4 `channels` as `Segmenter` takes it (a PIL image, uint8 H×W×3, a uint8 tensor 3×H×W, a path)
    and integer labels H×W, an array or a tensor. `table` says which of them mean none.
    """
    if isinstance(dataset, SegmentationDataset) and dataset.transform is None:
        return dataset
    pairs = [(Path(str(k)),) * 2 for k in range(len(dataset))]
    return SegmentationDataset(pairs, table, pairs=dataset, channels=channels)


def open_folder(
    root: PathLike,
    split: str,
    table: ClassTable | None = None,
    labels: PathLike | None = None,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    default: ClassTable | None = None,
    **options: Any,
) -> SegmentationDataset:
    """Open pictures and label pictures that share their names, in two folders for each split.

    Pictures lie in ``root/split`` and labels in ``root/{split}annot`` (as CamVid has them), or in
    ``root/images/split`` and ``root/labels/split`` (or annotations, or masks). A ``dataset.json``
    in `root` may name other folders as ``"images"`` and ``"labels"``, such as ``"masks/{split}"``,
    and the ``"classes"`` (names, a known table's name or a JSON file), with ``"palette"``,
    ``"ignore"`` (void values) and ``"label_map"`` as in a class table's file.

    `labels` is a different folder with the labels, absolute or relative to `root`. The classes are
    `table`, or those of ``dataset.json``, then `default`, then CamVid's in CamVid's layout. Other
    arguments are those of `SegmentationDataset`. DatasetError if a folder is missing or empty,
    files have no partner, the patterns leave nothing, or no classes are named.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such data set folder")
    described, named = _description(root)
    tried, table = [], table or named or default
    for layout in _LAYOUTS:
        places = described.get("images", layout[0]), labels or described.get("labels", layout[1])
        names = [os.fspath(place).replace("{split}", split) for place in places]
        folders = [root / name for name in names]
        if split and all(folder.is_dir() for folder in folders):
            break
        tried.append(" and ".join(names))
    else:
        expected = " or ".join(dict.fromkeys(tried))
        inside = f" (in {root})" if labels else ""
        raise NoSplitError(f"{root}: split {split!r} needs the folders {expected}{inside}")
    guessed = table is None and folders[1].name == f"{split}annot"
    if guessed:
        table = CAMVID
    if table is None:
        told = 'give --classes TABLE, or put "classes": ["background", ...] into dataset.json'
        raise DatasetError(f"{root}: nothing names its classes: {told}")
    pictures, masks = (_by_stem(folder, include, exclude) for folder in folders)
    if not pictures:
        filtered = include or exclude
        reason = "the patterns leave no pictures" if filtered else "no pictures in this folder"
        raise DatasetError(f"{folders[0]}: {reason}")
    if alone := [pictures[stem].name for stem in sorted(pictures.keys() - masks.keys())]:
        raise DatasetError(f"{folders[1]}: no labels for {shortened(alone)}")
    if alone := [masks[stem].name for stem in sorted(masks.keys() - pictures.keys())]:
        raise DatasetError(f"{folders[0]}: no picture for {shortened(alone)}")
    samples, passed = [(pictures[k], masks[k]) for k in sorted(pictures)], passed_over(folders)
    return SegmentationDataset(samples, table, guessed=guessed, passed_over=passed, **options)


def _description(root: Path) -> tuple[dict[str, str], ClassTable | None]:
    """Read dataset.json: where the files are, and the classes."""
    path = root / "dataset.json"
    if not path.exists():
        return {}, None
    entries = read_json(path, "the description of the data set")
    if not isinstance(entries, dict):
        raise DatasetError(f"{path}: expected an object, found a {type(entries).__name__}")
    places = {key: entries[key] for key in ("images", "labels") if key in entries}
    for key, place in places.items():
        if not isinstance(place, str):
            raise DatasetError(f'{path}: "{key}" must be a folder such as "{key}/{{split}}"')
    classes = entries.get("classes", entries.get("names"))
    if classes is None:
        return places, None
    if isinstance(classes, str):
        table = class_table(root / classes if classes.lower().endswith(".json") else classes)
        others = {k: v for k, v in entries.items() if k not in ("classes", "names")}
        entries = {**table_to_json(table), **others}
    return places, table_from_json(path, {"name": root.resolve().name, **entries}, tuple(places))


def shortened(names: Sequence[str], most: int = 5) -> str:
    """Join names with commas; of many, only the first and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _by_stem(folder: Path, include: Patterns, exclude: Patterns) -> dict[str, Path]:
    """Return the pictures of a folder that pass the filters, keyed by stem (composed: NFC)."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not _is_picture(path) or not _passes(path, path.stem, include, exclude):
            continue
        other = found.setdefault(nfc(path.stem), path)
        if other is not path:
            both = f"{other.name} and {path.name}"
            raise DatasetError(f"{folder}: {both} share one name; keep one")
    return found


def nfc(text: str) -> str:
    """Return a name with composed letters: file systems differ in composing them."""
    return unicodedata.normalize("NFC", text)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def _passes(path: Path, name: str, include: Patterns, exclude: Patterns) -> bool:
    """Tell whether the patterns keep an item, by its file's name, stem and its own name."""

    def matches(patterns: str | Sequence[str]) -> bool:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        names = {nfc(text) for text in (path.name, path.stem, name)}
        return any(fnmatchcase(text, nfc(pattern)) for text in names for pattern in patterns)

    return (not include or matches(include)) and not (exclude and matches(exclude))


def image_paths(specs: PathLike | Iterable[PathLike]) -> list[Path]:
    """Find the pictures that files, folders and glob patterns stand for; ImageError if none.

    A folder gives the pictures directly in it, by extension; a pattern (``**`` reaches into
    subfolders) those that it matches; a file itself. Each one's pictures are sorted, in the order
    of `specs`, without repetitions. A spec that yields nothing is returned as it is, so that
    reading it fails among the others.
    """
    found: dict[str, Path] = {}
    missing: list[str] = []
    for spec in [specs] if isinstance(specs, (str, os.PathLike)) else specs:
        name = os.fspath(spec)
        if os.path.isdir(name):
            reason, candidates = "no pictures in this folder", list(Path(name).iterdir())
        else:
            reason = "no picture matches" if glob.has_magic(name) else "no such file or folder"
            reason = reason if name else "the path is empty ('')"
            candidates = [Path(path) for path in glob.glob(name, recursive=True)]
        paths = sorted(p for p in candidates if _is_picture(p) and (p.is_file() or _is_broken(p)))
        if os.path.isfile(name):
            paths = [Path(name)]
        if not paths:
            missing.append(f"{name}: {reason}" if name else reason)
        for path in paths or [Path(name)]:
            found.setdefault(os.path.realpath(path), path)
    if not any(os.path.isfile(path) for path in found):
        missing += [f"{path}: a broken link" for path in found.values() if _is_broken(path)]
        raise ImageError("; ".join(missing) or "no picture was given")
    return list(found.values())


def _is_broken(path: Path) -> bool:
    """Tell whether this is a broken link, which fails among the others."""
    return path.is_symlink() and not path.exists()


def passed_over(specs: Iterable[PathLike]) -> list[Path]:
    """Return the visible files of folders and patterns in `specs` that `image_paths` leaves out."""
    inside: set[Path] = set()
    for spec in specs:
        spec = os.fspath(spec)
        if os.path.isdir(spec):
            inside.update(Path(spec).iterdir())
        elif not os.path.isfile(spec) and glob.has_magic(spec):
            inside.update(Path(path) for path in glob.glob(spec, recursive=True))
    visible = (path for path in inside if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in visible if not _is_picture(path))
