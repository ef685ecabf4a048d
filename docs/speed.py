"""Prints the README's table of speed and memory from the figures of benchmarks, as Markdown.

python bench/run.py --suite quick cityscapes ade20k --json bench/results/cpu.json
python docs/speed.py bench/results/cpu.json bench/results/cpu-avx512.json
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


def times(row: dict) -> list[str]:
    """The times of fcnfast and of its fastest peer, and their ratio."""
    ours, peer = (entry["time_ms"]["median"] for entry in both(row))
    return [f"{digits(ours)} / {digits(peer)}", digits(peer / ours)]


def both(row: dict) -> tuple[dict, dict]:
    """The entries of fcnfast and of its fastest peer."""
    entries = row["entries"]
    peers = [entry for name, entry in entries.items() if name != "fcnfast" and entry["time_ms"]]
    return entries["fcnfast"], min(peers, key=lambda entry: entry["time_ms"]["median"])


def shown(measured: dict) -> dict[tuple, dict]:
    """The rows of the table, by op, variant and data set: of each data set the first."""
    rows: dict[tuple, dict] = {}
    for op, variant, passes, words, data_sets in SHOWN:
        wanted = (op, variant, "smooth, blobs", passes)
        for row in measured["rows"]:
            data_set = row["case"]["data_set"]
            found = (row["op"], row["variant"], row["content"], row["pass"])
            if found == wanted and data_set in data_sets:
                rows.setdefault((words, data_set), row)
    return rows


def main(paths: list[str]) -> None:
    """Print the table: times of each file, memory of the first."""
    measured = [json.loads(Path(path).read_text()) for path in paths]
    header = ["op", "case"]
    for one in measured:
        header += [f"{one['device_name']}: fcnfast / torch, ms", "speedup"]
    header.append("peak: fcnfast / torch, MB")
    print("|", " | ".join(header), "|\n" + "|---" * len(header) + "|")
    tables, before = [shown(one) for one in measured], None
    for (words, data_set), row in tables[0].items():
        case = row["case"]
        (h, w), stride = case["in_size"], case["stride"]
        name = f"{data_set}: {case['classes']} x {h} x {w} to {h * stride} x {w * stride}"
        cells = [words if words != before else "", name]
        for table in tables:
            cells += times(table[words, data_set])
        memory = " / ".join(digits(entry["peak_bytes"] / 1e6) for entry in both(row))
        print("|", " | ".join([*cells, memory]), "|")
        before = words


if __name__ == "__main__":
    main(sys.argv[1:])
