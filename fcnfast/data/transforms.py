"""Paired transforms: a picture and its labels go through the same geometry, only the picture
through color, light, blur and noise.

A transform is a frozen dataclass called as ``transform(image, labels, rng)`` with an RGB
`PIL.Image` (RGBX: one more channel), its uint8 label array H×W and a `numpy.random.Generator`; it
returns the new pair and changes neither argument. Equal generators give equal results. Geometry
interpolates the picture and takes the nearest label at the same positions; outside the picture it
gives the mean color and the label 255.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .classes import IGNORE_INDEX
from .photometric import (
    ColorJitter,
    Pair,
    RandomAutoContrast,
    RandomBlur,
    RandomExposure,
    RandomGamma,
    RandomGrayscale,
    RandomJPEG,
    RandomLighting,
    RandomNoise,
    RandomWhiteBalance,
    log_uniform,
)

MEAN_COLOR = (124, 116, 104)
"""ImageNet's mean (0.485, 0.456, 0.406) in 0..255, rounded: what lies outside a picture."""

Transform = Callable[[Image.Image, np.ndarray, np.random.Generator], Pair]


@dataclass(frozen=True)
class RandomScaleCrop:
    """Cut a random window at a random scale and aspect ratio, in one resampling.

    With scale s and aspect ratio a, one pixel of the picture becomes s·√a by s/√a pixels of the
    result; both are drawn uniformly on a logarithmic axis. If the window is larger than the
    picture, the picture lies at a random place in it. Shrinking is antialiased.

    Args:
        size: (height, width) of the result.
        scale: smallest and largest s.
        aspect: largest a, at least 1; the smallest is its inverse.

    Raises:
        ValueError: `size` or `aspect` is below 1, or `scale` is not positive and in order.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    aspect: float = 1.25

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be (height, width) of at least 1, not {self.size}")
        if not 0.0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be (smallest, largest) above 0, not {self.scale}")
        if not self.aspect >= 1.0:
            raise ValueError(f"aspect must be at least 1, not {self.aspect}")

    def __call__(self, image: Image.Image, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        """Return the window."""
        scale = log_uniform(rng, *self.scale)
        root = math.sqrt(log_uniform(rng, 1.0 / self.aspect, self.aspect))
        height, width = self.size
        top, rows, y0, y1 = _window(image.height, height, scale / root, rng)
        left, columns, x0, x1 = _window(image.width, width, scale * root, rng)
        part = image.resize((columns, rows), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
        part_labels = _nearest(labels, (rows, columns), (y0, y1), (x0, x1))
        if (rows, columns) == (height, width):
            return part, part_labels
        return _on_canvas(part, part_labels, (height, width), (top, left))


def _window(
    extent: int, size: int, scale: float, rng: np.random.Generator
) -> tuple[int, int, float, float]:
    """Place a window of `size` result pixels along an axis of `extent` source pixels.

    Returns (first, count, start, stop): `count` result pixels from `first` on lie within the
    picture and cover the source interval [start, stop]; the others are padding.
    """
    covered = size / scale  # source pixels under the window
    slack = extent - covered
    origin = rng.uniform(min(slack, 0.0), max(slack, 0.0))
    first = max(0, math.ceil(-origin * scale - 1e-9))
    last = min(size, math.floor((extent - origin) * scale + 1e-9))
    if last <= first:  # less than one result pixel of picture: the one around its middle
        middle = (extent / 2 - origin) * scale
        first = min(max(math.floor(middle), 0), size - 1)
        return first, 1, 0.0, float(extent)
    start = min(max(origin + first / scale, 0.0), float(extent))
    stop = min(max(origin + last / scale, 0.0), float(extent))
    return first, last - first, start, stop


def _nearest(
    labels: np.ndarray,
    size: tuple[int, int],
    rows: tuple[float, float],
    columns: tuple[float, float],
) -> np.ndarray:
    """Sample labels at the centers of `size` pixels that cover the source box rows × columns."""
    picks = []
    for count, (start, stop), extent in zip(size, (rows, columns), labels.shape[:2], strict=True):
        centers = start + (np.arange(count) + 0.5) * ((stop - start) / count)
        picks.append(np.clip(np.floor(centers).astype(np.intp), 0, extent - 1))
    return labels[picks[0]].take(picks[1], axis=1)


def _mean_color(channels: int) -> tuple[int, ...]:
    """Return the color outside a picture; in a fourth channel, the mean of the others."""
    return (*MEAN_COLOR, sum(MEAN_COLOR) // 3)[:channels]


def _on_canvas(
    image: Image.Image, labels: np.ndarray, size: tuple[int, int], corner: tuple[int, int]
) -> Pair:
    """Lay a pair on a mean-colored canvas of `size` with its first pixel at `corner` (y, x)."""
    canvas = Image.new(image.mode, size[::-1], _mean_color(len(image.getbands())))
    canvas.paste(image, corner[::-1])
    padded = np.full((*size, *labels.shape[2:]), IGNORE_INDEX, dtype=np.uint8)
    height, width = labels.shape[:2]
    padded[corner[0] : corner[0] + height, corner[1] : corner[1] + width] = labels
    return canvas, padded


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror left and right with probability `p`."""

    p: float = 0.5

    def __call__(self, image: Image.Image, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        """Return the pair, mirrored or not."""
        if rng.random() >= self.p:
            return image, labels
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]


