"""The drawn street's lamp posts, traffic lights, signs and bollards."""

from __future__ import annotations

import random

from .canvas import POLE, SIGN, Color
from .stage import Stage, mix, scale

METAL: list[Color] = [(120, 124, 124), (70, 74, 74), (40, 48, 44), (150, 154, 154), (34, 34, 36)]


class _Post:
    """Draws upright things at one place, in meters, facing the camera."""

    def __init__(self, stage: Stage, s: float, z: float, lit: float) -> None:
        self.canvas, self.camera, self.light = stage.canvas, stage.camera, stage.light
        self.s, self.z = s, z
        self.k = stage.camera.focal / z
        self.level = stage.light.ambient * 0.75 + 0.5 * stage.light.strength * lit

    def tone(self, color: Color, share: float = 1.0) -> Color:
        """A color in this light and at this distance."""
        return self.light.air(scale(color, self.level * share), self.z)

    def bar(
        self, u: float, low: float, high: float, wide: float, color: Color, label: int = POLE
    ) -> None:
        """An upright bar ``wide`` meters across, with a lit and a dark side."""
        at, c = self.camera.at, self.tone(color)
        wide = max(wide, 0.7 / self.k)
        left, right = self.s + u - wide / 2, self.s + u + wide / 2
        q = [
            at(left, high, self.z),
            at(right, high, self.z),
            at(right, low, self.z),
            at(left, low, self.z),
        ]
        self.canvas.fill(q, c, label)
        if wide * self.k > 2:
            mid = self.s + u + wide * 0.12
            dark = [at(mid, high, self.z), q[1], q[2], at(mid, low, self.z)]
            self.canvas.fill(dark, scale(c, 0.66))

    def box(
        self,
        u: float,
        low: float,
        high: float,
        wide: float,
        color: Color,
        label: int | None = SIGN,
        share: float = 1.0,
    ) -> None:
        """A flat upright rectangle."""
        at = self.camera.at
        q = [
            at(self.s + u - wide / 2, high, self.z),
            at(self.s + u + wide / 2, high, self.z),
            at(self.s + u + wide / 2, low, self.z),
            at(self.s + u - wide / 2, low, self.z),
        ]
        self.canvas.fill(q, self.tone(color, share), label)

    def disc(
        self,
        u: float,
        v: float,
        radius: float,
        color: Color,
        label: int | None = SIGN,
        share: float = 1.0,
    ) -> None:
        """A round plate."""
        center = self.camera.at(self.s + u, v, self.z)
        r = radius * self.k
        self.canvas.ellipse(center, r, r, self.tone(color, share), label)


def draw_lamp(stage: Stage, s: float, z: float, seed: int, lit: float) -> None:
    """Paint a street lamp whose arm reaches over the road."""
    rng = random.Random(seed)
    post = _Post(stage, s, z, lit)
    metal, height = rng.choice(METAL), rng.uniform(5.5, 8.0)
    hand = -1 if s > 0 else 1
    reach = rng.uniform(0.8, 1.6)
    post.bar(0, 0, 1.2, 0.19, metal)
    post.bar(0, 1.2, height, 0.13, metal)
    arm = [
        stage.camera.at(s, height - 0.05, z),
        stage.camera.at(s + hand * reach, height + 0.25, z),
    ]
    stage.canvas.stroke(arm, max(0.08 * post.k, 0.7), post.tone(metal), POLE)
    head = [(reach - 0.1, 0.32), (reach + 0.6, 0.36), (reach + 0.6, 0.24), (reach - 0.1, 0.16)]
    stage.canvas.fill(
        [stage.camera.at(s + hand * u, height + v, z) for u, v in head],
        post.tone((150, 152, 152)),
        POLE,
    )


def draw_signal(stage: Stage, s: float, z: float, seed: int, lit: float) -> None:
    """Paint a traffic light: the pole, and the head as a sign."""
    rng = random.Random(seed)
    post = _Post(stage, s, z, lit)
    post.bar(0, 0, 3.1, 0.12, (70, 74, 74))
    if rng.random() < 0.5:
        post.box(0, 2.12, 3.28, 0.56, (200, 202, 200))
    post.box(0, 2.2, 3.2, 0.4, (22, 24, 26))
    state = "red" if int(z) % 2 else "green"  # alike on both sides of a crossing
    for v, name, on, off in (
        (3.0, "red", (255, 60, 44), (70, 26, 24)),
        (2.7, "amber", (255, 180, 40), (72, 52, 24)),
        (2.4, "green", (60, 250, 150), (22, 52, 40)),
    ):
        bright = name == state
        center = post.camera.at(s, v, z)
        post.canvas.ellipse(
            center, 0.11 * post.k, 0.11 * post.k, stage.light.air(on if bright else off, z * 0.3)
        )
        if bright:
            post.canvas.ellipse(center, 0.05 * post.k, 0.05 * post.k, mix(on, (255, 255, 255), 0.5))
    if rng.random() < 0.5:
        post.box(0, 0.9, 1.3, 0.22, (190, 170, 40), POLE)


