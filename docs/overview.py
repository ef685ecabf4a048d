"""Makes docs/overview.png, the README's picture, from the demo scene and a benchmark's figures.

    python bench/run.py --suite quick ade20k cityscapes --json bench/results/cpu.json
    python docs/overview.py bench/results/cpu.json

Needs the `plots` extra.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from fcnfast import CAMVID, Segmenter
from fcnfast.data import demo_scene

OURS, PLAIN = "#1f6feb", "#9aa4af"
SHOWN = {
    "upsample_cross_entropy": "loss and gradient",
    "upsample_argmax": "label map",
}


def bars(axes, rows, measure, unit, title):
    """Pairs of bars, fcnfast's and plain torch's, one pair a row; plain torch's length is 1."""
    for place, (name, ours, plain) in enumerate((n, measure(o), measure(p)) for n, o, p in rows):
        axes.barh(place - 0.18, 1, 0.34, color=PLAIN)
        axes.barh(place + 0.18, ours / plain, 0.34, color=OURS)
        said = f"{ours:.3g} {unit}, 1/{plain / ours:.1f}"
        axes.text(ours / plain + 0.02, place + 0.18, said, va="center")
        axes.text(0.98, place - 0.18, f"{plain:.3g} {unit}", va="center", ha="right", color="white")
        axes.text(-0.02, place, name, va="center", ha="right")
    axes.set(xlim=(0, 1.15), yticks=[], xticks=[0, 1], title=title)
    axes.set_xticklabels(["0", "plain torch"])
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)


def figures(measured):
    """(what, fcnfast's entry, the fastest plain torch's) of the rows that are shown, one a case."""
    rows = {}
    for row in measured["rows"]:
        trained = row["pass"] == "forward+backward" or row["op"] == "upsample_argmax"
        case = row["case"]
        if row["op"] in SHOWN and trained and row["content"] == "smooth, blobs":
            name = f"{SHOWN[row['op']]}\n{case['data_set']}, {case['classes']} classes"
            peers = [e for peer, e in row["entries"].items() if peer != "fcnfast" and e["time_ms"]]
            fastest = min(peers, key=lambda e: e["time_ms"]["median"])
            rows.setdefault(name, (name, row["entries"]["fcnfast"], fastest))
    return [row for name, row in rows.items() if "crop" not in name]


def main(path):
    """Draw and write the picture."""
    scene, truth, _ = demo_scene()
    result = Segmenter(device="cpu")(scene)
    colors = np.array(CAMVID.palette, dtype=np.uint8)
    figure = plt.figure(figsize=(13, 7.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    pictures = {
        "a drawn street scene": scene,
        "its labels": colors[truth],
        "what the bundled network sees": colors[result.labels],
    }
    seen = np.union1d(truth[truth < len(CAMVID.names)], result.labels)
    patches = [Patch(color=colors[i] / 255, label=CAMVID.names[i]) for i in seen]
    above.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    for axes, (title, picture) in zip(above.subplots(1, 3), pictures.items(), strict=True):
        axes.imshow(picture)
        axes.set_title(title)
        axes.axis("off")
    measured = json.loads(path.read_text())
    rows = figures(measured)
    memory, time = below.subplots(1, 2)
    title = "peak memory, fcnfast against the fastest plain torch"
    bars(memory, rows, lambda e: e["peak_bytes"] / 1e6, "MB", title)
    bars(time, rows, lambda e: e["time_ms"]["median"], "ms", f"time, {measured['device_name']}")
    figure.savefig(Path(__file__).with_name("overview.png"), dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
