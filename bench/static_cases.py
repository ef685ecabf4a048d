"""The table of the kernels that the static gate compiles: every launcher in the forms that ship.

A family of kernels has a function that yields its cases in a few lines each (see static_case.py):
how its launcher is called on tensors without data, what one trip of its loops covers, and what it
must not exceed. Here it gets its name, which those of its cases begin with.
"""

from __future__ import annotations

from collections.abc import Collection

from bench import static_heads, static_maps
from bench.static_case import Case

FAMILIES = {
    "crop_add": static_maps.crop_add_cases,
    "upsample": static_maps.upsample_cases,
    "deconv": static_maps.deconv_cases,
    "upsample_cross_entropy": static_heads.cross_entropy_cases,
    "upsample_argmax": static_heads.argmax_cases,
    "upsample_confusion": static_heads.confusion_cases,
}


def cases(families: Collection[str] = FAMILIES.keys()) -> dict[str, Case]:
    """Every case of the families by its name."""
    return {case.name: case for family in families for case in FAMILIES[family]()}
