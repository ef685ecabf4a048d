"""The interop suite of the benchmark, on small pictures."""

import torch

from bench import interop
from bench.measure import Settings


def test_the_suite(monkeypatch):
    monkeypatch.setattr(interop, "SIZE", 64)
    monkeypatch.setattr(interop, "BATCH", 2)
    monkeypatch.setattr(interop, "CLASSES", (5,))
    monkeypatch.setattr(interop, "NETWORKS", {"SegFormer-B0": interop.segformer})
    settings = Settings(torch.device("cpu"), torch.float32, 1)
    lines, (*_, rows) = zip(*interop.measure(settings), strict=True)
    assert [row["task"] for row in rows] == ["training step", "validation", "labels"]
    for row, line in zip(rows, lines, strict=True):
        assert row["fused"]["peak_bytes"] > 0 and row["fused"]["s"] > 0
        assert row["network"] in line and "MiB" in line
