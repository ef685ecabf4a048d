"""The drawn street's sky, road, pavements and the shadows that lie on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .canvas import PAVEMENT, ROAD, SKY, TREE
from .stage import TILE, Camera, Light, Noise, Point3

KERB = 0.16  # meters of kerb stone between road and pavement
CORNER = 3.5  # meters of rounding where a side street opens


@dataclass
class Side:
    """One side of the street; distances in meters from the kerb outwards."""

    sign: int  # -1 left, +1 right
    pavement: float
    verge: float = 0.0  # grass between kerb and pavement
    grass: bool = False  # what lies beyond the pavement where nothing stands
    mouths: list[tuple[float, float]] = field(default_factory=list)  # side streets, along z
    lines: int = 0  # yellow lines along the kerb

    @property
    def front(self) -> float:
        """Where plots begin, from the kerb."""
        return self.pavement + self.verge

    def open_at(self, z: float, margin: float) -> bool:
        """Whether a side street opens within ``margin`` meters of z."""
        return any(near - margin < z < far + margin for near, far in self.mouths)


@dataclass
class Street:
    """Plan of a street: half the road's width, its two sides, what is painted on it."""

    half: float
    sides: tuple[Side, Side]
    dashes: tuple[float, float] | None  # length of dash and of gap
    edging: bool  # a broken white line along each kerb
    tone: float  # brightness of the asphalt
    age: float  # 0 new, 1 patched and stained
    crossings: list[tuple[float, float]] = field(default_factory=list)
    repairs: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    covers: list[tuple[float, float]] = field(default_factory=list)  # manholes at (s, z)

    def edge(self, side: Side, z: np.ndarray) -> np.ndarray:
        """Distance of the kerb from the road's middle at each z, far away inside side streets."""
        out = np.full(z.shape, self.half, np.float32)
        for near, far in side.mouths:
            gap = np.maximum(near - z, z - far)
            inside = np.clip(CORNER - gap, 0, CORNER)
            flare = CORNER - np.sqrt(np.maximum(CORNER**2 - inside**2, 0))
            out = np.maximum(out, self.half + np.where(gap > 0, flare, 1e4))
        return out


_TOPS = {
    "white": (246, 250, 253), "blue": (158, 203, 242), "broken": (158, 186, 216),
    "gray": (198, 205, 210), "dusk": (122, 134, 148),
}  # fmt: skip
_CLOUDS = {  # how much of them, and their light and dark parts
    "white": (0.15, 255, 236), "blue": (0.6, 253, 236), "broken": (1.0, 250, 196),
    "gray": (0.7, 224, 188), "dusk": (0.9, 168, 112),
}  # fmt: skip


def paint_sky(camera: Camera, rows: int, noise: Noise, kind: str, low: Sequence[int]) -> np.ndarray:
    """The uppermost ``rows`` of the picture as sky, rows x W x 3 float32 in 0..255."""
    w = camera.width
    up = np.clip(1 - (np.arange(rows, dtype=np.float32) + 0.5) / max(camera.cy, 1.0), 0, 1)
    top = np.array(_TOPS[kind], np.float32)
    base = np.array(low, np.float32)
    sky = base + (top - base) * (up**0.7)[:, None, None]
    amount, light, dark = _CLOUDS[kind]
    big = noise.smooth((rows, w), (70, 40), 5)
    fine = noise.smooth((rows, w), (220, 130), 7)
    cover = np.clip(0.55 * big + 0.22 * fine + (0.25 if kind == "broken" else 0.0), 0, 1)
    cover *= (amount * (0.3 + 0.7 * np.minimum(1, up * 2.5)))[:, None]
    body = light + (dark - light) * np.clip(0.35 * big + 0.25 * fine - 0.1, 0, 1)
    sky = sky + (body - sky.mean(-1))[..., None] * cover[..., None]
    return sky.astype(np.float32)


def cast_shadows(camera: Camera, blockers: list[list[Point3]], soft: float) -> np.ndarray:
    """The parts of the picture shaded by polygons on the ground, H x W float32 in 0..1."""
    mask = Image.new("L", (camera.width, camera.height))
    draw = ImageDraw.Draw(mask)
    for blocker in blockers:
        points = camera.project(blocker)
        if len(points) > 2:
            draw.polygon(points, fill=255)
    if soft > 0.3:
        mask = mask.filter(ImageFilter.BoxBlur(soft))
    return np.asarray(mask, np.float32) / 255


