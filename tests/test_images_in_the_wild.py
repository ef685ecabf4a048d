"""Pictures as cameras, browsers and editors leave them; and 200 damaged files of every kind."""

import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image, PngImagePlugin

from fcnfast.cli import main
from fcnfast.data.folder import passed_over
from fcnfast.data.images import picture_size, read_image
from fcnfast.errors import ImageError
from fcnfast.segment import Segmenter
from tests.model_tools import make_photo, write_small_weights
from tests.test_labels import tiff


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png_with(path: Path, extra: bytes, before: bytes = b"IDAT") -> np.ndarray:
    """Write a PNG with more bytes before one of its chunks; return its pixels."""
    photo = make_photo()
    photo.save(path)
    content = path.read_bytes()
    place = content.index(before) - 4 if before else len(content) - 12
    path.write_bytes(content[:place] + extra + content[place:])
    return np.asarray(photo)


class TestMetadata:
    @pytest.mark.parametrize(
        "extra",
        [
            chunk(b"pHYs", b"\0"),
            chunk(b"gAMA", b""),
            chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(3 << 20))),
            chunk(b"zTXt", b"key\0\0" + zlib.compress(b"text " * 400_000)),
            chunk(b"iTXt", b"key\0\1"),
            chunk(b"tEXt", b"key\0value", crc=0),
            chunk(b"eXIf", b"MM", crc=0),
            chunk(b"teSt", b"nobody's"),
        ],
        ids=["pHYs", "gAMA", "iCCP", "zTXt", "iTXt", "crc", "eXIf", "unknown"],
    )
    def test_chunks_that_do_not_matter(self, tmp_path, extra):
        path = tmp_path / "a.png"
        pixels = png_with(path, extra)
        np.testing.assert_array_equal(np.asarray(read_image(path)), pixels)
        assert picture_size(path) == (48, 36)

    def test_a_file_cut_behind_its_pixels(self, tmp_path):
        path = tmp_path / "a.png"
        pixels = png_with(path, chunk(b"tEXt", b"key\0" + b"long " * 99), before=b"IEND")
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"long") + 50])
        np.testing.assert_array_equal(np.asarray(read_image(path)), pixels)

    @pytest.mark.parametrize(
        ("kind", "data"),
        [(0xE0, b"JFIF\0"), (0xE2, b"ICC_PROFILE\0"), (0xEE, b"Adobe"), (0xED, b"Photoshop 3.0\0")],
    )
    def test_segments_of_a_jpeg(self, tmp_path, kind, data):
        exif = Image.Exif()
        exif[0x0112] = 6
        make_photo().save(tmp_path / "a.jpg", exif=exif)
        expected = np.asarray(read_image(tmp_path / "a.jpg"))
        content = (tmp_path / "a.jpg").read_bytes()
        segment = struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data
        (tmp_path / "a.jpg").write_bytes(content[:2] + segment + content[2:])
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.jpg")), expected)

    def test_many_texts(self, tmp_path):
        texts = PngImagePlugin.PngInfo()
        for k in range(70):
            texts.add_text(f"key{k}", "x" * 1_000_000, zip=True)
        make_photo().save(tmp_path / "a.png", pnginfo=texts)
        assert read_image(tmp_path / "a.png").size == (48, 36)

    def test_the_turn_survives(self, tmp_path):
        """A picture with a damaged chunk is still turned as its EXIF says."""
        exif = Image.Exif()
        exif[0x0112] = 6
        make_photo().save(tmp_path / "a.png", exif=exif)
        content = (tmp_path / "a.png").read_bytes()
        place = content.index(b"IDAT") - 4
        (tmp_path / "a.png").write_bytes(content[:place] + chunk(b"pHYs", b"") + content[place:])
        assert read_image(tmp_path / "a.png").size == (36, 48)
        assert picture_size(tmp_path / "a.png") == (48, 36)

    def test_cut_pixels_stay_cut(self, tmp_path):
        path = tmp_path / "a.png"
        png_with(path, chunk(b"pHYs", b""))
        content = path.read_bytes()
        for end in (content.index(b"IDAT") + 200, len(content) - 30):
            path.write_bytes(content[:end])
            with pytest.raises(ImageError, match="damaged"):
                read_image(path)