@dataclass(frozen=True)
class RandomRotate:
    """Rotate about the center by up to `degrees` either way with probability `p`."""

    degrees: float = 5.0
    p: float = 0.5

    def __call__(self, image: Image.Image, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        """Return the pair, rotated or not."""
        if rng.random() >= self.p:
            return image, labels
        angle = rng.uniform(-self.degrees, self.degrees)
        outside = _mean_color(len(image.getbands()))
        turned = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=outside)

        def turn(plane: np.ndarray) -> np.ndarray:
            picture = Image.fromarray(np.ascontiguousarray(plane))
            return np.asarray(picture.rotate(angle, fillcolor=IGNORE_INDEX))  # the nearest label

        if labels.ndim == 2:
            return turned, turn(labels)
        return turned, np.stack([turn(plane) for plane in np.moveaxis(labels, 2, 0)], axis=2)


@dataclass(frozen=True)
class Compose:
    """Apply `transforms` in order, then make tensors.

    A call returns (uint8 tensor 3×H×W, uint8 tensor H×W, or H×W×K for K heads), copies that share
    no memory with the arguments. Without a generator every call draws new random numbers.
    """

    transforms: tuple[Transform, ...] = ()

    def __call__(
        self, image: Image.Image, labels: np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the transformed pair as tensors."""
        if image.mode not in ("RGB", "RGBX"):
            raise ValueError(f"the picture must be RGB, or RGBX of four channels, not {image.mode}")
        if labels.dtype != np.uint8:
            raise TypeError(f"labels must be uint8, not {labels.dtype}")
        if labels.shape[:2] != (image.height, image.width) or labels.ndim > 3:
            raise ValueError(
                f"labels of shape {labels.shape} do not fit a picture of height {image.height} "
                f"and width {image.width}"
            )
        rng = np.random.default_rng() if rng is None else rng
        for transform in self.transforms:
            image, labels = transform(image, labels, rng)
        # numpy copies in this thread; torch would wake all its threads, which the trainer needs.
        pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        return torch.from_numpy(pixels), torch.from_numpy(np.array(labels, order="C"))


def train_transform(
    crop_size: int | tuple[int, int],
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    strength: float = 1.0,
) -> Compose:
    """Build the augmentation for street scenes.

    Args:
        crop_size: (height, width) of the result, or one number for a square.
        scale: smallest and largest random scale.
        strength: of color, light, blur, noise, aspect and rotation. 0 leaves only scale, crop and
            mirror; 1 is meant to cover other cameras, weather and times of day.

    Raises:
        ValueError: `strength` is negative, or as in `RandomScaleCrop`.
    """
    if strength < 0:
        raise ValueError(f"strength must not be negative, not {strength}")
    size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    if strength == 0:
        return Compose((RandomScaleCrop(size, scale, aspect=1.0), RandomHorizontalFlip()))
    often, seldom = min(0.5 * strength, 0.9), min(0.25 * strength, 0.9)
    jitter = [share * strength for share in (0.4, 0.4, 0.5, 0.05)]
    steps: tuple[Transform, ...] = (
        RandomScaleCrop(size, scale, aspect=1.0 + 0.3 * strength),
        RandomHorizontalFlip(),
        RandomRotate(5.0 * strength, p=seldom),
        RandomLighting(shade=max(0.0, 1.0 - 0.6 * strength), p=seldom),
        ColorJitter(*jitter, p=min(0.8, often * 2)),
        RandomAutoContrast(p=seldom),
        RandomExposure(p=seldom),
        RandomGamma(1.0 + 0.5 * strength, p=often),
        RandomWhiteBalance(1.0 + 0.25 * strength, p=often),
        RandomGrayscale(p=min(0.08 * strength, 0.5)),
        RandomBlur(1.5 * strength, 1.0 * strength, p=seldom),
        RandomNoise(12.0 * strength, p=seldom),
        RandomJPEG(p=seldom),
    )
    return Compose(steps)


def eval_transform() -> Compose:
    """Return a transform that only converts to tensors."""
    return Compose()


def collate(
    samples: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack pairs of unequal sizes, padded at the bottom and the right.

    Args:
        samples: (uint8 C×H×W, uint8 H×W or H×W×K) pairs, at least one; C is 3 or 4.

    Returns:
        (uint8 N×C×H×W padded with the mean color, uint8 N×H×W or N×H×W×K padded with 255), H and W
        the largest height and width.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("cannot make a batch of no samples")
    height = max(labels.shape[0] for _, labels in samples)
    width = max(labels.shape[1] for _, labels in samples)
    channels = samples[0][0].shape[0]
    images = np.empty((len(samples), channels, height, width), dtype=np.uint8)
    images[:] = np.array(_mean_color(channels), dtype=np.uint8)[:, None, None]
    heads = samples[0][1].shape[2:]
    targets = np.full((len(samples), height, width, *heads), IGNORE_INDEX, dtype=np.uint8)
    for index, (image, labels) in enumerate(samples):
        images[index, :, : image.shape[1], : image.shape[2]] = image.numpy()
        targets[index, : labels.shape[0], : labels.shape[1]] = labels.numpy()
    return torch.from_numpy(images), torch.from_numpy(targets)
