"""What a small digital camera makes of a drawn scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter


@dataclass(frozen=True)
class Film:
    """Settings of one exposure."""

    exposure: float  # 1 leaves brightness as drawn
    contrast: float  # slope of the bright part, below 2
    warmth: float  # red against blue
    color: float  # 0 is gray, 1 leaves colors as drawn
    glare: float  # share of bright areas' light that spreads
    noise: float  # standard deviation in 8-bit steps
    sharpen: float  # 0 is soft, 1 leaves bright rims at edges
    vignette: float


def photograph(pixels: np.ndarray, film: Film, seed: int) -> Image.Image:
    """Expose a drawn picture (H x W x 3 uint8): an RGB image of the same size."""
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    small = image.resize((max(1, width // 8), max(1, height // 8)), Image.Resampling.BOX)
    bloom = small.filter(ImageFilter.BoxBlur(max(1.0, small.width / 24)))
    spread = np.asarray(bloom.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    light = np.asarray(image.filter(_lens(film.sharpen)), np.float32)
    light *= light
    light += film.glare * (spread * spread)
    light *= 1 / 255**2
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    fall = film.exposure * (1 - film.vignette / 2 * (x * x + y * y))
    light *= fall * np.array([film.warmth, 1.0, 2 - film.warmth], np.float32)
    np.sqrt(light, out=light)
    dark = np.minimum(light, 0.4)  # below this, contrast bends towards black
    light -= dark
    light *= film.contrast
    light += dark * ((2 - film.contrast) + (film.contrast - 1) / 0.4 * dark)
    gray = light @ np.array([0.3, 0.59, 0.11], np.float32)
    light *= film.color
    light += (1 - film.color) * gray[..., None]
    return _develop(light, film.noise, seed)


def _lens(sharpen: float) -> ImageFilter.Kernel:
    """A small blur whose overshoot grows with ``sharpen``, as compact cameras' pictures have."""
    near, far = 1.0 - 0.9 * sharpen, -0.5 * sharpen
    ring = [far, far, far, far, far]
    middle = [far, near, 2 * near, near, far]
    core = [far, 2 * near, 9.0, 2 * near, far]
    kernel = ring + middle + core + middle + ring
    return ImageFilter.Kernel((5, 5), kernel, sum(kernel))


def _develop(light: np.ndarray, noise: float, seed: int) -> Image.Image:
    """Bend highlights towards white, add the sensor's noise, round to 8 bits."""
    height, width = light.shape[:2]
    rng = np.random.default_rng([seed, 3])
    knee = 0.84
    over = np.maximum(light - knee, 0)
    np.minimum(light, knee, out=light)
    over *= -1.6 / (1 - knee)
    np.exp(over, out=over)
    light += (1 - knee) * (1 - over)
    light *= 255
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    color = rng.standard_normal(((height + 1) // 2, (width + 1) // 2, 3), dtype=np.float32)
    color *= 0.5 * noise
    light += 0.8 * noise * grain + 0.5
    light += color.repeat(2, 0).repeat(2, 1)[:height, :width]
    return Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
