"""What plain torch offers for the same results, one small function each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import VOID
from fcnfast.geometry import SamplingGrid


@dataclass(frozen=True)
class Problem:
    """The arguments of one op.

    maps: the scores, or x and skip. shared: the filter of a learned deconvolution, which all images
        share. Gradients are taken with respect to all of these.
    grid: from the first map to the full resolution, `stride` times as fine.
    offset: the first row and column of the window of skip.
    target: labels N x H x W.
    cotangent: the gradient that comes down to the result, None where the result is a loss.
    """

    maps: tuple[Tensor, ...]
    grid: SamplingGrid
    stride: int
    shared: tuple[Tensor, ...] = ()
    offset: tuple[int, int] = (0, 0)
    target: Tensor | None = None
    cotangent: Tensor | None = None

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What gradients are taken with respect to."""
        return self.maps + self.shared


Contestant = Callable[[Problem], Tensor]


def logits(p: Problem) -> int:
    """Pixels of the full resolution times classes."""
    images, classes = p.maps[0].shape[:2]
    return images * classes * p.grid.size[0] * p.grid.size[1]


def slice_add(p: Problem) -> Tensor:
    """x plus a window of skip."""
    x, skip = p.maps
    (oy, ox), (h, w) = p.offset, x.shape[-2:]
    return x + skip[..., oy : oy + h, ox : ox + w]


def interpolate(p: Problem) -> Tensor:
    """A bilinear resize: the edge is repeated."""
    return F.interpolate(p.maps[0], size=p.grid.size, mode="bilinear")


def interpolate_padded(p: Problem) -> Tensor:
    """A transposed convolution as a resize: a ring of zeros first, its pixels cut off after."""
    s = p.stride
    full = F.interpolate(F.pad(p.maps[0], (1, 1, 1, 1)), scale_factor=s, mode="bilinear")
    return full[..., s:-s, s:-s]


@lru_cache(maxsize=4)
def bilinear_filter(
    classes: int, stride: int, dense: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The filter of ``conv_transpose2d``: classes x 1 x k x k, or with zeros between classes."""
    ramp = 1 - (torch.arange(2 * stride) - stride + 0.5).abs() / stride
    one = torch.outer(ramp, ramp)
    if not dense:
        return one.repeat(classes, 1, 1, 1).to(device, dtype)
    weight = torch.zeros(classes, classes, *one.shape)
    weight[range(classes), range(classes)] = one
    return weight.to(device, dtype)


def _deconv(p: Problem, dense: bool) -> Tensor:
    x, s = p.maps[0], p.stride
    weight = bilinear_filter(x.shape[1], s, dense, x.dtype, x.device)
    groups = 1 if dense else x.shape[1]
    return F.conv_transpose2d(x, weight, stride=s, padding=s // 2, groups=groups)


def dense_deconv(p: Problem) -> Tensor:
    """A transposed convolution from all classes to all, as FCNs were first written."""
    return _deconv(p, dense=True)


def grouped_deconv(p: Problem) -> Tensor:
    """A transposed convolution of every class by itself."""
    return _deconv(p, dense=False)


def learned_grouped(p: Problem) -> Tensor:
    """A transposed convolution of every class by a filter of its own."""
    x, weight = p.maps[0], p.shared[0]
    return F.conv_transpose2d(x, weight, stride=p.stride, padding=p.stride // 2, groups=x.shape[1])


def learned_dense(p: Problem) -> Tensor:
    """The same filters in a transposed convolution from all classes to all."""
    weight = torch.diag_embed(p.shared[0][:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
    return F.conv_transpose2d(p.maps[0], weight, stride=p.stride, padding=p.stride // 2)


def then_add(upsample: Contestant) -> Contestant:
    """`upsample`, and then the window of skip added."""

    def peer(p: Problem) -> Tensor:
        return slice_add(replace(p, maps=(upsample(p), p.maps[1])))

    return peer


def _widened(p: Problem) -> Problem:
    """As autocast does: the scores of a loss are taken to float32 first."""
    scores = p.maps[0]
    return replace(p, maps=(scores if scores.dtype == torch.float64 else scores.float(),))


def cross_entropy(p: Problem) -> Tensor:
    """A resize, and the loss of its logits."""
    return F.cross_entropy(interpolate(_widened(p)), p.target, ignore_index=VOID)


def argmax(p: Problem) -> Tensor:
    """A resize, and the argmax of its logits."""
    return interpolate(p).argmax(1)


def max_indices(p: Problem) -> Tensor:
    """The argmax spelt ``max(1).indices``, which is several times faster on a CPU."""
    return interpolate(p).max(1).indices


def argmax_last(p: Problem) -> Tensor:
    """The argmax over channels that are innermost."""
    last = p.maps[0].contiguous(memory_format=torch.channels_last)
    return interpolate(replace(p, maps=(last,))).argmax(1)


def confusion(p: Problem) -> Tensor:
    """A resize, the labels of its logits, and a count of the pairs of labels."""
    classes = p.maps[0].shape[1]
    pairs = torch.where(p.target == VOID, classes**2, classes * p.target + max_indices(p))
    counts = torch.bincount(pairs.flatten(), minlength=classes**2 + 1)
    return counts[: classes**2].view(classes, classes)
