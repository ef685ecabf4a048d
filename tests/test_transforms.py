"""Paired transforms keep pictures and labels aligned and take all chance from their generator."""

import math

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from PIL import Image

from fcnfast.data import photometric
from fcnfast.data.transforms import (
    MEAN_COLOR,
    Compose,
    Randomly,
    RandomScaleCrop,
    collate,
    eval_transform,
    mirror,
    rotate,
    train_transform,
)

NONE = np.zeros((60, 80), np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def scene(height, width, seed=0):
    """A picture of noise and labels of noise."""
    chance = rng(seed)
    pixels = chance.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels), chance.integers(0, 6, (height, width), dtype=np.uint8)


def photo(height=60, width=80):
    """A picture of smooth colors and some texture."""
    y, x = np.mgrid[0:height, 0:width]
    texture = rng(3).integers(0, 40, (height, width))
    channels = (60 + 2 * x + texture, 40 + 2 * y + texture, 180 - x + texture)
    return Image.fromarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))


sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@given(
    source=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    size=sizes,
    low=st.floats(0.3, 2.5),
    spread=st.floats(1.0, 3.0),
    aspect=st.floats(1.0, 1.6),
    seed=st.integers(0, 2**32 - 1),
)
def test_scale_crop_keeps_every_pixel_aligned(source, size, low, spread, aspect, seed):
    """A picture that spells its own coordinates tells where each result pixel was taken from."""
    height, width = source
    y, x = np.mgrid[0:height, 0:width]
    image = Image.fromarray(np.stack((y, x, 0 * y), axis=-1).astype(np.uint8))
    labels = (y + x).astype(np.uint8) // 2
    transform = RandomScaleCrop(size, (low, low * spread), aspect)
    result, cropped = transform(image, labels, rng(seed))
    assert result.size == size[::-1] and cropped.shape == size and cropped.dtype == np.uint8
    pixels, inside = np.asarray(result).astype(float), cropped != 255
    event(f"padded: {not inside.all()}")
    event(f"shrunk: {low * spread < 1}")
    assert inside.any()
    assert (pixels[~inside] == MEAN_COLOR).all()
    # The rows and columns inside make one rectangle.
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert inside.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    # Interpolated coordinates and the nearest pixel's differ by half a pixel, the rounding to
    # 8 bits, and, where the window shrinks and is cut by the border, by the filter's lopsidedness.
    step = max(1.0, math.sqrt(aspect) / low)
    expected = (pixels[..., 0] + pixels[..., 1]) / 2
    error = np.abs(expected - cropped)[inside]
    assert error.max() <= 1.6 + step


@pytest.mark.parametrize("seed", range(5))
def test_rotation_keeps_colors_on_their_labels(seed):
    """Wherever all labels up to two pixels away are equal, so that no blend of colors is there."""
    labels = rng(seed).integers(0, 6, (7, 8)).astype(np.uint8).repeat(20, 0).repeat(20, 1)
    image = Image.fromarray(np.repeat(40 * labels[..., None], 3, axis=2))
    turned, moved = rotate(image, labels, rng(seed), 20.0)
    assert (moved == 255).any()
    expected = np.where(moved == 255, MEAN_COLOR[0], 40.0 * moved)
    off = np.abs(np.asarray(turned)[..., 0] - expected)[2:-2, 2:-2] > 3
    around = np.lib.stride_tricks.sliding_window_view(moved, (5, 5))
    inside = around.min(axis=(2, 3)) == around.max(axis=(2, 3))
    assert inside.mean() > 0.3 and not (off & inside).any()


