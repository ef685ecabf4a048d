"""What the drawn street scenes are painted with: a camera, a light, fractal noise and a canvas.

Street coordinates are in metres: ``s`` to the right of the road's middle, ``y`` up from the road,
``z`` ahead of the camera along the road. A bend of the road only shifts ``s`` with ``z``, so that
the things along a street are placed as if it were straight.
Picture coordinates are continuous: pixel (row i, column j) covers [j, j + 1) x [i, i + 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

SUPERSAMPLE = 3  # odd, so that the middle sample of a pixel lies at its centre
NEAR = 0.4  # metres; nothing closer to the camera is drawn

Point = tuple[float, float]
Point3 = tuple[float, float, float]
Colour = tuple[int, int, int]


def rgb(red: float, green: float, blue: float) -> Colour:
    """A colour clipped to the 8-bit range."""
    return (
        min(255, max(0, int(red))),
        min(255, max(0, int(green))),
        min(255, max(0, int(blue))),
    )


def mix(a: Sequence[float], b: Sequence[float], share: float) -> Colour:
    """``a`` with ``share`` of ``b`` in it."""
    keep = 1 - share
    return rgb(a[0] * keep + b[0] * share, a[1] * keep + b[1] * share, a[2] * keep + b[2] * share)


def scale(colour: Sequence[float], factor: float) -> Colour:
    """A colour made brighter or darker."""
    return rgb(colour[0] * factor, colour[1] * factor, colour[2] * factor)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above the road, looking along it; ``focal``, ``cx``, ``cy`` in pixels."""

    width: int
    height: int
    focal: float
    cx: float
    cy: float
    eye: float  # metres above the road
    lateral: float  # the camera's s
    heading: float  # slope of the road's direction against the camera's
    bend: float  # curvature of the road, 1/m

    def shift(self, z: float) -> float:
        """How far right of the optical axis the point s = 0 lies at distance z, in metres."""
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


@dataclass(frozen=True)
class Light:
    """Sun, sky light and haze; the sun's direction points towards it in (right, up, ahead)."""

    sun: Point3
    strength: float
    ambient: float
    haze: Colour
    visibility: float  # metres after which 63 % of what is seen is haze

    def facing(self, normal: Point3) -> float:
        """Cosine between a surface's normal and the sun, 0 when it faces away."""
        n, d = normal, self.sun
        return max(0.0, n[0] * d[0] + n[1] * d[1] + n[2] * d[2])

    def level(self, normal: Point3, lit: float = 1.0) -> float:
        """Brightness of a white surface of this orientation."""
        sky = self.ambient * (0.78 + 0.22 * normal[1])
        return sky + self.strength * lit * self.facing(normal)

    def air(self, colour: Sequence[float], z: float) -> Colour:
        """A colour seen through ``z`` metres of haze."""
        return mix(colour, self.haze, 1 - math.exp(-max(z, 0.0) / self.visibility))

    def shade(self, colour: Sequence[float], normal: Point3, z: float, lit: float = 1.0) -> Colour:
        """The colour of a lit surface seen from ``z`` metres."""
        return self.air(scale(colour, self.level(normal, lit)), z)


