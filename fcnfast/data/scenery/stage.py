"""What the drawn street scenes are seen with: a camera, a light and noise.

Street coordinates are in meters: ``s`` to the right of the road's middle, ``y`` up from the road,
``z`` ahead of the camera along the road. A bend of the road only shifts ``s`` with ``z``, so that
the things along a street are placed as if it were straight.
Picture coordinates are continuous: pixel (row i, column j) covers [j, j + 1) x [i, i + 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .canvas import Canvas, Color, Point

NEAR = 0.4  # meters; nothing closer to the camera is drawn

Point3 = tuple[float, float, float]


def rgb(red: float, green: float, blue: float) -> Color:
    """A color clipped to the 8-bit range."""
    return (
        min(255, max(0, int(red))),
        min(255, max(0, int(green))),
        min(255, max(0, int(blue))),
    )


def mix(a: Sequence[float], b: Sequence[float], share: float) -> Color:
    """``a`` with ``share`` of ``b`` in it."""
    keep = 1 - share
    return rgb(a[0] * keep + b[0] * share, a[1] * keep + b[1] * share, a[2] * keep + b[2] * share)


def scale(color: Sequence[float], factor: float) -> Color:
    """A color made brighter or darker."""
    return rgb(color[0] * factor, color[1] * factor, color[2] * factor)


def turning(points: Sequence[Point]) -> float:
    """Twice the area of a polygon in the picture, positive when listed clockwise."""
    total = 0.0
    px, py = points[-1] if points else (0.0, 0.0)
    for x, y in points:
        total += px * y - x * py
        px, py = x, y
    return total


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above the road, looking along it; ``focal``, ``cx``, ``cy`` in pixels."""

    width: int
    height: int
    focal: float
    cx: float
    cy: float
    eye: float  # meters above the road
    lateral: float  # the camera's s
    heading: float  # slope of the road's direction against the camera's
    bend: float  # curvature of the road, 1/m

    def shift(self, z: float) -> float:
        """How far right of the optical axis the point s = 0 lies at distance z, in meters."""
        return self.heading * z + 0.5 * self.bend * z * z - self.lateral

    def at(self, s: float, y: float, z: float) -> Point:
        """The picture point of a street point in front of the camera."""
        k = self.focal / max(z, 1e-3)
        return self.cx + (s + self.shift(z)) * k, self.cy + (self.eye - y) * k

    def project(self, points: Sequence[Point3]) -> list[Point]:
        """Picture points of a polygon, cut at the near plane; empty if it lies behind."""
        if min(p[2] for p in points) >= NEAR:
            return [self.at(*p) for p in points]
        kept: list[Point3] = []
        for i, b in enumerate(points):
            a = points[i - 1]
            if (a[2] < NEAR) != (b[2] < NEAR):
                t = (NEAR - a[2]) / (b[2] - a[2])
                kept.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), NEAR))
            if b[2] >= NEAR:
                kept.append(b)
        return [self.at(*p) for p in kept]

    def misses(self, s: float, z: float, half: float) -> bool:
        """Whether a thing ``half`` meters to either side of (s, z) lies beside the picture."""
        k = self.focal / max(z, NEAR)
        x = self.cx + (s + self.shift(z)) * k
        return x + half * k < 0 or x - half * k > self.width


@dataclass(frozen=True)
class Light:
    """Sun, sky light and haze; the sun's direction points towards it in (right, up, ahead)."""

    sun: Point3
    strength: float
    ambient: float
    haze: Color
    visibility: float  # meters after which 63 % of what is seen is haze

    def level(self, normal: Point3, lit: float = 1.0) -> float:
        """Brightness of a white surface of this orientation, ``lit`` of it outside shadows."""
        n, d = normal, self.sun
        facing = max(0.0, n[0] * d[0] + n[1] * d[1] + n[2] * d[2])
        return self.ambient * (0.78 + 0.22 * n[1]) + self.strength * lit * facing

    def veil(self, z: float) -> float:
        """Share of haze in what is seen from ``z`` meters."""
        return 1 - math.exp(-max(z, 0.0) / self.visibility)

    def air(self, color: Sequence[float], z: float) -> Color:
        """A color seen through ``z`` meters of haze."""
        return mix(color, self.haze, self.veil(z))

    def shade(self, color: Sequence[float], normal: Point3, z: float, lit: float = 1.0) -> Color:
        """The color of a lit surface seen from ``z`` meters."""
        return self.air(scale(color, self.level(normal, lit)), z)

    def cast(self, height: float) -> tuple[float, float]:
        """Where the shadow of a point ``height`` meters up falls, as a step in (s, z)."""
        flat = math.hypot(self.sun[0], self.sun[2]) or 1.0
        reach = height / max(self.sun[1] / flat, 0.2) / flat
        return -self.sun[0] * reach, -self.sun[2] * reach


TILE = 512


@lru_cache(maxsize=1)
def _tiles() -> dict[str, np.ndarray]:
    """Periodic noise of variance 1, laid out twice in each direction: the same for every scene."""
    rng = np.random.default_rng(2718)
    grain = rng.standard_normal((TILE, TILE), dtype=np.float32)
    fy = np.fft.fftfreq(TILE)[:, None]
    fx = np.fft.rfftfreq(TILE)[None, :]
    power = fy * fy + fx * fx
    power[0, 0] = np.inf  # no mean
    fractal = np.fft.irfft2(np.fft.rfft2(grain) / np.sqrt(power), s=grain.shape)
    speckle = grain + np.roll(grain, 1, 0)
    speckle = speckle + np.roll(speckle, 1, 1)
    tiles: dict[str, np.ndarray] = {"grain": grain, "fractal": fractal, "speckle": speckle}
    return {k: np.tile((t / t.std()).astype(np.float32), (2, 2)) for k, t in tiles.items()}


class Noise:
    """Windows into periodic noise of three kinds, at places that depend on the scene's seed.

    ``fractal`` holds all scales, ``speckle`` is two cells wide (leaves), ``grain`` is white.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.tiles = _tiles()

    def crop(self, shape: tuple[int, int], key: int, kind: str = "fractal") -> np.ndarray:
        """A float32 window of ``shape`` chosen by ``key``; read only."""
        row = (key * 37 + self.seed * 131) % TILE
        column = (key * 101 + self.seed * 57) % TILE
        tile = self.tiles[kind]
        if max(shape) <= TILE:
            return tile[row : row + shape[0], column : column + shape[1]]
        rows = (np.arange(shape[0]) + row) % TILE
        columns = (np.arange(shape[1]) + column) % TILE
        return tile[rows[:, None], columns[None, :]]

    def smooth(self, shape: tuple[int, int], cells: tuple[int, int], key: int) -> np.ndarray:
        """A small window of fractal noise stretched to ``shape``: clouds, stains."""
        window = Image.fromarray(np.ascontiguousarray(self.crop(cells, key)))
        return np.asarray(window.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Stage:
    """What every brush needs."""

    canvas: Canvas
    camera: Camera
    light: Light
    noise: Noise

    def hazed(self, image: Image.Image, z: float) -> Image.Image:
        """A texture as seen from ``z`` meters."""
        veil = Image.new("RGB", image.size, self.light.haze)
        return Image.blend(image, veil, self.light.veil(z))
