"""Plans a street by chance: the weather, the plots along it and what stands and moves there."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ._buildings import House, draw_house
from ._canvas import Camera, Canvas, Light, Noise, Point3
from ._furniture import (
    draw_bollard,
    draw_fence,
    draw_hanging_sign,
    draw_lamp,
    draw_sign,
    draw_signal,
)
from ._ground import Side, Street
from ._people import Person, draw_cyclist, draw_pedestrian
from ._photo import Film
from ._plants import Tree, draw_hedge, draw_skyline, draw_tree
from ._vehicles import Vehicle, draw_vehicle, random_vehicle

END = 120.0  # metres: beyond it there is only the skyline

Brush = Callable[[Canvas, Noise], None]


@dataclass
class Scene:
    """Everything that a picture of a street needs."""

    camera: Camera
    light: Light
    sky: str
    street: Street
    film: Film
    shadow_depth: float
    things: list[tuple[float, Brush]] = field(default_factory=list)
    shadows: list[list[Point3]] = field(default_factory=list)
    contacts: list[list[Point3]] = field(default_factory=list)

    def add(self, z: float, brush: Brush) -> None:
        """Something to paint; what is further away is painted first."""
        self.things.append((z, brush))

    def items(self, noise: Noise) -> list[Callable[[Canvas], None]]:
        """What to paint on a canvas, from back to front."""
        order = sorted(range(len(self.things)), key=lambda i: -self.things[i][0])

        def bind(brush: Brush) -> Callable[[Canvas], None]:
            return lambda canvas: brush(canvas, noise)

        return [bind(self.things[i][1]) for i in order]


def plan_scene(seed: int, height: int, width: int) -> Scene:
    """Plan scene number ``seed``; only the camera depends on the picture's size."""
    rng = random.Random(seed)
    sky, light, film, depth = _weather(rng)
    street = _street(rng)
    camera = _camera(rng, street, height, width)
    scene = Scene(camera, light, sky, street, film, depth)
    skyline = rng.randrange(2**31)
    scene.add(1e6, lambda canvas, noise: draw_skyline(canvas, camera, light, noise, skyline))
    mood = rng.choice(["town", "town", "town", "suburb", "suburb", "park"])
    for side in street.sides:
        _plots(scene, side, mood, random.Random(rng.randrange(2**31)))
    for side in street.sides:
        _furnish(scene, side, random.Random(rng.randrange(2**31)))
    _traffic(scene, random.Random(rng.randrange(2**31)))
    _walkers(scene, random.Random(rng.randrange(2**31)))
    return scene


def _weather(rng: random.Random) -> tuple[str, Light, Film, float]:
    sky = rng.choices(["white", "blue", "broken", "grey", "dusk"], [40, 22, 12, 16, 10])[0]
    azimuth = rng.uniform(-math.pi, math.pi)
    elevation = rng.uniform(0.3, 0.9)
    sun = (
        math.cos(elevation) * math.sin(azimuth),
        math.sin(elevation),
        math.cos(elevation) * math.cos(azimuth),
    )
    strength, ambient = {
        "white": (rng.uniform(0.1, 0.5), 0.72),
        "blue": (rng.uniform(0.55, 0.85), 0.52),
        "broken": (rng.uniform(0.2, 0.7), 0.6),
        "grey": (0.06, 0.72),
        "dusk": (0.03, 0.44),
    }[sky]
    haze = {
        "white": (240, 245, 247),
        "blue": (214, 232, 244),
        "broken": (206, 216, 226),
        "grey": (208, 214, 218),
        "dusk": (150, 158, 166),
    }[sky]
    light = Light(sun, strength, ambient, haze, rng.uniform(160, 420))
    film = Film(
        exposure=rng.uniform(0.8, 1.25),
        contrast=rng.uniform(1.05, 1.3),
        warmth=rng.uniform(0.95, 1.05),
        glare=rng.uniform(0.02, 0.07),
        noise=rng.uniform(1.5, 4.0),
        sharpen=rng.uniform(0.3, 1.1),
        vignette=rng.uniform(0.05, 0.3),
    )
    return sky, light, film, min(1.0, strength * 2.5) if strength > 0.15 else 0.0


