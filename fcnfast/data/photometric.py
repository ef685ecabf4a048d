"""Color, light, blur and noise: the picture changes, its labels stay.

Lookup tables and color matrices on 8-bit pixels do the work, in a fraction of a millisecond each.
Every function takes an RGB picture and a generator, and returns a new picture of the same size.
"""

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter, ImageOps

Change = Callable[[Image.Image, np.random.Generator], Image.Image]

_LUMA = np.array([0.299, 0.587, 0.114])
# RGB to luma and two chroma axes (NTSC's YIQ): hue rotates the chroma plane, luma stays.
_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_INVERSE = np.linalg.inv(_YIQ)
_RAMP = np.arange(256) / 255.0


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw from low..high, uniformly on a logarithmic axis."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _mean_gray(image: Image.Image) -> float:
    return float(np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0] @ _LUMA)


def _curves(image: Image.Image, *curves: np.ndarray) -> Image.Image:
    """Map the channels through a curve each, or all through one: 256 values, rounded, clipped."""
    table = np.clip(np.rint(np.concatenate(curves)), 0, 255).astype(int).tolist()
    return image.point(table if len(curves) == 3 else table * 3)


def color_jitter(
    image: Image.Image, rng: np.random.Generator, amounts: tuple[float, ...]
) -> Image.Image:
    """Change brightness, contrast, saturation and hue by up to these four amounts.

    The first three are multiplied by a factor from 1 - x to 1 + x (not below 0); contrast is about
    the picture's mean gray. Hue rotates by up to x of the full circle at constant luma. All four
    are one linear map of the colors, clipped once at the end.
    """
    *spreads, hue = amounts
    brightness, contrast, saturation = (
        rng.uniform(max(0.0, 1.0 - spread), 1.0 + spread) for spread in spreads
    )
    angle = rng.uniform(-hue, hue) * 2 * math.pi
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    color = saturation * np.eye(3) + (1.0 - saturation) * _LUMA  # each row: towards the luma
    linear = brightness * contrast * (_YIQ_INVERSE @ turn @ _YIQ @ color)
    offset = (1.0 - contrast) * brightness * _mean_gray(image)
    # PIL takes the three rows, each followed by its offset; it rounds and clips.
    return image.convert("RGB", tuple(np.insert(linear, 3, offset, axis=1).ravel().tolist()))


def random_gamma(image: Image.Image, rng: np.random.Generator, gamma: float) -> Image.Image:
    """Random tone curve: v becomes 255·(v/255)^g, g up to `gamma` or its inverse."""
    return _curves(image, 255.0 * _RAMP ** log_uniform(rng, 1.0 / gamma, gamma))


def random_exposure(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Re-expose: the tone curve that brings the mean gray to a random value from 50 to 160.

    `random_gamma` varies around the camera's exposure; this one discards it, so that a data set of
    dark pictures also covers bright ones. The curve's exponent stays in 1/3..3.
    """
    wanted = rng.uniform(50.0, 160.0)
    mean = min(max(_mean_gray(image), 1.0), 250.0)
    exponent = math.log(wanted / 255.0) / math.log(mean / 255.0)
    return _curves(image, 255.0 * _RAMP ** min(max(exponent, 1.0 / 3.0), 3.0))


def auto_contrast(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Stretch the grays to the full range, clipping 1 % at either end, as many cameras do."""
    return ImageOps.autocontrast(image, cutoff=1.0, preserve_tone=True)


def random_white_balance(image: Image.Image, rng: np.random.Generator, gain: float) -> Image.Image:
    """Random color of light: each channel is multiplied by up to `gain` or its inverse."""
    gains = [log_uniform(rng, 1.0 / gain, gain) for _ in range(3)]
    return _curves(image, *(factor * np.arange(256.0) for factor in gains))


def grayscale(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Drop all color."""
    return image.convert("L").convert("RGB")


def random_lighting(image: Image.Image, rng: np.random.Generator, shade: float) -> Image.Image:
    """Uneven light, as from shadows and sun haze: two exposures mixed by a smooth random field.

    The darker exposure is multiplied by `shade` to 1; the field is an upsampled random grid.
    """
    darker = _curves(image, np.arange(256.0) * rng.uniform(shade, 1.0))
    rows, columns = (int(count) for count in rng.integers(2, 6, size=2))
    grid = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
    return Image.composite(image, darker, grid.resize(image.size, Image.Resampling.BICUBIC))


def random_blur(
    image: Image.Image, rng: np.random.Generator, radius: float, sharpen: float
) -> Image.Image:
    """Soften or sharpen, about as often each.

    Box-blur by up to `radius` pixels, or add up to `sharpen` times the difference to the blurred
    picture.
    """
    if rng.random() < 0.5:
        return image.filter(ImageFilter.BoxBlur(rng.uniform(0.0, radius)))
    soft = image.filter(ImageFilter.BoxBlur(1.0))
    return Image.blend(soft, image, 1.0 + rng.uniform(0.0, sharpen))


def random_noise(image: Image.Image, rng: np.random.Generator, sigma: float) -> Image.Image:
    """Sensor noise of a random strength up to a standard deviation of `sigma` (of 255)."""
    # The difference of two uniform bytes is cheap, symmetric, and has a deviation of 256/sqrt(6);
    # times gain/256 in int16 it cannot overflow below sigma = 50.
    gain = round(rng.uniform(0.0, min(sigma, 50.0)) * math.sqrt(6.0))
    pixels = np.asarray(image).astype(np.int16)
    draws = rng.integers(0, 256, size=(2, *pixels.shape), dtype=np.uint8)
    noise = np.subtract(draws[0], draws[1], dtype=np.int16)
    noise *= np.int16(gain)
    noise += 128  # rounds the shift to the nearest
    noise >>= 8
    pixels += noise
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def random_jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """JPEG artifacts of a random quality from 25 to 90."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(25, 91)))
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")
