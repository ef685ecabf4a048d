"""Builds up the drawn street's sides: houses, gardens, boundaries, and the shadows they throw."""

from __future__ import annotations

import math
import random

from .buildings import House, draw_house
from .fences import draw_boundary
from .ground import Side
from .plan import Scene
from .plants import Tree, draw_tree
from .posts import draw_hanging_sign

END = 120.0  # meters: beyond it there is only the skyline
MATERIALS = ["yellow brick", "red brick", "plaster", "stone", "modern"]


def build_side(scene: Scene, side: Side, mood: str, rng: random.Random) -> None:
    """Fill one side with houses, gardens and parks up to the end of the street.

    ``mood`` is town (shops to the pavement), suburb (front gardens) or park.
    """
    z = rng.uniform(-8, 0)
    line = scene.street.half + side.front
    setback = {"town": 0.0, "suburb": rng.uniform(2.5, 6.0), "park": 0.0}[mood]
    green = {"town": 0.08, "suburb": 0.22, "park": 0.75}[mood]
    wall, neighbor = rng.choice([*MATERIALS, "yellow brick", "plaster"]), 0.0
    while z < END:
        mouth = next((m for m in side.mouths if m[0] - 2 <= z < m[1] + 2), None)
        if mouth is not None:
            z, neighbor = mouth[1] + 2.0, 0.0
            continue
        stop = min([m[0] - 2 for m in side.mouths if m[0] - 2 > z], default=1e9)
        chance = rng.random()
        width = rng.uniform(8, 20) if mood == "park" else rng.uniform(5, 14)
        end = min(z + width, stop)
        if chance < green or end - z < 3:
            _garden(scene, side, line, z, end, rng)
            neighbor = 0.0
        else:
            if rng.random() < 0.4:
                wall = rng.choice([*MATERIALS, "plaster"])
            house = _house(scene, side, mood, line + setback, (z, end), wall, rng)
            house.hidden = neighbor
            neighbor = house.height if mood != "suburb" else 0.0
            if setback:
                _boundary(scene, side.sign * line, z, end, rng)
        z = end


def _house(
    scene: Scene,
    side: Side,
    mood: str,
    front: float,
    plot: tuple[float, float],
    wall: str,
    rng: random.Random,
) -> House:
    near, end = plot
    flat = wall == "modern" or rng.random() < 0.25
    height = rng.uniform(5.5, 7.5) if mood == "suburb" else rng.uniform(6, 12.5)
    gap = rng.uniform(1.5, 4.0) if mood == "suburb" else 0.0
    shop = mood == "town" and rng.random() < 0.6
    house = House(
        side.sign, near, max(near + 2.5, end - gap), front + rng.uniform(0, 0.2),
        rng.uniform(6, 11), height, 0.0 if flat else rng.uniform(2.0, 3.5), wall, shop,
        rng.randrange(2**31),
    )  # fmt: skip
    light = scene.light
    if light.sun[0] * side.sign < -0.05:  # the sun stands over the other side
        slope = light.sun[1] / abs(light.sun[0])
        house.shade_to = rng.uniform(5, 11) - slope * 2 * front
    # A house is painted before everything else that stands as near as its far end.
    scene.add(house.far + 1000 - 0.01 * near, lambda stage, lit: draw_house(stage, house))
    scene.block_sun(house.corners(), height + house.ridge / 2)
    a, step = side.sign * house.front, side.sign * 0.3
    scene.contacts.append([(a, 0.0, near), (a, 0.0, house.far), (a - step, 0.0, house.far),
                           (a - step, 0.0, near)])  # fmt: skip
    if shop and rng.random() < 0.6:
        at, key = near + (end - near) * rng.uniform(0.2, 0.8), rng.randrange(2**31)
        if at > 4:
            scene.add(
                at, lambda stage, lit: draw_hanging_sign(stage, a, at, key, lit), (a - step, at)
            )
    return house


def _garden(
    scene: Scene, side: Side, line: float, near: float, end: float, rng: random.Random
) -> None:
    for _ in range(max(1, int((end - near) / 4))):
        tall = rng.uniform(5, 15)
        kind = rng.choice(["leafy", "bare", "bare", "bare", "conifer", "bush"])
        if kind == "bush":
            tall = rng.uniform(1.5, 3)
        s = side.sign * (line + rng.uniform(2.5, 9))
        plant(scene, s, rng.uniform(near, end), tall, kind, rng)
    _boundary(scene, side.sign * line, near, end, rng)


def _boundary(scene: Scene, s: float, near: float, far: float, rng: random.Random) -> None:
    kind = rng.choice(["railings", "railings", "boards", "wall", "hedge", "hedge"])
    key = rng.randrange(2**31)
    if far < 2:
        return
    foot = (s * 0.97, (max(near, 2.0) + far) / 2)
    scene.add(far, lambda stage, lit: draw_boundary(stage, s, near, far, kind, key, lit), foot)
    inner = s - math.copysign(0.25, s)
    scene.contacts.append([(s, 0, near), (s, 0, far), (inner, 0, far), (inner, 0, near)])


def plant(scene: Scene, s: float, z: float, height: float, kind: str, rng: random.Random) -> None:
    """Put a tree at (s, z), unless it stood in the lens."""
    crown = height * (0.22 if kind == "conifer" else rng.uniform(0.28, 0.4))
    if kind == "bush":
        crown = height * 0.8
    tree = Tree(s, z, height, crown, kind, rng.randrange(2**31))
    if z < 6:
        return
    scene.add(z, lambda stage, lit: draw_tree(stage, tree, lit), (s, z))
    ds, dz = scene.light.cast(height)
    if kind == "bare":  # a trunk's and a few boughs' shadow
        for lean in (-0.25, 0.0, 0.3):
            tip = (s + ds + lean * height, 0.0, z + dz)
            scene.shadows.append([(s - 0.1, 0.0, z), (s + 0.1, 0.0, z), tip])
        return
    s, z = s + 0.65 * ds, z + 0.65 * dz
    ring = []
    for k in range(24):  # a ragged round
        t, reach = k * math.pi / 12, crown * rng.uniform(0.7, 1.2)
        ring.append((s + reach * math.cos(t), 0.0, z + 1.2 * reach * math.sin(t)))
    scene.shadows.append(ring)
