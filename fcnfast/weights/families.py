"""Recognizing whose weights a file holds by its names, and translating them to fcnfast's.

fcnfast's networks name their layers as the reference implementation (Caffe) and torchvision's
segmentation networks do, so most names stay; the tables below are for the others. Each family
brings its own preprocessing, since a network computes nonsense with any other.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ..errors import WeightsError
from .files import WeightsFile
from .stored import Stored

# Preprocessing settings, as fields of `fcnfast.models.Preprocessing`.
Settings = Mapping[str, Any]
RGB: Settings = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "scale": 1 / 255}
# torchvision's GoogLeNet normalizes its (already normalized) input again: RGB in -1..1.
INCEPTION: Settings = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "scale": 1 / 255}
# The weights that torchvision names IMAGENET1K_FEATURES, from the SSD implementation.
FEATURES: Settings = {"mean": (0.48235, 0.45882, 0.40784), "std": (1 / 255,) * 3, "scale": 1 / 255}
# The VGG authors' mean, and the ILSVRC mean that Caffe's networks subtract.
VGG_BGR: Settings = {"mean": (103.939, 116.779, 123.68), "order": "bgr"}
CAFFE_BGR: Settings = {"mean": (104.00699, 116.66877, 122.67892), "order": "bgr"}
MMSEG: Settings = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}

# The first convolution's padding in the networks of the paper's authors and of pytorch-fcn.
PADDING = 100

# pytorch-fcn's VGG-16: Caffe's values under torchvision's names, known only by the file's MD5.
_VGG16_FROM_CAFFE = "aa75b158f4181e7f6230029eb96c1b13"

_VGG16_NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG16_NAMES = "1_1 1_2 2_1 2_2 3_1 3_2 3_3 4_1 4_2 4_3 5_1 5_2 5_3"
_VGG16 = {n: f"conv{name}" for n, name in zip(_VGG16_NUMBERS, _VGG16_NAMES.split(), strict=True)}
_ALEXNET = {0: "conv1", 3: "conv2", 6: "conv3", 8: "conv4", 10: "conv5"}
_GOOGLENET = {"conv1": "conv1.7x7_s2", "conv2": "conv2.3x3_reduce", "conv3": "conv2.3x3"}
_PARTS = ("conv", "bn")
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
        title: whose weights they are, for messages.
        names: by the file's names, those of fcnfast's networks; networks may have only some.
        dropped: by the file's names, why a tensor is never used.
        preprocess: fields of a `Preprocessing`; None: the network's own.
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
    preprocess: Settings | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    network: str = ""
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    partial: tuple[str, ...] = ()
    padding: int | None = None
    theirs: Callable[[str], str] = str


def recognize(file: WeightsFile, layers: Callable[[], Iterable[str]] = tuple) -> Family:
    """Return the family of an open file, from its own description or its tensors' names.

    `layers` gives the names of the wanted network's tensors, for files of no known family.

    Raises:
        WeightsError: no network of fcnfast has such layers.
    """
    if (meta := file.meta) is not None:
        own = _own(file, meta.model, meta.preprocess or None, meta.options)
        return replace(own, classes=meta.classes, palette=meta.palette)
    training = _training(file)
    if training is not None:
        return training
    prefix = _prefix(file.tensors, [row[0] for row in FAMILIES])
    if prefix is None:
        prefix = _prefix(file.tensors, [(name,) for name in layers()]) or ""
    inside = {k.removeprefix(prefix): v for k, v in file.tensors.items() if k.startswith(prefix)}
    found = (make for known, make in FAMILIES if inside.keys() >= set(known))
    family = next(found, _caffe)(replace(file, tensors=inside))
    theirs = family.theirs
    return replace(
        family,
        names={prefix + key: name for key, name in family.names.items()},
        dropped={prefix + key: why for key, why in family.dropped.items()},
        theirs=lambda layer: prefix + theirs(layer),
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


def _training(file: WeightsFile) -> Family | None:
    """The network, its options and its preprocessing in a checkpoint of ``fcnfast train``."""
    settings, network = file.notes.get("settings"), file.notes.get("network")
    if not isinstance(settings, dict) or not isinstance(network, dict):
        return None
    name, options = settings.get("model"), network.get("options")
    preprocess = network.get("preprocessing")
    if isinstance(name, str) and isinstance(options, dict) and isinstance(preprocess, dict):
        return _own(file, name, preprocess, options)
    return None


def _own(file: WeightsFile, model: str, preprocess: Settings | None, options: Any) -> Family:
    """A file of fcnfast's own, which names its network."""
    names = {name: name for name in file.tensors}
    return Family(model, names, preprocess=preprocess, options=options, network=model)


def _mmseg(file: WeightsFile) -> Family:
    """mmsegmentation's FCN, whose names are fcnfast's."""
    options = {"deep_stem": "backbone.stem.0.weight" in file.tensors}
    classes, palette = _mmseg_classes(file)
    family = _renamed(file, "mmsegmentation's FCN", preprocess=MMSEG)
    return replace(family, options=options, classes=classes, palette=palette)


def _mmseg_classes(file: WeightsFile) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """The classes in a checkpoint's meta data, under the names of either release; or none."""
    meta = file.notes.get("meta")
    inner = meta.get("dataset_meta") if isinstance(meta, dict) else None
    for place, names, colors in ((inner, "classes", "palette"), (meta, "CLASSES", "PALETTE")):
        if isinstance(place, dict):
            try:
                classes = tuple(place[names])
                palette = tuple((int(r), int(g), int(b)) for r, g, b in place[colors])
            except (KeyError, TypeError, ValueError):
                continue
            if all(isinstance(name, str) for name in classes):
                return classes, palette
    return (), ()


