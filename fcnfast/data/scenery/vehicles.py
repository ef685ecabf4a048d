"""Painting the drawn street's vehicles: the faces of their bodies, glass, lamps and wheels."""

from __future__ import annotations

import math
import random

from .bodies import BACK, COWL, ROOF, TAIL, Vehicle
from .canvas import CAR, Color, Point
from .stage import Point3, Stage, mix, scale, turning

Box = tuple[float, float, float, float]
BLACK: Color = (20, 20, 22)
AMBER_PLATE: Color = (196, 166, 44)


class _Painter:
    """Draws the faces of one vehicle that look at the camera."""

    def __init__(self, stage: Stage, car: Vehicle, lit: float) -> None:
        self.stage, self.car, self.lit = stage, car, lit
        self.canvas, self.camera, self.light = stage.canvas, stage.camera, stage.light
        self.per_meter = stage.camera.focal / max(car.z, 1.0)
        self.close = self.per_meter > 16
        self.sky = scale(self.light.haze, self.light.ambient)

    def tone(self, color: Color) -> Color:
        """A fitting's own color in this light."""
        level = self.light.ambient * 0.85 + 0.5 * self.light.strength * self.lit
        return self.light.air(scale(color, level), self.car.z)

    def shade(self, corners: list[Point3]) -> Color:
        """Body color under sky and sun, with some sky mirrored in faces that look up."""
        normal = _normal(corners)
        base = self.light.level(normal, self.lit)
        shine = max(0.0, normal[1]) ** 2 * 0.38 + 0.04
        return self.light.air(mix(scale(self.car.paint, base), self.sky, shine), self.car.z)

    def patch(self, q: list[Point3], outline: list[Point], color: Color) -> None:
        """Paint a part of a face; ``outline`` is in fractions across and down the face."""
        out = []
        for u, v in outline:
            a = [q[0][i] + (q[1][i] - q[0][i]) * u for i in range(3)]
            b = [q[3][i] + (q[2][i] - q[3][i]) * u for i in range(3)]
            out.append((a[0] + (b[0] - a[0]) * v, a[1] + (b[1] - a[1]) * v,
                        a[2] + (b[2] - a[2]) * v))  # fmt: skip
        self.canvas.fill(self.camera.project(out), color)

    def detail(self, q: list[Point3], box: Box, color: Color) -> None:
        """Paint a rectangle of a face: (left, top, right, bottom) as fractions."""
        u0, v0, u1, v1 = box
        self.patch(q, [(u0, v0), (u1, v0), (u1, v1), (u0, v1)], color)

    def solid(self, points: list[Point3], color: Color) -> None:
        """Paint a polygon of the vehicle's outline."""
        self.canvas.fill(self.camera.project(points), color, CAR)


def _normal(corners: list[Point3]) -> Point3:
    """Unit normal of a face listed clockwise as seen from outside."""
    a, b, c = corners[0], corners[1], corners[2]
    u = (b[0] - a[0], b[1] - a[1], b[2] - a[2])
    v = (c[0] - b[0], c[1] - b[1], c[2] - b[2])
    n = (u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0])
    size = math.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2) or 1.0
    return (n[0] / size, n[1] / size, n[2] / size)


def draw_vehicle(stage: Stage, car: Vehicle, lit: float) -> None:
    """Paint one vehicle: underside and tyres, the skin from end to end, then its flank."""
    half = max(car.body[1][0], 1.0)
    if car.z - half < 1.2 or stage.camera.misses(car.s, car.z - half, half + 1.5):
        return
    pen = _Painter(stage, car, lit)
    _underside(pen)
    sight = math.atan2(car.s + stage.camera.shift(car.z), car.z)
    away = math.cos(car.turn - sight) > 0
    strips = range(len(car.body) - 1)
    before = [hand for hand in (-1, 1) if pen.close and away and not _faces(pen, hand)]
    for hand in before:
        _mirror(pen, hand)
    for i in strips if away else reversed(strips):
        _strip(pen, i)
    for hand in (-1, 1):
        if _faces(pen, hand):
            _flank(pen, hand)
    for hand in (-1, 1):
        if (
            pen.close
            and hand not in before
            and (away or _faces(pen, hand) or not _faces(pen, -hand))
        ):
            _mirror(pen, hand)


