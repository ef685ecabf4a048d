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
        batched = [
            _first(a, dim, batch) if isinstance(a, Tensor) else a
            for a, dim in zip(args, in_dims, strict=True)
        ]
        images = batched[0].shape[1]

        def split(result: Tensor) -> Tensor:
            return result.unflatten(0, (batch, images if result.dim() > 1 else 0))

        result = call(*(a.flatten(0, 1) if isinstance(a, Tensor) else a for a in batched))
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
        batched = [
            _first(args[i], in_dims[i], batch).movedim(0, dim) for i, dim in enumerate(channels)
        ]
        count = batched[0].shape[channels[0] + 1]
        folded = (x.flatten(dim, dim + 1) for x, dim in zip(batched, channels, strict=True))
        return call(*folded, *args[2:]).unflatten(result, (batch, count)), result

    return rule


def entry(args: tuple[Any, ...], in_dims: tuple[Any, ...], i: int) -> list[Any]:
    """Entry i of the batch, of each argument."""
    return [
        a.select(dim, i) if isinstance(a, Tensor) and dim is not None else a
        for a, dim in zip(args, in_dims, strict=True)
    ]


def one_by_one(call: Callable[..., Any]) -> Rule:
    """A call for every entry of the batch: for ops that sum over images."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batch = info.batch_size
        results = [call(*entry(args, in_dims, i)) for i in range(batch)]
        if not batch:  # what any entry would give
            anything = [
                a.sum(dim, dtype=a.dtype) if isinstance(a, Tensor) and dim is not None else a
                for a, dim in zip(args, in_dims, strict=True)
            ]
            results = [call(*anything)]
        if isinstance(results[0], Tensor):
            return torch.stack(results)[:batch], 0
        stacked = tuple(torch.stack(parts)[:batch] for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule
