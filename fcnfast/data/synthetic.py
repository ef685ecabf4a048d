"""Street scenes drawn by code, with exact labels in the eleven CamVid classes.

A scene is a plan of a street (``_plan.py``) painted from back to front through a pinhole camera
on a picture and a label map at once, then photographed: blur, glare, exposure, vignetting, noise.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ._canvas import Canvas, Noise
from ._ground import Ground, cast_shadows, compose, paint_sky
from ._photo import photograph
from ._plan import plan_scene
from .folder import Sample

__all__ = ["SyntheticScenes", "draw_scene"]


def draw_scene(seed: int, size: tuple[int, int] = (360, 480)) -> tuple[Image.Image, np.ndarray]:
    """Draw the street scene number ``seed``.

    Args:
        seed: any integer from 0 up; the same seed and size give the same bytes.
        size: (height, width) in pixels, each at least 1. The same seed shows the same street at
            another size, in as much of it as the shape of the picture takes in.

    Returns:
        The picture (RGB) and its labels (H x W uint8, classes 0 to 10 of ``CAMVID``). A pixel
        has the class of the front-most thing drawn at its centre; foliage and webs of twigs
        count where they are dense, railings and wheels with the gaps between bars and spokes.

    Raises:
        TypeError: if ``seed`` or ``size`` are not integers.
        ValueError: if the seed is negative or a side is smaller than 1.
    """
    seed = _integer("seed", seed, 0)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"size must be (height, width), not {size!r}")
    height, width = (_integer("size", side, 1) for side in size)
    noise = Noise(seed)
    scene = plan_scene(seed, height, width)
    camera, light = scene.camera, scene.light
    soft = 0.004 * width
    ground = Ground(camera, scene.street, noise, seed % 499)
    shadow = cast_shadows(camera, scene.shadows, soft * 0.6) * scene.shadow_depth
    contact = cast_shadows(camera, scene.contacts, soft)
    sky = paint_sky(camera, noise, scene.sky, light.haze, seed % 487)
    canvas = Canvas(height, width)
    canvas.background(*compose(sky, ground, *ground.paint(light, shadow), contact))
    for item in scene.items(noise):
        item(canvas)
    picture, labels = canvas.result()
    return photograph(picture, scene.film, seed), labels


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
