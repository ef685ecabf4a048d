"""Pictures as 8-bit RGB: from any file, in any mode, and from images in memory."""

import contextlib
import io
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps

from ..errors import ImageError, InputError
from ..files import PathLike, write_bytes

MAX_PIXELS = 178_956_970
"""Pictures of more pixels are rejected, as decompression bombs are by PIL (0.7 GB decoded)."""

# Only these decoders are tried, for any file extension: some of PIL's others start programs
# (EPS runs Ghostscript), and no photo needs them.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

IMAGE_EXTENSIONS = frozenset(
    extension
    for extension, format_name in Image.registered_extensions().items()
    if format_name in _FORMATS and format_name.replace("MPO", "JPEG") in Image.OPEN
)
"""The extensions (in lower case) of pictures in folders."""

Photo = PathLike | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor

_T = TypeVar("_T")


def decode(
    source: PathLike | bytes,
    failure: type[InputError],
    use: Callable[[Image.Image], _T],
    pixels: bool = True,
) -> _T:
    """Open a file, or its content, and return what `use` makes of the picture before it is decoded.

    Any error is raised as `failure`; the message begins with the file. A PNG or JPEG that PIL
    rejects is tried once more without its metadata: large profiles and texts, and damaged or cut
    chunks, do not stop a picture whose pixels are sound. Without `pixels`, which `use` then does
    not read, the checksums of a PNG are not compared.
    """
    name = _named(source)

    def attempt(file: BinaryIO) -> _T:
        formats = [name for name in _FORMATS if name in Image.OPEN]
        with Image.open(file, formats=formats) as image:
            count = image.width * image.height
            if count > MAX_PIXELS:
                told = f"{image.width}x{image.height} is {count} pixels, at most {MAX_PIXELS}"
                raise failure(f"{name}: too large: {told} are read")
            return use(image)

    try:
        if not isinstance(source, bytes) and os.path.isdir(source):
            raise failure(f"{name}: is a folder, not a picture")
        if not (len(source) if isinstance(source, bytes) else os.path.getsize(source)):
            raise failure(f"{name}: the file is empty (0 bytes)")
        # An open file: PIL maps a named one, and then turns the pixels of some TIFFs wrongly.
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file,
            quiet(),
        ):
            try:
                if pixels and not _sound_png(file):
                    raise failure(f"{name}: the picture is damaged: its checksum is wrong")
                return attempt(file)
            except (failure, MemoryError, Image.DecompressionBombError):
                raise
            except Exception:
                plain = _without_metadata(source)
                if plain is None:
                    raise
                return attempt(io.BytesIO(plain))
    except failure:
        raise
    except Exception as error:  # decoders raise any exception on a damaged file
        raise failure(f"{name}: {_reason(error)}") from error


_quiet_lock, _quiet_stack = threading.RLock(), contextlib.ExitStack()
_quiet_depth = 0


