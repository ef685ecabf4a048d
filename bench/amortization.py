"""Section 3.1 of the paper: one whole image against its patches, each a run of its own.

AlexNet gives a 10 x 10 grid of outputs for a 500 x 500 image. Patch by patch these are 100 windows
of 227 x 227, 32 pixels apart, which share most of their pixels and so most of their work. (The
values differ, because layers pad: a window with zeros, a whole image with its own pixels.)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.measure import Settings, interleaved
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
HEADER = (
    f"AlexNet, {IMAGE} x {IMAGE} pixels, {GRID} x {GRID} outputs; milliseconds (times the whole "
    f"image's); the paper's on a K40c\n{'':20}{'forward':>18}{'and backward':>18}"
    f"{'paper: forward':>18}{'backward':>18}"
)


def patches(image: Tensor) -> Tensor:
    """The 100 windows of 1 x 3 x 500 x 500, 100 x 3 x 227 x 227: the last reach into a margin."""
    margin = (GRID - 1) * STRIDE + PATCH - IMAGE
    windows = F.pad(image, (0, margin, 0, margin)).unfold(2, PATCH, STRIDE)
    windows = windows.unfold(3, PATCH, STRIDE)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, PATCH, PATCH)


def _run(model: nn.Module, inputs: tuple[Tensor, ...], backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        for x in inputs:
            out = model(x)
            if backward:
                out.sum().backward()


def check(model: nn.Module, image: Tensor, windows: Tensor) -> None:
    """The two ways are what they should be.

    Raises:
        ValueError: when the grid is not 10 x 10, or a window's output is not that of a run on it.
    """
    with torch.no_grad():
        whole, alone, batched = model(image), model(windows[:1]), model(windows[:3])
    stride = receptive_field(model).stride
    if whole.shape[2:] != (GRID, GRID) or alone.shape[2:] != (1, 1) or stride != STRIDE:
        raise ValueError(f"the grid is {tuple(whole.shape[2:])}, a patch {tuple(alone.shape[2:])}")
    if not torch.allclose(batched[:1], alone, rtol=1e-2, atol=1e-3 * alone.abs().max().item()):
        raise ValueError("a patch in a batch gives another result than by itself")


def measure(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """The table, and for the JSON file the milliseconds of each way by pass, and the paper's.

    Raises:
        ValueError: as `check`.
    """
    torch.manual_seed(0)
    layers = alexnet("caffe", padding=0, fc6_padding=0, dropout=0.0)
    model = nn.Sequential(*layers.values(), nn.Conv2d(4096, CLASSES, 1))
    model = model.to(settings.device, settings.dtype).eval()
    image = torch.randn(1, 3, IMAGE, IMAGE).to(settings.device, settings.dtype)
    windows = patches(image)
    check(model, image, windows)
    inputs = dict(zip(PAPER, ((image,), windows.split(BATCH), windows.split(1)), strict=True))
    found: dict[str, dict[str, Any]] = {way: {} for way in inputs}
    for name, backward in (("forward", False), ("both", True)):
        calls = {way: partial(_run, model, x, backward) for way, x in inputs.items()}
        for way, took in interleaved(calls, settings.repeats or 3).items():
            found[way][name] = took
    yield "\n".join(_line(way, found) for way in found), {"ms": found, "paper_ms": PAPER}


def _line(way: str, found: dict[str, dict[str, Any]]) -> str:
    """Milliseconds, how many times the whole image's, and the paper's."""
    whole = "whole image"
    times = [(found[way][n]["median"], found[whole][n]["median"]) for n in ("forward", "both")]
    times += [(PAPER[way].get(n), PAPER[whole][n]) for n in ("forward", "backward")]
    cells = ["-" if time is None else f"{time:.0f} ({time / base:.1f}x)" for time, base in times]
    return f"{way:20}" + "".join(f"{cell:>18}" for cell in cells)
