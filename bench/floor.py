"""The time that no implementation can beat on a GPU: bytes over the copy bandwidth, or arithmetic.

Every input is read once and every result written once. Arithmetic counts the instructions that
each pixel and class needs in the best known form: an addition and a multiplication for the
exponentials of a cell in either direction (they are a geometric progression along a row), an
interpolation step and a comparison for the argmax in the cells that corners do not decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from bench.peers import Problem

LANES = 128  # that one multiprocessor of an NVIDIA GPU issues instructions for, each cycle


@dataclass(frozen=True)
class Work:
    """bytes moved, and instructions for single lanes."""

    bytes: float
    instructions: float = 0.0


def _logits(p: Problem) -> int:
    images, classes = p.maps[0].shape[:2]
    return images * classes * p.grid.size[0] * p.grid.size[1]


def crop_add(p: Problem, backward: bool) -> Work:
    """The gradient of x is the one that came down; that of skip is written, margins included."""
    x, skip = p.maps
    values = 3 * x.numel() + backward * (x.numel() + skip.numel())
    return Work(values * x.itemsize)


def upsample(p: Problem, backward: bool) -> Work:
    """One map read, one written, in either direction."""
    x = p.maps[0]
    return Work((1 + backward) * (x.numel() + _logits(p)) * x.itemsize)


def upsample_crop_add(p: Problem, backward: bool) -> Work:
    """No upsampled map in between."""
    x, skip = p.maps
    values = x.numel() + 2 * _logits(p) + backward * (_logits(p) + x.numel() + skip.numel())
    return Work(values * x.itemsize)


def upsample_cross_entropy(p: Problem, backward: bool) -> Work:
    """Scores and labels read, the gradient written."""
    x, target = p.maps[0], p.target
    moved = (1 + backward) * x.numel() * x.itemsize + target.numel() * target.itemsize
    return Work(moved, (4 if backward else 2) * _logits(p))


def upsample_argmax(p: Problem, backward: bool) -> Work:
    """Scores read, one byte a pixel written."""
    x = p.maps[0]
    return Work(x.numel() * x.itemsize + _logits(p) / x.shape[1], 2 * _logits(p) * p.undecided)


@dataclass(frozen=True)
class Machine:
    """A GPU's measured copy bandwidth in bytes a second, and its instructions for lanes a second.

    The second is None where it is not known: then bytes alone make the floor.
    """

    bandwidth: float
    issue: float | None

    def milliseconds(self, work: Work) -> float:
        """The least time for `work`."""
        arithmetic = work.instructions / self.issue if self.issue else 0.0
        return 1e3 * max(work.bytes / self.bandwidth, arithmetic)


def issue_rate(device: torch.device) -> float | None:
    """Multiprocessors times clock times lanes of an NVIDIA GPU of 2020 or later."""
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from triton.runtime import driver

        index = torch.cuda.current_device() if device.index is None else device.index
        properties = driver.active.utils.get_device_properties(index)
        return LANES * properties["multiprocessor_count"] * properties["sm_clock_rate"] * 1e3
    except (ImportError, KeyError):
        return None
