"""The inference ops in torch's own operators, for graphs that run without fcnfast.

They replace the raw ops while `torch.onnx.export` traces and within `portable`. They write
full-resolution logits and read taps of weight 0 (0 * inf is NaN).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Border, SamplingGrid, taps
from ..tiled._tiles import compute_dtype
from ..tiled.crop_add import window
from ._checks import check_classes

# Process-wide, like a forced backend.
_active = False


@contextmanager
def portable() -> Iterator[None]:
    """Run the ops as torch's own operators inside the block: an exported graph has no others.

    For ``torch.export.export`` of a program that must load where fcnfast is not installed. It
    holds for all threads. Losses and confusion matrices stay as they are.
    """
    global _active
    before, _active = _active, True
    try:
        yield
    finally:
        _active = before


def is_portable() -> bool:
    """Whether ops currently run as torch's own operators."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # cheaper to ask for
    return _active or (tracing and torch.onnx.is_in_onnx_export())


def _known(condition: Any) -> bool:
    """Whether a condition on (possibly symbolic) sizes always holds."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes half a second

    return statically_known_true(condition)


def _same(a: SamplingGrid, b: SamplingGrid) -> bool:
    """Whether two grids sample a map at the same positions."""
    sides = ((*g.size, *g.num, *g.off, *g.den) for g in (a, b))
    return all(_known(p == q) for p, q in zip(*sides, strict=True))


def _sampled(x: Tensor, integers: Any, clamp: bool) -> Tensor:
    """N x C x H x W: the map sampled at a grid, in the ops' compute dtype."""
    h, w, height, width, *rest = integers
    if _known(x.shape[2] != h) or _known(x.shape[3] != w):
        raise ValueError(f"grid was made for maps of {(h, w)}, not {tuple(x.shape[2:])}")
    num, off, den = rest[:2], rest[2:4], rest[4:]
    border: Border = "clamp" if clamp else "zero"
    grid = SamplingGrid((h, w), (height, width), tuple(num), tuple(off), tuple(den), border)
    if _same(grid, SamplingGrid.resize((h, w), (h, w))):
        return x
    x = x.to(compute_dtype(x))
    # ONNX Resize samples a one-pixel axis at a different position.
    if clamp and not any(_known(n == 1) for n in (height, width)):
        for corners in (False, True):
            if _same(grid, SamplingGrid.resize((h, w), (height, width), align_corners=corners)):
                return F.interpolate(x, (height, width), mode="bilinear", align_corners=corners)
    # Columns first: the second step then gathers whole rows.
    for axis in (1, 0):
        t = taps(grid, axis, x.dtype, x.device)
        w0, w1 = (w if axis else w[:, None] for w in (t.w0, t.w1))
        x = x.index_select(axis + 2, t.i0) * w0 + x.index_select(axis + 2, t.i1) * w1
    return x


def _upsample_argmax(
    scores: Tensor, grid: Any, clamp: bool, dtype: torch.dtype, confidence: bool, _: Any
) -> tuple[Tensor, Tensor]:
    check_classes(scores.shape[1], dtype, "labels")
    full = _sampled(scores, grid, clamp)
    labels = full.argmax(1).to(dtype)
    if not confidence:
        return labels, scores.new_empty(0)
    return labels, full.softmax(1).amax(1).to(compute_dtype(scores))


def _upsample_crop_add(
    x: Tensor, skip: Tensor, grid: Any, clamp: bool, offset: Any, _: Any
) -> Tensor:
    full = _sampled(x, grid, clamp)
    return (full + window(skip.to(full.dtype), full.shape[2:], offset)).to(x.dtype)


def _deconv(x: Tensor, weight: Tensor, stride: int, start: Any, size: Any, _: Any) -> Tensor:
    full = F.conv_transpose2d(x, weight.to(x.dtype), stride=stride, groups=x.shape[1])
    return window(full, size, start)


# By raw op; the last argument is the backend, which does not matter here.
RULES: dict[str, Callable[..., Any]] = {
    "crop_add": lambda x, skip, offset, _: x + window(skip, x.shape[2:], offset),
    "deconv": _deconv,
    "upsample": lambda x, grid, clamp, _: _sampled(x, grid, clamp).to(x.dtype),
    "upsample_argmax": _upsample_argmax,
    "upsample_crop_add": _upsample_crop_add,
}
