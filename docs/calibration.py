"""Draws docs/street/calibration.png: how far a network's confidence can be believed.

    python docs/calibration.py CamVid                          # the bundled weights, on val
    python docs/calibration.py CamVid --weights W.safetensors --split train --include "0006R0*"

Needs the `plots` extra. The expected calibration error (Guo et al., arXiv 1706.04599) is over all
labeled pixels and 15 bins.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from fcnfast import Segmenter, open_dataset
from fcnfast.data import IGNORE_INDEX

BINS = 15


def counts(segmenter, dataset):
    """Pixels, their summed confidence and the right ones, by bin of the confidence."""
    totals = np.zeros((3, BINS))
    for sample in (dataset[n] for n in range(len(dataset))):
        result = segmenter(sample.image)
        labeled = sample.labels != IGNORE_INDEX
        confidence = result.confidence[labeled].astype(np.float64)
        right = (result.labels == sample.labels)[labeled]
        place = np.minimum((confidence * BINS).astype(int), BINS - 1)
        for row, weights in zip(totals, (None, confidence, right), strict=True):
            row += np.bincount(place, weights, BINS)
    return totals


def draw(pixels, confidence, accuracy, title, path):
    """The reliability diagram above, the share of the pixels in each bin below."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(5, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    edges = np.arange(BINS) / BINS
    bar = {"width": 1 / BINS, "align": "edge", "color": "#1f6feb", "edgecolor": "white"}
    above.bar(edges, accuracy, **bar)
    above.plot([0, 1], [0, 1], "--", color="#57606a", label="confidence = accuracy")
    above.plot(confidence, accuracy, ".", color="black", label="mean confidence of a bin")
    above.set(ylabel="share of right labels", title=title, xlim=(0, 1), ylim=(0, 1))
    above.legend(frameon=False)
    below.bar(edges, pixels / pixels.sum(), **bar)
    below.set(xlabel="confidence (softmax of the label)", ylabel="share of pixels")
    figure.savefig(path, dpi=100)


def main():
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("camvid", help="the data set's folder")
    parser.add_argument("--weights", help="weights file (default: the bundled one)")
    parser.add_argument("--split", default="val")
    parser.add_argument("--include", default="", help="only the pictures whose names match")
    parser.add_argument("--title", default="CamVid val")
    parser.add_argument("--output", default=Path(__file__).parent / "street" / "calibration.png")
    options = parser.parse_args()
    selected = {"include": options.include} if options.include else {}
    dataset = open_dataset("camvid", options.camvid, options.split, **selected)
    pixels, summed, right = counts(Segmenter(options.weights), dataset)
    filled = np.maximum(pixels, 1)
    confidence, accuracy = summed / filled, right / filled
    for low, *row in zip(np.arange(BINS) / BINS, pixels, confidence, accuracy, strict=True):
        if row[0]:
            share = row[0] / pixels.sum()
            print(f"{low:.2f}: {share:7.2%} of the pixels, sure {row[1]:.3f}, right {row[2]:.3f}")
    error, right, sure = (x.sum() / pixels.sum() for x in (abs(summed - right), right, summed))
    print(f"accuracy {right:.2%}, mean confidence {sure:.2%}, calibration error {error:.2%}")
    seen = pixels > 0
    confidence[~seen] = np.nan
    draw(pixels, confidence, accuracy, f"{options.title}: error {error:.1%}", options.output)


if __name__ == "__main__":
    main()