def _start_loud() -> None:
    """In a forked process no other thread is left that would end what it began."""
    global _quiet_lock, _quiet_depth
    _quiet_lock, _quiet_depth = threading.RLock(), 0
    _quiet_stack.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_loud)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress PIL's warnings about malformed metadata and about pictures over half its size limit.

    Threads share it: with a `warnings.catch_warnings` of its own, each would restore the others'.
    """
    global _quiet_depth
    with _quiet_lock:
        _quiet_depth += 1
        if _quiet_depth == 1:
            _quiet_stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_stack.close()


def _named(source: PathLike | bytes) -> PathLike:
    return "the picture" if isinstance(source, bytes) else source


def _without_metadata(source: PathLike | bytes) -> bytes | None:
    """Return a PNG or JPEG with only its pixels and orientation; None if that is not possible."""
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_without_metadata(content)
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    kept, place = [content[:2]], 2
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] != 0xDA:
        kind, size = struct.unpack_from(">BH", content, place + 1)
        segment = content[place : place + 2 + size]
        exif, adobe = segment[4:10] == b"Exif\0\0", kind == 0xEE and size >= 14
        if not (0xE0 <= kind <= 0xEF or kind == 0xFE) or exif or adobe:
            kept.append(segment)
        place += 2 + size
    return b"".join((*kept, content[place:]))


def _sound_png(file: BinaryIO) -> bool:
    """Tell whether the pixels of a PNG match their checksums, which PIL ignores."""
    if file.read(8) == b"\x89PNG\r\n\x1a\n":
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            size = int.from_bytes(head[:4], "big")
            if head[4:] != b"IDAT":
                file.seek(size + 4, os.SEEK_CUR)
                continue
            content, stored = file.read(size), file.read(4)
            found = zlib.crc32(content, zlib.crc32(b"IDAT")).to_bytes(4, "big")
            if len(stored) == 4 and stored != found:
                return False
    file.seek(0)
    return True


def _png_without_metadata(content: bytes) -> bytes | None:
    """Return a PNG with only the chunks that matter; None if its pixels are cut."""
    kept, place = [content[:8]], 8
    while place + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        chunk = content[place : place + 12 + size]
        whole = len(chunk) == 12 + size
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"tRNS"):
            if not whole:
                return None
            kept.append(chunk)
        elif kind == b"eXIf" and whole and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4])):
            kept.append(chunk)  # it holds the orientation
        elif kind == b"IEND":
            break
        place += 12 + size
    return b"".join((*kept, struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))))


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture, or of an unsupported kind"
    if isinstance(error, Image.DecompressionBombError):
        return "too large: more pixels than PIL's limit against decompression bombs"
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"the picture is damaged: {detail}"


def read_image(
    path: PathLike | bytes, bit_depth: int | None = None, channels: int = 3
) -> Image.Image:
    """Read a picture as 8-bit RGB, or RGBX with a fourth channel, upright.

    The EXIF orientation is applied; transparency is laid over white; 16-bit samples are scaled from
    0..65535; 32-bit integers and floats are stretched between their smallest and largest value
    (floats within 0..1 are scaled from 0..1); CMYK is converted without a color profile. Only the
    first picture of an animation or a multi-page file is read.

    Args:
        path: the file, or its content.
        bit_depth: significant bits of 16-bit samples, 8 to 16: 12 for most cameras' raw data.
            None: all 16, and a warning if no value needs more than 12.
        channels: 3; or 4: the file's own four, 8 bits each (RGBA, with no transparency applied;
            or, say, RGB and near infrared of a TIFF).

    ImageError if the file is missing, a folder, empty, cut, not a picture, or larger than
    `MAX_PIXELS`, or holds values of more than `bit_depth` bits, or not four channels. ValueError if
    `bit_depth` is outside 8..16, or given with four channels.
    """
    if bit_depth is not None and not 8 <= bit_depth <= 16:
        raise ValueError(f"bit_depth must be 8 to 16, not {bit_depth}")
    if channels == 4:
        if bit_depth is not None:
            raise ValueError("bit_depth is for pictures of 1 or 3 channels")
        return decode(path, ImageError, lambda image: _four_channels(image, path))
    low = decode(path, ImageError, _low_bytes) if bit_depth else None
    depth, name = bit_depth or 16, _named(path)
    rgb, largest = decode(path, ImageError, lambda image: _upright_rgb(image, depth, low))
    if bit_depth is not None and largest >> bit_depth:
        raise ImageError(f"{name}: its largest value, {largest}, has more bits than {bit_depth}")
    if bit_depth is None and 0 < largest < 4096:
        told = "if its samples have 12 bits, give --bit-depth 12 (bit_depth=12)"
        warnings.warn(f"{name}: its largest 16-bit value is {largest}: {told}", stacklevel=2)
    return rgb


def raw_mode(image: Image.Image) -> str:
    """Return PIL's name for the sample format of an opened file, such as "L;4"; may be ""."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    if isinstance(arguments, (tuple, list)) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def set_raw_mode(image: Image.Image, kind: str) -> None:
    """Let PIL decode an opened picture as if its samples had this raw mode."""
    opened: Any = image
    opened.tile = [
        (codec, box, offset, kind if isinstance(arguments, str) else (kind, *arguments[1:]))
        for codec, box, offset, arguments in opened.tile
    ]


