"""The ops that are measured: arguments, plain torch's spellings of the same, the truth, bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import CONTENTS, USUAL, VOID, WORST, Case, noise
from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid

SKIP_OFFSET = (9, 9)  # of the window of the finest skip of FCN-8s


@dataclass(frozen=True)
class Problem:
    """The arguments of one op. Gradients are taken with respect to `leaves`.

    maps: the scores, or x and skip. shared: the filter of a learned deconvolution, the same for all
    images. grid: from the first map to the full resolution, `stride` times as fine. offset: the
    first row and column of the window of skip. target: labels N x H x W. grad_output: the gradient
    of the result, None where that is a loss.
    """

    maps: tuple[Tensor, ...]
    grid: SamplingGrid
    stride: int
    shared: tuple[Tensor, ...] = ()
    offset: tuple[int, int] = (0, 0)
    target: Tensor | None = None
    grad_output: Tensor | None = None

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The maps and what images share."""
        return self.maps + self.shared

    @property
    def outputs(self) -> int:
        """Images times classes times pixels of the full resolution."""
        images, classes = self.maps[0].shape[:2]
        return images * classes * self.grid.size[0] * self.grid.size[1]


Contestant = Callable[[Problem], Tensor]


# Arguments at a case, from its scores and labels.


def _resized(case: Case, scores: Tensor, labels: Tensor) -> Problem:
    return Problem((scores,), SamplingGrid.resize(case.in_size, case.size), case.stride)


def _labeled(case: Case, scores: Tensor, labels: Tensor) -> Problem:
    return replace(_resized(case, scores, labels), target=labels)


