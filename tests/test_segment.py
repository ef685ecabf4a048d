"""Photo in, labels out: kinds of pictures, sizes, shares, drawings, files, devices."""

import io
import itertools
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fcnfast.segment
from fcnfast import CAMVID, create_model
from fcnfast.data import ClassTable, read_labels, voc_palette
from fcnfast.data.images import as_photo, shrink
from fcnfast.data.render import add_legend, blend, percent
from fcnfast.device import choose_device
from fcnfast.errors import ImageError, InputError, WeightsError
from fcnfast.files import output_folders, output_names
from fcnfast.segment import Segmentation, Segmenter, segment_files
from tests.model_tools import contents, make_photo, write_small_weights
from tests.test_images import fail, turned_by


def save(image, path, **options):
    image.save(path, **options)
    return path


def uint8(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def test_whatever_holds_the_picture_it_is_one_picture(segmenter, tmp_path):
    photo = make_photo()
    path = save(photo, tmp_path / "street.png")
    content, pixels = path.read_bytes(), np.array(photo)
    network = segmenter.model
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    with torch.no_grad():
        expected = network.predict(network.preprocess(tensor))[0].numpy()
    assert len(np.unique(expected)) > 2
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    given = [photo, path, str(path), content, bytearray(content), io.BytesIO(content)]
    given += [Image.open(path), pixels, opaque, pixels[::-1].copy()[::-1]]
    given += [torch.from_numpy(array).permute(2, 0, 1) for array in (pixels, opaque)]
    for one in given:
        result = segmenter(one)
        assert result.labels.dtype == np.uint8 and np.array_equal(result.labels, expected)
        assert np.array_equal(np.asarray(result.image), pixels)
    assert (segmenter(path).name, segmenter(photo).name) == ("street", "image")
    for size in ((1, 1), (1, 70), (53, 1)):
        assert segmenter(make_photo(*size)).labels.shape == size


def test_pictures_in_memory():
    """Gray is equal channels, transparency lies over white, EXIF turns an opened picture."""
    gray = np.array(make_photo().convert("L"))
    expected = np.repeat(gray[..., None], 3, axis=2)
    for one in (gray, gray[..., None], Image.fromarray(gray), torch.from_numpy(gray)[None]):
        assert np.array_equal(np.asarray(as_photo(one)), expected)
    clear = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    tensor = torch.from_numpy(np.array(clear)).permute(2, 0, 1)
    for one in (clear, clear.convert("RGBa"), np.asarray(clear), tensor):
        assert as_photo(one).getpixel((0, 0)) == (255, 255, 255)
    turned = io.BytesIO()
    make_photo(20, 30).save(turned, "PNG", exif=turned_by(6))
    assert as_photo(Image.open(turned)) == make_photo(20, 30).rotate(-90, expand=True)
    photo = make_photo()
    as_photo(photo).paste((1, 2, 3), (0, 0, 9, 9))
    assert photo == make_photo()  # the result is not the caller's


def test_what_is_no_picture_is_refused(segmenter):
    cut = io.BytesIO()
    make_photo(200, 200).save(cut, "JPEG")
    for given, error, message in (
        (np.zeros((4, 4, 3), np.float32), TypeError, "uint8.*float32"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"\(4, 4, 2\)"),
        (np.zeros((1, 3, 4, 4), np.uint8), ValueError, r"\(1, 3, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), ImageError, "no pixels"),
        (Image.new("RGB", (0, 4)), ImageError, "no pixels: 0x4"),
        (torch.zeros(3, 4, 4), TypeError, "uint8.*float32"),
        (uint8(4, 4), ValueError, r"\(4, 4\)"),
        (None, TypeError, "NoneType"),
        (3, TypeError, "must be a path.*not int"),
        (io.StringIO("text"), TypeError, "binary mode"),
        (b"", ImageError, "the picture: the file is empty"),
        (b"text", ImageError, "the picture: not a picture"),
        ("no-such-file.jpg", ImageError, "no-such-file.jpg: no such file"),
        (Image.open(io.BytesIO(cut.getvalue()[:2000])), ImageError, "cannot be decoded"),
        ([1, 2, 3], TypeError, "not int"),
        ([uint8(1, 3, 4, 4)], ValueError, r"C×H×W, not \(1, 3, 4, 4\)"),
    ):
        with pytest.raises(error, match=message):
            list(segmenter(given))


def test_many_results_are_those_of_one_by_one_in_order(segmenter, tmp_path):
    sizes = ((36, 48), (36, 48), (20, 31), (36, 48), (36, 48), (36, 48))
    photos = [make_photo(*size, seed) for seed, size in enumerate(sizes)]
    results = segmenter([*photos[:5], save(photos[5], tmp_path / "last.png")], batch_size=2)
    assert iter(results) is results
    results = list(results)
    names = [f"image-{number}" for number in range(1, 6)]
    assert [result.name for result in results] == [*names, "last"]
    for photo, result in zip(photos, results, strict=True):
        alone = segmenter(photo)
        assert np.array_equal(np.asarray(result.image), np.asarray(photo))
        assert (result.labels == alone.labels).mean() > 0.99
        np.testing.assert_allclose(result.confidence, alone.confidence, atol=1e-4)
        assert result.scores.shape[0] == 1 and result.scores._base is None
    images = torch.randint(0, 256, (3, 4, 20, 30), dtype=torch.uint8)
    for image, result in zip(images, segmenter(images), strict=True):
        assert (result.labels == segmenter(image).labels).mean() > 0.99
    assert list(segmenter([])) == list(segmenter(images[:0])) == []


def test_an_iterator_is_read_as_it_is_needed(segmenter):
    read = []
    endless = (read.append(number) or make_photo(seed=number) for number in itertools.count())
    results = segmenter(endless, batch_size=3)
    assert read == []
    for _ in range(7):
        next(results)
    assert len(read) == 9
    results = segmenter([make_photo(), make_photo(), "gone.jpg", make_photo()])
    assert [next(results).name, next(results).name] == ["image-1", "image-2"]
    with pytest.raises(ImageError, match="gone.jpg: no such file"):
        next(results)


def test_labels_of_a_shrunk_picture_come_at_its_own_size(segmenter):
    photo = make_photo(60, 90)
    result = segmenter(photo, max_size=45)
    assert result.labels.shape == result.confidence.shape == (60, 90)
    assert result.image.size == (90, 60)
    seen = photo.resize((45, 30), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None]
    expected = segmenter.model.predict(segmenter.model.preprocess(pixels), size=(60, 90))
    assert np.array_equal(result.labels, expected[0].numpy())
    sizes = [shrink(make_photo(*size), 48).size for size in ((2, 900), (900, 2), (36, 48), (9, 9))]
    assert sizes == [(48, 1), (1, 48), (48, 36), (9, 9)]  # never enlarged


def test_photos_are_shrunk_to_the_size_that_the_weights_recommend(segmenter, tmp_path):
    bounded = Segmenter(write_small_weights(tmp_path / "net.safetensors"), "cpu")
    bounded.model.set_preprocessing(replace(bounded.model.preprocessing, max_size=24))
    photo = make_photo()
    whole, small = segmenter(photo).labels, segmenter(photo, max_size=24).labels
    assert not np.array_equal(whole, small)
    assert np.array_equal(bounded(photo).labels, small)
    assert np.array_equal(bounded(photo, max_size=999).labels, whole)
    assert np.array_equal(bounded(photo, tile=99).labels, whole)


def result_of(labels):
    array = np.array(labels, np.uint8)
    return Segmentation(Image.new("RGB", array.shape[::-1], (200, 100, 0)), array, CAMVID, "street")


def test_shares_are_of_the_picture_largest_first():
    shares = result_of([[3, 3, 3, 0], [3, 8, 8, 255]]).shares
    expected = {CAMVID.names[3]: 0.5, CAMVID.names[8]: 0.25, CAMVID.names[0]: 0.125}
    assert list(shares.items())[:4] == [*expected.items(), (CAMVID.names[1], 0.0)]
    assert set(shares) == set(CAMVID.names)
    shown = [percent(x) for x in (0, 0.0004, 0.0005, 0.25, 1)]
    assert shown == ["0.0 %", "<0.1 %", "0.1 %", "25.0 %", "100.0 %"]


def test_overlay():
    result = result_of([[3] * 400] * 300)
    plain, overlay = result.overlay(opacity=0.25), result.overlay(0.25, legend=True)
    assert overlay.mode == plain.mode == "RGB" and plain.size == (400, 300)
    assert np.array_equal(np.asarray(plain), np.asarray(overlay)[:300, :400])
    expected = 0.75 * np.array((200, 100, 0)) + 0.25 * np.array(CAMVID.palette[3])
    assert np.abs(np.asarray(plain) - expected).max() <= 1
    assert overlay.width == 400 and overlay.height > 300
    result = result_of([[0, 1], [2, 255]])
    assert result.overlay(0) == result.image
    drawn = [result.overlay(1.0).getpixel(at) for at in ((0, 0), (1, 0), (1, 1))]
    assert drawn == [*CAMVID.palette[:2], (200, 100, 0)]  # no class: the photo


def test_results_refuse():
    for call, message in (
        (lambda: result_of([[0]]).overlay(float("nan")), "opacity"),
        (lambda: result_of([[0]]).overlay("0.5"), "opacity"),
        (lambda: result_of([[0]]).overlay(True), "opacity"),
        (lambda: blend(make_photo(4, 5), np.zeros((5, 4), np.uint8), CAMVID, 0.5), "picture"),
        (lambda: result_of([[0]]).confidence, "no scores"),
        (lambda: result_of([[0]]).save("out.png"), r"out\.png: save\(\) takes a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_confidence_and_probabilities_need_no_second_pass(segmenter, monkeypatch):
    result = segmenter(make_photo(37, 51), max_size=40)
    monkeypatch.setattr(segmenter.model, "score_maps", None)
    confidence, probabilities = result.confidence, result.probabilities()
    assert confidence.dtype == probabilities.dtype == np.float32
    assert confidence.shape == (37, 51) and probabilities.shape == (11, 37, 51)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(probabilities.max(0), confidence, atol=1e-5)
    assert (probabilities.argmax(0) == result.labels).mean() > 0.99
    assert result.confidence is confidence


def legend_pixels(size, classes):
    """A black picture with a legend, and the number of its pixels in the classes' red."""
    names = tuple(f"class {k}" for k in range(classes))
    table = ClassTable("many", names, ((255, 0, 0),) * classes)
    sheet = add_legend(Image.new("RGB", size), table, dict.fromkeys(names, 1 / classes))
    assert np.asarray(sheet.crop((0, 0, *size))).max() == 0  # nothing lies over the picture
    return sheet, int((np.asarray(sheet) == (255, 0, 0)).all(axis=2).sum())


@pytest.mark.parametrize("classes", [1, 11, 200])
@pytest.mark.parametrize(
    "size", [(1, 1), (30, 20), (20, 30), (480, 360), (360, 480), (3000, 200), (200, 3000)]
)
def test_every_class_has_its_color_at_any_size(size, classes):
    sheet, red = legend_pixels(size, classes)
    assert red >= classes * 9 * 9
    assert sheet.height > size[1] if size[0] >= size[1] else sheet.width > size[0]


def test_legends():
    small, large = (legend_pixels((4 * k, 3 * k), 1)[1] for k in (120, 600))
    assert large > 8 * small  # letters grow with the picture
    shares = {"Sky": 0.6, "Road": 0.4, "Car": 0.0}
    sheet = np.asarray(add_legend(Image.new("RGB", (200, 100)), CAMVID, shares))
    for name, share in shares.items():
        color = CAMVID.palette[CAMVID.names.index(name)]
        assert (sheet == color).all(axis=2).any() == bool(share)
    plain = Image.new("RGB", (8, 6))
    assert add_legend(plain, CAMVID, {"Sky": 0.0}).size == (8, 6)
    table = ClassTable("long", ("word " * 500,), ((9, 9, 9),))
    assert add_legend(plain, table, {"word " * 500: 1.0}).width < 600


def test_devices(segmenter):
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == segmenter.device == torch.device("cpu")
    for device in ("gpu", "meta", "cuda:99", "cpu:x"):
        with pytest.raises(InputError, match=f"'{device}'"):
            choose_device(device)


@pytest.mark.usefixtures("narrow")
def test_weights_and_their_classes(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match="no such"):
        Segmenter(path)
    write_small_weights(path, table=None, num_classes=3)
    table = Segmenter(path, "cpu").table
    assert table.names == ("class 0", "class 1", "class 2") and table.palette == voc_palette(3)
    write_small_weights(path, table=None, num_classes=300)
    with pytest.raises(WeightsError, match="300"):
        Segmenter(path, "cpu")


def test_names_of_many_are_different(segmenter, tmp_path):
    photo, paths = make_photo(), [tmp_path / k / "image-2.png" for k in "ab"]
    for path in paths:
        path.parent.mkdir()
        photo.save(path)
    names = [result.name for result in segmenter([*paths, photo, paths[0]])]
    assert names == ["image-2", "image-2-2", "image-3", "image-2-3"]


@pytest.mark.usefixtures("narrow")
def test_a_network_in_memory(segmenter):
    photo, model = make_photo(), segmenter.model
    other = Segmenter(model.train(), "cpu")
    assert other.model is model and not model.training
    assert (other(photo).labels == segmenter(photo).labels).all()
    with pytest.raises(TypeError, match="network of fcnfast, not Conv2d"):
        Segmenter(torch.nn.Conv2d(3, 1, 1), "cpu")
    depth = create_model("nyud_fcn32s_vgg16_color_d")
    with pytest.raises(
        WeightsError, match="nyud_fcn32s_vgg16_color_d: the network takes 4 channel"
    ):
        Segmenter(depth, "cpu")


def test_training_goes_on_after_a_prediction(segmenter):
    segmenter(make_photo())
    model = segmenter.model
    model(model.preprocess(uint8(1, 3, 36, 48)), uint8(1, 36, 48))["loss"].backward()
    assert model.score.weight.grad.abs().sum() > 0
    model.zero_grad(set_to_none=True)


def test_no_memory_is_told_with_the_way_out(segmenter, monkeypatch, tmp_path):
    path = save(make_photo(), tmp_path / "large.png")
    for error, count, raised, message in (
        (MemoryError(), 1, ImageError, r"large\.png: 48x36 pixels.*max_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, ImageError, "48x36 pix"),
        (MemoryError(), 2, ImageError, "2 times 48x36 pixels.*max_size or batch_size"),
        (RuntimeError("a bug"), 1, RuntimeError, "a bug"),
    ):
        monkeypatch.setattr(segmenter.model, "score_maps", fail(error))
        with pytest.raises(raised, match=message):
            list(segmenter([path] * count)) if count > 1 else segmenter(path)


def test_of_two_files_of_one_stem_none_replaces_the_other(segmenter, tmp_path):
    (tmp_path / "a").mkdir()
    paths = [tmp_path / "p.png", tmp_path / "a" / "p.png"]
    for seed, path in enumerate(paths):
        make_photo(20, 31, seed).save(path)
    report = segment_files(segmenter, paths, tmp_path / "out")
    for path, entry in zip(paths, report.done, strict=True):
        assert entry["input"] == str(path)
        labels = read_labels(tmp_path / "out" / entry["labels"], CAMVID)
        assert np.array_equal(labels, segmenter(path).labels)
    names = ["a/x.jpg", "b/x.jpg", "c/X.png", "d/x-2.jpg", "e/x.tif"]
    assert output_names(names) == ["x", "x-3", "X-4", "x-2", "x-5"]


def test_the_report(segmenter, tmp_path, monkeypatch):
    """Of a good picture, an empty file and a picture too large to be drawn."""

    def draw(image, *others):
        if image.width > 40:
            raise MemoryError
        return blend(image, *others)

    monkeypatch.setattr(fcnfast.segment, "blend", draw)
    good = save(make_photo(20, 30), tmp_path / "good.png")
    large = save(make_photo(20, 60), tmp_path / "large.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    report = segment_files(segmenter, [bad, large, good], tmp_path / "out")
    told = {bad: "the file is empty (0 bytes)", large: "too large for the memory"}
    assert report.failed == [{"input": str(p), "error": f"{p}: {t}"} for p, t in told.items()]
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written["failed"] == report.failed
    (entry,) = written["pictures"]
    assert (entry["width"], entry["height"]) == (30, 20)
    assert sum(entry["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert list(entry["shares"].values()) == sorted(entry["shares"].values(), reverse=True)
    found = {"predictions.json", *(entry[kind] for kind in ("labels", "overlay"))}
    assert contents(tmp_path / "out").keys() == found
    assert written["classes"][0] == {"name": CAMVID.names[0], "color": "#808080"}


def test_when_interrupted_the_report_is_of_what_was_done(segmenter, tmp_path, monkeypatch):
    path = save(make_photo(), tmp_path / "x.png")
    before, whole = contents(tmp_path).keys(), Segmenter.__call__

    def once(self, image, **options):
        monkeypatch.setattr(Segmenter, "__call__", fail(KeyboardInterrupt))
        return whole(self, image, **options)

    monkeypatch.setattr(Segmenter, "__call__", once)
    with pytest.raises(KeyboardInterrupt):
        segment_files(segmenter, [path, tmp_path / "y.png"], tmp_path)
    written = {"labels/x.png", "overlays/x.png", "predictions.json"}
    assert contents(tmp_path).keys() - before == written
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert [entry["input"] for entry in written["pictures"]] == [str(path)]


def test_a_folder_that_cannot_be_written_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="labels"), output_folders(tmp_path / "labels"):
        pytest.fail("the work began")
    assert list(tmp_path.iterdir()) == []
