"""Batches as a function of (seed, iteration): a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import Sample, collate
from ..data.transforms import Compose


class Samples(Protocol):
    """A data set: samples by index."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        ...


class Cached:
    """A data set with its decoded samples kept in memory, read once."""

    def __init__(self, dataset: Samples) -> None:
        self._samples = [
            (np.asarray(image), labels, name)
            for image, labels, name in map(dataset.__getitem__, range(len(dataset)))
        ]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        pixels, labels, name = self._samples[index]
        return Sample(Image.fromarray(pixels), labels, name)


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Random crops of several data sets in a row; item (epoch, index) has chance of its own."""

    def __init__(self, parts: Sequence[Samples], transform: Compose, seed: int) -> None:
        self.parts, self.transform, self.seed = parts, transform, seed

    def __len__(self) -> int:
        """Return the number of pictures."""
        return sum(len(part) for part in self.parts)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the crop of picture `index` in `epoch`: uint8 3 x h x w and h x w."""
        epoch, index = item
        rng = np.random.default_rng([self.seed, epoch, index])
        for part in self.parts:
            if index < len(part):
                image, labels, _ = part[index]
                return self.transform(image, labels, rng)
            index -= len(part)
        raise IndexError(f"there is no picture {item[1]} among {len(self)}")


class _From:
    """The batches of indices from an iteration on; every epoch is shuffled by itself.

    The last pictures of an epoch that fill no batch wait for another shuffle.
    """

    def __init__(self, count: int, batch_size: int, seed: int, first: int, last: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.count // self.batch_size
        known, order = -1, np.empty(0, dtype=int)
        for iteration in range(self.first, self.last):
            epoch, place = divmod(iteration, per_epoch)
            if epoch != known:
                known, order = (
                    epoch,
                    np.random.default_rng([self.seed, epoch]).permutation(self.count),
                )
            picked = order[place * self.batch_size : (place + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in picked]

    def __len__(self) -> int:
        return self.last - self.first


def batches(
    crops: Crops, batch_size: int, seed: int, first: int, last: int, workers: int, pin: bool
) -> DataLoader[tuple[Tensor, Tensor]]:
    """The batches of iterations [first, last): uint8 N x 3 x h x w and N x h x w."""
    return DataLoader(
        crops,
        batch_sampler=_From(len(crops), batch_size, seed, first, last),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_one_thread,
        # The loader's own seed is drawn from a generator of its own: the global one is untouched,
        # so that a resumed run draws the same dropout.
        generator=torch.Generator().manual_seed(seed),
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
