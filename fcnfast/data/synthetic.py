"""Street scenes drawn by code, with exact labels in the eleven CamVid classes.

A scene is a plan of a street painted from back to front through a pinhole camera, on a picture
and a label map at once, and then photographed: exposure, glare, vignetting, noise. The parts are
in `scenery`: what is planned in ``plan``, ``plots`` and ``life``, how it is painted in
the others.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .folder import Sample
from .scenery.canvas import Canvas
from .scenery.ground import Ground, backdrop, cast_shadows, paint_sky
from .scenery.life import add_people, fill_road, furnish, paint_road
from .scenery.photo import photograph
from .scenery.plan import Scene, empty_street
from .scenery.plants import draw_skyline
from .scenery.plots import build_side
from .scenery.stage import Noise, Stage

__all__ = ["SyntheticScenes", "draw_scene"]


def draw_scene(seed: int, size: tuple[int, int] = (360, 480)) -> tuple[Image.Image, np.ndarray]:
    """Draw the street scene number ``seed``.

    Args:
        seed: any integer from 0 up; the same seed and size give the same bytes, as long as Pillow
            and NumPy stay the same (another Pillow may round an outline differently).
        size: (height, width) in pixels, each at least 1. The same seed shows the same street at
            another size, in as much of it as the shape of the picture takes in.

    Returns:
        The picture (RGB) and its labels (H x W uint8, classes 0 to 10 of ``CAMVID``). A pixel
        has the class of the front-most thing drawn at its center; foliage and webs of twigs
        count where they are dense, railings and wheels with the gaps between bars and spokes.

    Raises:
        TypeError: if ``seed`` or ``size`` are not integers.
        ValueError: if the seed is negative or a side is smaller than 1.
    """
    seed = _integer("seed", seed, 0)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"size must be (height, width), not {size!r}")
    height, width = (_integer("size", side, 1) for side in size)
    scene = plan_scene(seed, height, width)
    camera, light = scene.camera, scene.light
    noise = Noise(seed)
    ground = Ground(camera, scene.street, noise)
    shadow = cast_shadows(camera, scene.shadows, 0.002 * width)
    contact = cast_shadows(camera, scene.contacts, 0.006 * width)
    sky = paint_sky(camera, ground.top, noise, scene.sky, light.haze)
    canvas = Canvas(*backdrop(camera, sky, *ground.paint(light, shadow), contact))
    stage = Stage(canvas, camera, light, noise)
    for brush, lit in scene.in_order(shadow):
        brush(stage, lit)
    picture, labels = canvas.result()
    return photograph(picture, scene.film, seed), labels


def plan_scene(seed: int, height: int, width: int) -> Scene:
    """Plan scene number ``seed``: the street, what stands along it and who is on it."""
    rng = random.Random(seed)
    scene = empty_street(rng, height, width)
    skyline = rng.randrange(2**31)
    scene.add(1e6, lambda stage, lit: draw_skyline(stage, skyline, lit))
    mood = rng.choice(["town", "town", "town", "suburb", "suburb", "park"])
    for side in scene.street.sides:
        build_side(scene, side, mood, random.Random(rng.randrange(2**31)))
    for side in scene.street.sides:
        furnish(scene, side, random.Random(rng.randrange(2**31)))
    paint_road(scene, random.Random(rng.randrange(2**31)))
    fill_road(scene, random.Random(rng.randrange(2**31)))
    add_people(scene, random.Random(rng.randrange(2**31)))
    return scene


def _integer(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must hold integers, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return int(value)


class SyntheticScenes(Dataset[Sample]):
    """A data set of drawn scenes: item ``i`` is ``draw_scene(seed + i, size)``.

    Args:
        count: number of scenes.
        size: (height, width) of each.
        seed: the first scene's seed; sets whose ranges of seeds do not meet share no scene.
    """

    def __init__(self, count: int, size: tuple[int, int] = (360, 480), seed: int = 0) -> None:
        self.count = _integer("count", count, 0)
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            raise TypeError(f"size must be (height, width), not {size!r}")
        self.size = (_integer("size", size[0], 1), _integer("size", size[1], 1))
        self.seed = _integer("seed", seed, 0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """The scene at ``index`` (negative counts from the end); IndexError outside."""
        i = int(index) + (self.count if index < 0 else 0)
        if not 0 <= i < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        image, labels = draw_scene(self.seed + i, self.size)
        return Sample(image, labels, f"scene{self.seed + i:06d}")
