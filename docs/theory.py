"""Draws the pictures of the pages in docs/: python docs/theory.py (needs matplotlib)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, nothing installed

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import nn

from fcnfast import create_model, ops, theory
from fcnfast.geometry import SamplingGrid

HERE = Path(__file__).resolve().parent
BLUE, ORANGE, GRAY = "#1f5fa8", "#d9730d", "#8a8f98"


def save(figure: plt.Figure, name: str) -> None:
    """Write a picture beside this file."""
    figure.savefig(HERE / name, dpi=110, bbox_inches="tight")
    plt.close(figure)
    print(HERE / name)


def fields() -> None:
    """How the field of a unit grows through VGG-16, and where unit 0 sits."""
    with torch.device("meta"):
        model = create_model("fcn8s_vgg16")
    layers = [x for x in theory.trace(model).layers if x.field and x.field != x.given]
    figure, axes = plt.subplots(figsize=(8, 4.2))
    for row, layer in enumerate(layers):
        center, size = float(layer.field.offset), layer.field.size
        color = ORANGE if layer.kind == "MaxPool2d" else BLUE
        axes.barh(row, size, left=center - size / 2, height=0.7, color=color)
        axes.plot(center, row, "|", color="white", markersize=7)
        axes.text(center + size / 2 + 6, row, f"{size}", va="center", fontsize=7)
    axes.axvspan(0, 499, color=GRAY, alpha=0.15, zorder=0)
    axes.text(480, 0.2, "image, 500 pixels", fontsize=8, color="#444444", ha="right", va="top")
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(-220, 510)
    axes.set_xlabel("pixel (unit 0 of each layer: its field, and its center)")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "fields.png")


def borders() -> None:
    """One row of scores, upsampled by 8 with either border."""
    x = torch.tensor([2.0, 1.2, 1.8, 0.6, 1.4]).view(1, 1, 1, -1)
    stride, n = 8, x.shape[-1]
    tall = x.expand(1, 1, 3, n).contiguous()  # its middle row does not fade
    zero = SamplingGrid.centers((3, n), stride, (stride - 1) / 2, (3 * stride, n * stride), "zero")
    clamp = SamplingGrid.resize((3, n), (3 * stride, n * stride))
    figure, axes = plt.subplots(figsize=(8, 2.8))
    middle = 3 * stride // 2
    pixels = range(n * stride)
    axes.plot(
        pixels,
        ops.upsample(tall, zero)[0, 0, middle],
        color=ORANGE,
        label="zero: a transposed convolution",
    )
    axes.plot(
        pixels,
        ops.upsample(tall, clamp)[0, 0, middle],
        "--",
        color=BLUE,
        label="clamp: F.interpolate",
    )
    centers = [stride * u + (stride - 1) / 2 for u in range(n)]
    axes.plot(centers, x.flatten(), "o", color="black", label="the scores", markersize=5)
    axes.set_xlabel("pixel")
    axes.set_ylim(0, 2.3)
    axes.legend(frameon=False, fontsize=8, loc="lower center")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "borders.png")


def stitched() -> None:
    """A strided network's outputs of four shifted images, and the dense output they make."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 1, 3)).eval()
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    image = (torch.hypot(rows - 15, columns - 15) < 9).float().view(1, 1, 32, 32)
    image += 0.5 * (columns > 22).view(1, 1, 32, 32)
    with torch.no_grad():
        parts = [model(image[..., a:, b:])[0, 0] for a in (0, 1) for b in (0, 1)]
        dense = theory.shift_and_stitch(model, image)[0, 0]
        rarefied = theory.rarefy(model)(image)[0, 0]
    figure, axes = plt.subplots(1, 7, figsize=(9, 1.9))
    titles = ["image", "shift 0, 0", "0, 1", "1, 0", "1, 1", "stitched", "rarefied"]
    for plot, title, picture in zip(
        axes, titles, [image[0, 0], *parts, dense, rarefied], strict=True
    ):
        plot.imshow(picture, cmap="viridis", interpolation="nearest")
        plot.set_title(f"{title}\n{picture.shape[0]} x {picture.shape[1]}", fontsize=8)
        plot.axis("off")
    save(figure, "stitched.png")


if __name__ == "__main__":
    fields()
    borders()
    stitched()
