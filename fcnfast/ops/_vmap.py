"""Rules for torch.func.vmap: what a raw op does with a batch of its arguments.

A rule gets the batch's size, the dimension of each argument that counts it (None where all share
the argument), and the arguments; it returns the results and their dimensions likewise. Arguments
that are lists of integers are never batched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., tuple[Any, Any]]


def _first(x: Tensor, dim: int | None, batch: int) -> Tensor:
    """`x` with the batch in front; one that all share is repeated, without a copy."""
    return x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)


def into_images(call: Callable[..., Any]) -> Rule:
    """The batch becomes a part of N: for ops that treat every image alike."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batch = info.batch_size

        def split(result: Tensor) -> Tensor:
            return result.unflatten(0, (batch, result.shape[0] // batch))

        folded = [
            _first(a, dim, batch).flatten(0, 1) if isinstance(a, Tensor) else a
            for a, dim in zip(args, in_dims, strict=True)
        ]
        result = call(*folded)
        if isinstance(result, Tensor):
            return split(result), 0
        return tuple(map(split, result)), (0,) * len(result)

    return rule


def into_channels(call: Callable[..., Tensor], channels: tuple[int, int], result: int) -> Rule:
    """The batch becomes a part of C: for ops of two tensors that treat every channel alike.

    channels: the dimension that counts them in either tensor. result: that in the result.
    """

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batch = info.batch_size
        folded = [
            _first(args[i], in_dims[i], batch).movedim(0, dim).flatten(dim, dim + 1)
            for i, dim in enumerate(channels)
        ]
        out = call(*folded, *args[2:])
        return out.unflatten(result, (batch, out.shape[result] // batch)), result

    return rule


def one_by_one(call: Callable[..., Any]) -> Rule:
    """A call for every entry of the batch: for ops that sum over images."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        results = [
            call(
                *(
                    a.select(dim, i) if isinstance(a, Tensor) and dim is not None else a
                    for a, dim in zip(args, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule
