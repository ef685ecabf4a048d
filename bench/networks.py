"""Suites of whole networks: the paper's patches, and other people's networks with `fuse`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import benchmark

from bench.cases import VOID
from bench.measure import Call, Settings, interleaved, peak_bytes
from fcnfast.lazy import fuse, unfuse
from fcnfast.models.alexnet import alexnet
from fcnfast.theory import receptive_field

# Amortization: pixels, the grid of outputs, and patches of one run, as the paper batches them.
IMAGE, PATCH, STRIDE, GRID, TOGETHER = 500, 227, 32, 10, 20
# Milliseconds on a K40c (section 3.1, and its footnote for a patch alone).
PAPER = {
    "whole image": {"forward": 22.0, "backward": 37.0},
    "patches, batched": {"forward": 120.0},
    "patches, one by one": {"forward": 540.0, "backward": 240.0},
}


class Disagreement(Exception):
    """Two ways do not give the same."""


def patches(image: Tensor) -> Tensor:
    """The 100 windows of 1 x 3 x 500 x 500, 100 x 3 x 227 x 227: the last reach into a margin."""
    margin = (GRID - 1) * STRIDE + PATCH - IMAGE
    windows = F.pad(image, (0, margin, 0, margin)).unfold(2, PATCH, STRIDE)
    windows = windows.unfold(3, PATCH, STRIDE)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, PATCH, PATCH)


def _pass(model: nn.Module, inputs: tuple[Tensor, ...], backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        for x in inputs:
            out = model(x)
            if backward:
                out.sum().backward()


def check(model: nn.Module, image: Tensor, windows: Tensor) -> None:
    """Disagreement unless the grid is 10 x 10, and a window's output that of a run on it."""
    with torch.no_grad():
        whole, alone, batched = model(image), model(windows[:1]), model(windows[:3])
    stride = receptive_field(model).stride
    if whole.shape[2:] != (GRID, GRID) or alone.shape[2:] != (1, 1) or stride != STRIDE:
        raise Disagreement(
            f"the grid is {tuple(whole.shape[2:])}, a patch {tuple(alone.shape[2:])}"
        )
    if not torch.allclose(batched[:1], alone, rtol=1e-2, atol=1e-3 * alone.abs().max().item()):
        raise Disagreement("a patch in a batch gives another result than by itself")


def amortization(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Section 3.1 of the paper: one whole image against its patches, each a run of its own.

    AlexNet gives a 10 x 10 grid of outputs for a 500 x 500 image. Patch by patch these are 100
    windows of 227 x 227, 32 pixels apart, which share most of their work. (The values differ, since
    layers pad: a window with zeros, a whole image with its own pixels.) Yields the table, and for
    the JSON file the milliseconds of each way by pass, and the paper's.
    """
    torch.manual_seed(0)
    layers = alexnet("caffe", padding=0, fc6_padding=0, dropout=0.0)
    model = nn.Sequential(*layers.values(), nn.Conv2d(4096, 1000, 1))
    model = model.to(settings.device, settings.dtype).eval()
    image = torch.randn(1, 3, IMAGE, IMAGE).to(settings.device, settings.dtype)
    windows = patches(image)
    check(model, image, windows)
    inputs = dict(zip(PAPER, ((image,), windows.split(TOGETHER), windows.split(1)), strict=True))
    found: dict[str, dict[str, Any]] = {way: {} for way in inputs}
    for name, backward in (("forward", False), ("both", True)):
        calls = {way: partial(_pass, model, x, backward) for way, x in inputs.items()}
        for way, took in interleaved(calls, settings.repeats or 3).items():
            found[way][name] = took
    header = ("forward", "and backward", "paper: forward", "backward")
    lines = [
        f"AlexNet, {IMAGE} x {IMAGE} pixels: milliseconds (times the whole image's); paper: a K40c",
        " " * 20 + "".join(f"{word:>18}" for word in header),
        *(_line(way, found) for way in found),
    ]
    yield "\n".join(lines), {"ms": found, "paper_ms": PAPER}


def _line(way: str, found: dict[str, dict[str, Any]]) -> str:
    """Milliseconds, how many times the whole image's, and the paper's."""
    whole = "whole image"
    times = [(found[way][n]["median"], found[whole][n]["median"]) for n in ("forward", "both")]
    times += [(PAPER[way].get(n), PAPER[whole][n]) for n in ("forward", "backward")]
    cells = ["-" if time is None else f"{time:.0f} ({time / base:.1f}x)" for time, base in times]
    return f"{way:20}" + "".join(f"{cell:>18}" for cell in cells)


# Interop: pixels, images, numbers of classes.
SIZE, BATCH, CLASSES = 512, 4, (150, 21)


def segformer(classes: int) -> nn.Module:
    """SegFormer-B0 (transformers), its logits resized to the images as in its own loss."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    class Resized(nn.Module):  # a hook would resize where `fuse` no longer sees it
        def __init__(self) -> None:
            super().__init__()
            self.model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes))

        def forward(self, images: Tensor) -> Tensor:
            logits = self.model(images).logits
            return F.interpolate(logits, size=images.shape[-2:], mode="bilinear")

    return Resized()


