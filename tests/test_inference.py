"""Tiles, scales and mirroring: one blended softmax, against a pixel-by-pixel one in float64."""

import errno
import os
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import nn

from fcnfast import ConfusionMatrix, SamplingGrid, create_model, evaluate_model, save_model
from fcnfast.data.folder import Sample
from fcnfast.errors import ImageError
from fcnfast.inference import BAND, Views, blended_labels, probability_file
from fcnfast.models.base import ScoreMap
from fcnfast.reference import upsample
from fcnfast.segment import Segmenter, segment_files
from tests.model_tools import make_photo, make_scene
from tests.op_tools import allocations
from tests.test_images import fail


class Strided(nn.Module):
    """Three classes from the pixels at every second row and column, in float64; stride 2.

    It keeps count of its score maps that are alive.
    """

    num_classes = 3

    def __init__(self, border="clamp"):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3, 3, 2, 2, generator=generator).double() / 50)
        self.border = border
        self.sizes, self.alive, self.most = [], weakref.WeakSet(), 0

    def preprocess(self, images):
        return images.double() - 128

    def score_maps(self, images, heads):
        size = tuple(images.shape[2:])
        self.sizes.append(size)
        scores = F.conv2d(F.pad(images, (0, size[1] % 2, 0, size[0] % 2)), self.weight, stride=2)
        self.alive.add(scores)
        self.most = max(self.most, len(self.alive))
        grid = SamplingGrid.centers(scores.shape[2:], 2, 0.5, size, self.border)
        return {"out": ScoreMap(scores, grid)}


@torch.no_grad()
def gathered(model, photo, views):
    bands = []

    def write(first, band):
        assert first == sum(b.shape[1] for b in bands) and 1 <= band.shape[1] <= BAND
        bands.append(band)

    blended_labels(model, photo, views, "photo", write)
    return torch.cat(bands, 1)


def positions(length, tile, overlap):
    """Where tiles begin: a step of tile - overlap apart, the last one flush with the end."""
    found = [0]
    while found[-1] + tile < length:
        found.append(min(found[-1] + tile - overlap, length - tile))
    return found


@torch.no_grad()
def reference(model, photo, views):
    """The definition: whole tiles, pixel weights, a quotient at the end."""
    side, overlap = views.tile or max(photo.size), views.overlap
    overlap = (views.tile or 0) // 4 if overlap is None else overlap
    height, width = min(side, photo.height), min(side, photo.width)
    total = torch.zeros(3, photo.height, photo.width, dtype=torch.float64)
    weights = torch.zeros(photo.height, photo.width, dtype=torch.float64)

    def ramp(n):
        return torch.tensor([min(i + 1, n - i, overlap + 1) for i in range(n)]).double()

    for y in positions(photo.height, height, overlap):
        for x in positions(photo.width, width, overlap):
            tile = photo.crop((x, y, x + width, y + height))
            parts = []
            for scale in views.scales:
                size = [max(1, round(n * scale)) for n in tile.size]
                seen = tile.resize(size, Image.Resampling.BILINEAR)
                for image in (seen, ImageOps.mirror(seen))[: 1 + views.flip]:
                    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
                    scores, grid = model.score_maps(model.preprocess(pixels), ("out",))["out"]
                    soft = upsample(scores, grid.rescaled((height, width)))[0].softmax(0)
                    parts.append(soft if image is seen else soft.flip(2))
            window = ramp(height)[:, None] * ramp(width)
            total[:, y : y + height, x : x + width] += window * torch.stack(parts).mean(0)
            weights[y : y + height, x : x + width] += window
    return total / weights


