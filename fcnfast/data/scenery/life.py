"""Furnishes the drawn street and sets it in motion: posts, trees, vehicles, people."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

from .bodies import Vehicle, random_vehicle
from .fences import draw_boundary
from .ground import Side
from .markings import WORDS, draw_arrow, draw_word
from .people import Person, draw_cyclist, draw_pedestrian
from .plan import Scene
from .plots import plant
from .posts import draw_bollard, draw_lamp, draw_sign, draw_signal
from .stage import Stage
from .vehicles import draw_vehicle

PostBrush = Callable[[Stage, float, float, int, float], None]


def furnish(scene: Scene, side: Side, rng: random.Random) -> None:
    """Lamps, traffic lights, signs, bollards, trees and railings along one kerb."""
    kerb = scene.street.half + 0.45

    def stand(draw: PostBrush, s: float, z: float, margin: float = 4.0) -> None:
        key = rng.randrange(2**31)
        if z > 4 and not side.open_at(z, margin):
            scene.add(z, lambda stage, lit: draw(stage, s, z, key, lit), (s, z))
            scene.block_sun([(s - 0.06, z), (s + 0.06, z)], 3.0)

    z, step = rng.uniform(6, 20), rng.uniform(18, 30)
    while z < 110:
        stand(draw_lamp, side.sign * kerb, z)
        z += step
    for near, _ in side.mouths:
        if rng.random() < 0.6:
            stand(draw_signal, side.sign * kerb, near - 4.1)
    for near, _ in scene.street.crossings:
        stand(draw_signal, side.sign * kerb, near - 0.6)
    for _ in range(rng.randrange(1, 4)):
        stand(draw_sign, side.sign * (kerb + 0.1), rng.uniform(6, 50))
    if rng.random() < 0.35:
        z = rng.uniform(5, 20)
        for k in range(rng.randrange(3, 8)):
            stand(draw_bollard, side.sign * (kerb - 0.1), z + 1.8 * k)
    if rng.random() < 0.3:
        z, gap = rng.uniform(8, 16), rng.uniform(7, 12)
        kind = rng.choice(["leafy", "bare", "bare"])
        while z < 90:
            if not side.open_at(z, 4):
                plant(scene, side.sign * (kerb + 0.5), z, rng.uniform(6, 11), kind, rng)
            z += gap
    if rng.random() < 0.3:
        _guard_rail(scene, side, kerb, rng)


def _guard_rail(scene: Scene, side: Side, kerb: float, rng: random.Random) -> None:
    near, key = rng.uniform(3, 25), rng.randrange(2**31)
    s, far = side.sign * (kerb - 0.15), near + rng.uniform(6, 15)
    if not side.open_at(near, 4) and not side.open_at(far, 4) and not side.open_at(near + 6, 4):
        scene.add(
            far,
            lambda stage, lit: draw_boundary(stage, s, near, far, "railings", key, lit),
            (s, (near + far) / 2),
        )


def fill_road(scene: Scene, rng: random.Random) -> None:
    """Parked and moving vehicles; traffic keeps to the left."""
    half = scene.street.half
    cars: list[Vehicle] = []
    for side in scene.street.sides:
        if half > 3.4 and rng.random() < 0.8 and side.lines < 2:
            z = rng.uniform(6.5, 20)
            stop = z + rng.uniform(8, 60)
            while z < stop:
                turn = 0.0 if side.sign < 0 or rng.random() < 0.3 else math.pi
                s = side.sign * (half - 1.05) + rng.uniform(-0.1, 0.1)
                car = random_vehicle(rng, s, z, turn + rng.uniform(-0.03, 0.03))
                if car.kind != "bus" and not side.open_at(z, 6):
                    cars.append(car)
                z += rng.uniform(5.4, 8)
    for lane, turn in ((-0.45, 0.0), (0.45, math.pi)):
        z = rng.uniform(9, 34)
        for _ in range(rng.randrange(1, 5)):
            car = random_vehicle(rng, lane * half, z, turn + rng.uniform(-0.05, 0.05))
            if all(abs(c.z - z) > 6.5 or abs(c.s - car.s) > 2.3 for c in cars):
                cars.append(car)
            z += rng.uniform(9, 30)
    for car in cars:
        _park(scene, car)


def _park(scene: Scene, car: Vehicle) -> None:
    car.turn += math.atan(scene.camera.heading + scene.camera.bend * car.z)
    scene.contacts.append(car.footprint(0.1))
    corners = [(s, z) for s, _, z in car.footprint(-0.1)]
    scene.block_sun(corners, {"bus": 3.0, "van": 2.0}.get(car.kind, 1.25))
    # The shadow of its own body must not count: look beside it, towards the sun.
    reach = math.copysign(1.5, scene.light.sun[0])
    scene.add(car.z - 1.5, lambda stage, lit: draw_vehicle(stage, car, lit),
              (car.s + reach, car.z))  # fmt: skip


def paint_road(scene: Scene, rng: random.Random) -> None:
    """Words and arrows on the lanes, behind everything that stands on the road."""
    half = scene.street.half

    def lay(draw: Callable[[Stage, float], None], s: float, z: float) -> None:
        scene.add(1e5 + z, draw, (s, z))

    for way, lane in ((1, -0.5 * half), (-1, 0.5 * half)):
        if rng.random() < 0.25:
            at, text = rng.uniform(4.5, 16), rng.choice(WORDS)
            lay(partial(draw_word, s=lane, z=at, text=text, way=way), lane, at)
        elif rng.random() < 0.2:
            at = rng.uniform(6, 20)
            lay(partial(draw_arrow, s=lane, z=at, way=way), lane, at)


def add_people(scene: Scene, rng: random.Random) -> None:
    """People on the pavements and crossings, and cyclists near the kerbs."""
    street = scene.street
    crowd = rng.choice([1, 3, 6, 12, 18])
    for _ in range(crowd):
        side = rng.choice(street.sides)
        s = side.sign * (street.half + rng.uniform(0.6, max(0.7, side.front - 0.4)))
        z = rng.uniform(6, 45)
        for k in range(rng.choice([1, 1, 1, 2, 3])):
            _someone(scene, s + 0.5 * k, z + 0.2 * k, False, rng)
    for near, far in street.crossings:
        for _ in range(rng.randrange(0, 4)):
            s, z = rng.uniform(-street.half, street.half), rng.uniform(near, far)
            _someone(scene, s, z, False, rng)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        side = rng.choice(street.sides)
        s = side.sign * (street.half - rng.uniform(0.6, 1.2))
        _someone(scene, s, rng.uniform(6, 30), True, rng)


def _someone(scene: Scene, s: float, z: float, ride: bool, rng: random.Random) -> None:
    if ride:
        view = "side" if rng.random() < 0.25 else "back" if s < 0 else "front"
    else:
        view = rng.choice(["front", "back", "side"])
    if view == "side" and ride and z < 9:  # nobody rides across right before the bonnet
        view = "back"
    facing = rng.choice([-1, 1])
    who = Person(s, z, 0.0, rng.uniform(1.55, 1.9), view, facing, rng.randrange(2**31))
    draw = draw_cyclist if ride else draw_pedestrian
    scene.add(z, lambda stage, lit: draw(stage, who, lit), (s, z))
    foot = [(s - 0.25, z), (s + 0.25, z)]
    scene.contacts.append([(a, 0.0, b + d) for (a, b), d in zip(
        [*foot, *reversed(foot)], (-0.15, -0.15, 0.15, 0.15), strict=True)])  # fmt: skip
    scene.block_sun(foot, 1.6)
