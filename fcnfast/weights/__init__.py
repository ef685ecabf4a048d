"""Weights on disk: fcnfast's own files, and the one that comes with the package."""

from .native import WeightsMeta, bundled_path, read_weights, write_weights

__all__ = ["WeightsMeta", "bundled_path", "read_weights", "write_weights"]
