"""Upsampling is backwards strided convolution (section 3.3 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..nn import Deconv


def stacked_deconvolutions(
    channels: int, strides: Sequence[int], activation: Callable[[], nn.Module] | None = None
) -> nn.Sequential:
    """A stack of learnable deconvolutions, which can learn even a nonlinear upsampling.

    Each deconvolution takes C x h x w to C x s h x s w and begins as the bilinear interpolation of
    each channel, so that the whole stack begins as one interpolation after the other. The centers
    of its outputs lie where `SamplingGrid.resize` has them: nothing shifts.

    Args:
        channels: C.
        strides: the factor s of each deconvolution, at least 2.
        activation: makes what stands between two of them, such as ``nn.ReLU``; none after the last.
            (With a ReLU between them negative scores do not pass at first: give it scores that are
            shifted, or take ``nn.PReLU``.)

    Returns:
        The stack, the product of the strides being its factor.

    Raises:
        TypeError: when channels or a stride is no integer, or strides are no sequence.
        ValueError: without strides, for one below 2, or without channels.
    """
    if type(channels) is not int:
        raise TypeError(f"channels must be an integer, not {channels!r}")
    if not isinstance(strides, Sequence) or any(type(stride) is not int for stride in strides):
        raise TypeError(f"strides must be a sequence of integers such as (2, 2), not {strides!r}")
    if channels < 1:
        raise ValueError(f"channels must be positive, not {channels}")
    if not strides or min(strides) < 2:
        raise ValueError(f"strides must be 2 or more each, and at least one, not {list(strides)}")
    layers: list[nn.Module] = []
    for stride in strides:
        if layers and activation is not None:
            layers.append(activation())
        layers.append(Deconv(channels, stride, padding=stride // 2))  # s pixels for every one
    return nn.Sequential(*layers)
