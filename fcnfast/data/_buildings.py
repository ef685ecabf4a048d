"""The drawn street's houses: facades in perspective with windows, doors, shops and roofs."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ._canvas import BUILDING, Camera, Canvas, Colour, Light, Noise, mix, rgb, scale

WALLS: dict[str, list[Colour]] = {
    "yellow brick": [(176, 152, 112), (158, 138, 104), (188, 168, 128)],
    "red brick": [(150, 92, 70), (134, 84, 66), (160, 106, 84)],
    "plaster": [(226, 220, 206), (214, 206, 186), (236, 234, 230), (206, 196, 180)],
    "stone": [(150, 140, 120), (128, 122, 108), (166, 156, 136)],
    "modern": [(160, 160, 158), (132, 134, 138), (186, 182, 176)],
}
ROOFS: list[Colour] = [(86, 82, 82), (104, 84, 74), (74, 76, 82), (120, 88, 72)]
TRADE: list[Colour] = [
    (150, 28, 30),
    (28, 48, 118),
    (22, 74, 52),
    (30, 30, 34),
    (196, 150, 40),
    (120, 30, 84),
    (222, 220, 212),
    (40, 96, 140),
    (200, 84, 30),
]


@dataclass
class House:
    """One building on a plot; metres in street coordinates."""

    sign: int  # -1 left of the street, +1 right
    near: float
    far: float
    front: float  # distance of the facade from the road's middle
    depth: float
    height: float  # to the eaves
    ridge: float  # of the roof above the eaves; 0 is flat
    wall: str
    shop: bool
    seed: int


class Facade:
    """An orthographic drawing of one wall in metres: u along it, v up from the ground."""

    def __init__(
        self,
        start: float,
        length: float,
        height: float,
        across: float,
        up: float,
        colour: Colour,
        noise: Noise,
        seed: int,
        rough: float,
    ) -> None:
        self.start, self.across, self.up, self.height = start, across, up, height
        size = (max(2, round(height * up)), max(2, round(length * across)))
        rough_ = 1 + rough * noise.crop(size, seed, "grain") * 0.8
        rough_ += 0.05 * noise.crop(size, seed + 5)
        v = np.linspace(1, 0, size[0], dtype=np.float32)[:, None]
        rough_ *= 0.82 + 0.18 * np.minimum(1, v * height / 1.2) - 0.1 * np.maximum(0, v - 0.95) * 20
        if up > 22 and rough > 0.04:
            course = (np.arange(size[0]) / up % 0.15) < 0.04
            rough_[course] *= 0.9
        wall = np.array(colour, np.float32) * rough_[..., None]
        self.image = Image.fromarray(np.clip(wall, 0, 255).astype(np.uint8))
        self.draw = ImageDraw.Draw(self.image)

    def rect(self, u0: float, v0: float, u1: float, v1: float, colour: Colour) -> None:
        """Fill [u0, u1] x [v0, v1]."""
        top, bottom = (self.height - v1) * self.up, (self.height - v0) * self.up
        left, right = (u0 - self.start) * self.across, (u1 - self.start) * self.across
        if right < 0 or left > self.image.width:
            return
        self.draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=colour)


def draw_house(canvas: Canvas, camera: Camera, light: Light, noise: Noise, house: House) -> None:
    """Paint one building: the end wall towards the camera, the roof, the facade."""
    rng = random.Random(house.seed)
    colour = scale(rng.choice(WALLS[house.wall]), rng.uniform(0.8, 1.08))
    roof = scale(rng.choice(ROOFS), rng.uniform(0.8, 1.15))
    sign, front = house.sign, house.front
    middle, top = front + house.depth / 2, house.height + house.ridge
    z0, z1 = house.near, house.far
    tone = rng.random()
    if z0 > 1.0:
        _end_wall(canvas, camera, light, noise, house, colour)
    if house.ridge:
        slope = [(front - 0.25, house.height - 0.1), (middle, top)]
        plane = [
            (sign * slope[0][0], slope[0][1], z0),
            (sign * slope[1][0], slope[1][1], z0),
            (sign * slope[1][0], slope[1][1], z1),
            (sign * slope[0][0], slope[0][1], z1),
        ]
        points = camera.project(plane)
        if len(points) == 4 and _area(points) * sign < 0:
            n = (-sign * 0.7, 0.7, 0.0)
            canvas.fill(points, light.shade(roof, n, z0, 0.9), BUILDING)
            if z0 > 1 and tone < 0.8:
                _chimney(canvas, camera, light, house, colour, z0 + (z1 - z0) * 0.1)
    _front(canvas, camera, light, noise, house, colour, rng)


def _area(points: list[tuple[float, float]]) -> float:
    total = 0.0
    for i, (x, y) in enumerate(points):
        px, py = points[i - 1]
        total += px * y - x * py
    return total


def _chimney(
    canvas: Canvas, camera: Camera, light: Light, house: House, colour: Colour, z: float
) -> None:
    s, y = house.sign * (house.front + house.depth / 2), house.height + house.ridge
    for a, b, n, share in ((s - 0.45, s + 0.45, (0, 0, -1), 0.9),):
        wall = [(a, y - 0.5, z), (b, y - 0.5, z), (b, y + 1.1, z), (a, y + 1.1, z)]
        shade = light.shade(scale(colour, share), (float(n[0]), float(n[1]), float(n[2])), z)
        canvas.fill(camera.project(wall), shade, BUILDING)
    for k in (-0.25, 0.2):
        pot = [
            (s + k - 0.1, y + 1.1, z),
            (s + k + 0.1, y + 1.1, z),
            (s + k + 0.1, y + 1.5, z),
            (s + k - 0.1, y + 1.5, z),
        ]
        canvas.fill(camera.project(pot), light.shade((150, 90, 66), (0, 0, -1), z), BUILDING)


def _end_wall(
    canvas: Canvas, camera: Camera, light: Light, noise: Noise, house: House, colour: Colour
) -> None:
    sign, z = house.sign, house.near
    a, b = sign * house.front, sign * (house.front + house.depth)
    left, right = min(a, b), max(a, b)
    k = camera.focal / z
    up = min(k, 700 / max(house.height, 1.0))
    shade = scale(colour, light.level((0.0, 0.0, -1.0), 0.9))
    face = Facade(0, house.depth, house.height, up, up, shade, noise, house.seed + 3, 0.07)
    if house.seed % 3 == 0:
        for v in np.arange(1.2, house.height - 1.8, 3.0):
            face.rect(house.depth * 0.4, v, house.depth * 0.4 + 1.0, v + 1.4, (52, 56, 62))
    image = _hazed(face.image, light, z)
    h = house.height
    corners = [(left, h, z), (right, h, z), (right, 0.0, z), (left, 0.0, z)]
    canvas.quad(camera.project(corners), image, BUILDING)
    if house.ridge:
        gable = [(left, h, z), ((left + right) / 2, h + house.ridge, z), (right, h, z)]
        canvas.fill(camera.project(gable), light.air(shade, z), BUILDING)


def _hazed(image: Image.Image, light: Light, z: float) -> Image.Image:
    share = 1 - float(np.exp(-z / light.visibility))
    return Image.blend(image, Image.new("RGB", image.size, light.haze), share)


def _front(
    canvas: Canvas,
    camera: Camera,
    light: Light,
    noise: Noise,
    house: House,
    colour: Colour,
    rng: random.Random,
) -> None:
    sign, z1 = house.sign, house.far
    s = sign * house.front
    side = abs(s + camera.shift(max(house.near, 2.0)))
    reach = max(camera.cx, camera.width - camera.cx, 1.0) + camera.width * 0.1
    z0 = max(house.near, 0.8 * camera.focal * side / reach, 1.0)
    top = house.height
    if z0 >= z1 - 0.05:
        return
    corners = [(s, top, z0), (s, top, z1), (s, 0.0, z1), (s, 0.0, z0)]
    points = camera.project(corners)
    if len(points) != 4 or _area(points) * sign > 0:
        return
    up = min(1.5 * camera.focal / z0, 2.0 * camera.height / top, 400.0)
    width = abs(points[1][0] - points[0][0])
    across = min(2.2 * width / (z1 - z0), 2.0 * camera.width / (z1 - z0), 400.0)
    level = light.level((-float(sign), 0.0, 0.0), 0.95)
    rough = {"yellow brick": 0.1, "red brick": 0.1, "stone": 0.12}.get(house.wall, 0.03)
    face = Facade(
        z0 - house.near, z1 - z0, top, across, up, scale(colour, level), noise, house.seed, rough
    )
    fit_out(face, house, rng, level, light)
    canvas.quad(points, _hazed(face.image, light, (z0 + z1) / 2), BUILDING)


def fit_out(face: Facade, house: House, rng: random.Random, level: float, light: Light) -> None:
    """Draw windows, doors, a shop and trimmings on a facade."""
    length, top = house.far - house.near, house.height
    first = 3.5 if house.shop else 3.0
    storeys = max(1, int((top - 0.5) / 2.9))
    bays = max(1, int(length / rng.uniform(2.2, 3.2)))
    pitch = length / bays
    wide = min(rng.uniform(0.9, 1.5), pitch * 0.7)
    if house.wall == "modern":
        wide = pitch * 0.82
    tall = rng.uniform(1.3, 1.8)
    frame = scale((232, 230, 224) if rng.random() < 0.75 else (60, 58, 56), level)
    face.rect(0, top - 0.22, length, top, scale((120, 114, 104), level))
    for storey in range(storeys):
        ground = storey == 0
        if ground and house.shop:
            _shop(face, house, rng, level)
            continue
        sill = 0.9 if ground else first + (storey - 1) * 2.9 + 0.7
        if sill + tall > top - 0.25:
            break
        for bay in range(bays):
            u = (bay + 0.5) * pitch
            if ground and bay % 3 == 1:
                _door(face, u, rng, level)
            else:
                _window(face, u - wide / 2, sill, wide, tall, frame, rng, level)
    if rng.random() < 0.6:
        face.rect(length - 0.14, 0, length, top, scale((50, 48, 46), level))


def _window(
    face: Facade,
    u: float,
    v: float,
    w: float,
    h: float,
    frame: Colour,
    rng: random.Random,
    level: float,
) -> None:
    glass = scale(mix((38, 42, 48), (150, 168, 186), rng.random() ** 2 * 0.8), 0.6 + 0.4 * level)
    face.rect(u - 0.08, v - 0.14, u + w + 0.08, v, scale((190, 184, 170), level))
    face.rect(u - 0.06, v + h, u + w + 0.06, v + h + 0.16, scale((176, 166, 146), level))
    face.rect(u, v, u + w, v + h, frame)
    t = 0.07
    face.rect(u + t, v + t, u + w - t, v + h - t, glass)
    if face.up < 6:
        return
    face.rect(u + t, v + h * 0.75, u + w - t, v + h - t, scale(glass, 0.75))
    if rng.random() < 0.4:
        face.rect(u + t, v + t, u + w * 0.3, v + h - t, scale((176, 170, 160), level))
    face.rect(u + t, v + h * 0.5, u + w - t, v + h * 0.5 + 0.05, frame)
    face.rect(u + w / 2 - 0.025, v + t, u + w / 2 + 0.025, v + h - t, frame)


def _door(face: Facade, u: float, rng: random.Random, level: float) -> None:
    colour = scale(rng.choice(TRADE), level * 0.8)
    face.rect(u - 0.62, 0, u + 0.62, 2.55, scale((206, 202, 192), level))
    face.rect(u - 0.45, 0.1, u + 0.45, 2.1, colour)
    face.rect(u - 0.45, 2.14, u + 0.45, 2.45, (48, 52, 58))
    face.rect(u - 0.3, 1.2, u + 0.3, 1.9, scale(colour, 0.7))


def _shop(face: Facade, house: House, rng: random.Random, level: float) -> None:
    length = house.far - house.near
    trade = scale(rng.choice(TRADE), 0.4 + 0.6 * level)
    face.rect(0.1, 0, length - 0.1, 3.3, scale(trade, 0.7))
    face.rect(0.1, 2.65, length - 0.1, 3.3, trade)
    letters = rgb(240, 236, 220) if sum(trade) < 420 else rgb(40, 36, 40)
    u = length * 0.2
    while u < length * 0.8:
        step = rng.uniform(0.14, 0.3)
        if rng.random() < 0.85:
            face.rect(u, 2.82, u + step * 0.75, 3.12, letters)
            face.rect(u + step * 0.2, 2.9, u + step * 0.5, 3.04, trade)
        u += step
    u = 0.35
    while u < length - 0.8:
        w = min(rng.uniform(1.2, 2.6), length - 0.4 - u)
        glow = rng.uniform(0.15, 0.6)
        glass = mix((28, 30, 34), (170, 150, 120), glow * 0.6)
        door = rng.random() < 0.3
        low = 0.05 if door else 0.55
        face.rect(u, low, u + w, 2.55, glass)
        for _ in range(5):
            du, dv = rng.uniform(0, w * 0.7), rng.uniform(low, 1.6)
            item = scale(rng.choice(TRADE), 0.3 + glow)
            face.rect(u + du, dv, u + du + w * 0.25, dv + rng.uniform(0.2, 0.6), item)
        face.rect(u, 1.9, u + w, 2.55, scale(glass, 0.7))
        u += w + 0.14
