"""Photo in, labels out: kinds of pictures, sizes, shares, drawings, files, devices."""

import errno
import io
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import fcnfast.segment
from fcnfast.data.classes import ClassTable, voc_palette
from fcnfast.data.images import as_photo, shrink
from fcnfast.data.render import add_legend, blend, percent
from fcnfast.data.tables import CAMVID
from fcnfast.device import choose_device
from fcnfast.errors import ImageError, InputError, WeightsError
from fcnfast.files import output_folders, output_names
from fcnfast.models import create_model, save_model
from fcnfast.segment import Segmentation, Segmenter, segment_files
from tests.model_tools import make_photo, narrow_trunks, write_small_weights


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    folder = tmp_path_factory.mktemp("weights")
    return Segmenter(write_small_weights(folder / "small.safetensors"), "cpu")


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


class TestInputs:
    def test_whatever_holds_the_picture_it_is_one_picture(self, segmenter, tmp_path):
        photo = make_photo()
        path = save(photo, tmp_path / "street.png")
        expected = segmenter(photo).labels
        assert len(np.unique(expected)) > 2
        content, pixels = path.read_bytes(), np.array(photo)
        opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
        given = [path, str(path), content, bytearray(content), io.BytesIO(content)]
        given += [Image.open(path), pixels, opaque]
        given += [torch.from_numpy(array).permute(2, 0, 1) for array in (pixels, opaque)]
        for one in given:
            result = segmenter(one)
            assert np.array_equal(result.labels, expected)
            assert np.array_equal(np.asarray(result.image), pixels)
        assert segmenter(path).name == "street"
        assert segmenter(photo).name == "image"

    def test_labels_are_those_of_the_network(self, segmenter):
        photo = make_photo(37, 51)
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].contiguous()
        with torch.no_grad():
            labels = segmenter.model.predict(segmenter.model.preprocess(pixels))
        result = segmenter(photo)
        assert result.labels.dtype == np.uint8
        assert result.labels.shape == (37, 51)
        assert np.array_equal(result.labels, labels[0].numpy())

    def test_gray_is_equal_channels(self, segmenter):
        gray = np.array(make_photo().convert("L"))
        expected = segmenter(np.repeat(gray[..., None], 3, axis=2)).labels
        for one in (gray, gray[..., None], Image.fromarray(gray), torch.from_numpy(gray)[None]):
            assert np.array_equal(segmenter(one).labels, expected)

    def test_strided_arrays(self, segmenter):
        pixels = np.asarray(make_photo())
        expected = segmenter(np.ascontiguousarray(pixels[::-1, ::2])).labels
        assert np.array_equal(segmenter(pixels[::-1, ::2]).labels, expected)

    def test_an_opened_image_is_turned_as_its_file_is(self, segmenter, tmp_path):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        path = save(make_photo(20, 30), tmp_path / "turned.jpg", exif=exif)
        with Image.open(path) as image:
            result = segmenter(image)
        assert result.labels.shape == (30, 20)
        assert np.array_equal(result.labels, segmenter(path).labels)

    def test_transparency_lies_over_white(self):
        clear = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
        pixels = np.asarray(clear)
        for given in (
            clear,
            clear.convert("RGBa"),
            pixels,
            torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        ):
            assert as_photo(given).getpixel((0, 0)) == (255, 255, 255)

    def test_the_result_is_not_the_caller_s_picture(self):
        photo = make_photo()
        as_photo(photo).paste((1, 2, 3), (0, 0, 9, 9))
        assert photo == make_photo()

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 70), (53, 1), (33, 2)])
    def test_any_size(self, segmenter, height, width):
        assert segmenter(make_photo(height, width)).labels.shape == (height, width)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            (np.zeros((4, 4, 3), np.float32), TypeError, "uint8.*float32"),
            (np.zeros((4, 4), np.uint16), TypeError, "uint16"),
            (np.zeros((4, 4, 2), np.uint8), ValueError, r"\(4, 4, 2\)"),
            (np.zeros((1, 3, 4, 4), np.uint8), ValueError, r"\(1, 3, 4, 4\)"),
            (np.zeros((0, 4, 3), np.uint8), ImageError, "no pixels"),
            (Image.new("RGB", (0, 4)), ImageError, "no pixels: 0x4"),
            (torch.zeros(3, 4, 4), TypeError, "uint8.*float32"),
            (torch.zeros(2, 4, 4, dtype=torch.uint8), ValueError, r"\(2, 4, 4\)"),
            (torch.zeros(4, 4, dtype=torch.uint8), ValueError, r"\(4, 4\)"),
            (torch.zeros(1, 2, 4, 4, dtype=torch.uint8), ValueError, r"\(1, 2, 4, 4\)"),
            (torch.zeros(3, 0, 4, dtype=torch.uint8), ImageError, "no pixels"),
            (None, TypeError, "NoneType"),
            (3, TypeError, "must be a path.*not int"),
            ({"image": 1}, TypeError, "not dict"),
            (io.StringIO("text"), TypeError, "binary mode"),
            (b"", ImageError, "the picture: the file is empty"),
            (b"text", ImageError, "the picture: not a picture"),
            ("no-such-file.jpg", ImageError, "no-such-file.jpg: no such file"),
        ],
    )
    def test_what_is_no_picture_is_refused(self, segmenter, given, error, message):
        with pytest.raises(error, match=message):
            segmenter(given)

    def test_a_cut_image_that_was_opened_is_refused(self, segmenter):
        encoded = io.BytesIO()
        make_photo(200, 200).save(encoded, "JPEG")
        image = Image.open(io.BytesIO(encoded.getvalue()[:2000]))
        with pytest.raises(ImageError, match="cannot be decoded"):
            segmenter(image)


