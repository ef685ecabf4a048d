"""The drawn street's trees, leafy or bare, and the skyline at its end."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .canvas import BUILDING, TREE, Color
from .stage import Stage, scale

LEAVES: list[Color] = [
    (72, 92, 46), (60, 80, 42), (88, 100, 54), (54, 68, 46), (98, 98, 58), (66, 84, 52),
]  # fmt: skip


@dataclass
class Tree:
    """A tree; ``crown`` is the crown's half width in meters."""

    s: float
    z: float
    height: float
    crown: float
    kind: str  # leafy, conifer, bare or bush
    seed: int


def draw_tree(stage: Stage, tree: Tree, lit: float) -> None:
    """Paint one tree; its label is its foliage, or its web of twigs where that is dense."""
    camera = stage.camera
    if camera.misses(tree.s, tree.z, 1.4 * tree.crown):
        return
    if tree.kind == "bare":
        _bare(stage, tree, lit)
        return
    rng = random.Random(tree.seed)
    clear = {"leafy": 0.3, "conifer": 0.08, "bush": 0.0}[tree.kind] * tree.height
    if clear:
        bark = stage.light.shade((70, 60, 50), (-0.3, 0.0, -0.9), tree.z, lit)
        _trunk(stage, tree, clear * 1.6, bark)
    k = camera.focal / tree.z
    width, tall = 2.3 * tree.crown * k, 1.12 * (tree.height - clear) * k
    if width < 1.5 or tall < 1.5:
        return
    most = 1.2 * camera.height
    size = (int(min(tall, most)) + 2, int(min(width, most)) + 2)
    pixels, alpha = _foliage(stage, size, tree, rng, lit)
    x, y = camera.at(tree.s, clear * 0.9, tree.z)
    stage.canvas.patch(pixels, alpha, (x - width / 2, y - tall * 0.97), (width, tall), TREE)


def _trunk(stage: Stage, tree: Tree, top: float, bark: Color) -> None:
    r, s, z = 0.03 * tree.height, tree.s, tree.z
    outline = [(s - r, 0.0), (s - r * 0.6, top), (s + r * 0.6, top), (s + r, 0.0)]
    stage.canvas.fill(stage.camera.project([(a, y, z) for a, y in outline]), bark, TREE)
    dark = [(s + r * 0.2, 0.0), (s + r * 0.1, top), (s + r * 0.6, top), (s + r, 0.0)]
    shade = scale(bark, 0.7)
    stage.canvas.fill(stage.camera.project([(a, y, z) for a, y in dark]), shade)


def _lumps(
    size: tuple[int, int], tree: Tree, rng: random.Random, sun: float
) -> tuple[np.ndarray, np.ndarray]:
    """How far inside the crown each pixel lies, and the brightness of the clump in front."""
    small = (size[0] // 4 + 2, size[1] // 4 + 2)
    v = ((np.arange(small[0], dtype=np.float32) + 0.5) / small[0])[:, None]
    u = ((np.arange(small[1], dtype=np.float32) + 0.5) / small[1])[None, :] - 0.5
    if tree.kind == "conifer":
        field = (np.minimum(0.06 + 0.38 * v, 3.2 * (1.03 - v)) - np.abs(u)) * 5
        shape = np.broadcast_to(u * sun * 1.2, small).astype(np.float32)
    else:
        field, shape = np.full(small, -9.0, np.float32), np.zeros(small, np.float32)
        for _ in range(11):
            t, r = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.27)
            du = (u - r * math.cos(t)) / (radius := rng.uniform(0.13, 0.24))
            dv = (v - 0.5 - r * 1.1 * math.sin(t)) / radius
            lump = 1 - (du * du + dv * dv)
            shape = np.where(lump > field, 0.35 * (du * sun - dv * 0.9), shape)
            field = np.maximum(field, lump)
    whole = (size[1], size[0])
    bilinear = Image.Resampling.BILINEAR
    grow = [Image.fromarray(np.ascontiguousarray(a, np.float32)) for a in (field, shape)]
    return np.asarray(grow[0].resize(whole, bilinear)), np.asarray(grow[1].resize(whole, bilinear))


