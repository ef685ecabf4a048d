"""Checks of the ops' arguments; every message names the argument and what it must be.

A public function checks types, dtypes and devices. Its raw op checks sizes and values when it runs:
they are known then, so one compiled graph serves all sizes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..geometry import SamplingGrid, Size, as_integer, as_pair, is_symbolic, lowest_terms

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
REDUCTIONS = ("mean", "sum", "none", "batch")
Integers = Sequence[int]
Scale = float | Sequence[float]


def packed(grid: SamplingGrid) -> tuple[tuple[int, ...], bool]:
    """A grid as the arguments of a raw op; `unpacked` reverses it."""
    integers = (*grid.in_size, *grid.size, *grid.num, *grid.off, *grid.den)
    return integers, grid.border == "clamp"


@lru_cache(maxsize=1024)
def unpacked(integers: tuple[int, ...], clamp: bool) -> SamplingGrid:
    """The grid of a raw op's arguments, in lowest terms."""
    h, w, height, width, *_ = integers
    num, off, den = zip(*(lowest_terms(*integers[4 + axis :: 2]) for axis in (0, 1)), strict=True)
    return SamplingGrid((h, w), (height, width), num, off, den, "clamp" if clamp else "zero")


def check_dtype(dtype: Any, name: str, allowed: Sequence[torch.dtype]) -> None:
    if dtype not in allowed:
        *others, last = (str(d).removeprefix("torch.") for d in allowed)
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise TypeError(f"{name} must be {wanted}, not {dtype}")


def check_tensor(
    x: Any, name: str, allowed: Sequence[torch.dtype] = FLOATS, shape: str = "N x C x h x w"
) -> None:
    """Check for a dense tensor of an allowed dtype with the dimensions of `shape`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    check_dtype(x.dtype, name, allowed)
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, not {x.layout}")
    if x.dim() != shape.count(" x ") + 1:
        raise ValueError(f"{name} must be {shape}, not of shape {tuple(x.shape)}")


def check_device(x: Tensor, other: Tensor, x_name: str, name: str) -> None:
    if other.device != x.device:
        raise ValueError(f"{x_name} is on {x.device} but {name} is on {other.device}")


cached_resize = lru_cache(maxsize=1024)(SamplingGrid.resize)


def grid_for(
    x: Tensor,
    name: str,
    grid: SamplingGrid | None,
    size: Size | None = None,
    scale_factor: Scale | None = None,
    align_corners: bool | None = None,
) -> SamplingGrid:
    """The grid of a call: `grid`, or that of ``F.interpolate`` with the other arguments."""
    check_tensor(x, name)
    if grid is None:
        in_size = as_pair(x.shape[-2:], name)
        size = None if size is None else as_pair(size, "size")
        cached = size is not None and scale_factor is None and not is_symbolic(*in_size, *size)
        resize = cached_resize if cached else SamplingGrid.resize
        return resize(in_size, size, scale_factor=scale_factor, align_corners=align_corners)
    if not isinstance(grid, SamplingGrid):
        raise TypeError(f"grid must be a SamplingGrid, not {type(grid).__name__}")
    others = {"size": size, "scale_factor": scale_factor, "align_corners": align_corners}
    for other, value in others.items():
        if value is not None:
            raise ValueError(f"give either a grid or {other}, not both")
    return grid


def grid_for_target(
    scores: Tensor,
    target: Tensor,
    grid: SamplingGrid | None,
    scale_factor: Scale | None,
    align_corners: bool | None,
) -> SamplingGrid:
    """`grid_for` the scores; by default they are resized to the size of `target`."""
    check_tensor(target, "target", LABELS, "N x H x W")
    size = target.shape[-2:] if grid is None and scale_factor is None else None
    grid = grid_for(scores, "scores", grid, size, scale_factor, align_corners)
    check_device(scores, target, "scores", "target")
    return grid


def check_on_grid(x: Tensor, grid: SamplingGrid, name: str) -> None:
    if (size := tuple(x.shape[-2:])) != grid.in_size:
        raise ValueError(f"grid was made for maps of {grid.in_size}, but {name} is {size}")


def checked_grid(x: Tensor, name: str, integers: Integers, clamp: bool) -> SamplingGrid:
    """The grid of a raw op's arguments, which must fit the map `x`."""
    grid = unpacked(tuple(integers), clamp)
    check_on_grid(x, grid, name)
    return grid