def _underside(pen: _Painter) -> None:
    car, body = pen.car, pen.car.body
    dark = pen.light.air((12, 12, 13), car.z)
    for end in (body[0][0] - 0.12, body[-1][0] + 0.12):
        q = [(-0.7, 0.36), (0.7, 0.36), (0.66, 0.14), (-0.66, 0.14)]
        pen.solid([car.place(end, a, y) for a, y in q], dark)
    for end in (body[0][0] * 0.66, body[-1][0] * 0.66):
        for hand in (-1, 1):
            a = hand * (body[2][2] - 0.03)
            q = [(a, 0.4), (a - hand * 0.2, 0.4), (a - hand * 0.2, 0.0), (a, 0.0)]
            for along in (end - 0.27, end + 0.27):
                pen.solid([car.place(along, b, y) for b, y in q], dark)
            side = [(-0.3, 0.34), (0.3, 0.34), (0.27, 0.1), (0.14, 0.0), (-0.14, 0.0), (-0.27, 0.1)]
            for inner in (a - hand * 0.2, a):
                pen.solid([car.place(end + b, inner, y) for b, y in side], dark)


def _strip(pen: _Painter, i: int) -> None:
    """One strip of skin across the vehicle, between stations ``i`` and ``i + 1``."""
    car = pen.car
    (l0, y0, w0), (l1, y1, w1) = car.body[i], car.body[i + 1]
    if i >= ROOF:  # seen from behind or above: the upper edge comes first
        q = [car.place(l0, -w0, y0), car.place(l0, w0, y0), car.place(l1, w1, y1),
             car.place(l1, -w1, y1)]  # fmt: skip
    else:
        q = [car.place(l1, w1, y1), car.place(l1, -w1, y1), car.place(l0, -w0, y0),
             car.place(l0, w0, y0)]  # fmt: skip
    points = pen.camera.project(q)
    if turning(points) <= 0:
        return
    color = pen.shade(q)
    pen.canvas.fill(points, color, CAR)
    if i in (COWL, BACK):
        _glass(pen, q, i == COWL)
    elif i == 2:
        pen.detail(q, (0.14, 0.0, 0.86, 0.9), mix(color, pen.sky, 0.08))
    elif i == 0:
        pen.detail(q, (0.0, 0.45, 1.0, 1.0), scale(color, 0.55))
        pen.detail(q, (0.22, 0.3, 0.78, 0.85), pen.tone((16, 16, 18)))
        pen.detail(q, (0.36, 0.02, 0.64, 0.42), pen.tone((214, 214, 206)))
    elif i == 1:
        _nose(pen, q, color)
    elif i == TAIL:
        pen.detail(q, (0.0, 0.86, 1.0, 1.0), scale(color, 0.75))
        if car.kind == "saloon":
            pen.detail(q, (0.04, 0.0, 0.96, 0.2), scale(color, 0.9))
        else:
            _lamps(pen, q, True)
    elif i == TAIL + 1:
        _lamps(pen, q, car.kind == "saloon")
        pen.detail(q, (0.0, 0.62, 1.0, 1.0), scale(color, 0.5))