def test_scale_crop_reaches_its_range_without_a_drift():
    """Scales and aspect ratios fill what was asked for and nothing beyond, in the logarithm."""
    y, x = np.mgrid[0:200, 0:200]
    image = Image.fromarray(np.stack((y, x, x), axis=-1).astype(np.uint8))
    chance = rng()
    transform = RandomScaleCrop((60, 60), (0.5, 2.0), aspect=1.5)
    scales, aspects, drifts = [], [], []
    for _ in range(300):
        crop, labels = transform(image, x.astype(np.uint8), chance)
        pixels = np.asarray(crop).astype(float)
        drifts.append((pixels[8:-8, 8:-8, 1] - labels[8:-8, 8:-8]).mean())
        down = 40 / (pixels[50, 30, 0] - pixels[10, 30, 0])
        across = 40 / (pixels[30, 50, 1] - pixels[30, 10, 1])
        scales.append(math.sqrt(down * across))
        aspects.append(across / down)
    assert 0.48 < min(scales) < 0.56 and 1.8 < max(scales) < 2.15
    assert 0.62 < min(aspects) < 0.74 and 1.35 < max(aspects) < 1.62
    assert abs(np.log(scales).mean()) < 0.1 and abs(np.log(aspects).mean()) < 0.1
    assert abs(np.mean(drifts)) < 0.1 and np.abs(drifts).max() < 1


@given(source=sizes, seed=st.integers(0, 99))
def test_flips_and_whole_windows_are_exact(source, seed):
    image, labels = scene(*source, seed)
    found = RandomScaleCrop(source, (1.0, 1.0), aspect=1.0)(image, labels, rng())
    np.testing.assert_array_equal(np.asarray(found[0]), np.asarray(image))
    np.testing.assert_array_equal(found[1], labels)
    mirrored, mirrored_labels = Randomly(mirror, 1.0)(image, labels, rng(seed))
    np.testing.assert_array_equal(np.asarray(mirrored), np.asarray(image)[:, ::-1])
    np.testing.assert_array_equal(mirrored_labels, labels[:, ::-1])
    same, same_labels = Randomly(mirror, 0.0)(image, labels, rng(seed))
    assert same is image and same_labels is labels


def test_photometric():
    """The picture changes, by chance and only by it; the argument does not."""
    for name, arguments in (
        ("color_jitter", ((0.4, 0.4, 0.4, 0.05),)),
        ("random_gamma", (1.6,)),
        ("random_exposure", ()),
        ("auto_contrast", ()),
        ("random_white_balance", (1.2,)),
        ("grayscale", ()),
        ("random_lighting", (0.4,)),
        ("random_blur", (1.5, 1.0)),
        ("random_noise", (12.0,)),
        ("random_jpeg", ()),
    ):
        image, change = photo(), getattr(photometric, name)
        before = np.array(image)
        results = [np.asarray(change(image, rng(seed), *arguments)) for seed in (1, 1, 2, 3)]
        np.testing.assert_array_equal(np.asarray(image), before)
        np.testing.assert_array_equal(results[0], results[1])
        assert all(result.shape == before.shape for result in results)
        assert any((result != before).any() for result in results)
        assert name in ("grayscale", "auto_contrast") or (results[2] != results[3]).any()


def test_color_jitter_parts():
    image = photo()
    before = np.asarray(image).astype(float)
    luma = np.array([0.299, 0.587, 0.114])

    def jitter(seed, *amounts):
        return np.asarray(photometric.color_jitter(image, rng(seed), amounts)).astype(float)

    for seed in range(8):
        np.testing.assert_allclose(jitter(seed, 0, 0, 0, 0), before, atol=1)
        bright = jitter(seed, 0.2, 0, 0, 0)
        ratio = np.median(bright / before)
        np.testing.assert_allclose(bright, (before * ratio).clip(0, 255), atol=2.5)
        assert 0.79 < ratio < 1.21
        contrast = jitter(seed, 0, 0.3, 0, 0) @ luma
        assert abs(contrast.mean() - (before @ luma).mean()) < 2.5
        assert 0.69 < contrast.std() / (before @ luma).std() < 1.31
        for color in (jitter(seed, 0, 0, 0.3, 0), jitter(seed, 0, 0, 0, 0.03)):
            kept = ((color > 0) & (color < 255)).all(axis=-1)  # not clipped
            np.testing.assert_allclose((color @ luma)[kept], (before @ luma)[kept], atol=2)
    flat = Image.new("RGB", (4, 4), (90, 90, 90))
    turned = np.asarray(photometric.color_jitter(flat, rng(), (0, 0, 0, 0.5))).astype(int)
    assert np.abs(turned - 90).max() <= 1  # gray has no hue


