"""Prints the README's table of speed and memory from a benchmark's figures, as Markdown.

python bench/run.py --suite quick cityscapes ade20k --json bench/results/cpu.json
python docs/speed.py bench/results/cpu.json
"""

import json
import sys
from pathlib import Path

ALL, ONE = ("VOC", "ADE20K", "Cityscapes"), ("VOC",)
# What the table shows: op, variant, pass, in words, and data sets.
SHOWN = (
    ("upsample_cross_entropy", "", "forward+backward", "loss and gradient", ALL),
    ("upsample_argmax", "", "forward", "label map", ALL),
    ("upsample_confusion", "", "forward", "confusion matrix", ONE),
    (
        *("upsample", "deconv", "forward+backward"),
        *("`upsample`, stride 8 deconvolution, and its gradient", ONE),
    ),
    ("deconv", "learned", "forward+backward", "learned `deconv` and its gradients", ONE),
    ("upsample_crop_add", "deconv x 2", "forward+backward", "a fusion step and its gradients", ONE),
)


def digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def cells(row: dict) -> list[str]:
    """The case, our time, the fastest peer's, their ratio, and the memory of both."""
    case, entries = row["case"], row["entries"]
    (h, w), stride = case["in_size"], case["stride"]
    ours = entries["fcnfast"]
    peers = [entry for name, entry in entries.items() if name != "fcnfast" and entry["time_ms"]]
    peer = min(peers, key=lambda entry: entry["time_ms"]["median"])
    times = [entry["time_ms"]["median"] for entry in (ours, peer)]
    memory = " / ".join(digits(entry["peak_bytes"] / 1e6) for entry in (ours, peer))
    name = f"{case['data_set']}: {case['classes']} x {h} x {w} to {h * stride} x {w * stride}"
    return [name, *(f"{digits(t)} ms" for t in times), digits(times[1] / times[0]), f"{memory} MB"]


def main(path: Path) -> None:
    """Print the table."""
    print("| op | case | fcnfast | plain torch | times | peak memory |\n|---|---|---|---|---|---|")
    measured = json.loads(path.read_text())["rows"]
    for op, variant, passes, words, data_sets in SHOWN:
        wanted, seen = (op, variant, "smooth, blobs", passes), set()
        for row in measured:
            found = (row["op"], row["variant"], row["content"], row["pass"])
            data_set = row["case"]["data_set"]
            if found == wanted and data_set in data_sets and data_set not in seen:
                print("|", " | ".join(["" if seen else words, *cells(row)]), "|")
                seen.add(data_set)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
