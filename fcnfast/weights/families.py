"""Recognizing whose weights a file holds by its names, and translating them to fcnfast's.

fcnfast's networks name their layers as the reference implementation (Caffe) and torchvision's
segmentation networks do, so most names stay; the tables below are for the others. Each family
brings its own preprocessing, since a network computes nonsense with any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ..errors import WeightsError
from .files import WeightsFile
from .preprocessing import CAFFE, FEATURES, IMAGENET, INCEPTION, MMSEG, VGG_BGR, Preprocessing
from .stored import Stored

# The first convolution's padding in the networks of the paper's authors and of pytorch-fcn.
PADDING = 100

# pytorch-fcn's VGG-16: Caffe's values under torchvision's names, known only by the file's MD5.
_VGG16_FROM_CAFFE = "aa75b158f4181e7f6230029eb96c1b13"

_VGG16_NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG16_NAMES = "1_1 1_2 2_1 2_2 3_1 3_2 3_3 4_1 4_2 4_3 5_1 5_2 5_3"
_VGG16 = {n: f"conv{name}" for n, name in zip(_VGG16_NUMBERS, _VGG16_NAMES.split(), strict=True)}
_ALEXNET = {0: "conv1", 3: "conv2", 6: "conv3", 8: "conv4", 10: "conv5"}
_GOOGLENET = {"conv1": "conv1.7x7_s2", "conv2": "conv2.3x3_reduce", "conv3": "conv2.3x3"}
_BRANCHES = {
    "branch1": "1x1",
    "branch2.0": "3x3_reduce",
    "branch2.1": "3x3",
    "branch3.0": "5x5_reduce",
    "branch3.1": "5x5",
    "branch4.1": "pool_proj",
}
# EfficientNet-Lite as TensorFlow's weights were converted to PyTorch.
_LITE = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}
# Larger values are not weights: an unused classifier was saved from uninitialized memory.
_MOST = 1e4

_CLASSIFIER = "the classifier's own scores"
_AUXILIARY = "an auxiliary classifier"


@dataclass(frozen=True)
class Family:
    """What a file's tensors are called in fcnfast.

    Attributes:
        title: whose weights they are.
        names: by the file's names, those of fcnfast's networks; networks may have only some.
        dropped: by the file's names, why a tensor is never used.
        preprocess: what the weights expect; None: the network's own.
        options: options of `create_model` that a network needs for these layers.
        network: its name, if the file says it.
        classes, palette: the classes' names and colors, if the file says them.
        partial: the trunk's last layers, which may be missing, or unusable and dropped.
        padding: of the first convolution in released networks of this family, if it has one.
        theirs: what files of this family call a layer of fcnfast's networks.
    """

    title: str
    names: dict[str, str]
    dropped: dict[str, str] = field(default_factory=dict)
    preprocess: Preprocessing | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    network: str = ""
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    partial: tuple[str, ...] = ()
    padding: int | None = None
    theirs: Callable[[str], str] = str

    @property
    def keys(self) -> dict[str, str]:
        """By the names of fcnfast's networks, those of the file."""
        return {name: key for key, name in self.names.items()}


def recognize(file: WeightsFile, layers: Callable[[], Iterable[str]] = tuple) -> Family:
    """Return the family of an open file, from its own description or its tensors' names.

    `layers` gives the names of the wanted network's tensors, for files of no known family.

    WeightsError when no network of fcnfast has such layers, or its description cannot be used.
    """
    if (meta := file.meta) is not None:
        own = _own(file, meta.model, meta.options, meta.preprocess)
        return replace(own, classes=meta.classes, palette=meta.palette)
    match file.notes:  # a checkpoint of ``fcnfast train``
        case {
            "settings": {"model": str(name)},
            "network": {"options": dict(options), "preprocessing": dict(preprocess)},
        }:
            return _own(file, name, options, preprocess)
    prefix = _prefix(file.tensors, [row[0] for row in FAMILIES])
    if prefix is None:
        prefix = _prefix(file.tensors, [(name,) for name in layers()]) or ""
    inside = {k.removeprefix(prefix): v for k, v in file.tensors.items() if k.startswith(prefix)}
    found = (make for known, make in FAMILIES if inside.keys() >= set(known))
    family = next(found, _caffe)(replace(file, tensors=inside))
    return replace(
        family,
        names={prefix + key: name for key, name in family.names.items()},
        dropped={prefix + key: why for key, why in family.dropped.items()},
        theirs=lambda layer: prefix + family.theirs(layer),
    )


