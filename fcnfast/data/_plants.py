"""The drawn street's trees, hedges and far skyline, leafy or bare."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ._canvas import BUILDING, TREE, Camera, Canvas, Colour, Light, Noise, scale

LEAVES: list[Colour] = [(70, 92, 44), (58, 78, 40), (86, 100, 52), (52, 66, 44), (96, 98, 56)]


@dataclass
class Tree:
    """A tree; ``crown`` is the crown's half width in metres."""

    s: float
    z: float
    height: float
    crown: float
    kind: str  # leafy, conifer, bare or bush
    seed: int


def draw_tree(
    canvas: Canvas, camera: Camera, light: Light, noise: Noise, tree: Tree, lit: float = 1.0
) -> None:
    """Paint one tree; its label is its foliage (or its web of twigs) where that is dense."""
    if tree.kind == "bare":
        _bare(canvas, camera, light, tree, lit)
        return
    rng = random.Random(tree.seed)
    clear = {"leafy": 0.3, "conifer": 0.08, "bush": 0.0}[tree.kind] * tree.height
    bark = light.shade((72, 62, 52), (-0.3, 0.0, -0.9), tree.z, lit)
    if clear:
        r = 0.035 * tree.height
        trunk = [
            (tree.s - r, 0.0, tree.z),
            (tree.s - r * 0.6, clear * 1.6, tree.z),
            (tree.s + r * 0.6, clear * 1.6, tree.z),
            (tree.s + r, 0.0, tree.z),
        ]
        canvas.fill(camera.project(trunk), bark, TREE)
    k = camera.focal / tree.z
    width, tall = 2.3 * tree.crown * k, 1.12 * (tree.height - clear) * k
    if width < 1.5 or tall < 1.5:
        return
    size = (int(min(tall, 400)) + 2, int(min(width, 400)) + 2)
    pixels, alpha = _foliage(size, light, noise, tree, rng, lit)
    x, y = camera.at(tree.s, clear * 0.9, tree.z)
    canvas.patch(pixels, alpha, (x - width / 2, y - tall * 0.97), (width, tall), TREE)


