"""The cases: shapes of the usual data sets, and score maps and labels to fill them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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

    def __str__(self) -> str:
        coarse = " x ".join(map(str, (self.images, self.classes, *self.in_size)))
        full = " x ".join(map(str, self.size))
        return f"{self.data_set}: {coarse} -> {full} (stride {self.stride})"


# Batches as trained on a GPU; `fitted` makes them smaller where they do not fit.
SUITES = {
    "tiny": (Case("tiny", 2, 5, (6, 8), 4),),
    "quick": (Case("VOC", 16, 21, (64, 64), 8), Case("ADE20K crop", 16, 150, (64, 64), 4)),
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
    "ade20k": (Case("ADE20K", 16, 150, (128, 128), 4), Case("ADE20K", 1, 150, (128, 128), 4)),
    "coco": (
        Case("COCO-Stuff", 16, 171, (128, 128), 4),
        Case("COCO-Stuff", 16, 171, (64, 64), 8),
        Case("COCO-Stuff", 1, 171, (128, 128), 4),
    ),
}


def fitted(cases: Iterable[Case], device: torch.device) -> list[Case]:
    """The cases with batches that `device` can run, without repetitions.

    A CPU takes one image (a tiny case stays as it is). A GPU takes as many as leave room for
    sixteen float32 copies of the full-resolution logits: eager's loss alone holds four, and the
    CUDA graph of every contestant keeps what it needs.
    """
    fitting = {}
    for case in cases:
        images, logits = case.images, case.classes * case.size[0] * case.size[1]
        if device.type == "cpu":
            images = images if images * logits < 1 << 16 else 1
        else:
            while images > 1 and 16 * 4 * logits * images > torch.cuda.mem_get_info(device)[0]:
                images //= 2
        fitting[replace(case, images=images)] = None
    return list(fitting)


def noise(shape: Sequence[int], seed: int, device: torch.device) -> Tensor:
    """Standard normal values, the same on every call."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, device=device)


def _regions(case: Case, device: torch.device) -> Tensor:
    """Scores as a network gives them: slow fields, some classes stronger than others."""
    shape = (case.images, case.classes)
    knots = [max(2, n // 16) for n in case.in_size]
    field = 4 * F.interpolate(noise((*shape, *knots), 0, device), case.in_size, mode="bicubic")
    return field + 4 * noise((*shape, 1, 1), 1, device)


def _blobs(case: Case, device: torch.device) -> Tensor:
    """The winners of the regions; void where they meet, 5 pixels wide as in VOC."""
    labels = _regions(case, device).argmax(1)
    labels = labels.repeat_interleave(case.stride, 1).repeat_interleave(case.stride, 2)
    plane = labels[:, None].float()
    low, high = (F.max_pool2d(sign * plane, 5, 1, 2) for sign in (-1, 1))
    return torch.where((high + low)[:, 0] > 0, VOID, labels)


def _scattered(case: Case, device: torch.device) -> Tensor:
    """Any class at any pixel, one in twenty void."""
    generator = torch.Generator(device).manual_seed(4)
    shape = (case.images, *case.size)
    labels = torch.randint(case.classes, shape, generator=generator, device=device)
    labels[torch.rand(shape, generator=generator, device=device) < 0.05] = VOID
    return labels


# Kinds of scores and labels. The first is what a network in training sees, the last the worst case.
CONTENTS = ("smooth, blobs", "smooth, random", "noisy, blobs", "noisy, random")
USUAL, WORST = CONTENTS[0], CONTENTS[-1]


def content(
    name: str, case: Case, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scores N x C x h x w and int64 labels N x H x W, the same on every call."""
    shape = (case.images, case.classes, *case.in_size)
    if name.startswith("smooth"):
        scores = _regions(case, device) + 0.2 * noise(shape, 2, device)
    else:
        scores = 4 * noise(shape, 3, device)
    labels = _blobs if name.endswith("blobs") else _scattered
    return scores.to(dtype), labels(case, device)
