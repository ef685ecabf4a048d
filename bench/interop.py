"""Other people's networks with and without `fcnfast.fuse`: a step, validation, labels.

SegFormer-B0 (transformers) and FCN-ResNet50 (torchvision) with random weights, 21 and 150 classes,
512 x 512. Each way is a spelling that users have; "labels" has two without fcnfast, since
``max(1).indices`` is several times as fast on a CPU as ``argmax(1)``.
"""

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
from bench.measure import Call, Settings, peak_bytes
from fcnfast.lazy import fuse, unfuse

SIZE, BATCH = 512, 4
CLASSES = (150, 21)
HEADER = (
    f"batch {BATCH}, {SIZE} x {SIZE}: seconds (of processor time) and peak memory, and fused over "
    "the best other way"
)


def segformer(classes: int) -> nn.Module:
    """SegFormer-B0, its logits resized to the images as in its own loss."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes))

    class Resized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            logits = self.model(images).logits
            return F.interpolate(logits, size=images.shape[-2:], mode="bilinear")

    return Resized()


def fcn(classes: int) -> nn.Module:
    """torchvision's fcn_resnet50."""
    from torchvision.models.segmentation import fcn_resnet50

    model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=classes)
    model.register_forward_hook(lambda module, args, output: output["out"])
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


def _run(way: str, task: Callable[..., Tensor], model: nn.Module, *inputs: Tensor) -> Tensor:
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
        raise ValueError(f"{', '.join(calls)} do not agree")
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


def _line(found: dict[str, dict[str, float]]) -> str:
    cells = [
        f"{name} {way['s']:.2f} ({way['cpu_s']:.2f}) {way['peak_bytes'] / 2**20:.0f} MiB"
        for name, way in found.items()
    ]
    others = [way for name, way in found.items() if name != "fused"]
    ratios = [value / min(o[key] for o in others) for key, value in found["fused"].items()]
    return "; ".join([*cells, "{:.2f} ({:.2f}) {:.2f}".format(*ratios)])


def measure(settings: Settings) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A line for each network, number of classes and task; and all rows so far, for the JSON file.

    Raises:
        ImportError: without transformers or torchvision.
        ValueError: where two ways do not agree.
    """
    rows = []
    for (name, build), classes in product(NETWORKS.items(), CLASSES):
        torch.manual_seed(0)
        model = build(classes).to(settings.device, settings.dtype)
        # Smooth with some noise, as photos are: on noise no two neighbors share a label.
        images = F.interpolate(torch.randn(BATCH, 3, 8, 8), size=SIZE, mode="bicubic")
        images = (images + 0.1 * torch.randn_like(images)).to(settings.device, settings.dtype)
        target = torch.randint(0, classes, (BATCH, SIZE, SIZE), device=settings.device)
        for task, ways in TASKS.items():
            model.train(task == "training step")
            calls = {w: partial(_run, w, f, model, images, target) for w, f in ways.items()}
            found = _measured(calls, settings)
            rows.append({"network": name, "classes": classes, "task": task, **found})
            yield f"{f'{name}, {classes} classes, {task}':42}{_line(found)}", rows
