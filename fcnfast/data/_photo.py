"""What a small digital camera makes of a drawn scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter


@dataclass(frozen=True)
class Film:
    """Settings of one exposure."""

    exposure: float  # 1 leaves brightness as drawn
    contrast: float
    warmth: float  # red against blue
    glare: float  # share of bright areas' light that spreads
    noise: float  # standard deviation in 8-bit steps
    sharpen: float
    vignette: float


def photograph(pixels: np.ndarray, film: Film, seed: int) -> Image.Image:
    """Expose a drawn picture (H x W x 3 uint8): an RGB image of the same size."""
    height, width = pixels.shape[:2]
    rng = np.random.default_rng([seed, 3])
    image = Image.fromarray(pixels)
    radius = 0.0011 * (height * width) ** 0.5
    image = image.filter(ImageFilter.GaussianBlur(radius))
    small = image.resize((max(1, width // 8), max(1, height // 8)), Image.Resampling.BOX)
    bloom = small.filter(ImageFilter.GaussianBlur(max(1.0, small.width / 30)))
    bloom = bloom.resize((width, height), Image.Resampling.BILINEAR)
    light = np.asarray(image, np.float32) / 255
    light = light * light
    light += film.glare * np.square(np.asarray(bloom, np.float32) / 255)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    fall = film.exposure * (1 - film.vignette * (x * x + y * y) * 0.5)
    light *= fall[..., None]
    light *= np.array([film.warmth, 1.0, 2 - film.warmth], np.float32)
    out = np.sqrt(light)
    out = (out - 0.4) * film.contrast + 0.4
    knee = 0.82  # brighter than this, the curve bends towards white
    over = np.maximum(out - knee, 0)
    out = np.minimum(out, knee) + (1 - knee) * (1 - np.exp(-over * 1.6 / (1 - knee)))
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    colour = rng.standard_normal(((height + 1) // 2, (width + 1) // 2, 3), dtype=np.float32)
    colour = colour.repeat(2, 0).repeat(2, 1)[:height, :width]
    out = out * 255 + film.noise * (0.8 * grain + 0.5 * colour)
    image = Image.fromarray(np.clip(out + 0.5, 0, 255).astype(np.uint8))
    if film.sharpen > 0:
        image = image.filter(ImageFilter.UnsharpMask(radius * 2.2, int(100 * film.sharpen), 2))
    return image
