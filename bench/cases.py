"""What is measured: score maps of the usual data sets, and what stands in them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

VOID = 255


@dataclass(frozen=True)
class Case:
    """Coarse scores, images x classes x h x w, and the factor to the full resolution."""

    data_set: str
    images: int
    classes: int
    in_size: tuple[int, int]
    stride: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the full resolution."""
        return self.in_size[0] * self.stride, self.in_size[1] * self.stride

    @property
    def logits(self) -> int:
        """How many logits full resolution has."""
        return self.images * self.classes * self.size[0] * self.size[1]

    def __str__(self) -> str:
        coarse = " x ".join(map(str, (self.images, self.classes, *self.in_size)))
        full = " x ".join(map(str, self.size))
        return f"{self.data_set}: {coarse} -> {full} (stride {self.stride})"


# As trained on a GPU; `fitted` makes them smaller where they do not fit.
SUITES = {
    "tiny": (Case("tiny", 2, 5, (6, 8), 4),),
    "quick": (
        Case("VOC", 16, 21, (64, 64), 8),
        Case("ADE20K crop", 16, 150, (64, 64), 4),
    ),
    "voc": (
        Case("VOC", 16, 21, (64, 64), 8),
        Case("VOC", 16, 21, (16, 16), 32),
        Case("VOC", 1, 21, (64, 64), 8),
    ),
    "cityscapes": (
        Case("Cityscapes", 8, 19, (256, 512), 4),
        Case("Cityscapes", 8, 19, (128, 256), 8),
        Case("Cityscapes", 1, 19, (256, 512), 4),
    ),
    "ade20k": (
        Case("ADE20K", 16, 150, (128, 128), 4),
        Case("ADE20K", 1, 150, (128, 128), 4),
    ),
    "coco": (
        Case("COCO-Stuff", 16, 171, (128, 128), 4),
        Case("COCO-Stuff", 16, 171, (64, 64), 8),
        Case("COCO-Stuff", 1, 171, (128, 128), 4),
    ),
}

# The suite whose cases no implementation can have been fitted to, and what they lie between.
DRAWN = "drawn"
DRAWN_CASES, DRAWN_CLASSES, DRAWN_PIXELS, DRAWN_STRIDES = 3, (19, 171), (320, 640), (4, 8, 16, 32)


def drawn(seed: int) -> list[Case]:
    """Cases drawn at random: of one picture each, as many classes as the usual data sets have."""
    source = random.Random(seed)

    def case() -> Case:
        stride = source.choice(DRAWN_STRIDES)
        height, width = (source.randint(*DRAWN_PIXELS) // stride for _ in range(2))
        classes = source.randint(*DRAWN_CLASSES)
        return Case(f"drawn by seed {seed}", 1, classes, (height, width), stride)

    return [case() for _ in range(DRAWN_CASES)]


def fitted(cases: Iterable[Case], device: torch.device) -> tuple[list[Case], list[str]]:
    """The cases as `device` can run them, without repetitions, and what had to be said about it.

    A CPU takes one image (a tiny case stays as it is). A GPU takes as many as leave room for
    sixteen float32 copies of the full-resolution logits: eager's loss alone holds four, and the
    CUDA graph of every contestant keeps what it needs.
    """
    fitting: dict[Case, None] = {}
    notes: dict[str, None] = {}
    for case in cases:
        images = case.images
        if device.type == "cpu":
            images = images if case.logits < 1 << 16 else 1
        else:
            free = torch.cuda.mem_get_info(device)[0]
            while images > 1 and 16 * 4 * case.logits * images // case.images > free:
                images //= 2
        if images < case.images:
            where = "on a CPU" if device.type == "cpu" else "to fit the GPU's free memory"
            size = f"{images} image{'s' * (images > 1)} instead of {case.images}"
            notes[f"sized down {where}: {case.data_set}, stride {case.stride}: {size}"] = None
        fitting[replace(case, images=images)] = None
    return list(fitting), list(notes)


class Content(NamedTuple):
    """Scores N x C x h x w and int64 labels N x H x W with some void."""

    scores: Tensor
    labels: Tensor


def _random(shape: Sequence[int], seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, device=device)


def _field(case: Case, device: torch.device) -> Tensor:
    """Regions, as a network draws them: slow fields, some classes stronger than others."""
    shape = (case.images, case.classes)
    knots = [max(2, n // 16) for n in case.in_size]
    field = 4 * F.interpolate(_random((*shape, *knots), 0, device), case.in_size, mode="bicubic")
    return field + 4 * _random((*shape, 1, 1), 1, device)


def _smooth(case: Case, device: torch.device) -> Tensor:
    """Regions with a little noise."""
    field = _field(case, device)
    return field + 0.2 * _random(field.shape, 2, device)


def _noisy(case: Case, device: torch.device) -> Tensor:
    """The worst case: nothing about a pixel says anything about the next."""
    return 4 * _random((case.images, case.classes, *case.in_size), 3, device)


def _blobs(case: Case, device: torch.device) -> Tensor:
    """The winners of the regions, each unit a square of pixels, void where they meet."""
    stride = case.stride
    labels = _field(case, device).argmax(1)
    labels = labels.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    plane = labels[:, None].float()
    width = 5  # pixels, as in VOC
    low, high = (F.max_pool2d(sign * plane, width, 1, width // 2) for sign in (-1, 1))
    return torch.where((high + low)[:, 0] > 0, VOID, labels)


def _scattered(case: Case, device: torch.device) -> Tensor:
    """Any class at any pixel, one in twenty void."""
    generator = torch.Generator(device).manual_seed(4)
    shape = (case.images, *case.size)
    labels = torch.randint(case.classes, shape, generator=generator, device=device)
    labels[torch.rand(shape, generator=generator, device=device) < 0.05] = VOID
    return labels


SCORES = {"smooth": _smooth, "noisy": _noisy}
LABELS = {"blobs": _blobs, "random": _scattered}
# What may stand in a case: scores and labels. The first is what a network in training sees.
CONTENTS = tuple(f"{scores}, {labels}" for scores in SCORES for labels in LABELS)
USUAL, WORST = CONTENTS[0], CONTENTS[-1]


def content(name: str, case: Case, dtype: torch.dtype, device: torch.device) -> Content:
    """One of CONTENTS, the same on every call."""
    scores, labels = name.split(", ")
    return Content(SCORES[scores](case, device).to(dtype), LABELS[labels](case, device))


def undecided(scores: Tensor) -> float:
    """The share of cells (between four neighbors of the map) whose corners' winners differ."""
    winner = scores.argmax(1)
    corner = winner[:, :-1, :-1]
    others = (winner[:, 1:, :-1], winner[:, :-1, 1:], winner[:, 1:, 1:])
    same = torch.stack([corner == other for other in others]).all(0)
    return 1 - same.double().mean().item()