def draw_sign(stage: Stage, s: float, z: float, seed: int, lit: float) -> None:
    """Paint a road sign on its post: disc, triangle, plate or a tall advertising panel."""
    rng = random.Random(seed)
    post = _Post(stage, s, z, lit)
    kind = rng.choice(["disc", "disc", "triangle", "plate", "panel"])
    if kind == "panel":
        _panel(post, rng)
        return
    high = rng.uniform(2.4, 2.9)
    post.bar(0, 0, high, 0.08, (110, 114, 114))
    if kind == "disc":
        _disc(post, high - 0.1, rng.random() < 0.4)
    elif kind == "triangle":
        _triangle(post, high - 0.1)
    else:
        _plate(post, high, rng)


def _disc(post: _Post, v: float, blue: bool) -> None:
    """A round sign: an order (white on blue) or a ban (black on white, ringed red)."""
    rim, field, ink = (190, 30, 34), (236, 236, 232), (40, 40, 42)
    if blue:
        rim, field, ink = (30, 70, 160), (36, 84, 180), (232, 232, 232)
    post.disc(0, v, 0.34, rim, share=1.15)
    post.disc(0, v, 0.29 if blue else 0.25, field, None, 1.15)
    post.box(0, v - 0.08, v + 0.08, 0.3 if blue else 0.26, ink, None)


def _triangle(post: _Post, v: float) -> None:
    """A warning."""
    parts: list[tuple[float, Color, int | None]] = [
        (0.42, (190, 30, 34), SIGN),
        (0.29, (238, 238, 232), None),
    ]
    for size, color, label in parts:
        half, low = size * 0.95, v - size * 0.62
        corners = [(0.0, v + size), (half, low), (-half, low)]
        points = [post.camera.at(post.s + a, b, post.z) for a, b in corners]
        post.canvas.fill(points, post.tone(color, 1.1), label)
    post.box(0, v - 0.1, v + 0.18, 0.07, (30, 30, 32), None)


def _plate(post: _Post, high: float, rng: random.Random) -> None:
    """A direction sign with lines of text."""
    color = rng.choice([(24, 92, 60), (30, 66, 150), (236, 236, 232), (212, 176, 40)])
    wide, tall = rng.uniform(0.5, 1.2), rng.uniform(0.4, 0.9)
    ink = (236, 236, 232) if sum(color) < 400 else (30, 30, 32)
    post.box(0, high - tall, high, wide, ink, share=1.1)
    post.box(0, high - tall + 0.03, high - 0.03, wide - 0.06, color, None, 1.1)
    for row in range(max(1, int(tall / 0.22))):
        v, u = high - 0.16 - row * 0.2, rng.uniform(-0.05, 0.05)
        post.box(u, v, v + 0.09, wide * rng.uniform(0.4, 0.75), ink, None)


def _panel(post: _Post, rng: random.Random) -> None:
    color = rng.choice([(30, 56, 140), (150, 26, 32), (232, 230, 222), (34, 90, 60), (40, 42, 48)])
    wide, tall = rng.uniform(0.9, 1.3), rng.uniform(1.8, 3.0)
    ink = (238, 238, 236) if sum(color) < 400 else (50, 50, 60)
    post.bar(-wide / 2, 0, tall, 0.09, (150, 152, 152))
    post.bar(wide / 2, 0, tall, 0.09, (150, 152, 152))
    post.box(0, 0.25, tall, wide, color, share=1.05)
    post.box(0, tall - 0.5, tall - 0.15, wide * 0.7, ink, None)
    v = tall - 0.8
    while v > 0.7:
        post.box(-wide * 0.1, v - 0.12, v, wide * rng.uniform(0.3, 0.7), ink, None)
        v -= rng.uniform(0.22, 0.45)
    post.box(0, 0.3, 0.55, wide * 0.96, rng.choice([(210, 120, 40), (200, 40, 40)]), None)


def draw_bollard(stage: Stage, s: float, z: float, seed: int, lit: float) -> None:
    """Paint a bollard at the kerb."""
    post = _Post(stage, s, z, lit)
    pale = seed % 3 == 0
    post.bar(0, 0.0, 1.0, 0.15, (176, 172, 160) if pale else (36, 38, 40))
    post.box(0, 0.72, 0.84, 0.15, (60, 60, 60) if pale else (214, 214, 208), None)


def draw_hanging_sign(stage: Stage, s: float, z: float, seed: int, lit: float) -> None:
    """Paint a shop's or pub's sign that hangs from the facade at ``s`` over the pavement."""
    rng = random.Random(seed)
    hand = -1 if s > 0 else 1
    post = _Post(stage, s, z, lit)
    color = rng.choice([(30, 60, 130), (150, 30, 32), (30, 80, 56), (230, 226, 214), (28, 28, 30)])
    ink = (232, 226, 200) if sum(color) < 400 else (40, 40, 44)
    low, tall, wide = rng.uniform(2.8, 3.6), rng.uniform(0.6, 1.1), rng.uniform(0.6, 0.9)
    post.box(hand * (wide / 2 + 0.1), low, low + tall, wide, ink)
    post.box(hand * (wide / 2 + 0.1), low + 0.05, low + tall - 0.05, wide - 0.1, color, None)
    post.box(hand * (wide / 2 + 0.1), low + tall * 0.4, low + tall * 0.6, wide * 0.6, ink, None)
