"""Net surgery (section 4.1 of the paper): weights for another net, the next stage, more classes.

The functions check everything before they change anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import FCN, Shape, check_count, check_model
from .table import MODELS, build

# The stages of section 4.2, each trained from the one before.
STAGES = {"fcn32s": "fcn16s", "fcn16s": "fcn8s"}


@dataclass(frozen=True)
class Transplant:
    """What a transplantation did: which of the target's tensors got values, those of another shape
    in the source (from, to), which of the source were dropped, which of the target untouched.
    """

    copied: tuple[str, ...]
    reshaped: Mapping[str, tuple[Shape, Shape]]
    dropped: tuple[str, ...]
    untouched: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.copied)} tensors copied, {len(self.reshaped)} of them reshaped"]
        lines += [f"  reshaped {key}: {a} to {b}" for key, (a, b) in self.reshaped.items()]
        lines += [f"  dropped {key}" for key in self.dropped]
        lines += [f"  untouched {key}" for key in self.untouched]
        return "\n".join(lines)


def transplant(
    source: nn.Module | Mapping[str, Tensor],
    target: nn.Module,
    *,
    suffix: str = "",
    names: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
) -> Transplant:
    """Copy every layer of one net into the layer of the same name in another.

    A tensor of different shape but equal size is reshaped: a fully connected layer (O x C*k*k)
    becomes a convolution (O x C x k x k).

    Args:
        source: a net, or its state dict.
        target: the net that is changed.
        suffix: appended to the first part of the source's names, as for a late fusion's streams.
        names: the target's names for layers of the source, such as ``{"classifier.0": "fc6"}``.
        skip: layers of the target that are not changed.

    ValueError when element counts differ, nothing has the same name, or `names` or `skip` hold an
    unknown layer. Nothing is copied then.
    """
    given = source.state_dict() if isinstance(source, nn.Module) else dict(source)
    own = target.state_dict(keep_vars=True)
    names = names or {}
    for what, layers, state in (("names", names, given), ("skip", skip, own)):
        unknown = set(layers) - {key.rpartition(".")[0] for key in state}
        if unknown:
            raise ValueError(f"{what}: there is no layer {min(unknown)!r}")
    pairs, dropped = {}, []
    for key, tensor in given.items():
        layer, _, kind = key.rpartition(".")
        head, dot, rest = names.get(layer, layer).partition(".")
        goal = f"{head}{suffix}{dot}{rest}.{kind}" if layer else key
        if goal in own and goal.rpartition(".")[0] not in skip:
            pairs[goal] = tensor
        else:
            dropped.append(key)
    if not pairs:
        raise ValueError("the source and the target have no layer name in common")
    for key, tensor in pairs.items():
        if tensor.numel() != own[key].numel():
            raise ValueError(
                f"{key} is {tuple(tensor.shape)} in the source and {tuple(own[key].shape)} in the "
                f"target: {tensor.numel()} elements cannot become {own[key].numel()}"
            )
    reshaped = {}
    with torch.no_grad():
        for key, tensor in pairs.items():
            own[key].copy_(tensor.reshape(own[key].shape))
            if tensor.shape != own[key].shape:
                reshaped[key] = tuple(tensor.shape), tuple(own[key].shape)
    untouched = tuple(key for key in own if key not in pairs)
    return Transplant(tuple(pairs), reshaped, tuple(dropped), untouched)


def _like(model: FCN, name: str, num_classes: int) -> FCN:
    """A new net by name, with everything of `model` but its weights."""
    parameter = next(model.parameters())
    with torch.device(parameter.device):
        new = build(name, num_classes, model.options)
    new.set_preprocessing(model.preprocessing)
    return new.to(parameter.dtype).train(model.training)


def refine(model: FCN) -> FCN:
    """The next stage of a net: FCN-16s from FCN-32s, FCN-8s from FCN-16s (section 4.2).

    A new net: layers of the same names are copied, the new skip's scores start at zero and new
    upsamplings are bilinear. Two bilinear upsamplings are smoother than one, so the first
    predictions are nearly, not exactly, the coarser net's. The paper trains further at a hundredth
    of the rate. TypeError or ValueError for what has no next stage.
    """
    check_model(model)
    for coarse, fine in STAGES.items():
        name = model.name.replace(coarse, fine)
        if coarse in model.name and name in MODELS:
            new = _like(model, name, model.num_classes)
            transplant(model, new)
            new.table = model.table
            return new
    raise ValueError(f"{model.name or 'this network'} has no next stage")


def expand_score(model: FCN, num_classes: int) -> FCN:
    """The same net with more classes; the scores of the existing ones stay as they are.

    A new net without a class table. New classes start with zero scores, and bilinear upsampling if
    it is learned. TypeError or ValueError for fewer classes, or a net that was not made by name.
    """
    check_model(model)
    check_count("num_classes", num_classes)
    if num_classes < model.num_classes:
        raise ValueError(f"num_classes must be at least {model.num_classes}, not {num_classes}")
    if model.name not in MODELS:
        raise ValueError("only nets made by create_model can get more classes")
    new = _like(model, model.name, num_classes)
    own = new.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            corner = tuple(slice(0, n) for n in tensor.shape)  # the old classes come first
            own[key][corner].copy_(tensor)
    return new


def expand_input(source: nn.Conv2d, target: nn.Conv2d) -> None:
    """Initialize a first layer from one that takes fewer channels.

    The source's channels and bias are copied; each further channel starts as their mean, as for the
    depth on NYUDv2. ValueError when anything else differs, or the target takes no more channels.
    """
    wide, narrow = tuple(target.weight.shape), tuple(source.weight.shape)
    if wide[0] != narrow[0] or wide[2:] != narrow[2:] or wide[1] <= narrow[1]:
        why = "it may only have more input channels"
        raise ValueError(f"a layer of {narrow} cannot initialize one of {wide}: {why}")
    if (source.bias is None) != (target.bias is None):
        raise ValueError("only one of the two layers has a bias")
    with torch.no_grad():
        target.weight[:, : narrow[1]] = source.weight
        target.weight[:, narrow[1] :] = source.weight.mean(1, keepdim=True)
        if source.bias is not None and target.bias is not None:
            target.bias.copy_(source.bias)
