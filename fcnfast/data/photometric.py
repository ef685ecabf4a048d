"""Color, light, blur and noise: the picture changes, its labels stay.

Lookup tables and color matrices on 8-bit pixels do the work, in a fraction of a millisecond each.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
from PIL import Image, ImageFilter, ImageOps

Pair = tuple[Image.Image, np.ndarray]

_LUMA = np.array([0.299, 0.587, 0.114])
# RGB to luma and two chroma axes (NTSC's YIQ): hue rotates the chroma plane, luma stays.
_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_INVERSE = np.linalg.inv(_YIQ)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw from low..high, uniformly on a logarithmic axis."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


@dataclass(frozen=True)
class Photometric:
    """A change of the picture alone, with probability `p`.

    Called as ``transform(image, labels, rng)`` with an RGB picture; returns (image, labels). A
    fourth channel stays as it is. Subclasses return the changed picture from `_change`.
    """

    _: KW_ONLY
    p: float = 0.5

    def __call__(self, image: Image.Image, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        """Return the pair, its picture changed or not."""
        if rng.random() >= self.p:
            return image, labels
        if image.mode == "RGB":
            return self._change(image, rng), labels
        *color, more = image.split()
        changed = self._change(Image.merge("RGB", color), rng)
        return Image.merge("RGBX", (*changed.split(), more)), labels

    def _change(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        raise NotImplementedError


@dataclass(frozen=True)
class ColorJitter(Photometric):
    """Change brightness, contrast, saturation and hue, each by a random amount.

    Brightness, contrast and saturation are multiplied by a factor from 1 - x to 1 + x (not below
    0); contrast is about the picture's mean gray. Hue rotates by up to `hue` of the full circle at
    constant luma. All four are one linear map of the colors, clipped once at the end.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.05
    p: float = field(default=0.8, kw_only=True)

    def _change(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        spreads = self.brightness, self.contrast, self.saturation
        brightness, contrast, saturation = (
            rng.uniform(max(0.0, 1.0 - spread), 1.0 + spread) for spread in spreads
        )
        angle = rng.uniform(-self.hue, self.hue) * 2 * math.pi
        cos, sin = math.cos(angle), math.sin(angle)
        turn = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
        color = saturation * np.eye(3) + (1.0 - saturation) * _LUMA  # each row: towards the luma
        linear = brightness * contrast * (_YIQ_INVERSE @ turn @ _YIQ @ color)
        offset = (1.0 - contrast) * brightness * _mean_gray(image)
        # PIL takes the three rows, each followed by its offset; it rounds and clips.
        return image.convert("RGB", tuple(np.insert(linear, 3, offset, axis=1).ravel().tolist()))


@dataclass(frozen=True)
class RandomGamma(Photometric):
    """Random exposure and tone curve: v becomes 255·(v/255)^g, g up to `gamma` or its inverse."""

    gamma: float = 1.6

    def _change(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return _power(image, log_uniform(rng, 1.0 / self.gamma, self.gamma))


def _power(image: Image.Image, exponent: float) -> Image.Image:
    """Map every value v to 255·(v/255)^exponent."""
    return _curves(image, [255.0 * (np.arange(256) / 255.0) ** exponent] * 3)


def _mean_gray(image: Image.Image) -> float:
    """Return the mean luma in 0..255."""
    return float(np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0] @ _LUMA)


@dataclass(frozen=True)
class RandomExposure(Photometric):
    """Re-expose: the tone curve that brings the mean gray to a random value between `means`.

    `RandomGamma` varies around the camera's exposure; this one discards it, so that a data set of
    dark pictures also covers bright ones. The curve's exponent stays in 1/3..3.
    """

    means: tuple[float, float] = (50.0, 160.0)
    p: float = field(default=0.25, kw_only=True)

    def _change(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        wanted = rng.uniform(*self.means)
        mean = min(max(_mean_gray(image), 1.0), 250.0)
        exponent = math.log(wanted / 255.0) / math.log(mean / 255.0)
        return _power(image, min(max(exponent, 1.0 / 3.0), 3.0))


@dataclass(frozen=True)
class RandomAutoContrast(Photometric):
    """Stretch the grays to the full range with probability `p`, as many cameras do.

    Args:
        cutoff: percent of the darkest and of the brightest pixels that may be clipped.
    """

    cutoff: float = 1.0
    p: float = field(default=0.25, kw_only=True)

    def _change(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return ImageOps.autocontrast(image, cutoff=self.cutoff, preserve_tone=True)


@dataclass(frozen=True)
class RandomWhiteBalance(Photometric):
    """Random color of light: each channel is multiplied by up to `gain` or its inverse."""

    gain: float = 1.2

    def _change(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        levels = np.arange(256.0)
        gains = [log_uniform(rng, 1.0 / self.gain, self.gain) for _ in range(3)]
        return _curves(image, [gain * levels for gain in gains])


def _curves(image: Image.Image, curves: Sequence[np.ndarray]) -> Image.Image:
    """Map every channel's values through its own curve of 256 values, rounded and clipped."""
    table = np.clip(np.rint(np.concatenate(curves)), 0, 255).astype(int)
    return image.point(table.tolist())


@dataclass(frozen=True)
class RandomGrayscale(Photometric):
    """Drop all color with probability `p`."""

    p: float = field(default=0.05, kw_only=True)

    def _change(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return image.convert("L").convert("RGB")


@dataclass(frozen=True)
class RandomLighting(Photometric):
    """Uneven light, as from shadows and sun haze: two exposures mixed by a smooth random field.

    The darker exposure is multiplied by `shade` to 1; the field is an upsampled random grid.
    """

    shade: float = 0.4
    p: float = field(default=0.3, kw_only=True)

    def _change(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        darker = _curves(image, [np.arange(256.0) * rng.uniform(self.shade, 1.0)] * 3)
        rows, columns = (int(count) for count in rng.integers(2, 6, size=2))
        grid = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
        shading = grid.resize(image.size, Image.Resampling.BICUBIC)
        return Image.composite(image, darker, shading)


@dataclass(frozen=True)
class RandomBlur(Photometric):
    """Soften or sharpen, about as often each: box-blur, or push away from the blurred picture.

    Args:
        radius: largest radius of the blur in pixels.
        sharpen: largest weight of the difference to the blurred picture that is added.
    """

    radius: float = 1.5
    sharpen: float = 1.0
    p: float = field(default=0.3, kw_only=True)

    def _change(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if rng.random() < 0.5:
            radius = rng.uniform(0.0, self.radius)
            return image.filter(ImageFilter.BoxBlur(radius))
        soft = image.filter(ImageFilter.BoxBlur(1.0))
        return Image.blend(soft, image, 1.0 + rng.uniform(0.0, self.sharpen))


@dataclass(frozen=True)
class RandomNoise(Photometric):
    """Sensor noise of a random strength up to a standard deviation of `sigma` (of 255)."""

    sigma: float = 12.0
    p: float = field(default=0.3, kw_only=True)

    def _change(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        # The difference of two uniform bytes is cheap, symmetric, and has a deviation of
        # 256/sqrt(6); times gain/256 in int16 it cannot overflow below sigma = 50.
        gain = round(rng.uniform(0.0, min(self.sigma, 50.0)) * math.sqrt(6.0))
        pixels = np.asarray(image).astype(np.int16)
        draws = rng.integers(0, 256, size=(2, *pixels.shape), dtype=np.uint8)
        noise = np.subtract(draws[0], draws[1], dtype=np.int16)
        noise *= np.int16(gain)
        noise += 128  # rounds the shift to the nearest
        noise >>= 8
        pixels += noise
        return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


@dataclass(frozen=True)
class RandomJPEG(Photometric):
    """JPEG artifacts of a random quality between `quality`'s two numbers, with probability `p`."""

    quality: tuple[int, int] = (25, 90)
    p: float = field(default=0.2, kw_only=True)

    def _change(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        buffer = io.BytesIO()
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        image.save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as decoded:
            return decoded.convert("RGB")