def _prefix(names: Collection[str], anchors: Iterable[tuple[str, ...]]) -> str | None:
    """The prefix of a network's layers: of several, the one that most of the file's names have."""
    found: dict[str, int] = {}
    for first, *others in anchors:
        for name in names:
            prefix = name.removesuffix(first)
            # The anchor begins a name, or follows a dot.
            begins = prefix != name and prefix[-1:] in ("", ".") and prefix not in found
            if begins and all(prefix + other in names for other in others):
                found[prefix] = sum(each.startswith(prefix) for each in names)
    return max(found, key=lambda prefix: found[prefix], default=None)


def _own(
    file: WeightsFile, model: str, options: Mapping[str, Any], preprocess: Mapping[str, Any]
) -> Family:
    """A file of fcnfast's own, which names its network."""
    try:
        settings = Preprocessing(**preprocess) if preprocess else None
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{file.path}: its preprocessing cannot be used: {error}") from None
    names = {name: name for name in file.tensors}
    return Family(model, names, preprocess=settings, options=options, network=model)


def _renamed(
    file: WeightsFile,
    title: str,
    layers: Mapping[str, str] | None = None,
    drops: Mapping[str, str] | None = None,
    **more: Any,
) -> Family:
    """A family whose layers are renamed: `layers` are fcnfast's by the file's, others stay.

    Tensors that begin with a key of `drops` are dropped for the reason there.
    """
    layers, names, dropped = layers or {}, {}, {}
    for key in file.tensors:
        layer, _, what = key.rpartition(".")
        why = next((why for start, why in (drops or {}).items() if key.startswith(start)), None)
        if why is not None:
            dropped[key] = why
        else:
            names[key] = f"{layers[layer]}.{what}" if layer in layers else key
    theirs = {name: layer for layer, name in layers.items()}
    return Family(title, names, dropped, theirs=lambda layer: theirs.get(layer, layer), **more)


def _mmseg(file: WeightsFile) -> Family:
    """mmsegmentation's FCN, whose names are fcnfast's; its checkpoints may name the classes."""
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, ...], ...] = ()
    match file.notes:  # of either release
        case {"meta": {"dataset_meta": {"classes": names, "palette": colors}}} | {
            "meta": {"CLASSES": names, "PALETTE": colors}
        }:
            with contextlib.suppress(TypeError, ValueError):
                palette = tuple((int(r), int(g), int(b)) for r, g, b in colors)
                classes = tuple(names) if all(isinstance(name, str) for name in names) else ()
    return _renamed(
        file,
        "mmsegmentation's FCN",
        preprocess=MMSEG,
        options={"deep_stem": "backbone.stem.0.weight" in file.tensors},
        classes=classes,
        palette=palette,
    )


def _caffe(file: WeightsFile) -> Family:
    """Names of Caffe, pytorch-fcn and fcnfast, or of an unknown source."""
    order = file.notes.get("layers", ())
    if "norm1" in order and "pool1" in order and order.index("norm1") < order.index("pool1"):
        raise WeightsError(
            f"{file.path}: of BVLC's AlexNet, which normalizes before it pools; fcnfast's network, "
            "as the paper's, is CaffeNet, which pools first"
        )
    caffe = file.format in ("Caffe", "HDF5")
    title = "Caffe's network" if caffe else "a network of an unknown family"
    drops = {"fc8": _CLASSIFIER, "loss3/": _CLASSIFIER, "loss1/": _AUXILIARY, "loss2/": _AUXILIARY}
    family = _renamed(file, title, drops=drops)
    names = {key: key.replace("/", ".") for key in family.names}
    # A classifier's weights have no padding of their own; a segmentation network's have.
    segments = all(any(n.startswith(part) for n in names.values()) for part in ("score_fr", "fc6"))
    padding, slash = PADDING if segments else None, "/" if any("/" in k for k in names) else "."
    return replace(family, names=names, padding=padding, theirs=lambda n: n.replace(".", slash))


def _sequential(file: WeightsFile) -> Family:
    """torchvision's and timm's VGG-16 and torchvision's AlexNet, whose layers have numbers."""
    found = (re.fullmatch(r"features\.(\d+)\.weight", key) for key in file.tensors)
    numbers = {int(match[1]) for match in found if match}
    if numbers == set(_VGG16):
        return _vgg16(file)
    if numbers != set(_ALEXNET):
        raise WeightsError(
            f"{file.path}: convolutions features.{{{','.join(map(str, sorted(numbers)))}}} are "
            "neither VGG-16's nor AlexNet's"
        )
    layers = {f"features.{number}": name for number, name in _ALEXNET.items()}
    layers |= {"classifier.1": "fc6", "classifier.4": "fc7"}
    drops, options = {"classifier.6.": _CLASSIFIER}, {"family": "torchvision"}
    title = "torchvision's AlexNet"
    return _renamed(file, title, layers, drops, preprocess=IMAGENET, options=options)


