"""Weights of every kind into a network: all that fits, or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.classes import ClassTable, table_from_json
from ..data.tables import TABLES
from ..errors import WeightsError
from ..weights import Family, PathLike, Stored, WeightsFile, open_weights, recognize
from .base import FCN, Preprocessing
from .matching import check_options, check_scales, check_strict, matched, padding_notes
from .report import LoadReport
from .skipnet import SkipNet
from .upscores import Kept, choose_upsampling


def load_weights(model: FCN, path: PathLike) -> LoadReport:
    """Load a weights file of any kind that fcnfast reads; told by its content, not its name.

    Files of fcnfast; state dicts of pytorch-fcn, torchvision (classifiers and segmentation
    networks) and mmsegmentation, however wrapped; Caffe models, binary or HDF5. The trunk must be
    whole; score layers for another number of classes are left as they are, and named in the report.
    The file's preprocessing becomes the network's, and so do its learned upsamplings. Parameters
    keep their place and type.

    A foreign FCN that was trained with another padding is loaded, too, for training to go on from
    it; a warning and the report say so. Our own files say their padding, and are refused.

    Args:
        model: a network of fcnfast; unchanged when this fails.
        path: the file.

    Raises:
        WeightsError: a file that is missing, damaged or unsafe, or of another network; the message
            names the file, the layer and the shapes.
        TypeError: no network of fcnfast.
    """
    if not isinstance(model, FCN):
        raise TypeError(f"model must be a network of fcnfast, not {type(model).__name__}")
    with open_weights(path) as file:
        return load_file(model, file, recognize(file))


def load_file(model: FCN, file: WeightsFile, family: Family) -> LoadReport:
    """`load_weights` from an open file of a family.

    Parameters on the meta device are not copied but replaced by the file's tensors, which may be
    views of it; what the file lacks gets its starting values.
    """
    if hasattr(model, "backbone") and "layer1.0.conv1.weight" in family.names.values():
        family = replace(
            family,
            names={k: f"backbone.{name}" for k, name in family.names.items()},
            theirs=lambda layer: layer.removeprefix("backbone."),
        )
    check_options(model, file, family)
    mine = {name: key for key, name in family.names.items()}
    dropped = dict(family.dropped) | check_scales(model, file, family, mine)
    preprocessing, table = _described(model, file, family)
    kept = Kept(model) if isinstance(model, SkipNet) else None
    try:
        plan = _planned(model, file, family, mine, dropped)
    except BaseException:
        if kept is not None:
            kept.put_back()
        raise
    own = model.state_dict()
    shapes = {key: (file.tensors[mine[key]].shape, tuple(own[key].shape)) for key in plan.state}
    _assign(model, plan.state)
    model.set_preprocessing(preprocessing)
    model.table = table
    notes = padding_notes(model, family)
    for note in notes:
        warnings.warn(f"{file.path}: {note}", stacklevel=3)
    return LoadReport(
        path=file.path,
        format=file.format,
        family=family.title,
        loaded=tuple(plan.state),
        reshaped={key: pair for key, pair in shapes.items() if pair[0] != pair[1]},
        missing=plan.missing,
        unexpected=plan.unexpected,
        dropped=dropped,
        preprocessing=preprocessing,
        notes=notes,
    )


class _Plan(NamedTuple):
    """What will be put into a network, and what neither side has a partner for."""

    state: dict[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def _planned(
    model: FCN, file: WeightsFile, family: Family, mine: Mapping[str, str], dropped: dict[str, str]
) -> _Plan:
    """Match and read everything; only the kind of the network's upsampling changes."""
    upsampling: dict[str, Tensor] = {}
    if isinstance(model, SkipNet):
        upsampling, unused = choose_upsampling(model, file, mine)
        dropped |= unused
    own = model.state_dict()
    others = {key: tensor for key, tensor in own.items() if key not in upsampling}
    found = matched(model, others, file, family, mine, dropped) | upsampling.keys()
    missing = tuple(key for key in own if key not in found)
    known = {mine[key] for key in own if key in mine} | dropped.keys()
    unexpected = tuple(key for key in file.tensors if key not in known)
    check_strict(model, file, family, missing, unexpected)
    state = {
        key: _value(file, mine[key], upsampling.get(key), file.tensors[mine[key]], own[key])
        for key in own
        if key in found
    }
    return _Plan(state, missing, unexpected)


def _described(
    model: FCN, file: WeightsFile, family: Family
) -> tuple[Preprocessing, ClassTable | None]:
    """The preprocessing that the weights need, and the classes, where the file names them."""
    settings = family.preprocess
    preprocessing, table = model.default_preprocessing, model.table
    try:
        if settings is not None:
            preprocessing = Preprocessing(**settings)
        elif file.meta is not None:
            preprocessing = model.preprocessing
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{file.path}: its preprocessing cannot be used: {error}") from None
    if len(family.classes) == model.num_classes == len(family.palette):
        try:
            table = ClassTable(family.network or "foreign", family.classes, family.palette)
            if file.meta is not None and file.meta.table:
                table = table_from_json(file.path, file.meta.table)
                if len(table) != model.num_classes:
                    raise ValueError(f"{len(table)} classes in the table of {model.num_classes}")
            else:  # what the labels of a known data set store is known, too
                same = (t for t in TABLES.values() if t.names == table.names)
                table = next(same, table)
        except ValueError as error:
            raise WeightsError(f"{file.path}: its classes cannot be used: {error}") from None
    return preprocessing, table


def _value(
    file: WeightsFile, key: str, chosen: Tensor | None, stored: Stored, own: Tensor
) -> Tensor:
    """A tensor of the file in the network's shape and type.

    Raises:
        WeightsError: it cannot be read, or holds what is no finite number.
    """
    value = stored.read() if chosen is None else chosen
    value = value.reshape(own.shape).to(own.dtype)
    if value.is_floating_point() and value.numel():
        low, high = torch.aminmax(value)  # both NaN when anything is; needs no memory
        if not (low.isfinite() and high.isfinite()):
            raise WeightsError(f"{file.path}: {key!r} holds values that are no finite {own.dtype}")
    return value


def _assign(model: FCN, state: dict[str, Tensor]) -> None:
    """Put all tensors into the network; nothing can fail any more."""
    if not any(tensor.is_meta for tensor in model.state_dict().values()):
        model.load_state_dict(state, strict=False)
        return
    seen: set[int] = set()
    for key, tensor in state.items():
        if tensor.data_ptr() in seen:  # a file may give one place two names; parameters are apart
            state[key] = tensor.clone()
        seen.add(tensor.data_ptr())
    model.load_state_dict(state, strict=False, assign=True)
    model.materialize()
