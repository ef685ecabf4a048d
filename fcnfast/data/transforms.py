"""Paired transforms: a picture and its labels go through the same geometry.

A transform is called as ``transform(image, labels, rng)`` with an RGB `PIL.Image` (RGBX: one more
channel), its uint8 labels H×W[×K] and a `numpy.random.Generator`; it returns the new pair and
changes neither argument. Equal generators give equal results. Geometry interpolates the picture and
takes the nearest label at the same positions; outside it gives the mean color and the label 255.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from . import photometric
from .classes import IGNORE_INDEX
from .photometric import log_uniform

MEAN_COLOR = (124, 116, 104)
"""ImageNet's mean (0.485, 0.456, 0.406) in 0..255, rounded: what lies outside a picture."""

Pair = tuple[Image.Image, np.ndarray]
Transform = Callable[[Image.Image, np.ndarray, np.random.Generator], Pair]


@dataclass(frozen=True)
class RandomScaleCrop:
    """Cut a random window at a random scale and aspect ratio, in one resampling.

    With scale s (between the two of `scale`) and aspect ratio a (up to `aspect` or its inverse), a
    pixel of the picture becomes s·√a by s/√a pixels of the result; both are drawn uniformly on a
    logarithmic axis. A picture smaller than the window lies at a random place in it. Shrinking is
    antialiased. ValueError if `size`, (height, width), or `aspect` is below 1, or `scale` is not
    positive and in order.
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
        part_labels = labels[_nearest(y0, y1, rows, image.height)]
        part_labels = part_labels.take(_nearest(x0, x1, columns, image.width), axis=1)
        if (rows, columns) == (height, width):
            return part, part_labels
        canvas = Image.new(part.mode, (width, height), _mean_color(len(part.getbands())))
        canvas.paste(part, (left, top))
        padded = np.full((height, width, *labels.shape[2:]), IGNORE_INDEX, dtype=np.uint8)
        padded[top : top + rows, left : left + columns] = part_labels
        return canvas, padded


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


def _nearest(start: float, stop: float, count: int, extent: int) -> np.ndarray:
    """Return the source pixels at the centers of `count` pixels that cover [start, stop]."""
    centers = start + (np.arange(count) + 0.5) * ((stop - start) / count)
    return np.clip(np.floor(centers).astype(np.intp), 0, extent - 1)


def _mean_color(channels: int) -> tuple[int, ...]:
    """Return the color outside a picture; in a fourth channel, the mean of the others."""
    return (*MEAN_COLOR, sum(MEAN_COLOR) // 3)[:channels]


@dataclass(frozen=True)
class Randomly:
    """Apply a transform with probability `p`."""

    transform: Transform
    p: float = 0.5

    def __call__(self, image: Image.Image, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        """Return the pair, transformed or not."""
        return self.transform(image, labels, rng) if rng.random() < self.p else (image, labels)


def mirror(image: Image.Image, labels: np.ndarray, _: np.random.Generator) -> Pair:
    """Mirror left and right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]


def rotate(
    image: Image.Image, labels: np.ndarray, rng: np.random.Generator, degrees: float
) -> Pair:
    """Rotate about the center by up to `degrees` either way."""
    angle = rng.uniform(-degrees, degrees)
    outside = _mean_color(len(image.getbands()))
    turned = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=outside)

    def turn(plane: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(plane))
        return np.asarray(picture.rotate(angle, fillcolor=IGNORE_INDEX))  # the nearest label

    if labels.ndim == 2:
        return turned, turn(labels)
    return turned, np.stack([turn(plane) for plane in np.moveaxis(labels, 2, 0)], axis=2)


def recolor(
    image: Image.Image, labels: np.ndarray, rng: np.random.Generator, change: photometric.Change
) -> Pair:
    """Change the colors of a picture, RGB or RGBX; its labels and a fourth channel stay."""
    if image.mode == "RGB":
        return change(image, rng), labels
    *color, more = image.split()
    changed = change(Image.merge("RGB", color), rng)
    return Image.merge("RGBX", (*changed.split(), more)), labels


@dataclass(frozen=True)
class Compose:
    """Apply `transforms` in order, then make tensors: uint8 C×H×W, and uint8 H×W[×K].

    They share no memory with the arguments. Without a generator every call draws new numbers.
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
            height = f"of height {image.height} and width {image.width}"
            raise ValueError(f"labels of shape {labels.shape} do not fit a picture {height}")
        rng = rng or np.random.default_rng()
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
    """Build the augmentation for street scenes: crops of (height, width), or of a square.

    `scale` is the smallest and the largest random scale, `strength` (not negative) that of color,
    light, blur, noise, aspect and rotation: 0 leaves only scale, crop and mirror; 1 is meant to
    cover other cameras, weather and times of day. ValueError as in `RandomScaleCrop`.
    """
    if strength < 0:
        raise ValueError(f"strength must not be negative, not {strength}")
    size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    geometry = RandomScaleCrop(size, scale, aspect=1.0 + 0.3 * strength), Randomly(mirror)
    if strength == 0:
        return Compose(geometry)
    often, seldom = min(0.5 * strength, 0.9), min(0.25 * strength, 0.9)
    jitter = tuple(share * strength for share in (0.4, 0.4, 0.5, 0.05))
    shade = max(0.0, 1.0 - 0.6 * strength)
    blur = partial(photometric.random_blur, radius=1.5 * strength, sharpen=strength)
    steps: tuple[tuple[photometric.Change, float], ...] = (
        (partial(photometric.random_lighting, shade=shade), seldom),
        (partial(photometric.color_jitter, amounts=jitter), min(0.8, often * 2)),
        (photometric.auto_contrast, seldom),
        (photometric.random_exposure, seldom),
        (partial(photometric.random_gamma, gamma=1.0 + 0.5 * strength), often),
        (partial(photometric.random_white_balance, gain=1.0 + 0.25 * strength), often),
        (photometric.grayscale, min(0.08 * strength, 0.5)),
        (blur, seldom),
        (partial(photometric.random_noise, sigma=12.0 * strength), seldom),
        (photometric.random_jpeg, seldom),
    )
    turn = Randomly(partial(rotate, degrees=5.0 * strength), seldom)
    colors = (Randomly(partial(recolor, change=change), p) for change, p in steps)
    return Compose((*geometry, turn, *colors))


def eval_transform() -> Compose:
    """Return a transform that only converts to tensors."""
    return Compose()


def collate(
    samples: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack pairs of uint8 C×H×W (C is 3 or 4) and uint8 H×W[×K] of unequal sizes.

    Returns uint8 N×C×H×W and N×H×W[×K] of the largest height and width, padded at the bottom and
    the right with the mean color and with 255. ValueError if there are no samples.
    """
    if not samples:
        raise ValueError("cannot make a batch of no samples")
    size = tuple(max(labels.shape[axis] for _, labels in samples) for axis in (0, 1))
    channels, heads = samples[0][0].shape[0], samples[0][1].shape[2:]
    images = np.empty((len(samples), channels, *size), dtype=np.uint8)
    images[:] = np.array(_mean_color(channels), dtype=np.uint8)[:, None, None]
    targets = np.full((len(samples), *size, *heads), IGNORE_INDEX, dtype=np.uint8)
    for index, (image, labels) in enumerate(samples):
        images[index, :, : image.shape[1], : image.shape[2]] = image.numpy()
        targets[index, : labels.shape[0], : labels.shape[1]] = labels.numpy()
    return torch.from_numpy(images), torch.from_numpy(targets)
