"""Run a picture through a network: coarse scores, or a softmax blended over tiles and scales.

A blended softmax comes in bands of rows, from top to bottom. Only the tiles' coarse scores are
kept, and only until the last row that they cover: memory does not grow with the height.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .data.images import check_positive, photo_tensor, shrink
from .device import image_errors
from .files import PathLike, replacing
from .geometry import Pair, SamplingGrid
from .models import FCN
from .models.base import ScoreMap
from .ops import upsample, upsample_argmax

# Rows of a band: a multiple of the strides, so that most bands sample alike.
BAND = 64
_LARGEST_SCALE = 16

T = TypeVar("T")
Write = Callable[[int, Tensor], None]  # of a band's first row, and the band C×rows×W


@dataclass(frozen=True)
class Views:
    """How a network sees a picture: the arguments of `fcnfast.Segmenter` of these names.

    A tile is clipped to the picture's height and width. TypeError or ValueError for a value out of
    its range; the message begins with its name.
    """

    max_size: int | None = None
    tile: int | None = None
    overlap: int | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        for name in ("max_size", "tile"):
            if (value := getattr(self, name)) is not None:
                check_positive(name, value)
        if self.tile is not None and self.max_size is not None:
            told = f"cut from the picture at its own size, which max_size {self.max_size} changes"
            raise ValueError(f"tile {self.tile}: tiles are {told}; give one of them")
        if self.overlap is not None:
            if self.tile is None:
                raise ValueError(f"overlap {self.overlap} needs a tile")
            whole = isinstance(self.overlap, Integral) and not isinstance(self.overlap, bool)
            if not whole or not 0 <= self.overlap < self.tile:
                bounds = f"from 0 to less than the tile, {self.tile}"
                raise ValueError(f"overlap must be an integer {bounds}, not {self.overlap!r}")
        scales = self.scales if isinstance(self.scales, (tuple, list)) else ()
        fit = [
            isinstance(s, Real) and not isinstance(s, bool) and 0 < float(s) <= _LARGEST_SCALE
            for s in scales
        ]
        if not fit or not all(fit):
            wanted = f"numbers above 0 and at most {_LARGEST_SCALE} in a tuple or a list"
            raise ValueError(f"scales must be {wanted}, not {self.scales!r}")

    def single(self, size: Pair) -> bool:
        """Tell whether a picture of this (height, width) is one view: no tiles, scales or flip."""
        whole = self.tile is None or self.tile >= max(size)
        return whole and not self.flip and tuple(self.scales) == (1,)


def coarse_scores(model: FCN, images: Sequence[Image.Image], size: Pair) -> ScoreMap:
    """Return the coarse scores of pictures of one size, N×C×h×w, and their grid onto `size`."""
    pixels = torch.cat([photo_tensor(image) for image in images])
    pixels = model.preprocess(pixels.to(next(model.parameters()).device))
    if pixels.device.type == "cpu":  # makes convolutions a quarter faster
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    scores, grid = model.score_maps(pixels, ("out",))["out"]
    return ScoreMap(scores, grid.rescaled(size))


def neighbors(items: Iterable[T], key: Callable[[T], object], most: int) -> Iterator[list[T]]:
    """Group neighbors of equal `key`, up to `most`; an error is raised after the items before it.

    A full group is yielded before the next item is read.
    """
    group: list[T] = []
    try:
        for item in items:
            if group and key(item) != key(group[0]):
                yield group
                group = []
            group.append(item)
            if len(group) == most:
                yield group
                group = []
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


class ScoredView(NamedTuple):
    """Coarse scores of one view, 1×C×h×w, and their grid onto the tile."""

    scores: Tensor
    grid: SamplingGrid
    mirrored: bool


def blended_labels(
    model: FCN, photo: Image.Image, views: Views, source: str, write: Write | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels uint8 H×W by the mean softmax of all views, and its value there, float32 H×W.

    Tiles are weighted along each axis by a trapezoid that ramps up over the overlap; at every pixel
    the weights add up to 1. `write` gets every band of the softmax: its first row, and C×rows×W,
    float32 (float64 for a float64 network), on the network's device. ImageError, beginning with
    `source`, if the picture, or a tile of it, is too large for the memory or too small for the
    network.
    """
    device, size = next(model.parameters()).device, (photo.height, photo.width)
    labels, confidence = np.empty(size, np.uint8), np.empty(size, np.float32)
    height, width = (min(n, views.tile or n) for n in size)
    overlap = (views.tile or 0) // 4 if views.overlap is None else views.overlap
    tops, lefts = (_starts(n, views.tile or n, overlap) for n in size)
    vertical, horizontal = _weights(tops, height, overlap), _weights(lefts, width, overlap)
    live: list[tuple[int, list[list[ScoredView]]]] = []  # rows of tiles that cover rows to come
    for k, top in enumerate(tops):
        live = [row for row in live if tops[row[0]] + height > top]
        boxes = [(left, top, left + width, top + height) for left in lefts]
        live.append((k, [_score_views(model, photo.crop(box), views, source) for box in boxes]))
        end = tops[k + 1] if k + 1 < len(tops) else size[0]
        for first in range(top, end, BAND):
            last = min(first + BAND, end)
            with image_errors(source, f"{size[1]}x{size[0]} pixels", device):
                band = live[0][1][0][0].scores.new_zeros(model.num_classes, last - first, size[1])
                for j, tiles in live:
                    low, high = first - tops[j], min(last - tops[j], height)
                    if low >= high:
                        continue
                    rows = vertical[j][low:high, None].to(band)
                    for maps, left, columns in zip(tiles, lefts, horizontal, strict=True):
                        part = mean_softmax(maps, low, high).mul_(rows * columns.to(band))
                        band[:, : high - low, left : left + width] += part
            labels[first:last] = upsample_argmax(band[None], size=band.shape[1:])[0].cpu().numpy()
            confidence[first:last] = band.amax(0).cpu().numpy()
            if write is not None:
                write(first, band)
    return labels, confidence


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where the tiles of an axis begin; the last one ends where the axis does."""
    return [*range(0, length - tile, tile - overlap), max(0, length - tile)]


def _weights(starts: list[int], tile: int, overlap: int) -> list[Tensor]:
    """Return each tile's weights along an axis, float64; over all tiles they add up to 1."""
    place = torch.arange(tile, device="cpu")
    window = torch.minimum(place + 1, tile - place).clamp(max=overlap + 1).double()
    total = torch.zeros(starts[-1] + tile, dtype=torch.float64, device="cpu")
    for start in starts:
        total[start : start + tile] += window
    return [window / total[start : start + tile] for start in starts]