class TestMany:
    def test_results_are_those_of_one_by_one_in_order(self, segmenter, tmp_path):
        sizes = ((36, 48), (36, 48), (20, 31), (36, 48), (36, 48), (36, 48))
        photos = [make_photo(*size, seed) for seed, size in enumerate(sizes)]
        given = [*photos[:5], save(photos[5], tmp_path / "last.png")]
        results = segmenter(given, batch_size=2)
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

    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    def test_neighbors_of_equal_size_share_a_batch(self, segmenter, monkeypatch, batch_size):
        seen = []
        whole = segmenter.model.score_maps
        monkeypatch.setattr(
            segmenter.model, "score_maps", lambda x, heads: seen.append(len(x)) or whole(x, heads)
        )
        photos = [make_photo(36, 48), make_photo(36, 48), make_photo(48, 36), make_photo(36, 48)]
        assert len(list(segmenter((photo for photo in photos), batch_size=batch_size))) == 4
        assert seen == {1: [1, 1, 1, 1], 2: [2, 1, 1], 64: [2, 1, 1]}[batch_size]

    def test_pictures_shrunk_to_one_size_keep_their_own(self, segmenter):
        photos = [make_photo(72, 96), make_photo(72, 97), make_photo(36, 48)]
        results = list(segmenter(photos, max_size=48))
        assert [result.labels.shape for result in results] == [(72, 96), (72, 97), (36, 48)]

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_a_batch_of_tensors(self, segmenter, channels):
        torch.manual_seed(0)
        images = torch.randint(0, 256, (3, channels, 20, 30), dtype=torch.uint8)
        results = list(segmenter(images))
        assert len(results) == 3
        for image, result in zip(images, results, strict=True):
            assert (result.labels == segmenter(image).labels).mean() > 0.99
        assert list(segmenter(images[:0])) == []

    def test_an_endless_iterator_is_read_as_it_is_needed(self, segmenter):
        read = []
        endless = (read.append(number) or make_photo(seed=number) for number in itertools.count())
        results = segmenter(endless, batch_size=3)
        assert read == []
        for _ in range(7):
            next(results)
        assert len(read) == 9

    def test_a_bad_picture_raises_after_those_before_it(self, segmenter):
        results = segmenter([make_photo(), make_photo(), "gone.jpg", make_photo()])
        assert next(results).name == "image-1"
        assert next(results).name == "image-2"
        with pytest.raises(ImageError, match="gone.jpg: no such file"):
            next(results)
        with pytest.raises(TypeError, match="not int"):
            list(segmenter([1, 2, 3]))
        with pytest.raises(ValueError, match=r"C×H×W, not \(1, 3, 4, 4\)"):
            list(segmenter([torch.zeros(1, 3, 4, 4, dtype=torch.uint8)]))

    def test_nothing_gives_nothing(self, segmenter):
        assert list(segmenter([])) == []

    @pytest.mark.parametrize(("value", "error"), [(0, ValueError), ("8", TypeError)])
    def test_other_batch_sizes_are_refused_at_once(self, segmenter, value, error):
        with pytest.raises(error, match="batch_size"):
            segmenter([make_photo()], batch_size=value)


