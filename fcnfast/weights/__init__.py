"""Weights on disk: reading and writing files, recognizing their family, and the bundled file."""

from .families import Family, recognize
from .files import (
    PathLike,
    WeightsFile,
    WeightsMeta,
    bundled_path,
    open_weights,
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
    "recognize",
    "write_weights",
]