def _score_views(model: FCN, image: Image.Image, views: Views, source: str) -> list[ScoredView]:
    device, size = next(model.parameters()).device, (image.height, image.width)
    tile = "" if views.tile is None else f"tile {views.tile}, "
    image = shrink(image, views.max_size)
    found = []
    for scale in views.scales:
        scaled = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        what = f"{scaled[0]}x{scaled[1]} pixels ({tile}scale {scale:g})"
        with image_errors(source, what, device):
            seen = image.resize(scaled, Image.Resampling.BILINEAR)  # a copy at scale 1
            for mirrored in (False, True)[: 1 + views.flip]:
                pixels = ImageOps.mirror(seen) if mirrored else seen
                scores, grid = coarse_scores(model, [pixels], size)
                scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
                found.append(ScoredView(scores, grid, mirrored))
    return found


def mean_softmax(views: Sequence[ScoredView], first: int, last: int) -> Tensor:
    """Return the mean softmax of all views in the rows [first, last) of their tile: C×rows×W."""
    total = torch.zeros((), device="cpu")
    for k, (scores, grid, mirrored) in enumerate(views):
        # Only the coarse rows that these rows sample.
        (num, den), rows = (grid.num[0], grid.den[0]), grid.in_size[0]
        start, end = num * first + grid.off[0], num * (last - 1) + grid.off[0]
        low = min(max(start // den, 0), rows - 1)
        high = min(max(end // den + 2, low + 1), rows)
        in_size, size = (high - low, grid.in_size[1]), (last - first, grid.size[1])
        cut = replace(grid, in_size=in_size, size=size, off=(start - low * den, grid.off[1]))
        part = upsample(scores[:, :, low:high], cut)[0].softmax(0)
        part = part.flip(-1) if mirrored else part
        total = total.add_(part) if k else part
    return total.div_(len(views))


@contextlib.contextmanager
def probability_file(path: PathLike, shape: tuple[int, int, int]) -> Iterator[Write]:
    """Write a float16 ``.npy`` file C×H×W atomically, by bands."""
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()

        def write(first: int, band: Tensor) -> None:
            for k, rows in enumerate(band.cpu().numpy().astype("<f2")):
                file.seek(start + 2 * shape[2] * (k * shape[1] + first))
                file.write(rows.tobytes())

        yield write
