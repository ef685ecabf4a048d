"""The drawn street's cars, vans and buses: convex hulls of a few dozen lit faces."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ._canvas import CAR, Camera, Canvas, Colour, Light, Point, Point3, mix, rgb, scale

PAINTS: list[Colour] = [
    (172, 176, 180),
    (196, 198, 200),
    (60, 64, 70),
    (28, 30, 34),
    (36, 52, 96),
    (70, 92, 132),
    (140, 24, 26),
    (232, 232, 230),
    (22, 62, 50),
    (104, 108, 112),
    (150, 158, 150),
    (88, 22, 30),
]

# Outline of each body from front bumper over the roof to the rear bumper: (length from the
# middle, height, half width). Stations 3 to 4 carry the windscreen, 6 to 7 the rear window.
BODIES: dict[str, list[Point3]] = {
    "hatch": [
        (1.88, 0.24, 0.70),
        (1.96, 0.52, 0.76),
        (1.84, 0.74, 0.80),
        (0.98, 0.95, 0.80),
        (0.30, 1.41, 0.60),
        (-1.25, 1.43, 0.58),
        (-1.50, 1.36, 0.57),
        (-1.84, 0.95, 0.74),
        (-1.90, 0.60, 0.78),
        (-1.86, 0.26, 0.72),
    ],
    "saloon": [
        (2.15, 0.24, 0.72),
        (2.24, 0.52, 0.78),
        (2.10, 0.72, 0.82),
        (1.05, 0.92, 0.82),
        (0.40, 1.38, 0.61),
        (-0.85, 1.40, 0.60),
        (-1.00, 1.36, 0.59),
        (-1.62, 0.98, 0.76),
        (-2.18, 0.92, 0.78),
        (-2.22, 0.30, 0.74),
    ],
    "estate": [
        (2.10, 0.30, 0.74),
        (2.18, 0.60, 0.82),
        (2.06, 0.88, 0.86),
        (1.10, 1.06, 0.86),
        (0.55, 1.64, 0.68),
        (-1.60, 1.70, 0.66),
        (-1.82, 1.62, 0.65),
        (-2.06, 1.06, 0.82),
        (-2.12, 0.62, 0.84),
        (-2.06, 0.30, 0.78),
    ],
    "van": [
        (2.50, 0.30, 0.84),
        (2.58, 0.62, 0.92),
        (2.44, 1.02, 0.95),
        (1.90, 1.24, 0.95),
        (1.20, 2.06, 0.82),
        (-2.20, 2.20, 0.82),
        (-2.36, 2.16, 0.82),
        (-2.48, 1.16, 0.94),
        (-2.52, 0.66, 0.95),
        (-2.48, 0.34, 0.90),
    ],
    "bus": [
        (5.10, 0.32, 1.16),
        (5.22, 0.70, 1.22),
        (5.20, 1.05, 1.25),
        (5.16, 1.25, 1.25),
        (5.00, 3.10, 1.22),
        (-4.90, 3.16, 1.22),
        (-5.08, 3.02, 1.22),
        (-5.16, 1.50, 1.25),
        (-5.18, 0.80, 1.25),
        (-5.12, 0.34, 1.20),
    ],
}
COWL, ROOF, BACK, TAIL = 3, 4, 6, 7


@dataclass
class Vehicle:
    """Where a vehicle stands and how it looks; ``turn`` is 0 when it drives away from us."""

    kind: str
    s: float
    z: float
    turn: float
    paint: Colour
    seed: int

    def place(self, along: float, across: float, up: float) -> Point3:
        """A point of the body in street coordinates."""
        c, n = math.cos(self.turn), math.sin(self.turn)
        return (self.s + along * n + across * c, up, self.z + along * c - across * n)

    def footprint(self, grow: float) -> list[Point3]:
        """The rectangle it covers on the ground."""
        body = BODIES[self.kind]
        front, back, half = body[1][0] + grow, body[-2][0] - grow, body[2][2] + grow
        corners = ((front, -half), (front, half), (back, half), (back, -half))
        return [self.place(a, b, 0.0) for a, b in corners]


class _Painter:
    """Draws the faces of one vehicle that look at the camera."""

    def __init__(
        self, canvas: Canvas, camera: Camera, light: Light, car: Vehicle, lit: float
    ) -> None:
        self.canvas, self.camera, self.light, self.car, self.lit = canvas, camera, light, car, lit
        self.small = camera.focal / max(car.z, 1.0) < 16  # pixels a metre

    def face(self, corners: list[Point3], colour: Colour, outline: bool = True) -> bool:
        """Fill a body face when it looks at the camera; tells whether it did."""
        points = self.camera.project(corners)
        if len(points) < 3 or _signed(points) <= 0:
            return False
        self.canvas.fill(points, colour, CAR if outline else None)
        return True

    def shade(self, colour: Colour, corners: list[Point3]) -> Colour:
        """Body colour under the sky and sun, with some sky mirrored in faces that look up."""
        normal = _normal(corners)
        base = self.light.level(normal, self.lit)
        shine = max(0.0, normal[1]) ** 2 * 0.35 + 0.03
        sky = scale(self.light.haze, self.light.ambient)
        return self.light.air(mix(scale(colour, base), sky, shine), self.car.z)

    def inset(self, q: list[Point3], box: tuple[float, float, float, float]) -> list[Point]:
        """Picture points of a part of a face: (left, top, right, bottom) as fractions."""
        u0, v0, u1, v1 = box
        out = []
        for u, v in ((u0, v0), (u1, v0), (u1, v1), (u0, v1)):
            a = [q[0][i] + (q[1][i] - q[0][i]) * u for i in range(3)]
            b = [q[3][i] + (q[2][i] - q[3][i]) * u for i in range(3)]
            out.append(
                (a[0] + (b[0] - a[0]) * v, a[1] + (b[1] - a[1]) * v, a[2] + (b[2] - a[2]) * v)
            )
        return self.camera.project(out)

    def detail(
        self, q: list[Point3], box: tuple[float, float, float, float], colour: Colour
    ) -> None:
        """Paint a part of a face."""
        self.canvas.fill(self.inset(q, box), colour)


def _signed(points: list[Point]) -> float:
    total = 0.0
    for i, (x, y) in enumerate(points):
        px, py = points[i - 1]
        total += px * y - x * py
    return total


def _normal(corners: list[Point3]) -> Point3:
    a, b, c = corners[0], corners[1], corners[2]
    u = (b[0] - a[0], b[1] - a[1], b[2] - a[2])
    v = (c[0] - b[0], c[1] - b[1], c[2] - b[2])
    n = (u[2] * v[1] - u[1] * v[2], u[0] * v[2] - u[2] * v[0], u[1] * v[0] - u[0] * v[1])
    size = math.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2) or 1.0
    # Faces are listed clockwise as seen from outside, which turns this product inwards.
    return (-n[0] / size, -n[1] / size, -n[2] / size)


def draw_vehicle(
    canvas: Canvas, camera: Camera, light: Light, car: Vehicle, lit: float = 1.0
) -> None:
    """Paint one vehicle: underside, wheels behind, sides, then the skin from end to end."""
    if car.z + BODIES[car.kind][-2][0] < 1.5:
        return
    pen = _Painter(canvas, camera, light, car, lit)
    body = BODIES[car.kind]
    dark = light.air((18, 18, 20), car.z)
    _underside(pen, body, dark)
    ahead = math.cos(car.turn + math.atan2(car.s + camera.shift(car.z), car.z)) > 0
    strips = list(range(len(body) - 1))
    for i in strips if ahead else reversed(strips):
        _strip(pen, body, i)
    for hand in (-1, 1):
        _flank(pen, body, hand, dark)


def _underside(pen: _Painter, body: list[Point3], dark: Colour) -> None:
    car = pen.car
    front, back = body[0][0], body[-1][0]
    for end in (front - 0.15, back + 0.15):
        q = [
            car.place(end, a, y)
            for a, y in ((-0.72, 0.34), (0.72, 0.34), (0.72, 0.1), (-0.72, 0.1))
        ]
        pen.canvas.fill(pen.camera.project(q), dark, CAR)
    for end in (front - 0.75, back + 0.7):
        for hand in (-1, 1):
            a = hand * (body[2][2] - 0.02)
            q = [
                car.place(end, a, 0.4),
                car.place(end, a - hand * 0.19, 0.4),
                car.place(end, a - hand * 0.19, 0.0),
                car.place(end, a, 0.0),
            ]
            pen.canvas.fill(pen.camera.project(q), dark, CAR)


def _strip(pen: _Painter, body: list[Point3], i: int) -> None:
    """One strip of skin across the vehicle, between stations ``i`` and ``i + 1``."""
    car = pen.car
    (l0, y0, w0), (l1, y1, w1) = body[i], body[i + 1]
    if i >= ROOF:  # rear half: listed from the upper edge down, seen from behind
        q = [
            car.place(l0, -w0, y0),
            car.place(l0, w0, y0),
            car.place(l1, w1, y1),
            car.place(l1, -w1, y1),
        ]
    else:
        q = [
            car.place(l1, w1, y1),
            car.place(l1, -w1, y1),
            car.place(l0, -w0, y0),
            car.place(l0, w0, y0),
        ]
    colour = pen.shade(car.paint, q)
    if not pen.face(q, colour):
        return
    z, light = car.z, pen.light
    if i in (COWL, BACK):
        glass = mix((26, 30, 34), scale(light.haze, light.ambient), 0.28 if i == COWL else 0.16)
        pen.detail(q, (0.06, 0.06, 0.94, 0.94), light.air(glass, z))
        if not pen.small:
            pen.detail(q, (0.1, 0.5, 0.9, 0.92), light.air(scale(glass, 0.72), z))
            for u in (0.16, 0.6):
                pen.detail(q, (u, 0.45, u + 0.22, 0.9), light.air(scale(glass, 0.5), z))
    elif i == 0:
        pen.detail(q, (0.0, 0.3, 1.0, 1.0), scale(colour, 0.62))
        pen.detail(q, (0.25, 0.2, 0.75, 0.75), light.air((24, 24, 26), z))
        pen.detail(q, (0.37, 0.1, 0.63, 0.42), light.air(scale((222, 222, 214), 0.85), z))
    elif i == 1:
        pen.detail(q, (0.3, 0.25, 0.7, 0.8), light.air((34, 34, 36), z))
        for u in (0.02, 0.76):
            pen.detail(q, (u, 0.1, u + 0.22, 0.85), light.air((206, 210, 212), z))
            pen.detail(q, (u + 0.06, 0.25, u + 0.16, 0.7), light.air((250, 250, 240), z))
    elif i == TAIL:
        _tail(pen, q, light, z)
    elif i == TAIL + 1:
        pen.detail(q, (0.0, 0.45, 1.0, 1.0), scale(colour, 0.6))
        if car.kind != "saloon":
            pen.detail(q, (0.36, 0.05, 0.64, 0.4), light.air((206, 176, 40), z))
        else:
            _tail(pen, q, light, z)


def _tail(pen: _Painter, q: list[Point3], light: Light, z: float) -> None:
    red = light.air((176, 26, 24), z)
    for u in (0.01, 0.83):
        pen.detail(q, (u, 0.0, u + 0.16, 0.8), red)
        pen.detail(q, (u + 0.03, 0.45, u + 0.13, 0.68), light.air((228, 170, 150), z))
    pen.detail(q, (0.35, 0.3, 0.65, 0.72), light.air((210, 180, 44), z))
    if not pen.small:
        for k in range(6):
            u = 0.375 + k * 0.043
            pen.detail(q, (u, 0.4, u + 0.026, 0.62), light.air((40, 38, 30), z))


def _flank(pen: _Painter, body: list[Point3], hand: int, dark: Colour) -> None:
    """One side: lower body, windows, wheels."""
    car, light = pen.car, pen.light
    wall = [car.place(a, hand * body[2][2], y) for a, y in ((1, 1), (-1, 1), (-1, 0), (1, 0))]
    if hand > 0:
        wall.reverse()
    if _signed(pen.camera.project(wall)) <= 0:
        return
    colour = pen.shade(car.paint, wall)
    lower = [car.place(a, hand * w, y) for a, y, w in [*body[: COWL + 1], *body[TAIL:]]]
    cabin = [car.place(a, hand * w, y) for a, y, w in body[COWL : TAIL + 1]]
    pen.canvas.fill(pen.camera.project(lower), colour, CAR)
    pen.canvas.fill(pen.camera.project(cabin), colour, CAR)
    _side_windows(pen, body, hand)
    sill = [
        (body[0][0] - 0.1, 0.22),
        (body[0][0] - 0.1, 0.42),
        (body[-1][0] + 0.1, 0.42),
        (body[-1][0] + 0.1, 0.22),
    ]
    w = body[2][2]
    pen.canvas.fill(
        pen.camera.project([car.place(a, hand * w, y) for a, y in sill]), scale(colour, 0.6)
    )
    if not pen.small:
        for a in (0.75, -0.35):
            door = [car.place(a, hand * w, 0.35), car.place(a, hand * w, body[COWL][1])]
            pen.canvas.stroke(pen.camera.project(door), 0.4, scale(colour, 0.6))
    big = 0.48 if car.kind == "bus" else 0.32
    for a in (body[0][0] * 0.66, body[-1][0] * 0.66):
        for radius, tone in (
            (big + 0.07, scale(dark, 0.6)),
            (big, dark),
            (big * 0.62, light.air((140, 142, 144), car.z)),
            (big * 0.25, dark),
        ):
            ring = []
            for k in range(14):
                t = k * math.pi / 7
                ring.append(
                    car.place(
                        a + radius * math.cos(t),
                        hand * (w + 0.01),
                        max(0.0, big + radius * math.sin(t)),
                    )
                )
            pen.canvas.fill(pen.camera.project(ring), tone, CAR)


def _side_windows(pen: _Painter, body: list[Point3], hand: int) -> None:
    car, light = pen.car, pen.light
    (a0, y0, w0), (a1, y1, w1) = body[COWL], body[ROOF]
    b0, b1 = body[TAIL][0], body[BACK][0]
    glass = light.air(mix((24, 28, 32), scale(light.haze, light.ambient), 0.2), car.z)
    panes = {"bus": 6, "van": 0}.get(car.kind, 2)
    if car.kind == "van":
        b0, b1, panes = a1 - 0.5, a1 - 0.5, 1
    if car.kind == "bus":
        y0 = 1.5
    for k in range(panes):
        near, far = (k + 0.06) / panes, (k + 0.94) / panes
        ring = []
        for share, up in ((near, 0.08), (near, 0.86), (far, 0.86), (far, 0.08)):
            low, high = a0 + (b0 - a0) * share, a1 + (b1 - a1) * share
            y = y0 + (y1 - y0) * up
            w = w0 + (w1 - w0) * up
            ring.append(car.place(low + (high - low) * up, hand * w, y))
        pen.canvas.fill(pen.camera.project(ring), glass)


def random_vehicle(rng: random.Random, s: float, z: float, turn: float) -> Vehicle:
    """A vehicle of some kind and colour at a place; large ones are rare."""
    kind = rng.choices(["hatch", "saloon", "estate", "van", "bus"], [40, 25, 20, 10, 5])[0]
    paint = rng.choice(PAINTS)
    if kind == "bus":
        paint = rng.choice([(170, 30, 34), (40, 80, 150), (222, 216, 196)])
    return Vehicle(kind, s, z, turn, rgb(*paint), rng.randrange(2**31))
