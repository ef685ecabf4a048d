"""The recipes: the settings that a run starts from, and each network's own learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.classes import read_json
from ..errors import InputError
from ..models import list_models
from .checkpoint import LAST
from .settings import STAGED, TrainSettings

# The reference solvers' settings that all of the paper's recipes share: whole pictures one by one,
# and SGD at a constant rate.
_PAPER: dict[str, Any] = {
    "model": "fcn32s_vgg16",
    **{"crop_size": 0, "scale_min": 1.0, "scale_max": 1.0, "augment": 0.0, "batch_size": 1},
    **{"optimizer": "sgd", "lr_bias": 2.0, "weight_decay": 5e-4},
    **{"warmup": 0.0, "power": 0.0, "ema_decay": 0.0},
}
_HEAVY = _PAPER | {"momentum": 0.99, "normalize": "images", "replacement": True}
_LIGHT = _PAPER | {"momentum": 0.9, "grad_accum": 20, "epochs": 175}

# By network: the rate and the number of iterations of its reference solver.
_HEAVY_OWN: dict[str, tuple[float, int]] = {
    "fcn32s_vgg16": (1e-10, 100_000),
    "fcn16s_vgg16": (1e-12, 100_000),
    "fcn8s_vgg16": (1e-14, 100_000),
    "fcn8s_atonce_vgg16": (1e-10, 300_000),
    "nyud_fcn32s_vgg16_color": (1e-10, 100_000),
    "nyud_fcn32s_vgg16_hha": (1e-10, 100_000),
    "nyud_fcn32s_vgg16_color_d": (1e-10, 100_000),
    "nyud_fcn32s_vgg16_color_hha": (1e-12, 100_000),
    "siftflow_fcn32s_vgg16": (1e-10, 100_000),
    "siftflow_fcn16s_vgg16": (1e-12, 100_000),
    "siftflow_fcn8s_vgg16": (1e-12, 100_000),
    "pascalcontext_fcn32s_vgg16": (1e-10, 400_000),
    "pascalcontext_fcn16s_vgg16": (1e-12, 400_000),
    "pascalcontext_fcn8s_vgg16": (1e-14, 400_000),
}
# Those of the 2015 paper, which says neither how long each ran, nor how its loss was normalized:
# it names 1e-4 for VGG-16 (a hundredth for each finer net) and 5e-5 for GoogLeNet; AlexNet's is
# from its released solver.
_LIGHT_OWN: dict[str, tuple[float, int]] = {
    "fcn32s_alexnet": (1e-4, 0),
    "fcn32s_googlenet": (5e-5, 0),
    "fcn32s_vgg16": (1e-4, 0),
    "fcn16s_vgg16": (1e-6, 0),
    "fcn8s_vgg16": (1e-8, 0),
    "fcn8s_atonce_vgg16": (1e-4, 0),
}


@dataclass(frozen=True)
class Recipe:
    """What it is; settings that differ from the defaults; networks' own rates and iterations."""

    about: str
    settings: Mapping[str, Any]
    own: Mapping[str, tuple[float, int]] | None = None


RECIPES = {
    "modern": Recipe("AdamW, poly, averaged weights, crops, color", {}),
    "paper-heavy": Recipe("batch 1, momentum 0.99, summed loss (PAMI 2016)", _HEAVY, _HEAVY_OWN),
    "paper-light": Recipe("20 pictures by accumulation, momentum 0.9", _LIGHT, _LIGHT_OWN),
    STAGED: Recipe(
        "paper-heavy: 32s, then 16s, then 8s", _HEAVY | {"model": "fcn8s_vgg16"}, _HEAVY_OWN
    ),
}


def make_settings(given: Mapping[str, Any], config: str = "") -> TrainSettings:
    """Return the settings of a recipe, or of `config`, a run's settings.json, with some changes.

    `given` are the changes, by name; its "recipe" names the recipe. InputError if the file cannot
    be used, the recipe has no rate for the network, or `TrainSettings` rejects a value.
    """
    if given.get("epochs") and given.get("iterations"):
        raise InputError("give --epochs or --iterations, not both")
    if config:
        if "recipe" in given:
            raise InputError("give --config or --recipe, not both")
        values = read_json(Path(config), "the settings")
        if not isinstance(values, dict):
            raise InputError(f"{config}: not the settings of a run")
    else:
        values = _of_recipe(given.get("recipe", "modern"), given)
    if "epochs" in given:
        values["iterations"] = 0
    try:
        return TrainSettings(**{**values, **given})
    except TypeError as error:  # a key that is not a setting
        raise InputError(f"{config or 'settings'}: {str(error).partition(') ')[2]}") from None


def _of_recipe(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if name not in RECIPES:
        raise InputError(f"--recipe must be {' or '.join(RECIPES)}, not {name!r}")
    recipe = RECIPES[name]
    values = {"recipe": name, **recipe.settings}
    if recipe.own is None:
        return values
    model = given.get("model", values["model"])
    own = recipe.own.get(model.replace("fcn8s", "fcn32s") if name == STAGED else model)
    if own is not None:
        values["lr"], values["iterations"] = own
    elif "lr" not in given:
        raise InputError(f"--recipe {name} has no learning rate for {model}: give --lr")
    return values


def stages(settings: TrainSettings) -> list[TrainSettings]:
    """Return the settings of the three runs of a staged one, each in a folder of its own.

    Every stage's rate is a share of the first one's: that of the reference solvers, or else a
    hundredth of the stage before. InputError for a network that has no coarser ones.
    """
    names = [settings.model.replace("fcn8s", f"fcn{stride}s") for stride in (32, 16, 8)]
    if len(set(names)) < 3 or not set(names) <= set(list_models()):
        raise InputError(f"--recipe {STAGED} needs a network such as fcn8s_vgg16, not {names[2]}")
    found = []
    for index, name in enumerate(names):
        share = 0.01**index
        if names[0] in _HEAVY_OWN and name in _HEAVY_OWN:
            share = _HEAVY_OWN[name][0] / _HEAVY_OWN[names[0]][0]
        changes: dict[str, Any] = {"recipe": "paper-heavy", "model": name}
        changes["lr"] = settings.lr * share
        changes["output_dir"] = str(Path(settings.output_dir) / name)
        if index:
            changes["weights_backbone"] = ""
            changes["weights"] = str(Path(settings.output_dir) / names[index - 1] / LAST)
        found.append(replace(settings, **changes))
    return found
