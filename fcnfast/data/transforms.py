"""Paired transforms: a picture and its labels go through the same geometry, the picture alone
through color, light, blur and noise.

A transform is a small frozen dataclass called as ``transform(image, labels, rng)`` with an RGB
`PIL.Image`, its uint8 label array H×W and a `numpy.random.Generator`; it returns the new pair and
changes neither argument. All chance comes from `rng`: equal generators give equal results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .classes import IGNORE_INDEX
from .geometric import (
    MEAN_COLOR,
    Pad,
    Pair,
    RandomHorizontalFlip,
    RandomRotate,
    RandomScaleCrop,
    Resize,
)
from .photometric import (
    ColorJitter,
    RandomAutoContrast,
    RandomBlur,
    RandomExposure,
    RandomGamma,
    RandomGrayscale,
    RandomJPEG,
    RandomLighting,
    RandomNoise,
    RandomWhiteBalance,
)

__all__ = [
    "MEAN_COLOR",
    "ColorJitter",
    "Compose",
    "Pad",
    "RandomAutoContrast",
    "RandomBlur",
    "RandomExposure",
    "RandomGamma",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomJPEG",
    "RandomLighting",
    "RandomNoise",
    "RandomRotate",
    "RandomScaleCrop",
    "RandomWhiteBalance",
    "Resize",
    "collate",
    "eval_transform",
    "to_tensor",
    "train_transform",
]

Transform = Callable[[Image.Image, np.ndarray, np.random.Generator], Pair]


@dataclass(frozen=True)
class Compose:
    """Apply `transforms` in order, then make tensors.

    Returns from a call: (uint8 tensor 3×H×W, uint8 tensor H×W), copies that share no memory with
    the arguments.
    """

    transforms: tuple[Transform, ...] = ()

    def __call__(
        self, image: Image.Image, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the transformed pair as tensors."""
        _check(image, labels)
        for transform in self.transforms:
            image, labels = transform(image, labels, rng)
        return to_tensor(image, labels)


def to_tensor(image: Image.Image, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (uint8 tensor 3×H×W in RGB order, uint8 tensor H×W), both contiguous copies."""
    # numpy copies in this thread; torch would wake all of its threads, which a training step needs.
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    return torch.from_numpy(pixels), torch.from_numpy(np.array(labels, order="C"))


def _check(image: Image.Image, labels: np.ndarray) -> None:
    """Refuse a pair that does not fit together."""
    if image.mode != "RGB":
        raise ValueError(f"the picture must be RGB, not {image.mode}")
    if labels.dtype != np.uint8:
        raise TypeError(f"labels must be uint8, not {labels.dtype}")
    if labels.shape != (image.height, image.width):
        raise ValueError(
            f"labels of shape {labels.shape} do not fit a picture of height {image.height} "
            f"and width {image.width}"
        )


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
        strength: how far color, light, blur, noise, aspect and rotation go; 0 leaves only scale,
            crop and mirror, 1 is meant to cover other cameras, weather and times of day.
    """
    if strength < 0:
        raise ValueError(f"strength must not be negative, not {strength}")
    size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    if strength == 0:
        return Compose((RandomScaleCrop(size, scale, aspect=1.0), RandomHorizontalFlip()))
    often, seldom = min(0.5 * strength, 0.9), min(0.25 * strength, 0.9)
    return Compose(
        (
            RandomScaleCrop(size, scale, aspect=1.0 + 0.3 * strength),
            RandomHorizontalFlip(),
            RandomRotate(5.0 * strength, p=seldom),
            RandomLighting(shade=max(0.0, 1.0 - 0.6 * strength), p=seldom),
            ColorJitter(
                0.4 * strength,
                0.4 * strength,
                0.5 * strength,
                0.05 * strength,
                p=min(0.8, often * 2),
            ),
            RandomAutoContrast(p=seldom),
            RandomExposure(p=seldom),
            RandomGamma(1.0 + 0.5 * strength, p=often),
            RandomWhiteBalance(1.0 + 0.25 * strength, p=often),
            RandomGrayscale(p=min(0.08 * strength, 0.5)),
            RandomBlur(1.5 * strength, 1.0 * strength, p=seldom),
            RandomNoise(12.0 * strength, p=seldom),
            RandomJPEG(p=seldom),
        )
    )


def eval_transform() -> Compose:
    """Build the transform for evaluation: only the conversion to tensors."""
    return Compose()


def collate(
    samples: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack pairs of unequal sizes, padded at the bottom and the right.

    Args:
        samples: (uint8 3×H×W, uint8 H×W) pairs, at least one.

    Returns:
        (uint8 N×3×H×W padded with the mean color, uint8 N×H×W padded with 255), H and W the
        largest height and width.
    """
    if not samples:
        raise ValueError("cannot make a batch of no samples")
    height = max(labels.shape[0] for _, labels in samples)
    width = max(labels.shape[1] for _, labels in samples)
    images = np.empty((len(samples), 3, height, width), dtype=np.uint8)
    images[:] = np.array(MEAN_COLOR, dtype=np.uint8)[:, None, None]
    targets = np.full((len(samples), height, width), IGNORE_INDEX, dtype=np.uint8)
    for index, (image, labels) in enumerate(samples):
        images[index, :, : image.shape[1], : image.shape[2]] = image.numpy()
        targets[index, : labels.shape[0], : labels.shape[1]] = labels.numpy()
    return torch.from_numpy(images), torch.from_numpy(targets)
