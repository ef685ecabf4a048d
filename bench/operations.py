"""The table of the ops: what each gets at a case, who competes, and what is true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bench import peers
from bench.cases import CONTENTS, USUAL, VOID, WORST, Case, Content
from bench.peers import Contestant, Problem, bilinear_filter, logits
from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid

# The window of the finest skip of FCN-8s begins here.
SKIP_OFFSET = 9


def _resized(case: Case, content: Content) -> Problem:
    grid = SamplingGrid.resize(case.in_size, case.size)
    return Problem((content.scores,), grid, case.stride)


def _deconvolved(case: Case, content: Content, stride: int | None = None) -> Problem:
    stride = stride or case.stride
    in_size = content.scores.shape[-2:]
    grid = SamplingGrid.deconv(in_size, stride, padding=stride // 2)
    return Problem((content.scores,), grid, stride)


def _skip_for(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A finer map of noise with a margin around a window of `size`."""
    generator = torch.Generator(x.device).manual_seed(5)
    shape = (*x.shape[:2], *(n + 2 * SKIP_OFFSET for n in size))
    return torch.randn(shape, generator=generator, device=x.device).to(x.dtype)


def _added(case: Case, content: Content) -> Problem:
    """Two score maps of the case's resolution."""
    skip = _skip_for(content.scores, case.in_size)
    grid = SamplingGrid.resize(case.in_size, case.in_size)
    return Problem((content.scores, skip), grid, 1, offset=(SKIP_OFFSET, SKIP_OFFSET))


def _fused(case: Case, content: Content) -> Problem:
    """The step before the case's: from twice its stride to its resolution."""
    coarse = content.scores[..., ::2, ::2].contiguous()
    problem = _deconvolved(case, Content(coarse, content.labels), 2)
    skip = _skip_for(coarse, problem.grid.size)
    return replace(problem, maps=(coarse, skip), offset=(SKIP_OFFSET, SKIP_OFFSET))


def _labeled(case: Case, content: Content) -> Problem:
    return replace(_resized(case, content), target=content.labels)


def _learned(case: Case, content: Content) -> Problem:
    """A deconvolution by the bilinear filter as training has changed it."""
    problem = _deconvolved(case, content)
    x, stride = problem.maps[0], case.stride
    generator = torch.Generator(x.device).manual_seed(7)
    shape = (x.shape[1], 1, 2 * stride, 2 * stride)
    noise = 0.1 * torch.randn(shape, generator=generator, device=x.device)
    weight = bilinear_filter(x.shape[1], stride, False, torch.float32, x.device) + noise
    return replace(problem, shared=(weight.to(x.dtype),))


def _rows(grid: SamplingGrid, first: int, last: int) -> SamplingGrid:
    """The rows [first, last) of a grid's result."""
    off = (grid.off[0] + grid.num[0] * first, grid.off[1])
    return replace(grid, size=(last - first, grid.size[1]), off=off)


def _true_sum(maps: tuple[Tensor, ...], p: Problem, n: int, first: int, last: int) -> Tensor:
    x, skip = maps
    oy, ox = p.offset
    return reference.crop_add(x[..., first:last, :], skip, (oy + first, ox))


def _true_map(maps: tuple[Tensor, ...], p: Problem, n: int, first: int, last: int) -> Tensor:
    return reference.upsample(maps[0], _rows(p.grid, first, last))


def _true_fusion(maps: tuple[Tensor, ...], p: Problem, n: int, first: int, last: int) -> Tensor:
    oy, ox = p.offset
    rows = _rows(p.grid, first, last)
    return reference.upsample_crop_add(*maps, rows, (oy + first, ox))


