"""Label files give the integers that they store, and class tables say what those mean."""

import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image, ImageOps

from fcnfast.data.classes import ClassTable, table_from_json, table_to_json, voc_palette
from fcnfast.data.images import picture_size
from fcnfast.data.labels import read_labels, stored_integers, write_labels
from fcnfast.data.tables import CAMVID, CITYSCAPES_IDS, TABLES, VOC, class_table
from fcnfast.errors import DatasetError, LabelError

# How PIL can write labels: name, mode, options of `save`; and the values of a mode.
COMPRESSIONS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")
WRITTEN = [
    *(("a.png", mode, {}) for mode in ("1", "L", "P", "I;16", "LA")),
    *(("a.png", "P", {"bits": bits}) for bits in (1, 2, 4)),
    ("a.dat", "L", {"format": "PNG"}),  # what a file is called does not matter
    *(("a.bmp", mode, {}) for mode in ("1", "L", "P")),
    *(("a.gif", mode, {"optimize": False}) for mode in ("L", "P")),
    *(("a.pbm", "1", {}), ("a.pgm", "L", {}), ("a.pgm", "I;16", {})),
    *(("a.tif", m, {"compression": c}) for c in COMPRESSIONS for m in ("1", "L", "P", "I;16")),
    *(("a.tif", "1", {"compression": kind}) for kind in ("group3", "group4")),
    *(("a.tif", "I;16B", {}), ("a.tif", "I", {})),
]
BELOW = {"1": 2, "L": 256, "P": 256, "LA": 256, "I;16": 65536, "I;16B": 65536, "I": 2**31}


def picture(values, mode):
    if mode == "1":
        return Image.fromarray(values.astype(bool))
    if mode.startswith("I;16"):
        stored = np.ascontiguousarray(values, ">u2" if mode.endswith("B") else "<u2")
        return Image.frombytes(mode, values.shape[::-1], stored.tobytes())
    if mode == "I":
        return Image.fromarray(values.astype(np.int32))
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "P":
        image.putpalette([channel for color in voc_palette(256) for channel in color])
    if mode == "LA":
        image.putalpha(255)
    return image


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("labels")


@pytest.mark.parametrize(("name", "mode", "options"), WRITTEN)
@settings(max_examples=20)
@given(data=st.data())
def test_what_pil_writes_is_read_as_stored(name, mode, options, data, scratch):
    below = 1 << options["bits"] if "bits" in options else BELOW[mode]
    shape = npst.array_shapes(min_dims=2, max_dims=2, max_side=12)
    values = data.draw(npst.arrays(np.int64, shape, elements=st.integers(0, below - 1)))
    path = scratch / name
    picture(values, mode).save(path, **options)
    # A PBM's 1 is black, which PIL calls False.
    expected = 1 - values if name.endswith(".pbm") else values
    np.testing.assert_array_equal(stored_integers(path), expected)


@given(
    values=npst.arrays(np.int64, (3, 5), elements=st.integers(0, 70_000)),
    maxval=st.integers(1, 65535),
    plain=st.booleans(),
)
def test_pgm_of_any_maxval(values, maxval, plain, scratch):
    values = values % (maxval + 1)
    path = scratch / "a.pgm"
    head = f"{'P2' if plain else 'P5'}\n# a comment\n5 3\n{maxval}\n".encode()
    text = " ".join(map(str, values.ravel().tolist())).encode()
    raw = values.astype(">u2" if maxval > 255 else "u1").tobytes()
    path.write_bytes(head + (text if plain else raw))
    np.testing.assert_array_equal(stored_integers(path), values)


