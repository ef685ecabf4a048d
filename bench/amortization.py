"""Section 3.1 of the paper: one whole image against its patches, each a run of its own.

AlexNet gives a 10 x 10 grid of outputs for a 500 x 500 image. Patch by patch these are 100 windows
of 227 x 227, 32 pixels apart, which share most of their pixels and so most of their work. (The
values are not the same: layers pad, and what a window pads a whole image has.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.measure import Settings
from bench.timing import Time, interleaved
from fcnfast.models.alexnet import alexnet
from fcnfast.theory import receptive_field

IMAGE, PATCH, STRIDE, GRID, CLASSES = 500, 227, 32, 10, 1000
# Patches of one run, as the paper's naive approach batches them.
BATCH = 20
# Milliseconds on a K40c (section 3.1, and its footnote for a patch alone).
PAPER = {
    "whole image": {"forward": 22.0, "backward": 37.0},
    "patches, batched": {"forward": 120.0},
    "patches, one by one": {"forward": 540.0, "backward": 240.0},
}


def network(settings: Settings) -> nn.Module:
    """AlexNet with its fully connected layers as convolutions, and 1000 outputs."""
    torch.manual_seed(0)
    layers = alexnet("caffe", padding=0, fc6_padding=0, dropout=0.0)
    model = nn.Sequential(*layers.values(), nn.Conv2d(4096, CLASSES, 1))
    return model.to(settings.device, settings.dtype).eval()


def patches(image: Tensor) -> Tensor:
    """The 100 windows of 1 x 3 x 500 x 500, 100 x 3 x 227 x 227: the last reach into a margin."""
    margin = (GRID - 1) * STRIDE + PATCH - IMAGE
    windows = F.pad(image, (0, margin, 0, margin)).unfold(2, PATCH, STRIDE)
    windows = windows.unfold(3, PATCH, STRIDE)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, PATCH, PATCH)


def _run(model: nn.Module, inputs: tuple[Tensor, ...], backward: bool) -> Callable[[], object]:
    def call() -> object:
        with torch.set_grad_enabled(backward):
            for x in inputs:
                out = model(x)
                if backward:
                    out.sum().backward()
        return out

    return call


def check(model: nn.Module, image: Tensor, windows: Tensor) -> None:
    """The two ways are what they should be.

    Raises:
        ValueError: when the grid is no 10 x 10, or a window's output is not that of a run on it.
    """
    with torch.no_grad():
        whole, alone = model(image), model(windows[:1])
        batched = model(windows[:3])
    field = receptive_field(model)
    if whole.shape[2:] != (GRID, GRID) or alone.shape[2:] != (1, 1) or field.stride != STRIDE:
        raise ValueError(f"the grid is {tuple(whole.shape[2:])}, a patch {tuple(alone.shape[2:])}")
    if not torch.allclose(batched[:1], alone, rtol=1e-2, atol=1e-3 * alone.abs().max().item()):
        raise ValueError("a patch in a batch gives another result than by itself")


def measure(settings: Settings) -> dict[str, dict[str, Time]]:
    """The time of each way, by pass: "forward", and "both"."""
    model = network(settings)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 3, IMAGE, IMAGE, generator=generator)
    image = image.to(settings.device, settings.dtype)
    windows = patches(image)
    check(model, image, windows)
    ways = {
        "whole image": (image,),
        "patches, batched": windows.split(BATCH),
        "patches, one by one": windows.split(1),
    }
    found: dict[str, dict[str, Time]] = {way: {} for way in ways}
    for name, backward in (("forward", False), ("both", True)):
        calls = {way: _run(model, inputs, backward) for way, inputs in ways.items()}
        times = interleaved(calls, settings.repeats or 3, settings.device)
        for way, took in times.items():
            found[way][name] = took.own
    return found


def as_dict(found: dict[str, dict[str, Time]]) -> dict[str, Any]:
    """For a JSON file: milliseconds, and the paper's."""
    times = {w: {p: vars(t) for p, t in passes.items()} for w, passes in found.items()}
    return {"amortization": {"ms": times, "paper_ms": PAPER}}


def lines(found: dict[str, dict[str, Time]]) -> list[str]:
    """A table: each way's milliseconds, how many times the whole image's, and the paper's."""
    whole = found["whole image"]
    result = [
        f"AlexNet, {IMAGE} x {IMAGE} pixels, {GRID} x {GRID} outputs; milliseconds (times the "
        "whole image's); the paper's on a K40c",
        f"{'':20}{'forward':>18}{'and backward':>18}{'paper: forward':>18}{'backward':>14}",
    ]
    for way, passes in found.items():
        cells = [
            f"{took.median:.0f} ({took.median / whole[name].median:.1f}x)"
            for name, took in passes.items()
        ]
        for name in ("forward", "backward"):
            time = PAPER[way].get(name)
            base = PAPER["whole image"][name]
            cells.append("-" if time is None else f"{time:.0f} ({time / base:.1f}x)")
        result.append(f"{way:20}{cells[0]:>18}{cells[1]:>18}{cells[2]:>18}{cells[3]:>14}")
    return result
