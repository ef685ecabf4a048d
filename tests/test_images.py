"""Pictures of every kind and condition are read as expected or refused in one clear line."""

import contextlib
import errno
import os
import re
import resource
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from fcnfast.cli import main
from fcnfast.data import CAMVID, image_paths, images, read_image, write_image, write_labels
from fcnfast.data.images import as_photo, picture_size
from fcnfast.errors import ImageError
from fcnfast.files import write_bytes
from fcnfast.segment import Segmenter
from tests.model_tools import make_photo
from tests.test_labels import chunk, png, tiff

PHOTO = np.asarray(make_photo())


def turned_by(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def fail(error):

    def failing(*_, **__):
        raise error

    return failing


@contextlib.contextmanager
def full_disk(size):
    """A limit on the size of files stands for the full disk: every write past it fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def reread(path, image, **options):
    """Save a picture with PIL; what `read_image` makes of it."""
    image.save(path, **options)
    result = read_image(path)
    assert result.mode == "RGB"
    return np.asarray(result).astype(int)


def test_kinds_and_modes(tmp_path):
    modes = {"RGB": "png", "L": "tif", "1": "ppm", "P": "gif", "CMYK": "jpg"}
    for mode, kind in modes.items():
        image = make_photo().quantize(17) if mode == "P" else make_photo().convert(mode)
        found = reread(tmp_path / f"a.{kind}", image, **{"quality": 95} if mode == "CMYK" else {})
        expected = PHOTO if mode == "CMYK" else np.asarray(image.convert("RGB"))
        assert np.abs(found - expected).mean() < (4 if mode == "CMYK" else 1e-9)
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]  # the first counts
    found = reread(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert found[0, 0].tolist() == [255, 0, 0]


def test_a_turned_picture_is_turned_once(tmp_path):
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(PHOTO)))
    found = reread(tmp_path / "a.png", stored, exif=turned_by(6))
    np.testing.assert_array_equal(found, PHOTO)
    again = reread(tmp_path / "b.png", read_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(again, PHOTO)


def test_transparency_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 0)
    found = reread(tmp_path / "a.png", image, transparency=0)
    assert found[0].tolist() == [[255] * 3, [200, 100, 50]]
    alpha = np.array([[0, 128, 255]], np.uint8)
    for mode in ("RGBA", "LA"):
        image = Image.new(mode, (3, 1))
        image.putalpha(Image.fromarray(alpha))
        found = reread(tmp_path / "a.png", image)
        assert found[0].tolist() == [[255] * 3, [127] * 3, [0] * 3]


def test_gray_of_many_bits(tmp_path):
    for stored, gray in (
        (np.array([[0, 257, 32768, 65535]], np.uint16), [0, 1, 128, 255]),
        (np.array([[-2, 0, 2, np.nan]], np.float32), [0, 128, 255, 0]),
        (np.array([[0, 0.5, 0.25]], np.float32), [0, 128, 64]),  # 0 to 1 is a range of its own
        (np.array([[100, 150, 200]], np.int32), [0, 128, 255]),
        (np.array([[7, 7]], np.int32), [0, 0]),
        (np.array([[np.nan, np.nan]], np.float32), [0, 0]),
    ):
        for name in ("a.tif", "a.png")[: 1 + (stored.dtype == np.uint16)]:
            found = reread(tmp_path / name, Image.fromarray(stored))
            assert found[0].tolist() == [[value] * 3 for value in gray]


def test_damaged_exif(tmp_path):
    damaged = b"Exif\0\0II*\0\xff\xff\xff\xff"
    assert reread(tmp_path / "a.jpg", make_photo(), exif=damaged).shape == (36, 48, 3)
    tags = [(0x010F, 5, 1, 0), (0x0112, 3, 1, 6)]  # a maker that is a fraction, and a turn
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    damaged = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    assert reread(tmp_path / "a.jpg", make_photo(), exif=damaged).shape == (48, 36, 3)


def png_with(path, extra, before=b"IDAT", **options):
    """Write a photo as a PNG with more bytes before one of its chunks."""
    make_photo().save(path, **options)
    content = path.read_bytes()
    place = content.index(before) - 4
    path.write_bytes(content[:place] + extra + content[place:])


def test_chunks_that_do_not_matter(tmp_path):
    for extra in (
        chunk(b"pHYs", b"\0"),
        chunk(b"gAMA", b""),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"zTXt", b"key\0\0" + zlib.compress(b"text " * 400_000)),
        chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1_000_000))) * 70,
        chunk(b"iTXt", b"key\0\1"),
        chunk(b"tEXt", b"key\0value", crc=0),
        chunk(b"eXIf", b"MM", crc=0),
        chunk(b"teSt", b"nobody's"),
    ):
        png_with(tmp_path / "a.png", extra)
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), PHOTO)
        assert picture_size(tmp_path / "a.png") == (48, 36)


def test_pngs_cut_behind_and_within_their_pixels(tmp_path):
    path = tmp_path / "a.png"
    png_with(path, chunk(b"tEXt", b"key\0" + b"long " * 99), before=b"IEND")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"long") + 50])
    np.testing.assert_array_equal(np.asarray(read_image(path)), PHOTO)
    png_with(path, chunk(b"pHYs", b""))
    content = path.read_bytes()
    for end in (content.index(b"IDAT") + 200, len(content) - 30):
        path.write_bytes(content[:end])
        refused(path, "damaged")
    png_with(path, chunk(b"pHYs", b""), exif=turned_by(6))  # turned all the same
    assert read_image(path).size == (36, 48) and picture_size(path) == (48, 36)


def test_segments_of_a_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    expected, content = reread(path, make_photo(), exif=turned_by(6)), path.read_bytes()
    segments = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe", 0xED: b"Photoshop 3.0\0"}
    for kind, data in segments.items():
        segment = struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data
        path.write_bytes(content[:2] + segment + content[2:])
        np.testing.assert_array_equal(np.asarray(read_image(path)), expected)


def refused(path, message, **options):
    """ImageError in one line that begins with the file, and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            read_image(path, **options)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and message in text and "\n" not in text


def test_refusals(tmp_path):
    for content, message in (
        (None, "no such file"),
        (b"", "empty (0 bytes)"),
        (b"buy milk\n", "not a picture"),
        # PIL hands PostScript to Ghostscript; a file named .jpg must not get that far.
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture"),
        (png(30_000, 30_000, 8, 2, bytes(1000)), "too large"),
        (png(10_000, 10_000, 8, 0, bytes(1000)), "damaged"),  # allowed: PIL's warning is not shown
    ):
        if content is not None:
            (tmp_path / "a.jpg").write_bytes(content)
        refused(tmp_path / "a.jpg", message)


def test_refusals_of_places_sizes_and_the_system(tmp_path, monkeypatch):
    refused(tmp_path, "is a folder")
    (tmp_path / "a.png").write_bytes(png(300, 20, 8, 2, b"")[:60])
    assert picture_size(tmp_path / "a.png") == (300, 20)  # which needs no pixels
    monkeypatch.setattr(images, "MAX_PIXELS", 5999)
    refused(tmp_path / "a.png", "300x20 is 6000 pixels, at most 5999")
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        picture_size(tmp_path / "none.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        refused(tmp_path / "pipe.png", "empty")  # and is not waited for
    for error, reason in (
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied"),
        (MemoryError(), "too large for the memory"),
        (EOFError(), "the picture is damaged: EOFError"),
    ):
        monkeypatch.setattr(Image, "open", fail(error))
        refused(tmp_path / "a.png", reason)


@pytest.fixture
def gray(tmp_path):
    """12 bits in a container of 16."""
    Image.fromarray(np.array([[0, 2048, 4095]], np.uint16)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_bit_depth_of_gray(gray):
    def found(**options):
        return np.asarray(read_image(gray, **options))[0, :, 0].tolist()

    with pytest.warns(UserWarning, match=r"a\.png: its largest 16-bit value is 4095.*depth 12"):
        assert found() == [0, 8, 16]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(bit_depth=12) == [0, 128, 255]
        assert found(bit_depth=16) == [0, 8, 16]
    refused(gray, "4095, has more bits than 11", bit_depth=11)
    with pytest.raises(ValueError, match="bit_depth must be 8 to 16, not 17"):
        found(bit_depth=17)


@pytest.mark.parametrize("kind", ["png", "<", ">"])
def test_bit_depth_of_colors(tmp_path, kind):
    def found(values, **options):
        values = np.array([values], np.uint16)
        rows = b"\0" + values.astype(">u2").tobytes()
        path = tmp_path / "a"
        path.write_bytes(png(2, 1, 16, 2, rows) if kind == "png" else tiff(values, 16, 2, kind))
        return np.asarray(read_image(path, **options))[0].tolist()

    low = [[4095, 0, 2048], [16, 4095, 1]]
    assert found(low, bit_depth=12) == [[255, 0, 128], [1, 255, 0]]
    with pytest.warns(UserWarning, match="12 bits"):
        found(low)
    assert found([[65535, 0, 32896], [0, 65535, 257]]) == [[255, 0, 128], [0, 255, 1]]

    (tmp_path / "a").write_bytes(tiff(np.array([[0, 65535]]), 16, 0, "<"))  # white is zero
    assert np.asarray(read_image(tmp_path / "a"))[0, :, 0].tolist() == [255, 0]


def test_bit_depth_of_the_commands(gray, here, weights, capsys):
    assert main(["predict", "a.png", "a.png", "--weights", weights]) == 0
    err = capsys.readouterr().err
    assert err.startswith("fcnfast: warning: a.png: its largest") and err.count("\n") == 1
    for depth, code, told in (("12", 0, ""), ("7", 2, "from 8 to 16, not 7\n")):
        assert main(["predict", "a.png", "--weights", weights, "--bit-depth", depth]) == code
        err = capsys.readouterr().err
        assert told.strip() in err and bool(told) == bool(err)
    seen = Segmenter(weights, "cpu", bit_depth=12)("a.png").image
    assert np.asarray(seen)[0, :, 0].tolist() == [0, 128, 255]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with full_disk(1000), pytest.raises(OSError, match=str(path)):
        write_bytes(path, bytes(100_000))
    assert path.read_bytes() == b"old"
    write_image(path, make_photo())
    np.testing.assert_array_equal(np.asarray(read_image(path)), PHOTO)
    path.rename(tmp_path / "file")
    (tmp_path / "folder.png").mkdir()
    for place in ("none/a.png", "file/a.png", "folder.png"):
        with pytest.raises(OSError) as caught:
            write_labels(tmp_path / place, np.zeros((2, 2), np.uint8), CAMVID.palette)
        assert str(tmp_path / place) in str(caught.value) and ".tmp" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.png"]
    with pytest.raises(ValueError, match=r"\.xyz"):
        write_image(tmp_path / "a.xyz", make_photo())


HERE = ["a.png", "b.JPG", "x[1].png", "y.jfif", "z.MPO"]


@pytest.fixture
def folder(tmp_path):
    for name in (*HERE, "notes.txt", ".hidden.png", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "none").mkdir()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_paths_of_pictures_and_none(folder):
    for specs, found in (
        ([""], HERE),
        (["*.png"], ["a.png", "x[1].png"]),
        (["x[1].png"], ["x[1].png"]),
        (["**"], ["a.png", "b.JPG", "sub/c.webp", "x[1].png", "y.jfif", "z.MPO"]),
        (["sub/c.webp", "*.png", "sub/../a.png"], ["sub/c.webp", "a.png", "x[1].png"]),
        (["notes.txt"], ["notes.txt"]),  # a file needs no extension
        (["gone.jpg", "a.png", "none"], ["gone.jpg", "a.png", "none"]),  # told among the others
    ):
        specs = [str(folder / spec) for spec in specs]
        assert image_paths(specs) == [folder / name for name in found]
        if len(specs) == 1:
            assert image_paths(specs[0]) == image_paths(specs)
    with pytest.raises(ImageError, match="no picture was given"):
        image_paths([])
    told = {"gone.jpg": "no such file", "none": "no pictures", "*.bmp": "no picture matches"}
    for spec, reason in told.items():
        with pytest.raises(ImageError, match=re.escape(f"{folder / spec}: {reason}")):
            image_paths([folder / spec])


def test_threads_leave_the_filters_of_warnings(tmp_path):
    make_photo().save(tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_image, [tmp_path / "a.png"] * 40))
    with pytest.raises(ImageError):
        read_image(tmp_path / "gone.png")
    assert warnings.filters == before
    image = Image.open(tmp_path / "a.png")
    image.close()
    with pytest.raises(ImageError, match=r"file is closed .* load\(\) it first"):
        as_photo(image)
