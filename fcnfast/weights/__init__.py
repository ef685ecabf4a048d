"""Weights on disk: files of every kind, whose they are, and the one that comes with the package."""

from .families import Family, recognize
from .files import (
    PathLike,
    WeightsFile,
    WeightsMeta,
    bundled_path,
    open_weights,
    read_weights,
    write_weights,
)
from .stored import Stored

__all__ = [
    "Family",
    "PathLike",
    "Stored",
    "WeightsFile",
    "WeightsMeta",
    "bundled_path",
    "open_weights",
    "read_weights",
    "recognize",
    "write_weights",
]