def _vgg16(file: WeightsFile) -> Family:
    """VGG-16 in torchvision's or timm's layout: their weights, Caffe's values, features alone."""
    title, preprocess, fc6, fc7 = "torchvision's VGG-16", IMAGENET, "classifier.0", "classifier.3"
    if "pre_logits.fc1.weight" in file.tensors:
        title, fc6, fc7 = "timm's VGG-16", "pre_logits.fc1", "pre_logits.fc2"
    elif "classifier.1.weight" in file.tensors:  # dropout came first in an early conversion
        title, preprocess = "Caffe's VGG-16 in an early layout of torchvision's", VGG_BGR
        fc6, fc7 = "classifier.1", "classifier.4"
    elif _md5(file) == _VGG16_FROM_CAFFE:
        title, preprocess = "Caffe's VGG-16 in torchvision's layout", CAFFE
    drops = dict.fromkeys(("classifier.6.", "head.fc."), _CLASSIFIER)
    weight = file.tensors.get(f"{fc6}.weight")
    if weight is not None and not _usable(weight):
        title, preprocess = "torchvision's VGG-16 without a classifier", FEATURES
        drops |= dict.fromkeys((f"{fc6}.", f"{fc7}."), "no weights: these have features only")
    layers = {f"features.{number}": name for number, name in _VGG16.items()}
    layers |= {fc6: "fc6", fc7: "fc7"}
    return _renamed(file, title, layers, drops, preprocess=preprocess, partial=("fc6", "fc7"))


def _googlenet(file: WeightsFile) -> Family:
    """torchvision's GoogLeNet."""
    units = dict(_GOOGLENET)
    for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        units |= {f"inception{block}.{a}": f"inception_{block}.{b}" for a, b in _BRANCHES.items()}
    layers = {f"{a}.{part}": f"{b}.{part}" for a, b in units.items() for part in ("conv", "bn")}
    drops = {"fc.": _CLASSIFIER, "aux1.": _AUXILIARY, "aux2.": _AUXILIARY}
    title, options = "torchvision's GoogLeNet", {"family": "torchvision"}
    return _renamed(file, title, layers, drops, preprocess=INCEPTION, options=options)


def _efficientnet_lite(file: WeightsFile) -> Family:
    """EfficientNet-Lite, whose blocks are numbered consecutively: a new width is a new stage."""
    layers = {"_conv_stem": "stem.0", "_bn0": "stem.1"}
    stage, number, width, block = -1, 0, 0, 0
    while (project := f"_blocks.{block}._project_conv.weight") in file.tensors:
        out = file.tensors[project].shape[0]
        stage, number = (stage, number + 1) if out == width else (stage + 1, 0)
        for theirs, ours in _LITE.items():
            layers[f"_blocks.{block}.{theirs}"] = f"stages.{stage}.{number}.{ours}"
        width, block = out, block + 1
    drops = dict.fromkeys(("_conv_head.", "_bn1.", "_fc."), _CLASSIFIER)
    return _renamed(file, "EfficientNet-Lite", layers, drops)


def _usable(stored: Stored) -> bool:
    """Tell whether a layer's values can be weights: finite, not huge, not all the same."""
    if math.prod(stored.shape) == 0:
        return False
    low, high = torch.aminmax(stored.read())  # both NaN when anything is
    return bool(-_MOST < low < high < _MOST)


def _md5(file: WeightsFile) -> str:
    with open(file.path, "rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()


_SEGMENTATION: Any = {"title": "torchvision's segmentation network", "preprocess": IMAGENET}
_RESNET: Any = {"title": "torchvision's ResNet", "preprocess": IMAGENET}
_RESNET |= {"drops": {"fc.": _CLASSIFIER}}
_CAFFE = ["layer1.0.conv1", "conv1_1", "conv1_1_bgrd", "conv1_1color", "conv1/7x7_s2"]
_CAFFE += ["conv1.7x7_s2", "conv1.7x7_s2.conv", "score_fr", "conv1"]
# The layers that identify a family, and the function that names its layers; the first row that a
# file matches counts. What precedes them in a file is a wrapper's prefix (``module.``, ``model.``,
# a task's own), and tensors without it are not the network's.
FAMILIES: tuple[tuple[tuple[str, ...], Callable[[WeightsFile], Family]], ...] = (
    (("features.0.weight",), _sequential),
    (("inception3a.branch1.conv.weight",), _googlenet),
    (("backbone.layer1.0.conv1.weight", "decode_head.conv_seg.weight"), _mmseg),
    (("backbone.layer1.0.conv1.weight", "classifier.4.weight"), partial(_renamed, **_SEGMENTATION)),
    (("layer1.0.conv1.weight", "conv1.weight", "bn1.weight"), partial(_renamed, **_RESNET)),
    (("_conv_stem.weight", "_blocks.0._project_conv.weight"), _efficientnet_lite),
    *(((f"{layer}.weight",), _caffe) for layer in _CAFFE),
)