def _street(rng: random.Random) -> Street:
    sides = []
    for sign in (-1, 1):
        verge = rng.uniform(0.8, 2.0) if rng.random() < 0.2 else 0.0
        side = Side(
            sign, rng.uniform(1.6, 4.0), verge, rng.random() < 0.5, lines=rng.choice([0, 0, 1, 2])
        )
        if rng.random() < 0.55:
            near = rng.uniform(8, 60)
            side.mouths.append((near, near + rng.uniform(5, 9)))
        sides.append(side)
    dashes = rng.choice([(2.0, 4.0), (4.0, 2.0), (1.0, 5.0), None])
    street = Street(
        rng.uniform(3.0, 5.5),
        (sides[0], sides[1]),
        dashes,
        tone=rng.uniform(0.75, 1.1),
        age=rng.random(),
    )
    if rng.random() < 0.3:
        near = rng.uniform(7, 35)
        street.crossings.append((near, near + 3.0))
    return street


def _camera(rng: random.Random, street: Street, height: int, width: int) -> Camera:
    span = math.sqrt(height * width * 4 / 3)  # the width of a 4:3 picture of this area
    focal = span * rng.uniform(0.88, 1.05)
    return Camera(
        width,
        height,
        focal,
        cx=width * rng.uniform(0.46, 0.54),
        cy=height * rng.uniform(0.44, 0.53),
        eye=rng.uniform(1.2, 1.5),
        lateral=-street.half * rng.uniform(0.25, 0.6),
        heading=rng.uniform(-0.06, 0.06),
        bend=rng.gauss(0, 0.0009),
    )


def _plots(scene: Scene, side: Side, mood: str, rng: random.Random) -> None:
    """Fill one side with houses, gardens and parks up to the end of the street."""
    z = rng.uniform(-8, 0)
    line = scene.street.half + side.front
    setback = {"town": 0.0, "suburb": rng.uniform(2.5, 6.0), "park": 0.0}[mood]
    wall = rng.choice(["yellow brick", "yellow brick", "red brick", "plaster", "stone", "modern"])
    while z < END:
        mouth = next((m for m in side.mouths if m[0] - 2 <= z < m[1] + 2), None)
        if mouth is not None:
            z = mouth[1] + 2.0
            continue
        stop = min([m[0] - 2 for m in side.mouths if m[0] - 2 > z], default=1e9)
        chance = rng.random()
        green = {"town": 0.08, "suburb": 0.22, "park": 0.75}[mood]
        width = rng.uniform(5, 14) if mood != "park" else rng.uniform(8, 20)
        end = min(z + width, stop)
        if chance < green or end - z < 3:
            _garden(scene, side, line, z, end, rng)
        else:
            if rng.random() < 0.4:
                wall = rng.choice(["yellow brick", "red brick", "plaster", "stone", "modern"])
            _house(scene, side, mood, line + setback, z, end, wall, rng)
            if setback:
                _boundary(scene, side.sign * line, z, end, rng)
        z = end


def _house(
    scene: Scene,
    side: Side,
    mood: str,
    front: float,
    z: float,
    end: float,
    wall: str,
    rng: random.Random,
) -> None:
    flat = wall == "modern" or rng.random() < 0.25
    height = rng.uniform(5.5, 7.5) if mood == "suburb" else rng.uniform(6, 12.5)
    depth = rng.uniform(6, 11)
    gap = rng.uniform(1.5, 4.0) if mood == "suburb" else 0.0
    shop = mood == "town" and rng.random() < 0.6
    house = House(
        side.sign,
        z,
        max(z + 2.5, end - gap),
        front + rng.uniform(0, 0.4),
        depth,
        height,
        0.0 if flat else rng.uniform(2.0, 3.5),
        wall,
        shop,
        rng.randrange(2**31),
    )
    camera, light = scene.camera, scene.light
    scene.add(
        house.far + 1000 - 0.01 * z,
        lambda canvas, noise: draw_house(canvas, camera, light, noise, house),
    )
    if shop and rng.random() < 0.6:
        sign_z, key = z + (end - z) * rng.uniform(0.2, 0.8), rng.randrange(2**31)
        s = side.sign * house.front
        if sign_z > 4:
            scene.add(
                sign_z,
                lambda canvas, noise: draw_hanging_sign(canvas, camera, light, s, sign_z, key),
            )
    reach = height / max(math.tan(math.asin(light.sun[1])), 0.2)
    flat_sun = math.hypot(light.sun[0], light.sun[2])
    dx, dz = -light.sun[0] / flat_sun * reach, -light.sun[2] / flat_sun * reach
    a = side.sign * house.front
    b = side.sign * (house.front + depth)
    for s0, z0, s1, z1 in ((a, z, a, house.far), (a, z, b, z), (a, house.far, b, house.far)):
        scene.shadows.append(
            [(s0, 0, z0), (s1, 0, z1), (s1 + dx, 0, z1 + dz), (s0 + dx, 0, z0 + dz)]
        )
    scene.contacts.append(
        [
            (a, 0.0, z),
            (a, 0.0, house.far),
            (a - side.sign * 0.3, 0.0, house.far),
            (a - side.sign * 0.3, 0.0, z),
        ]
    )


