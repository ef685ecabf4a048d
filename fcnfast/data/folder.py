"""Folders of pictures: those to segment, and a data set of pictures and labels paired by name."""

import glob
import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import DatasetError, ImageError
from ..files import PathLike
from .classes import CAMVID, ClassTable
from .images import IMAGE_EXTENSIONS, read_image, read_labels

_LAYOUTS = (("{split}", "{split}annot"), ("images/{split}", "labels/{split}"))


class Sample(NamedTuple):
    """A picture (RGB), its labels (uint8 H×W, 255 for no class), and the file's stem."""

    image: Image.Image
    labels: np.ndarray
    name: str


def demo_scene() -> Sample:
    """Return the package's own picture: a drawn street, 480×360, with exact labels of `CAMVID`."""
    folder = Path(__file__).with_name("demo")
    labels = read_labels(folder / "street_labels.png", CAMVID)
    return Sample(read_image(folder / "street.png"), labels, "street")


class FolderDataset:
    """Pictures and index label pictures of one split.

    The pictures lie in ``root/split`` and the labels in ``root/{split}annot`` (as CamVid has them),
    or in ``root/images/split`` and ``root/labels/split``; a picture and its labels share the file
    name up to the extension.

    Args:
        root: the data set's folder.
        split: the split's name, such as "train".
        table: the classes that the labels must fit.
        labels: another folder with the labels, absolute or relative to `root`.
        include: glob pattern(s) of the names to keep, matched against the file name and its stem.
        exclude: glob pattern(s) of the names to leave out, such as "0016E5*" for one drive.
        cache: keep decoded samples in memory (H·W·4 bytes each) after their first use.

    Attributes:
        samples: (image path, label path) for each item, sorted by name.

    Raises:
        DatasetError: a folder is missing or empty, files have no partner (they are named), or the
            patterns leave nothing.
    """

    def __init__(
        self,
        root: PathLike,
        split: str,
        table: ClassTable,
        labels: PathLike | None = None,
        *,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        cache: bool = False,
    ) -> None:
        self.table = table
        self.cache = cache
        image_folder, label_folder = _folders(Path(root), split, labels)
        self.samples = _pair(image_folder, label_folder, include, exclude)
        self._decoded: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """Read one sample; its labels are read-only.

        Raises:
            ImageError, LabelError: a file is damaged, sizes differ, or a value is not a class.
            IndexError: no such sample.
        """
        index = range(len(self.samples))[index]  # negative indices, IndexError
        image_path, label_path = self.samples[index]
        if index in self._decoded:
            pixels, labels = self._decoded[index]
            return Sample(Image.fromarray(pixels), labels, image_path.stem)
        image = read_image(image_path)
        labels = read_labels(label_path, self.table, size=(image.height, image.width))
        labels.setflags(write=False)
        if self.cache:
            self._decoded[index] = (np.asarray(image), labels)
        return Sample(image, labels, image_path.stem)


def _folders(root: Path, split: str, labels: PathLike | None) -> tuple[Path, Path]:
    """Return the folders of the pictures and of the labels."""
    if not root.is_dir():
        raise DatasetError(f"{root}: no such data set folder")
    for images_at, labels_at in _LAYOUTS:
        image_folder = root / images_at.format(split=split)
        label_folder = root / (labels or labels_at.format(split=split))
        if split and image_folder.is_dir() and label_folder.is_dir():
            return image_folder, label_folder
    expected = " or ".join(
        f"{images_at} and {labels or labels_at}".format(split=split)
        for images_at, labels_at in _LAYOUTS
    )
    raise DatasetError(f"{root}: split {split!r} needs the folders {expected}")


def _pair(
    image_folder: Path,
    label_folder: Path,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
) -> list[tuple[Path, Path]]:
    """Match the files of two folders by stem, after the filters."""
    images = _by_stem(image_folder, include, exclude)
    labels = _by_stem(label_folder, include, exclude)
    if not images:
        filtered = include is not None or exclude is not None
        reason = "no pictures left by the patterns" if filtered else "no pictures in this folder"
        raise DatasetError(f"{image_folder}: {reason}")
    for found, others, kind, folder in (
        (images, labels, "labels", label_folder),
        (labels, images, "picture", image_folder),
    ):
        alone = [found[stem].name for stem in sorted(found.keys() - others.keys())]
        if alone:
            more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
            raise DatasetError(f"{folder}: no {kind} for {', '.join(alone[:5])}{more}")
    return [(images[stem], labels[stem]) for stem in sorted(images)]


def _by_stem(
    folder: Path, include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> dict[str, Path]:
    """Return the pictures of a folder that pass the filters, keyed by stem."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not _is_picture(path):
            continue
        if include is not None and not _matches(path, include):
            continue
        if exclude is not None and _matches(path, exclude):
            continue
        if path.stem in found:
            raise DatasetError(
                f"{folder}: {found[path.stem].name} and {path.name} share one name; keep one"
            )
        found[path.stem] = path
    return found


def _is_picture(path: Path) -> bool:
    """Tell by its name whether a file in a folder is a picture."""
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def _matches(path: Path, patterns: str | Sequence[str]) -> bool:
    """Tell whether the file name, or its stem, matches one of the glob patterns."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(
        fnmatchcase(name, pattern) for name in (path.name, path.stem) for pattern in patterns
    )


def image_paths(specs: PathLike | Iterable[PathLike]) -> list[Path]:
    """Find the pictures that files, folders and glob patterns stand for.

    A folder gives the pictures directly in it, by extension; a pattern (``**`` reaches into
    subfolders) those that it matches; a file stands for itself whatever its extension. Each
    folder's and pattern's pictures are sorted, the order of `specs` is kept, and a picture that
    is met twice is returned once.

    A spec that yields nothing is returned as it is when others yield pictures, so that reading it
    fails as one picture among the others.

    Raises:
        ImageError: none of `specs` yields a picture.
    """
    if isinstance(specs, (str, os.PathLike)):
        specs = [specs]
    found: dict[str, Path] = {}
    missing: list[str] = []
    for spec in specs:
        paths = _expand(os.fspath(spec))
        if not paths:
            missing.append(f"{spec}: {_why_nothing(os.fspath(spec))}")
        for path in paths or [Path(spec)]:
            found.setdefault(os.path.realpath(path), path)
    if not any(os.path.isfile(path) for path in found):
        raise ImageError("; ".join(missing) or "no picture was given")
    return list(found.values())


def _expand(spec: str) -> list[Path]:
    """Return the pictures that one file, folder or pattern stands for, sorted; maybe none."""
    if os.path.isfile(spec):
        return [Path(spec)]
    inside = os.path.isdir(spec)
    candidates = Path(spec).iterdir() if inside else map(Path, glob.glob(spec, recursive=True))
    return sorted(path for path in candidates if _is_picture(path) and os.path.isfile(path))


def _why_nothing(spec: str) -> str:
    """Say why a spec stands for no picture."""
    if os.path.isdir(spec):
        return "no pictures in this folder"
    return "no picture matches" if glob.has_magic(spec) else "no such file or folder"
