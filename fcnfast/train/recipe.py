"""What a run learns from and with: batches, optimizer, class weights, average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import SegmentationDataset, collate
from ..data.folder import main_labels
from ..data.transforms import Compose
from ..errors import InputError
from ..models import FCN
from .settings import TrainSettings

Tensors = list[Tensor] | tuple[Tensor, ...]


class Crops(Dataset[tuple[Tensor, Tensor] | Exception]):
    """Random crops of a data set; item (epoch, index) has a random generator of its own."""

    def __init__(self, pictures: SegmentationDataset, transform: Compose, seed: int) -> None:
        self.pictures, self.transform, self.seed = pictures, transform, seed

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pictures)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor] | Exception:
        """Return the crop of picture `index` in `epoch`: uint8 3 x h x w and h x w.

        A picture that cannot be read gives its error: raised in a worker, it would come with the
        worker's traceback in its message.
        """
        epoch, index = item
        try:
            image, labels, _ = self.pictures[index]
        except (InputError, OSError, MemoryError) as error:
            return error
        return self.transform(image, labels, np.random.default_rng([self.seed, epoch, index]))


class _Order:
    """The batches of indices of iterations [first, last); every epoch is shuffled by itself.

    They depend on (seed, iteration) alone: a resumed run sees what it would have seen. The last
    pictures of an epoch that do not fill a batch wait for another shuffle.
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
                known = epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            picked = order[place * self.batch_size : (place + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in picked]

    def __len__(self) -> int:
        return self.last - self.first


def _batch(
    samples: list[tuple[Tensor, Tensor] | Exception],
) -> tuple[Tensor, Tensor] | Exception:
    """Make a batch, or hand on the first error among its samples."""
    errors = [sample for sample in samples if isinstance(sample, Exception)]
    return errors[0] if errors else collate([s for s in samples if not isinstance(s, Exception)])


def batches(
    crops: Crops, batch_size: int, seed: int, first: int, last: int, workers: int, pin: bool
) -> DataLoader[tuple[Tensor, Tensor] | Exception]:
    """Load the batches of iterations [first, last): uint8 N x 3 x h x w and N x h x w.

    A batch with a picture that cannot be read is that error.
    """
    return DataLoader(
        crops,
        batch_sampler=_Order(len(crops), batch_size, seed, first, last),
        num_workers=workers,
        collate_fn=_batch,
        pin_memory=pin,
        worker_init_fn=_one_thread,
        # The loader's own seed is drawn from a generator of its own: the global one is untouched,
        # so that a resumed run draws the same dropout.
        generator=torch.Generator().manual_seed(seed),
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def make_optimizer(model: FCN, s: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimizer; weight decay is for the weights of convolutions alone."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": s.weight_decay}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    if s.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=s.lr)
    return torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum)


def median_frequency(labels: Iterable[np.ndarray], classes: int, power: float = 1.0) -> Tensor:
    """Return class weights: (median class frequency / class frequency) ** power.

    The frequency of a class is its pixels over the labeled pixels of the pictures that contain it;
    a class that no picture contains gets weight 1.

    Args:
        labels: uint8 arrays, 255 ignored.
        classes: C.
        power: 0..1; less than 1 softens the weights.

    Returns:
        C weights, float32.

    Raises:
        InputError: when no pixel is labeled.
    """
    pixels, room = np.zeros(classes), np.zeros(classes)
    for picture in labels:
        count = np.bincount(main_labels(picture).ravel(), minlength=256)[:classes]
        pixels += count
        room += np.where(count > 0, count.sum(), 0)
    if not pixels.any():
        raise InputError("--class-weights: the pictures have no labeled pixel")
    frequency = np.divide(pixels, room, out=np.zeros(classes), where=room > 0)
    median = np.median(frequency[frequency > 0])
    weights = np.divide(median, frequency, out=np.ones(classes), where=frequency > 0)
    return torch.tensor(weights**power, dtype=torch.float32)


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return the update of an exponential average that forgets its first values sooner."""

    @torch.no_grad()
    def update(averages: Tensors, currents: Tensors, count: Tensor | int) -> None:
        step = int(count)
        share = 1 - min(decay, (1 + step) / (10 + step))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, share)
        else:  # counters
            torch._foreach_copy_(averages, currents)

    return update
