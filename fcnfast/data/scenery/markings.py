"""Arrows and words painted on the drawn street's road."""

from __future__ import annotations

from .canvas import Color
from .stage import Point3, Stage, mix, scale

# Letters as strokes on a grid of three columns from the left by five rows from the foot; a point
# is its column and its row.
_STROKES: dict[str, str] = {
    "A": "00-13-14-20 01-21", "B": "00-04-14-23-12-21-10-00 02-12", "C": "24-14-03-01-10-20",
    "E": "24-04-00-20 02-12", "K": "00-04 24-02-20", "L": "04-00-20", "N": "00-04-20-24",
    "O": "10-01-03-14-23-21-10", "P": "00-04-14-23-12-02", "R": "00-04-14-23-12-02 12-20",
    "S": "00-10-21-12-03-14-24", "T": "10-14 04-24", "U": "04-01-10-21-24", "W": "04-10-12-20-24",
}  # fmt: skip
WORDS = ["SLOW", "KEEP/CLEAR", "BUS/STOP", "LOOK"]
_ARROW = [
    (-0.08, 0.0), (0.08, 0.0), (0.08, 2.2), (0.38, 2.2), (0.0, 4.0), (-0.38, 2.2), (-0.08, 2.2),
]  # fmt: skip


def _paint(stage: Stage, z: float, lit: float) -> Color:
    """Worn white paint on asphalt."""
    white = scale((176, 176, 172), stage.light.level((0.0, 1.0, 0.0), lit))
    return mix(stage.light.air(white, z), (110, 112, 116), 0.1)


def draw_arrow(stage: Stage, lit: float, s: float, z: float, way: int) -> None:
    """Paint an arrow that points ahead (``way`` 1) or towards the camera (-1)."""
    outline: list[Point3] = [(s + u, 0.0, z + way * v) for u, v in _ARROW]
    stage.canvas.fill(stage.camera.project(outline), _paint(stage, z, lit))


def draw_word(stage: Stage, lit: float, s: float, z: float, text: str, way: int) -> None:
    """Paint lines of capitals (parted by ``/``), readable driving ahead (``way`` 1) or back."""
    color, thick = _paint(stage, z, lit), 0.07
    for k, line in enumerate(text.split("/")):
        foot = z + way * 2.4 * k
        left = -0.5 * (0.62 * len(line) - 0.2)
        for i, letter in enumerate(line):
            for stroke in _STROKES[letter].split():
                points = [(left + 0.62 * i + 0.21 * int(p[0]), 0.45 * int(p[1]))
                          for p in stroke.split("-")]  # fmt: skip
                for (u0, v0), (u1, v1) in zip(points, points[1:], strict=False):
                    # Strokes keep their width across the road and twice that along it.
                    du, dv = (thick, 0.0) if abs(v1 - v0) > abs(u1 - u0) else (0.0, 2 * thick)
                    quad = [(u0 - du, v0 - dv), (u1 - du, v1 - dv), (u1 + du, v1 + dv),
                            (u0 + du, v0 + dv)]  # fmt: skip
                    ground = [(s + way * u, 0.0, foot + way * v) for u, v in quad]
                    stage.canvas.fill(stage.camera.project(ground), color)
