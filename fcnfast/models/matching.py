"""What of a weights file belongs where in a network, and what shows that it is of another one."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from ..weights import Family, WeightsFile
from .base import FCN
from .report import Shape
from .table import MODELS
from .vgg import AT_ONCE_SCALES

# Layers behind the trunk: a file may lack them, since they depend on the data set.
_HEADS = ("score", "upscore", "classifier", "aux_classifier", "decode_head", "auxiliary_head")
# The layers whose channels are the classes.
_SCORES = re.compile(r"score[^.]*\.|(aux_)?classifier\.4\.|(decode|auxiliary)_head\.conv_seg\.")
# What can only be a layer of a trunk, of this network or of another one.
_TRUNK = re.compile(r"(^|\.)(conv|fc|layer|inception|bn|stem|stages)[\d_.]")
# Layers of the at-once net that only multiply, by what the network itself multiplies with.
_SCALES = {"scale_pool4.weight": "pool4", "scale_pool3.weight": "pool3"}
# Options that may differ between a file and the network: they do not change what weights mean.
_FREE_OPTIONS = {"dropout", "upsampling", "final_upsampling", "aux_loss"}


def check_options(model: FCN, file: WeightsFile, family: Family) -> None:
    """Refuse a network that was made with other options than the weights need."""
    defaults = {p.name: p.default for p in inspect.signature(type(model)).parameters.values()}
    told = family.options.keys() & defaults.keys()
    theirs, ours = MODELS.get(family.network), MODELS.get(model.name)
    # What it does not tell has its default, in a coarser net of the same class, too.
    if theirs and ours and theirs.make is ours.make:
        told |= model.options.keys()
    for key in sorted(told - _FREE_OPTIONS):
        has = _plain(model.options.get(key, defaults.get(key)))
        needs = _plain(family.options.get(key, defaults.get(key)))
        if has != needs:
            # `create_model` asks the file for options, unless it is of another network.
            own = "" if family.network in ("", model.name) else f"{key}={needs!r}, "
            raise WeightsError(
                f"{file.path}: weights of {family.title} for {key}={needs!r}, but {_name(model)} "
                f"was made with {key}={has!r}; "
                f"create_model({_name(model)!r}, {own}weights=...) makes it as the file needs"
            )


def padding_notes(model: FCN, family: Family) -> tuple[str, ...]:
    """Say so when a foreign network's padding is another one: to train on from it is no mistake."""
    padding = getattr(model, "padding", None)
    if family.padding is None or padding == family.padding:
        return ()
    return (
        f"released weights of such layers were trained with padding={family.padding}, "
        f"{_name(model)} was made with padding={padding}: scores near the border will differ, "
        "unless it is trained further or the weights are of a network made so",
    )


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def check_scales(
    model: FCN, file: WeightsFile, family: Family, mine: Mapping[str, str]
) -> dict[str, str]:
    """Tell a staged FCN-8s from an at-once one, where the file shows which it is."""
    dropped = {}
    for key, tap in _SCALES.items():
        if f"score_{tap}.weight" not in mine or not hasattr(model, f"score_{tap}"):
            continue
        here = float(getattr(model, "scales", {}).get(tap, 1.0))
        there = None
        if key in mine:
            low, high = torch.aminmax(file.tensors[mine[key]].read())
            there = float(low) if math.isclose(low, high, rel_tol=1e-6) else math.nan
        elif file.notes.get("arch") in ("FCN8s", "FCN8sAtOnce"):  # classes of pytorch-fcn
            there = AT_ONCE_SCALES[tap] if file.notes["arch"] == "FCN8sAtOnce" else 1.0
        elif family.network in MODELS:
            at_once = MODELS[family.network].fixed.get("at_once", False)
            there = AT_ONCE_SCALES[tap] if at_once else 1.0
        elif file.format in ("Caffe", "HDF5"):  # where a scale would be a layer of its own
            there = 1.0
        if there is not None and not math.isclose(here, there, rel_tol=1e-6):
            raise WeightsError(
                f"{file.path}: multiplies {tap} by {there:g}, {_name(model)} by {here:g}: "
                "FCN-8s trained at once and in stages are two networks"
            )
    for key in _SCALES:
        if key in mine:
            dropped[mine[key]] = "a constant, which the network has"
    return dropped


