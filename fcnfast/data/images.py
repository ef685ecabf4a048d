"""Pictures and label maps: any file, any mode, and what people hold in memory, as 8-bit RGB."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from ..errors import ImageError, InputError, LabelError
from ..files import PathLike, write_bytes
from .classes import IGNORE_INDEX, ClassTable

MAX_PIXELS = 178_956_970
"""Pictures of more pixels are refused: there PIL speaks of a bomb (0.7 GB decoded)."""

IMAGE_EXTENSIONS = frozenset(
    (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg")
    + (".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
"""The extensions (in lower case) by which a picture in a folder is known."""

# Only these decoders are tried, whatever the file's extension: some of PIL's others start programs
# (EPS runs Ghostscript), and no photo needs them.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

Photo = PathLike | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor


@contextlib.contextmanager
def _opened(
    source: PathLike | bytes, failure: type[InputError], max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open a picture without decoding it; any error, in the body too, is raised as `failure`.

    Args:
        source: a file, or the content of one; the content, not the extension, tells the format.
        failure: the exception to raise; its message begins with the file.
        max_pixels: width times height above which the picture is refused.
    """
    Image.init()  # registers every decoder, once
    formats = [name for name in _FORMATS if name in Image.OPEN]
    name = "the picture" if isinstance(source, bytes) else source
    try:
        if isinstance(source, bytes):
            file: PathLike | io.BytesIO = io.BytesIO(source)
            size = len(source)
        elif os.path.isdir(source):
            raise failure(f"{name}: is a folder, not a picture")
        else:
            file, size = source, os.path.getsize(source)
        if size == 0:
            raise failure(f"{name}: the file is empty (0 bytes)")
        with warnings.catch_warnings():
            # PIL warns of oddities that it can handle, and of half the size that it refuses.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=formats) as image:
                pixels = image.width * image.height
                if pixels > max_pixels:
                    raise failure(
                        f"{name}: too large: {image.width}x{image.height} is {pixels} pixels, "
                        f"at most {max_pixels} are read"
                    )
                yield image
    except failure:
        raise
    except Exception as error:  # decoders raise any exception on a damaged file
        raise failure(f"{name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Say in one line why a picture could not be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture, or of a kind that is not read"
    if isinstance(error, Image.DecompressionBombError):
        return "too large: more pixels than PIL's limit against decompression bombs"
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"the picture is damaged: {detail}"


def read_image(path: PathLike | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as 8-bit RGB, upright.

    The EXIF orientation is applied. Gray, palette and bilevel pictures get equal channels or their
    palette's colors; transparency is laid over white; 16-bit samples are scaled from 0..65535;
    32-bit integers and floats are stretched from their own smallest to their own largest value
    (floats that lie within 0..1 are scaled from there); CMYK is converted without a color profile.
    Of an animation or a multi-page file the first picture is taken.

    Args:
        path: the file, or the content of one.
        max_pixels: width times height above which the picture is refused before it is decoded.
            `PIL.Image.MAX_IMAGE_PIXELS` holds besides.

    Returns:
        A loaded picture of mode RGB.

    Raises:
        ImageError: the file is missing, a folder, empty, cut, not a picture, or too large.
    """
    with _opened(path, ImageError, max_pixels) as image:
        return _upright_rgb(image)


def picture_size(path: PathLike) -> tuple[int, int]:
    """Return (width, height) as the head of a picture's file says, without decoding it.

    Raises:
        ImageError: as in `read_image`.
    """
    with _opened(path, ImageError) as image:
        return image.size


def as_photo(image: Photo) -> Image.Image:
    """Return a picture as 8-bit RGB, upright.

    Args:
        image: a path; the content of a picture file (bytes) or a file open for reading; a PIL
            image of any mode (converted as `read_image` does, its EXIF orientation applied); a
            uint8 array H×W or H×W×1 (gray), H×W×3 (RGB) or H×W×4 (RGBA); or a uint8 tensor C×H×W
            with 1, 3 or 4 such channels.

    Raises:
        ImageError: a file that cannot be read, or a picture without pixels.
        TypeError: of another type, or an array or a tensor that is not uint8.
        ValueError: an array or a tensor of another shape.
    """
    if hasattr(image, "read"):
        image = image.read()
        if not isinstance(image, bytes):
            raise TypeError("a picture's file must be open in binary mode")
    if isinstance(image, (bytearray, memoryview)):
        image = bytes(image)
    if isinstance(image, (str, os.PathLike, bytes)):
        return read_image(image)
    if isinstance(image, torch.Tensor):
        check_channels(image)
        if image.dim() != 3:
            raise ValueError(f"a picture's tensor must be C×H×W, not {tuple(image.shape)}")
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, Image.Image):
        raise TypeError(
            "a picture must be a path, bytes, a PIL image, a uint8 array or a uint8 tensor, not "
            f"{type(image).__name__}"
        )
    if image.width == 0 or image.height == 0:
        raise ImageError(f"the picture has no pixels: {image.width}x{image.height}")
    try:
        return _upright_rgb(image)
    except Exception as error:  # an opened file is decoded only now; see _opened
        raise ImageError(f"the picture cannot be decoded: {_reason(error)}") from error


def check_channels(images: torch.Tensor) -> None:
    """Raise TypeError or ValueError unless this is a uint8 tensor [N×]C×H×W, C being 1, 3 or 4."""
    if images.dtype != torch.uint8:
        raise TypeError(f"a picture's tensor must be uint8 (0 to 255), not {images.dtype}")
    if images.dim() not in (3, 4) or images.shape[-3] not in (1, 3, 4):
        raise ValueError(
            "a picture's tensor must be C×H×W or N×C×H×W with 1, 3 or 4 channels, not "
            f"{tuple(images.shape)}"
        )


def _from_array(pixels: np.ndarray) -> Image.Image:
    """Make a PIL image of a uint8 array H×W or H×W×C, C being 1, 3 or 4."""
    if pixels.dtype != np.uint8:
        raise TypeError(f"a picture's array must be uint8 (0 to 255), not {pixels.dtype}")
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"a picture's array must be H×W, or H×W×C with 1, 3 or 4 channels, not {pixels.shape}"
        )
    if pixels.size == 0:
        raise ImageError(f"the picture has no pixels: its array is {pixels.shape}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB, turned as its EXIF orientation says; a copy.

    Raises:
        Exception: of any kind, on a damaged picture.
    """
    image.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF data
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # the pixels may be sound all the same
            orientation = 1
    rgb = _to_rgb(image)
    rgb = rgb.copy() if rgb is image else rgb
    # Only the orientation is kept: exif_transpose rewrites every tag, and fails if one is damaged.
    rgb.info = {}
    rgb.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(rgb)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB as `read_image` says; ValueError or OSError where PIL cannot."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image).astype(np.float32) / 257.0)
    if image.mode in ("I", "F"):
        # Releases of PIL before 11 open 16-bit gray PNGs, and all of them PGMs, as mode I.
        sixteen_bits = image.mode == "I" and image.format in ("PNG", "PPM")
        values = np.asarray(image).astype(np.float64)
        return _gray(values / 257.0 if sixteen_bits else _stretch(values, image.mode == "F"))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):  # premultiplied
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _stretch(values: np.ndarray, floating: bool) -> np.ndarray:
    """Stretch values (float64) to 0..255; values that are not finite become the lowest."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    low, high = float(values[finite].min()), float(values[finite].max())
    if floating and low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    return (np.where(finite, values, low) - low) / ((high - low) or 1.0) * 255.0


def _gray(values: np.ndarray) -> Image.Image:
    """Make an RGB picture with equal channels from values in 0..255."""
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


def check_positive(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless an argument is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def shrink(image: Image.Image, max_size: int | None) -> Image.Image:
    """Return the picture with its longest side at most `max_size` pixels; never enlarged.

    Raises:
        TypeError, ValueError: `max_size` is neither a positive integer nor None (no limit).
    """
    if max_size is None:
        return image
    check_positive("max_size", max_size)
    longest = max(image.size)
    if longest <= max_size:
        return image
    width, height = (max(1, round(side * max_size / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def photo_tensor(image: Image.Image) -> torch.Tensor:
    """Return an RGB picture as a uint8 tensor 1×3×H×W, a copy with channels-last strides."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


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
        LabelError: an unreadable file, another size, a picture in colors, or values that are not
            classes; the message names the file, the value and its number of pixels.
    """
    with _opened(path, LabelError) as image:
        if size is not None and (image.height, image.width) != tuple(size):
            raise LabelError(
                f"{path}: the labels are {image.width}x{image.height} pixels, "
                f"their image is {size[1]}x{size[0]}"
            )
        values = _label_values(path, image)
    if values.dtype == np.uint8:  # no sorting of a picture's pixels
        counts = np.bincount(values.ravel(), minlength=256)
        found = [(int(value), counts[value]) for value in np.flatnonzero(counts)]
    else:
        found = list(zip(*(a.tolist() for a in np.unique(values, return_counts=True)), strict=True))
    voids = {*table.void_values, IGNORE_INDEX}
    for value, count in found:
        if value >= len(table) and value not in voids or value < 0:
            raise LabelError(
                f"{path}: value {value} (pixels: {count}) is not a class of {table.name!r}: "
                f"0 to {len(table) - 1}, or {', '.join(map(str, sorted(voids)))} for none"
            )
    lookup = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    lookup[: len(table)] = np.arange(len(table))
    return lookup[values]


def _label_values(path: PathLike, image: Image.Image) -> np.ndarray:
    """Return the stored integers of an opened index or gray picture, H×W."""
    raw_mode = _raw_mode(image)  # PIL forgets it when it decodes
    if image.mode == "P":
        return np.asarray(image)
    if image.mode == "L":
        # PIL stretches gray values of 2 and 4 bits to 0..255; labels are the values themselves.
        return np.asarray(image) // np.uint8({"L;2": 85, "L;4": 17}.get(raw_mode, 1))
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.int64)
    raise LabelError(
        f"{path}: labels must be palette indices or gray values, not a picture of mode {image.mode}"
    )


def _raw_mode(image: Image.Image) -> str:
    """Return PIL's name for how a file stores its samples, such as "L;4"; may be ""."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    if isinstance(arguments, (tuple, list)) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def write_labels(
    path: PathLike, labels: np.ndarray, palette: Sequence[tuple[int, int, int]]
) -> None:
    """Write a label map as an index PNG (mode P, 8 bits), whole or not at all.

    Args:
        path: the file to create or replace.
        labels: uint8 array H×W.
        palette: (red, green, blue) for the labels 0, 1, ...; labels beyond it are drawn black.

    Raises:
        TypeError, ValueError: `labels` is not a uint8 array H×W, or the palette is too long.
        OSError: the file cannot be written; nothing is left behind.
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
    # All 256 entries, so that PIL keeps 8 bits for a label and 255 has a color.
    image.putpalette(colors + [0] * (768 - len(colors)))
    return image


def write_image(path: PathLike, image: Image.Image, **options: object) -> None:
    """Write a picture in the format of its extension, whole or not at all.

    Args:
        path: the file to create or replace.
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
