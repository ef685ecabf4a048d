"""Section 3 of the paper, for any torch network: what units see, dense outputs, sampled losses."""

from .deconvolutions import stacked_deconvolutions
from .dense import convolutionalize, rarefy, shift_and_stitch
from .fields import Layer, Trace, receptive_field, trace
from .sampling import sample_patches

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
