"""The settings of a training run; each is also a command-line flag."""

from __future__ import annotations

import argparse
import math
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from ..data.datasets import DATASETS
from ..errors import InputError

STAGED = "fcn8s-staged"
_RECIPES = ("modern", "paper-heavy", "paper-light", STAGED)


def _flag(default: Any, text: str, **extra: Any) -> Any:
    return field(default=default, metadata={"help": text, **extra})


@dataclass(frozen=True)
class TrainSettings:
    """The settings of one run, kept with its checkpoint. The defaults are the "modern" recipe.

    InputError if a value is out of its range; the message names the flag.
    """

    recipe: str = _flag("modern", "the defaults of the other settings", choices=_RECIPES)
    # data
    data_path: str = _flag("", "the data set's folder", free=True)
    dataset: str = _flag("folder", "its layout", choices=tuple(DATASETS))
    labels_dir: str = _flag("", "where its labels are, if elsewhere", free=True)
    classes: str = _flag("", "class table: a name or a JSON file; by default the data set's")
    bit_depth: int = _flag(0, "significant bits of 16-bit pictures, 8 to 16", most=16)
    split: str = _flag("train", "the split to learn from")
    include: str = _flag("", "learn only from the pictures whose names match this pattern")
    exclude: str = _flag("", "leave out the pictures whose names match this pattern")
    cache: bool = _flag(False, "keep the decoded pictures in memory")
    val_split: str = _flag("val", "the split to validate on; '' for none")
    val_include: str = _flag("", "validate only on the pictures whose names match this pattern")
    # network
    model: str = _flag("", "the network, by name; by default that of --weights, or fcn4s_light")
    in_channels: int = _flag(3, "1: luma; 3: RGB; 4: RGB and a fourth channel", choices=(1, 3, 4))
    weights: str = _flag("", "weights file to start from, or 'bundled'")
    weights_backbone: str = _flag("", "a classifier's file for the trunk, or 'imagenet'")
    freeze: str = _flag("none", "the parts that stay fixed", choices=("none", "trunk", "bn"))
    # augmentation
    crop_size: int = _flag(288, "side of the square crops, pixels; 0: whole pictures", least=0)
    scale_min: float = _flag(0.5, "smallest random scale")
    scale_max: float = _flag(2.0, "largest random scale")
    augment: float = _flag(1.0, "strength of the color, light, blur and noise; 0 for none", least=0)
    replacement: bool = _flag(False, "draw pictures with replacement")
    # optimization
    epochs: int = _flag(100, "passes over the pictures", least=1, free=True)
    iterations: int = _flag(0, "steps of the optimizer; 0: set by --epochs", least=0, free=True)
    batch_size: int = _flag(8, "crops in a batch, over all processes", short="-b", least=1)
    grad_accum: int = _flag(1, "batches in a step of the optimizer", least=1)
    normalize: str = _flag("valid", "what the loss is divided by", choices=("valid", "images"))
    optimizer: str = _flag("adamw", "the optimizer", choices=("adamw", "sgd"))
    lr: float = _flag(1e-3, "highest learning rate")
    lr_backbone: float = _flag(1.0, "learning rate of the trunk, as a share of --lr", least=0)
    lr_bias: float = _flag(1.0, "learning rate of biases, as a multiple of --lr", least=0)
    momentum: float = _flag(0.9, "momentum of sgd", least=0)
    weight_decay: float = _flag(0.01, "weight decay of the convolution weights", least=0)
    warmup: float = _flag(0.05, "share of the run over which the rate rises", least=0, most=1)
    power: float = _flag(0.9, "of the poly schedule lr * (1 - i/n)**power; 0: constant", least=0)
    class_weights: str = _flag("none", "weights in the loss", choices=("none", "median-frequency"))
    class_weight_power: float = _flag(1.0, "softens the class weights, 0 to 1", least=0, most=1)
    label_smoothing: float = _flag(0.0, "label smoothing, 0 to 1", least=0, most=1)
    clip_grad_norm: float = _flag(0.0, "largest norm of the gradient; 0 for no limit", least=0)
    ema_decay: float = _flag(0.999, "decay of the averaged weights; 0: none", least=0, most=1)
    patience: int = _flag(0, "stop after so many worse validations; 0: never", least=0, free=True)
    seed: int = _flag(0, "seed of everything random", least=0, most=2**63 - 1)
    # speed and memory
    amp: bool = _flag(False, "autocast to --amp-dtype")
    amp_dtype: str = _flag("bf16", "bf16, or fp16 with loss scaling", choices=("bf16", "fp16"))
    channels_last: bool = _flag(True, "lay out maps with their channels innermost", free=True)
    compile: bool = _flag(False, "run the network through torch.compile", free=True)
    checkpoint_activations: bool = _flag(False, "save memory: recompute the trunk", free=True)
    sync_bn: bool = _flag(False, "batch norms over the batches of all GPUs", free=True)
    # the run itself
    output_dir: str = _flag("", "folder for the checkpoint, the log and the weights")
    device: str = _flag("", "cpu, cuda, ...; by default a GPU if there is one", free=True)
    workers: int = _flag(-1, "loader processes; -1: up to 8", short="-j", free=True, least=-1)
    print_freq: int = _flag(20, "iterations between rows of the log", least=1)
    val_freq: int = _flag(1, "epochs between validations", least=1)
    checkpoint_freq: int = _flag(200, "iterations between checkpoints", free=True, least=1)
    log: str = _flag("", "also log to tensorboard", choices=("", "tensorboard"), free=True)

    def __post_init__(self) -> None:
        for f in fields(self):
            _check(f, getattr(self, f.name))
        if not self.lr > 0:
            raise InputError(f"--lr must be positive, not {self.lr}")
        if not 0 < self.scale_min <= self.scale_max:
            scales = f"{self.scale_min}, {self.scale_max}"
            raise InputError(f"--scale-min and --scale-max must be positive and in order: {scales}")
        if self.crop_size == 0 and (self.scale_min, self.scale_max, self.augment) != (1, 1, 0):
            needed = "--scale-min 1 --scale-max 1 --augment 0"
            raise InputError(f"--crop-size 0 takes whole pictures as they are: it needs {needed}")
        if self.weights and self.weights_backbone:
            raise InputError("give --weights or --weights-backbone, not both")
        idle = {
            "momentum": (self.optimizer != "sgd", "--optimizer sgd"),
            "class_weight_power": (self.class_weights == "none", "--class-weights"),
            "val_include": (not self.val_split, "--val-split"),
            "patience": (not self.val_split, "--val-split"),
            "amp_dtype": (not self.amp, "--amp"),
            "bit_depth": (self.in_channels == 4, "--in-channels 1 or 3"),
        }
        for name, (unused, needed) in idle.items():
            if unused and getattr(self, name) != getattr(TrainSettings, name):
                raise InputError(f"{flag(name)} has no meaning without {needed}")


