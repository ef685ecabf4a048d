"""Semantic segmentation with fully convolutional networks, without full-resolution logits."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import data, nn, ops, reference, theory
    from .data import CAMVID, ClassTable, SegmentationDataset, open_dataset
    from .errors import InputError
    from .evaluate import evaluate_folder, evaluate_model
    from .geometry import ReceptiveField, SamplingGrid
    from .metrics import ConfusionMatrix
    from .models import create_model, list_models, load_model, load_weights, save_model
    from .segment import Segmentation, Segmenter

# An installed fcnfast holds its kernels as a folder of its own. In a checkout they stand beside the
# package, as kernels/: the root joins the search path, and `fcnfast.kernels` is found there.
_package = Path(__file__).resolve().parent
if not (_package / "kernels").is_dir():
    __path__.append(str(_package.parent))

# Names are looked up when they are first used: the command line answers --help without torch.
_HOMES = {
    "CAMVID": "data",
    "ClassTable": "data",
    "ConfusionMatrix": "metrics",
    "InputError": "errors",
    "ReceptiveField": "geometry",
    "SamplingGrid": "geometry",
    "Segmentation": "segment",
    "SegmentationDataset": "data",
    "Segmenter": "segment",
    "create_model": "models",
    "evaluate_folder": "evaluate",
    "evaluate_model": "evaluate",
    "list_models": "models",
    "load_model": "models",
    "load_weights": "models",
    "open_dataset": "data",
    "save_model": "models",
}
_ROOMS = ("data", "nn", "ops", "reference", "theory")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})


__all__ = [
    "CAMVID",
    "ClassTable",
    "ConfusionMatrix",
    "InputError",
    "ReceptiveField",
    "SamplingGrid",
    "Segmentation",
    "SegmentationDataset",
    "Segmenter",
    "__version__",
    "create_model",
    "data",
    "evaluate_folder",
    "evaluate_model",
    "list_models",
    "load_model",
    "load_weights",
    "nn",
    "open_dataset",
    "ops",
    "reference",
    "save_model",
    "theory",
]