def classes_in(model: FCN, file: WeightsFile, family: Family) -> int:
    """How many classes the main head has in a file; the network's own number when none is told."""
    if file.meta is not None:
        return file.meta.num_classes
    names = {name: key for key, name in family.names.items()}
    for key, tensor in model.state_dict().items():
        if _SCORES.match(key) and key in names:
            shape = file.tensors[names[key]].shape
            if shape and _fits(shape, (shape[0], *tensor.shape[1:])):
                return shape[0]
            break  # of another network: loading says so
    return model.num_classes


def matched(
    model: FCN,
    own: Mapping[str, Tensor],
    file: WeightsFile,
    family: Family,
    mine: Mapping[str, str],
    dropped: dict[str, str],
) -> set[str]:
    """The network's tensors that the file has; adds to `dropped` what has other classes.

    Raises:
        WeightsError: a layer of the trunk is missing, or one has numbers for another layer.
    """
    found = set()
    other = _other(model, family)
    begun = {key.partition(".")[0] for key in own if key in mine and mine[key] not in dropped}
    for key, tensor in own.items():
        if key not in mine or mine[key] in dropped:
            # A head is there or not; half of one is another network's.
            head = key.startswith(_HEADS) and key.partition(".")[0] not in begun
            old = key.endswith("num_batches_tracked")  # not in the oldest files
            if not (head or old or key.startswith(family.partial)):
                first = key.partition(".")[0] in getattr(model, "trunk", ())[:1]
                hint = f"; {model.transplanting}" if first and model.transplanting else ""
                raise WeightsError(
                    f"{file.path}: has no {_theirs(key, family, mine)!r}{other}{hint}"
                )
            continue
        stored, shape = file.tensors[mine[key]], tuple(tensor.shape)
        if _fits(stored.shape, shape):
            if stored.dtype.is_floating_point != tensor.dtype.is_floating_point:
                raise WeightsError(f"{file.path}: {mine[key]!r} holds {stored.dtype}{other}")
            found.add(key)
        elif _SCORES.match(key) and _fits(stored.shape, (*stored.shape[:1], *shape[1:])):
            dropped[mine[key]] = f"for {stored.shape[0]} classes, the network has {shape[0]}"
        else:
            counts = f"{math.prod(stored.shape)} numbers for {math.prod(shape)}"
            raise WeightsError(
                f"{file.path}: {mine[key]!r} is {stored.shape}, but {_name(model)} with "
                f"{model.num_classes} classes needs {shape} ({counts}){other}"
            )
    return found


def _fits(stored: Shape, shape: Shape) -> bool:
    """Tell whether one shape is the other, but for axes of length 1 or a flattened input.

    Fully connected layers take all of a map at once: O x C·h·w for O x C x h x w. Caffe's oldest
    files have four axes everywhere, (1, 1, 1, N) for a vector.
    """
    flat = (*shape[:1], math.prod(shape[1:]))
    return _squeezed(stored) in (_squeezed(shape), _squeezed(flat))


def _squeezed(shape: Sequence[int]) -> Shape:
    return tuple(n for n in shape if n != 1)


def check_strict(
    model: FCN,
    file: WeightsFile,
    family: Family,
    missing: Sequence[str],
    unexpected: Sequence[str],
) -> None:
    """Refuse what only another network's file can lack or hold.

    A file of ours for this very network lacks nothing and holds nothing else; elsewhere a layer
    of a trunk that this network does not have shows that the file is of a deeper one.
    """
    same = family.network == model.name != ""
    if same and missing and classes_in(model, file, family) == model.num_classes:
        raise WeightsError(f"{file.path}: has no {missing[0]!r}, which {_name(model)} needs")
    names = {key: family.names.get(key, key) for key in unexpected}
    strange = [
        key
        for key, name in names.items()
        if same or (_TRUNK.search(name) and not name.startswith(_HEADS))
    ]
    if strange:
        raise WeightsError(
            f"{file.path}: holds {strange[0]!r}, which {_name(model)} does not have"
            f"{_other(model, family)}"
        )


def _theirs(key: str, family: Family, mine: Mapping[str, str]) -> str:
    """What the file calls a tensor of the network, or would call it if it had it."""
    layer, _, what = key.rpartition(".")
    return mine.get(key, f"{family.theirs(layer)}.{what}")


def _other(model: FCN, family: Family) -> str:
    """What to add to a complaint when the file is of another network, not this one's and damaged.

    Where the file does not name its network, that shows in how many of the layers it has.
    """
    same = family.network == model.name
    if not family.network:
        own, names = model.state_dict().keys(), set(family.names.values())
        same = 2 * len(own & names) > len(own)
    return "" if same else f"; it holds weights of {family.title}, not of {_name(model)}"


def _name(model: FCN) -> str:
    return model.name or type(model).__name__
