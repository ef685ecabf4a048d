"""Whether results are right: against the float64 reference, some rows of an image at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.cases import VOID
from bench.operations import Operation, Problem

# Float64 values of the truth held at a time.
PIECE = {"cpu": 1 << 21, "cuda": 1 << 26}
# What a contestant gives: the result, and after a backward pass the gradient of every leaf.
Parts = tuple[Tensor, ...]


def tolerance(dtype: torch.dtype, ours: bool) -> float:
    """The largest error allowed, relative to the largest magnitude of the truth.

    Arithmetic should be in float32 (float64 for float64, where the truth is rounded too), with the
    result rounded once. Peers may add up in the narrow type.
    """
    arithmetic = 1e-13 if dtype == torch.float64 else torch.finfo(torch.float32).eps
    narrow = torch.finfo(dtype).eps
    return 64 * arithmetic + narrow if ours else 256 * arithmetic + 8 * narrow


def _fits(operation: Operation, problem: Problem, parts: Parts) -> bool:
    """Whether a result and its gradients have the right shapes."""
    images, classes = problem.maps[0].shape[:2]
    size = problem.grid.size
    shape = {
        "map": (images, classes, *size), "labels": (images, *size), "counts": (classes, classes),
        "loss": (),
    }[operation.result]  # fmt: skip
    gradients = [leaf.shape for leaf in problem.leaves][: len(parts) - 1]
    return [part.shape for part in parts] == [torch.Size(shape), *gradients]


def _truths(
    operation: Operation, p: Problem, backward: bool
) -> Iterator[tuple[int, tuple[Any, ...], Tensor]]:
    """The truth piece by piece: part 0 is the result, the others its gradients; index; values."""
    x, (height, width), loss = p.maps[0], p.grid.size, operation.result == "loss"
    rows = max(1, PIECE[x.device.type] // (x.shape[1] * width))
    shared = tuple(s.detach().double().requires_grad_(backward) for s in p.shared)
    total = x.new_zeros((), dtype=torch.float64)
    for image in (slice(n, n + 1) for n in range(x.shape[0])):
        maps = tuple(m[image].detach().double().requires_grad_(backward) for m in p.maps)
        for y in range(0, height, rows):
            index = (image, ..., slice(y, y + rows), slice(None))
            size, off = (min(rows, height - y), width), (p.grid.off[0] + p.grid.num[0] * y,)
            piece = Problem(
                maps,
                replace(p.grid, size=size, off=(*off, p.grid.off[1])),
                p.stride,
                shared,
                (p.offset[0] + y, p.offset[1]),
                None if p.target is None else p.target[index],
            )
            with torch.set_grad_enabled(backward):
                truth = operation.truth(piece)
                if loss:
                    truth = truth / (p.target != VOID).sum()
            if backward:
                truth.backward(None if loss else p.grad_output[index].double())
            if loss:
                total += truth.detach()
            else:
                yield 0, index, truth.detach()
        if backward:
            yield from ((i, (image,), m.grad) for i, m in enumerate(maps, 1))
    if backward:
        yield from ((i, (), s.grad) for i, s in enumerate(shared, 1 + len(p.maps)))
    if loss:
        yield 0, (), total


def _regret(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the logit of the chosen class lies below the best; infinite for no class at all."""
    inside = (labels >= 0) & (labels < logits.shape[1])
    chosen = logits.gather(1, torch.where(inside, labels, 0)[:, None])[:, 0]
    return torch.where(inside, logits.amax(1) - chosen, math.inf)


def _miscounts(
    operation: Operation, problem: Problem, outcomes: dict[str, Parts]
) -> dict[str, float]:
    """The share of the pixels that confusion matrices hold in the wrong place.

    A pixel whose two best classes are as close as arithmetic is exact may be in either's.
    """
    classes, close = problem.maps[0].shape[1], 0
    near = tolerance(problem.maps[0].dtype, ours=True)
    truth = torch.zeros(classes, classes, dtype=torch.int64)
    for _, index, values in _truths(operation, problem, backward=False):
        target = problem.target[index]
        pairs = (target * classes + values.argmax(1))[target != VOID]
        truth += torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()
        best = values.topk(min(2, classes), dim=1).values
        close += int((best[:, 0] - best[:, -1] <= near * values.abs().max()).sum())
    found = {}
    for name, (counts,) in outcomes.items():
        wrong = counts.cpu().long() - truth
        excess = max(0, int(wrong.abs().sum()) // 2 - close) / max(1, int(truth.sum()))
        found[name] = math.inf if wrong.sum(1).any() else excess
    return found


def errors(operation: Operation, problem: Problem, outcomes: dict[str, Parts]) -> dict[str, float]:
    """The error of every outcome, relative to the largest magnitude of the truth.

    The worst of the result and the gradients; infinite where a shape is wrong. For labels it is
    how far the logit of the chosen class lies below the best, for counts the share of the pixels
    that are in the wrong place.
    """
    found = dict.fromkeys(outcomes, math.inf)
    fitting = {n: parts for n, parts in outcomes.items() if _fits(operation, problem, parts)}
    if not fitting:
        return found
    if operation.result == "counts":
        return found | _miscounts(operation, problem, fitting)
    number = max(map(len, fitting.values()))
    scale = [0.0] * number
    worst = {name: torch.zeros(number, dtype=torch.float64) for name in fitting}
    for part, index, truth in _truths(operation, problem, backward=number > 1):
        scale[part] = max(scale[part], truth.abs().max().item())
        for name, parts in fitting.items():
            mine = parts[part].detach()[index].to(truth.device)
            if operation.result == "labels":
                error = _regret(truth, mine.long())
            else:
                error = mine.double() - truth
            # torch's maximum keeps a NaN; Python's does not.
            worst[name][part] = worst[name][part].maximum(error.abs().max().cpu())
    scales = torch.tensor([s or 1.0 for s in scale], dtype=torch.float64)
    return found | {name: float((error / scales).max()) for name, error in worst.items()}
