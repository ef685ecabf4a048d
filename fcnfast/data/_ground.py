"""The drawn street's sky, road, pavements and the shadows that lie on them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ._canvas import PAVEMENT, ROAD, SKY, TREE, Camera, Colour, Light, Noise, Point3

KERB = 0.16  # metres of kerb stone between road and pavement
CORNER = 3.5  # metres of rounding where a side street opens


@dataclass
class Side:
    """One side of the street; distances in metres from the kerb outwards."""

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


@dataclass
class Street:
    """Plan of a street: half the road's width and its two sides, and what is painted on it."""

    half: float
    sides: tuple[Side, Side]
    dashes: tuple[float, float] | None = (2.0, 4.0)  # length of dash and of gap
    crossings: list[tuple[float, float]] = field(default_factory=list)
    tone: float = 1.0  # brightness of the asphalt
    age: float = 0.5  # 0 new, 1 patched and stained

    def edge(self, side: Side, z: np.ndarray) -> np.ndarray:
        """Distance of the kerb from the road's middle at each z, far away inside side streets."""
        out = np.full(z.shape, self.half, np.float32)
        for near, far in side.mouths:
            gap = np.maximum(near - z, z - far)
            inside = np.clip(CORNER - gap, 0, CORNER)
            flare = CORNER - np.sqrt(np.maximum(CORNER**2 - inside**2, 0))
            out = np.maximum(out, self.half + np.where(gap > 0, flare, 1e4))
        return out


def paint_sky(camera: Camera, noise: Noise, kind: str, haze: Colour, offset: int) -> np.ndarray:
    """The sky over the whole picture, H x W x 3 float32 in 0..255."""
    h, w = camera.height, camera.width
    up = np.clip(1 - (np.arange(h, dtype=np.float32) + 0.5) / max(camera.cy, 1.0), 0, 1)
    tops = {
        "white": (247, 250, 252),
        "blue": (138, 190, 236),
        "broken": (150, 176, 206),
        "grey": (196, 203, 208),
        "dusk": (118, 130, 142),
    }
    top = np.array(tops[kind], np.float32)
    low = np.array(haze, np.float32)
    sky = low + (top - low) * (up**0.7)[:, None, None]
    amount = {"white": 0.05, "blue": 0.55, "broken": 1.0, "grey": 0.35, "dusk": 0.8}[kind]
    rows = max(2, min(h, 90))
    clouds = noise.smooth((h, w), (rows, max(2, min(w, 70))), offset)
    fine = noise.smooth((h, w), (max(2, min(h, 200)), max(2, min(w, 160))), offset + 7)
    cover = np.clip((clouds * 0.8 + fine * 0.25) * 1.1 + (0.2 if kind == "broken" else -0.25), 0, 1)
    cover = (cover * (0.35 + 0.65 * np.minimum(1, up * 3))[:, None] * amount)[..., None]
    body = {"white": 255, "blue": 250, "broken": 236, "grey": 224, "dusk": 176}[kind]
    shade = np.clip(1 - 0.16 * np.clip(fine + clouds, 0, 2), 0, 1)[..., None]
    if kind in ("white", "blue"):
        shade = shade**0.4
    sky = sky * (1 - cover) + body * shade * cover
    return np.asarray(np.broadcast_to(sky, (h, w, 3)), np.float32)


def cast_shadows(camera: Camera, blockers: list[list[Point3]], soft: float) -> np.ndarray:
    """The parts of the picture shaded by polygons on the ground, H x W float32 in 0..1."""
    mask = Image.new("L", (camera.width, camera.height))
    draw = ImageDraw.Draw(mask)
    for blocker in blockers:
        points = camera.project(blocker)
        if len(points) > 2:
            draw.polygon(points, fill=255)
    if soft > 0.3:
        mask = mask.filter(ImageFilter.GaussianBlur(soft))
    return np.asarray(mask, np.float32) / 255