class Ground:
    """Shader of the ground plane: every pixel below the horizon is traced to its street point."""

    def __init__(self, camera: Camera, street: Street, noise: Noise) -> None:
        self.street, self.noise = street, noise
        self.top = min(camera.height, max(0, int(np.ceil(camera.cy + 0.5))))
        rows = np.arange(self.top, camera.height, dtype=np.float32) + 0.5 - camera.cy
        z = np.minimum(camera.focal * camera.eye / np.maximum(rows, 0.25), 600.0)
        z = z.astype(np.float32)
        columns = np.arange(camera.width, dtype=np.float32) + 0.5 - camera.cx
        shift = camera.heading * z + 0.5 * camera.bend * z * z - camera.lateral
        self.z = z
        self.s = columns[None, :] * (z / camera.focal)[:, None] - shift[:, None]
        self.foot = (z / camera.focal)[:, None]  # meters across a pixel
        self.deep = z * z / (camera.focal * camera.eye)  # meters along a pixel

    def between(self, value: np.ndarray, low: float, high: float) -> np.ndarray:
        """Share of each pixel's width inside [low, high], for thin lines along the street."""
        half = self.foot / 2
        share = np.minimum(value + half, high) - np.maximum(value - half, low)
        return np.clip(share / self.foot, 0, 1)

    def along(self, low: float, high: float) -> np.ndarray:
        """Share of each row's depth inside [low, high], as a column."""
        half = self.deep / 2
        share = np.minimum(self.z + half, high) - np.maximum(self.z - half, low)
        return np.clip(share / self.deep, 0, 1)[:, None]

    def texture(self, per_meter: float, kind: str, stretch: float = 1.0) -> np.ndarray:
        """Noise that lies on the ground, faded out where its cells get smaller than pixels."""
        along = per_meter / stretch
        place = self.noise.seed * 29 % TILE
        column = ((self.s + 700.0) * per_meter).astype(np.int32) + place
        row = (self.z * along).astype(np.int32) + place
        tile = self.noise.tiles[kind]
        fade = np.clip(2.5 / (1 + self.deep * along), 0, 1)
        index = (row % TILE * (2 * TILE))[:, None] + column % TILE
        return tile.ravel().take(index) * fade[:, None]

    def paint(self, light: Light, shadow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colors (h x W x 3 float32, 0..255) and labels (h x W uint8) of rows ``top`` and on.

        ``shadow`` (H x W) is the share of sunlight that does not reach each pixel.
        """
        grain = 0.7 * self.texture(55.0, "grain") + 0.5 * self.texture(21.0, "speckle")
        stains = self.texture(9.0, "fractal", stretch=3.0)
        road = self._road(grain, stains)
        labels = np.full(self.s.shape, ROAD, np.uint8)
        channels = [road * tint for tint in (0.985, 1.0, 1.03)]
        for side in self.street.sides:
            self._side(side, channels, labels, grain, stains)
        shade = light.level((0, 1, 0), 0.0)
        sun = light.level((0, 1, 0)) - shade
        sunlit = sun * (1 - shadow[self.top :])
        air = (1 - np.exp(-self.z / light.visibility))[:, None]
        color = np.empty((*self.s.shape, 3), np.float32)
        # Shade is lit by the sky alone: bluer than the sun's light.
        for i, (cool, warm) in enumerate(((0.96, 1.05), (1.0, 1.0), (1.06, 0.92))):
            lit = (shade * cool + sunlit * warm) * (1 - air)
            color[..., i] = channels[i] * lit + light.haze[i] * air
        return color, labels

    def _road(self, grain: np.ndarray, stains: np.ndarray) -> np.ndarray:
        """Brightness of asphalt, its repairs, covers and white paint."""
        street, age = self.street, self.street.age
        tracks = np.cos(self.s * (4 * np.pi / max(street.half, 1.0)))
        tone = 92 * street.tone * (1 + 0.03 * tracks + 0.05 * (0.4 + age) * stains + 0.065 * grain)
        tone *= 1 + 0.14 * np.clip(self.z / 40, 0, 1)[:, None]  # grazing light
        for s0, s1, z0, z1, change in street.repairs:
            inside = self.between(self.s, s0, s1) * self.along(z0, z1)
            rim = inside - self.between(self.s, s0 + 0.05, s1 - 0.05) * self.along(
                z0 + 0.06, z1 - 0.06
            )
            tone *= 1 + change * inside - 0.22 * rim
        for s0, z0 in street.covers:
            far = np.hypot(self.s - s0, (self.z - z0)[:, None]) / 0.32
            tone *= 1 - 0.3 * (far < 1) - 0.25 * (np.abs(far - 1) < 0.14)
        seam = self.between(self.s + 0.06 * stains, 0.1 - 0.02, 0.1 + 0.03)
        tone *= 1 - 0.35 * age * seam
        wear = np.clip(0.95 - 0.25 * age + 0.12 * stains + 0.08 * grain, 0.1, 1)
        return tone + (200 - tone) * self._paint() * wear

    def _paint(self) -> np.ndarray:
        street = self.street
        paint = np.zeros_like(self.s)
        if street.dashes is not None:
            dash, gap = street.dashes
            share = np.zeros((len(self.z), 1), np.float32)
            start = -(self.noise.seed % 97) / 97 * gap
            while start < 150:
                share = np.maximum(share, self.along(start, start + dash))
                start += dash + gap
            paint = self.between(self.s, -0.06, 0.06) * share
            if street.edging:
                shoulder = self.between(np.abs(self.s), street.half - 0.62, street.half - 0.52)
                paint = np.maximum(paint, 0.8 * shoulder * share)
        for near, far in street.crossings:
            for line in (near - 1.6, far + 1.4):  # where traffic waits
                stop = self.along(line, line + 0.2) * (np.abs(self.s) < street.half - 0.3)
                paint = np.maximum(paint, stop * ((self.s < 0) == (line < near)))
            bars = self.between((self.s + 600.0) % 1.2, 0.0, 0.6)
            inside = np.abs(self.s) < street.half - 0.3
            paint = np.maximum(paint, bars * self.along(near, far) * inside)
        return paint

    def _side(
        self,
        side: Side,
        channels: list[np.ndarray],
        labels: np.ndarray,
        grain: np.ndarray,
        stains: np.ndarray,
    ) -> None:
        """Lay gutter, kerb, slabs and grass over the road on one side."""
        edge = self.street.edge(side, self.z)[:, None]
        out = side.sign * self.s - edge
        smooth = 1 + 0.05 * grain + 0.04 * stains

        def blend(color: Sequence[float], share: np.ndarray, rough: np.ndarray) -> None:
            for i in range(3):
                channels[i] += (color[i] * rough - channels[i]) * share

        for k in range(side.lines):
            line = self.between(out, -0.34 - 0.2 * k, -0.26 - 0.2 * k)
            blend((186, 164, 84), line * np.clip(0.75 + 0.15 * stains, 0, 1), smooth)
        blend((50, 50, 50), self.between(out, -0.14, 0.0) * 0.6, smooth)
        paved = np.clip(out / self.foot + 0.5, 0, 1)
        slab = 0.6 if side.pavement > 2 else 0.9
        joint = self.between((out + 900) % slab, 0.0, 0.022)
        rows = np.clip(0.02 / np.maximum(self.deep, 0.02), 0, 1) * ((self.z % slab) < self.deep)
        blend((98, 96, 93), paved, smooth + 0.04 * stains)
        blend((74, 72, 70), np.maximum(joint, rows[:, None]) * paved * 0.45, smooth)
        blend((128, 126, 122), self.between(out, 0.0, KERB), smooth)
        labels[out >= 0] = PAVEMENT
        lawn = 1 + 0.16 * grain + 0.12 * stains
        if side.verge:
            blend((84, 96, 50), self.between(out, KERB, KERB + side.verge), lawn)
            labels[(out >= KERB) & (out < KERB + side.verge)] = TREE
        if side.grass:
            beyond = np.clip((out - side.front) / self.foot + 0.5, 0, 1)
            blend((84, 96, 50), beyond, lawn)
            labels[out >= side.front] = TREE


def backdrop(
    camera: Camera, sky: np.ndarray, ground: np.ndarray, marks: np.ndarray, contact: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sky above, ground below with the dark under things that stand on it; picture and labels."""
    top = len(sky)
    picture = np.empty((camera.height, camera.width, 3), np.uint8)
    picture[:top] = np.clip(sky, 0, 255)
    picture[top:] = np.clip(ground * (1 - 0.78 * contact[top:, :, None]), 0, 255)
    labels = np.full((camera.height, camera.width), SKY, np.uint8)
    labels[top:] = marks
    return picture, labels
