"""The canvas of the drawn street scenes: a picture and its labels, painted together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

SUPERSAMPLE = 3  # odd, so that the middle sample of a pixel lies at its center

Point = tuple[float, float]
Color = tuple[int, int, int]


class Canvas:
    """A picture and its label map at three times their size, painted from back to front.

    Coordinates are those of the picture's own pixels.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        """Start from a background: H x W x 3 and H x W uint8."""
        self.height, self.width = labels.shape
        size = (self.width * SUPERSAMPLE, self.height * SUPERSAMPLE)
        self.image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
        self.labels = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
        self._draw = ImageDraw.Draw(self.image)
        self._mark = ImageDraw.Draw(self.labels)

    def fill(self, points: Sequence[Point], color: Color, label: int | None = None) -> None:
        """Fill a polygon; without a label it is a detail of what lies under it."""
        if len(points) < 3:
            return
        k = SUPERSAMPLE
        scaled = [(x * k - 0.5, y * k - 0.5) for x, y in points]
        self._draw.polygon(scaled, fill=color)
        if label is not None:
            self._mark.polygon(scaled, fill=label)

    def ellipse(
        self, center: Point, rx: float, ry: float, color: Color, label: int | None = None
    ) -> None:
        """Fill an upright ellipse given by its center and half axes in pixels."""
        k = SUPERSAMPLE
        x, y = center[0] * k - 0.5, center[1] * k - 0.5
        box = (x - rx * k, y - ry * k, x + rx * k, y + ry * k)
        self._draw.ellipse(box, fill=color)
        if label is not None:
            self._mark.ellipse(box, fill=label)

    def stroke(
        self, points: Sequence[Point], width: float, color: Color, label: int | None = None
    ) -> None:
        """Draw a line ``width`` pixels wide (at least a third of one)."""
        if len(points) < 2:
            return
        k = SUPERSAMPLE
        scaled = [(x * k - 0.5, y * k - 0.5) for x, y in points]
        thick = max(1, round(width * k))
        joint = "curve" if len(points) > 2 and thick > 4 else None
        self._draw.line(scaled, fill=color, width=thick, joint=joint)
        if label is not None:
            self._mark.line(scaled, fill=label, width=thick, joint=joint)

    def patch(
        self,
        pixels: np.ndarray | Color,
        alpha: np.ndarray,
        corner: Point,
        span: Point,
        label: int,
        dense: np.ndarray | None = None,
    ) -> None:
        """Paste soft-edged pixels (h x w x 3 uint8, or one color) over a box and label them.

        ``corner`` is the box's top left and ``span`` its (width, height) in picture pixels.
        Labeled is where ``alpha`` (h x w uint8), or ``dense`` if given, is 128 or more.
        """
        k = SUPERSAMPLE
        x, y = corner[0] * k, corner[1] * k
        left, top = max(0, round(x)), max(0, round(y))
        right = min(self.image.width, round(x + span[0] * k))
        bottom = min(self.image.height, round(y + span[1] * k))
        if right <= left or bottom <= top:
            return
        h, w = alpha.shape
        fx, fy = w / (span[0] * k), h / (span[1] * k)  # from canvas to patch
        box = (
            max(0.0, (left - x) * fx), max(0.0, (top - y) * fy),
            min(float(w), (right - x) * fx), min(float(h), (bottom - y) * fy),
        )  # fmt: skip

        def cut(array: np.ndarray) -> Image.Image:
            size = (right - left, bottom - top)
            return Image.fromarray(array).resize(size, Image.Resampling.BILINEAR, box)

        mask = cut(alpha)
        paint = cut(pixels) if isinstance(pixels, np.ndarray) else pixels
        self.image.paste(paint, (left, top, right, bottom), mask)
        hard = (mask if dense is None else cut(dense)).point([0] * 128 + [255] * 128)
        self.labels.paste(label, (left, top, right, bottom), hard)

    def quad(
        self, corners: Sequence[Point], texture: Image.Image, label: int, whole: bool = True
    ) -> None:
        """Map a texture (RGB, or RGBA to see through) onto the quadrilateral of ``corners``.

        The corners are the picture points of the texture's top left, top right, bottom right and
        bottom left. The label covers the quadrilateral with its see-through parts (``whole``), or
        only what is opaque.
        """
        if len(corners) != 4:
            return
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
        if texture.mode == "RGBA":
            seen = Image.composite(warped.getchannel("A"), Image.new("L", size), mask)
            self.image.paste(warped.convert("RGB"), (x0, y0), seen)
            if not whole:  # where it covers most of a pixel around
                share = seen.filter(ImageFilter.BoxBlur(SUPERSAMPLE // 2))
                mask = share.point([0] * 128 + [255] * 128)
        else:
            self.image.paste(warped, (x0, y0), mask)
        self.labels.paste(label, (x0, y0, x1, y1), mask)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture (H x W x 3 uint8) and the labels (H x W uint8) at their own size."""
        middle = SUPERSAMPLE // 2
        labels = np.asarray(self.labels)[middle::SUPERSAMPLE, middle::SUPERSAMPLE]
        return np.asarray(self.image.reduce(SUPERSAMPLE)), labels.copy()


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
