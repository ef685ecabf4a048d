"""Which network a weights file belongs to, as far as the names and shapes in it tell."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NoReturn

from ..errors import WeightsError
from ..weights import Family, WeightsFile
from .resnet import DEPTHS, LAYERS

# A layer by which a trunk without scores is known, and a network to put it into.
_CLASSIFIERS = (
    ("conv5_3.weight", "fcn8s_vgg16"),
    ("conv5.weight", "fcn32s_alexnet"),
    ("inception_5b.pool_proj.weight", "fcn32s_googlenet"),
    ("inception_5b.pool_proj.conv.weight", "fcn32s_googlenet"),
    ("layer4.2.conv3.weight", "fcn8s_resnet50"),
    ("layer4.1.conv2.weight", "fcn8s_resnet18"),
)


def identify(file: WeightsFile, family: Family) -> tuple[str, dict[str, Any]]:
    """Name the network that an open file of a family belongs to.

    Returns:
        Its name and options, as `create_model` takes them, beside those of the family.

    Raises:
        WeightsError: it cannot be told; the message says which networks it may be of.
    """
    if family.network:
        return family.network, {}
    names = {name: key for key, name in family.names.items()}
    if "decode_head.conv_seg.weight" in names or "classifier.4.weight" in names:
        return _segmentation(names), _without_aux(names)
    for name, network in (
        ("conv1_1_bgrd.weight", "nyud_fcn32s_vgg16_color_d"),
        ("score_frhha.weight", "nyud_fcn32s_vgg16_color_hha"),
    ):
        if name in names:
            return network, {}
    if "score_fr.weight" in names:
        classes = file.tensors[names["score_fr.weight"]].shape[0]
        return _by_scores(file, names, classes), {}
    if "score_fr_sem.weight" in names:
        stride = _stride(names, "score_pool3_sem.weight", "score_pool4_sem.weight")
        return f"siftflow_fcn{stride}s_vgg16", {}
    for name, network in _CLASSIFIERS:
        if name in names:
            raise WeightsError(
                f"{file.path}: {family.title} has no scores of a segmentation network; choose one "
                f"for it, as create_model({network!r}, weights=...) or fcnfast convert --model NAME"
            )
    raise WeightsError(f"{file.path}: of no network that fcnfast knows by its layers")


def _segmentation(names: Collection[str]) -> str:
    """torchvision's and mmsegmentation's networks over ResNets."""
    depth = 101 if "backbone.layer3.22.conv3.weight" in names else 50
    return f"fcn_resnet{depth}{'_mmseg' if 'decode_head.conv_seg.weight' in names else ''}"


def _without_aux(names: Collection[str]) -> dict[str, Any]:
    aux = {"aux_classifier.4.weight", "auxiliary_head.conv_seg.weight"}
    return {} if aux & set(names) else {"aux_loss": False}


def _stride(names: Collection[str], stride8: str, stride16: str) -> int:
    """The stride of the finest scores."""
    return 8 if stride8 in names else 16 if stride16 in names else 32


def _by_scores(file: WeightsFile, names: Collection[str], classes: int) -> str:
    """The networks of the reference implementation, and those built like them."""
    if any(name.startswith("inception_5b.") for name in names):
        stride = _stride(names, "score_inception_3b.weight", "score_inception_4e.weight")
        return f"fcn{stride}s_googlenet"
    if "layer4.0.conv1.weight" in names:
        return f"fcn8s_resnet{_depth(file, names)}"
    if "conv1_1.weight" not in names:
        return "fcn32s_alexnet"
    stride = _stride(names, "score_pool3.weight", "score_pool4.weight")
    if classes == 40 and stride == 32:
        _refuse(file, ["nyud_fcn32s_vgg16_color", "nyud_fcn32s_vgg16_hha"])
    if classes == 60:
        return f"pascalcontext_fcn{stride}s_vgg16"
    if stride != 8:
        return f"fcn{stride}s_vgg16"
    if file.format in ("Caffe", "HDF5"):  # where the scales are layers
        return "fcn8s_atonce_vgg16" if "scale_pool4.weight" in names else "fcn8s_vgg16"
    architecture = {"FCN8sAtOnce": "fcn8s_atonce_vgg16", "FCN8s": "fcn8s_vgg16"}
    told = file.notes.get("arch")
    if not isinstance(told, str) or told not in architecture:
        _refuse(file, ["fcn8s_vgg16", "fcn8s_atonce_vgg16"])
    return architecture[told]


def _depth(file: WeightsFile, names: Collection[str]) -> int:
    """A ResNet's depth, by the blocks of its four layers and whether they are bottlenecks."""
    bottleneck = "layer1.0.conv3.weight" in names
    counts = tuple(
        sum(name.startswith(f"{layer}.") and name.endswith(".conv1.weight") for name in names)
        for layer in LAYERS
    )
    for depth, known in DEPTHS.items():
        if known == (counts, bottleneck):
            return depth
    blocks = "bottlenecks" if bottleneck else "basic blocks"
    raise WeightsError(
        f"{file.path}: of a ResNet with {counts} {blocks}; "
        f"fcnfast has those of depths {', '.join(map(str, DEPTHS))}"
    )


def _refuse(file: WeightsFile, networks: list[str]) -> NoReturn:
    raise WeightsError(
        f"{file.path}: of {' or '.join(networks)}, whose layers are alike: say which, with "
        "create_model(name, weights=...) or fcnfast convert --model NAME"
    )
