"""Pictures and label maps on disk: read anything a person may have, write nothing half-done."""

import glob
import io
import itertools
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import ImageError, InputError, LabelError
from .classes import IGNORE_INDEX, ClassTable

MAX_PIXELS = 178_956_970
"""Pictures of more pixels are refused: there PIL speaks of a bomb (0.7 GB decoded)."""

IMAGE_EXTENSIONS = frozenset(
    (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg")
    + (".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
"""The extensions (in lower case) by which `image_paths` knows a picture."""

# Only these decoders are tried, whatever the file is called: PIL knows formats that start other
# programs (EPS runs Ghostscript), and a photo never needs them.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_temporary_number = itertools.count()

PathLike = str | os.PathLike[str]


def read_image(path: PathLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as 8-bit RGB, upright.

    The EXIF orientation is applied. Grey, palette and bilevel pictures get equal channels or their
    palette's colours; transparency is laid over white; 16-bit samples are scaled from 0..65535;
    32-bit integers and floats are stretched from their own smallest to their own largest value
    (floats that lie within 0..1 are scaled from there); CMYK is converted without a colour profile.
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
    image = _open(path, ImageError, max_pixels)
    orientation = _orientation(image)
    try:
        rgb = _to_rgb(image)
        return rgb.transpose(_ORIENTATIONS[orientation]) if orientation in _ORIENTATIONS else rgb
    except (ValueError, OSError) as error:
        raise ImageError(f"{path}: cannot convert mode {image.mode} to RGB: {error}") from error


def read_labels(
    path: PathLike, table: ClassTable, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read a label picture: palette indices or grey values are the labels.

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
    image = _open(path, LabelError, MAX_PIXELS)
    if size is not None and (image.height, image.width) != tuple(size):
        raise LabelError(
            f"{path}: the labels are {image.width}x{image.height} pixels, "
            f"their image is {size[1]}x{size[0]}"
        )
    values = _label_values(path, image)
    lookup = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    lookup[: len(table)] = np.arange(len(table))
    legal = {*range(len(table)), *table.void_values, IGNORE_INDEX}
    found, counts = _value_counts(values)
    for value, count in zip(found, counts, strict=True):
        if value not in legal:
            raise LabelError(
                f"{path}: value {value} in {count} pixels is no class of {table.name!r} "
                f"(0 to {len(table) - 1}, void {', '.join(map(str, sorted(_voids(table))))})"
            )
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
        raise ValueError(f"a palette has at most 256 colours, not {len(palette)}")
    colours = [channel for colour in palette for channel in colour]
    image = Image.fromarray(np.ascontiguousarray(labels))
    # All 256 entries, so that PIL keeps 8 bits for a label and 255 has a colour.
    image.putpalette(colours + [0] * (768 - len(colours)))
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
    """Write a file whole or not at all: a temporary neighbour takes its name when it is complete.

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
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # PIL and the system name the temporary file; the user knows only the real one.
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
    found: dict[Path, Path] = {}
    missing: list[str] = []
    for spec in specs:
        paths = _expand(Path(spec))
        if not paths:
            path, reason = Path(spec), "no such file or folder"
            if path.is_dir():
                reason = "no pictures in this folder"
            elif glob.has_magic(str(spec)):
                reason = "no picture matches this pattern"
            missing.append(f"{spec}: {reason}")
        for path in paths or [Path(spec)]:
            found.setdefault(Path(os.path.realpath(path)), path)
    if not found:
        raise ImageError("no picture was given")
    if len(missing) == len(found) or all(not path.is_file() for path in found.values()):
        raise ImageError("; ".join(missing))
    return list(found.values())


def _expand(path: Path) -> list[Path]:
    """Return the pictures that one file, folder or pattern stands for, sorted; maybe none."""
    if path.is_dir():
        candidates: Iterable[Path] = path.iterdir()
    elif path.is_file():
        return [path]
    else:
        candidates = map(Path, glob.glob(str(path), recursive=True))
    return sorted(
        candidate
        for candidate in candidates
        if candidate.suffix.lower() in IMAGE_EXTENSIONS
        and not candidate.name.startswith(".")
        and candidate.is_file()
    )


def _open(path: PathLike, failure: type[InputError], max_pixels: int) -> Image.Image:
    """Open and decode a picture in its own mode; raise `failure` with the file's name."""
    if not Image.registered_extensions():  # registers every decoder on first use
        raise failure(f"{path}: PIL has no decoders")
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        if os.path.isdir(path):
            raise failure(f"{path}: is a folder, not a picture")
        if os.path.getsize(path) == 0:
            raise failure(f"{path}: the file is empty (0 bytes)")
        with warnings.catch_warnings():
            # Between half its limit and its limit PIL only warns; the limit below decides.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=formats)
        with image:
            if image.width * image.height > max_pixels:
                raise failure(
                    f"{path}: {image.width}x{image.height} pixels are more than the {max_pixels} "
                    "that are read"
                )
            image.load()
    except failure:
        raise
    except Exception as error:  # decoders raise anything at all on a damaged file
        raise failure(f"{path}: {_reason(error)}") from error
    return image


def _reason(error: Exception) -> str:
    """Say in plain words why a picture could not be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture, or of a kind that is not read"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too many pixels: {error}"
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged picture: {error}"


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) when there is none or it cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB as `read_image` says."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float32) / 257.0)
    if image.mode in ("I", "F"):
        # Releases of PIL before 11 open 16-bit grey PNGs, and all of them PGMs, as mode I.
        sixteen_bits = image.mode == "I" and image.format in ("PNG", "PPM")
        values = np.asarray(image).astype(np.float64)
        return _grey(values / 257.0 if sixteen_bits else _stretch(values, image.mode == "F"))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):  # premultiplied
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _stretch(values: np.ndarray, floating: bool) -> np.ndarray:
    """Map values (float64) to 0..255 by their own range; what is not finite becomes the lowest."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    low, high = float(values[finite].min()), float(values[finite].max())
    if floating and low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    scale = 255.0 / (high - low) if high > low else 0.0
    return (np.where(finite, values, low) - low) * scale


def _grey(values: np.ndarray) -> Image.Image:
    """Make an RGB picture with equal channels from values in 0..255."""
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


def _label_values(path: PathLike, image: Image.Image) -> np.ndarray:
    """Return the stored integers of an index or grey picture, H×W."""
    if image.mode in ("P", "L"):
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.int64)
    raise LabelError(
        f"{path}: labels must be palette indices or grey values, not a picture of mode {image.mode}"
    )


def _value_counts(values: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the values that occur and their numbers of pixels."""
    if values.dtype == np.uint8:
        histogram = np.bincount(values.ravel(), minlength=256)
        present = np.flatnonzero(histogram)
        return present.tolist(), histogram[present].tolist()
    present, counts = np.unique(values, return_counts=True)
    return present.tolist(), counts.tolist()


def _voids(table: ClassTable) -> set[int]:
    """Return the values that mean "no class"."""
    return {*table.void_values, IGNORE_INDEX}