def _garden(
    scene: Scene, side: Side, line: float, z: float, end: float, rng: random.Random
) -> None:
    for _ in range(max(1, int((end - z) / 4))):
        tall = rng.uniform(4, 13)
        kind = rng.choice(["leafy", "leafy", "bare", "bare", "conifer", "bush"])
        if kind == "bush":
            tall = rng.uniform(1.5, 3)
        _tree(scene, side.sign * (line + rng.uniform(2.5, 9)), rng.uniform(z, end), tall, kind, rng)
    _boundary(scene, side.sign * line, z, end, rng)


def _boundary(scene: Scene, s: float, z: float, end: float, rng: random.Random) -> None:
    kind = rng.choice(["railings", "railings", "boards", "wall", "hedge", "hedge"])
    key = rng.randrange(2**31)
    camera, light = scene.camera, scene.light
    height = rng.uniform(0.9, 2.0)
    if end < 2:
        return
    if kind == "hedge":
        scene.add(
            end,
            lambda canvas, noise: draw_hedge(canvas, camera, light, noise, s, z, end, height, key),
        )
    else:
        scene.add(
            end,
            lambda canvas, noise: draw_fence(canvas, camera, light, noise, s, z, end, kind, key),
        )


def _tree(scene: Scene, s: float, z: float, height: float, kind: str, rng: random.Random) -> None:
    if z < 6:
        return
    crown = height * (0.22 if kind == "conifer" else rng.uniform(0.28, 0.4))
    if kind == "bush":
        crown = height * 0.8
    tree = Tree(s, z, height, crown, kind, rng.randrange(2**31))
    camera, light = scene.camera, scene.light
    scene.add(z, lambda canvas, noise: draw_tree(canvas, camera, light, noise, tree))
    reach = height / max(math.tan(math.asin(light.sun[1])), 0.2)
    flat = math.hypot(light.sun[0], light.sun[2])
    dx, dz = -light.sun[0] / flat * reach, -light.sun[2] / flat * reach
    if kind != "bare":
        ring = []
        for k in range(10):
            t = k * math.pi / 5
            ring.append(
                (
                    s + dx * 0.65 + crown * math.cos(t),
                    0.0,
                    z + dz * 0.65 + crown * 1.3 * math.sin(t),
                )
            )
        scene.shadows.append(ring)


def _furnish(scene: Scene, side: Side, rng: random.Random) -> None:
    """Lamps, trees, lights, signs and bollards along one kerb."""
    camera, light = scene.camera, scene.light
    kerb = scene.street.half + 0.45

    def clear(z: float) -> bool:
        return all(not a - 4 < z < b + 4 for a, b in side.mouths)

    def stand(draw: Callable[..., None], s: float, z: float) -> None:
        if z < 4 or not clear(z):
            return
        key = rng.randrange(2**31)
        scene.add(z, lambda canvas, noise: draw(canvas, camera, light, s, z, key, 0.8))

    z, step = rng.uniform(6, 20), rng.uniform(18, 30)
    while z < 110:
        stand(draw_lamp, side.sign * kerb, z)
        z += step
    for near, _far in side.mouths:
        if rng.random() < 0.6:
            key, at = rng.randrange(2**31), near - 4.2
            s = side.sign * kerb
            if at > 5:
                scene.add(
                    at,
                    lambda canvas, noise, key=key, at=at, s=s: draw_signal(
                        canvas, camera, light, s, at, key, 0.8
                    ),
                )
    for near, _far in scene.street.crossings:
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
            if clear(z):
                _tree(scene, side.sign * (kerb + 0.5), z, rng.uniform(5, 9), kind, rng)
            z += gap
    if rng.random() < 0.3:
        near, key = rng.uniform(3, 25), rng.randrange(2**31)
        s, far = side.sign * (kerb - 0.15), near + rng.uniform(6, 15)
        if clear(near) and clear(far):
            scene.add(
                far,
                lambda canvas, noise: draw_fence(
                    canvas, camera, light, noise, s, near, far, "railings", key
                ),
            )


