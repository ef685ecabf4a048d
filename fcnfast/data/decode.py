"""Decode picture files of any kind and condition, and turn any mode into 8-bit RGB."""

import os
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError

MAX_PIXELS = 178_956_970
"""Pictures of more pixels are refused: there PIL speaks of a bomb (0.7 GB decoded)."""

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

PathLike = str | os.PathLike[str]


class Picture(NamedTuple):
    """A decoded picture in the file's own mode.

    Attributes:
        image: the pixels as stored.
        raw_mode: PIL's name for how the file stores samples, such as "L;4"; may be "".
        orientation: EXIF's 1 to 8; 1, upright, when there is none that can be read.
    """

    image: Image.Image
    raw_mode: str
    orientation: int


def open_picture(path: PathLike, failure: type[InputError], max_pixels: int) -> Picture:
    """Open and decode the first picture of a file.

    Args:
        path: the file; its content, not its extension, says what it is.
        failure: the exception to raise.
        max_pixels: width times height above which it is not decoded.

    Raises:
        InputError: of type `failure`, whatever went wrong; the message begins with the file.
    """
    Image.init()  # registers every decoder, once
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        if os.path.isdir(path):
            raise failure(f"{path}: is a folder, not a picture")
        if os.path.getsize(path) == 0:
            raise failure(f"{path}: the file is empty (0 bytes)")
        with warnings.catch_warnings():
            # PIL warns of oddities that it copes with, and of half the size that it refuses.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats) as image:
                pixels = image.width * image.height
                if pixels > max_pixels:
                    raise failure(
                        f"{path}: too large: {image.width}x{image.height} is {pixels} pixels, "
                        f"at most {max_pixels} are read"
                    )
                raw_mode = _raw_mode(image)  # PIL forgets it on loading
                image.load()
            return Picture(image, raw_mode, _orientation(image))
    except failure:
        raise
    except Exception as error:  # decoders raise anything at all on a damaged file
        raise failure(f"{path}: {_reason(error)}") from error


def _raw_mode(image: Image.Image) -> str:
    """Return PIL's name for the storage of a picture that is not loaded yet."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    if isinstance(arguments, (tuple, list)) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 without one."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data says nothing about the pixels
        return 1


def _reason(error: Exception) -> str:
    """Say in one line of plain words why a picture could not be read."""
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


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn or mirror a picture as an EXIF orientation says."""
    return image.transpose(_ORIENTATIONS[orientation]) if orientation in _ORIENTATIONS else image


def to_rgb(image: Image.Image) -> Image.Image:
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
    """Map values (float64) to 0..255 by their own range; what is not finite becomes the lowest."""
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
