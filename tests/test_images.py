"""Pictures of every kind and condition are read as expected or refused in one clear line."""

import errno
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from fcnfast.data.classes import ClassTable, voc_palette
from fcnfast.data.folder import image_paths
from fcnfast.data.images import picture_size, read_image, write_image
from fcnfast.data.labels import read_labels, write_labels
from fcnfast.data.tables import CAMVID, VOC, class_table
from fcnfast.errors import DatasetError, ImageError, LabelError
from fcnfast.files import write_bytes


def _photo(height: int = 30, width: int = 40) -> Image.Image:
    """Return a smooth RGB picture whose four corners all differ."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (255 * x / (width - 1), 255 * y / (height - 1), 255 - 255 * x / (width - 1))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """Return a PNG made by hand; `rows` is the raw data with a filter byte before each row."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        body = kind + data
        content += struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    return content


def _read(tmp_path: Path, image: Image.Image, name: str, **options: object) -> np.ndarray:
    """Save a picture with PIL and return what `read_image` makes of it."""
    image.save(tmp_path / name, **options)
    result = read_image(tmp_path / name)
    assert result.mode == "RGB"
    return np.asarray(result).astype(int)


class TestKinds:
    """Every mode becomes the RGB that a person would expect."""

    def test_rgb(self, tmp_path: Path) -> None:
        photo = _photo()
        for name in ("a.png", "a.bmp", "a.tif", "a.ppm"):
            np.testing.assert_array_equal(_read(tmp_path, photo, name), np.asarray(photo))

    @pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.jp2", "a.avif"])
    def test_lossy(self, tmp_path: Path, name: str) -> None:
        if Image.registered_extensions().get(Path(name).suffix) not in Image.SAVE:
            pytest.skip(f"this PIL cannot write {name}")
        photo = _photo()
        assert np.abs(_read(tmp_path, photo, name, quality=95) - np.asarray(photo)).mean() < 4

    def test_gray_and_bilevel(self, tmp_path: Path) -> None:
        gray = _photo().convert("L")
        expected = np.stack([np.asarray(gray)] * 3, axis=-1)
        np.testing.assert_array_equal(_read(tmp_path, gray, "gray.png"), expected)
        bilevel = gray.convert("1")
        black_white = np.unique(_read(tmp_path, bilevel, "bilevel.png"))
        assert black_white.tolist() == [0, 255]

    def test_palette(self, tmp_path: Path) -> None:
        palette = _photo().quantize(17)
        expected = np.asarray(palette.convert("RGB"))
        np.testing.assert_array_equal(_read(tmp_path, palette, "p.png"), expected)
        np.testing.assert_array_equal(_read(tmp_path, palette, "p.gif"), expected)

    def test_palette_with_transparency_lies_on_white(self, tmp_path: Path) -> None:
        palette = Image.new("P", (4, 2), 1)
        palette.putpalette([10, 20, 30, 200, 100, 50])
        palette.paste(0, (0, 0, 2, 2))
        pixels = _read(tmp_path, palette, "p.png", transparency=0)
        assert pixels[0].tolist() == [[255] * 3] * 2 + [[200, 100, 50]] * 2

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_alpha_lies_on_white(self, tmp_path: Path, mode: str) -> None:
        clear = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
        clear.putpixel((1, 0), (0, 0, 0, 128))
        clear.putpixel((2, 0), (0, 0, 0, 255))
        pixels = _read(tmp_path, clear.convert(mode), "alpha.png")
        assert pixels[0].tolist() == [[255] * 3, [127] * 3, [0] * 3]

    def test_sixteen_bits(self, tmp_path: Path) -> None:
        values = np.array([[0, 257, 32768, 65535]], np.uint16)
        image = Image.fromarray(values)
        for name in ("gray.png", "gray.tif"):
            pixels = _read(tmp_path, image, name)
            assert pixels[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]
        rgb = b"\0" + np.array([65535, 0, 32896, 0, 65535, 257], ">u2").tobytes()
        (tmp_path / "rgb.png").write_bytes(_png(2, 1, 16, 2, rgb))
        pixels = np.asarray(read_image(tmp_path / "rgb.png"))
        assert pixels[0].tolist() == [[255, 0, 128], [0, 255, 1]]

    def test_thirty_two_bits_use_their_own_range(self, tmp_path: Path) -> None:
        floats = Image.fromarray(np.array([[-2.0, 0.0, 2.0, np.nan]], np.float32))
        assert _read(tmp_path, floats, "f.tif")[0, :, 0].tolist() == [0, 128, 255, 0]
        unit = Image.fromarray(np.array([[0.0, 0.5, 0.25]], np.float32))
        assert _read(tmp_path, unit, "unit.tif")[0, :, 0].tolist() == [0, 128, 64]
        integers = Image.fromarray(np.array([[100, 150, 200]], np.int32))
        assert _read(tmp_path, integers, "i.tif")[0, :, 0].tolist() == [0, 128, 255]
        flat = Image.fromarray(np.full((2, 2), 7, np.int32))
        assert _read(tmp_path, flat, "flat.tif").max() == 0
        nothing = Image.fromarray(np.full((2, 2), np.nan, np.float32))
        assert _read(tmp_path, nothing, "nan.tif").max() == 0

    def test_cmyk(self, tmp_path: Path) -> None:
        """CMYK JPEGs carry inverted values, as Adobe writes them; TIFFs do not."""
        photo = _photo()
        for name in ("a.jpg", "a.tif"):
            pixels = _read(tmp_path, photo.convert("CMYK"), name, quality=95)
            assert np.abs(pixels - np.asarray(photo)).mean() < 4

    def test_first_picture_of_an_animation(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert np.asarray(read_image(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path: Path, orientation: int) -> None:
        photo = _photo()
        stored = {
            1: lambda a: a,
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, 1),
            7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
            8: lambda a: np.rot90(a, -1),
        }[orientation](np.asarray(photo))
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.ascontiguousarray(stored))
        pixels = _read(tmp_path, image, "a.png", exif=exif)
        np.testing.assert_array_equal(pixels, np.asarray(photo))
        # Written again, it is not turned a second time.
        again = _read(tmp_path, read_image(tmp_path / "a.png"), "b.png")
        np.testing.assert_array_equal(again, np.asarray(photo))

    def test_damaged_exif_is_no_obstacle(self, tmp_path: Path) -> None:
        pixels = _read(
            tmp_path, _photo(), "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95
        )
        assert pixels.shape == (30, 40, 3)

    def test_damaged_tags_beside_the_orientation(self, tmp_path: Path) -> None:
        tags = [(0x010F, 5, 1, 0), (0x0112, 3, 1, 6)]  # a maker that is a fraction
        entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
        assert _read(tmp_path, _photo(), "a.jpg", exif=exif).shape == (40, 30, 3)


