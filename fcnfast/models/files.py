"""Networks made by name, and loaded from and saved to files."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import torch

from ..data.classes import ClassTable
from ..errors import WeightsError
from ..weights import WeightsMeta, bundled_path, read_weights
from ..weights import write_weights as _write
from .base import FCN, Preprocessing
from .table import build, find


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    **options: Any,
) -> FCN:
    """Make a network by name.

    Args:
        name: one of `list_models`.
        num_classes: channels of the score map; by default the network's own (21 for PASCAL VOC),
            or those of the weights file.
        weights: a file of fcnfast's own format to load; it must be of this network.
        options: arguments of the network's class, such as ``padding`` or ``dropout``.

    Returns:
        The network in training mode.

    Raises:
        InputError: for an unknown name; the nearest are offered.
        ValueError: for options that it refuses.
        TypeError: for an option that the network does not have.
        WeightsError: when the file cannot be used for this network.
    """
    find(name)
    stored = None if weights is None else read_weights(weights)
    return _create(name, num_classes, options, stored, weights)


def _create(
    name: str,
    num_classes: int | None,
    options: dict[str, Any],
    stored: tuple[dict[str, torch.Tensor], WeightsMeta] | None,
    path: str | os.PathLike[str] | None,
) -> FCN:
    """`create_model` with the content of its weights file."""
    if stored is not None:
        meta = stored[1]
        if meta.model != name:
            raise WeightsError(f"{path}: holds weights of {meta.model}, not of {name}")
        num_classes = meta.num_classes if num_classes is None else num_classes
        options = {**meta.options, **options}
    model = build(name, num_classes, options)
    if stored is not None:
        _load(model, *stored, path)
    return model


def _load(
    model: FCN,
    state: dict[str, torch.Tensor],
    meta: WeightsMeta,
    path: str | os.PathLike[str] | None,
) -> None:
    """Put a file's tensors into the network made for them; all of them or none."""
    own = model.state_dict()
    for key, tensor in own.items():
        if key not in state:
            raise WeightsError(f"{path}: has no {key!r}, which {model.name} needs")
        if state[key].shape != tensor.shape:
            raise WeightsError(
                f"{path}: {key!r} is {tuple(state[key].shape)}, but {model.name} with "
                f"{model.num_classes} classes needs {tuple(tensor.shape)}"
            )
    extra = sorted(set(state) - set(own))
    if extra:
        raise WeightsError(f"{path}: holds {extra[0]!r}, which {model.name} does not have")
    model.load_state_dict(state)
    if meta.preprocess:
        try:
            model.set_preprocessing(Preprocessing(**meta.preprocess))
        except (TypeError, ValueError) as error:
            raise WeightsError(f"{path}: its preprocessing cannot be used: {error}") from None
    if meta.classes and meta.palette:
        model.table = ClassTable(meta.model, meta.classes, meta.palette)


def load_model(
    path: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu"
) -> FCN:
    """The network of a weights file (by default the bundled one), in evaluation mode.

    Raises:
        WeightsError: when the file cannot be used, or is of a network that is not known.
    """
    path = bundled_path() if path is None else path
    stored = read_weights(path)
    try:
        model = _create(stored[1].model, None, {}, stored, path)
    except WeightsError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # options that no network can have
        raise WeightsError(f"{path}: {error}") from None
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
    )
    _write(path, model.state_dict() if state is None else state, meta, dtype)