# PIL keeps the high byte of 16-bit colors; read in the opposite byte order, it keeps the low one.
_OTHER_ORDER = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B"}
_OTHER_ORDER["RGB;16N"] = "RGB;16B" if sys.byteorder == "little" else "RGB;16L"


def _low_bytes(image: Image.Image) -> np.ndarray | None:
    """Return the low bytes of a picture of 16-bit colors, H×W×3; None for other pictures."""
    if raw_mode(image) not in _OTHER_ORDER:
        return None
    set_raw_mode(image, _OTHER_ORDER[raw_mode(image)])
    return np.asarray(image)


def picture_size(path: PathLike) -> tuple[int, int]:
    """Return a file's (width, height) before EXIF rotation; ImageError as in `read_image`."""
    return decode(path, ImageError, lambda image: image.size, pixels=False)


def as_photo(image: Photo, bit_depth: int | None = None, channels: int = 3) -> Image.Image:
    """Return a picture, in any form that `fcnfast.Segmenter` takes, as `read_image` does, upright.

    `bit_depth` only applies to files. ImageError if a file cannot be read, or the picture has no
    pixels or not four channels; TypeError and ValueError for all else.
    """
    if hasattr(image, "read"):
        image = image.read()
        if not isinstance(image, bytes):
            raise TypeError("a picture's file must be open in binary mode")
    if isinstance(image, (bytearray, memoryview)):
        image = bytes(image)
    if isinstance(image, (str, os.PathLike, bytes)):
        return read_image(image, bit_depth=bit_depth, channels=channels)
    if isinstance(image, torch.Tensor):
        check_channels(image)
        if image.dim() != 3:
            raise ValueError(f"a picture's tensor must be C×H×W, not {tuple(image.shape)}")
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise TypeError(f"a picture's array must be uint8 (0 to 255), not {image.dtype}")
        if image.ndim != 2 and (image.ndim != 3 or image.shape[2] not in (1, 3, 4)):
            shapes = "H×W, or H×W×C with 1, 3 or 4 channels"
            raise ValueError(f"a picture's array must be {shapes}, not {image.shape}")
        if image.size == 0:
            raise ImageError(f"the picture has no pixels: its array is {image.shape}")
        gray = image.ndim == 3 and image.shape[2] == 1
        image = Image.fromarray(np.ascontiguousarray(image[..., 0] if gray else image))
    if not isinstance(image, Image.Image):
        kinds = "a path, bytes, a PIL image, a uint8 array or a uint8 tensor"
        raise TypeError(f"a picture must be {kinds}, not {type(image).__name__}")
    if image.width == 0 or image.height == 0:
        raise ImageError(f"the picture has no pixels: {image.width}x{image.height}")
    if isinstance(image, ImageFile.ImageFile) and image.tile and image.fp is None:
        raise ImageError(
            "the picture's file is closed (by close(), with or verify()): load() it first"
        )
    try:
        return _four_channels(image) if channels == 4 else _upright_rgb(image)[0]
    except ImageError:
        raise
    except Exception as error:  # an opened file is decoded only now; see decode
        raise ImageError(f"the picture cannot be decoded: {_reason(error)}") from error


def check_channels(images: torch.Tensor) -> None:
    """Raise TypeError or ValueError unless this is a uint8 tensor [N×]C×H×W, C being 1, 3 or 4."""
    if images.dtype != torch.uint8:
        raise TypeError(f"a picture's tensor must be uint8 (0 to 255), not {images.dtype}")
    if images.dim() not in (3, 4) or images.shape[-3] not in (1, 3, 4):
        shapes = "C×H×W or N×C×H×W with 1, 3 or 4 channels"
        raise ValueError(f"a picture's tensor must be {shapes}, not {tuple(images.shape)}")


