"""The suite that compares how a kernel's lanes share pixels: its constants against others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.cases import SUITES, USUAL, VOID, content, fitted
from bench.measure import Settings, interleaved
from bench.networks import Disagreement
from fcnfast.errors import InputError
from fcnfast.geometry import SamplingGrid

CASES = (*SUITES["voc"][:2], SUITES["cityscapes"][0], SUITES["ade20k"][0])
# patch, groups, lanes of the loss; lanes, tile_rows, patch, team, unroll of the labels.
LOSS = ((8, 2, 32), (8, 8, 32), (4, 4, 32))
LABELS = ((32, 4, 8, 1, 8), (32, 4, 8, 4, 4), (32, 1, 8, 4, 8))


def shares(settings: Settings) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Milliseconds as called, in turns, after a check that the results agree (or Disagreement).

    InputError without a GPU. Yields lines of the table, and all rows so far for the JSON file.
    """
    if settings.device.type != "cuda":
        raise InputError("--suite shares compares kernels: it needs a GPU")
    yield from compared(settings)


def compared(settings: Settings) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The table of `shares`, also by Triton's interpreter."""
    from fcnfast.kernels import argmax, confusion, cross_entropy, cross_entropy_corners, winners

    rows: list[dict[str, Any]] = []
    for case in fitted(CASES, settings.device):
        x, target = content(USUAL, case, settings.dtype, settings.device)
        grid = SamplingGrid.resize(case.in_size, case.size)

        def loss(given: Any, x: Tensor = x, target: Tensor = target, grid: Any = grid) -> Tensor:
            return cross_entropy.forward(x, target, None, grid, VOID, "mean", 0.0, True, given)[0]

        def labels(given: Any, x: Tensor = x, grid: Any = grid) -> Tensor:
            return argmax.forward(x, grid, torch.uint8, False, given)[0]

        def counts(given: Any, x: Tensor = x, target: Tensor = target, grid: Any = grid) -> Tensor:
            out = torch.zeros(x.shape[1], x.shape[1], dtype=torch.int64, device=x.device)
            confusion.add(out, x, target, grid, VOID, given)
            return out

        for run, kind, others in (
            (loss, cross_entropy_corners.Shares, LOSS),
            (labels, winners.Shares, LABELS),
            (counts, winners.Shares, LABELS),
        ):
            ways = {"own": None} | {str(kind(*values)): kind(*values) for values in others}
            results = {way: run(given) for way, given in ways.items()}
            for way, result in results.items():
                if not torch.allclose(result.double(), results["own"].double(), rtol=1e-4):
                    raise Disagreement(f"{run.__name__} by {way} differs, {case}")
            calls = {way: partial(_waited, run, given) for way, given in ways.items()}
            took = interleaved(calls, settings.repeats)
            rows.append({"case": str(case), "op": run.__name__, "ms": took})
            told = [f"{way} {found['median']:.3f}" for way, found in took.items()]
            yield f"{case}, {run.__name__}: {', '.join(told)}", rows


def _waited(run: Any, given: Any) -> None:
    if run(given).device.type == "cuda":
        torch.cuda.synchronize()