class TestMaxSize:
    def test_labels_come_at_the_pictures_own_size(self, segmenter):
        photo = make_photo(60, 90)
        result = segmenter(photo, max_size=45)
        assert result.labels.shape == (60, 90)
        assert result.image.size == (90, 60)
        seen = photo.resize((45, 30), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None]
        expected = segmenter.model.predict(segmenter.model.preprocess(pixels), size=(60, 90))
        assert result.confidence.shape == (60, 90)
        assert np.array_equal(result.labels, expected[0].numpy())

    def test_pictures_are_never_enlarged(self, segmenter):
        photo = make_photo()
        expected = segmenter(photo).labels
        for max_size in (48, 49, 5000):
            assert np.array_equal(segmenter(photo, max_size=max_size).labels, expected)

    def test_no_side_vanishes(self):
        assert shrink(make_photo(2, 900), 10).size == (10, 1)
        assert shrink(make_photo(900, 2), 10).size == (1, 10)

    @pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-3, ValueError)])
    def test_small_limits_are_refused(self, segmenter, value, error):
        with pytest.raises(error, match=str(value)):
            segmenter(make_photo(), max_size=value)

    @pytest.mark.parametrize("value", [True, 2.5, "100"])
    def test_other_types_are_refused(self, segmenter, value):
        with pytest.raises(TypeError, match="max_size"):
            segmenter(make_photo(), max_size=value)