class TestBitDepth:
    """12 bits in a container of 16."""

    @pytest.fixture
    def gray(self, tmp_path) -> Path:
        values = np.array([[0, 2048, 4095]], np.uint16)
        Image.fromarray(values).save(tmp_path / "a.png")
        return tmp_path / "a.png"

    def test_gray(self, gray):
        with pytest.warns(UserWarning, match=r"a\.png: its largest 16-bit value is 4095.*depth 12"):
            assert np.asarray(read_image(gray))[0, :, 0].tolist() == [0, 8, 16]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.asarray(read_image(gray, bit_depth=12))[0, :, 0].tolist() == [0, 128, 255]
            assert np.asarray(read_image(gray, bit_depth=16))[0, :, 0].tolist() == [0, 8, 16]
        with pytest.raises(ImageError, match="4095, has more bits than 11"):
            read_image(gray, bit_depth=11)
        with pytest.raises(ValueError, match="bit_depth must be 8 to 16, not 17"):
            read_image(gray, bit_depth=17)

    @pytest.mark.parametrize("order", [">", "<"])
    def test_colors(self, tmp_path, order):
        values = np.array([[[4095, 0, 2048], [16, 4095, 1]]], np.uint16)
        if order == ">":
            path = tmp_path / "a.png"
            rows = b"\0" + values.astype(">u2").tobytes()
            head = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
            parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
            path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
        else:
            path = tmp_path / "a.tif"
            tags = [(256, 2), (257, 1), (258, 16), (259, 1), (262, 2), (273, 0), (277, 3)]
            tags += [(278, 1), (279, 12)]
            start = 8 + 2 + 12 * len(tags) + 4
            body = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
            for tag, value in tags:
                where = {273: start, 258: start + 12}.get(tag, value)
                body += struct.pack(
                    "<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, where
                )
            body += struct.pack("<I", 0) + values.astype("<u2").tobytes()
            path.write_bytes(body + struct.pack("<HHH", 16, 16, 16))
        pixels = np.asarray(read_image(path, bit_depth=12))[0]
        assert pixels.tolist() == [[255, 0, 128], [1, 255, 0]]
        with pytest.warns(UserWarning, match="12 bits"):
            read_image(path)

    def test_tiffs_of_white_is_zero(self, tmp_path):
        path = tmp_path / "a.tif"
        path.write_bytes(tiff(np.array([[0, 65535]]), 16, 0, "<"))
        assert np.asarray(read_image(path))[0, :, 0].tolist() == [255, 0]

    def test_the_commands(self, gray, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        weights = str(write_small_weights(tmp_path / "w.safetensors"))
        assert main(["predict", "a.png", "a.png", "--weights", weights]) == 0
        err = capsys.readouterr().err
        assert err.startswith("fcnfast: warning: a.png: its largest") and err.count("\n") == 1
        arguments = ["predict", "a.png", "--weights", weights, "--bit-depth"]
        assert main([*arguments, "12"]) == 0
        assert capsys.readouterr().err == ""
        for bad in ("7", "twelve"):
            assert main([*arguments, bad]) == 2
            assert f"from 8 to 16, not {bad}" in capsys.readouterr().err
        segmenter = Segmenter(weights, "cpu", bit_depth=12)
        assert np.asarray(segmenter("a.png").image)[0, :, 0].tolist() == [0, 128, 255]


class TestFolders:
    def test_other_extensions_are_pictures(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        weights = str(write_small_weights(tmp_path / "w.safetensors"))
        Path("in").mkdir()
        for name in ("a.jfif", "b.jpe", "c.MPO", "d.jpg"):
            make_photo().save(Path("in", name), format="JPEG")
        make_photo().convert("1").save("in/e.pbm")
        for name in ("notes.txt", ".hidden", "g.xcf"):
            Path("in", name).touch()
        assert passed_over("in") == [Path("in/g.xcf"), Path("in/notes.txt")]
        assert main(["predict", "in", "--weights", weights, "--device", "cpu"]) == 0
        assert {path.stem for path in Path("out/labels").iterdir()} == set("abcde")
        err = capsys.readouterr().err
        assert err == (
            "fcnfast: 2 files passed over, not pictures by their names: g.xcf, notes.txt\n"
        )

    def test_exif_is_named_for_labels_of_the_unturned_photo(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        exif = Image.Exif()
        exif[0x0112] = 6
        for folder in ("val", "valannot"):
            Path(folder).mkdir()
        make_photo().save("val/a.jpg", exif=exif)
        Image.new("L", (48, 36)).save("valannot/a.png")
        weights = str(write_small_weights(tmp_path / "w.safetensors"))
        assert main(["evaluate", "--data-path", ".", "--weights", weights]) == 2
        err = capsys.readouterr().err
        assert err == (
            "fcnfast: error: valannot/a.png: the labels are 48x36 pixels, their image is 36x48: "
            "EXIF turns it upright, and the labels were drawn on the unturned photo\n"
        )


def files_to_damage(root: Path) -> list[Path]:
    """A small data set of files of every kind, and those of them to damage."""
    for folder in ("images/train", "labels/train", "sbd/cls", "sbd/img"):
        (root / folder).mkdir(parents=True)
    photo = make_photo()
    for name in ("a.jpg", "b.png", "c.tif", "d.webp", "e.gif", "f.bmp", "g.ppm"):
        photo.save(root / "images/train" / name)
    exif = Image.Exif()
    exif[0x0112] = 3
    photo.save(root / "images/train/h.jpg", exif=exif, icc_profile=bytes(300))
    labels = np.resize(np.arange(3, dtype=np.uint8), (36, 48))
    kinds = dict(
        zip("abcdefgh", ("png", "png", "tif", "bmp", "gif", "pgm", "png", "png"), strict=True)
    )
    for name, kind in kinds.items():
        Image.fromarray(labels).save(root / f"labels/train/{name}.{kind}")
    (root / "dataset.json").write_text(json.dumps({"classes": "t.json"}))
    table = {
        "names": list("abc"),
        "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        "label_map": {"0": "a", "1": "b", "2": "c", "#ff0000": "void"},
    }
    (root / "t.json").write_text(json.dumps(table))
    photo.save(root / "sbd/img/x.jpg")
    scipy.io.savemat(root / "sbd/cls/x.mat", {"GTcls": {"Segmentation": labels}})
    (root / "sbd/train.txt").write_text("x\n")
    return sorted(path for path in root.rglob("*") if path.is_file())


def damaged(content: bytes, other: bytes, chance: np.random.Generator) -> bytes:
    """Cut, flip bits, swap a part with another file's, or take out a part."""
    kind, changed = chance.integers(4), bytearray(content)
    place = int(chance.integers(len(content)))
    if kind == 0:
        return bytes(changed[:place])
    if kind == 1:
        for _ in range(int(chance.integers(1, 9))):
            changed[int(chance.integers(len(changed)))] ^= 1 << int(chance.integers(8))
    elif kind == 2:
        changed[place : place + 40] = other[place : place + 40]
    else:
        del changed[place : place + int(chance.integers(1, 30))]
    return bytes(changed)


def test_damaged_files_give_results_or_one_line(tmp_path, monkeypatch, capsys):
    """200 mutated pictures, labels, tables and lists: never a traceback."""
    monkeypatch.chdir(tmp_path)
    paths = files_to_damage(tmp_path)
    weights = str(write_small_weights(tmp_path / "w.safetensors"))
    chance = np.random.default_rng(0)
    codes = []
    for turn in range(200):
        path = paths[turn % len(paths)]
        content = path.read_bytes()
        other = paths[int(chance.integers(len(paths)))].read_bytes()
        path.write_bytes(damaged(content, other, chance))
        if "sbd" in path.parts:
            arguments = ["check", "sbd", "--dataset", "voc", "--split", "train", "-j", "0"]
        elif turn % 3 or path.parent.name != "train":
            arguments = ["check", ".", "-j", "0"]
        else:
            arguments = ["predict", str(path), "--weights", weights, "--device", "cpu"]
        codes.append(main(arguments))
        path.write_bytes(content)
        out, err = capsys.readouterr()
        assert codes[-1] in (0, 1, 2)
        assert codes[-1] == 0 or err.startswith("fcnfast: ")
        for line in err.splitlines():
            assert line.startswith("fcnfast: ") and len(line) <= 300, (path, line)
    assert {0, 1, 2} == set(codes)
