"""The interop suite of the benchmark, on small pictures."""

import torch

from bench import networks
from bench.measure import Settings


def test_the_suite(monkeypatch):
    monkeypatch.setattr(networks, "SIZE", 64)
    monkeypatch.setattr(networks, "BATCH", 2)
    monkeypatch.setattr(networks, "CLASSES", (50,))
    monkeypatch.setattr(networks, "NETWORKS", {"SegFormer-B0": networks.segformer})
    settings = Settings(torch.device("cpu"), torch.float32, 1)
    (_, *lines), (*_, rows) = zip(*networks.interop(settings), strict=True)
    assert [row["task"] for row in rows] == ["training step", "validation", "labels"]
    plain, fused = (rows[0][way]["peak_bytes"] for way in ("plain", "fused"))
    assert fused < 0.5 * plain  # the resize is one that `fuse` sees
    for row, line in zip(rows, lines, strict=True):
        assert row["fused"]["peak_bytes"] > 0 and row["fused"]["s"] > 0
        assert row["network"] in line and "MiB" in line
