"""The time that no implementation can beat on a GPU: bytes over the copy bandwidth, or arithmetic.

Every input is read once and every result written once. Arithmetic counts the instructions that
each pixel and class needs in the best known form: an addition and a multiplication for the
exponentials of a cell in either direction (they are a geometric progression along a row, four
exponentials start it), an interpolation step and a comparison for the argmax in the cells that
corners do not decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from bench.peers import Problem

Pass = Literal["forward", "backward", "forward+backward"]

# That one multiprocessor of an NVIDIA GPU issues instructions for, and exponentials, each cycle.
LANES, EXPONENTIALS = 128, 16


@dataclass(frozen=True)
class Work:
    """bytes moved, instructions for single lanes, and exponentials of single lanes."""

    bytes: float
    instructions: float = 0.0
    exponentials: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.bytes + other.bytes,
            self.instructions + other.instructions,
            self.exponentials + other.exponentials,
        )


def logits(p: Problem) -> int:
    """Pixels of the full resolution times classes."""
    images, classes = p.maps[0].shape[:2]
    return images * classes * p.grid.size[0] * p.grid.size[1]


def _of(parts: dict[Pass, Work], which: Pass) -> Work:
    """One pass, or the sum of two that share nothing."""
    return parts[which] if which in parts else parts["forward"] + parts["backward"]


def crop_add(p: Problem, which: Pass) -> Work:
    """The gradient of x is the one that came down; that of skip is written, margins included."""
    x, skip = p.maps
    e = x.itemsize
    back = Work((x.numel() + skip.numel()) * e)
    return _of({"forward": Work(3 * x.numel() * e), "backward": back}, which)


def upsample(p: Problem, which: Pass) -> Work:
    """One map read, one written, in either direction."""
    one = Work((p.maps[0].numel() + logits(p)) * p.maps[0].itemsize)
    return _of({"forward": one, "backward": one}, which)


def deconv(p: Problem, which: Pass) -> Work:
    """The same, four products a value; backward reads x too, and both gradients take products."""
    x, weight = p.maps[0], p.shared[0]
    coarse, full, e = x.numel() + weight.numel(), logits(p), x.itemsize
    there = Work((coarse + full) * e, 4 * full)
    back = Work((2 * coarse + full) * e, 8 * full)
    return _of({"forward": there, "backward": back}, which)


def upsample_crop_add(p: Problem, which: Pass) -> Work:
    """No upsampled map in between."""
    x, skip = p.maps
    full, e = logits(p), x.itemsize
    there = Work((x.numel() + 2 * full) * e)
    back = Work((full + x.numel() + skip.numel()) * e)
    return _of({"forward": there, "backward": back}, which)


def upsample_cross_entropy(p: Problem, which: Pass) -> Work:
    """Scores and labels read, the gradient written: once, whatever comes down scales it."""
    x, labels = p.maps[0], p.target.numel() * p.target.itemsize
    coarse, full = x.numel() * x.itemsize, logits(p)
    starts = 4 * full / p.stride**2
    parts: dict[Pass, Work] = {
        "forward": Work(coarse + labels, 2 * full, starts),
        "backward": Work(2 * coarse),
        "forward+backward": Work(2 * coarse + labels, 4 * full, 2 * starts),
    }
    return parts[which]


def upsample_argmax(p: Problem, which: Pass) -> Work:
    """Scores read, one byte a pixel written."""
    x = p.maps[0]
    moved = x.numel() * x.itemsize + logits(p) / x.shape[1]
    return Work(moved, 2 * logits(p) * p.undecided)


def upsample_confusion(p: Problem, which: Pass) -> Work:
    """Scores and labels read, a matrix of counts written."""
    x = p.maps[0]
    moved = x.numel() * x.itemsize + p.target.numel() * p.target.itemsize + 8 * x.shape[1] ** 2
    return Work(moved, 2 * logits(p) * p.undecided)


@dataclass(frozen=True)
class Machine:
    """A GPU's measured copy bandwidth in bytes a second, and its instructions for lanes a second.

    The second is None where it is not known: then bytes alone make the floor.
    """

    bandwidth: float
    issue: float | None

    def milliseconds(self, work: Work) -> float:
        """The least time for `work`."""
        lanes = max(work.instructions, work.exponentials * LANES / EXPONENTIALS)
        arithmetic = lanes / self.issue if self.issue else 0.0
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