def _check(f: Field[Any], value: Any) -> None:
    kind, name, allowed = type(f.default), flag(f.name), f.metadata
    fits = type(value) is kind
    if kind is float:
        fits = isinstance(value, (int, float)) and math.isfinite(value)
    if not fits:
        wanted = "a finite number" if kind is float else f"of type {kind.__name__}"
    elif value not in allowed.get("choices", (value,)):
        wanted = " or ".join(map(str, allowed["choices"]))
    elif value < allowed.get("least", value):
        wanted = f"at least {allowed['least']}"
    elif value > allowed.get("most", value):
        wanted = f"at most {allowed['most']}"
    else:
        return
    raise InputError(f"{name} must be {wanted}, not {value!r}")


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, ``--resume`` and ``--config``."""
    parser.add_argument("--resume", metavar="RUN", help="resume a run: its folder or checkpoint")
    text = "start from the settings.json of a run"
    parser.add_argument("--config", metavar="FILE", default="", help=text)
    for f in fields(TrainSettings):
        short = (f.metadata["short"],) if "short" in f.metadata else ()
        shown = "" if f.default in ("", False) else f" (default {f.default})"
        options: dict[str, Any] = {"help": f.metadata["help"] + shown, "dest": f.name}
        if isinstance(f.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = type(f.default)
            options["choices"] = f.metadata.get("choices")
        # Only what was written on the command line is set: a resumed run keeps the rest.
        parser.add_argument(*short, flag(f.name), default=argparse.SUPPRESS, **options)


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were written on the command line."""
    return {f.name: getattr(args, f.name) for f in fields(TrainSettings) if hasattr(args, f.name)}


def resumed(saved: TrainSettings, changes: dict[str, Any]) -> TrainSettings:
    """Return the settings of a resumed run; InputError if `changes` alter more than how it runs."""
    free = {f.name for f in fields(TrainSettings) if f.metadata.get("free")}
    for name, value in changes.items():
        if name not in free and value != getattr(saved, name):
            told = f"the checkpoint's {getattr(saved, name)}: a resumed run keeps its settings"
            raise InputError(f"{flag(name)} {value} differs from {told}")
    kept = {name: value for name, value in changes.items() if name in free}
    if "epochs" in kept:  # from now on they set the length of the run
        kept.setdefault("iterations", 0)
    return replace(saved, **kept)