def checked_grid_for_target(
    scores: Tensor, target: Tensor, integers: Integers, clamp: bool
) -> SamplingGrid:
    """The grid of a raw op's arguments, which must fit the scores and their labels."""
    grid = checked_grid(scores, "scores", integers, clamp)
    wanted = (scores.shape[0], *grid.size)
    if tuple(target.shape) != wanted:
        raise ValueError(f"target must be N x H x W = {wanted}, not {tuple(target.shape)}")
    return grid


def check_skip(x: Tensor, skip: Tensor) -> None:
    """Check that both are score maps of one dtype and on one device."""
    check_tensor(x, "x")
    check_tensor(skip, "skip")
    if skip.dtype != x.dtype:
        raise TypeError(f"x and skip must share a dtype, not {x.dtype} and {skip.dtype}")
    check_device(x, skip, "x", "skip")


def check_window(skip: Sequence[int], shape: Sequence[int], offset: Integers) -> None:
    """Check that a map of shape `skip` (N, C, h', w') holds a window of `shape` (N, C, h, w)."""
    (*kinds, rows, columns), (*wanted, h, w), (oy, ox) = skip, shape, offset
    if kinds != wanted:
        both = f"{tuple(wanted)} and {tuple(kinds)}"
        raise ValueError(f"x and skip must share batch and channels, not {both}")
    if oy < 0 or ox < 0:
        raise ValueError(f"offset must not be negative: {(oy, ox)}")
    if oy + h > rows or ox + w > columns:
        window = f"a window of {(h, w)} at offset {(oy, ox)}"
        raise ValueError(f"{window} leaves the skip map of {(rows, columns)}")


def check_loss(reduction: str, label_smoothing: float) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, not {reduction!r}")
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, Real):
        raise TypeError(f"label_smoothing must be a number, not {label_smoothing!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1], not {label_smoothing}")


def check_ignore_index(ignore_index: int) -> int:
    ignore_index = as_integer(ignore_index, "ignore_index")
    if not -(1 << 63) <= ignore_index < 1 << 63:
        raise ValueError(f"ignore_index must fit int64, not {ignore_index}")
    return ignore_index


def _out_of_range(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """The labels of one image that are neither in [0, classes) nor ignored."""
    low, high = (int(v) for v in torch.aminmax(labels))
    if low >= 0 and high < classes:
        return labels.new_empty(0)
    bad, limits = (labels < 0) | (labels > classes - 1), torch.iinfo(labels.dtype)
    if limits.min <= ignore_index <= limits.max:  # torch would wrap -100 to 156 in uint8
        bad &= labels != ignore_index
    return labels[bad]


def looks_at_labels(target: Tensor) -> bool:
    """Whether to check label values: on a CPU always, on a GPU only with FCNFAST_CHECK=1.

    The check synchronizes with the GPU, so it never runs while a graph is captured.
    """
    if target.device.type == "cpu":
        return True
    if os.environ.get("FCNFAST_CHECK") != "1":
        return False
    return not (target.device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def check_labels(target: Tensor, classes: int, ignore_index: int) -> None:
    """If `looks_at_labels`, check that every label lies in [0, classes) or is ignored."""
    if target.numel() == 0 or not looks_at_labels(target):
        return
    bad = torch.cat([_out_of_range(labels, classes, ignore_index) for labels in target])
    if len(bad):
        value = int(bad[0])
        hint = "; pass ignore_index=-100 for torch's default" if value == -100 else ""
        raise ValueError(
            f"target holds {value} ({len(bad)} pixels out of range): a label must lie in "
            f"[0, {classes}) or be ignore_index ({ignore_index}){hint}"
        )


def check_counts(out: Tensor, classes: int) -> None:
    """Check counts of C classes: C x C, or (C + 1) x C with a row for out-of-range labels."""
    check_classes(classes, out.dtype, "out")
    if tuple(out.shape) not in ((classes, classes), (classes + 1, classes)):
        wanted = f"{classes} x {classes} or {classes + 1} x {classes} counts"
        raise ValueError(f"out must be {wanted}, not of shape {tuple(out.shape)}")
    (inner, length), (outer, _) = sorted(zip(out.stride(), out.shape, strict=True))
    if out.numel() > 1 and (inner == 0 or outer < inner * length):
        raise ValueError(f"out must have a place for every count, not strides {out.stride()}")


def check_classes(classes: int, dtype: torch.dtype, name: str) -> None:
    if classes < 1:
        raise ValueError("scores must have at least one class")
    if classes - 1 > torch.iinfo(dtype).max:
        short = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} in {short} cannot name {classes} classes: use a wider type")
