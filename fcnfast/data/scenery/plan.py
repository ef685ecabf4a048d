"""Plans a street by chance: weather, camera, road, and the list of things to paint."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from .ground import Side, Street
from .photo import Film
from .stage import Camera, Light, Point3, Stage

Brush = Callable[[Stage, float], None]  # the number is how much sunlight reaches the thing


@dataclass
class Thing:
    """Something to paint; of two things the one with the larger ``order`` is further back."""

    order: float
    brush: Brush
    foot: tuple[float, float] | None  # (s, z) of where it stands, to look up the shadow there


@dataclass
class Scene:
    """Everything that a picture of a street needs."""

    camera: Camera
    light: Light
    sky: str
    street: Street
    film: Film
    things: list[Thing] = field(default_factory=list)
    shadows: list[list[Point3]] = field(default_factory=list)  # on the ground, from the sun
    contacts: list[list[Point3]] = field(default_factory=list)  # dark places under things

    def add(self, order: float, brush: Brush, foot: tuple[float, float] | None = None) -> None:
        """Something to paint."""
        self.things.append(Thing(order, brush, foot))

    def block_sun(self, foot: list[tuple[float, float]], height: float) -> None:
        """Let an upright block over a polygon of (s, z) corners throw its shadow."""
        ds, dz = self.light.cast(height)
        self.shadows.append([(s + ds, 0.0, z + dz) for s, z in foot])
        for (s0, z0), (s1, z1) in zip(foot, foot[1:] + foot[:1], strict=True):
            self.shadows.append([(s0, 0.0, z0), (s1, 0.0, z1), (s1 + ds, 0.0, z1 + dz),
                                 (s0 + ds, 0.0, z0 + dz)])  # fmt: skip

    def in_order(self, shadow: np.ndarray) -> Iterator[tuple[Brush, float]]:
        """The brushes from back to front with the sunlight at each; ``shadow`` is H x W."""
        for thing in sorted(self.things, key=lambda thing: -thing.order):
            lit = 0.9
            if thing.foot is not None:
                x, y = self.camera.at(thing.foot[0], 0.0, thing.foot[1])
                row = min(shadow.shape[0] - 1, max(0, int(y)))
                column = min(shadow.shape[1] - 1, max(0, int(x)))
                lit = 1.0 - 0.9 * float(shadow[row, column])
            yield thing.brush, lit


def empty_street(rng: random.Random, height: int, width: int) -> Scene:
    """A street without things; only the camera depends on the picture's size."""
    sky = rng.choices(["white", "blue", "broken", "gray", "dusk"], [44, 22, 12, 13, 9])[0]
    light = _light(rng, sky)
    film = Film(
        exposure=rng.uniform(0.9, 1.65),
        contrast=rng.uniform(1.25, 1.6),
        warmth=rng.uniform(0.95, 1.04),
        color=rng.uniform(0.65, 1.0),
        glare=rng.uniform(0.02, 0.07),
        noise=rng.uniform(1.5, 4.0),
        sharpen=rng.uniform(0.4, 0.8),
        vignette=rng.uniform(0.05, 0.3),
    )
    street = _street(rng)
    return Scene(_camera(rng, street, height, width), light, sky, street, film)


def _light(rng: random.Random, sky: str) -> Light:
    azimuth, elevation = rng.uniform(-math.pi, math.pi), rng.uniform(0.35, 0.95)
    sun = (
        math.cos(elevation) * math.sin(azimuth),
        math.sin(elevation),
        math.cos(elevation) * math.cos(azimuth),
    )
    strength, ambient = {
        "white": (rng.choice([0.15, rng.uniform(0.4, 0.9)]), 0.56),
        "blue": (rng.uniform(0.7, 1.05), 0.42),
        "broken": (rng.uniform(0.3, 0.9), 0.5),
        "gray": (0.06, 0.7),
        "dusk": (0.03, 0.46),
    }[sky]
    haze = {
        "white": (240, 245, 247),
        "blue": (216, 233, 244),
        "broken": (208, 219, 229),
        "gray": (208, 214, 218),
        "dusk": (150, 158, 166),
    }[sky]
    return Light(sun, strength, ambient, haze, rng.uniform(180, 450))


def _street(rng: random.Random) -> Street:
    sides = []
    for sign in (-1, 1):
        verge = rng.uniform(0.8, 2.0) if rng.random() < 0.2 else 0.0
        lines = rng.choice([0, 0, 1, 2])
        side = Side(sign, rng.uniform(1.6, 4.0), verge, rng.random() < 0.5, lines=lines)
        if rng.random() < 0.55:
            near = rng.uniform(8, 60)
            side.mouths.append((near, near + rng.uniform(5, 9)))
        sides.append(side)
    dashes = rng.choice([(2.0, 4.0), (4.0, 2.0), (1.0, 5.0), None])
    half = rng.uniform(3.0, 5.5)
    tone, age = rng.uniform(0.9, 1.3), rng.random()
    street = Street(half, (sides[0], sides[1]), dashes, rng.random() < 0.25, tone, age)
    if rng.random() < 0.3:
        near = rng.uniform(7, 35)
        street.crossings.append((near, near + 3.0))
    for _ in range(rng.randrange(0, 5)):
        s, z = rng.uniform(-half, half - 1), rng.uniform(3, 30)
        end = (s + rng.uniform(0.5, 1.8), z + rng.uniform(1.0, 8.0))
        street.repairs.append((s, min(end[0], half - 0.3), z, end[1], rng.uniform(-0.2, 0.1)))
    for _ in range(rng.randrange(0, 4)):
        street.covers.append((rng.uniform(-half + 0.6, half - 0.6), rng.uniform(4, 25)))
    return street


def _camera(rng: random.Random, street: Street, height: int, width: int) -> Camera:
    span = math.sqrt(height * width * 4 / 3)  # the width of a 4:3 picture of this area
    return Camera(
        width,
        height,
        focal=span * rng.uniform(0.88, 1.05),
        cx=width * rng.uniform(0.46, 0.54),
        cy=height * rng.uniform(0.44, 0.53),
        eye=rng.uniform(1.2, 1.5),
        lateral=-street.half * rng.uniform(0.25, 0.6),
        heading=rng.uniform(-0.06, 0.06),
        bend=rng.gauss(0, 0.0009),
    )