def bmp(bits, colors, row):
    """A BMP of four pixels with a gray palette, byte by byte."""
    palette = b"".join(bytes((c, c, c, 0)) for c in colors)
    start = 14 + 40 + len(palette)
    head = struct.pack("<IHHI", start + 4, 0, 0, start)
    head += struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, bits, 0, 4, 0, 0, len(colors), 0)
    return b"BM" + head + palette + row


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width, height, depth, color, rows):
    """A PNG made by hand; `rows` is the raw data with a filter byte before each row."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_files_made_by_hand(tmp_path):
    for content, expected in (
        (b"P1\n3 2\n0 1 0\n1 1 0\n", [[0, 1, 0], [1, 1, 0]]),
        (bmp(1, (0, 255), b"\x50\0\0\0"), [[0, 1, 0, 1]]),
        (bmp(1, (255, 0), b"\x50\0\0\0"), [[0, 1, 0, 1]]),
        (bmp(4, range(16), b"\x01\x2f\0\0"), [[0, 1, 2, 15]]),
        (bmp(4, (0, 255), b"\x01\x10\0\0"), [[0, 1, 1, 0]]),
        (bmp(8, (0, 255), b"\x00\x01\x01\x00"), [[0, 1, 1, 0]]),
        (bmp(8, range(256), b"\x00\x01\x0a\xff"), [[0, 1, 10, 255]]),
        (bmp(8, range(7, 10), b"\x00\x01\x02\x00"), [[0, 1, 2, 0]]),
        # PIL stretches gray PNGs of 2 and 4 bits to 0..255.
        (png(8, 1, 1, 0, b"\0\x61"), [[0, 1, 1, 0, 0, 0, 0, 1]]),
        (png(4, 1, 2, 0, b"\0\x1b"), [[0, 1, 2, 3]]),
        (png(2, 1, 4, 0, b"\0\x0a"), [[0, 10]]),
    ):
        (tmp_path / "a").write_bytes(content)
        assert stored_integers(tmp_path / "a").tolist() == expected


def tiff(values, bits, photometric, order, fill=1):
    """A TIFF of one strip, byte by byte; gray, or of 16-bit colors."""
    height, width = values.shape[:2]
    if bits == 16:
        data = values.astype(f"{order}u2").tobytes()
    else:
        spread = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        packed = np.packbits(spread.reshape(height, -1), axis=1)
        if fill == 2:  # the lowest bit comes first
            packed = np.packbits(np.unpackbits(packed[..., None], axis=2)[..., ::-1], axis=2)
        data = packed.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (266, fill)]
    tags += [(273, 0), (277, values[0, 0].size), (278, height), (279, len(data))]
    start = 8 + 2 + 12 * len(tags) + 4
    body = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, value in tags:
        body += struct.pack(f"{order}HHII", tag, 4, 1, start if tag == 273 else value)
    return body + struct.pack(f"{order}I", 0) + data


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
def test_gray_tiffs(tmp_path, photometric, order):
    for bits, fill in itertools.product((1, 2, 4, 8, 16), (1, 2)):
        if bits == 16 and (fill == 2 or (photometric, order) == (0, ">")):
            continue  # PIL does not read these
        values = np.random.default_rng(bits).integers(0, 1 << bits, (5, 9))
        (tmp_path / "a.tif").write_bytes(tiff(values, bits, photometric, order, fill))
        np.testing.assert_array_equal(stored_integers(tmp_path / "a.tif"), values)


def test_lossy_files_say_that_they_are(tmp_path):
    kinds = {"jpg": "JPEG", "jp2": "JPEG 2000", "avif": "AVIF", "webp": "WebP", "tif": "TIFF"}
    for suffix, kind in kinds.items():
        if Image.registered_extensions().get(f".{suffix}") not in Image.SAVE:
            continue  # this PIL cannot write it
        path, options = tmp_path / f"a.{suffix}", {"compression": "jpeg"} if suffix == "tif" else {}
        Image.new("L", (16, 16), 1).save(path, **options)
        with pytest.raises(LabelError, match=rf"{path}: {kind}.* may be lossy.*save them as PNG"):
            read_labels(path, CAMVID)


MAPPED = ClassTable("t", ("a",), ((0, 0, 0),), label_map=((0, 0), (3, 255)))


def test_pictures_that_are_no_labels(tmp_path):
    for image, table, message in (
        (np.zeros((2, 2), np.float32), CAMVID, "mode F"),
        (Image.new("LA", (2, 2), (1, 9)), CAMVID, r"a\.tif: labels must not be transparent"),
        (Image.new("RGB", (3, 2), (1, 2, 3)), VOC, r"a\.tif: color #010203 \(pixels: 6\) is not"),
        (np.array([[0, 12, 12, 12], [200, 1, 2, 3]], np.uint8), CAMVID, r"12 \(pixels: 3\)"),
        (np.array([[1, 300, 300]], np.uint16), CAMVID, r"value 300 \(pixels: 2\)"),
        (np.array([[2]], np.uint8), MAPPED, r"value 2 .* of 't': .* 3 values, or 3, 255 for"),
        (np.zeros((3, 5), np.uint8), CAMVID, "labels are 5x3 pixels, their image is 4x3"),
    ):
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        image.save(tmp_path / "a.tif")
        with pytest.raises(LabelError, match=message):
            read_labels(tmp_path / "a.tif", table, size=(3, 4) if "5x3" in message else None)
        with pytest.raises(LabelError, match="no such file"):
            read_labels(tmp_path / "none.png", table)


@given(labels=npst.arrays(np.uint8, (3, 8), elements=st.sampled_from([*range(11), 255])))
def test_what_we_write_is_read_back_also_as_colors(labels, scratch):
    path = scratch / "a.png"
    write_labels(path, labels, CAMVID.palette)
    found = read_labels(path, CAMVID, size=labels.shape)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels)
    image = Image.open(path)
    assert image.mode == "P"
    table = np.array((*CAMVID.palette, (0, 0, 0)))
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), table[np.minimum(labels, 11)])
    for mode, options in (
        ("RGB", {"format": "PNG"}), ("RGBA", {"format": "PNG"}), ("RGB", {"format": "BMP"}),
        ("RGB", {"format": "WEBP", "lossless": True}),
    ):  # fmt: skip
        image.convert(mode).save(path, **options)
        np.testing.assert_array_equal(read_labels(path, CAMVID), labels)


def test_only_label_maps_are_written(tmp_path):
    for labels, colors, error, message in (
        (np.zeros((2, 2), np.int64), 11, TypeError, "int64"),
        (np.zeros((2, 2, 3), np.uint8), 11, ValueError, r"\(2, 2, 3\)"),
        (np.zeros((0, 4), np.uint8), 11, ValueError, r"\(0, 4\)"),
        (np.zeros((2, 2), np.uint8), 257, ValueError, "257"),
    ):
        with pytest.raises(error, match=message):
            write_labels(tmp_path / "a.png", labels, ((0, 0, 0),) * colors)
        assert not list(tmp_path.iterdir())


TWO = '{"names": ["background", "object"], '


def test_a_table_says_what_stored_values_mean(tmp_path):
    for table, stored, expected in (
        (CAMVID, [0, 10, 11, 255], [0, 10, 255, 255]),
        (CITYSCAPES_IDS, [0, 7, 8, 33, 9, 255], [255, 0, 1, 18, 255, 255]),
        (VOC, [(128, 0, 0), (0, 64, 128), (224, 224, 192)], [1, 20, 255]),
        (TWO + '"void_values": [255]}', [0, 255, 255], [0, 255, 255]),
        (TWO + '"label_map": {"0": "background", "255": "object"}}', [0, 255], [0, 1]),
        (
            TWO + '"label_map": {"7": "object", "300": "object", "1": "void", "0": "background"}}',
            [300, 7, 1, 0, 255],
            [1, 1, 255, 0, 255],
        ),
        (
            TWO + '"palette": [[9, 9, 9], [1, 1, 1]],'
            '"label_map": {"#ff0000": "background", "#00ff00": "void"}}',
            [(9, 9, 9), (255, 0, 0), (0, 255, 0), (1, 1, 1)],
            [0, 0, 255, 1],
        ),
        (TWO + '"label_map": {"#ff0000": "object"}}', [0, 1, 255], [0, 1, 255]),
    ):
        if isinstance(table, str):
            (tmp_path / "t.json").write_text(table)
            table = class_table(tmp_path / "t.json")
        values = np.array([stored])
        Image.fromarray(values.astype(np.uint16 if values.max() > 255 else np.uint8)).save(
            tmp_path / "a.png"
        )
        assert read_labels(tmp_path / "a.png", table).tolist() == [expected]


def test_known_tables():
    assert class_table("camvid") is class_table("CamVid") is CAMVID
    assert class_table(VOC) is VOC
    for table in TABLES.values():
        assert table_from_json(Path("x.json"), table_to_json(table)) == table
    told = {"cityscape": r"no class table of that name \(ade20k, camvid, ", "x.json": "cannot read"}
    for spec, message in told.items():
        with pytest.raises(DatasetError, match=message):
            class_table(spec)
    with pytest.raises(ValueError, match="has no class 3"):
        ClassTable("t", ("a",), ((0, 0, 0),), label_map=((1, 3),))
    assert voc_palette(256)[14] == (64, 128, 128) and voc_palette(256)[255] == (224, 224, 192)
    with pytest.raises(ValueError, match="257"):
        voc_palette(257)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_tables_in_files(tmp_path, encoding):
    path = tmp_path / "roads.json"
    entries = {"names": ["straße", "rest"], "palette": [[1, 2, 3], [4, 5, 6]]}
    path.write_text(json.dumps(entries, ensure_ascii=False) + "\r\n", encoding=encoding)
    assert class_table(path) == ClassTable("roads", ("straße", "rest"), ((1, 2, 3), (4, 5, 6)))
    path.write_text('{"names": ["road", "rest"], "void_values": [2, 7]}')
    assert class_table(str(path)) == ClassTable("roads", ("road", "rest"), voc_palette(2), (2, 7))


def test_bad_tables(tmp_path):
    path = tmp_path / "table.json"
    for text, reason in (
        ("names: road", "not a JSON file"),
        ("[]", "expected an object"),
        ("{}", "'names' is missing"),
        ('{"names": "road"}', "not a list of strings"),
        ('{"names": []}', "0 classes"),
        ('{"names": ["a", "a"]}', "repeats the name 'a'"),
        ('{"names": ["a"], "palette": [[1, 2]]}', "not three integers"),
        ('{"names": ["a"], "palette": [[1, 2, 999]]}', "999"),
        ('{"names": ["a"], "palette": [[1, 2, 3], [4, 5, 6]]}', "1 names but 2 colors"),
        ('{"names": ["a"], "palette": 3}', '"palette" is not a list'),
        ('{"names": ["a"], "void_values": "7"}', "not a list of integers"),
        ('{"names": ["a"], "void_values": [0]}', "also the class 'a'"),
        ('{"names": ["a"], "void_values": [70000]}', "70000"),
        ('{"names": ["a"], "colors": []}', "unknown entry 'colors'"),
        ('{"names": ["a"], "label_map": []}', '"label_map" is not an object'),
        ('{"names": ["a"], "label_map": {"0": "sky"}}', "'sky' is neither a class nor"),
        ('{"names": ["a"], "label_map": {"zero": "void"}}', "'zero' is neither an integer nor #"),
        ('{"names": ["a"], "label_map": {"#12345g": "void"}}', "neither an integer nor #rrggbb"),
        ('{"names": ["a"], "label_map": {"1": "a", "01": "void"}}', "repeats 1"),
        ('{"names": ["a"], "label_map": {"3": "a"}, "void_values": [3]}', "is also the class 'a'"),
    ):
        path.write_text(text)
        with pytest.raises(DatasetError) as caught:
            class_table(path)
        assert str(caught.value).startswith(f"{path}: ") and reason in str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_as_photos_are(tmp_path, orientation):
    values, exif = np.arange(6, dtype=np.uint8).reshape(2, 3), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert (stored_integers(tmp_path / "a.png") == turned).all()


def test_pixels_that_do_not_match_their_checksum(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (64, 64), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(LabelError, match=r"a\.png: the picture is damaged: its checksum is wrong"):
        stored_integers(path)
    assert picture_size(path) == (64, 64)  # which reads no pixels


def test_a_table_of_numpy_numbers_is_plain(tmp_path):
    colors = np.array([[0, 0, 0], [9, 9, 9]])
    pairs = [(np.int64(3), np.int64(255)), (np.array([1, 2, 3]), 1)]
    table = ClassTable("t", ["void", "b"], colors, np.array([7]), pairs)
    assert table == ClassTable(
        "t", ("void", "b"), ((0,) * 3, (9,) * 3), (7,), ((3, 255), ((1, 2, 3), 1))
    )
    stored = json.loads(json.dumps(table_to_json(table)))  # a class may be called void
    assert table_from_json(tmp_path / "t.json", stored) == table
    with pytest.raises(ValueError, match=r"'t': palette cannot be .*0.5"):
        ClassTable("t", ("a",), ((0.5, 0, 0),))