def _true_deconv(maps: tuple[Tensor, ...], p: Problem, n: int, first: int, last: int) -> Tensor:
    size = (last - first, p.grid.size[1])
    return reference.deconv(*maps, p.stride, p.stride // 2, (first, 0), size)


def _true_loss(maps: tuple[Tensor, ...], p: Problem, n: int, first: int, last: int) -> Tensor:
    target = p.target[n : n + 1, first:last]
    rows = _rows(p.grid, first, last)
    loss = reference.upsample_cross_entropy(*maps, target, rows, reduction="sum")
    return loss / (p.target != VOID).sum()


# The bytes that an op cannot but move, every input read once and every result written once: of the
# forward pass, of the backward pass, and of both together.
Moved = tuple[float, float, float]


def _apart(forward: float, backward: float) -> Moved:
    """Of passes that share nothing."""
    return forward, backward, forward + backward


def _moved_sum(p: Problem) -> Moved:
    """The gradient of x is the one that came down; that of skip is written, margins included."""
    x, skip = p.maps
    return _apart(3 * x.nbytes, x.nbytes + skip.nbytes)


def _moved_map(p: Problem) -> Moved:
    one = p.maps[0].nbytes + logits(p) * p.maps[0].itemsize
    return _apart(one, one)


def _moved_deconv(p: Problem) -> Moved:
    """Backward reads x, too."""
    x = p.maps[0]
    coarse, full = x.nbytes + p.shared[0].nbytes, logits(p) * x.itemsize
    return _apart(coarse + full, 2 * coarse + full)


def _moved_fusion(p: Problem) -> Moved:
    """No upsampled map in between."""
    x, skip = p.maps
    full = logits(p) * x.itemsize
    return _apart(x.nbytes + 2 * full, full + x.nbytes + skip.nbytes)


def _moved_loss(p: Problem) -> Moved:
    """The gradient is written once, whatever comes down scales it."""
    x, labels = p.maps[0], p.target.nbytes
    return x.nbytes + labels, 2 * x.nbytes, 2 * x.nbytes + labels


def _moved_labels(p: Problem) -> Moved:
    """One byte a pixel written; or labels read, and a matrix of counts written."""
    x = p.maps[0]
    pixels = logits(p) / x.shape[1] if p.target is None else p.target.nbytes + 8 * x.shape[1] ** 2
    return _apart(x.nbytes + pixels, 0)


@dataclass(frozen=True)
class Operation:
    """One op of fcnfast.ops and all that the benchmark has to know about it.

    name: in fcnfast.ops. variant: which of several rows of that op this is.
    problem: its arguments at a case with a content. ours, peers: the contestants; torch.compile
        gets the peer "eager".
    truth: from one image's maps (and what images share) in float64 the rows [first, last) of that
        image's result, their part of the loss, or the logits that labels are judged by.
    moved: the bytes that no implementation can avoid to move.
    result: what comes out. contents: which contents make a difference.
    syncs: the peers that wait for the GPU, which no CUDA graph can hold.
    compiles: whether torch.compile makes something of the peer "eager".
    """

    name: str
    variant: str
    problem: Callable[[Case, Content], Problem]
    ours: Contestant
    peers: dict[str, Contestant]
    truth: Callable[[tuple[Tensor, ...], Problem, int, int, int], Tensor]
    moved: Callable[[Problem], Moved]
    result: Literal["map", "loss", "labels", "counts"] = "map"
    contents: tuple[str, ...] = (USUAL,)
    syncs: tuple[str, ...] = ()
    compiles: bool = True

    @property
    def trainable(self) -> bool:
        """Whether there is a gradient to be had."""
        return self.result in ("map", "loss")


_DECONVS = {
    "eager": peers.interpolate_padded,
    "dense": peers.dense_deconv,
    "grouped": peers.grouped_deconv,
}

# The ops are looked up when they are called: what is measured is what fcnfast.ops holds then.
OPERATIONS = (
    Operation(
        "upsample_cross_entropy", "", _labeled,
        lambda p: ops.upsample_cross_entropy(*p.maps, p.target, p.grid, ignore_index=VOID),
        {"eager": peers.cross_entropy},
        _true_loss, _moved_loss, "loss", CONTENTS,
    ),
    Operation(
        "upsample_argmax", "", _resized,
        lambda p: ops.upsample_argmax(*p.maps, p.grid),
        {"eager": peers.argmax, "max": peers.max_indices, "channels_last": peers.argmax_last},
        _true_map, _moved_labels, "labels", (USUAL, WORST),
    ),
    Operation(
        "upsample_confusion", "", _labeled,
        lambda p: ops.upsample_confusion(*p.maps, p.target, p.grid, ignore_index=VOID),
        {"eager": peers.confusion},
        _true_map, _moved_labels, "counts", (USUAL, WORST), ("eager",),
        compiles=False,
    ),
    Operation(
        "upsample", "resize", _resized,
        lambda p: ops.upsample(*p.maps, p.grid),
        {"eager": peers.interpolate},
        _true_map, _moved_map,
    ),
    Operation(
        "upsample", "deconv", _deconvolved,
        lambda p: ops.upsample(*p.maps, p.grid),
        _DECONVS,
        _true_map, _moved_map,
    ),
    Operation(
        "deconv", "learned", _learned,
        lambda p: ops.deconv(*p.leaves, p.stride, p.stride // 2),
        {"eager": peers.learned_grouped, "dense": peers.learned_dense},
        _true_deconv, _moved_deconv, compiles=False,
    ),
    Operation(
        "upsample_crop_add", "deconv x 2", _fused,
        lambda p: ops.upsample_crop_add(*p.maps, p.grid, p.offset),
        {name: peers.then_add(peer) for name, peer in _DECONVS.items()},
        _true_fusion, _moved_fusion,
    ),
    Operation(
        "crop_add", "", _added,
        lambda p: ops.crop_add(*p.maps, p.offset),
        {"eager": peers.slice_add},
        _true_sum, _moved_sum,
    ),
)  # fmt: skip
