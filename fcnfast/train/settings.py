"""What a training run is: every setting, its command-line flag, and what it is for."""

from __future__ import annotations

import argparse
import math
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from ..errors import InputError


def _flag(default: Any, text: str, **extra: Any) -> Any:
    return field(default=default, metadata={"help": text, **extra})


@dataclass(frozen=True)
class TrainSettings:
    """The settings of one run; they are kept with its checkpoint.

    Raises:
        InputError: when a value is out of its range; the message names the flag.
    """

    # what is learned from
    data_path: str = _flag("", "the data set's folder", free=True)
    dataset: str = _flag("folder", "its layout", choices=("folder",))
    classes: str = _flag("camvid", "class table: a name or a JSON file")
    split: str = _flag("train", "the split to learn from")
    include: str = _flag("", "learn only from the pictures whose names match this pattern")
    exclude: str = _flag("", "leave out the pictures whose names match this pattern")
    cache: bool = _flag(False, "keep the decoded pictures in memory")
    val_split: str = _flag("val", "the split to validate on; '' for none")
    val_include: str = _flag("", "validate only on the pictures whose names match this pattern")
    # the network
    model: str = _flag("fcn4s_light", "the network, by name")
    weights: str = _flag("", "weights file to start from")
    # how the pictures are varied
    crop_size: int = _flag(288, "side of the square crops, pixels")
    scale_min: float = _flag(0.5, "smallest random scale")
    scale_max: float = _flag(2.0, "largest random scale")
    augment: float = _flag(1.0, "strength of the color, light, blur and noise; 0 for none")
    # how the network learns
    epochs: int = _flag(100, "passes over the pictures")
    batch_size: int = _flag(8, "crops in a batch", short="-b")
    optimizer: str = _flag("adamw", "the optimizer", choices=("adamw", "sgd"))
    lr: float = _flag(1e-3, "highest learning rate")
    momentum: float = _flag(0.9, "momentum of sgd")
    weight_decay: float = _flag(0.01, "weight decay of the convolution weights")
    warmup: int = _flag(200, "iterations over which the learning rate rises")
    power: float = _flag(0.9, "power of the poly schedule: lr * (1 - i/n)**power")
    class_weights: str = _flag("none", "weights in the loss", choices=("none", "median-frequency"))
    class_weight_power: float = _flag(1.0, "power that softens the class weights, 0 to 1")
    label_smoothing: float = _flag(0.0, "label smoothing, 0 to 1")
    clip_grad_norm: float = _flag(0.0, "largest norm of the gradient; 0 for no limit")
    ema_decay: float = _flag(0.999, "decay of the averaged weights; 0 for no average")
    amp: bool = _flag(False, "bfloat16 autocast")
    seed: int = _flag(0, "seed of everything random")
    # how the run runs
    output_dir: str = _flag("", "folder for the checkpoint, the log and the weights")
    device: str = _flag("", "cpu, cuda, ...; by default a GPU if there is one", free=True)
    workers: int = _flag(1, "processes that prepare crops", short="-j", free=True)
    print_freq: int = _flag(20, "iterations between rows of the log")
    val_freq: int = _flag(10, "epochs between validations")
    checkpoint_freq: int = _flag(200, "iterations between checkpoints", free=True)

    def __post_init__(self) -> None:
        self._check_types()
        least = {"epochs": 1, "batch_size": 1, "crop_size": 1, "print_freq": 1, "val_freq": 1}
        least |= {"checkpoint_freq": 1, "workers": 0, "warmup": 0, "augment": 0}
        least |= {"momentum": 0, "weight_decay": 0, "power": 0, "clip_grad_norm": 0, "seed": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise InputError(f"{_name(name)} must be at least {bound}: {getattr(self, name)}")
        if not self.lr > 0:
            raise InputError(f"--lr must be positive: {self.lr}")
        if not 0 < self.scale_min <= self.scale_max:
            raise InputError(
                f"--scale-min and --scale-max must be positive and in order: {self.scale_min}, "
                f"{self.scale_max}"
            )
        for name in ("class_weight_power", "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{_name(name)} must lie in 0..1: {getattr(self, name)}")
        idle = {
            "momentum": (self.optimizer != "sgd", "--optimizer sgd"),
            "class_weight_power": (self.class_weights == "none", "--class-weights"),
            "val_include": (not self.val_split, "--val-split"),
        }
        for name, (unused, needed) in idle.items():
            if unused and getattr(self, name) != getattr(TrainSettings, name):
                raise InputError(f"{_name(name)} has no meaning without {needed}")

    def _check_types(self) -> None:
        for f in fields(self):
            value, kind = getattr(self, f.name), type(f.default)
            fits = type(value) is kind
            if kind is float:
                fits = isinstance(value, (int, float)) and math.isfinite(value)
            if not fits:
                wanted = "a finite number" if kind is float else f"of type {kind.__name__}"
                raise InputError(f"{_name(f.name)} must be {wanted}, not {value!r}")
            choices = f.metadata.get("choices", (value,))
            if value not in choices:
                raise InputError(f"{_name(f.name)} must be {' or '.join(choices)}, not {value!r}")
        if not self.seed < 1 << 63:
            raise InputError(f"--seed must be less than 2**63, not {self.seed}")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)


def _name(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, and ``--resume``."""
    parser.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        help="go on from this checkpoint, in its folder, with the settings kept in it",
    )
    for f in fields(TrainSettings):
        if f.default is MISSING:
            raise TypeError(f"setting {f.name} has no default")
        names = [_name(f.name)]
        if "short" in f.metadata:
            names.insert(0, f.metadata["short"])
        shown = "" if f.default in ("", False) else f" (default {f.default})"
        options: dict[str, Any] = {"help": f.metadata["help"] + shown, "dest": f.name}
        if isinstance(f.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = type(f.default)
            options["choices"] = f.metadata.get("choices")
        # Only what was written on the command line is set: a resumed run keeps the rest.
        parser.add_argument(*names, default=argparse.SUPPRESS, **options)


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were written on the command line."""
    return {f.name: getattr(args, f.name) for f in fields(TrainSettings) if hasattr(args, f.name)}


def resumed(saved: TrainSettings, changes: dict[str, Any]) -> TrainSettings:
    """The settings of a run that goes on: only where and how it runs may change.

    Raises:
        InputError: when another setting differs from the one in the checkpoint.
    """
    free = {f.name for f in fields(TrainSettings) if f.metadata.get("free")}
    for name, value in changes.items():
        if name not in free and value != getattr(saved, name):
            raise InputError(
                f"{_name(name)} {value} differs from the checkpoint's {getattr(saved, name)}: "
                "a resumed run keeps its settings"
            )
    return replace(saved, **{k: v for k, v in changes.items() if k in free})
