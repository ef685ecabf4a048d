"""Section 3 of the paper for any torch network: receptive fields, dense outputs, loss sampling."""

from .dense import convolutionalize, rarefy, shift_and_stitch
from .fields import Layer, Trace, receptive_field, trace
from .training import sample_patches, stacked_deconvolutions

__all__ = [
    "Layer",
    "Trace",
    "convolutionalize",
    "rarefy",
    "receptive_field",
    "sample_patches",
    "shift_and_stitch",
    "stacked_deconvolutions",
    "trace",
]