def _deconvolved(case: Case, scores: Tensor, labels: Tensor) -> Problem:
    grid = SamplingGrid.deconv(case.in_size, case.stride, padding=case.stride // 2)
    return Problem((scores,), grid, case.stride)


def _learned(case: Case, scores: Tensor, labels: Tensor) -> Problem:
    """The bilinear filter as training has changed it."""
    weight = _filter(case.classes, case.stride, False, torch.float32, scores.device)
    weight = weight + 0.1 * noise(weight.shape, 7, scores.device)
    return replace(_deconvolved(case, scores, labels), shared=(weight.to(scores.dtype),))


def _with_skip(problem: Problem) -> Problem:
    """A second map of noise, with a margin around a window of the full resolution."""
    x, (h, w), (oy, ox) = problem.maps[0], problem.grid.size, SKIP_OFFSET
    skip = noise((*x.shape[:2], h + 2 * oy, w + 2 * ox), 5, x.device).to(x.dtype)
    return replace(problem, maps=(x, skip), offset=SKIP_OFFSET)


def _added(case: Case, scores: Tensor, labels: Tensor) -> Problem:
    """Two maps of the case's coarse resolution."""
    return _with_skip(Problem((scores,), SamplingGrid.resize(case.in_size, case.in_size), 1))


def _fused(case: Case, scores: Tensor, labels: Tensor) -> Problem:
    """The step before the case's: from twice its stride to its resolution."""
    coarse = scores[..., ::2, ::2].contiguous()
    step = replace(case, in_size=tuple(coarse.shape[2:]), stride=2)
    return _with_skip(_deconvolved(step, coarse, labels))


# What plain torch offers for the same results.


def _interpolate(p: Problem) -> Tensor:
    return F.interpolate(p.maps[0], size=p.grid.size, mode="bilinear")


def _interpolate_padded(p: Problem) -> Tensor:
    """A transposed convolution as a resize: a ring of zeros first, its pixels cut off after."""
    s = p.stride
    full = F.interpolate(F.pad(p.maps[0], (1, 1, 1, 1)), scale_factor=s, mode="bilinear")
    return full[..., s:-s, s:-s]


def _dense(weight: Tensor) -> Tensor:
    """C x 1 x k x k as C x C x k x k with zeros between classes, as FCNs were first written."""
    return torch.diag_embed(weight[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)


@lru_cache(maxsize=4)
def _filter(
    classes: int, stride: int, dense: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The bilinear filter of ``conv_transpose2d``."""
    ramp = 1 - (torch.arange(2 * stride) - stride + 0.5).abs() / stride
    weight = torch.outer(ramp, ramp).repeat(classes, 1, 1, 1)
    return (_dense(weight) if dense else weight).to(device, dtype)


def _transposed(dense: bool, p: Problem) -> Tensor:
    """A transposed convolution in one group, or in one group a class."""
    x, s = p.maps[0], p.stride
    classes = x.shape[1]
    if p.shared:
        weight = _dense(p.shared[0]) if dense else p.shared[0]
    else:
        weight = _filter(classes, s, dense, x.dtype, x.device)
    groups = 1 if dense else classes
    return F.conv_transpose2d(x, weight, stride=s, padding=s // 2, groups=groups)


def _slice_add(p: Problem) -> Tensor:
    (x, skip), (oy, ox), (h, w) = p.maps, p.offset, p.grid.size
    return x + skip[..., oy : oy + h, ox : ox + w]


def _then_add(peer: Contestant) -> Contestant:
    return lambda p: _slice_add(replace(p, maps=(peer(p), p.maps[1])))


def _last(peer: Contestant) -> Contestant:
    """`peer` with scores in channels_last memory; the conversion counts."""

    def converted(p: Problem) -> Tensor:
        scores = p.maps[0].contiguous(memory_format=torch.channels_last)
        return peer(replace(p, maps=(scores, *p.maps[1:])))

    return converted


def _cross_entropy(p: Problem) -> Tensor:
    """As under autocast, the loss of narrow scores is computed in float32."""
    scores = p.maps[0] if p.maps[0].dtype == torch.float64 else p.maps[0].float()
    logits = _interpolate(replace(p, maps=(scores,)))
    return F.cross_entropy(logits, p.target, ignore_index=VOID)


def _argmax(p: Problem) -> Tensor:
    return _interpolate(p).argmax(1)


def _max(p: Problem) -> Tensor:
    return _interpolate(p).max(1).indices


def _confusion(p: Problem) -> Tensor:
    classes = p.maps[0].shape[1]
    pairs = torch.where(p.target == VOID, classes**2, classes * p.target + _max(p))
    counts = torch.bincount(pairs.flatten(), minlength=classes**2 + 1)
    return counts[: classes**2].view(classes, classes)


_DECONVS: dict[str, Contestant] = {
    "eager": _interpolate_padded,
    "dense": partial(_transposed, True),
    "grouped": partial(_transposed, False),
}


def _upsampled(p: Problem) -> Tensor:
    return reference.upsample(p.maps[0], p.grid)


def _sum(p: Problem) -> Tensor:
    return reference.upsample_crop_add(*p.maps, p.grid, p.offset)


@dataclass(frozen=True)
class Operation:
    """One op of fcnfast.ops and all that the benchmark knows about it.

    name: in fcnfast.ops. variant: which of several rows of that op this is. problem: its arguments
    at a case. ours, peers: the contestants; torch.compile gets the peer "eager". truth: the
    definition. result: what comes out. contents: which make a difference. syncs: the peers that
    wait for the GPU, which no CUDA graph can hold. compiles: whether torch.compile makes something
    of "eager".
    """

    name: str
    variant: str
    problem: Callable[[Case, Tensor, Tensor], Problem]
    ours: Contestant
    peers: dict[str, Contestant]
    truth: Callable[[Problem], Tensor]
    result: Literal["map", "loss", "labels", "counts"] = "map"
    contents: tuple[str, ...] = (USUAL,)
    syncs: tuple[str, ...] = ()
    compiles: bool = True

    @property
    def title(self) -> str:
        """Name and variant."""
        return f"{self.name} {self.variant}".strip()

    @property
    def trainable(self) -> bool:
        """Whether it has a gradient."""
        return self.result in ("map", "loss")

    def moved(self, p: Problem) -> dict[str, int]:
        """Bytes that each pass must move: inputs read once, results written once.

        The loss makes its unscaled gradient in the forward pass, and backward scales it. The
        gradient of crop_add's x is the one that comes down.
        """
        x, classes = p.maps[0], p.maps[0].shape[1]
        full = p.outputs * x.itemsize
        read = sum(t.nbytes for t in (x, *p.shared, p.target) if t is not None)
        read += full if len(p.maps) > 1 else 0  # the window of skip
        written = {"map": full, "labels": p.outputs // classes, "counts": 8 * classes**2, "loss": 0}
        forward = read + written[self.result]
        if self.result == "loss":
            backward, both = 2 * x.nbytes, forward + x.nbytes
        else:
            gradients = p.leaves[1:] if self.name == "crop_add" else p.leaves
            again = p.leaves if p.shared else ()  # learned filters: both are read again
            backward = full + sum(t.nbytes for t in (*gradients, *again))
            both = forward + backward
        return {"forward": forward, "backward": backward, "forward+backward": both}


# The ops are looked up when they are called: what is measured is what fcnfast.ops holds then.
OPERATIONS = (
    Operation(
        "upsample_cross_entropy", "", _labeled,
        lambda p: ops.upsample_cross_entropy(*p.maps, p.target, p.grid, ignore_index=VOID),
        {"eager": _cross_entropy},
        lambda p: reference.upsample_cross_entropy(*p.maps, p.target, p.grid, reduction="sum"),
        "loss", CONTENTS,
    ),
    Operation(
        "upsample_argmax", "", _resized, lambda p: ops.upsample_argmax(*p.maps, p.grid),
        {"eager": _argmax, "max": _max, "channels_last": _last(_max)},
        _upsampled, "labels", (USUAL, WORST),
    ),
    Operation(
        "upsample_confusion", "", _labeled,
        lambda p: ops.upsample_confusion(*p.maps, p.target, p.grid, ignore_index=VOID),
        {"eager": _confusion, "channels_last": _last(_confusion)},
        _upsampled, "counts", (USUAL, WORST), ("eager", "channels_last"), compiles=False,
    ),
    Operation(
        "upsample", "resize", _resized, lambda p: ops.upsample(*p.maps, p.grid),
        {"eager": _interpolate, "channels_last": _last(_interpolate)}, _upsampled,
    ),
    Operation(
        "upsample", "deconv", _deconvolved, lambda p: ops.upsample(*p.maps, p.grid),
        {**_DECONVS, "channels_last": _last(_DECONVS["grouped"])}, _upsampled,
    ),
    Operation(
        "deconv", "learned", _learned, lambda p: ops.deconv(*p.leaves, p.stride, p.stride // 2),
        {"eager": _DECONVS["grouped"], "dense": _DECONVS["dense"]},
        lambda p: reference.deconv(*p.leaves, p.stride, p.stride // 2, p.offset, p.grid.size),
        compiles=False,
    ),
    Operation(
        "upsample_crop_add", "deconv x 2", _fused,
        lambda p: ops.upsample_crop_add(*p.maps, p.grid, p.offset),
        {name: _then_add(peer) for name, peer in _DECONVS.items()}, _sum,
    ),
    Operation(
        "crop_add", "", _added, lambda p: ops.crop_add(*p.maps, p.offset),
        {"eager": _slice_add}, _sum,
    ),
)  # fmt: skip
