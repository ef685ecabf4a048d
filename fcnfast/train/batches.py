"""The data of a run: its pictures, their crops, and the batches of every step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import SegmentationDataset, collate, eval_transform, train_transform
from ..errors import InputError
from .settings import TrainSettings

Targets = Tensor | Mapping[str, Tensor]


class Batch(NamedTuple):
    """Pictures (uint8 N x 3 x h x w) and their labels (uint8 N x h x w).

    counts: pixels of each label, int64 256, for every head (only "out" if all share the labels);
    seconds: the time that one worker spent on them.
    """

    images: Tensor
    targets: Targets
    counts: dict[str, Tensor]
    seconds: float


def count_labels(targets: Targets) -> dict[str, Tensor]:
    """Count the pixels of each label, int64 256, for every head."""
    by_head = targets if isinstance(targets, Mapping) else {"out": targets}
    return {head: torch.bincount(t.flatten(), minlength=256) for head, t in by_head.items()}


class Crops(Dataset[Batch | Exception]):
    """Batches of random crops; crop (epoch, place, index) has its own random generator.

    heads: the outputs of the network, if the data set has labels for several.
    InputError if the pictures do not fill a step.
    """

    def __init__(self, pictures: SegmentationDataset, s: TrainSettings, world: int) -> None:
        batch = f"--batch-size {s.batch_size}"
        if s.batch_size % world:
            raise InputError(f"{batch} counts all processes and must be divisible by {world}")
        if len(pictures) < s.batch_size * s.grad_accum:
            batch += f" times --grad-accum {s.grad_accum}" if s.grad_accum > 1 else ""
            raise InputError(f"{batch} is more than the {len(pictures)} pictures")
        if s.cache:  # read here, once, and not by every worker
            for index in range(len(pictures)):
                pictures[index]
        self.pictures, self.seed = pictures, s.seed
        self.transform = eval_transform()
        if s.crop_size:
            scale = (s.scale_min, s.scale_max)
            self.transform = train_transform(s.crop_size, scale=scale, strength=s.augment)
        self.heads: Collection[str] = ("out",)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, items: list[tuple[int, int, int]]) -> Batch | Exception:
        """Return a batch: the crops of pictures `index`, drawn at `place` of `epoch`.

        The error of a picture that cannot be read is returned: raised in a worker, its message
        would contain the worker's traceback.
        """
        started, crops = time.perf_counter(), []
        for epoch, place, index in items:
            try:
                image, labels, _ = self.pictures[index]
            except (InputError, OSError, MemoryError) as error:
                return error
            chance = np.random.default_rng([self.seed, epoch, place, index])
            crops.append(self.transform(image, labels, chance))
        images, labels = collate(crops)
        targets: Targets = labels
        if labels.dim() == 4:  # a plane for each head
            planes = zip(self.pictures.heads, labels.unbind(-1), strict=True)
            targets = {head: plane.contiguous() for head, plane in planes if head in self.heads}
        return Batch(images, targets, count_labels(targets), time.perf_counter() - started)


def _order(
    count: int, s: TrainSettings, first: int, last: int, rank: int, world: int
) -> Iterator[list[tuple[int, int, int]]]:
    """This process's part of every batch of the steps [first, last); each epoch has its shuffle.

    A batch depends only on (seed, step), and each process gets an equal part: a resumed run sees
    the same batches, on any number of processes. Pictures left at the end of an epoch, too few for
    a step, are skipped.
    """
    part, per_epoch, known = s.batch_size // world, count // (s.batch_size * s.grad_accum), -1
    for step in range(first, last):
        epoch, place = divmod(step, per_epoch)
        if epoch != known:
            known, chance = epoch, np.random.default_rng([s.seed, epoch])
            if s.replacement:
                order = chance.integers(count, size=count)
            else:
                order = chance.permutation(count)
        for batch in range(place * s.grad_accum, (place + 1) * s.grad_accum):
            start = batch * s.batch_size + rank * part
            yield [(epoch, at, int(order[at])) for at in range(start, start + part)]


def loader(
    crops: Crops, s: TrainSettings, first: int, last: int, rank: int, world: int, pin: bool
) -> DataLoader[Batch | Exception]:
    """Load this process's part of the batches of the steps [first, last)."""
    return DataLoader(
        crops,
        batch_size=None,  # an item is a batch
        sampler=_order(len(crops), s, first, last, rank, world),
        num_workers=s.workers,
        pin_memory=pin,
        worker_init_fn=_begin_worker,
        generator=torch.Generator().manual_seed(s.seed),  # the global one is untouched
    )


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A cluster may send SIGTERM to all processes of a job: the trainer decides when to stop.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def worker_count(wanted: int, local_world: int) -> int:
    """Return the number of workers; -1 means one per core, at most 8 for each process."""
    if wanted >= 0:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(8, max(1, (cores or 1) // local_world))


def next_batch(source: Iterator[Batch | Exception]) -> Batch:
    """Return the next batch, or raise the error of a picture that cannot be read."""
    batch = next(source)
    if isinstance(batch, Exception):
        raise batch
    return batch