def test_exposure_forgets_the_camera():
    """A dark and a bright picture come out equally bright with equal generators."""
    for seed in range(5):
        dark = photo().point(lambda value: value * 0.4)
        results = [photometric.random_exposure(image, rng(seed)) for image in (dark, photo())]
        means = [np.asarray(result.convert("L")).mean() for result in results]
        assert abs(means[0] - means[1]) < 25
        assert 30 < means[1] < 180


def test_noise_is_as_strong_as_asked():
    """The deviation stays below sigma, reaches near it, and does not shift the mean."""
    image = Image.new("RGB", (80, 60), (128, 128, 128))
    noisy = [np.asarray(photometric.random_noise(image, rng(k), 20.0)) for k in range(40)]
    assert all(abs(pixels.mean() - 128) < 1 for pixels in noisy)
    deviations = [pixels.std() for pixels in noisy]
    assert 17 < max(deviations) < 21 and min(deviations) < 3


@given(seed=st.integers(0, 2**32 - 1), strength=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_train_transform(seed, strength):
    """Tensors of the asked size, equal for equal generators, the arguments untouched."""
    image, labels = scene(50, 70)
    labels.setflags(write=False)
    before = np.array(image)
    transform = train_transform((33, 47), scale=(0.5, 1.5), strength=strength)
    pixels, targets = transform(image, labels, rng(seed))
    again = transform(image, labels, rng(seed))
    assert pixels.shape == (3, 33, 47) and targets.shape == (33, 47)
    assert pixels.dtype == targets.dtype == torch.uint8
    assert pixels.is_contiguous() and targets.is_contiguous()
    assert torch.equal(pixels, again[0]) and torch.equal(targets, again[1])
    assert set(targets.unique().tolist()) <= {*range(6), 255}
    np.testing.assert_array_equal(np.asarray(image), before)


def test_strength_0_and_evaluation_leave_colors_alone():
    plain = train_transform((60, 80), scale=(1.0, 1.0), strength=0.0)
    pixels, _ = plain(photo(), NONE, rng())
    original = torch.from_numpy(np.array(photo())).permute(2, 0, 1)
    assert torch.equal(pixels, original) or torch.equal(pixels, original.flip(2))
    assert train_transform(20)(photo(), NONE, rng())[0].shape == (3, 20, 20)
    image, labels = scene(20, 30)
    pixels, targets = eval_transform()(image, labels)
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image))
    np.testing.assert_array_equal(targets.numpy(), labels)
    targets.fill_(9)  # in memory of its own
    assert labels.max() < 9


def test_bad_arguments():
    for call, error, message in (
        (lambda: train_transform(20, strength=-1.0), ValueError, "strength must not be negative"),
        (lambda: train_transform(0), ValueError, r"size must be .* not \(0, 0\)"),
        (lambda: train_transform(20, scale=(2.0, 1.0)), ValueError, "scale must be"),
        (lambda: RandomScaleCrop((2, 2), aspect=0.5), ValueError, "aspect must be at least 1"),
        (lambda: Compose()(photo().convert("L"), NONE), ValueError, "not L"),
        (lambda: Compose()(photo(), NONE.astype(int)), TypeError, "int64"),
        (lambda: Compose()(photo(), NONE.T), ValueError, r"\(80, 60\)"),
        (lambda: collate([]), ValueError, "no samples"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_collate():
    shapes = [(4, 9), (6, 5)]
    samples = [
        (torch.full((3, *shape), index, dtype=torch.uint8), torch.full(shape, index).byte())
        for index, shape in enumerate(shapes)
    ]
    images, targets = collate(samples)
    assert images.shape == (2, 3, 6, 9) and targets.shape == (2, 6, 9)
    mean = torch.tensor(MEAN_COLOR, dtype=torch.uint8)[:, None, None]
    for index, (height, width) in enumerate(shapes):
        expected = torch.full((6, 9), 255, dtype=torch.uint8)
        expected[:height, :width] = index
        assert torch.equal(targets[index], expected)
        assert torch.equal(images[index], torch.where(expected == 255, mean, expected))