def _foliage(
    size: tuple[int, int], light: Light, noise: Noise, tree: Tree, rng: random.Random, lit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Colours (h x w x 3) and opacity (h x w) of a crown made of lit clumps of leaves."""
    h, w = size
    v = (np.arange(h, dtype=np.float32)[:, None] + 0.5) / h
    u = (np.arange(w, dtype=np.float32)[None, :] + 0.5) / w - 0.5
    field = np.full(size, -9.0, np.float32)
    shape = np.zeros(size, np.float32)  # brightness of the clump in front
    if tree.kind == "conifer":
        field = (0.06 + 0.38 * v - np.abs(u)) * 5
        shape = u * light.sun[0] * 1.2
    else:
        for _ in range(9):
            t, r = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.26)
            cu, cv = r * math.cos(t), 0.5 + r * 1.1 * math.sin(t)
            radius = rng.uniform(0.15, 0.25)
            du, dv = (u - cu) / radius, (v - cv) / radius
            lump = 1 - (du * du + dv * dv)
            shape = np.where(lump > field, 0.35 * (du * light.sun[0] - dv * 0.8), shape)
            field = np.maximum(field, lump)
    rough = noise.crop(size, tree.seed % 997)
    fine = 0.5 * noise.crop(size, tree.seed % 1009, "speckle")
    cover = field * 1.6 + 0.55 * rough + 0.5 * fine + (0.5 if tree.kind == "bush" else 0.15)
    alpha = (np.clip(cover * 2.5 + 0.5, 0, 1) * 255).astype(np.uint8)
    sun = light.strength * lit * (0.25 + 0.75 * np.clip(0.35 + shape + 0.15 * rough, 0, 1))
    level = light.ambient * np.clip(0.52 + 0.3 * shape + 0.1 * rough, 0.15, 1) + 0.8 * sun
    level = level * np.clip(1 + 0.38 * fine * 1.6, 0.25, 1.8)
    leaf = np.array(rng.choice(LEAVES), np.float32) * rng.uniform(0.75, 1.1)
    air = 1 - math.exp(-tree.z / light.visibility)
    colour = level[..., None] * leaf * (1 - air) + np.array(light.haze, np.float32) * air
    return np.clip(colour, 0, 255).astype(np.uint8), alpha


def _bare(canvas: Canvas, camera: Camera, light: Light, tree: Tree, lit: float) -> None:
    """A winter tree: branches that fork until they are twigs."""
    k = camera.focal / tree.z
    width, tall = 2.6 * tree.crown * k, 1.08 * tree.height * k
    if tall < 3:
        return
    over = 2 if tall < 400 else 1
    fit = min(1.0, 500 / tall)
    size = (max(4, int(width * fit * over)), max(4, int(tall * fit * over)))
    wood = Image.new("L", size)
    draw = ImageDraw.Draw(wood)
    rng = np.random.default_rng([tree.seed, 2])
    scale_ = tall * fit * over / 1.08  # pixels for the tree's height
    depth = 7 if tall > 120 else 6 if tall > 50 else 5
    ends = np.array([[size[0] / 2, size[1], 0.0, 0.3 * scale_, 0.032 * scale_]])
    for level in range(depth):
        x0, y0, t, length, thick = ends.T
        x1, y1 = x0 + np.sin(t) * length, y0 - np.cos(t) * length
        shade = 255 if level < 4 else 215 - 25 * (level - 4)
        for a, b, c, d, wide in zip(x0, y0, x1, y1, thick, strict=True):
            draw.line((a, b, c, d), fill=shade, width=max(1, round(wide)))
        fork = 3 if level in (0, 2, 4) else 2
        n = len(t) * fork
        bend = np.tile(np.linspace(-1, 1, fork), len(t)) * rng.uniform(0.2, 0.62, n)
        turn = np.repeat(t, fork) * 0.88 + bend + rng.normal(0, 0.1, n)
        grow = np.repeat(length, fork) * rng.uniform(0.6, 0.86, n) * (0.8 if level == 0 else 1)
        ends = np.stack(
            [np.repeat(x1, fork), np.repeat(y1, fork), turn, grow, np.repeat(thick, fork) * 0.62], 1
        )
    web = np.asarray(wood.filter(ImageFilter.BoxBlur(max(1.0, 0.016 * scale_))), np.float32)
    alpha = np.maximum(np.asarray(wood), np.clip(web * 0.55, 0, 110)).astype(np.uint8)
    bark = light.shade((88, 78, 68), (0.0, 0.0, -1.0), tree.z, lit)
    pixels = np.empty((*alpha.shape, 3), np.uint8)
    pixels[:] = bark
    x, y = camera.at(tree.s, 0.0, tree.z)
    dense = np.where(web > 26, 255, 0).astype(np.uint8)
    canvas.patch(pixels, alpha, (x - width / 2, y - tall), (width, tall), TREE, dense)


def draw_hedge(
    canvas: Canvas,
    camera: Camera,
    light: Light,
    noise: Noise,
    s: float,
    near: float,
    far: float,
    height: float,
    seed: int,
) -> None:
    """Paint a hedge along the street at distance ``s`` with a ragged top."""
    rng = random.Random(seed)
    leaf = np.array(scale(rng.choice(LEAVES), 0.85), np.float32)
    z0 = max(near, 1.5)
    if z0 >= far:
        return
    up = min(1.2 * camera.focal / z0, 300 / height)
    size = (max(4, int(height * up)), max(4, min(600, int((far - z0) * up * 0.4))))
    fine = 0.5 * noise.crop(size, seed % 991, "speckle")
    rough = noise.crop(size, seed % 983)
    v = np.linspace(0, 1, size[0], dtype=np.float32)[:, None]
    level = light.level((-1.0 if s > 0 else 1.0, 0.4, 0.0), 0.7)
    tone = level * (1.05 - 0.45 * v) * np.clip(1 + 0.7 * fine + 0.18 * rough, 0.2, 2)
    air = 1 - math.exp(-(z0 + far) / 2 / light.visibility)
    colour = tone[..., None] * leaf * (1 - air) + np.array(light.haze, np.float32) * air
    cover = np.clip((v * size[0] / 4 - 1.2 + 0.8 * rough + 0.9 * fine) * 1.5 + 0.5, 0, 1)
    rgba = np.dstack([np.clip(colour, 0, 255), cover * 255]).astype(np.uint8)
    corners = [(s, height, z0), (s, height, far), (s, 0.0, far), (s, 0.0, z0)]
    canvas.quad(camera.project(corners), Image.fromarray(rgba, "RGBA"), TREE)


def draw_skyline(canvas: Canvas, camera: Camera, light: Light, noise: Noise, seed: int) -> None:
    """Paint what closes the view at the end of the street: roofs, then trees before them."""
    rng = random.Random(seed)
    z = 130.0
    k = camera.focal / z
    base = camera.cy + camera.eye * k + 0.5
    x = -camera.width * 0.05
    while x < camera.width * 1.05:
        wide, tall = rng.uniform(6, 16) * k, rng.uniform(4, 10) * k
        wall = light.air(scale((126, 112, 98), light.ambient * rng.uniform(0.7, 1.1)), z * 0.7)
        body = [
            (x, base),
            (x, base - tall),
            (x + wide * 0.2, base - tall * 1.35),
            (x + wide * 0.8, base - tall * 1.35),
            (x + wide, base - tall),
            (x + wide, base),
        ]
        if rng.random() < 0.7:
            canvas.fill(body, wall, BUILDING)
        x += wide
    steps = max(4, min(camera.width, 300))
    line = noise.crop((8, steps), seed % 977)[0] * 1.4 + noise.crop((8, steps), 3, "grain")[0]
    tops = base - np.maximum(1.0, 4.5 + 2.2 * line) * k
    xs = np.linspace(-2, camera.width + 2, steps)
    shape = [(float(a), float(b)) for a, b in zip(xs, tops, strict=True)]
    leaf = light.air(scale((66, 72, 52), light.ambient * 0.85), z * 0.7)
    canvas.fill([(xs[0], base), *shape, (xs[-1], base)], leaf, TREE)
