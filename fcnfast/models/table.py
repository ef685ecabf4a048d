"""The networks by name: one row each."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..errors import InputError, WeightsError
from ..weights import Family, WeightsFile
from .alexnet import FCNAlexNet
from .base import CAFFE, FCN, Preprocessing
from .efficientnet_lite import FCNLite
from .googlenet import FCNGoogLeNet
from .light import FCNLight
from .mmseg import FCNMMSeg
from .nyud import NYUD_COLOR, NYUD_HHA, FCNColorDepth, FCNColorHHA
from .resnet import DEPTHS, LAYERS, FCN8sResNet, FCNResNet
from .vgg import FCNVGG16

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
        classes: how many it has unless another number is asked for.
        preprocessing: of its released weights, where it is not the class's own.
    """

    make: Callable[..., FCN]
    about: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 21
    preprocessing: Preprocessing | None = None


def _vgg(
    stride: int, about: str, classes: int = 21, preprocessing: Preprocessing = CAFFE, **fixed: Any
) -> Row:
    return Row(FCNVGG16, about, {"stride": stride, **fixed}, classes, preprocessing)


MODELS: dict[str, Row] = {
    "fcn32s_vgg16": _vgg(32, "FCN-32s over VGG-16, PASCAL VOC"),
    "fcn16s_vgg16": _vgg(16, "FCN-16s over VGG-16, PASCAL VOC"),
    "fcn8s_vgg16": _vgg(8, "FCN-8s over VGG-16, trained in stages, PASCAL VOC"),
    "fcn8s_atonce_vgg16": _vgg(8, "FCN-8s over VGG-16, trained at once", at_once=True),
    "fcn32s_alexnet": Row(FCNAlexNet, "FCN-32s over CaffeNet, PASCAL VOC"),
    "fcn32s_googlenet": Row(FCNGoogLeNet, "FCN-32s over GoogLeNet", {"stride": 32}),
    "fcn16s_googlenet": Row(
        FCNGoogLeNet, "FCN-16s over GoogLeNet (not the paper's)", {"stride": 16}
    ),
    "fcn8s_googlenet": Row(FCNGoogLeNet, "FCN-8s over GoogLeNet (not the paper's)", {"stride": 8}),
    "nyud_fcn32s_vgg16_color": _vgg(32, "NYUDv2 from color", 40, NYUD_COLOR),
    "nyud_fcn32s_vgg16_hha": _vgg(32, "NYUDv2 from HHA pictures of the depth", 40, NYUD_HHA),
    "nyud_fcn32s_vgg16_color_d": Row(FCNColorDepth, "NYUDv2, color and depth, early", classes=40),
    "nyud_fcn32s_vgg16_color_hha": Row(FCNColorHHA, "NYUDv2, color and HHA, late", classes=40),
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
    "fcn4s_lite0": Row(FCNLite, "FCN-4s over EfficientNet-Lite0", {"scaling": 0}, 11),
    "fcn4s_lite1": Row(FCNLite, "FCN-4s over EfficientNet-Lite1", {"scaling": 1}, 11),
    "fcn4s_lite2": Row(FCNLite, "FCN-4s over EfficientNet-Lite2", {"scaling": 2}, 11),
    "fcn4s_light": Row(FCNLight, "the bundled network: small, for CPUs, CamVid", classes=11),
}


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return sorted(MODELS)


def find(name: str) -> Row:
    """The row of a name.

    Raises:
        TypeError: for what is no name.
        InputError: for an unknown name; the nearest are offered.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be that of a network (see list_models), not {name!r}")
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(MODELS)}"
        raise InputError(f"there is no network {name!r}; {hint}")
    return MODELS[name]


def _check_options(name: str, row: Row, options: Mapping[str, Any]) -> None:
    """Refuse options that a network does not have; the nearest that it has is offered."""
    parameters = inspect.signature(row.make).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [key for key in parameters if key != "num_classes" and key not in row.fixed]
    for option in options:
        if option not in known:
            if "class" in option:
                raise TypeError(f"{name} has no option {option!r}; did you mean num_classes?")
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its options: {', '.join(known)}"
            raise TypeError(f"{name} has no option {option!r}; {hint}")


def build(name: str, num_classes: int | None, options: Mapping[str, Any]) -> FCN:
    """A new network of a name, with starting values (none on the meta device).

    Raises:
        InputError: for an unknown name; the nearest are offered.
        TypeError: for an option that the network does not have, or that its name fixes.
        ValueError: for options that it refuses.
    """
    row = find(name)
    clash = sorted(set(row.fixed) & set(options))
    if clash:
        raise TypeError(f"{name} fixes {', '.join(clash)}: choose another network instead")
    _check_options(name, row, options)
    classes = row.classes if num_classes is None else num_classes
    model = row.make(classes, **row.fixed, **options)
    if row.preprocessing is not None:
        model.default_preprocessing = row.preprocessing
        model.set_preprocessing(row.preprocessing)
    model.name, model.options = name, dict(options)
    return model


class _Unfilled(TorchFunctionMode):
    """Draws no starting values, for tensors on the meta device.

    They hold none anyway, but torch's way to know that takes a second and 140 MB of imports.
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


# The layers whose channels are the classes.
SCORES = re.compile(r"score[^.]*\.|(aux_)?classifier\.4\.|(decode|auxiliary)_head\.conv_seg\.")