class Ground:
    """Shader of the ground plane: every pixel below the horizon is traced to its street point."""

    def __init__(self, camera: Camera, street: Street, noise: Noise, offset: int) -> None:
        self.street, self.noise, self.offset = street, noise, offset
        self.top = min(camera.height, max(0, int(np.ceil(camera.cy + 0.5))))
        rows = np.arange(self.top, camera.height, dtype=np.float32) + 0.5 - camera.cy
        z = np.minimum(camera.focal * camera.eye / np.maximum(rows, 0.25), 600.0)
        columns = np.arange(camera.width, dtype=np.float32) + 0.5 - camera.cx
        shift = camera.heading * z + 0.5 * camera.bend * z * z - camera.lateral
        self.z = z
        self.s = columns[None, :] * (z / camera.focal)[:, None] - shift[:, None]
        self.foot = (z / camera.focal)[:, None]  # metres across a pixel
        self.deep = z * z / (camera.focal * camera.eye)  # metres along a pixel

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

    def texture(self, per_metre: float, stretch: float = 1.0, grain: bool = False) -> np.ndarray:
        """Noise that lies on the ground, faded out where its cells get smaller than pixels."""
        size = self.noise.size
        column = ((self.s + 300.0) * per_metre).astype(np.int32) + self.offset
        row = (self.z * (per_metre / stretch)).astype(np.int32) + self.offset
        tile = self.noise.grain if grain else self.noise.fractal
        fade = np.clip(2.5 / (1 + self.deep * per_metre / stretch), 0, 1)
        return tile[(row % size)[:, None], column % size] * fade[:, None]

    def paint(self, light: Light, shadow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colours (h x W x 3 float32, 0..255) and labels (h x W uint8) of rows ``top`` and on."""
        tint = (1.0, 1.015, 1.035)
        grain = self.texture(60.0, grain=True)
        stains = self.texture(9.0, stretch=3.0)
        road = self._road(grain, stains)
        labels = np.full(self.s.shape, ROAD, np.uint8)
        level = road
        red, blue = np.float32(1), np.float32(1)
        channels = [level * tint[0] * red, level * tint[1], level * tint[2] * blue]
        for side in self.street.sides:
            self._side(side, channels, labels, grain, stains)
        sun = light.level((0, 1, 0)) - light.level((0, 1, 0), 0.0)
        lit = light.level((0, 1, 0), 0.0) + sun * (1 - shadow[self.top :])
        air = 1 - np.exp(-self.z / light.visibility)[:, None]
        colour = np.stack(
            [c * lit * (1 - air) + light.haze[i] * air for i, c in enumerate(channels)], -1
        )
        return colour, labels

    def _road(self, grain: np.ndarray, stains: np.ndarray) -> np.ndarray:
        street = self.street
        tracks = np.cos(self.s * (2 * np.pi / max(street.half, 1.0)) * 2)
        age = street.age
        tone = 96 * street.tone * (1 + 0.03 * tracks + 0.055 * age * stains)
        tone = tone * (1 + (0.10 - 0.04 * age) * grain)
        tone *= 1 + 0.10 * np.clip(self.z / 40, 0, 1)[:, None]  # grazing light
        wear = np.clip(0.92 - 0.25 * age + 0.14 * stains + 0.06 * grain, 0, 1)
        paint = np.zeros_like(self.s)
        if street.dashes is not None:
            dash, gap = street.dashes
            share = np.zeros((len(self.z), 1), np.float32)
            for k in range(40):
                start = k * (dash + gap) - (self.offset % 97) / 97 * gap
                share = np.maximum(share, self.along(start, start + dash))
            paint = self.between(self.s, -0.07, 0.07) * share
        for near, far in street.crossings:
            bars = self.between((self.s + 200.0) % 1.2, 0.0, 0.6)
            inside = np.abs(self.s) < street.half - 0.3
            paint = np.maximum(paint, bars * self.along(near, far) * inside)
        return tone + (205 - tone) * paint * wear

    def _side(
        self,
        side: Side,
        channels: list[np.ndarray],
        labels: np.ndarray,
        grain: np.ndarray,
        stains: np.ndarray,
    ) -> None:
        street = self.street
        edge = street.edge(side, self.z)[:, None]
        out = side.sign * self.s - edge
        above = np.clip(out / self.foot + 0.5, 0, 1)

        def blend(colour: tuple[float, float, float], share: np.ndarray, rough: float) -> None:
            texture = 1 + rough * grain + 0.6 * rough * stains
            for i in range(3):
                channels[i] = channels[i] + (colour[i] * texture - channels[i]) * share

        for k in range(side.lines):
            line = self.between(out, -0.34 - 0.2 * k, -0.26 - 0.2 * k)
            blend((190, 168, 84), line * 0.8, 0.08)
        blend((58, 58, 58), self.between(out, -0.12, 0.0) * 0.6, 0.1)
        slabs = self.between((out + 100) % 0.6, 0.0, 0.025)
        blend((116, 113, 108), above, 0.07)
        blend((84, 82, 80), slabs * above * 0.5, 0.05)
        blend((150, 147, 142), self.between(out, 0.0, KERB), 0.08)
        labels[out >= 0] = PAVEMENT
        green = (86, 98, 52)
        if side.verge:
            blend(green, self.between(out, KERB, KERB + side.verge), 0.16)
            labels[(out >= KERB) & (out < KERB + side.verge)] = TREE
        beyond = np.clip((out - side.front) / self.foot + 0.5, 0, 1)
        if side.grass:
            blend(green, beyond, 0.16)
            labels[out >= side.front] = TREE


def compose(
    sky: np.ndarray, ground: Ground, colour: np.ndarray, labels: np.ndarray, contact: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sky above, ground below, with the soft dark under things that stand on it (uint8)."""
    picture = sky.copy()
    marks = np.full(sky.shape[:2], SKY, np.uint8)
    picture[ground.top :] = colour * (1 - 0.75 * contact[ground.top :, :, None])
    marks[ground.top :] = labels
    return np.clip(picture, 0, 255).astype(np.uint8), marks