def _glass(pen: _Painter, q: list[Point3], front: bool) -> None:
    """Windscreen or rear window, with heads and headrests behind it."""
    glass = pen.light.air(mix((22, 25, 29), pen.sky, 0.2 if front else 0.12), pen.car.z)
    pen.patch(q, [(0.07, 0.06), (0.93, 0.06), (0.96, 0.94), (0.04, 0.94)], glass)
    if not pen.close:
        return
    pen.patch(q, [(0.06, 0.42), (0.94, 0.42), (0.95, 0.92), (0.05, 0.92)], scale(glass, 0.78))
    for u in (0.16, 0.58):
        seat = [(u, 0.92), (u + 0.04, 0.72), (u + 0.08, 0.66), (u + 0.08, 0.5), (u + 0.18, 0.5),
                (u + 0.18, 0.66), (u + 0.22, 0.72), (u + 0.26, 0.92)]  # fmt: skip
        pen.patch(q, seat, scale(glass, 0.5))
    sheen = mix(glass, pen.sky, 0.3)
    pen.patch(q, [(0.62, 0.08), (0.74, 0.08), (0.56, 0.9), (0.42, 0.9)], mix(glass, sheen, 0.35))


def _nose(pen: _Painter, q: list[Point3], color: Color) -> None:
    """Grille and headlamps."""
    pen.detail(q, (0.3, 0.3, 0.7, 0.78), pen.tone((26, 27, 29)))
    pen.detail(q, (0.47, 0.4, 0.53, 0.66), pen.tone((150, 152, 154)))
    rim, lamp, bright = pen.tone((60, 64, 68)), pen.tone((176, 182, 186)), pen.tone((236, 238, 236))
    for flip in (False, True):
        for outline, tone in (
            ([(0.01, 0.1), (0.26, 0.3), (0.25, 0.85), (0.02, 0.85)], rim),
            ([(0.02, 0.2), (0.24, 0.38), (0.23, 0.76), (0.03, 0.76)], lamp),
            ([(0.09, 0.36), (0.19, 0.42), (0.18, 0.68), (0.09, 0.68)], bright),
        ):
            pen.patch(q, [(1 - u, v) if flip else (u, v) for u, v in outline], tone)
    pen.detail(q, (0.0, 0.92, 1.0, 1.0), scale(color, 0.8))


def _lamps(pen: _Painter, q: list[Point3], plate: bool) -> None:
    """Rear lamps, and the number plate where there is room."""
    red, pale = pen.tone((168, 24, 22)), pen.tone((206, 150, 130))
    top, low = (0.0, 0.7) if plate else (0.0, 0.25)
    for flip in (False, True):
        for outline, tone in (
            ([(0.0, top), (0.17, top), (0.14, low), (0.0, low)], red),
            ([(0.02, 0.4 * low), (0.14, 0.4 * low), (0.135, 0.65 * low), (0.02, 0.65 * low)], pale),
        ):
            pen.patch(q, [(1 - u, v) if flip else (u, v) for u, v in outline], tone)
    if not plate:
        return
    pen.detail(q, (0.36, 0.3, 0.64, 0.64), pen.tone(AMBER_PLATE))
    if pen.close:
        rng = random.Random(pen.car.seed)
        for k in range(7):
            u = 0.38 + k * 0.035 + (0.01 if k > 3 else 0.0)
            low = 0.4 + 0.06 * rng.random()
            pen.detail(q, (u, low, u + 0.022, 0.56), pen.tone((44, 40, 30)))


def _wall(car: Vehicle, hand: int) -> list[Point3]:
    """A square on one side of the body, listed clockwise as seen from that side."""
    w = hand * car.body[2][2]
    ends = (-1, 1) if hand > 0 else (1, -1)
    return [car.place(a, w, y) for a, y in zip((*ends, *reversed(ends)), (1, 1, 0, 0), strict=True)]


def _faces(pen: _Painter, hand: int) -> bool:
    """Whether this side of the body looks at the camera."""
    return turning(pen.camera.project(_wall(pen.car, hand))) > 0


