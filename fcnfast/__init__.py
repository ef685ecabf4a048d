"""Semantic segmentation with fully convolutional networks, without full-resolution logits."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import data as data
    from . import nn as nn
    from . import ops as ops
    from . import reference as reference
    from . import theory as theory
    from .data import CAMVID, ClassTable, SegmentationDataset, open_dataset
    from .deploy import export
    from .errors import InputError
    from .evaluate import evaluate_folder, evaluate_model
    from .geometry import ReceptiveField, SamplingGrid
    from .lazy import UpsampledLogits, fuse, fuse_report, lazy_logits, unfuse
    from .metrics import ConfusionMatrix
    from .models import create_model, list_models, load_model, load_weights, save_model
    from .ops import (
        crop_add,
        deconv,
        upsample,
        upsample_argmax,
        upsample_confusion,
        upsample_crop_add,
        upsample_cross_entropy,
    )
    from .segment import Segmentation, Segmenter

# An installed fcnfast contains kernels/. In a checkout that folder lies beside the package, so the
# repository root joins the search path, and `fcnfast.kernels` is found there.
_package = Path(__file__).resolve().parent
if not (_package / "kernels").is_dir():
    __path__.append(str(_package.parent))

# Names are imported on first use, so that `fcnfast --help` does not import torch.
_HOMES = {
    "data": ("CAMVID", "ClassTable", "SegmentationDataset", "open_dataset"),
    "deploy": ("export",),
    "errors": ("InputError",),
    "evaluate": ("evaluate_folder", "evaluate_model"),
    "geometry": ("ReceptiveField", "SamplingGrid"),
    "lazy": ("UpsampledLogits", "fuse", "fuse_report", "lazy_logits", "unfuse"),
    "metrics": ("ConfusionMatrix",),
    "models": ("create_model", "list_models", "load_model", "load_weights", "save_model"),
    "ops": (
        *("crop_add", "deconv", "upsample", "upsample_crop_add"),
        *("upsample_argmax", "upsample_confusion", "upsample_cross_entropy"),
    ),
    "segment": ("Segmentation", "Segmenter"),
}
_ROOMS = ("data", "nn", "ops", "reference", "theory")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    for home, names in _HOMES.items():
        if name in names:
            return globals().setdefault(name, getattr(import_module(f".{home}", __name__), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


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
    "UpsampledLogits",
    "__version__",
    "create_model",
    "crop_add",
    "deconv",
    "evaluate_folder",
    "evaluate_model",
    "export",
    "fuse",
    "fuse_report",
    "lazy_logits",
    "list_models",
    "load_model",
    "load_weights",
    "open_dataset",
    "save_model",
    "unfuse",
    "upsample",
    "upsample_argmax",
    "upsample_confusion",
    "upsample_crop_add",
    "upsample_cross_entropy",
]
