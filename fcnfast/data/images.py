"""Pictures and label maps on disk: read anything a person may have, write nothing half-done."""

import contextlib
import glob
import io
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import ImageError, LabelError
from .classes import IGNORE_INDEX, ClassTable
from .decode import MAX_PIXELS, PathLike, Picture, open_picture, to_rgb, upright

IMAGE_EXTENSIONS = frozenset(
    (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg")
    + (".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
"""The extensions (in lower case) by which `image_paths` knows a picture."""

_temporary_number = itertools.count()


def read_image(path: PathLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as 8-bit RGB, upright.

    The EXIF orientation is applied. Gray, palette and bilevel pictures get equal channels or their
    palette's colors; transparency is laid over white; 16-bit samples are scaled from 0..65535;
    32-bit integers and floats are stretched from their own smallest to their own largest value
    (floats that lie within 0..1 are scaled from there); CMYK is converted without a color profile.
    Of an animation or a multi-page file the first picture is taken.

    Args:
        path: the file.
        max_pixels: width times height above which the picture is refused before it is decoded.
            `PIL.Image.MAX_IMAGE_PIXELS` holds besides.

    Returns:
        A loaded picture of mode RGB.

    Raises:
        ImageError: missing, a folder, empty, cut, no picture, or too large; it names the file.
    """
    image, _, orientation = open_picture(path, ImageError, max_pixels)
    try:
        rgb = upright(to_rgb(image), orientation)
    except (ValueError, OSError, MemoryError) as error:
        raise ImageError(f"{path}: cannot convert mode {image.mode} to RGB: {error}") from error
    rgb.info = {}  # the orientation is used up; writing the picture must not repeat it
    return rgb


def picture_size(path: PathLike) -> tuple[int, int]:
    """The width and height of a picture as they stand in the head of its file, undecoded.

    Raises:
        ImageError: not the head of a picture; the message names the file.
    """
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: cannot be read as a picture") from error


def read_labels(
    path: PathLike, table: ClassTable, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read a label picture: palette indices or gray values are the labels.

    Args:
        path: the file, usually a PNG of mode P or L.
        table: the classes; its void values, and 255, become 255.
        size: (height, width) that the labels must have, when given.

    Returns:
        uint8 array H×W with values 0..len(table)-1 and 255.

    Raises:
        LabelError: no readable index picture, another size, or values that are no class; the
            message names the file, the value and how many pixels have it.
    """
    picture = open_picture(path, LabelError, MAX_PIXELS)
    image = picture.image
    if size is not None and (image.height, image.width) != tuple(size):
        raise LabelError(
            f"{path}: the labels are {image.width}x{image.height} pixels, "
            f"their image is {size[1]}x{size[0]}"
        )
    values = _label_values(path, picture)
    present, counts = _value_counts(values)
    voids = {*table.void_values, IGNORE_INDEX}
    for value, count in zip(present, counts, strict=True):
        if value >= len(table) and value not in voids or value < 0:
            raise LabelError(
                f"{path}: value {value} (pixels: {count}) is no class of {table.name!r}: "
                f"0 to {len(table) - 1}, or {', '.join(map(str, sorted(voids)))} for none"
            )
    lookup = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    lookup[: len(table)] = np.arange(len(table))
    return lookup[values]


def write_labels(
    path: PathLike, labels: np.ndarray, palette: Sequence[tuple[int, int, int]]
) -> None:
    """Write a label map as an index PNG (mode P, 8 bits), whole or not at all.

    Args:
        path: the file to make or replace.
        labels: uint8 array H×W.
        palette: (red, green, blue) for the labels 0, 1, ...; labels beyond it are drawn black.

    Raises:
        TypeError, ValueError: `labels` is no uint8 array H×W, or the palette is too long.
        OSError: the file cannot be written; nothing is left behind.
    """
    if not isinstance(labels, np.ndarray) or labels.dtype != np.uint8:
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"labels must be a uint8 array, not {kind}")
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(f"labels must be H×W with at least one pixel, not {labels.shape}")
    if len(palette) > 256:
        raise ValueError(f"a palette has at most 256 colors, not {len(palette)}")
    colors = [channel for color in palette for channel in color]
    image = Image.fromarray(np.ascontiguousarray(labels))
    # All 256 entries, so that PIL keeps 8 bits for a label and 255 has a color.
    image.putpalette(colors + [0] * (768 - len(colors)))
    write_image(path, image, format="PNG")


def write_image(path: PathLike, image: Image.Image, **options: object) -> None:
    """Write a picture in the format of its extension, whole or not at all.

    Args:
        path: the file to make or replace.
        image: the picture.
        options: for `PIL.Image.Image.save`, such as ``quality`` or ``format``.

    Raises:
        ValueError: an extension that PIL cannot write.
        OSError: the file cannot be written; nothing is left behind.
    """
    # Encoded in memory first: what remains to go wrong on the disk is one write and one rename.
    encoded = io.BytesIO()
    format_name = options.pop("format", None) or Image.registered_extensions().get(
        Path(path).suffix.lower()
    )
    if format_name is None:
        raise ValueError(f"{path}: no picture format has the extension {Path(path).suffix!r}")
    image.save(encoded, format=str(format_name), **options)
    write_bytes(path, encoded.getbuffer())


def write_bytes(path: PathLike, content: bytes | memoryview) -> None:
    """Write a file whole or not at all: a temporary neighbor takes its name when it is complete.

    Raises:
        OSError: no room, no right, no such folder; the temporary file is removed.
    """
    path = Path(path)
    temporary = path.parent / f".fcnfast-{os.getpid()}-{next(_temporary_number)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            # The system names the temporary file; the user knows only the real one.
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


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
    candidates = Path(spec).iterdir() if os.path.isdir(spec) else _glob(spec)
    return sorted(
        path
        for path in candidates
        if path.suffix.lower() in IMAGE_EXTENSIONS
        and not path.name.startswith(".")
        and os.path.isfile(path)
    )


def _glob(pattern: str) -> Iterable[Path]:
    """Return the files that a pattern matches."""
    return map(Path, glob.glob(pattern, recursive=True))


def _why_nothing(spec: str) -> str:
    """Say why a spec stands for no picture."""
    if os.path.isdir(spec):
        return "no pictures in this folder"
    return "no picture matches" if glob.has_magic(spec) else "no such file or folder"


def _label_values(path: PathLike, picture: Picture) -> np.ndarray:
    """Return the stored integers of an index or gray picture, H×W."""
    image = picture.image
    if image.mode == "P":
        return np.asarray(image)
    if image.mode == "L":
        # PIL stretches gray values of 2 and 4 bits to 0..255; labels are the values themselves.
        stretched = {"L;2": 85, "L;4": 17}.get(picture.raw_mode, 1)
        return np.asarray(image) // np.uint8(stretched)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.int64)
    raise LabelError(
        f"{path}: labels must be palette indices or gray values, not a picture of mode {image.mode}"
    )


def _value_counts(values: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the values that occur, in order, and how many pixels have each."""
    if values.dtype == np.uint8:  # no sorting of a picture's pixels
        histogram = np.bincount(values.ravel(), minlength=256)
        present = np.flatnonzero(histogram)
        return present.tolist(), histogram[present].tolist()
    present, counts = np.unique(values, return_counts=True)
    return present.tolist(), counts.tolist()
