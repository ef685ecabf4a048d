"""Orthographic drawings of the street's house fronts: walls, windows, doors and shops."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from .canvas import Color
from .stage import Noise, mix, rgb, scale

TRADE: list[Color] = [
    (150, 28, 30), (28, 48, 118), (22, 74, 52), (30, 30, 34), (186, 142, 44), (110, 34, 80),
    (222, 220, 212), (40, 96, 140), (190, 84, 34), (58, 60, 66), (34, 36, 60),
]  # fmt: skip
GOODS: list[Color] = [(150, 120, 96), (186, 176, 160), (92, 80, 76), (120, 60, 52), (70, 84, 110)]


class Facade:
    """A drawing of one wall in meters: u along it from ``start``, v up from the ground."""

    def __init__(
        self,
        start: float,
        length: float,
        height: float,
        across: float,
        up: float,
        tint: tuple[float, float, float],
        noise: Noise,
        key: int,
        rough: float,
        shade_to: float = 0.0,
        shade: float = 1.0,
    ) -> None:
        """Lay the bare wall.

        ``across`` and ``up`` are texture pixels a meter, ``tint`` the lit wall's color, ``rough``
        the strength of its grain (bricks above 0.05); below ``shade_to`` meters a shadow lies on
        it in which it is ``shade`` times as bright.
        """
        self.start, self.across, self.up, self.height = start, across, up, height
        self.shade_to, self.shade = shade_to, shade
        size = (max(2, round(height * up)), max(2, round(length * across)))
        self.size = size
        v = np.linspace(height, 0, size[0], dtype=np.float32)[:, None]
        tone = 0.8 + 0.2 * np.minimum(1, (v + 0.2) / 1.2) - 0.14 * np.clip(v - height + 0.6, 0, 0.4)
        if rough > 0.05 and up > 20:
            tone = tone * np.where(v % 0.15 < 0.035, 0.88, 1.02)
        grain = noise.crop(size, key % 1009, "speckle" if up > 30 else "grain")
        tone = tone * (1 + rough * grain + 0.045 * noise.crop(size, key % 997))
        tone[(v < shade_to)[:, 0]] *= shade
        wall = tone[..., None] * np.array(tint, np.float32)
        self.image = Image.fromarray(np.clip(wall, 0, 255).astype(np.uint8))
        self.draw = ImageDraw.Draw(self.image)

    def rect(self, u0: float, v0: float, u1: float, v1: float, color: Color) -> None:
        """Fill [u0, u1] x [v0, v1]."""
        left, right = (u0 - self.start) * self.across, (u1 - self.start) * self.across
        if right < 0 or left > self.size[1]:
            return
        top, bottom = (self.height - v1) * self.up, (self.height - v0) * self.up
        if v1 < self.shade_to:
            color = scale(color, self.shade)
        box = (left, top, max(left, right - 1), max(top, bottom - 1))
        self.draw.rectangle(box, fill=color)


def fit_out(
    face: Facade, length: float, wall: str, shop: bool, rng: random.Random, level: float
) -> None:
    """Draw windows, doors, a shop and trimmings on a facade lit to ``level``."""
    top = face.height
    first = 3.5 if shop else 3.0
    storeys = max(1, int((top - 0.5) / 2.9))
    bays = max(1, int(length / rng.uniform(2.2, 3.2)))
    pitch = length / bays
    wide, tall = min(rng.uniform(0.9, 1.5), pitch * 0.7), rng.uniform(1.3, 1.8)
    if wall == "modern":
        wide = pitch * 0.84
    frame = scale((232, 230, 224) if rng.random() < 0.75 else (60, 58, 56), level)
    trim = scale((150, 142, 126), level)
    face.rect(0, top - 0.24, length, top, scale(trim, 0.8))
    face.rect(0, top - 0.3, length, top - 0.24, scale(trim, 0.4))
    if not shop:
        face.rect(0, 0, length, 0.45, scale(trim, 0.72))
    if rng.random() < 0.4:
        face.rect(0, first - 0.12, length, first + 0.08, trim)
    for storey in range(storeys):
        ground = storey == 0
        if ground and shop:
            _shop(face, length, rng, level)
            continue
        sill = 0.9 if ground else first + (storey - 1) * 2.9 + 0.7
        if sill + tall > top - 0.35:
            break
        for bay in range(bays):
            u = (bay + 0.5) * pitch
            if ground and bay % 3 == 1:
                _door(face, u, rng, level)
            else:
                _window(face, (u - wide / 2, sill), (wide, tall), frame, rng, level)
    if rng.random() < 0.6:
        face.rect(length - 0.16, 0, length - 0.04, top, scale((46, 46, 46), level))


def _window(
    face: Facade,
    corner: tuple[float, float],
    size: tuple[float, float],
    frame: Color,
    rng: random.Random,
    level: float,
) -> None:
    (u, v), (w, h) = corner, size
    glass = scale(mix((30, 34, 40), (150, 170, 190), rng.random() ** 2 * 0.8), 0.5 + 0.5 * level)
    blind, curtain = rng.random(), rng.random() < 0.35
    face.rect(u - 0.06, v + h, u + w + 0.06, v + h + 0.18, scale((172, 160, 140), level))
    face.rect(u - 0.1, v - 0.12, u + w + 0.1, v, scale((196, 190, 176), level))
    face.rect(u, v, u + w, v + h, frame)
    t = 0.06
    face.rect(u + t, v + t, u + w - t, v + h - t, glass)
    if face.up < 6:
        return
    face.rect(u - 0.02, v - 0.2, u + w + 0.02, v - 0.12, scale((60, 56, 52), level))
    face.rect(u + t, v + h * 0.8, u + w - t, v + h - t, scale(glass, 0.7))
    face.rect(u + t, v + t, u + t + 0.06, v + h - t, scale(glass, 0.7))
    if blind < 0.3:
        low = v + h * (0.3 + blind)
        face.rect(u + t, low, u + w - t, v + h - t, scale((170, 164, 152), 0.75 * level))
    if curtain:
        drape = scale((160, 152, 142), 0.7 * level)
        face.rect(u + t, v + t, u + w * 0.26, v + h - t, drape)
        face.rect(u + w * 0.76, v + t, u + w - t, v + h - t, drape)
    face.rect(u + t, v + h * 0.5, u + w - t, v + h * 0.5 + 0.05, frame)
    if w > 0.7:
        face.rect(u + w / 2 - 0.025, v + t, u + w / 2 + 0.025, v + h - t, frame)


def _door(face: Facade, u: float, rng: random.Random, level: float) -> None:
    color = scale(rng.choice(TRADE), level * 0.75)
    face.rect(u - 0.62, 0, u + 0.62, 2.55, scale((200, 196, 186), level))
    face.rect(u - 0.45, 0.1, u + 0.45, 2.1, color)
    face.rect(u - 0.45, 2.14, u + 0.45, 2.45, (48, 52, 58))
    face.rect(u - 0.3, 1.2, u + 0.3, 1.9, scale(color, 0.7))
    face.rect(u - 0.3, 0.3, u + 0.3, 1.0, scale(color, 0.8))
    face.rect(u - 0.7, 0, u + 0.7, 0.12, scale((170, 166, 156), level))


def _shop(face: Facade, length: float, rng: random.Random, level: float) -> None:
    trade = scale(rng.choice(TRADE), 0.35 + 0.6 * level)
    face.rect(0.1, 0, length - 0.1, 3.3, scale(trade, 0.7))
    face.rect(0.1, 2.62, length - 0.1, 3.28, trade)
    face.rect(0.0, 3.28, length, 3.4, scale(trade, 1.15))
    _lettering(face, length, trade, rng)
    u = 0.35
    while u < length - 0.8:
        w = min(rng.uniform(1.2, 2.8), length - 0.4 - u)
        door = rng.random() < 0.3
        low, glow = 0.05 if door else 0.55, rng.uniform(0.1, 0.5)
        glass = mix((24, 26, 30), (190, 170, 140), glow * 0.55)
        face.rect(u, low, u + w, 2.5, glass)
        for _ in range(6):
            du, dv = rng.uniform(0, w * 0.75), rng.uniform(low, 1.5)
            item = scale(rng.choice(GOODS), 0.25 + glow)
            face.rect(u + du, dv, u + du + w * 0.22, dv + rng.uniform(0.2, 0.7), item)
        face.rect(u, 2.05, u + w, 2.5, mix(glass, (150, 160, 170), 0.16))
        face.rect(u, 2.0, u + w, 2.06, scale(trade, 0.8))
        if face.across * w > 12:  # the street mirrored in the pane
            face.rect(u + w * 0.55, low, u + w * 0.7, 2.5, mix(glass, (170, 180, 190), 0.22))
        u += w + 0.14
    if rng.random() < 0.2:  # an awning
        face.rect(0.2, 2.1, length - 0.2, 2.75, scale(rng.choice(TRADE), 0.4 + 0.6 * level))


def _lettering(face: Facade, length: float, board: Color, rng: random.Random) -> None:
    """Strokes that read as a shop's name from across the street."""
    ink = rgb(236, 230, 212) if sum(board) < 420 else rgb(44, 40, 44)
    u, end = length * rng.uniform(0.1, 0.3), length * rng.uniform(0.65, 0.9)
    tall = rng.uniform(0.24, 0.36)
    while u < end:
        w = rng.uniform(0.1, 0.2)
        if rng.random() < 0.86:
            low = 2.95 - tall / 2
            face.rect(u, low, u + 0.05, low + tall, ink)
            kind = rng.random()
            if kind < 0.7:
                face.rect(u, low + tall * 0.84, u + w, low + tall, ink)
            if kind > 0.3:
                face.rect(u, low, u + w, low + tall * 0.16, ink)
            if kind < 0.45:
                face.rect(u + w - 0.05, low, u + w, low + tall, ink)
        u += w + 0.07
