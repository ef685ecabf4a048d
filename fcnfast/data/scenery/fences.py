"""The drawn street's boundaries: railings, boards, garden walls and hedges along the street."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from .canvas import BUILDING, FENCE, TREE, Color
from .plants import LEAVES
from .stage import Point3, Stage, scale

HEIGHTS = {"railings": 1.15, "boards": 1.75, "wall": 1.1, "hedge": 1.5}
IRON: list[Color] = [(40, 42, 44), (30, 32, 34), (96, 100, 100), (34, 46, 40)]


def draw_boundary(
    stage: Stage, s: float, near: float, far: float, kind: str, seed: int, lit: float
) -> None:
    """Paint a boundary at distance ``s`` from ``near`` to ``far``.

    Railings and boards are fence, a wall is building, a hedge is tree. Railings are labeled as
    the whole surface that they fill, gaps between the bars included.
    """
    rng = random.Random(seed)
    camera = stage.camera
    s0 = abs(s + camera.shift(max(near, 1.5)))
    reach = max(camera.cx, camera.width - camera.cx, 1.0) + camera.width * 0.1
    z0 = max(near, 0.8 * camera.focal * s0 / reach, 1.0)
    if z0 >= far - 0.05:
        return
    height = HEIGHTS[kind] * rng.uniform(0.75, 1.25)
    corners: list[Point3] = [(s, height, z0), (s, height, far), (s, 0.0, far), (s, 0.0, z0)]
    points = camera.project(corners)
    up = min(1.5 * camera.focal / z0, 500 / height)
    across = min(2.0 * abs(points[1][0] - points[0][0]), 1.5 * camera.width) / (far - z0)
    size = (max(2, round((far - z0) * across)), max(2, round(height * up)))
    level = stage.light.level((-1.0 if s > 0 else 1.0, 0.1, -0.2), 0.9 * lit)
    middle = (z0 + far) / 2
    if kind == "railings":
        tone = stage.light.air(scale(rng.choice(IRON), level), middle)
        stage.canvas.quad(points, _railings(size, tone, across, up), FENCE)
    elif kind == "hedge":
        stage.canvas.quad(points, _hedge(stage, size, level, middle, rng, seed), TREE, False)
    else:
        base = scale({"boards": (112, 88, 64), "wall": (142, 110, 86)}[kind], level)
        image = _boards(stage, size, base, seed, across if kind == "boards" else 0.0, up)
        label = BUILDING if kind == "wall" else FENCE
        stage.canvas.quad(points, stage.hazed(image, middle), label)


def _railings(size: tuple[int, int], tone: Color, across: float, up: float) -> Image.Image:
    alpha = Image.new("L", size, 0)
    draw = ImageDraw.Draw(alpha)
    pitch = 0.13 * across
    if pitch < 3:  # bars finer than the texture: an even gray
        draw.rectangle((0, 0, *size), fill=130)
    else:
        x = 0.0
        while x < size[0]:
            draw.rectangle((x, 0, x + 0.035 * across, size[1]), fill=255)
            x += pitch
    for v in (0.04, 0.88):
        top = v * size[1]
        draw.rectangle((0, top, size[0], top + max(1.0, 0.05 * up)), fill=255)
    image = Image.new("RGBA", size, (*tone, 255))
    image.putalpha(alpha)
    return image


def _boards(
    stage: Stage, size: tuple[int, int], color: Color, seed: int, across: float, up: float
) -> Image.Image:
    """Planks ``across`` texture pixels a meter apart, or brickwork if that is 0."""
    shape = (size[1], size[0])
    tone = 1 + 0.07 * stage.noise.crop(shape, seed % 991, "grain")
    tone = tone + 0.07 * stage.noise.crop(shape, seed % 97)
    if across:
        board = (np.arange(size[0]) / across / 0.15).astype(int) % 512
        tone = tone * (1 + 0.12 * stage.noise.tiles["grain"][board, 0])[None, :]
    elif up > 20:
        tone[np.arange(shape[0]) / up % 0.15 < 0.035] *= 0.86
    tone[: max(1, shape[0] // 12)] *= 1.25
    tone[max(1, shape[0] // 12) : max(2, shape[0] // 8)] *= 0.8
    pixels = tone[..., None] * np.array(color, np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _hedge(
    stage: Stage, size: tuple[int, int], level: float, z: float, rng: random.Random, seed: int
) -> Image.Image:
    leaf = np.array(scale(rng.choice(LEAVES), 0.85), np.float32)
    shape = (size[1], size[0])
    fine = stage.noise.crop(shape, seed % 991, "speckle")
    rough = stage.noise.crop(shape, seed % 983)
    v = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None]
    tone = level * (1.05 - 0.45 * v) * np.clip(1 + 0.35 * fine + 0.18 * rough, 0.2, 2)
    veil = stage.light.veil(z)
    color = tone[..., None] * leaf * (1 - veil) + np.array(stage.light.haze, np.float32) * veil
    cover = np.clip((v * 12 - 1.6 + 0.7 * rough + 0.5 * fine) * 1.5 + 0.5, 0, 1)
    return Image.fromarray(np.dstack([np.clip(color, 0, 255), cover * 255]).astype(np.uint8))
