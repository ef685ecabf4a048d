"""The drawn street's people, on foot and on bicycles: figures of cut-out limbs facing us."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from .canvas import BICYCLIST, PEDESTRIAN, Color, Point
from .stage import Stage, mix, scale

COATS: list[Color] = [
    (38, 40, 46), (30, 30, 32), (44, 50, 70), (70, 62, 54), (110, 34, 34), (60, 66, 54),
    (140, 150, 160), (54, 42, 60), (150, 120, 84), (36, 58, 92), (178, 60, 44), (90, 94, 98),
]  # fmt: skip
TROUSERS: list[Color] = [(34, 38, 52), (26, 26, 28), (52, 56, 72), (64, 58, 50), (44, 44, 46)]
SKINS: list[Color] = [(196, 150, 126), (168, 120, 96), (120, 82, 62), (206, 164, 142)]
HAIR: list[Color] = [(34, 26, 22), (60, 44, 32), (96, 74, 48), (120, 116, 112), (22, 20, 20)]


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
    """Draws in meters around a foot point, all in one class and one light."""

    def __init__(self, stage: Stage, who: Person, label: int, lit: float) -> None:
        self.canvas, self.light, self.label, self.z = stage.canvas, stage.light, label, who.z
        self.k = stage.camera.focal / max(who.z, 0.5)
        self.x, self.y = stage.camera.at(who.s, who.y, who.z)
        self.level = stage.light.level((0.0, 0.1, -1.0), 0.0) + 0.45 * stage.light.strength * lit
        self.flip = who.facing

    def tone(self, color: Color, share: float = 1.0) -> Color:
        """A color in this light and at this distance."""
        return self.light.air(scale(color, self.level * share), self.z)

    def at(self, u: float, v: float) -> Point:
        """The picture point u meters ahead of the foot and v above it."""
        return self.x + u * self.flip * self.k, self.y - v * self.k

    def shape(self, points: list[Point], color: Color, share: float = 1.0) -> None:
        """Fill a polygon with rounded corners."""
        path = [self.at(*p) for p in points]
        if self.k > 20:
            path = _rounded(path)
        self.canvas.fill(path, self.tone(color, share), self.label)

    def limb(self, points: list[Point], width: float, color: Color, share: float = 1.0) -> None:
        """Draw a bent limb of even width."""
        path = [self.at(*p) for p in points]
        self.canvas.stroke(path, width * self.k, self.tone(color, share), self.label)

    def oval(
        self, u: float, v: float, ru: float, rv: float, color: Color, share: float = 1.0
    ) -> None:
        """Fill an upright ellipse."""
        center = self.at(u, v)
        tone = self.tone(color, share)
        self.canvas.ellipse(center, ru * self.k, rv * self.k, tone, self.label)

    def head(self, u: float, v: float, view: str, skin: Color, hair: Color, long: bool) -> None:
        """Neck, hair and face around the middle of the head."""
        if long:
            low = [(u - 0.11, v + 0.03), (u + 0.07, v + 0.05), (u + 0.06, v - 0.2),
                   (u - 0.13, v - 0.2)] if view == "side" else [
                   (u - 0.1, v + 0.05), (u + 0.1, v + 0.05), (u + 0.11, v - 0.22),
                   (u - 0.11, v - 0.22)]  # fmt: skip
            self.shape(low, hair, 0.9)
        if view != "back" or not long:
            self.limb([(u - 0.01, v - 0.2), (u, v)], 0.1, skin, 0.75)
        self.oval(u - (0.02 if view == "side" else 0.0), v + 0.02, 0.1, 0.125, hair)
        if view == "side":
            self.oval(u + 0.035, v - 0.02, 0.062, 0.098, skin)
            self.oval(u - 0.02, v + 0.055, 0.085, 0.075, hair)
        elif view == "front":
            self.oval(u, v - 0.015, 0.08, 0.105, skin)
            self.oval(u, v + 0.09, 0.085, 0.045, hair)
        else:
            self.oval(u, v - 0.07, 0.07, 0.06, skin if not long else hair, 0.8)
            self.oval(u, v + 0.025, 0.095, 0.11, hair, 1.05)


def _rounded(path: list[Point]) -> list[Point]:
    """A closed polygon with its corners cut twice (Chaikin)."""
    for _ in range(2):
        cut = []
        for i, (x, y) in enumerate(path):
            px, py = path[i - 1]
            cut += [(0.75 * px + 0.25 * x, 0.75 * py + 0.25 * y),
                    (0.25 * px + 0.75 * x, 0.25 * py + 0.75 * y)]  # fmt: skip
        path = cut
    return path


def draw_pedestrian(stage: Stage, who: Person, lit: float) -> None:
    """Paint a walker: legs in mid-stride, coat, arms, head, sometimes a bag."""
    rng = random.Random(who.seed)
    pen = _Figure(stage, who, PEDESTRIAN, lit)
    look = _Look(
        rng.choice(COATS), rng.choice(TROUSERS), rng.choice(SKINS), rng.choice(HAIR),
        hem=rng.choice([0.9, 0.86, 0.72, 0.55]), long_hair=rng.random() < 0.4,
        bag=rng.choice(COATS) if rng.random() < 0.45 else None,
        scarf=rng.choice(COATS) if rng.random() < 0.3 else None,
    )  # fmt: skip
    pen.k *= who.height / 1.75
    if who.view == "side":
        _walk_across(pen, look, rng.uniform(0.14, 0.34))
    else:
        _walk_along(pen, look, rng.uniform(-0.07, 0.07), who.view)


@dataclass
class _Look:
    coat: Color
    trousers: Color
    skin: Color
    hair: Color
    hem: float
    long_hair: bool
    bag: Color | None
    scarf: Color | None


def _walk_along(pen: _Figure, look: _Look, lift: float, view: str) -> None:
    """Someone seen from the front or from behind."""
    for sign, share in ((-1, 0.8), (1, 1.0)):
        up = max(0.0, sign * lift)
        hip, foot = sign * 0.085, sign * 0.1
        pen.shape([(hip - 0.09, 0.95), (hip + 0.09, 0.95), (foot + 0.065, 0.5 + up),
                   (foot + 0.055, 0.07 + up), (foot - 0.055, 0.07 + up),
                   (foot - 0.065, 0.5 + up)], look.trousers, share)  # fmt: skip
        pen.oval(foot + sign * 0.015, 0.045 + up, 0.06, 0.05, (26, 24, 24))
        swing = 0.5 * up
        arm = [(sign * 0.18, 1.4), (sign * 0.235, 1.14 + swing), (sign * 0.225, 0.9 + swing)]
        pen.limb(arm, 0.09, look.coat, 0.72 if sign > 0 else 0.9)
        pen.oval(arm[2][0], arm[2][1] - 0.04, 0.04, 0.055, look.skin, 0.9)
    hem = look.hem
    pen.shape([(-0.07, 1.53), (0.07, 1.53), (0.2, 1.46), (0.215, 1.32), (0.165, 1.1), (0.19, hem),
               (-0.19, hem), (-0.165, 1.1), (-0.215, 1.32), (-0.2, 1.46)], look.coat)  # fmt: skip
    pen.shape([(0.06, 1.5), (0.19, 1.44), (0.2, 1.3), (0.15, 1.1), (0.17, hem), (0.07, hem)],
              look.coat, 0.78)  # fmt: skip
    if view == "front":
        pen.shape([(-0.05, 1.53), (0.05, 1.53), (0.0, 1.3)], look.scarf or (190, 186, 178), 0.9)
        pen.limb([(0.0, 1.32), (0.0, hem)], 0.012, look.coat, 0.55)
    elif look.bag is not None:
        pen.shape([(-0.15, 1.44), (0.15, 1.44), (0.16, 1.02), (-0.16, 1.02)], look.bag)
        pen.shape([(-0.11, 1.22), (0.11, 1.22), (0.12, 1.05), (-0.12, 1.05)], look.bag, 0.8)
    if look.scarf is not None:
        pen.oval(0, 1.51, 0.085, 0.04, look.scarf)
    pen.head(0, 1.63, view, look.skin, look.hair, look.long_hair)
    if look.bag is not None and view == "front":
        pen.shape([(0.18, 0.86), (0.36, 0.86), (0.38, 0.54), (0.17, 0.54)], look.bag)


def _walk_across(pen: _Figure, look: _Look, stride: float) -> None:
    """Someone seen from the side, walking towards +u."""
    far_arm = [(0.0, 1.4), (-0.1, 1.15), (-0.75 * stride, 0.92)]
    pen.limb(far_arm, 0.085, look.coat, 0.6)
    for sign, share in ((-1, 0.72), (1, 1.0)):
        foot, lift = sign * stride, 0.07 if sign < 0 else 0.0
        knee = 0.5 * foot + 0.06
        pen.shape([(-0.1, 0.96), (0.09, 0.96), (knee + 0.075, 0.52), (foot + 0.05, 0.08 + lift),
                   (foot - 0.06, 0.09 + lift), (knee - 0.07, 0.5)],
                  look.trousers, share)  # fmt: skip
        pen.shape([(foot - 0.07, 0.1 + lift), (foot + 0.04, 0.1 + lift), (foot + 0.18, 0.03 + lift),
                   (foot + 0.16, lift), (foot - 0.08, lift)], (26, 24, 24))  # fmt: skip
    hem, flare = look.hem, 0.06 if look.hem < 0.8 else 0.0
    pen.shape([(-0.05, 1.52), (0.07, 1.5), (0.14, 1.36), (0.12, 1.1), (0.13 + flare, hem),
               (-0.14 - flare, hem), (-0.13, 1.1), (-0.15, 1.38)], look.coat)  # fmt: skip
    pen.shape([(-0.06, 1.46), (0.0, 1.4), (-0.03, 1.1), (-0.02, hem), (-0.13 - flare, hem),
               (-0.12, 1.1), (-0.14, 1.38)], look.coat, 0.8)  # fmt: skip
    if look.bag is not None:
        pen.shape([(-0.28, 1.42), (-0.12, 1.44), (-0.12, 1.04), (-0.27, 1.06)], look.bag)
    hand = (0.8 * stride, 0.94)
    pen.limb([(-0.02, 1.4), (0.02, 1.15), hand], 0.095, look.coat, 1.12)
    pen.oval(hand[0] + 0.02, hand[1] - 0.03, 0.045, 0.05, look.skin)
    if look.scarf is not None:
        pen.oval(0.02, 1.5, 0.08, 0.045, look.scarf)
    pen.head(0.03, 1.63, "side", look.skin, look.hair, look.long_hair)


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


Clothes = tuple[Color, Color, Color, Color]


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


def _side_rider(pen: _Figure, rng: random.Random, clothes: Clothes, frame: Color) -> None:
    coat, legs, skin, hair = clothes
    crank, seat, bars = (0.0, 0.3), (-0.22, 0.92), (0.42, 1.0)
    angle = rng.uniform(0, 2 * math.pi)
    feet = [
        (crank[0] + 0.17 * math.cos(angle + k), crank[1] + 0.17 * math.sin(angle + k))
        for k in (math.pi, 0.0)
    ]
    u, v = feet[0]
    pen.oval(u + 0.05, v, 0.11, 0.05, (24, 22, 22))
    pen.limb([(-0.2, 0.98), (u + 0.22, (v + 0.98) / 2 + 0.08), (u, v)], 0.13, legs, 0.7)
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


def _end_rider(pen: _Figure, rng: random.Random, clothes: Clothes, frame: Color, view: str) -> None:
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
    pen: _Figure, rng: random.Random, u: float, v: float, view: str, skin: Color, hair: Color
) -> None:
    pen.head(u, v, view, skin, hair, rng.random() < 0.3)
    if rng.random() < 0.5:
        pen.oval(
            u - 0.01,
            v + 0.08,
            0.12,
            0.075,
            rng.choice([(180, 40, 40), (210, 210, 206), (40, 44, 52), (60, 90, 150)]),
        )