class TestSegmentation:
    def result(self, labels: list[list[int]]) -> Segmentation:
        array = np.array(labels, np.uint8)
        image = Image.new("RGB", array.shape[::-1], (200, 100, 0))
        return Segmentation(image, array, CAMVID, "street")

    def test_shares_are_of_the_picture_largest_first(self):
        shares = self.result([[3, 3, 3, 0], [3, 8, 8, 255]]).shares
        assert list(shares.items())[:4] == [
            (CAMVID.names[3], 0.5),
            (CAMVID.names[8], 0.25),
            (CAMVID.names[0], 0.125),
            (CAMVID.names[1], 0.0),
        ]
        assert set(shares) == set(CAMVID.names)

    def test_overlay_has_the_picture_s_size_and_a_legend_when_asked_for(self):
        result = self.result([[3] * 400] * 300)
        plain, overlay = result.overlay(opacity=0.25), result.overlay(0.25, legend=True)
        assert overlay.mode == plain.mode == "RGB"
        assert plain.size == (400, 300)
        assert np.array_equal(np.asarray(plain), np.asarray(overlay)[:300, :400])
        expected = [
            round(0.75 * a + 0.25 * b)
            for a, b in zip((200, 100, 0), CAMVID.palette[3], strict=True)
        ]
        assert np.abs(np.asarray(overlay)[:300, :400].astype(int) - expected).max() <= 1
        assert overlay.width == 400
        assert overlay.height > 300

    def test_opacity_0_and_1(self):
        result = self.result([[0, 1], [2, 255]])
        photo = np.asarray(result.image)
        assert np.array_equal(np.asarray(result.overlay(0))[:2, :2], photo)
        drawn = np.asarray(result.overlay(1.0))[:2, :2]
        assert [tuple(drawn[0, 0]), tuple(drawn[0, 1])] == [CAMVID.palette[0], CAMVID.palette[1]]
        assert tuple(drawn[1, 1]) == (200, 100, 0)  # no class: the photo

    @pytest.mark.parametrize("opacity", [-0.1, 1.5, float("nan"), "0.5", True])
    def test_other_opacities_are_refused(self, opacity):
        with pytest.raises(ValueError, match="opacity"):
            self.result([[0]]).overlay(opacity)

    def test_labels_of_another_size_are_refused(self):
        with pytest.raises(ValueError, match="picture"):
            blend(make_photo(4, 5), np.zeros((5, 4), np.uint8), CAMVID, 0.5)

    def test_confidence_and_probabilities_need_no_second_pass(self, segmenter, monkeypatch):
        result = segmenter(make_photo(37, 51), max_size=40)
        monkeypatch.setattr(segmenter.model, "score_maps", None)
        confidence, probabilities = result.confidence, result.probabilities()
        assert confidence.dtype == probabilities.dtype == np.float32
        assert confidence.shape == (37, 51) and probabilities.shape == (11, 37, 51)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
        np.testing.assert_allclose(probabilities.max(0), confidence, atol=1e-5)
        assert (probabilities.argmax(0) == result.labels).mean() > 0.99
        assert result.confidence is confidence
        with pytest.raises(ValueError, match="no scores"):
            self.result([[0]]).confidence  # noqa: B018

    def test_saved_labels_are_read_back(self, tmp_path):
        result = self.result([[3, 0, 10], [1, 1, 255]])
        labels, overlay = result.save(tmp_path / "new" / "folder")
        assert labels == tmp_path / "new" / "folder" / "labels" / "street.png"
        with Image.open(labels) as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), result.labels)
            assert tuple(image.getpalette()[9:12]) == CAMVID.palette[3]
        with Image.open(overlay) as image:
            assert np.array_equal(np.asarray(image), np.asarray(result.overlay(legend=True)))
        assert result.save(tmp_path, "other")[1] == tmp_path / "overlays" / "other.png"

    def test_save_takes_a_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"out\.png: save\(\) takes a folder"):
            self.result([[0]]).save(tmp_path / "out.png")
        assert list(tmp_path.iterdir()) == []

    def test_of_a_picture_both_files_are_written_or_none(self, tmp_path, monkeypatch):
        def full(path: Path, image: Image.Image, **options: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(fcnfast.segment, "write_image", full)
        with pytest.raises(OSError, match="No space left"):
            self.result([[0]]).save(tmp_path)
        assert contents(tmp_path) == {}


class TestLegend:
    def legend_pixels(self, size: tuple[int, int], classes: int) -> tuple[Image.Image, int]:
        """A black picture with a legend, and the number of its pixels that are not black."""
        table = ClassTable(
            "many", tuple(f"class {k}" for k in range(classes)), ((255, 0, 0),) * classes
        )
        sheet = add_legend(Image.new("RGB", size), table, dict.fromkeys(table.names, 1 / classes))
        assert np.asarray(sheet.crop((0, 0, *size))).max() == 0  # nothing lies over the picture
        return sheet, int((np.asarray(sheet) == (255, 0, 0)).all(axis=2).sum())

    @pytest.mark.parametrize(
        "size", [(1, 1), (30, 20), (20, 30), (480, 360), (360, 480), (3000, 200), (200, 3000)]
    )
    @pytest.mark.parametrize("classes", [1, 11, 200])
    def test_every_class_has_its_color_at_any_size(self, size, classes):
        sheet, red = self.legend_pixels(size, classes)
        assert red >= classes * 9 * 9
        if size[0] >= size[1]:
            assert sheet.height > size[1]
        else:
            assert sheet.width > size[0]

    def test_letters_grow_with_the_picture(self):
        small, large = self.legend_pixels((480, 360), 1)[1], self.legend_pixels((4800, 3600), 1)[1]
        assert large > 30 * small

    def test_only_present_classes_are_listed(self):
        shares = {"Sky": 0.6, "Road": 0.4, "Car": 0.0}
        sheet = np.asarray(add_legend(Image.new("RGB", (200, 100)), CAMVID, shares))
        for name, there in (("Sky", True), ("Road", True), ("Car", False)):
            color = CAMVID.palette[CAMVID.names.index(name)]
            assert bool((sheet == color).all(axis=2).any()) == there

    def test_a_picture_of_nothing_has_no_legend(self):
        assert add_legend(Image.new("RGB", (8, 6)), CAMVID, {"Sky": 0.0}).size == (8, 6)

    def test_a_very_long_name_is_cut(self):
        table = ClassTable("long", ("word " * 500,), ((9, 9, 9),))
        assert add_legend(Image.new("RGB", (8, 6)), table, {"word " * 500: 1.0}).width < 600

    def test_percent(self):
        assert [percent(x) for x in (0, 0.0004, 0.0005, 0.25, 1)] == [
            "0.0 %",
            "<0.1 %",
            "0.1 %",
            "25.0 %",
            "100.0 %",
        ]


class TestNetworks:
    def test_the_device_is_found_by_itself(self, segmenter):
        assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
        assert choose_device("cpu") == torch.device("cpu")
        assert segmenter.device == torch.device("cpu")

    @pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "cpu:x"])
    def test_devices_that_are_not_there_are_refused(self, device):
        with pytest.raises(InputError, match=f"'{device}'"):
            choose_device(device)

    def test_weights_that_cannot_be_used_are_refused(self, tmp_path):
        with pytest.raises(WeightsError, match="no such"):
            Segmenter(tmp_path / "nothing.safetensors")

    def test_classes_without_names_are_numbered(self, tmp_path):
        path = write_small_weights(tmp_path / "w.safetensors", table=None, num_classes=3)
        table = Segmenter(path, "cpu").table
        assert table.names == ("class 0", "class 1", "class 2")
        assert table.palette == voc_palette(3)

    def test_more_classes_than_label_pictures_hold_are_refused(self, tmp_path):
        path = write_small_weights(tmp_path / "w.safetensors", table=None, num_classes=300)
        with pytest.raises(WeightsError, match="300"):
            Segmenter(path, "cpu")

    def test_a_network_of_other_channels_is_refused(self, tmp_path, monkeypatch):
        narrow_trunks(monkeypatch)
        save_model(create_model("nyud_fcn32s_vgg16_color_d"), tmp_path / "w.safetensors")
        with pytest.raises(WeightsError, match="takes 4 channels, a picture has 3"):
            Segmenter(tmp_path / "w.safetensors", "cpu")

    def test_training_goes_on_after_a_prediction(self, segmenter):
        segmenter(make_photo())
        model = segmenter.model
        pixels = model.preprocess(torch.zeros(1, 3, 36, 48, dtype=torch.uint8))
        model(pixels, torch.zeros(1, 36, 48, dtype=torch.uint8))["loss"].backward()
        assert model.score.weight.grad.abs().sum() > 0
        model.zero_grad(set_to_none=True)

    @pytest.mark.parametrize(
        "error",
        [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")],
    )
    def test_no_memory_is_told_with_the_way_out(self, segmenter, monkeypatch, tmp_path, error):
        def fail(*_: object, **__: object) -> None:
            raise error

        path = save(make_photo(), tmp_path / "large.png")
        monkeypatch.setattr(segmenter.model, "score_maps", fail)
        with pytest.raises(ImageError, match=r"large\.png: 48x36 pixels.*max_size"):
            segmenter(path)

    def test_a_batch_without_memory_says_its_number(self, segmenter, monkeypatch):
        def fail(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(segmenter.model, "score_maps", fail)
        with pytest.raises(ImageError, match="2 times 48x36 pixels.*max_size or batch_size"):
            next(segmenter([make_photo(), make_photo()]))

    def test_other_errors_are_not_hidden(self, segmenter, monkeypatch):
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(segmenter.model, "score_maps", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            segmenter(make_photo())


class TestFiles:
    def test_one_by_one_and_together_give_the_same_files(self, segmenter, tmp_path):
        sizes = ((36, 48), (36, 48), (20, 31), (50, 50))
        paths = [
            save(make_photo(h, w, seed), tmp_path / f"p{seed}.png")
            for seed, (h, w) in enumerate(sizes)
        ]
        segment_files(segmenter, paths, tmp_path / "together")
        for path in reversed(paths):
            segment_files(segmenter, [path], tmp_path / "alone")
        together, alone = contents(tmp_path / "together"), contents(tmp_path / "alone")
        report = json.loads(together.pop("predictions.json"))
        del alone["predictions.json"]
        assert together == alone
        assert len(together) == 8
        assert [entry["input"] for entry in report["pictures"]] == [str(path) for path in paths]

    def test_the_report(self, segmenter, tmp_path):
        good = save(make_photo(20, 30), tmp_path / "good.png")
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"")
        report = segment_files(segmenter, [bad, good], tmp_path / "out")
        assert report.failed == [
            {"input": str(bad), "error": f"{bad}: the file is empty (0 bytes)"}
        ]
        written = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert written["failed"] == report.failed
        (entry,) = written["pictures"]
        assert (entry["width"], entry["height"]) == (30, 20)
        assert sum(entry["shares"].values()) == pytest.approx(1, abs=1e-5)
        assert list(entry["shares"].values()) == sorted(entry["shares"].values(), reverse=True)
        for kind in ("labels", "overlay"):
            assert (tmp_path / "out" / entry[kind]).is_file()
        assert written["classes"][0] == {"name": CAMVID.names[0], "color": "#808080"}

    def test_equal_stems_get_numbers(self):
        paths = ["a/x.jpg", "b/x.jpg", "c/X.png", "d/x-2.jpg", "e/x.tif"]
        assert output_names(paths) == ["x", "x-3", "X-4", "x-2", "x-5"]

    def test_equal_stems_do_not_replace_each_other(self, segmenter, tmp_path):
        (tmp_path / "a").mkdir()
        one = save(make_photo(10, 12), tmp_path / "x.png")
        two = save(make_photo(14, 16), tmp_path / "a" / "x.png")
        report = segment_files(segmenter, [one, two], tmp_path / "out")
        for entry, size in zip(report.done, ((12, 10), (16, 14)), strict=True):
            assert Image.open(tmp_path / "out" / entry["labels"]).size == size

    def test_a_picture_is_not_replaced_by_its_labels(self, segmenter, tmp_path):
        (tmp_path / "labels").mkdir()
        path = save(make_photo(), tmp_path / "labels" / "x.png")
        before = path.read_bytes()
        with pytest.raises(InputError, match=r"x\.png: would be replaced"):
            segment_files(segmenter, [path], tmp_path)
        assert contents(tmp_path) == {"labels/x.png": before}

    def test_when_nothing_comes_out_nothing_is_left(self, segmenter, tmp_path):
        report = segment_files(segmenter, [tmp_path / "none.png"], tmp_path / "new" / "out")
        assert [entry["error"] for entry in report.failed] == [f"{tmp_path}/none.png: no such file"]
        assert list(tmp_path.iterdir()) == []

    def test_a_picture_too_large_to_be_drawn_is_one_of_the_failures(
        self, segmenter, tmp_path, monkeypatch
    ):
        def draw(image: Image.Image, *others: object) -> Image.Image:
            if image.width > 40:
                raise MemoryError
            return blend(image, *others)

        monkeypatch.setattr(fcnfast.segment, "blend", draw)
        large = save(make_photo(20, 60), tmp_path / "large.png")
        small = save(make_photo(20, 30), tmp_path / "small.png")
        report = segment_files(segmenter, [large, small], tmp_path / "out")
        assert [entry["error"] for entry in report.failed] == [f"{large}: too large for the memory"]
        assert [entry["input"] for entry in report.done] == [str(small)]
        assert not (tmp_path / "out" / "labels" / "large.png").exists()

    def test_when_interrupted_the_report_is_of_what_was_done(self, segmenter, tmp_path):
        path = save(make_photo(), tmp_path / "x.png")

        class Interrupted(Segmenter):
            def __init__(self) -> None:
                self.model, self.table, self.calls = segmenter.model, segmenter.table, 0
                self.device = segmenter.device

            def __call__(self, image: Path, *, max_size: int | None = None) -> Segmentation:
                self.calls += 1
                if self.calls > 1:
                    raise KeyboardInterrupt
                return segmenter(image, max_size=max_size)

        with pytest.raises(KeyboardInterrupt):
            segment_files(Interrupted(), [path, tmp_path / "y.png"], tmp_path / "out")
        assert set(contents(tmp_path / "out")) == {
            "labels/x.png",
            "overlays/x.png",
            "predictions.json",
        }
        written = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert [entry["input"] for entry in written["pictures"]] == [str(path)]

    def test_a_folder_that_cannot_be_written_is_told_before_any_work(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(InputError, match="file: is not a folder"),
            output_folders(tmp_path / "file" / "labels"),
        ):
            pytest.fail("the work began")
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(PermissionError, match="labels"), output_folders(tmp_path / "labels"):
            pytest.fail("the work began")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_photos_are_shrunk_to_the_size_that_the_weights_recommend(tmp_path: Path) -> None:
    path = write_small_weights(tmp_path / "net.safetensors")
    plain = Segmenter(path, "cpu")
    bounded = Segmenter(path, "cpu")
    settings = replace(bounded.model.preprocessing, max_size=24)
    bounded.model.set_preprocessing(settings)
    photo = make_photo()
    assert np.array_equal(bounded(photo).labels, plain(photo, max_size=24).labels)
    assert np.array_equal(bounded(photo, max_size=999).labels, plain(photo).labels)