class Noise:
    """One tile of fractal and one of white noise, both periodic with variance 1."""

    size = 512

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.grain = rng.standard_normal((self.size, self.size), dtype=np.float32)
        spectrum = np.fft.rfft2(self.grain)
        fy = np.fft.fftfreq(self.size)[:, None]
        fx = np.fft.rfftfreq(self.size)[None, :]
        power = fy * fy + fx * fx
        power[0, 0] = 1.0
        spectrum *= power**-0.5
        spectrum[0, 0] = 0.0
        tile = np.fft.irfft2(spectrum, s=(self.size, self.size)).astype(np.float32)
        self.fractal = tile / float(tile.std())
        speckle = self.grain + np.roll(self.grain, 1, 0)
        speckle = speckle + np.roll(speckle, 1, 1)
        self.speckle = speckle / float(speckle.std())

    def crop(self, shape: tuple[int, int], offset: int, kind: str = "fractal") -> np.ndarray:
        """A float32 window of ``shape`` at a place given by ``offset``.

        ``kind`` is fractal (all scales), speckle (leaves, two cells wide) or grain (white).
        """
        tile: np.ndarray = getattr(self, kind)
        rows = (np.arange(shape[0]) + offset * 37) % self.size
        columns = (np.arange(shape[1]) + offset * 101) % self.size
        return tile[rows[:, None], columns[None, :]]

    def smooth(self, shape: tuple[int, int], cells: tuple[int, int], offset: int) -> np.ndarray:
        """A small window of fractal noise stretched to ``shape``: clouds, stains, patches."""
        window = Image.fromarray(self.crop(cells, offset))
        return np.asarray(window.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


class Canvas:
    """A picture and its label map, painted together from back to front at three times the size."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        size = (width * SUPERSAMPLE, height * SUPERSAMPLE)
        self.image = Image.new("RGB", size)
        self.labels = Image.new("L", size, SKY)
        self._draw = ImageDraw.Draw(self.image)
        self._mark = ImageDraw.Draw(self.labels)

    def fill(self, points: Sequence[Point], colour: Colour, label: int | None = None) -> None:
        """Fill a polygon; without a label it is a detail of what lies under it."""
        if len(points) < 3:
            return
        k = SUPERSAMPLE
        scaled = [(x * k - 0.5, y * k - 0.5) for x, y in points]
        self._draw.polygon(scaled, fill=colour)
        if label is not None:
            self._mark.polygon(scaled, fill=label)

    def ellipse(
        self, centre: Point, rx: float, ry: float, colour: Colour, label: int | None = None
    ) -> None:
        """Fill an upright ellipse given by its centre and half axes in pixels."""
        k = SUPERSAMPLE
        x, y = centre
        box = (
            (x - rx) * k - 0.5,
            (y - ry) * k - 0.5,
            (x + rx) * k - 0.5,
            (y + ry) * k - 0.5,
        )
        self._draw.ellipse(box, fill=colour)
        if label is not None:
            self._mark.ellipse(box, fill=label)

    def stroke(
        self, points: Sequence[Point], width: float, colour: Colour, label: int | None = None
    ) -> None:
        """Draw a line ``width`` pixels wide (at least a third of one)."""
        k = SUPERSAMPLE
        scaled = [(x * k - 0.5, y * k - 0.5) for x, y in points]
        thick = max(1, round(width * k))
        self._draw.line(scaled, fill=colour, width=thick, joint="curve")
        if label is not None:
            self._mark.line(scaled, fill=label, width=thick, joint="curve")

    def background(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        """Lay down a finished picture (H x W x 3 and H x W uint8) to paint on."""
        size = self.image.size
        nearest = Image.Resampling.NEAREST
        self.image.paste(Image.fromarray(pixels).resize(size, nearest))
        self.labels.paste(Image.fromarray(labels).resize(size, nearest))

    def patch(
        self,
        pixels: np.ndarray,
        alpha: np.ndarray,
        corner: Point,
        span: Point,
        label: int,
        dense: np.ndarray | None = None,
    ) -> None:
        """Paste soft-edged pixels (h x w x 3 uint8) over a box and label what is opaque.

        ``corner`` is the box's top left and ``span`` its (width, height) in picture pixels.
        Labelled is where ``alpha`` (h x w uint8), or ``dense`` if given, is 128 or more.
        """
        k = SUPERSAMPLE
        x, y = round(corner[0] * k), round(corner[1] * k)
        size = (max(1, round(span[0] * k)), max(1, round(span[1] * k)))
        if x >= self.image.width or y >= self.image.height or x + size[0] < 0 or y + size[1] < 0:
            return
        bilinear = Image.Resampling.BILINEAR
        mask = Image.fromarray(alpha).resize(size, bilinear)
        self.image.paste(Image.fromarray(pixels).resize(size, bilinear), (x, y), mask)
        if dense is not None:
            mask = Image.fromarray(dense).resize(size, bilinear)
        hard = mask.point([0] * 128 + [255] * 128)
        self.labels.paste(label, (x, y, x + size[0], y + size[1]), hard)

    def quad(self, corners: Sequence[Point], texture: Image.Image, label: int) -> None:
        """Map a texture (RGB, or RGBA to see through) onto the quadrilateral of ``corners``.

        The corners are the picture points of the texture's top left, top right, bottom right and
        bottom left. The label covers the whole quadrilateral, holes of the texture included.
        """
        k = SUPERSAMPLE
        scaled = [(x * k - 0.5, y * k - 0.5) for x, y in corners]
        x0 = max(0, math.floor(min(p[0] for p in scaled)))
        y0 = max(0, math.floor(min(p[1] for p in scaled)))
        x1 = min(self.image.width, math.ceil(max(p[0] for p in scaled)) + 1)
        y1 = min(self.image.height, math.ceil(max(p[1] for p in scaled)) + 1)
        if x1 <= x0 or y1 <= y0:
            return
        local = [(x - x0, y - y0) for x, y in scaled]
        w, h = texture.size
        back = _homography(local, [(0, 0), (w, 0), (w, h), (0, h)])
        if back is None:
            return
        size = (x1 - x0, y1 - y0)
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon(local, fill=255)
        warped = texture.transform(size, Image.Transform.PERSPECTIVE, back)
        self.labels.paste(label, (x0, y0, x1, y1), mask)
        if texture.mode == "RGBA":
            mask = Image.composite(warped.getchannel("A"), Image.new("L", size), mask)
        self.image.paste(warped.convert("RGB"), (x0, y0), mask)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture (H x W x 3 uint8) and the labels (H x W uint8) at their own size."""
        middle = SUPERSAMPLE // 2
        labels = np.asarray(self.labels)[middle::SUPERSAMPLE, middle::SUPERSAMPLE]
        return np.asarray(self.image.reduce(SUPERSAMPLE)), np.ascontiguousarray(labels)


def _homography(source: Sequence[Point], target: Sequence[Point]) -> tuple[float, ...] | None:
    """The eight numbers with which Pillow maps ``source`` points to ``target`` points."""
    rows, right = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
        right += [u, v]
    try:
        return tuple(np.linalg.solve(np.array(rows, float), np.array(right, float)).tolist())
    except np.linalg.LinAlgError:  # a quadrilateral seen edge-on
        return None
