"""Label files give the integers that they store, whatever format, depth, palette or scale."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from fcnfast.data.classes import ClassTable, table_from_json, table_to_json, voc_palette
from fcnfast.data.labels import read_labels, stored_integers, write_labels
from fcnfast.data.tables import CAMVID, CITYSCAPES_IDS, TABLES, VOC, class_table
from fcnfast.errors import DatasetError, LabelError

# How PIL can write labels: name, mode, values below, options of `save`.
WRITTEN = [
    ("a.png", "1", 2, {}),
    ("a.png", "L", 256, {}),
    ("a.png", "P", 2, {"bits": 1}),
    ("a.png", "P", 4, {"bits": 2}),
    ("a.png", "P", 16, {"bits": 4}),
    ("a.png", "P", 256, {}),
    ("a.png", "I;16", 65536, {}),
    ("a.png", "LA", 256, {}),
    ("a.bmp", "1", 2, {}),
    ("a.bmp", "L", 256, {}),
    ("a.bmp", "P", 256, {}),
    ("a.gif", "L", 256, {"optimize": False}),
    ("a.gif", "P", 256, {"optimize": False}),
    ("a.pbm", "1", 2, {}),
    ("a.pgm", "L", 256, {}),
    ("a.pgm", "I;16", 65536, {}),
    *(
        ("a.tif", mode, below, {"compression": compression})
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")
        for mode, below in (("1", 2), ("L", 256), ("P", 256), ("I;16", 65536))
    ),
    ("a.tif", "1", 2, {"compression": "group4"}),
    ("a.tif", "1", 2, {"compression": "group3"}),
    ("a.tif", "I;16B", 65536, {}),
    ("a.tif", "I", 2**31, {}),
]


def picture(values: np.ndarray, mode: str) -> Image.Image:
    """A picture of a mode that holds these integers."""
    if mode == "1":
        return Image.fromarray(values.astype(bool))
    if mode.startswith("I;16"):
        return Image.frombytes(
            mode,
            values.shape[::-1],
            np.ascontiguousarray(values, ">u2" if mode.endswith("B") else "<u2").tobytes(),
        )
    if mode == "I":
        return Image.fromarray(values.astype(np.int32))
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "P":
        image.putpalette([channel for color in voc_palette(256) for channel in color])
    if mode == "LA":
        image.putalpha(255)
    return image


@pytest.mark.parametrize(("name", "mode", "below", "options"), WRITTEN)
@given(data=st.data())
def test_what_pil_writes_is_read_as_stored(name, mode, below, options, data, tmp_path_factory):
    shape = npst.array_shapes(min_dims=2, max_dims=2, max_side=12)
    values = data.draw(npst.arrays(np.int64, shape, elements=st.integers(0, below - 1)))
    path = tmp_path_factory.mktemp("labels") / name
    picture(values, mode).save(path, **options)
    # A PBM's 1 is black, which PIL calls False.
    expected = 1 - values if name.endswith(".pbm") else values
    np.testing.assert_array_equal(stored_integers(path), expected)


@given(
    values=npst.arrays(np.int64, (3, 5), elements=st.integers(0, 70_000)),
    maxval=st.integers(1, 65535),
    plain=st.booleans(),
)
def test_pgm_of_any_maxval(values, maxval, plain, tmp_path_factory):
    values = values % (maxval + 1)
    path = tmp_path_factory.mktemp("labels") / "a.pgm"
    head = f"{'P2' if plain else 'P5'}\n# a comment\n5 3\n{maxval}\n".encode()
    text = " ".join(map(str, values.ravel().tolist())).encode()
    raw = values.astype(">u2" if maxval > 255 else "u1").tobytes()
    path.write_bytes(head + (text if plain else raw))
    np.testing.assert_array_equal(stored_integers(path), values)


def test_bitmaps_in_text(tmp_path):
    (tmp_path / "a.pbm").write_bytes(b"P1\n3 2\n0 1 0\n1 1 0\n")
    assert stored_integers(tmp_path / "a.pbm").tolist() == [[0, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    ("bits", "colors", "row", "expected"),
    [
        (1, (0, 255), b"\x50\0\0\0", [0, 1, 0, 1]),
        (1, (255, 0), b"\x50\0\0\0", [0, 1, 0, 1]),
        (4, range(16), b"\x01\x2f\0\0", [0, 1, 2, 15]),
        (4, (0, 255), b"\x01\x10\0\0", [0, 1, 1, 0]),
        (8, (0, 255), b"\x00\x01\x01\x00", [0, 1, 1, 0]),
        (8, range(256), b"\x00\x01\x0a\xff", [0, 1, 10, 255]),
        (8, range(7, 10), b"\x00\x01\x02\x00", [0, 1, 2, 0]),
    ],
)
def test_gray_bitmaps_of_any_depth(tmp_path, bits, colors, row, expected):
    palette = b"".join(bytes((c, c, c, 0)) for c in colors)
    start = 14 + 40 + len(palette)
    head = struct.pack("<IHHI", start + 4, 0, 0, start)
    head += struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, bits, 0, 4, 0, 0, len(colors), 0)
    (tmp_path / "a.bmp").write_bytes(b"BM" + head + palette + row)
    assert stored_integers(tmp_path / "a.bmp").tolist() == [expected]


def tiff(values: np.ndarray, bits: int, photometric: int, order: str, fill: int = 1) -> bytes:
    """A gray TIFF of one strip, byte by byte."""
    height, width = values.shape
    if bits == 16:
        data = values.astype(f"{order}u2").tobytes()
    else:
        spread = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        packed = np.packbits(spread.reshape(height, -1), axis=1)
        if fill == 2:  # the lowest bit comes first
            packed = np.packbits(np.unpackbits(packed[..., None], axis=2)[..., ::-1], axis=2)
        data = packed.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (266, fill)]
    tags += [(273, 0), (277, 1), (278, height), (279, len(data))]
    start = 8 + 2 + 12 * len(tags) + 4
    body = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, value in tags:
        body += struct.pack(f"{order}HHII", tag, 4, 1, start if tag == 273 else value)
    return body + struct.pack(f"{order}I", 0) + data


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
@pytest.mark.parametrize(
    ("bits", "fill"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2), (16, 1)]
)
def test_gray_tiffs(tmp_path, bits, fill, photometric, order):
    if (bits, photometric, order) == (16, 0, ">"):
        pytest.skip("PIL does not read these")
    values = np.random.default_rng(bits).integers(0, 1 << bits, (5, 9))
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values, bits, photometric, order, fill))
    np.testing.assert_array_equal(stored_integers(path), values)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("a.jpg", "JPEG", {}),
        ("a.jp2", "JPEG 2000", {}),
        ("a.avif", "AVIF", {}),
        ("a.webp", "WebP", {}),
        ("a.tif", "TIFF", {"compression": "jpeg"}),
    ],
)
def test_lossy_files_say_that_they_are(tmp_path, name, kind, options):
    if Image.registered_extensions().get(Path(name).suffix) not in Image.SAVE:
        pytest.skip(f"this PIL cannot write {name}")
    Image.new("L", (16, 16), 1).save(tmp_path / name, **options)
    with pytest.raises(LabelError, match=rf"{name}: {kind}.* may be lossy.*save them as PNG"):
        read_labels(tmp_path / name, CAMVID)


def test_other_pictures_say_why_they_are_no_labels(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((2, 2), np.float32)).save(path)
    with pytest.raises(LabelError, match="mode F"):
        read_labels(path, CAMVID)
    clear = Image.new("LA", (2, 2), (1, 9))
    clear.save(tmp_path / "a.png")
    with pytest.raises(LabelError, match=r"a\.png: labels must not be transparent"):
        read_labels(tmp_path / "a.png", CAMVID)


class TestColors:
    """Masks in colors are read through the inverse palette."""

    def test_voc_as_colors(self, tmp_path):
        labels = np.random.default_rng(0).choice([*range(21), 255], (20, 30)).astype(np.uint8)
        colors = np.array(voc_palette(256), np.uint8)[labels]
        for name, image in (
            ("a.png", Image.fromarray(colors)),
            ("b.png", Image.fromarray(colors).convert("RGBA")),
            ("c.bmp", Image.fromarray(colors)),
        ):
            image.save(tmp_path / name)
            np.testing.assert_array_equal(read_labels(tmp_path / name, VOC), labels)
        Image.fromarray(colors).save(tmp_path / "d.webp", lossless=True)
        np.testing.assert_array_equal(read_labels(tmp_path / "d.webp", VOC), labels)

    def test_what_we_write_can_be_read_as_colors(self, tmp_path):
        labels = np.array([[0, 3, 10, 255]], np.uint8)
        write_labels(tmp_path / "a.png", labels, CAMVID.palette)
        with Image.open(tmp_path / "a.png") as image:
            image.convert("RGB").save(tmp_path / "b.png")
        np.testing.assert_array_equal(read_labels(tmp_path / "b.png", CAMVID), labels)

    def test_an_unknown_color_is_named_and_counted(self, tmp_path):
        Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "a.png")
        with pytest.raises(LabelError, match=r"a\.png: color #010203 \(pixels: 6\)"):
            read_labels(tmp_path / "a.png", VOC)

    def test_several_colors_for_one_class(self, tmp_path):
        (tmp_path / "t.json").write_text(
            '{"names": ["road", "rest"], "palette": [[9, 9, 9], [1, 1, 1]],'
            ' "label_map": {"#ff0000": "road", "#00ff00": "void"}}'
        )
        table = class_table(tmp_path / "t.json")
        colors = [[(9, 9, 9), (255, 0, 0), (0, 255, 0), (1, 1, 1)]]
        Image.fromarray(np.array(colors, np.uint8)).save(tmp_path / "a.png")
        assert read_labels(tmp_path / "a.png", table).tolist() == [[0, 0, 255, 1]]
        Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "b.png")
        assert read_labels(tmp_path / "b.png", table).tolist() == [[0, 1, 255]]


class TestLabelMaps:
    """A table says which stored value is which class; nothing is guessed."""

    @staticmethod
    def table(tmp_path: Path, entries: str) -> ClassTable:
        (tmp_path / "t.json").write_text(f'{{"names": ["background", "object"], {entries}}}')
        return class_table(tmp_path / "t.json")

    def test_masks_of_0_and_255(self, tmp_path):
        mask = np.array([[0, 255, 255]], np.uint8)
        Image.fromarray(mask).save(tmp_path / "a.png")
        plain = self.table(tmp_path, '"void_values": [255]')
        assert read_labels(tmp_path / "a.png", plain).tolist() == [[0, 255, 255]]
        mapped = self.table(tmp_path, '"label_map": {"0": "background", "255": "object"}')
        assert read_labels(tmp_path / "a.png", mapped).tolist() == [[0, 1, 1]]

    def test_several_values_for_one_class_and_values_of_16_bits(self, tmp_path):
        entries = '"label_map": {"7": "object", "300": "object", "1": "void", "0": "background"}'
        table = self.table(tmp_path, entries)
        Image.fromarray(np.array([[300, 7, 1, 0, 255]], np.uint16)).save(tmp_path / "a.png")
        assert read_labels(tmp_path / "a.png", table).tolist() == [[1, 1, 255, 0, 255]]
        Image.fromarray(np.array([[2]], np.uint8)).save(tmp_path / "b.png")
        with pytest.raises(
            LabelError, match=r"b\.png: value 2 \(pixels: 1\) is not a class of 't'"
        ):
            read_labels(tmp_path / "b.png", table)

    def test_cityscapes_ids(self, tmp_path):
        ids = np.array([[0, 7, 8, 33, 9, 255]], np.uint8)
        Image.fromarray(ids).save(tmp_path / "a.png")
        labels = read_labels(tmp_path / "a.png", CITYSCAPES_IDS)
        assert labels.tolist() == [[255, 0, 1, 18, 255, 255]]

    @pytest.mark.parametrize(
        ("entries", "reason"),
        [
            ('"label_map": []', '"label_map" is not an object'),
            ('"label_map": {"0": "sky"}', "'sky' is neither a class nor"),
            ('"label_map": {"zero": "void"}', "'zero' is neither an integer nor #rrggbb"),
            ('"label_map": {"#12345g": "void"}', "neither an integer nor #rrggbb"),
            ('"label_map": {"1": "object", "01": "void"}', "repeats 1"),
            ('"label_map": {"3": "object"}, "void_values": [3]', "void value 3.*'object'"),
            ('"palette": 3', '"palette" is not a list'),
        ],
    )
    def test_bad_maps(self, tmp_path, entries, reason):
        with pytest.raises(DatasetError, match=reason) as caught:
            self.table(tmp_path, entries)
        assert str(caught.value).startswith(f"{tmp_path / 't.json'}: ")

    def test_labels_outside_of_the_table_are_refused(self):
        with pytest.raises(ValueError, match="has no class 3"):
            ClassTable("t", ("a",), ((0, 0, 0),), label_map=((1, 3),))

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    def test_files_as_other_systems_write_them(self, tmp_path, encoding):
        path = tmp_path / "t.json"
        path.write_text('{"names": ["straße"]}\r\n', encoding=encoding)
        assert class_table(path).names == ("straße",)

    @pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
    def test_tables_survive_json(self, table):
        assert table_from_json(Path("x.json"), table_to_json(table)) == table

    def test_the_numbers_of_classes(self):
        counts = {name: len(table) for name, table in TABLES.items()}
        assert counts == {
            "ade20k": 150,
            "camvid": 11,
            "cityscapes": 19,
            "nyud": 40,
            "pascal-context": 60,
            "pascal-context-59": 59,
            "siftflow": 33,
            "siftflow-geo": 3,
            "voc": 21,
        }


def test_content_in_memory_is_no_path(tmp_path):
    """What a file is called does not matter: its content tells."""
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(buffer, "PNG")
    (tmp_path / "labels.dat").write_bytes(buffer.getvalue())
    assert read_labels(tmp_path / "labels.dat", CAMVID).tolist() == [[0, 1]]
