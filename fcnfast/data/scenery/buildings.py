"""The drawn street's houses in perspective: end walls, roofs, chimneys and facades."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .canvas import BUILDING, Color
from .facades import Facade, fit_out
from .stage import Point3, Stage, scale, turning

WALLS: dict[str, list[Color]] = {
    "yellow brick": [(176, 158, 124), (152, 138, 112), (188, 172, 138)],
    "red brick": [(142, 96, 78), (126, 86, 72), (152, 110, 92)],
    "plaster": [(226, 220, 206), (214, 206, 186), (236, 234, 230), (206, 190, 164)],
    "stone": [(152, 146, 130), (128, 124, 114), (172, 164, 146)],
    "modern": [(160, 160, 158), (132, 134, 138), (186, 182, 176)],
}
ROUGH = {"yellow brick": 0.1, "red brick": 0.1, "stone": 0.12, "plaster": 0.025, "modern": 0.03}
ROOFS: list[Color] = [(82, 78, 78), (100, 80, 70), (72, 74, 80), (116, 86, 70)]


@dataclass
class House:
    """One building on a plot; meters in street coordinates."""

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
    hidden: float = 0.0  # height up to which a neighbor covers the end wall
    shade_to: float = 0.0  # height up to which the facade lies in the shadow of the other side

    def corners(self) -> list[tuple[float, float]]:
        """The plot's (s, z) corners, around."""
        a, b = self.sign * self.front, self.sign * (self.front + self.depth)
        return [(a, self.near), (a, self.far), (b, self.far), (b, self.near)]


def draw_house(stage: Stage, house: House) -> None:
    """Paint one building: the end wall towards the camera, the roof, the facade."""
    rng = random.Random(house.seed)
    color = scale(rng.choice(WALLS[house.wall]), rng.uniform(0.78, 1.05))
    roof = scale(rng.choice(ROOFS), rng.uniform(0.8, 1.15))
    if house.near > 1.0:
        _end_wall(stage, house, color)
    if house.ridge:
        _roof(stage, house, roof)
        if house.near > 1.0 and rng.random() < 0.8:
            _chimney(stage, house, color, house.near + 0.3)
    elif house.near > 1.0 and rng.random() < 0.3:
        _roof_box(stage, house)
    _front(stage, house, color, rng)


def _roof(stage: Stage, house: House, color: Color) -> None:
    sign, z0, z1 = house.sign, max(house.near, 1.0), house.far
    low = (sign * (house.front - 0.25), house.height - 0.1)
    high = (sign * (house.front + house.depth / 2), house.height + house.ridge)
    points = stage.camera.project([(*high, z0), (*high, z1), (*low, z1), (*low, z0)])
    if turning(points) * sign > 0:
        return
    wide = max(abs(points[1][0] - points[0][0]), abs(points[3][0] - points[2][0]))
    tall = abs(points[0][1] - points[3][1])
    size = (int(min(400, max(4, 1.5 * tall))), int(min(400, max(4, 1.5 * wide))))
    level = stage.light.level((-sign * 0.6, 0.8, 0.0), 0.95)
    rows = np.linspace(0, (house.ridge + 2) / 0.3, size[0], dtype=np.float32)[:, None]
    step = 1 - 0.12 * (rows % 1 < 0.3) if size[0] > 24 else 1.0
    tone = level * step * (1 + 0.1 * stage.noise.crop(size, house.seed % 887))
    tone = tone * (1 + 0.06 * stage.noise.crop(size, house.seed % 883, "grain"))
    pixels = np.clip(tone[..., None] * np.array(color, np.float32), 0, 255).astype(np.uint8)
    image = stage.hazed(Image.fromarray(pixels), (z0 + z1) / 2)
    stage.canvas.quad(points, image, BUILDING)


def _chimney(stage: Stage, house: House, color: Color, z: float) -> None:
    s = house.sign * (house.front + house.depth / 2)
    y = house.height + house.ridge
    side: Point3 = (-float(house.sign), 0.0, 0.0)
    for a, b, z0, z1, normal in (
        (s - 0.45, s + 0.45, z, z, (0.0, 0.0, -1.0)),
        (s - house.sign * 0.45, s - house.sign * 0.45, z, z + 0.6, side),
    ):
        wall = [(a, y - 0.6, z0), (b, y - 0.6, z1), (b, y + 1.1, z1), (a, y + 1.1, z0)]
        stage.canvas.fill(stage.camera.project(wall), stage.light.shade(color, normal, z),
                          BUILDING)  # fmt: skip
    for k in (-0.25, 0.2):
        left, right = s + k - 0.1, s + k + 0.1
        pot = [(left, y + 1.1, z), (right, y + 1.1, z), (right, y + 1.5, z), (left, y + 1.5, z)]
        clay = stage.light.shade((146, 88, 66), (0, 0, -1), z)
        stage.canvas.fill(stage.camera.project(pot), clay, BUILDING)