def fcn(classes: int) -> nn.Module:
    """fcn_resnet50 (torchvision)."""
    from torchvision.models.segmentation import fcn_resnet50

    model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=classes)
    model.register_forward_hook(lambda module, images, output: output["out"])
    return model


NETWORKS = {"SegFormer-B0": segformer, "FCN-ResNet50": fcn}


def _step(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    model.zero_grad()
    loss = F.cross_entropy(model(images), target, ignore_index=VOID)
    loss.backward()
    return loss.detach()


@torch.no_grad()
def _validation(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    logits = model(images)
    loss = F.cross_entropy(logits, target, ignore_index=VOID)
    return loss + (logits.max(1).indices == target).float().mean()


@torch.no_grad()
def _argmax(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    return model(images).argmax(1)


@torch.no_grad()
def _max(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    return model(images).max(1).indices


TASKS = {
    "training step": {"plain": _step, "fused": _step},
    "validation": {"plain": _validation, "fused": _validation},
    "labels": {"argmax": _argmax, "max": _max, "fused": _argmax},
}


def _call(way: str, task: Callable[..., Tensor], model: nn.Module, *inputs: Tensor) -> Tensor:
    (fuse if way == "fused" else unfuse)(model)
    torch.manual_seed(1)  # dropout
    return task(model, *inputs)


def _agree(ours: Tensor, other: Tensor) -> bool:
    """Two losses, or two label maps at 99.9 % of the pixels."""
    if ours.dim() == 0:
        return bool(torch.isclose(ours, other, rtol=1e-3))
    return float((ours == other).float().mean()) > 0.999


def _measured(calls: dict[str, Call], settings: Settings) -> dict[str, dict[str, float]]:
    """Of each way seconds of the clock and of the processor, in turns, and peak bytes."""
    results = {name: run() for name, run in calls.items()}
    if not all(_agree(results["fused"], other) for other in results.values()):
        raise Disagreement(f"{', '.join(calls)} do not agree")
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(settings.repeats or 3):
        for name, run in calls.items():
            clock, processor = benchmark.timer(), time.process_time()
            run()
            took[name].append((benchmark.timer() - clock, time.process_time() - processor))
    found = {}
    for name, run in calls.items():
        seconds, processor_seconds = map(median, zip(*took[name], strict=True))
        peak = peak_bytes(run, settings.device)
        found[name] = {"s": seconds, "cpu_s": processor_seconds, "peak_bytes": peak}
    return found


def _ways(found: dict[str, dict[str, float]]) -> str:
    cells = [
        f"{name} {way['s']:.2f} ({way['cpu_s']:.2f}) {way['peak_bytes'] / 2**20:.0f} MiB"
        for name, way in found.items()
    ]
    others = [way for name, way in found.items() if name != "fused"]
    ratios = [value / min(o[key] for o in others) for key, value in found["fused"].items()]
    return "; ".join([*cells, "{:.2f} ({:.2f}) {:.2f}".format(*ratios)])


def interop(settings: Settings) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Other people's networks with random weights, with and without `fcnfast.fuse`.

    Each way is a spelling that users have; "labels" has two without fcnfast. Yields lines of the
    table, and all rows so far for the JSON file.
    """
    rows: list[dict[str, Any]] = []
    what = "seconds (of processor time) and peak memory, and fused over the best other way"
    yield f"batch {BATCH}, {SIZE} x {SIZE}: {what}", rows
    for (name, build), classes in product(NETWORKS.items(), CLASSES):
        torch.manual_seed(0)
        model = build(classes).to(settings.device, settings.dtype)
        # Smooth with some noise, as photos are: on noise no two neighbors share a label.
        images = F.interpolate(torch.randn(BATCH, 3, 8, 8), size=SIZE, mode="bicubic")
        images = (images + 0.1 * torch.randn_like(images)).to(settings.device, settings.dtype)
        target = torch.randint(0, classes, (BATCH, SIZE, SIZE), device=settings.device)
        for task, ways in TASKS.items():
            model.train(task == "training step")
            calls = {w: partial(_call, w, f, model, images, target) for w, f in ways.items()}
            found = _measured(calls, settings)
            rows.append({"network": name, "classes": classes, "task": task, **found})
            yield f"{f'{name}, {classes} classes, {task}':42}{_ways(found)}", rows
