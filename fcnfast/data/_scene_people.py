"""The drawn street's people, on foot and on bicycles: figures of cut-out limbs facing us."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ._scene_canvas import BICYCLIST, PEDESTRIAN, Colour, Point
from ._scene_stage import Stage, mix, scale

COATS: list[Colour] = [
    (38, 40, 46),
    (30, 30, 32),
    (44, 50, 70),
    (70, 62, 54),
    (110, 34, 34),
    (60, 66, 54),
    (140, 150, 160),
    (54, 42, 60),
    (150, 120, 84),
    (36, 58, 92),
    (178, 60, 44),
    (90, 94, 98),
]
TROUSERS: list[Colour] = [(34, 38, 52), (26, 26, 28), (52, 56, 72), (64, 58, 50), (44, 44, 46)]
SKINS: list[Colour] = [(196, 150, 126), (168, 120, 96), (120, 82, 62), (206, 164, 142)]
HAIR: list[Colour] = [(34, 26, 22), (60, 44, 32), (96, 74, 48), (120, 116, 112), (22, 20, 20)]


@dataclass
class Person:
    """Someone on the street; ``view`` is front, back or side (the walker's or rider's)."""

    s: float
    z: float
    y: float  # height of the ground they stand on
    height: float
    view: str
    facing: int  # -1 to the left, +1 to the right when seen from the side
    seed: int


class _Figure:
    """Draws in metres around a foot point, all in one class and one light."""

    def __init__(self, stage: Stage, who: Person, label: int, lit: float) -> None:
        self.canvas, self.light, self.label, self.z = stage.canvas, stage.light, label, who.z
        self.k = stage.camera.focal / max(who.z, 0.5)
        self.x, self.y = stage.camera.at(who.s, who.y, who.z)
        self.level = stage.light.level((0.0, 0.1, -1.0), 0.0) + 0.45 * stage.light.strength * lit
        self.flip = who.facing

    def tone(self, colour: Colour, share: float = 1.0) -> Colour:
        return self.light.air(scale(colour, self.level * share), self.z)

    def at(self, u: float, v: float) -> Point:
        return self.x + u * self.flip * self.k, self.y - v * self.k

    def shape(self, points: list[Point], colour: Colour, share: float = 1.0) -> None:
        self.canvas.fill([self.at(*p) for p in points], self.tone(colour, share), self.label)

    def limb(self, points: list[Point], width: float, colour: Colour, share: float = 1.0) -> None:
        path = [self.at(*p) for p in points]
        self.canvas.stroke(path, width * self.k, self.tone(colour, share), self.label)

    def oval(
        self, u: float, v: float, ru: float, rv: float, colour: Colour, share: float = 1.0
    ) -> None:
        self.canvas.ellipse(
            self.at(u, v), ru * self.k, rv * self.k, self.tone(colour, share), self.label
        )

    def head(self, u: float, v: float, view: str, skin: Colour, hair: Colour) -> None:
        self.limb([(u, v - 0.2), (u, v)], 0.11, skin, 0.8)
        self.oval(u, v, 0.095, 0.125, skin if view != "back" else hair)
        if view == "side":
            self.oval(u - 0.03, v + 0.02, 0.09, 0.115, hair)
            self.oval(u + 0.045, v - 0.02, 0.05, 0.09, skin)
        self.oval(u - (0.02 if view == "side" else 0), v + 0.07, 0.098, 0.07, hair)


def draw_pedestrian(stage: Stage, who: Person, lit: float) -> None:
    """Paint a walker: legs in mid-stride, coat, arms, head, sometimes a bag."""
    rng = random.Random(who.seed)
    pen = _Figure(stage, who, PEDESTRIAN, lit)
    coat, legs = rng.choice(COATS), rng.choice(TROUSERS)
    skin, hair = rng.choice(SKINS), rng.choice(HAIR)
    h = who.height / 1.75
    side = who.view == "side"
    stride = rng.uniform(0.12, 0.32) if side else rng.uniform(0.05, 0.12)
    hem = rng.choice([0.82, 0.82, 0.6]) * h
    for sign, share in ((-1, 0.75), (1, 1.0)):
        foot = sign * stride
        knee = foot * 0.5 + (0.05 if side else 0.0)
        lift = 0.06 if side and sign < 0 else 0.0
        pen.limb(
            [(sign * 0.05, 0.88 * h), (knee, 0.48 * h), (foot, (0.06 + lift) * h)],
            0.145 * h,
            legs,
            share,
        )
        pen.oval(
            foot + (0.05 if side else 0),
            0.045 * h + lift,
            0.11 if side else 0.065,
            0.045,
            (24, 22, 22),
        )
    half, waist = (0.15, 0.14) if side else (0.225, 0.18)
    swing = stride * 0.8
    for sign, share in ((-1, 0.7), (1, 0.95)):
        if side and sign > 0:
            continue
        hand = (sign * swing, 0.84 * h) if side else (sign * 0.29, 0.82 * h)
        pen.limb(
            [(sign * (half - 0.05), 1.4 * h), ((sign * (half + 0.05)), 1.12 * h), hand],
            0.1 * h,
            coat,
            share,
        )
        pen.oval(*hand, 0.045, 0.05, skin)
    torso = [
        (-half * 0.75, 1.5 * h),
        (half * 0.75, 1.5 * h),
        (half, 1.4 * h),
        (waist, 1.08 * h),
        (half * 1.02, hem),
        (-half * 1.02, hem),
        (-waist, 1.08 * h),
        (-half, 1.4 * h),
    ]
    pen.shape(torso, coat)
    pen.shape(
        [
            (half * 0.2, 1.48 * h),
            (half, 1.4 * h),
            (waist, 1.08 * h),
            (half, hem),
            (half * 0.3, hem),
        ],
        coat,
        0.8,
    )
    if side:
        pen.limb([(0, 1.4 * h), (0.06, 1.12 * h), (swing, 0.86 * h)], 0.1 * h, coat, 1.1)
        pen.oval(swing, 0.84 * h, 0.045, 0.05, skin)
    if rng.random() < 0.4:
        bag = rng.choice(COATS)
        if who.view == "back":
            pen.shape(
                [(-0.14, 1.42 * h), (0.14, 1.42 * h), (0.15, 1.02 * h), (-0.15, 1.02 * h)], bag
            )
        else:
            pen.shape([(0.2, 0.9 * h), (0.4, 0.9 * h), (0.42, 0.55 * h), (0.18, 0.55 * h)], bag)
    pen.head(0.03 if side else 0.0, 1.62 * h, who.view, skin, hair)


def draw_cyclist(stage: Stage, who: Person, lit: float) -> None:
    """Paint a bicycle and its rider; wheels count as the bicycle, spokes and gaps alike."""
    rng = random.Random(who.seed)
    pen = _Figure(stage, who, BICYCLIST, lit)
    clothes = (rng.choice(COATS), rng.choice(TROUSERS), rng.choice(SKINS), rng.choice(HAIR))
    frame = rng.choice([(150, 30, 30), (40, 60, 120), (40, 42, 44), (150, 150, 154)])
    if who.view == "side":
        _side_rider(pen, rng, clothes, frame)
    else:
        _end_rider(pen, rng, clothes, frame, who.view)


Clothes = tuple[Colour, Colour, Colour, Colour]


def _wheel(pen: _Figure, u: float) -> None:
    ground = mix((92, 92, 92), pen.light.haze, 0.1)
    pen.oval(u, 0.34, 0.34, 0.34, (22, 22, 24))
    pen.oval(u, 0.34, 0.29, 0.29, ground, 0.85)
    if pen.k > 25:
        for i in range(8):
            t = i * math.pi / 8
            du, dv = 0.29 * math.cos(t), 0.29 * math.sin(t)
            pen.limb([(u - du, 0.34 - dv), (u + du, 0.34 + dv)], 0.008, (120, 120, 120))
    pen.oval(u, 0.34, 0.05, 0.05, (70, 70, 72))


def _side_rider(pen: _Figure, rng: random.Random, clothes: Clothes, frame: Colour) -> None:
    coat, legs, skin, hair = clothes
    crank, seat, bars = (0.0, 0.3), (-0.22, 0.92), (0.42, 1.0)
    angle = rng.uniform(0, 2 * math.pi)
    feet = [
        (crank[0] + 0.17 * math.cos(angle + k), crank[1] + 0.17 * math.sin(angle + k))
        for k in (math.pi, 0.0)
    ]
    for foot, share in zip(feet[:1], (0.7,), strict=True):
        pen.limb(
            [(-0.2, 0.98), (foot[0] + 0.22, (foot[1] + 0.98) / 2 + 0.08), foot], 0.13, legs, share
        )
    for u in (-0.52, 0.55):
        _wheel(pen, u)
    for path in (
        [(-0.52, 0.34), crank, seat, (-0.52, 0.34)],
        [crank, (0.4, 0.84), (-0.18, 0.8)],
        [(0.55, 0.34), bars],
    ):
        pen.limb(path, 0.045, frame)
    pen.limb([(-0.34, 0.94), (-0.1, 0.94)], 0.07, (20, 20, 20))
    foot = feet[1]
    pen.limb([(-0.2, 0.98), (foot[0] + 0.24, (foot[1] + 0.98) / 2 + 0.08), foot], 0.14, legs)
    pen.oval(foot[0] + 0.05, foot[1], 0.11, 0.05, (24, 22, 22))
    pen.shape([(-0.34, 1.0), (-0.08, 0.94), (0.2, 1.36), (0.12, 1.52), (-0.06, 1.5)], coat)
    pen.limb([(0.1, 1.42), (0.22, 1.14), bars], 0.1, coat, 1.1)
    pen.oval(*bars, 0.05, 0.05, skin)
    _helmet(pen, rng, 0.2, 1.66, "side", skin, hair)


def _end_rider(
    pen: _Figure, rng: random.Random, clothes: Clothes, frame: Colour, view: str
) -> None:
    coat, legs, skin, hair = clothes
    pen.oval(0, 0.34, 0.045, 0.34, (22, 22, 24))
    pen.limb([(0, 0.5), (0, 0.95)], 0.05, frame)
    lift = rng.uniform(-0.14, 0.14)
    for sign in (-1, 1):
        foot = 0.3 + sign * lift
        pen.limb(
            [(sign * 0.09, 0.98), (sign * 0.15, 0.66 + sign * lift * 0.5), (sign * 0.12, foot)],
            0.14,
            legs,
            0.8 if sign < 0 else 1.0,
        )
        pen.oval(sign * 0.12, foot - 0.03, 0.06, 0.05, (24, 22, 22))
    pen.limb([(-0.28, 1.02), (0.28, 1.02)], 0.05, (40, 40, 42))
    for sign in (-1, 1):
        pen.limb([(sign * 0.18, 1.4), (sign * 0.29, 1.2), (sign * 0.26, 1.02)], 0.1, coat, 0.85)
    pen.shape(
        [
            (-0.14, 1.5),
            (0.14, 1.5),
            (0.22, 1.42),
            (0.19, 1.1),
            (0.2, 0.92),
            (-0.2, 0.92),
            (-0.19, 1.1),
            (-0.22, 1.42),
        ],
        coat,
    )
    pen.shape([(0.05, 1.48), (0.22, 1.42), (0.19, 1.1), (0.2, 0.92), (0.06, 0.92)], coat, 0.8)
    if view == "back":
        pen.oval(0, 0.8, 0.03, 0.035, (200, 30, 26), 1.4)
    if rng.random() < 0.5:
        pen.shape([(-0.13, 1.42), (0.13, 1.42), (0.14, 1.08), (-0.14, 1.08)], rng.choice(COATS))
    _helmet(pen, rng, 0.0, 1.66, view, skin, hair)


def _helmet(
    pen: _Figure, rng: random.Random, u: float, v: float, view: str, skin: Colour, hair: Colour
) -> None:
    pen.head(u, v, view, skin, hair)
    if rng.random() < 0.5:
        pen.oval(
            u - 0.01,
            v + 0.08,
            0.12,
            0.075,
            rng.choice([(180, 40, 40), (210, 210, 206), (40, 44, 52), (60, 90, 150)]),
        )
