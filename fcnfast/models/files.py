"""Networks made by name, and loaded from and saved to files."""

from __future__ import annotations

import inspect
import os
from dataclasses import asdict
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..data.classes import table_to_json
from ..errors import WeightsError
from ..weights import (
    Family,
    PathLike,
    WeightsFile,
    WeightsMeta,
    bundled_path,
    open_weights,
    recognize,
)
from ..weights import write_weights as _write
from .base import FCN
from .identify import identify
from .loading import load_file
from .matching import classes_in
from .report import LoadReport
from .table import build, find


class _Unfilled(TorchFunctionMode):
    """Draws no starting values, for tensors on the meta device.

    They hold none anyway, but torch's way to know that takes a second and 140 MB of imports.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.zero_):
            return args[0]
        return func(*args, **(kwargs or {}))


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    weights: PathLike | None = None,
    **options: Any,
) -> FCN:
    """Make a network by name.

    Args:
        name: one of `list_models`.
        num_classes: channels of the score map; by default those of the weights file, or the
            network's own (21 for PASCAL VOC).
        weights: a file as `load_weights` takes it. Options that its layers need, such as
            ``family="torchvision"``, need not be given.
        options: arguments of the network's class, such as ``padding`` or ``dropout``.

    Returns:
        The network in training mode.

    Raises:
        InputError: for an unknown name; the nearest are offered.
        ValueError: for options that it refuses.
        TypeError: for an option that the network does not have; the nearest is offered.
        WeightsError: when the file cannot be used for this network.
    """
    find(name)  # without a name a file would have to tell it
    if weights is None:
        return build(name, num_classes, options)
    return load_as(name, weights, num_classes, options)[0]


def load_as(
    name: str | None,
    path: PathLike,
    num_classes: int | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[FCN, LoadReport]:
    """Make a network around a weights file: its tensors become the network's, without a copy.

    Args:
        name: one of `list_models`; None: the network that the file belongs to.
        path, num_classes, options: as of `create_model`.

    Returns:
        The network in training mode, and what it took of the file.

    Raises:
        InputError, ValueError, TypeError, WeightsError: as `create_model`; WeightsError, too, when
            `name` is None and the file does not tell.
    """
    if name is not None:
        find(name)
    with open_weights(path) as file:
        family = recognize(file)
        if name is not None:
            model = _build(name, num_classes, options or {}, file, family)
        else:
            name, told = identify(file, family)
            try:
                model = _build(name, num_classes, told | (options or {}), file, family)
            except WeightsError:
                raise
            except (TypeError, ValueError, RuntimeError) as error:  # what no network can have
                raise WeightsError(f"{path}: {error}") from None
        return model, load_file(model, file, family)


def _build(
    name: str, num_classes: int | None, options: dict[str, Any], file: WeightsFile, family: Family
) -> FCN:
    """The network with the options and the number of classes of the file, without values yet."""
    if family.network in ("", name):
        row = find(name)
        accepted = inspect.signature(row.make).parameters.keys() - row.fixed.keys()
        strict = bool(family.network)  # then an option that it does not have is an error
        told = {key: v for key, v in family.options.items() if strict or key in accepted}
        options = told | options
    with torch.device("meta"), _Unfilled():
        model = build(name, num_classes, options)
        found = classes_in(model, file, family) if num_classes is None else model.num_classes
        return model if found == model.num_classes else build(name, found, options)


def load_model(path: PathLike | None = None, device: str | torch.device = "cpu") -> FCN:
    """The network of a weights file (by default the bundled one), in evaluation mode.

    Files of fcnfast say which network they are of; so do the layers of most others.

    Raises:
        WeightsError: when the file cannot be used, or is of a network that is not known.
    """
    model, _ = load_as(None, bundled_path() if path is None else path)
    return model.to(device).eval()


def save_model(
    model: FCN,
    path: str | os.PathLike[str],
    *,
    state: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a network (or another `state` of it, such as an average) as a weights file.

    The file names the network, its options, classes, palette and preprocessing. `dtype` stores
    the floating-point tensors in another precision.

    Raises:
        OSError: when the file cannot be written; nothing is left behind.
    """
    table = model.table
    meta = WeightsMeta(
        model=model.name,
        options=model.options,
        num_classes=model.num_classes,
        classes=table.names if table else (),
        palette=table.palette if table else (),
        preprocess=asdict(model.preprocessing),
        table=table_to_json(table) if table else {},
    )
    _write(path, model.state_dict() if state is None else state, meta, dtype)