def _flank(pen: _Painter, hand: int) -> None:
    """The side that looks at the camera: body, windows, doors, wheels."""
    car, body = pen.car, pen.car.body
    w, color = body[2][2], pen.shade(_wall(car, hand))
    lower = [car.place(a, hand * x, y) for a, y, x in [*body[: COWL + 1], *body[TAIL:]]]
    cabin = [car.place(a, hand * x, y) for a, y, x in body[COWL : TAIL + 1]]
    pen.solid(lower, color)
    pen.solid(cabin, scale(color, 0.96))
    belt = body[COWL][1]
    front, back = body[2][0] - 0.12, body[TAIL][0] + 0.08

    def band(low: float, high: float, tone: Color) -> None:
        strip = [(front, low), (front, high), (back, high), (back, low)]
        points = [car.place(a, hand * w, y) for a, y in strip]
        pen.canvas.fill(pen.camera.project(points), tone)

    high = min(belt, body[2][1] + 0.06)
    band(high - 0.12, high - 0.02, mix(color, pen.sky, 0.18))
    band(0.5, 0.56, scale(color, 0.82))
    band(max(body[0][1], body[-1][1]), 0.46, scale(color, 0.6))
    _side_windows(pen, hand)
    if pen.close and car.kind != "bus":
        for a in (0.78, -0.32, -1.15):
            door = [car.place(a, hand * w, 0.34), car.place(a - 0.04, hand * w, belt - 0.02)]
            pen.canvas.stroke(pen.camera.project(door), 0.34, scale(color, 0.6))
    for a in (body[0][0] * 0.66, body[-1][0] * 0.66):
        _wheel(pen, a, hand * (w + 0.01), 0.48 if car.kind == "bus" else 0.31)


def _wheel(pen: _Painter, along: float, across: float, radius: float) -> None:
    rubber, car = pen.tone(BLACK), pen.car
    turns = [(math.cos(k * math.pi / 9), math.sin(k * math.pi / 9)) for k in range(18)]
    rim = pen.tone((150, 153, 156))
    rings: list[tuple[float, Color, int | None]] = [
        (radius + 0.06, pen.light.air((8, 8, 9), car.z), CAR),
        (radius, rubber, CAR),
        (radius * 0.66, rim, None),
        (radius * 0.56, pen.tone((84, 87, 90)), None),
        (radius * 0.2, rim, None),
    ]
    for size, tone, label in rings:
        ring = [car.place(along + size * c, across, max(0.0, radius + size * n)) for c, n in turns]
        pen.canvas.fill(pen.camera.project(ring), tone, label)


def _side_windows(pen: _Painter, hand: int) -> None:
    car, body = pen.car, pen.car.body
    (a0, y0, w0), (a1, y1, w1) = body[COWL], body[ROOF]
    b0, b1 = body[TAIL][0], body[BACK][0]
    glass = pen.light.air(mix((20, 23, 27), pen.sky, 0.13), car.z)
    panes = {"bus": 7, "van": 1}.get(car.kind, 2)
    if car.kind == "van":  # no windows behind the driver
        b0 = b1 = a1 - 0.5
    if car.kind == "bus":
        y0 = 1.5
    for k in range(panes):
        near, far = (k + 0.06) / panes, (k + 0.94) / panes
        for base, tone in ((0.06, glass), (0.5, mix(glass, pen.sky, 0.1))):
            ring = []
            for share, up in ((near, base), (near, 0.86), (far, 0.86), (far, base)):
                low, high = a0 + (b0 - a0) * share, a1 + (b1 - a1) * share
                across = hand * (w0 + (w1 - w0) * up)
                ring.append(car.place(low + (high - low) * up, across, y0 + (y1 - y0) * up))
            pen.canvas.fill(pen.camera.project(ring), tone)


def _mirror(pen: _Painter, hand: int) -> None:
    car = pen.car
    a, y, w = car.body[COWL]
    q = [(w - 0.02, y + 0.14), (w + 0.18, y + 0.15), (w + 0.18, y + 0.03), (w - 0.02, y + 0.01)]
    tone = scale(pen.tone(car.paint), 0.6)
    pen.solid([car.place(a - 0.25, hand * across, up) for across, up in q], tone)
