"""Label files: the integers that a file stores, and the labels they mean in a class table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..errors import LabelError
from ..files import PathLike
from .classes import IGNORE_INDEX, ClassTable
from .images import decode, orientation_of, raw_mode, set_raw_mode, write_image

_LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "JPEG2000": "JPEG 2000", "AVIF": "AVIF"}
_LOSSLESS_TIFF = (
    *("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "zstd", "lzma"),
    *("group3", "group4", "tiff_ccitt", "tiff_raw_16", "tiff_thunderscan"),
)


def read_labels(
    path: PathLike, table: ClassTable, size: tuple[int, ...] | None = None
) -> np.ndarray:
    """Read a label picture through a table: its stored integers, or its colors.

    Returns uint8 H×W with values 0..len(table)-1, and 255 for no class. LabelError if the file is
    unreadable or lossy, does not have `size` (height, width), or holds values or colors that are
    not classes; the message names the file, the value and its number of pixels.
    """
    values = stored_integers(path)
    if size is not None and values.shape[:2] != tuple(size):
        raise size_error(path, values.shape, size)
    return to_labels(values, table, path)


def size_error(path: PathLike, labels: tuple[int, ...], image: tuple[int, ...]) -> LabelError:
    """Return the error of labels whose (height, width) is not their picture's."""
    told = f"the labels are {labels[1]}x{labels[0]} pixels, their image is {image[1]}x{image[0]}"
    return LabelError(f"{path}: {told}")


def to_labels(values: np.ndarray, table: ClassTable, path: PathLike) -> np.ndarray:
    """Return uint8 labels H×W of stored integers H×W, or of colors H×W×3.

    An unknown value or color raises LabelError, which begins with `path`.
    """
    known = table.stored()
    in_colors = values.ndim == 3
    if in_colors:
        red, green, blue = np.moveaxis(values.astype(np.int32), 2, 0)
        values = red << 16 | green << 8 | blue
        known = {r << 16 | g << 8 | b: label for (r, g, b), label in table.colors().items()}
    if values.dtype == np.uint8:  # no sorting of a picture's pixels
        counts = np.bincount(values.ravel(), minlength=256)
        lookup = np.array([known.get(k, IGNORE_INDEX) for k in range(256)], np.uint8)
        found = np.flatnonzero(counts)
        counts, labels = counts[found], lookup[values]
    else:
        found, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        lookup = np.array([known.get(int(k), IGNORE_INDEX) for k in found], np.uint8)
        labels = lookup[places.reshape(values.shape)]
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
        if value in known:
            continue
        voids = sorted(stored for stored, label in known.items() if label == IGNORE_INDEX)
        none = f", or {', '.join(map(str, voids[:5]))} for none" if voids else ""
        wanted = f"0 to {len(table) - 1}{none}"
        if table.has_map:
            wanted = f"its label map has {len(known)} values{none}"
        shown = f"value {value}"
        if in_colors:
            shown, wanted = f"color #{value:06x}", f"its {len(table)} colors, or its label map's"
        told = f"{shown} (pixels: {count}) is not a class of {table.name!r}: {wanted}"
        raise LabelError(f"{path}: {told}")
    return labels


def stored_integers(path: PathLike) -> np.ndarray:
    """Read the integers that a label picture stores, with any bit depth, palette or scale.

    Returns an integer array H×W of palette indices, gray values or bits, or uint8 H×W×3 of colors.
    An EXIF orientation is applied, as to pictures. LabelError if the file is unreadable, or does
    not preserve integers: a lossy format, floating-point samples, transparency.
    """

    def upright(image: Image.Image) -> np.ndarray:
        values = _stored(path, image)
        return turned(values, orientation_of(image))

    return decode(path, LabelError, upright)


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Return pixels H×W or H×W×3 as an EXIF orientation (1 to 8) shows them."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    values = values[::-1] if orientation in (3, 4, 7, 8) else values
    return np.ascontiguousarray(values)


