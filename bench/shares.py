"""The suite that compares how a kernel's lanes share pixels: its constants against others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.cases import SUITES, USUAL, VOID, Case, content, fitted
from bench.measure import Settings, interleaved
from bench.networks import Disagreement
from fcnfast.errors import InputError
from fcnfast.geometry import SamplingGrid

CASES = (*SUITES["voc"][:2], SUITES["cityscapes"][0], SUITES["ade20k"][0])
Launch = Callable[[Any], tuple[Tensor, ...]]  # with the constants given, or the kernel's own


def shares(settings: Settings) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Milliseconds as called, in turns, after a check that the results agree (or Disagreement).

    InputError without a GPU. Yields lines of the table, and all rows so far for the JSON file.
    """
    if settings.device.type != "cuda":
        raise InputError("--suite shares compares kernels: it needs a GPU")
    yield from compared(settings)


def compared(settings: Settings) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The table of `shares`, also by Triton's interpreter."""
    rows: list[dict[str, Any]] = []
    for case in fitted(CASES, settings.device):
        for op, (launch, others) in _launches(case, settings).items():
            ways = {"own": None} | {str(other): other for other in others}
            results = {way: launch(given) for way, given in ways.items()}
            for way, found in results.items():
                if not all(map(_agree, found, results["own"])):
                    raise Disagreement(f"{op} by {way} differs, {case}")
            calls = {way: partial(_wait, launch, given) for way, given in ways.items()}
            took = interleaved(calls, settings.repeats)
            rows.append({"case": str(case), "op": op, "ms": took})
            told = [f"{way} {found['median']:.3f}" for way, found in took.items()]
            yield f"{case}, {op}: {', '.join(told)}", rows


def _launches(case: Case, settings: Settings) -> dict[str, tuple[Launch, list[Any]]]:
    """How each op is launched, and the constants to compare."""
    from fcnfast.kernels import argmax, confusion, cross_entropy, winners
    from fcnfast.kernels.cross_entropy_corners import LANES, Shares

    x, target = content(USUAL, case, settings.dtype, settings.device)
    grid = SamplingGrid.resize(case.in_size, case.size)

    def loss(given: Any) -> tuple[Tensor, ...]:
        return cross_entropy.forward(x, target, None, grid, VOID, "mean", 0.0, True, given)

    def labels(given: Any) -> tuple[Tensor, ...]:
        return argmax.forward(x, grid, torch.uint8, False, given)[:1]

    def counts(given: Any) -> tuple[Tensor, ...]:
        out = torch.zeros(x.shape[1], x.shape[1], dtype=torch.int64, device=x.device)
        confusion.add(out, x, target, grid, VOID, given)
        return (out,)

    patches = [Shares(8, 2, LANES), Shares(8, 8, LANES), Shares(4, 4, LANES)]
    teams = [(4, 8, 1, 8), (4, 8, 4, 4), (1, 8, 4, 8)]
    tiles = [winners.Shares(winners.LANES, *values) for values in teams]
    return {"loss": (loss, patches), "labels": (labels, tiles), "counts": (counts, tiles)}


def _agree(one: Tensor, other: Tensor) -> bool:
    """Labels and counts are equal, losses and gradients up to rounding."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = float(other.abs().max())
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * scale)


def _wait(launch: Launch, given: Any) -> None:
    if launch(given)[0].device.type == "cuda":
        torch.cuda.synchronize()
