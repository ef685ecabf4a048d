"""Prints the README's tables of speed and memory from what was measured, as Markdown.

    python bench/run.py --suite quick cityscapes --json bench/results/cpu.json
    python docs/speed.py bench/results/cpu.json                 # and files of a GPU, if there are

Of what no GPU has measured the table says so.
"""

import json
import sys
from pathlib import Path

USUAL, WORST = "smooth, blobs", "noisy, random"
# What the table shows: op, variant, content, pass, and in words.
SHOWN = (
    ("upsample_cross_entropy", "", USUAL, "forward+backward", "loss and gradient"),
    ("upsample_cross_entropy", "", WORST, "forward+backward", "the same, of noise"),
    ("upsample_argmax", "", USUAL, "forward", "label map"),
    ("upsample_argmax", "", WORST, "forward", "the same, of noise"),
    ("upsample_confusion", "", USUAL, "forward", "confusion matrix"),
    ("upsample", "resize", USUAL, "forward+backward", "upsampling and its gradient"),
    ("upsample", "deconv", USUAL, "forward+backward", "the same, as a deconvolution"),
    ("deconv", "learned", USUAL, "forward+backward", "learned deconvolution, both gradients"),
    ("upsample_crop_add", "deconv x 2", USUAL, "forward+backward", "a fusion step of an FCN"),
)


def digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def cells(row: dict) -> list[str]:
    """Ours, every peer with its ratio, memory."""
    entries = row["entries"]
    ours, eager = entries["fcnfast"], entries["eager"]
    peers = [
        f"{name} {digits(entry['ratio'])}"
        for name, entry in entries.items()
        if name != "fcnfast" and entry["ratio"]
    ]
    peaks = " / ".join(digits(entry["peak_bytes"] / 1e6) for entry in (ours, eager))
    return [f"{digits(ours['time_ms']['median'])} ms", ", ".join(peers), f"{peaks} MB"]


def table(measured: dict) -> list[str]:
    """One measurement as a table, a line for each of SHOWN at each case."""
    gpu = measured["device"] == "cuda"
    found = {}
    for row in measured["rows"]:
        key = (row["op"], row["variant"], row["content"], row["pass"])
        found.setdefault(json.dumps(row["case"]), {})[key] = row
    head = ["case", "what", "fcnfast", "times as long", "peak memory, fcnfast / eager"]
    lines = ["| " + " | ".join(head + ["of copies"] * gpu) + " |"]
    lines.append("|---" * (len(head) + gpu) + "|")
    for case, rows in found.items():
        about = json.loads(case)
        (h, w), s = about["in_size"], about["stride"]
        size = f"{about['images']} x {about['classes']} x {h} x {w} to {h * s} x {w * s}"
        name = f"{about['data_set']}: {size}"
        for *key, words in SHOWN:
            row = rows.get(tuple(key))
            if row and row["entries"]["fcnfast"]["time_ms"]:
                share = [f"{row['of_copy']:.0%}"] if gpu else []
                lines.append("| " + " | ".join([name, words, *cells(row), *share]) + " |")
                name = ""
    return lines


def main(*paths: str) -> None:
    """Print the tables of the files."""
    measured = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    for each in measured:
        about = f"{each['device_name']}, torch {each['torch']}, {each['dtype']}"
        print(f"{about}, commit {str(each['commit'])[:12]}:\n", *table(each), "", sep="\n")
    if not any(each["device"] == "cuda" for each in measured):
        print("Times on a GPU: not measured.\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
