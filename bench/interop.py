"""Other people's networks with and without `fcnfast.fuse`: a step, validation, labels.

SegFormer-B0 (transformers) and FCN-ResNet50 (torchvision) with random weights, 21 and 150 classes,
512 x 512. Each way is a spelling that users have; "labels" has two without fcnfast, since
``max(1).indices`` is several times as fast on a CPU as ``argmax(1)``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.measure import Settings
from bench.timing import peak_bytes
from fcnfast.lazy import fuse, unfuse

SIZE, BATCH = 512, 4
CLASSES = (150, 21)
VOID = 255


@dataclass
class Way:
    """One way of doing a task: seconds of the clock and of the processor, and peak bytes."""

    run: Callable[[], object]
    clock: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int = 0


def pictures() -> Tensor:
    """Smooth, with some noise, as photos are: on noise alone no two neighbors share a label."""
    smooth = F.interpolate(torch.randn(BATCH, 3, 8, 8), size=SIZE, mode="bicubic")
    return smooth + 0.1 * torch.randn_like(smooth)


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
    right = logits.max(1).indices == target
    return loss + right.float().mean()


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


def _call(way: str, task: Callable[..., Tensor], *arguments: Any) -> Callable[[], object]:
    def run() -> Tensor:
        model = arguments[0]
        (fuse if way == "fused" else unfuse)(model)
        torch.manual_seed(1)  # dropout
        return task(*arguments)

    return run


def _agree(found: dict[str, Tensor]) -> bool:
    """All ways give the fused one's loss, or its labels at 99.9 % of the pixels."""
    ours = found["fused"]
    if ours.dim() == 0:
        return all(bool(torch.isclose(ours, x, rtol=1e-3)) for x in found.values())
    return all(float((ours == x).float().mean()) > 0.999 for x in found.values())


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """One row a network, number of classes and task, each way in turn with the others.

    Raises:
        ImportError: without transformers or torchvision.
        ValueError: where two ways do not agree.
    """
    for name, build in NETWORKS.items():
        for classes in CLASSES:
            torch.manual_seed(0)
            model = build(classes).to(settings.device, settings.dtype)
            images = pictures().to(settings.device, settings.dtype)
            target = torch.randint(0, classes, (BATCH, SIZE, SIZE), device=settings.device)
            for task, ways in TASKS.items():
                model.train(task == "training step")
                calls = {w: Way(_call(w, f, model, images, target)) for w, f in ways.items()}
                yield {"network": name, "classes": classes, "task": task, **_row(calls, settings)}


def _row(ways: dict[str, Way], settings: Settings) -> dict[str, Any]:
    results: dict[str, Any] = {}

    def keep(name: str, run: Callable[[], object]) -> None:
        results[name] = run()

    for name, way in ways.items():
        way.peak = peak_bytes(partial(keep, name, way.run), settings.device)
    if not _agree(results):
        raise ValueError(f"{', '.join(ways)} do not agree")
    for _ in range(settings.repeats or 3):
        for way in ways.values():
            clock, cpu = time.perf_counter(), time.process_time()
            way.run()
            if settings.device.type == "cuda":
                torch.cuda.synchronize()
            way.clock.append(time.perf_counter() - clock)
            way.cpu.append(time.process_time() - cpu)
    return {
        name: {"s": median(way.clock), "cpu_s": median(way.cpu), "peak_bytes": way.peak}
        for name, way in ways.items()
    }


HEADER = (
    f"batch {BATCH}, {SIZE} x {SIZE}: seconds (of processor time) and peak memory, and fused over "
    "the best other way"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    ways = {k: v for k, v in row.items() if isinstance(v, dict)}
    ours = ways["fused"]
    cells = [
        f"{name} {way['s']:.2f} ({way['cpu_s']:.2f}) {way['peak_bytes'] / 2**20:.0f} MiB"
        for name, way in ways.items()
    ]
    ratios = [
        ours[key] / min(way[key] for name, way in ways.items() if name != "fused")
        for key in ("s", "cpu_s", "peak_bytes")
    ]
    last = "{:.2f} ({:.2f}) {:.2f}".format(*ratios)
    head = f"{row['network']}, {row['classes']} classes, {row['task']}"
    return f"{head:42}" + "; ".join([*cells, last])