@st.composite
def cases(draw):
    tile = draw(st.none() | st.integers(1, 40))
    overlap = None if tile is None else draw(st.none() | st.integers(0, tile - 1))
    scales = draw(st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.25, 2]), min_size=1, max_size=2))
    many = tile is not None and tile - (tile // 4 if overlap is None else overlap) < 5
    high = 12 if many else 150
    height, width = draw(st.integers(1, high)), draw(st.integers(1, min(high, 50)))
    return height, width, Views(None, tile, overlap, tuple(scales), draw(st.booleans()))


@settings(max_examples=40)
@given(case=cases(), border=st.sampled_from(["clamp", "zero"]), seed=st.integers(0, 9))
def test_blending_is_what_it_says(case, border, seed):
    height, width, views = case
    model, photo = Strided(border), make_photo(height, width, seed)
    expected = reference(model, photo, views)
    found = gathered(model, photo, views)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_memory_is_of_two_rows_of_tiles_whatever_the_height():
    most = {}
    for height in (70, 296):
        model = Strided()
        gathered(model, make_photo(height, 60), Views(tile=32, flip=True))
        most[height] = model.most
        assert len(model.sizes) == 2 * 3 * len(positions(height, 32, 8))
    # Three tiles side by side, in two views each; the row above them covers rows to come.
    assert most[70] <= most[296] <= 2 * 3 * 2


def test_a_blended_result_says_what_it_has(segmenter):
    photos = [make_photo(seed=seed) for seed in range(2)]
    for photo, result in zip(photos, segmenter(photos, tile=30, batch_size=2), strict=True):
        expected = gathered(segmenter.model, photo, Views(tile=30)).numpy()
        assert np.array_equal(result.confidence, expected.max(0))
        assert np.array_equal(result.labels, expected.argmax(0))
        with pytest.raises(ValueError, match="blended .* no scores; .*probabilities=FILE"):
            result.probabilities()


@pytest.mark.parametrize("how", [{}, {"tile": 40}, {"flip": True, "max_size": 30}])
def test_probabilities_are_written_as_float16(segmenter, tmp_path, how):
    photo = make_photo(150, 48)
    result = segmenter(photo, probabilities=tmp_path / "p.npy", **how)
    found = np.load(tmp_path / "p.npy")
    assert found.dtype == np.float16
    assert found.shape == (11, 150, 48)
    expected = gathered(segmenter.model, photo, Views(**how)).numpy()
    np.testing.assert_allclose(found, expected, atol=5e-4)
    assert np.array_equal(result.labels, segmenter(photo, **how).labels)
    assert os.listdir(tmp_path) == ["p.npy"]
    with pytest.raises(ValueError, match="one picture at a time"):
        segmenter([photo], probabilities=tmp_path / "q.npy")
    with pytest.raises(ZeroDivisionError), probability_file(tmp_path / "q.npy", (2, 3, 4)) as write:
        write(0, torch.zeros(2, 1 // 0, 4))
    assert os.listdir(tmp_path) == ["p.npy"]  # whole or not there


@pytest.mark.parametrize("kind", ["npy", "png"])
def test_files_with_probabilities(segmenter, tmp_path, kind, monkeypatch):
    make_photo().save(tmp_path / "a.png")
    report = segment_files(
        segmenter, [tmp_path / "a.png"], tmp_path / "out", probabilities=kind, tile=30
    )
    written = tmp_path / "out" / report.done[0]["probabilities"]
    assert written == tmp_path / "out" / "probabilities" / f"a.{kind}"
    result = segmenter(make_photo(), tile=30)
    if kind == "npy":
        np.testing.assert_allclose(np.load(written).max(0), result.confidence, atol=5e-4)
    else:
        with Image.open(written) as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), np.rint(result.confidence * 255))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.png")
    monkeypatch.setattr("fcnfast.segment.Segmentation.save", fail(full))
    with pytest.raises(OSError, match="No space left"):
        segment_files(segmenter, [tmp_path / "a.png"], tmp_path / "new", probabilities=kind)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "how", [{}, {"tile": 24}, {"flip": True}, {"scales": (0.5, 1)}, {"max_size": 24}]
)
def test_evaluation_sees_what_the_segmenter_sees(segmenter, how):
    scenes = [Sample(*make_scene(seed, 40, 56), "street") for seed in (3, 4)]
    expected = ConfusionMatrix(11, trimap=2)
    for sample in scenes:
        expected.update(sample.labels, segmenter(sample.image, **how).labels)
    found = evaluate_model(segmenter.model, scenes, batch_size=2, trimap=2, **how)
    assert np.array_equal(found.matrix, expected.matrix)
    assert np.array_equal(found.trimap.matrix, expected.trimap.matrix)
    assert 0 < found.trimap.matrix.sum() < found.matrix.sum()


def test_bad_views_begin_with_their_name(segmenter):
    for how, error, message in (
        ({"tile": 0}, ValueError, "tile must be at least 1, not 0"),
        ({"tile": 2.5}, TypeError, "tile must be an integer"),
        ({"max_size": True}, TypeError, "max_size must be an integer, not True"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, not 0"),
        ({"tile": 8, "overlap": 8}, ValueError, "overlap must be .* less than the tile, 8, not 8"),
        ({"tile": 8, "overlap": -1}, ValueError, "overlap must be an integer from 0 .* not -1"),
        ({"overlap": 8}, ValueError, "overlap 8 needs a tile"),
        ({"tile": 8, "max_size": 9}, ValueError, "tile 8: .*own size.*max_size 9 .*one of them"),
        ({"scales": ()}, ValueError, "scales must be numbers above 0"),
        ({"scales": (1, 0)}, ValueError, r"scales must be .* at most 16 .*, not \(1, 0\)"),
        ({"scales": (float("nan"),)}, ValueError, "scales must be .*nan"),
        ({"scales": ("1",)}, ValueError, "scales must be .*'1'"),
        ({"scales": "1"}, ValueError, "scales must be .* a list, not '1'"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            segmenter(make_photo(), **how)
        with pytest.raises(error, match=f"^{message}"):
            evaluate_model(segmenter.model, [Sample(*make_scene(1), "x")], **how)


@pytest.mark.usefixtures("narrow")
def test_a_tile_too_small_for_the_network_is_named(tmp_path):
    save_model(create_model("fcn32s_googlenet", num_classes=3), tmp_path / "net.safetensors")
    segmenter = Segmenter(tmp_path / "net.safetensors", "cpu")
    make_photo(60, 70).save(tmp_path / "p.png")
    assert segmenter(tmp_path / "p.png", tile=40).labels.shape == (60, 70)
    for how, message in (
        ({"tile": 40, "scales": (1, 0.5)}, r"20x20 pixels \(tile 40, scale 0.5\) are too few for"),
        ({"scales": (0.25,)}, r"18x15 pixels \(scale 0.25\) are too few"),
    ):
        with pytest.raises(ImageError, match=rf"p\.png: {message}"):
            segmenter(tmp_path / "p.png", **how)


def test_a_band_without_memory_is_told(segmenter, monkeypatch):
    monkeypatch.setattr("fcnfast.inference.mean_softmax", fail(MemoryError))
    with pytest.raises(ImageError, match="the picture: 48x36 pixels are too many.*smaller tile"):
        segmenter(make_photo(), tile=20)


def test_tiles_never_become_scores_of_the_whole_picture(segmenter):
    photo = make_photo(400, 300)
    sizes = allocations(lambda: segmenter(photo, tile=64))
    assert 0 < max(sizes) < 400 * 300 * 11 * 4 / 4
