"""Which network a file is for: its names and shapes compared with every network of the table."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import WeightsError
from ..weights import Family, WeightsFile
from .base import FCN, Shape
from .table import MODELS, build, unfilled
from .vgg import AT_ONCE_SCALES

# The layers whose channels are the classes.
SCORES = re.compile(r"score[^.]*\.|(aux_)?classifier\.4\.|(decode|auxiliary)_head\.conv_seg\.")
# Optional scores.
_AUXILIARY = {"aux_classifier.4.weight", "auxiliary_head.conv_seg.weight"}


def is_classifier(family: Family) -> bool:
    """Whether a file has a trunk only: no scores of a segmentation network."""
    return not family.network and not any(SCORES.match(name) for name in family.names.values())


def fits(stored: Shape, shape: Shape) -> bool:
    """Whether two shapes agree, up to axes of length 1 or a flattened input.

    Fully connected layers hold O x C·h·w for O x C x h x w; Caffe's oldest files have four axes
    everywhere, (1, 1, 1, N) for a vector.
    """
    flat = (*shape[:1], math.prod(shape[1:]))
    there, *ours = [[n for n in axes if n != 1] for axes in (stored, shape, flat)]
    return there in ours


def fits_other_classes(key: str, stored: Shape, shape: Shape) -> bool:
    """Whether scores would fit if the network had as many classes as the file."""
    return bool(SCORES.match(key) and stored) and fits(stored, (stored[0], *shape[1:]))


def shapes_of(name: str, options: Mapping[str, Any]) -> dict[str, Shape]:
    """The shapes of a network's tensors, made with the options that it has."""
    with unfilled():
        state = build(name, None, MODELS[name].accepts(options)).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def alike(file: WeightsFile, family: Family) -> list[str]:
    """The networks that share most tensors with a file; several if only their data sets differ.

    WeightsError if the file does not share half of its layers with any network.
    """
    stored = {name: file.tensors[key].shape for key, name in family.names.items()}
    shares: dict[str, float] = {}
    # Networks of one class name their layers alike.
    strangers: set[Callable[..., FCN]] = set()
    kind = None
    for name, row in MODELS.items():
        if row.make in strangers or kind not in (None, row.make):
            continue
        own = shapes_of(name, family.options)
        both = own.keys() & stored.keys()
        if all(map(SCORES.match, both)):
            strangers.add(row.make)
        same = sum(
            fits(stored[key], own[key]) or fits_other_classes(key, stored[key], own[key])
            for key in both
        )
        if 2 * same >= min(len(own), len(stored)) > 0:
            shares[name] = same / len(own.keys() | stored.keys())
        if same == len(own):
            kind = row.make
    if not shares:
        raise _unknown(file)
    return [name for name, share in shares.items() if share == max(shares.values())]


def identify(file: WeightsFile, family: Family) -> tuple[str, dict[str, Any]]:
    """The name and options (beyond the family's) of a file's network, by its layers' shapes.

    WeightsError if it is ambiguous; the message names the possible networks.
    """
    if family.network:
        return family.network, {}
    names = alike(file, family)
    if is_classifier(family):
        raise WeightsError(
            f"{file.path}: {family.title} has no scores of a segmentation network; choose one "
            f"for it, as create_model({names[0]!r}, weights_backbone=...) or fcnfast convert "
            "--model NAME"
        )
    keys = family.keys
    # The number of classes decides between data sets; any other number means the table's first.
    score = next(key for key in shapes_of(names[0], family.options) if SCORES.match(key))
    classes = file.tensors[keys[score]].shape[0] if score in keys else 0
    wanted = {MODELS[name].classes for name in names} & {classes} or {MODELS[names[0]].classes}
    names = [name for name in names if MODELS[name].classes in wanted]
    if (scales := scales_in(file, family)) is not None:
        names = [n for n in names if ("at_once" in MODELS[n].fixed) == bool(scales)] or names
    if len(names) > 1:
        raise WeightsError(
            f"{file.path}: of {' or '.join(names)}, which have the same layers: choose with "
            "create_model(name, weights=...) or fcnfast convert --model NAME"
        )
    options = {} if _AUXILIARY & keys.keys() else {"aux_loss": False}
    return names[0], MODELS[names[0]].accepts(options)


def scales_in(file: WeightsFile, family: Family) -> dict[str, float] | None:
    """How a file's FCN-8s multiplies its skips: {} if trained in stages; None: it is not shown."""
    layers = {tap: family.keys.get(f"scale_{tap}.weight") for tap in AT_ONCE_SCALES}
    values = {tap: file.tensors[key].read() for tap, key in layers.items() if key is not None}
    if values or file.format in ("Caffe", "HDF5"):  # where a scale is a layer
        return {tap: _constant(value.flatten().tolist()) for tap, value in values.items()}
    arch, row = file.notes.get("arch"), MODELS.get(family.network)
    if arch in ("FCN8s", "FCN8sAtOnce"):  # classes of pytorch-fcn
        return AT_ONCE_SCALES if arch == "FCN8sAtOnce" else {}
    return None if row is None else AT_ONCE_SCALES if "at_once" in row.fixed else {}


def _constant(scales: list[float]) -> float:
    """The value that all have; NaN if there is none."""
    same = bool(scales) and math.isclose(min(scales), max(scales), rel_tol=1e-6)
    return min(scales) if same else math.nan


def _unknown(file: WeightsFile) -> WeightsError:
    """The error for layers of no known network: some of their names, and the nearest network."""
    shapes = Counter(stored.shape for stored in file.tensors.values())
    shared: dict[str, tuple[float, int, int]] = {}
    for name in MODELS:
        own = Counter(shapes_of(name, {}).values())
        common = sum((own & shapes).values())
        shared[name] = common / sum((own | shapes).values()), common, sum(own.values())
    nearest = max(shared, key=lambda name: shared[name])
    keys = ", ".join(map(repr, list(file.tensors)[:4]))
    _, common, count = shared[nearest]
    return WeightsError(
        f"{file.path}: its layers ({keys}, ...) match no network that fcnfast knows; the nearest "
        f"is {nearest}: {common} of its {count} tensors have the shape of one in the file"
    )