def _four_channels(image: Image.Image, source: PathLike | bytes = b"") -> Image.Image:
    """Return a picture's four channels, upright, as mode RGBX: none is treated as alpha."""
    bands = image.getbands()
    if len(bands) != 4:
        several = "channel" if len(bands) == 1 else "channels"
        found = f"has {len(bands)} {several} ({''.join(bands)})"
        raise ImageError(f"{_named(source)}: {found}, but the network takes 4")
    image.load()
    return _turned(Image.merge("RGBX", image.split()), orientation_of(image))


def rgbx(pixels: np.ndarray) -> Image.Image:
    """Return uint8 pixels H×W×4 as a picture of mode RGBX; H×W×3 as one of mode RGB."""
    if pixels.shape[2] == 3:
        return Image.fromarray(pixels)
    data = np.ascontiguousarray(pixels)
    return Image.frombuffer("RGBX", pixels.shape[1::-1], data, "raw", "RGBX", 0, 1)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none, or it is damaged."""
    with quiet():  # about damaged EXIF data
        try:
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # the pixels may be sound all the same
            return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    image.info = {}  # exif_transpose rewrites every tag, and fails if one is damaged
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def _upright_rgb(
    image: Image.Image, bit_depth: int = 16, low: np.ndarray | None = None
) -> tuple[Image.Image, int]:
    """Return an RGB copy of a picture, rotated by EXIF, and its largest 16-bit sample or 0.

    `bit_depth` and `low`, the low bytes of its colors, are for 16-bit samples.
    """
    kind = raw_mode(image)
    white_is_zero = image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]
    image.load()
    orientation, values = orientation_of(image), None
    # PIL before 11 opens 16-bit gray PNGs as mode I; every version does so with 16-bit PGMs.
    if image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM"):
        values = np.asarray(image).astype(np.int32)
    elif image.mode == "RGB" and kind in _OTHER_ORDER and "transparency" not in image.info:
        high = np.asarray(image).astype(np.int32)
        values = high * 256 + (high if low is None else low)
    if values is None:
        largest, rgb = 0, _to_rgb(image)
    else:
        top = (1 << (12 if kind == "I;12" else bit_depth)) - 1
        scaled = np.rint(np.minimum(values, top) * np.float32(255.0 / top)).astype(np.uint8)
        if white_is_zero and values.ndim == 2:  # PIL inverts fewer bits itself
            scaled = 255 - scaled
        rgb = Image.fromarray(scaled).convert("RGB")
        largest = 0 if kind == "I;12" else int(values.max())
    return _turned(rgb.copy() if rgb is image else rgb, orientation), largest


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any other mode to RGB as `read_image` says; ValueError or OSError if it cannot."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F"):
        values = _stretch(np.asarray(image).astype(np.float64), image.mode == "F")
        return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
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
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 1.0)
    if floating and low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    return (np.where(finite, values, low) - low) / ((high - low) or 1.0) * 255.0


def check_positive(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless an argument is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def shrink(image: Image.Image, max_size: int | None) -> Image.Image:
    """Return the picture with its longest side at most `max_size` (a positive int) pixels."""
    if max_size is None:
        return image
    check_positive("max_size", max_size)
    longest = max(image.size)
    if longest <= max_size:
        return image
    width, height = (max(1, round(side * max_size / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def photo_tensor(image: Image.Image) -> torch.Tensor:
    """Return a picture as a uint8 tensor 1×C×H×W, a copy with channels-last strides."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def write_image(path: PathLike, image: Image.Image, **options: object) -> None:
    """Write a picture in the format of its extension, atomically: on OSError nothing is left.

    `options` are those of `PIL.Image.Image.save`, such as ``quality`` or ``format``. ValueError for
    an extension that PIL cannot write.
    """
    encoded = io.BytesIO()  # on disk only one write and one rename can fail
    suffix = Path(path).suffix
    format_name = options.pop("format", Image.registered_extensions().get(suffix.lower()))
    if format_name is None:
        raise ValueError(f"{path}: no picture format has the extension {suffix!r}")
    image.save(encoded, format=str(format_name), **options)
    write_bytes(path, encoded.getbuffer())