def _caffe(file: WeightsFile) -> Family:
    """Names of Caffe, pytorch-fcn and fcnfast, or of an unknown source."""
    names, dropped = {}, {}
    for key in file.tensors:
        if key.startswith(("fc8", "loss3/")):
            dropped[key] = _CLASSIFIER
        elif key.startswith(("loss1/", "loss2/")):
            dropped[key] = _AUXILIARY
        else:
            names[key] = key.replace("/", ".")
    order = file.notes.get("layers", ())
    if "norm1" in order and "pool1" in order and order.index("norm1") < order.index("pool1"):
        raise WeightsError(
            f"{file.path}: of BVLC's AlexNet, which normalizes before it pools; fcnfast's network, "
            "as the paper's, is CaffeNet, which pools first"
        )
    caffe = file.format in ("Caffe", "HDF5")
    title = "Caffe's network" if caffe else "a network of an unknown family"
    # A classifier's weights have no padding of their own; a segmentation network's have.
    segments = all(any(n.startswith(part) for n in names.values()) for part in ("score_fr", "fc6"))
    padding, slash = PADDING if segments else None, "/" if any("/" in k for k in names) else "."
    family = Family(title, names, dropped, padding=padding)
    return replace(family, theirs=lambda layer: layer.replace(".", slash))


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
    family = _renamed(file, "torchvision's AlexNet", layers, ("classifier.6.",), RGB)
    return replace(family, options={"family": "torchvision"})


def _vgg16(file: WeightsFile) -> Family:
    """VGG-16 in torchvision's or timm's layout: their weights, Caffe's values, features alone."""
    title, preprocess = "torchvision's VGG-16", RGB
    fully_connected = {"classifier.0": "fc6", "classifier.3": "fc7"}
    if "pre_logits.fc1.weight" in file.tensors:
        title = "timm's VGG-16"
        fully_connected = {"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7"}
    elif "classifier.1.weight" in file.tensors:  # dropout came first in an early conversion
        title, preprocess = "Caffe's VGG-16 in an early layout of torchvision's", VGG_BGR
        fully_connected = {"classifier.1": "fc6", "classifier.4": "fc7"}
    elif _md5(file) == _VGG16_FROM_CAFFE:
        title, preprocess = "Caffe's VGG-16 in torchvision's layout", CAFFE_BGR
    layers = {f"features.{number}": name for number, name in _VGG16.items()} | fully_connected
    family = _renamed(file, title, layers, ("classifier.6.", "head.fc."), preprocess)
    classifier = [key for key, name in family.names.items() if name.startswith("fc")]
    fc6 = [key for key in classifier if family.names[key] == "fc6.weight"]
    if fc6 and not _usable(file.tensors[fc6[0]]):
        family = _without(family, classifier, "no weights: these have features only")
        title = "torchvision's VGG-16 without a classifier"
        family = replace(family, title=title, preprocess=FEATURES)
    return replace(family, partial=("fc6", "fc7"))


def _googlenet(file: WeightsFile) -> Family:
    """torchvision's GoogLeNet."""
    units = dict(_GOOGLENET)
    for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        units |= {f"inception{block}.{a}": f"inception_{block}.{b}" for a, b in _BRANCHES.items()}
    layers = {f"{unit}.{part}": f"{name}.{part}" for unit, name in units.items() for part in _PARTS}
    family = _renamed(file, "torchvision's GoogLeNet", layers, ("fc.",), INCEPTION)
    auxiliary = [key for key in family.names if key.startswith(("aux1.", "aux2."))]
    return replace(_without(family, auxiliary, _AUXILIARY), options={"family": "torchvision"})


def _without(family: Family, keys: Collection[str], why: str) -> Family:
    names = {key: name for key, name in family.names.items() if key not in keys}
    return replace(family, names=names, dropped=family.dropped | dict.fromkeys(keys, why))


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
    scores = ("_conv_head.", "_bn1.", "_fc.")
    return _renamed(file, "EfficientNet-Lite", layers, scores)


def _renamed(
    file: WeightsFile,
    title: str,
    layers: Mapping[str, str] | None = None,
    scores: tuple[str, ...] = (),
    preprocess: Settings | None = None,
) -> Family:
    """A family whose layers are renamed: `layers` are fcnfast's by the file's, others stay.

    Layers that begin with one of `scores` are dropped.
    """
    layers = layers or {}
    dropped = {key: _CLASSIFIER for key in file.tensors if key.startswith(scores)}
    names = {}
    for key in file.tensors:
        layer, _, what = key.rpartition(".")
        if key not in dropped:
            names[key] = f"{layers[layer]}.{what}" if layer in layers else key
    theirs = {name: layer for layer, name in layers.items()}
    return Family(title, names, dropped, preprocess, theirs=lambda layer: theirs.get(layer, layer))


def _usable(stored: Stored) -> bool:
    """Tell whether a layer's values can be weights: finite, not huge, not all the same."""
    if math.prod(stored.shape) == 0:
        return False
    low, high = torch.aminmax(stored.read())  # both NaN when anything is
    return bool(-_MOST < low < high < _MOST)


def _md5(file: WeightsFile) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(file.path, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_RESNET: Any = {"title": "torchvision's ResNet", "scores": ("fc.",), "preprocess": RGB}
_SEGMENTATION: Any = {"title": "torchvision's segmentation network", "preprocess": RGB}
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
