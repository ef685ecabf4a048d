"""The networks: one named table, and the functions that make and load them.

Every name of `list_models` is also a function here: ``fcnfast.models.fcn8s_vgg16(num_classes=5)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .base import CAFFE, FCN, IMAGENET, LoadReport, Preprocessing, ScoreMap
from .light import FCNLight
from .loading import create_model, load_model, load_weights, save_model
from .surgery import expand_input, expand_score, refine, transplant
from .table import MODELS, list_models
from .vgg import FCNVGG16


def __getattr__(name: str) -> Callable[..., FCN]:
    """The factory of a network: `create_model` without its first argument."""
    if name not in MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    factory = partial(create_model, name)
    factory.__doc__ = f"{MODELS[name].about}; arguments as in `create_model`, without the name."
    return globals().setdefault(name, factory)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODELS})


__all__ = [
    "CAFFE",
    "FCN",
    "FCNLight",
    "FCNVGG16",
    "IMAGENET",
    "LoadReport",
    "Preprocessing",
    "ScoreMap",
    "create_model",
    "expand_input",
    "expand_score",
    "list_models",
    "load_model",
    "load_weights",
    "refine",
    "save_model",
    "transplant",
]