def _roof_box(stage: Stage, house: House) -> None:
    """Plant room or lift head on a flat roof."""
    s, z, y = house.sign * (house.front + house.depth / 2), house.near + 1.5, house.height
    box = [(s - 1.4, y, z), (s + 1.4, y, z), (s + 1.4, y + 1.8, z), (s - 1.4, y + 1.8, z)]
    gray = stage.light.shade((120, 122, 124), (0, 0, -1), z)
    stage.canvas.fill(stage.camera.project(box), gray, BUILDING)


def _end_wall(stage: Stage, house: House, color: Color) -> None:
    """The wall that faces the camera, and the gable above it."""
    z, h = house.near, house.height
    a, b = house.sign * house.front, house.sign * (house.front + house.depth)
    left, right = min(a, b), max(a, b)
    level = stage.light.level((0.0, 0.0, -1.0), 0.9)
    shade = scale(color, level)
    if stage.camera.misses((a + b) / 2, z, house.depth / 2):
        return
    ridge = [(left, h, z), ((left + right) / 2, h + house.ridge, z), (right, h, z)]
    edge = stage.camera.project(ridge)
    if house.hidden < h:
        face = _end_face(stage, house, shade, level)
        top = h + house.ridge
        corners = [(left, top, z), (right, top, z), (right, 0.0, z), (left, 0.0, z)]
        stage.canvas.quad(stage.camera.project(corners), face, BUILDING, whole=False)
    elif house.ridge:
        stage.canvas.fill(edge, stage.light.air(shade, z), BUILDING)
    if house.ridge:  # the boards along the edge of the roof
        wide = max(0.16 * stage.camera.focal / z, 0.8)
        board = stage.light.air(scale((96, 90, 84), level), z)
        stage.canvas.stroke(edge, wide, board, BUILDING)


def _end_face(stage: Stage, house: House, shade: Color, level: float) -> Image.Image:
    """The end wall with its gable and a few windows, see-through above the gable."""
    top = house.height + house.ridge
    up = min(1.3 * stage.camera.focal / house.near, 600 / top)
    tint = (float(shade[0]), float(shade[1]), float(shade[2]))
    rough = ROUGH[house.wall]
    face = Facade(0, house.depth, top, up, up, tint, stage.noise, house.seed + 3, rough)
    white, stone = scale((226, 222, 214), level), scale((190, 184, 170), level)
    storeys = int((house.height - 0.8) / 2.9) if house.seed % 3 else 0
    for v in (1.0 + 2.9 * k for k in range(storeys)):
        for u in (0.3 * house.depth, 0.68 * house.depth)[: 1 + house.seed % 2]:
            face.rect(u - 0.08, v - 0.1, u + 1.08, v, stone)
            face.rect(u, v, u + 1.0, v + 1.4, white)
            face.rect(u + 0.06, v + 0.06, u + 0.94, v + 1.34, (44, 48, 54))
            face.rect(u + 0.06, v + 0.66, u + 0.94, v + 0.72, white)
    face.rect(0.1, 0, 0.22, house.height, scale((52, 50, 48), level))
    image = stage.hazed(face.image, house.near)
    alpha = Image.new("L", image.size)
    (w, h), eaves = image.size, house.ridge * up
    ImageDraw.Draw(alpha).polygon([(0, h), (0, eaves), (w / 2, 0), (w, eaves), (w, h)], fill=255)
    image.putalpha(alpha)
    return image


def _front(stage: Stage, house: House, color: Color, rng: random.Random) -> None:
    """The facade along the street, cut where it leaves the picture's side."""
    camera, sign, z1, top = stage.camera, house.sign, house.far, house.height
    s = sign * house.front
    side = abs(s + camera.shift(max(house.near, 2.0)))
    reach = max(camera.cx, camera.width - camera.cx, 1.0) + camera.width * 0.1
    z0 = max(house.near, 0.8 * camera.focal * side / reach, 1.0)
    if z0 >= z1 - 0.05:
        return
    points = camera.project([(s, top, z0), (s, top, z1), (s, 0.0, z1), (s, 0.0, z0)])
    if turning(points) * sign > 0:
        return
    up = min(1.4 * camera.focal / z0, 2.0 * camera.height / top)
    wide = abs(points[1][0] - points[0][0])
    across = min(1.7 * wide, 1.7 * camera.width) / (z1 - z0)
    dark = stage.light.level((-float(sign), 0.0, 0.0), 0.0)
    level = stage.light.level((-float(sign), 0.0, 0.0), 0.95)
    warm = min(1.0, 1.5 * (level - dark) / level)  # sunlight is yellower than the sky's
    tint = (
        color[0] * level * (0.97 + 0.07 * warm),
        color[1] * level,
        color[2] * level * (1.04 - 0.12 * warm),
    )
    face = Facade(z0 - house.near, z1 - z0, top, across, up, tint, stage.noise, house.seed,
                  ROUGH[house.wall], house.shade_to, dark / level)  # fmt: skip
    fit_out(face, house.far - house.near, house.wall, house.shop, rng, level)
    stage.canvas.quad(points, stage.hazed(face.image, (z0 + z1) / 2), BUILDING)
