"""What the tests of pictures and networks share: small weights, pictures, files."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from fcnfast.data import CAMVID, demo_scene
from fcnfast.data.transforms import RandomScaleCrop
from fcnfast.models import alexnet, create_model, googlenet, resnet, save_model, vgg
from tests import foreign_nets

ROOT = Path(__file__).resolve().parents[1]


def write_small_weights(path, table=CAMVID, num_classes=11):
    """Write a tiny network with random weights that sees several classes in any picture."""
    torch.manual_seed(5)
    model = create_model(
        "fcn4s_light", num_classes=num_classes, widths=(8,) * 5, depths=(1,) * 4, decoder=8
    )
    torch.nn.init.normal_(model.score.weight)
    model.table = table
    save_model(model, path)
    return path


def narrow_trunks(monkeypatch):
    """Let new networks have all the paper's layers, with the few channels of `foreign_nets`."""
    widths = {"caffe": foreign_nets.CAFFE_ALEXNET, "torchvision": foreign_nets.TORCHVISION_ALEXNET}
    blocks = dict.fromkeys(foreign_nets.BLOCKS, foreign_nets.BLOCK)
    for module, name, value in (
        (vgg, "STAGES", foreign_nets.STAGES),
        (vgg, "FULLY_CONNECTED", foreign_nets.FULLY_CONNECTED),
        (alexnet, "WIDTHS", widths),
        (googlenet, "STEM", foreign_nets.STEM),
        (googlenet, "BLOCKS", blocks),
        (resnet, "WIDTH", foreign_nets.RESNET),
    ):
        monkeypatch.setattr(module, name, value)


def is_score(name):
    """Tell whether a layer gives class scores, by its name in any of the networks."""
    return bool(re.search(r"(^|\.)score[^.]*$|classifier\.4$|conv_seg$", name))


def randomize_scores(model):
    """Score layers start at zero: give them something to say."""
    for name, layer in model.named_modules():
        if is_score(name):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return model


class Runs:
    """A pickle of this calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def make_photo(height=36, width=48, seed=0):
    """Make an RGB picture of coarse random patches."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return patches.resize((width, height), Image.Resampling.BICUBIC)


def make_scene(seed, height=36, width=48):
    """Cut a small street and its labels out of the package's own, another one for each seed."""
    photo, labels, _ = demo_scene()
    cut = RandomScaleCrop((height, width), scale=(0.15, 0.3), aspect=1.0)
    return cut(photo, labels, np.random.default_rng(seed))


def contents(folder):
    """The files of a folder and of those below it, by path."""
    paths = sorted(path for path in Path(folder).rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
