"""What the tests of training share: a small data set with a tiny network, and runs of seconds."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcnfast.data import CAMVID, write_labels
from fcnfast.models import create_model, save_model
from fcnfast.train import TrainSettings, checkpoint, start
from fcnfast.train.batches import Batch, count_labels

TINY = {"widths": (4,) * 5, "depths": (1,) * 4, "decoder": 4}


def write_scenes(root):
    """A few pictures of blocks in their classes' colors, train and val, and a tiny network."""
    torch.manual_seed(0)
    model = create_model("fcn4s_light", num_classes=11, **TINY, dropout=0.5)
    save_model(model, root / "tiny.safetensors")
    for split, seeds in (("train", range(6)), ("val", range(6, 8))):
        images, masks = root / split, root / f"{split}annot"
        images.mkdir()
        masks.mkdir()
        for seed in seeds:
            blocks = np.random.default_rng(seed).choice((0, 1, 3, 5, 8), (3, 4)).astype(np.uint8)
            labels = blocks.repeat(16, 0).repeat(16, 1)
            labels[0, :11] = range(11)  # every class in every picture
            name = f"drive{seed % 2}_{seed}.png"
            Image.fromarray(np.array(CAMVID.palette, np.uint8)[labels]).save(images / name)
            write_labels(masks / name, labels, CAMVID.palette)
    return root


def small(scenes, out, **changes):
    """The settings of a run of seconds."""
    paths = {"data_path": str(scenes), "output_dir": str(out)}
    paths["weights"] = str(scenes / "tiny.safetensors")
    pace = {"crop_size": 32, "batch_size": 2, "epochs": 4, "warmup": 0.2, "val_freq": 2}
    pace |= {"print_freq": 2, "checkpoint_freq": 2, "workers": 0, "cache": True, "device": "cpu"}
    return TrainSettings(**{**paths, **pace, **changes})


def stopped_after(scenes, out, iteration, **changes):
    """A run that is killed when a checkpoint of `iteration` is there and more has been done."""
    run = start(small(scenes, out, **changes))
    whole = run.step

    def step(*batch):
        if run.iteration > iteration:
            raise KeyboardInterrupt
        return whole(*batch)

    run.step = step
    with pytest.raises(KeyboardInterrupt):
        run.train(progress=False)


def batch():
    """Two pictures of noise with random labels."""
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 11, (2, 32, 32), dtype=torch.uint8)
    return Batch(images, labels, count_labels(labels), 0.0)


def final_state(out):
    return checkpoint.load(out / "checkpoint.pt")


def same(a, b):
    """Whether nested values are the same bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def rows(out):
    """The rows of a run's log."""
    with Path(out, "log.csv").open() as file:
        return list(csv.DictReader(file))


def untimed(out):
    """The rows of the log without what differs between two runs."""
    timed = ("seconds", "images_per_second", "loader_images_per_second", "memory_mib")
    return [{key: v for key, v in row.items() if key not in timed} for row in rows(out)]
