"""What became of a weights file: which of its tensors a network took."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .base import Preprocessing

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """What `fcnfast.load_weights` did.

    Attributes:
        path: the file.
        format: "safetensors", "PyTorch", "Caffe" or "HDF5".
        family: whose weights they are.
        loaded: the network's tensors that the file gave, by the network's names.
        reshaped: those of them that had another shape in the file, as fully connected layers have:
            the file's shape and the network's.
        missing: the network's tensors that keep their starting values.
        unexpected: the file's tensors, by its names, that mean nothing to this network.
        dropped: those that do, but that were not used, and why.
        preprocessing: what ``model.preprocess`` does now.
        notes: what may make the weights worse than where they come from; warnings say it, too.
    """

    path: Path
    format: str
    family: str
    loaded: tuple[str, ...]
    reshaped: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    dropped: dict[str, str] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.family} ({self.format})"]
        lines.append(f"  loaded      {len(self.loaded)} tensors")
        lines += [f"  reshaped    {key}: {a} to {b}" for key, (a, b) in self.reshaped.items()]
        lines += [f"  missing     {key}: as it was" for key in self.missing]
        lines += [f"  unexpected  {key}" for key in self.unexpected]
        lines += [f"  dropped     {key}: {why}" for key, why in self.dropped.items()]
        if self.preprocessing is not None:
            p = self.preprocessing
            mean, std = (", ".join(f"{v:g}" for v in values) for values in (p.mean, p.std))
            lines.append(f"  input       {p.order.upper()} * {p.scale:g}, mean {mean}, std {std}")
        lines += [f"  note        {note}" for note in self.notes]
        return "\n".join(lines)
