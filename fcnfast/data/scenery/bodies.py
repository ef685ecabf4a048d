"""Shapes, colors and places of the drawn street's vehicles."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from .canvas import Color
from .stage import Point3

PAINTS: list[Color] = [
    (172, 176, 180), (196, 198, 200), (60, 64, 70), (28, 30, 34), (36, 52, 96), (70, 92, 132),
    (140, 24, 26), (226, 226, 224), (22, 62, 50), (104, 108, 112), (150, 158, 150), (88, 22, 30),
    (40, 44, 52), (124, 130, 138),
]  # fmt: skip

# Outline of each body from front bumper over the roof to the rear bumper: (length from the
# middle, height, half width). The windscreen lies between COWL and ROOF, the rear window between
# BACK and TAIL.
COWL, ROOF, BACK, TAIL = 3, 4, 6, 7
BODIES: dict[str, list[Point3]] = {
    "hatch": [
        (1.86, 0.24, 0.68), (1.95, 0.50, 0.74), (1.82, 0.74, 0.80), (0.98, 0.95, 0.81),
        (0.28, 1.41, 0.60), (-1.20, 1.44, 0.58), (-1.48, 1.37, 0.57), (-1.80, 0.95, 0.75),
        (-1.90, 0.58, 0.76), (-1.84, 0.26, 0.70),
    ],
    "saloon": [
        (2.12, 0.24, 0.70), (2.22, 0.50, 0.76), (2.08, 0.72, 0.82), (1.05, 0.92, 0.83),
        (0.38, 1.37, 0.61), (-0.80, 1.40, 0.60), (-0.98, 1.36, 0.59), (-1.62, 0.98, 0.77),
        (-2.16, 0.90, 0.77), (-2.20, 0.28, 0.72),
    ],
    "estate": [
        (2.08, 0.30, 0.72), (2.17, 0.58, 0.80), (2.04, 0.88, 0.86), (1.10, 1.06, 0.87),
        (0.52, 1.64, 0.68), (-1.56, 1.70, 0.66), (-1.80, 1.62, 0.65), (-2.04, 1.06, 0.82),
        (-2.12, 0.60, 0.83), (-2.04, 0.30, 0.76),
    ],
    "van": [
        (2.48, 0.30, 0.82), (2.58, 0.60, 0.90), (2.42, 1.02, 0.95), (1.90, 1.24, 0.96),
        (1.20, 2.06, 0.82), (-2.20, 2.20, 0.82), (-2.36, 2.14, 0.82), (-2.48, 1.16, 0.94),
        (-2.52, 0.64, 0.95), (-2.46, 0.34, 0.88),
    ],
    "bus": [
        (5.06, 0.32, 1.12), (5.22, 0.70, 1.20), (5.20, 1.05, 1.25), (5.16, 1.25, 1.25),
        (5.00, 3.10, 1.22), (-4.90, 3.16, 1.22), (-5.08, 3.02, 1.22), (-5.16, 1.50, 1.25),
        (-5.18, 0.80, 1.25), (-5.10, 0.34, 1.18),
    ],
}  # fmt: skip


@dataclass
class Vehicle:
    """Where a vehicle stands and how it looks; ``turn`` is 0 when it drives away from us."""

    kind: str
    s: float
    z: float
    turn: float
    paint: Color
    seed: int

    @property
    def body(self) -> list[Point3]:
        """Its outline."""
        return BODIES[self.kind]

    def place(self, along: float, across: float, up: float) -> Point3:
        """A point of the body in street coordinates."""
        c, n = math.cos(self.turn), math.sin(self.turn)
        return (self.s + along * n + across * c, up, self.z + along * c - across * n)

    def footprint(self, grow: float) -> list[Point3]:
        """The rectangle it covers on the ground, ``grow`` meters larger on each side."""
        front, back = self.body[1][0] + grow, self.body[-2][0] - grow
        half = self.body[2][2] + grow
        corners = ((front, -half), (front, half), (back, half), (back, -half))
        return [self.place(a, b, 0.0) for a, b in corners]


def random_vehicle(rng: random.Random, s: float, z: float, turn: float) -> Vehicle:
    """A vehicle of some kind and color at a place; large ones are rare."""
    kind = rng.choices(["hatch", "saloon", "estate", "van", "bus"], [40, 25, 20, 10, 5])[0]
    paint = rng.choice(PAINTS)
    if kind == "bus":
        paint = rng.choice([(160, 30, 34), (40, 80, 150), (216, 210, 192), (60, 104, 84)])
    return Vehicle(kind, s, z, turn, paint, rng.randrange(2**31))
