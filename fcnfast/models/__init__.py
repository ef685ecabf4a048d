"""The networks: one named table, and the functions that make and load them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from ..data.classes import ClassTable
from ..errors import InputError, WeightsError
from ..weights import WeightsMeta, bundled_path, read_weights
from ..weights import write_weights as _write
from .base import CAFFE, FCN, IMAGENET, Preprocessing, ScoreMap
from .light import FCNLight
from .vgg import FCNVGG16

# A network is one row: its factory, and the options that its name stands for.
_MODELS: dict[str, tuple[Callable[..., FCN], dict[str, Any]]] = {
    "fcn32s_vgg16": (FCNVGG16, {"stride": 32}),
    "fcn16s_vgg16": (FCNVGG16, {"stride": 16}),
    "fcn8s_vgg16": (FCNVGG16, {"stride": 8}),
    "fcn8s_atonce_vgg16": (FCNVGG16, {"stride": 8, "at_once": True}),
    "fcn4s_light": (FCNLight, {}),
}


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return sorted(_MODELS)


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
        num_classes: channels of the score map; by default the network's own (21, or 11 for the
            light one), or those of the weights file.
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
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(_MODELS)}"
        raise InputError(f"there is no network {name!r}; {hint}")
    if stored is not None:
        meta = stored[1]
        if meta.model != name:
            raise WeightsError(f"{path}: holds weights of {meta.model}, not of {name}")
        num_classes = meta.num_classes if num_classes is None else num_classes
        options = {**meta.options, **options}
    factory, row = _MODELS[name]
    clash = sorted(set(row) & set(options))
    if clash:
        raise TypeError(f"{name} fixes {', '.join(clash)}: choose another network instead")
    counted = {} if num_classes is None else {"num_classes": num_classes}
    model = factory(**counted, **row, **options)
    model.name, model.options = name, options
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


__all__ = [
    "CAFFE",
    "FCN",
    "FCNLight",
    "FCNVGG16",
    "IMAGENET",
    "Preprocessing",
    "ScoreMap",
    "create_model",
    "list_models",
    "load_model",
    "save_model",
]
