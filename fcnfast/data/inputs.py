"""What people call a picture (a path, a PIL image, an array), made into one kind of thing."""

import os

import numpy as np
import torch
from PIL import ExifTags, Image

from ..errors import ImageError
from .decode import PathLike, to_rgb, upright
from .images import read_image

Photo = PathLike | Image.Image | np.ndarray


def as_photo(image: Photo) -> Image.Image:
    """Return a picture as 8-bit RGB, upright.

    Args:
        image: a path; a PIL image of any mode (converted as `read_image` does, its EXIF
            orientation applied); or a uint8 array, H×W×3 in RGB order or H×W gray.

    Raises:
        ImageError: a file that cannot be read, or a picture without pixels.
        TypeError: none of the three, or an array that is not uint8.
        ValueError: an array of another shape.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"a picture is a path, a PIL image or a uint8 array, not {type(image).__name__}"
        )
    if image.width == 0 or image.height == 0:
        raise ImageError(f"the picture has no pixels: {image.width}x{image.height}")
    try:
        image.load()  # an opened file is decoded only now
        return upright(to_rgb(image), _orientation(image))
    except Exception as error:  # decoders raise anything at all on a damaged file
        raise ImageError(f"the picture cannot be decoded: {error}") from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) without one that can be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data says nothing about the pixels
        return 1


def _from_array(pixels: np.ndarray) -> Image.Image:
    """Make an RGB picture from a uint8 array, gray or RGB."""
    if pixels.dtype != np.uint8:
        raise TypeError(f"a picture's array holds uint8 values 0 to 255, not {pixels.dtype}")
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] != 3):
        raise ValueError(f"a picture's array is H×W×3 (RGB) or H×W (gray), not {pixels.shape}")
    if pixels.size == 0:
        raise ImageError(f"the picture has no pixels: its array is {pixels.shape}")
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def shrink(image: Image.Image, max_size: int | None) -> Image.Image:
    """Return the picture with its longest side at most `max_size` pixels; never enlarged.

    Raises:
        TypeError, ValueError: `max_size` is no positive integer (or None, for no limit).
    """
    if max_size is None:
        return image
    if isinstance(max_size, bool) or not isinstance(max_size, int):
        raise TypeError(f"max_size must be an integer, not {max_size!r}")
    if max_size < 1:
        raise ValueError(f"max_size must be at least 1 pixel, not {max_size}")
    longest = max(image.size)
    if longest <= max_size:
        return image
    width, height = (max(1, round(side * max_size / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def photo_tensor(image: Image.Image) -> torch.Tensor:
    """Return an RGB picture as a uint8 tensor 1×3×H×W, a copy with channels-last strides."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