def is_classifier(family: Family) -> bool:
    """Whether a file has a trunk only: no scores of a segmentation network."""
    return not family.network and not any(SCORES.match(name) for name in family.names.values())


# A layer by which a trunk without scores is known, and a network to put it into.
_CLASSIFIERS = (
    ("conv5_3.weight", "fcn8s_vgg16"),
    ("conv5.weight", "fcn32s_alexnet"),
    ("inception_5b.pool_proj.weight", "fcn32s_googlenet"),
    ("inception_5b.pool_proj.conv.weight", "fcn32s_googlenet"),
    ("layer4.2.conv3.weight", "fcn8s_resnet50"),
    ("layer4.1.conv2.weight", "fcn8s_resnet18"),
    ("stages.6.0.project.0.weight", "fcn4s_lite0"),
)


def fits_any(family: Family) -> bool:
    """Whether a file's layers are those of some network's trunk."""
    names = set(family.names.values())
    return any(key in names or f"backbone.{key}" in names for key, _ in _CLASSIFIERS)


def identify(file: WeightsFile, family: Family) -> tuple[str, dict[str, Any]]:
    """Name the network that an open file of a family belongs to, by its layers and their shapes.

    Returns:
        Its name and options, as `create_model` takes them, beside those of the family.

    Raises:
        WeightsError: it cannot be told; the message says which networks it may be of.
    """
    if family.network:
        return family.network, {}
    names = {name: key for key, name in family.names.items()}
    if "decode_head.conv_seg.weight" in names or "classifier.4.weight" in names:
        depth = 101 if "backbone.layer3.22.conv3.weight" in names else 50
        mmseg = "_mmseg" if "decode_head.conv_seg.weight" in names else ""
        aux = {"aux_classifier.4.weight", "auxiliary_head.conv_seg.weight"} & names.keys()
        return f"fcn_resnet{depth}{mmseg}", {} if aux else {"aux_loss": False}
    if "conv1_1_bgrd.weight" in names:
        return "nyud_fcn32s_vgg16_color_d", {}
    if "score_frhha.weight" in names:
        return "nyud_fcn32s_vgg16_color_hha", {}
    if "score_fr.weight" in names:
        classes = file.tensors[names["score_fr.weight"]].shape[0]
        return _by_scores(file, names, classes), {}
    if "score_fr_sem.weight" in names:
        return f"siftflow_fcn{_stride(names, 'pool3_sem', 'pool4_sem')}s_vgg16", {}
    for layer, network in _CLASSIFIERS:
        if layer in names:
            raise WeightsError(
                f"{file.path}: {family.title} has no scores of a segmentation network; choose one "
                f"for it, as create_model({network!r}, weights_backbone=...) or fcnfast convert "
                "--model NAME"
            )
    raise unknown(file)


def _stride(names: dict[str, str], stride8: str, stride16: str) -> int:
    """The stride of the finest scores."""
    found = [f"score_{tap}.weight" in names for tap in (stride8, stride16)]
    return 8 if found[0] else 16 if found[1] else 32


def _by_scores(file: WeightsFile, names: dict[str, str], classes: int) -> str:
    """The networks of the reference implementation, and those built like them."""
    if any(name.startswith("inception_5b.") for name in names):
        return f"fcn{_stride(names, 'inception_3b', 'inception_4e')}s_googlenet"
    if "layer4.0.conv1.weight" in names:
        return f"fcn8s_resnet{_depth(file, names)}"
    if "conv1_1.weight" not in names:
        return "fcn32s_alexnet"
    stride = _stride(names, "pool3", "pool4")
    alike: tuple[str, ...] = ("fcn8s_vgg16", "fcn8s_atonce_vgg16")
    if classes == 40 and stride == 32:
        alike = ("nyud_fcn32s_vgg16_color", "nyud_fcn32s_vgg16_hha")
    elif classes == 60:
        return f"pascalcontext_fcn{stride}s_vgg16"
    elif stride != 8:
        return f"fcn{stride}s_vgg16"
    elif file.format in ("Caffe", "HDF5"):  # where the scales are layers
        return alike["scale_pool4.weight" in names]
    elif file.notes.get("arch") in ("FCN8s", "FCN8sAtOnce"):  # classes of pytorch-fcn
        return alike[file.notes["arch"] == "FCN8sAtOnce"]
    raise WeightsError(
        f"{file.path}: of {' or '.join(alike)}, whose layers are alike: say which, with "
        "create_model(name, weights=...) or fcnfast convert --model NAME"
    )


def _depth(file: WeightsFile, names: dict[str, str]) -> int:
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


def unknown(file: WeightsFile) -> WeightsError:
    """What to say of layers that are no network's: some of them, and the nearest network."""
    shapes = Counter(stored.shape for stored in file.tensors.values())
    shared: dict[str, tuple[float, int, int]] = {}
    for name in MODELS:
        with unfilled():
            own = Counter(tuple(t.shape) for t in build(name, None, {}).state_dict().values())
        common = sum((own & shapes).values())
        shared[name] = common / sum((own | shapes).values()), common, sum(own.values())
    nearest = max(shared, key=lambda name: shared[name])
    keys = ", ".join(map(repr, list(file.tensors)[:4]))
    return WeightsError(
        f"{file.path}: of no network that fcnfast knows by its layers ({keys}, ...); the nearest "
        f"is {nearest}: {shared[nearest][1]} of its {shared[nearest][2]} tensors have the shape of "
        "one in the file"
    )