def _stored(path: PathLike, image: Image.Image) -> np.ndarray:
    _refuse_lossy(path, image)
    kind = raw_mode(image)
    if image.format == "PPM" and image.mode in ("L", "I"):
        kind = _unscale(image)
    if kind == "L;IR":  # unknown to PIL
        kind = "L;R"
        set_raw_mode(image, kind)
    if image.format == "BMP" and image.mode in ("1", "L"):
        kind = _gray_bmp(image)
    mode, bits = image.mode, kind.partition(";")[2]
    opaque = "transparency" not in image.info and not kind.startswith("RGB;16")
    if mode == "P" or mode == "RGB" and opaque:
        return np.asarray(image)
    if mode in ("LA", "PA", "RGBA"):
        values = np.asarray(image)
        if values[..., -1].min() < 255:
            raise LabelError(f"{path}: labels must not be transparent")
        return values[..., :3] if mode == "RGBA" else values[..., 0]
    if mode == "1":  # PIL makes "white" True: bits that mean black are inverted
        return np.asarray(image).astype(np.uint8) ^ np.uint8("I" in bits)
    if mode == "L":
        values = np.asarray(image)
        values = 255 - values if "I" in bits else values  # "white is zero"
        # PIL stretches gray values of 2 and 4 bits to 0..255.
        return values // np.uint8({"2": 85, "4": 17}.get(bits[:1], 1))
    if mode == "I" or mode.startswith("I;16"):
        return np.asarray(image).astype(np.int64)
    detail = f" ({kind})" if kind not in ("", mode) else ""
    wanted = "palette indices, gray values or 8-bit colors"
    raise LabelError(f"{path}: labels must be {wanted}, not a picture of mode {mode}{detail}")


def _refuse_lossy(path: PathLike, image: Image.Image) -> None:
    kind = _LOSSY.get(str(image.format))
    if image.format == "WEBP" and b"VP8L" not in _head(image):
        kind = "WebP"
    if image.format == "TIFF" and image.info.get("compression") not in (None, *_LOSSLESS_TIFF):
        kind = f"TIFF ({image.info['compression']})"
    if kind is not None:
        told = "may be lossy, so the labels cannot be recovered; save them as PNG"
        raise LabelError(f"{path}: {kind} {told}")


def _head(image: Image.Image) -> bytes:
    """Return the first bytes of a picture's file, in which WebP names its codec."""
    file: Any = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    head: bytes = file.read(4096)
    file.seek(place)
    return head


def _gray_bmp(image: Image.Image) -> str:
    """Let PIL decode a BMP with a gray palette by its bits; return its raw mode.

    PIL assumes 1 bit per pixel for two grays and 8 for more, regardless of the header.
    """
    bits = int.from_bytes(_head(image)[28:30], "little")
    if (image.mode, bits) in (("1", 1), ("L", 8)):
        return raw_mode(image)
    kind = {4: "L;4", 8: "L"}[bits]
    image._mode = "L"
    set_raw_mode(image, kind)
    return kind


def _unscale(image: Image.Image) -> str:
    """Let PIL decode a PGM as it is stored, not scaled to its maxval; return its raw mode."""
    opened: Any = image
    (codec, box, offset, arguments), *_ = opened.tile
    gray, kind = image.mode == "L", raw_mode(image)
    if codec == "ppm":
        codec, kind = "raw", "L" if gray else "I;16B"
        arguments = (kind, 0, 1)
    elif codec == "ppm_plain":
        arguments = (kind, 255 if gray else 65535)
    opened.tile = [(codec, box, offset, arguments)]
    return kind


def write_labels(
    path: PathLike, labels: np.ndarray, palette: Sequence[tuple[int, int, int]]
) -> None:
    """Write labels, uint8 H×W, as an index PNG (mode P, 8 bits), atomically: on OSError nothing.

    Labels beyond the palette, (red, green, blue) for 0, 1, ..., are drawn black. TypeError or
    ValueError if `labels` is not a uint8 array H×W, or the palette is too long.
    """
    if not isinstance(labels, np.ndarray) or labels.dtype != np.uint8:
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"labels must be a uint8 array, not {kind}")
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(f"labels must be H×W with at least one pixel, not {labels.shape}")
    write_image(path, colored(labels, palette), format="PNG")


def colored(labels: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Return labels, uint8 H×W, as a picture of mode P; labels beyond the palette are black."""
    if len(palette) > 256:
        raise ValueError(f"a palette has at most 256 colors, not {len(palette)}")
    image = Image.fromarray(np.ascontiguousarray(labels))
    colors = [channel for color in palette for channel in color]
    # All 256 entries, so that PIL keeps 8 bits per label and 255 has a color.
    image.putpalette(colors + [0] * (768 - len(colors)))
    return image