def _traffic(scene: Scene, rng: random.Random) -> None:
    """Parked and moving vehicles; traffic keeps to the left."""
    half = scene.street.half
    cars: list[Vehicle] = []
    for side in scene.street.sides:
        if half > 3.6 and rng.random() < 0.6 and not side.lines:
            z = rng.uniform(4, 20)
            stop = z + rng.uniform(8, 60)
            while z < stop:
                if all(not a - 6 < z < b + 6 for a, b in side.mouths):
                    turn = 0.0 if side.sign < 0 or rng.random() < 0.3 else math.pi
                    s = side.sign * (half - 1.05) + rng.uniform(-0.1, 0.1)
                    car = random_vehicle(rng, s, z, turn + rng.uniform(-0.03, 0.03))
                    if car.kind != "bus":
                        cars.append(car)
                z += rng.uniform(5.4, 8)
    for lane, turn in ((-0.45, 0.0), (0.45, math.pi)):
        z = rng.uniform(11, 40)
        for _ in range(rng.randrange(0, 4)):
            car = random_vehicle(rng, lane * half, z, turn + rng.uniform(-0.05, 0.05))
            if all(abs(c.z - z) > 6.5 or abs(c.s - car.s) > 2.3 for c in cars):
                cars.append(car)
            z += rng.uniform(9, 30)
    camera, light = scene.camera, scene.light
    for car in cars:
        car.turn += math.atan(camera.heading + camera.bend * car.z)
        scene.contacts.append(car.footprint(0.12))
        reach = (1.4 if car.kind != "bus" else 3.0) / max(math.tan(math.asin(light.sun[1])), 0.25)
        flat = math.hypot(light.sun[0], light.sun[2])
        dx, dz = -light.sun[0] / flat * reach, -light.sun[2] / flat * reach
        ring = car.footprint(0.0)
        scene.shadows += [ring, [(s + dx, y, z + dz) for s, y, z in ring]]
        scene.add(
            car.z - 1.5,
            lambda canvas, noise, car=car: draw_vehicle(canvas, camera, light, car, 0.8),
        )


def _walkers(scene: Scene, rng: random.Random) -> None:
    """People on the pavements and crossings, and cyclists near the kerbs."""
    street, camera, light = scene.street, scene.camera, scene.light

    def someone(s: float, z: float, y: float, ride: bool) -> None:
        view = (
            rng.choice(["front", "back", "side"])
            if not ride
            else ("side" if rng.random() < 0.3 else "back" if s < 0 else "front")
        )
        who = Person(
            s, z, y, rng.uniform(1.55, 1.9), view, rng.choice([-1, 1]), rng.randrange(2**31)
        )
        draw = draw_cyclist if ride else draw_pedestrian
        scene.add(z, lambda canvas, noise: draw(canvas, camera, light, who, 0.8))
        scene.contacts.append(
            [
                (s - 0.3, 0, z - 0.2),
                (s + 0.3, 0, z - 0.2),
                (s + 0.3, 0, z + 0.2),
                (s - 0.3, 0, z + 0.2),
            ]
        )

    crowd = rng.choice([1, 3, 6, 12, 18])
    for _ in range(crowd):
        side = rng.choice(street.sides)
        s = side.sign * (street.half + rng.uniform(0.6, max(0.7, side.front - 0.4)))
        z = rng.uniform(6, 45)
        for k in range(rng.choice([1, 1, 1, 2, 3])):
            someone(s + 0.5 * k, z + 0.2 * k, 0.0, False)
    for near, far in street.crossings:
        for _ in range(rng.randrange(0, 4)):
            someone(rng.uniform(-street.half, street.half), rng.uniform(near, far), 0.0, False)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        side = rng.choice(street.sides)
        someone(side.sign * (street.half - rng.uniform(0.6, 1.2)), rng.uniform(6, 35), 0.0, True)
