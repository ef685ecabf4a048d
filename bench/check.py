"""Whether a result is right: against the float64 reference, some rows of an image at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.cases import VOID
from bench.operations import Operation
from bench.peers import Contestant, Problem

# Float64 values of the truth at any time.
PIECE = {"cpu": 1 << 21, "cuda": 1 << 26}


def call(contestant: Contestant, problem: Problem, backward: bool) -> tuple[Tensor, ...]:
    """The result and, with `backward`, the gradient of every leaf: what is checked and timed."""
    if not backward:
        with torch.no_grad():
            return (contestant(problem),)
    result = contestant(problem)
    return (result, *torch.autograd.grad(result, problem.leaves, problem.cotangent))


def backward_call(contestant: Contestant, problem: Problem) -> Callable[[], tuple[Tensor, ...]]:
    """The backward pass alone, as often as wanted, of a forward pass made here."""
    result = contestant(problem)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, problem.leaves, problem.cotangent, retain_graph=True)

    return gradients


def tolerance(dtype: torch.dtype, ours: bool) -> float:
    """The largest error allowed, relative to the largest magnitude of the truth.

    All arithmetic should be float32's (float64's for float64, where the truth is rounded too), the
    result rounded once. Peers may add up in the narrow type.
    """
    arithmetic = 1e-13 if dtype == torch.float64 else torch.finfo(torch.float32).eps
    narrow = torch.finfo(dtype).eps
    return 64 * arithmetic + narrow if ours else 256 * arithmetic + 8 * narrow


class _Worst:
    """The largest difference from the truth seen so far, and the largest truth."""

    def __init__(self) -> None:
        self.error = self.scale = 0.0

    def add(self, difference: Tensor, truth: Tensor) -> None:
        error = difference.abs().max().item()
        self.error = math.nan if math.isnan(error) else max(self.error, error)
        self.scale = max(self.scale, truth.abs().max().item())

    @property
    def relative(self) -> float:
        return self.error / self.scale if self.scale else self.error


def _regret(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the logit of the chosen class lies below the best; infinite for no class at all."""
    classes = logits.shape[1]
    inside = (labels >= 0) & (labels < classes)
    chosen = logits.gather(1, torch.where(inside, labels, 0)[:, None])[:, 0]
    return torch.where(inside, logits.amax(1) - chosen, math.inf)


def _fits(operation: Operation, problem: Problem, parts: tuple[Tensor, ...]) -> bool:
    """Whether a result and its gradients have the shapes that they must have."""
    images, classes = problem.maps[0].shape[:2]
    size = problem.grid.size
    shapes = {
        "map": (images, classes, *size),
        "labels": (images, *size),
        "loss": (),
        "counts": (classes, classes),
    }
    gradients = [leaf.shape for leaf in problem.leaves][: len(parts) - 1]
    return [p.shape for p in parts] == [torch.Size(shapes[operation.result]), *gradients]


def _truths(
    operation: Operation, problem: Problem, backward: bool
) -> Iterator[tuple[int, tuple[Any, ...], Tensor]]:
    """The truth piece by piece: part 0 is the result, the others its gradients; index; values."""
    x, cotangent, loss = problem.maps[0], problem.cotangent, operation.result == "loss"
    height, width = problem.grid.size
    rows = max(1, PIECE[x.device.type] // (x.shape[1] * width))
    shared = tuple(s.detach().double().requires_grad_(backward) for s in problem.shared)
    total = x.new_zeros((), dtype=torch.float64)
    for n in range(x.shape[0]):
        image = slice(n, n + 1)
        maps = tuple(m[image].detach().double().requires_grad_(backward) for m in problem.maps)
        for first in range(0, height, rows):
            piece = slice(first, min(height, first + rows))
            with torch.set_grad_enabled(backward):
                truth = operation.truth(maps + shared, problem, n, piece.start, piece.stop)
            if backward:
                truth.backward(None if cotangent is None else cotangent[image, :, piece].double())
            if loss:
                total += truth.detach()
            else:
                yield 0, (image, ..., piece, slice(None)), truth.detach()
        if backward:
            yield from ((i, (image,), m.grad) for i, m in enumerate(maps, 1))
    if backward:
        yield from ((i, (), s.grad) for i, s in enumerate(shared, 1 + len(problem.maps)))
    if loss:
        yield 0, (), total


def _miscounts(
    operation: Operation, problem: Problem, outcomes: dict[str, tuple[Tensor, ...]]
) -> dict[str, float]:
    """The share of the pixels that confusion matrices hold in the wrong place.

    A pixel whose two best classes are as close as arithmetic is exact may be in either's.
    """
    classes = problem.maps[0].shape[1]
    near = tolerance(problem.maps[0].dtype, ours=True)
    truth = torch.zeros(classes, classes, dtype=torch.int64)
    close = 0
    for _, (image, _, piece, _), values in _truths(operation, problem, backward=False):
        target = problem.target[image, piece]
        pairs = (target * classes + values.argmax(1))[target != VOID]
        truth += torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()
        best = values.topk(min(2, classes), dim=1).values
        close += int((best[:, 0] - best[:, -1] <= near * values.abs().max()).sum())
    found = {}
    for name, (counts,) in outcomes.items():
        moved = int((counts.cpu().long() - truth).abs().sum()) // 2
        rows = torch.equal(counts.cpu().long().sum(1), truth.sum(1))
        found[name] = max(0, moved - close) / max(1, int(truth.sum())) if rows else math.inf
    return found


def errors(
    operation: Operation, problem: Problem, outcomes: dict[str, tuple[Tensor, ...]]
) -> dict[str, float]:
    """The error of every outcome of `call`, relative to the largest magnitude of the truth.

    The worst of the result and the gradients; infinite where a shape is wrong. For labels it is
    how far the logit of the chosen class lies below the best, for counts the share of the pixels
    that are in the wrong place.
    """
    found = {name: math.inf for name in outcomes}
    fitting = {n: parts for n, parts in outcomes.items() if _fits(operation, problem, parts)}
    if not fitting:
        return found
    if operation.result == "counts":
        return found | _miscounts(operation, problem, fitting)
    worst = {name: [_Worst() for _ in parts] for name, parts in fitting.items()}
    backward = any(len(parts) > 1 for parts in fitting.values())
    labels = operation.result == "labels"
    for part, index, truth in _truths(operation, problem, backward):
        for name, parts in fitting.items():
            mine = parts[part][index].to(truth.device)
            worst[name][part].add(
                _regret(truth, mine.long()) if labels else mine.double() - truth, truth
            )
    for name, all_parts in worst.items():
        relative = [part.relative for part in all_parts]
        found[name] = math.nan if any(map(math.isnan, relative)) else max(relative)
    return found