def _foliage(
    stage: Stage, size: tuple[int, int], tree: Tree, rng: random.Random, lit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Colors (h x w x 3) and opacity (h x w) of a crown made of lit clumps of leaves."""
    light = stage.light
    field, shape = _lumps(size, tree, rng, light.sun[0])
    rough = stage.noise.crop(size, tree.seed % 997)
    fine = stage.noise.crop(size, tree.seed % 1009, "speckle")
    cover = field * 1.6 + 0.5 * rough + 0.3 * fine + (0.5 if tree.kind == "bush" else 0.15)
    alpha = (np.clip(cover * 2.5 + 0.5, 0, 1) * 255).astype(np.uint8)
    lobes = shape + 0.16 * rough
    sun = 0.8 * light.strength * lit * (0.2 + 0.8 * np.clip(0.35 + lobes, 0, 1))
    level = light.ambient * np.clip(0.5 + 0.5 * lobes, 0.12, 1) + sun
    level = level * np.clip(1 + 0.42 * fine, 0.2, 2.0)
    leaf = np.array(rng.choice(LEAVES), np.float32) * rng.uniform(0.75, 1.1)
    veil = light.veil(tree.z)
    pixels = np.empty((*size, 3), np.uint8)
    for i in range(3):
        pixels[..., i] = np.clip(level * (leaf[i] * (1 - veil)) + light.haze[i] * veil, 0, 255)
    return pixels, alpha


def _bare(stage: Stage, tree: Tree, lit: float) -> None:
    """A winter tree: branches that fork until they are twigs."""
    k = stage.camera.focal / tree.z
    width, tall = 2.8 * tree.crown * k, 1.08 * tree.height * k
    if tall < 3:
        return
    fit = 2.0 if tall < 120 else 1.5
    fit *= min(1.0, 1.1 * stage.camera.height / tall)
    size = (max(4, int(width * fit)), max(4, int(tall * fit)))
    unit = tall * fit / 1.08  # texture pixels of the tree's height
    depth = 7 if tall > 200 else 6 if tall > 100 else 5 if tall > 45 else 4
    rng = np.random.default_rng([tree.seed, 2])
    limbs, twigs = Image.new("L", size), Image.new("L", size)
    _branches((ImageDraw.Draw(limbs), ImageDraw.Draw(twigs)), size, unit, depth, rng)
    web = twigs.filter(ImageFilter.BoxBlur(max(1.0, 0.016 * unit)))
    # Twigs too fine to draw are a veil over what is behind.
    veil = web.point([min(110, v) for v in range(256)])
    alpha = np.asarray(ImageChops.lighter(ImageChops.lighter(limbs, twigs), veil))
    dense = np.asarray(ImageChops.lighter(limbs, web.point([0] * 20 + [255] * 236)))
    bark = stage.light.shade((92, 84, 76), (0.0, 0.2, -1.0), tree.z, lit)
    x, y = stage.camera.at(tree.s, 0.0, tree.z)
    pixels: Color | np.ndarray = bark
    if tall > 150:  # near enough to see that the bark is rough
        rough = 1 + 0.16 * stage.noise.crop(alpha.shape, tree.seed % 871, "speckle")
        pixels = np.clip(rough[..., None] * np.array(bark, np.float32), 0, 255).astype(np.uint8)
    stage.canvas.patch(pixels, alpha, (x - width / 2, y - tall), (width, tall), TREE, dense)


def _branches(
    pens: tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw],
    size: tuple[int, int],
    unit: float,
    depth: int,
    rng: np.random.Generator,
) -> None:
    """Draw a tree ``unit`` pixels tall that forks ``depth`` times: limbs and twigs apart."""
    trunk = 0.27 if depth > 5 else 0.32
    ends = np.array([[size[0] / 2, size[1], 0.0, trunk * unit, 0.026 * unit]])
    for level in range(depth):
        x0, y0, t, length, thick = ends.T
        x1, y1 = x0 + np.sin(t) * length, y0 - np.cos(t) * length
        shade = (255, 255, 250, 240, 215, 180, 140)[level]
        lines = np.stack([x0, y0, x1, y1], 1).tolist()
        widths = np.maximum(1, thick.round()).astype(int).tolist()
        pen = pens[0 if level < 3 else 1]
        for line, wide in zip(lines, widths, strict=True):
            pen.line(line, fill=shade, width=wide)
        fork = 3 if level != 1 else 2
        n = len(t) * fork
        bend = np.tile(np.linspace(-1, 1, fork), len(t)) * rng.uniform(0.2, 0.55, n)
        turn = np.repeat(t, fork) * 0.9 + bend + rng.normal(0, 0.12, n)
        grow = np.repeat(length, fork) * rng.uniform(0.55, 0.92, n)
        along = rng.uniform(0.55, 1.0, n) if level > 1 else 1.0  # twigs leave a bough anywhere
        x = np.repeat(x0, fork) + np.repeat(x1 - x0, fork) * along
        y = np.repeat(y0, fork) + np.repeat(y1 - y0, fork) * along
        ends = np.stack([x, y, turn, grow, np.repeat(thick, fork) * 0.58], 1)


def draw_skyline(stage: Stage, seed: int, lit: float) -> None:
    """Paint what closes the view at the end of the street: roofs, then trees before them."""
    camera, light, rng = stage.camera, stage.light, random.Random(seed)
    z = 130.0
    k = camera.focal / z
    base = camera.cy + camera.eye * k + 0.6
    x = -camera.width * 0.05
    while x < camera.width * 1.05:
        wide, tall = rng.uniform(6, 16) * k, rng.uniform(4, 10) * k
        tone = light.ambient * rng.uniform(0.7, 1.1) + 0.3 * light.strength * lit
        wall = light.air(scale((126, 112, 98), tone), z * 0.7)
        ridge = base - tall * 1.3
        body = [(x, base), (x, base - tall), (x + wide * 0.2, ridge), (x + wide * 0.8, ridge),
                (x + wide, base - tall), (x + wide, base)]  # fmt: skip
        if rng.random() < 0.7:
            stage.canvas.fill(body, wall, BUILDING)
        x += max(wide, 0.02 * camera.width)
    steps = max(4, min(camera.width, 400))
    row = stage.noise.crop((1, steps), seed % 977)[0]
    bumps = stage.noise.crop((1, steps), seed % 331, "speckle")[0]
    tops = base - np.maximum(1.0, 4.2 + 1.8 * row + 0.5 * bumps) * k
    xs = np.linspace(-2, camera.width + 2, steps)
    shape = list(zip(xs.tolist(), tops.tolist(), strict=True))
    leaf = light.air(scale((66, 72, 52), light.ambient * 0.85 + 0.2 * light.strength), z * 0.7)
    stage.canvas.fill([(float(xs[0]), base), *shape, (float(xs[-1]), base)], leaf, TREE)