class TestRefusals:
    """Whatever is wrong with a file, ImageError names it in one line."""

    @staticmethod
    def _refused(path: Path, message: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError) as caught:
                read_image(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert message in text
        assert "\n" not in text

    def test_missing_folder_empty(self, tmp_path: Path) -> None:
        self._refused(tmp_path / "none.jpg", "no such file")
        self._refused(tmp_path, "is a folder")
        (tmp_path / "empty.jpg").touch()
        self._refused(tmp_path / "empty.jpg", "empty (0 bytes)")

    def test_sizes_come_from_the_head_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "head.png").write_bytes(_png(300, 20, 8, 2, b"")[:60])
        assert picture_size(tmp_path / "head.png") == (300, 20)
        with pytest.raises(ImageError, match="none.png: no such file"):
            picture_size(tmp_path / "none.png")

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied"),
            (MemoryError(), "too large for the memory"),
            (EOFError(), "the picture is damaged: EOFError"),
        ],
    )
    def test_every_reason_is_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        _photo().save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "open", fail)
        self._refused(tmp_path / "a.png", reason)

    def test_text_named_jpg(self, tmp_path: Path) -> None:
        (tmp_path / "notes.jpg").write_text("buy milk\n")
        self._refused(tmp_path / "notes.jpg", "not a picture")

    def test_postscript_is_never_run(self, tmp_path: Path) -> None:
        """PIL hands PostScript to Ghostscript; a file named .jpg must not get that far."""
        (tmp_path / "a.jpg").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
        )
        self._refused(tmp_path / "a.jpg", "not a picture")

    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.tif", "a.webp", "a.bmp"])
    def test_truncated(self, tmp_path: Path, name: str) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        for share in (0.1, 0.5, 0.8):
            (tmp_path / name).write_bytes(content[: int(len(content) * share)])
            self._refused(tmp_path / name, "")

    @given(data=st.data())
    def test_damaged_anywhere(self, data: st.DataObject, tmp_path_factory) -> None:
        """Flipped bytes give a picture or an ImageError, never another exception."""
        kind = data.draw(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM", "WEBP"]))
        buffer = io.BytesIO()
        _photo(8, 9).save(buffer, kind)
        content = bytearray(buffer.getvalue())
        places = st.integers(0, len(content) - 1)
        for place, value in data.draw(st.dictionaries(places, st.integers(0, 255))).items():
            content[place] = value
        path = tmp_path_factory.mktemp("damaged") / "a.jpg"
        path.write_bytes(content)
        try:
            assert read_image(path, max_pixels=100_000).mode == "RGB"
        except ImageError as error:
            assert str(error).startswith(str(path))

    def test_bombs(self, tmp_path: Path) -> None:
        """A few bytes that claim 900 or 100 megapixels are refused before they are decoded."""
        path = tmp_path / "bomb.png"
        path.write_bytes(_png(30_000, 30_000, 8, 2, b"\0" * 1000))
        self._refused(path, "too large")
        path.write_bytes(_png(10_000, 10_000, 8, 0, b"\0" * 1000))
        with pytest.raises(ImageError, match="10000x10000 is 100000000 pixels, at most 1000000"):
            read_image(path, max_pixels=1_000_000)
        self._refused(path, "damaged")  # 100 megapixels are allowed: PIL's warning is not shown

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_pipe_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        self._refused(tmp_path / "pipe.png", "empty")


class TestLabels:
    """Label files give exactly their values, or say which value is wrong."""

    @given(
        labels=npst.arrays(
            np.uint8,
            npst.array_shapes(min_dims=2, max_dims=2, max_side=20),
            elements=st.one_of(st.integers(0, 10), st.just(255)),
        )
    )
    def test_round_trip(self, labels: np.ndarray, tmp_path_factory) -> None:
        path = tmp_path_factory.mktemp("labels") / "a.png"
        write_labels(path, labels, CAMVID.palette)
        result = read_labels(path, CAMVID, size=labels.shape)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, labels)
        with Image.open(path) as image:
            assert image.mode == "P"
            colors = np.asarray(image.convert("RGB"))
        table = np.array(CAMVID.palette + ((0, 0, 0),))
        np.testing.assert_array_equal(colors, table[np.minimum(labels, 11)])

    def test_void_values_become_255(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 10, 11, 255]], np.uint8)).save(tmp_path / "a.png")
        assert read_labels(tmp_path / "a.png", CAMVID).tolist() == [[0, 10, 255, 255]]

    def test_values_out_of_range(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        Image.fromarray(np.array([[0, 12, 12, 12], [200, 1, 2, 3]], np.uint8)).save(path)
        with pytest.raises(LabelError) as caught:
            read_labels(path, CAMVID)
        assert str(path) in str(caught.value)
        assert "value 12 (pixels: 3)" in str(caught.value)
        Image.fromarray(np.array([[1, 300, 300]], np.uint16)).save(path)
        with pytest.raises(LabelError, match=r"value 300 \(pixels: 2\)"):
            read_labels(path, CAMVID)

    def test_sixteen_bit_labels(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[1, 10, 255]], np.uint16)).save(tmp_path / "a.png")
        assert read_labels(tmp_path / "a.png", CAMVID).tolist() == [[1, 10, 255]]

    @pytest.mark.parametrize(
        ("depth", "row", "expected"),
        [(1, 0b0110_0000, [0, 1, 1]), (2, 0b0001_1000, [0, 1, 2]), (4, 0x0A, [0, 10])],
    )
    def test_gray_of_few_bits(
        self, tmp_path: Path, depth: int, row: int, expected: list[int]
    ) -> None:
        """PIL stretches 2 and 4 bit grays to 0..255; as labels they are what is stored."""
        path = tmp_path / "a.png"
        path.write_bytes(_png(len(expected), 1, depth, 0, bytes([0, row])))
        assert read_labels(path, CAMVID).tolist() == [expected]

    @pytest.mark.parametrize("name", ["a.tif", "a.bmp", "a.pgm"])
    def test_other_formats(self, tmp_path: Path, name: str) -> None:
        Image.fromarray(np.array([[1, 10, 255]], np.uint8)).save(tmp_path / name)
        assert read_labels(tmp_path / name, CAMVID).tolist() == [[1, 10, 255]]

    def test_other_size(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        Image.fromarray(np.zeros((3, 5), np.uint8)).save(path)
        with pytest.raises(LabelError, match="labels are 5x3 pixels, their image is 4x3"):
            read_labels(path, CAMVID, size=(3, 4))

    def test_other_colors_are_no_labels(self, tmp_path: Path) -> None:
        _photo().save(tmp_path / "a.png")
        with pytest.raises(LabelError, match=r"a\.png: color #\w{6} \(pixels: \d+\) is not"):
            read_labels(tmp_path / "a.png", CAMVID)
        with pytest.raises(LabelError, match="no such file"):
            read_labels(tmp_path / "none.png", CAMVID)

    def test_write_refuses_what_is_no_label_map(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        with pytest.raises(TypeError, match="int64"):
            write_labels(path, np.zeros((2, 2), np.int64), CAMVID.palette)
        for shape in ((2, 2, 3), (0, 4)):
            with pytest.raises(ValueError, match=str(shape[0])):
                write_labels(path, np.zeros(shape, np.uint8), CAMVID.palette)
        with pytest.raises(ValueError, match="257"):
            write_labels(path, np.zeros((2, 2), np.uint8), ((0, 0, 0),) * 257)
        assert not list(tmp_path.iterdir())


class TestWriting:
    """A file is written whole or not at all, and nothing else is left in the folder."""

    def test_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(b"old")
        write_image(path, _photo())
        np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(_photo()))
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]

    def test_unwritable(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "folder.png").mkdir()
        labels = np.zeros((2, 2), np.uint8)
        for place in ("none/a.png", "file/a.png", "folder.png"):
            with pytest.raises(OSError) as caught:
                write_labels(tmp_path / place, labels, CAMVID.palette)
            assert str(tmp_path / place) in str(caught.value)
            assert ".tmp" not in str(caught.value)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.png"]
        with pytest.raises(ValueError, match=r"\.xyz"):
            write_image(tmp_path / "a.xyz", _photo())

    @pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
    def test_no_room(self, tmp_path: Path, root: Path) -> None:
        """A write that is cut short keeps the old file and removes the new one."""
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")
        script = (
            "import resource, sys\n"
            "from fcnfast.files import write_bytes\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "try:\n"
            "    write_bytes(sys.argv[1], bytes(100_000))\n"
            "except OSError as error:\n"
            "    print(error)\n"
        )
        run = subprocess.run(
            [sys.executable, "-B", "-c", script, str(path)],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert str(path) in run.stdout
        assert path.read_bytes() == b"old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]

    def test_permissions_follow_the_umask(self, tmp_path: Path) -> None:
        write_bytes(tmp_path / "a", b"x")
        (tmp_path / "b").write_bytes(b"x")
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


class TestPaths:
    """Files, folders and patterns become a list of pictures."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "sub/c.webp", "x[1].png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "none").mkdir()
        (tmp_path / "folder.png").mkdir()
        return tmp_path

    def test_folder_sorted_by_extension(self, folder: Path) -> None:
        assert [path.name for path in image_paths(folder)] == ["a.png", "b.JPG", "x[1].png"]

    def test_patterns(self, folder: Path) -> None:
        assert image_paths(f"{folder}/*.png") == [folder / "a.png", folder / "x[1].png"]
        assert folder / "sub" / "c.webp" in image_paths(f"{folder}/**")
        assert image_paths(folder / "x[1].png") == [folder / "x[1].png"]

    def test_order_and_duplicates(self, folder: Path) -> None:
        specs = [folder / "sub" / "c.webp", folder, f"{folder}/sub/../a.png"]
        names = [path.name for path in image_paths(specs)]
        assert names == ["c.webp", "a.png", "b.JPG", "x[1].png"]

    def test_a_file_needs_no_extension(self, folder: Path) -> None:
        assert image_paths(folder / "notes.txt") == [folder / "notes.txt"]

    def test_a_missing_one_among_others_is_handed_on(self, folder: Path) -> None:
        specs = [folder / "gone.jpg", folder / "a.png", folder / "none"]
        assert image_paths(specs) == specs

    @pytest.mark.parametrize(
        ("spec", "reason"),
        [("gone.jpg", "no such file"), ("none", "no pictures"), ("*.bmp", "no picture matches")],
    )
    def test_nothing_found(self, folder: Path, spec: str, reason: str) -> None:
        with pytest.raises(ImageError, match=reason) as caught:
            image_paths([folder / spec])
        assert spec in str(caught.value)
        with pytest.raises(ImageError, match="no picture was given"):
            image_paths([])


class TestClassTables:
    """Known tables, tables from files, and what is wrong with others."""

    def test_known(self) -> None:
        assert class_table("camvid") is class_table("CamVid") is CAMVID
        assert class_table(VOC) is VOC
        assert (len(CAMVID), len(VOC)) == (11, 21)
        assert CAMVID.names[0] == "Sky" and CAMVID.names[10] == "Bicyclist"
        assert VOC.names[0] == "background" and VOC.names[20] == "tvmonitor"

    def test_voc_palette(self) -> None:
        palette = voc_palette(256)
        assert palette[1] == (128, 0, 0)
        assert palette[8] == (64, 0, 0)
        assert palette[14] == (64, 128, 128)
        assert palette[20] == (0, 64, 128)
        assert palette[255] == (224, 224, 192)
        assert len(set(palette)) == 256
        with pytest.raises(ValueError, match="257"):
            voc_palette(257)

    def test_from_json(self, tmp_path: Path) -> None:
        path = tmp_path / "roads.json"
        path.write_text('{"names": ["road", "rest"], "palette": [[1, 2, 3], [4, 5, 6]]}')
        assert class_table(path) == ClassTable("roads", ("road", "rest"), ((1, 2, 3), (4, 5, 6)))
        path.write_text('{"names": ["road", "rest"], "void_values": [2, 7]}')
        assert class_table(str(path)).palette == voc_palette(2)
        assert class_table(path).void_values == (2, 7)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("names: road", "not a JSON file"),
            ("[]", "expected an object"),
            ("{}", "'names' is missing"),
            ('{"names": "road"}', "not a list of strings"),
            ('{"names": []}', "0 classes"),
            ('{"names": ["a", "a"]}', "repeats the name 'a'"),
            ('{"names": ["a"], "palette": [[1, 2]]}', "not three integers"),
            ('{"names": ["a"], "palette": [[1, 2, 999]]}', "999"),
            ('{"names": ["a"], "palette": [[1, 2, 3], [4, 5, 6]]}', "1 names but 2 colors"),
            ('{"names": ["a"], "palette": [[1, 2, "3"]]}', "three integers"),
            ('{"names": ["a"], "void_values": "7"}', "not a list of integers"),
            ('{"names": ["a"], "void_values": [0]}', "also the class 'a'"),
            ('{"names": ["a"], "void_values": [70000]}', "70000"),
            ('{"names": ["a"], "colors": []}', "unknown entry 'colors'"),
        ],
    )
    def test_bad_json(self, tmp_path: Path, text: str, reason: str) -> None:
        path = tmp_path / "table.json"
        path.write_text(text)
        with pytest.raises(DatasetError) as caught:
            class_table(path)
        assert str(path) in str(caught.value)
        assert reason in str(caught.value)

    def test_unknown(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"no class table of that name \(ade20k, camvid, "):
            class_table("cityscape")
        with pytest.raises(DatasetError, match="cannot read"):
            class_table(tmp_path / "gone.json")
