"""The training loop, in the order in which things happen.

fcnfast train --data-path CamVid --output-dir run            # one machine, GPU if there is one
fcnfast train --resume run/checkpoint.pt                     # go on after a stop
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ..data import (
    IGNORE_INDEX,
    ClassTable,
    SegmentationDataset,
    class_table,
    open_dataset,
    train_transform,
    wrap_dataset,
)
from ..data.check import require_every_class
from ..data.datasets import refuse_overlap
from ..device import choose_device
from ..errors import DivergenceError, InputError, WeightsError
from ..evaluate import evaluate_model
from ..files import remove_unfinished, write_bytes, write_json
from ..models import FCN, Preprocessing, create_model, save_model
from . import checkpoint
from .checkpoint import Log
from .recipe import Crops, batches, make_optimizer, median_frequency, moving_average
from .settings import TrainSettings, resumed

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"


class Run:
    """One training run: everything that changes while it goes on, and the loop.

    network: options and preprocessing of a resumed run, whose `weights` file may be gone.
    data: what to learn from and to validate on, instead of the settings' folder.
    """

    def __init__(
        self,
        settings: TrainSettings,
        network: dict[str, Any] | None = None,
        data: tuple[SegmentationDataset, SegmentationDataset | None] | None = None,
    ) -> None:
        for name in ("data_path", "output_dir"):
            if not getattr(settings, name) and (data is None or name == "output_dir"):
                raise InputError(f"--{name.replace('_', '-')} is needed")
        self.settings = s = settings
        self.out = Path(s.output_dir)
        self.device = choose_device(s.device or None)
        self.val = None
        if data is not None:
            self.pictures, self.val = data
        else:
            if s.val_split:
                self.val = self._open(s.val_split, s.val_include)
            self.pictures = self._open(s.split, s.include, s.exclude, cache=s.cache)
        self.table = self.pictures.table
        if data is None and self.val is not None and s.val_split != s.split:
            refuse_overlap(self.pictures, self.val, by_name=s.dataset == "voc")
        torch.manual_seed(s.seed)
        np.random.seed(s.seed % 2**32)
        random.seed(s.seed)
        self.model = self._make_model(network)
        self.optimizer = make_optimizer(self.model, s)
        transform = train_transform(
            s.crop_size, scale=(s.scale_min, s.scale_max), strength=s.augment
        )
        self.crops = Crops(self.pictures, transform, s.seed)
        if len(self.crops) < s.batch_size:
            raise InputError(
                f"--batch-size {s.batch_size} is more than the {len(self.crops)} pictures"
            )
        if s.cache:  # read here, once, and not by every worker
            for index in range(len(self.pictures)):
                self.pictures[index]
        self.per_epoch = len(self.crops) // s.batch_size
        self.iterations = s.epochs * self.per_epoch
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        self.average = None
        if s.ema_decay:
            self.average = AveragedModel(
                self.model, multi_avg_fn=moving_average(s.ema_decay), use_buffers=True
            )
        self.weight = self._class_weights()
        self.iteration = 0
        self.losses: list[Tensor] = []  # since the last row of the log

    def _open(
        self, split: str, include: str, exclude: str = "", cache: bool = False
    ) -> SegmentationDataset:
        s = self.settings
        return open_dataset(
            s.dataset,
            s.data_path,
            split,
            table=class_table(s.classes) if s.classes else None,
            labels=s.labels_dir or None,
            include=include or None,
            exclude=exclude or None,
            cache=cache,
            bit_depth=s.bit_depth or None,
        )

    def _make_model(self, network: dict[str, Any] | None) -> FCN:
        s = self.settings
        if network is None:
            model = create_model(s.model, num_classes=len(self.table), weights=s.weights or None)
            longest = max(max(self.pictures.size(k)) for k in range(len(self.pictures)))
            size = int(longest * s.scale_max)
            model.set_preprocessing(replace(model.preprocessing, max_size=size))
        else:
            model = create_model(s.model, num_classes=len(self.table), **network["options"])
            model.set_preprocessing(Preprocessing(**network["preprocessing"]))
        model.table = self.table
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _lr_factor(self, iteration: int) -> float:
        """Linear warm-up, then poly."""
        s = self.settings
        rise = min(1.0, (iteration + 1) / (s.warmup + 1))
        return rise * (1 - min(iteration, self.iterations) / self.iterations) ** s.power

    def _class_weights(self) -> Tensor | None:
        s = self.settings
        if s.class_weights == "none":
            return None
        labels = (self.pictures.labels(index) for index in range(len(self.pictures)))
        weights = median_frequency(labels, len(self.table), s.class_weight_power)
        return weights.to(self.device)

    @property
    def averaged(self) -> FCN:
        """The network that is validated and kept: the average, if there is one."""
        return self.model if self.average is None else cast(FCN, self.average.module)

    def state(self) -> dict[str, Any]:
        """Return everything that is needed to go on."""
        return {
            "settings": self.settings.to_json(),
            "pictures": [image.name for image, _ in self.pictures.samples],
            "network": {
                "options": self.model.options,
                "preprocessing": self.model.preprocessing.to_json(),
            },
            "iteration": self.iteration,
            "losses": [loss.item() for loss in self.losses],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "random": checkpoint.random_states(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            InputError: when the pictures are not those of the run.
        """
        names = [image.name for image, _ in self.pictures.samples]
        if state.get("pictures", names) != names:
            raise InputError(
                f"{self.settings.data_path}: holds other pictures than the run began with "
                f"({len(state['pictures'])} then, {len(names)} now)"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.iteration = state["iteration"]
        self.losses = [torch.tensor(loss, device=self.device) for loss in state.get("losses", ())]
        checkpoint.set_random_states(state["random"])

    def step(self, images: Tensor, targets: Tensor) -> Tensor:
        """Train on one batch, uint8 images and labels; return the loss."""
        s = self.settings
        labeled = bool((targets != IGNORE_INDEX).any())
        images = self.model.preprocess(images.to(self.device, non_blocking=True))
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=s.amp):
            loss = self.model(
                images,
                self._targets(targets.to(self.device, non_blocking=True)),
                weight=self.weight,
                label_smoothing=s.label_smoothing,
            )["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if s.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), s.clip_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.iteration += 1
        if labeled:  # without labels the mean is NaN, and its gradient zero
            self.losses.append(loss.detach())
        return loss.detach()

    def _targets(self, targets: Tensor) -> Tensor | dict[str, Tensor]:
        """Give each head of the network its labels, where the data set has those of several."""
        if targets.dim() == 3:
            return targets
        planes = dict(zip(self.pictures.heads, targets.unbind(-1), strict=True))
        own = getattr(self.model, "heads", ("out",))
        return {head: planes[head].contiguous() for head in planes if head in own}

    def train(self, progress: bool = True) -> None:
        """Run to the last iteration, with the log, the checkpoints and the validations.

        Raises:
            DivergenceError: when the loss or a weight is not finite; neither is then written.
        """
        with closing(Log(self.out / "log.csv", self.iteration)) as log:
            started = time.perf_counter() - log.seconds
            for images, targets in self._progress(progress):
                self.model.train()
                self.step(images, targets)
                self._keep(log, round(time.perf_counter() - started, 1))

    def _keep(self, log: Log, seconds: float) -> None:
        """Write what is due after an iteration: a row of the log, the weights, a checkpoint."""
        s = self.settings
        done = self.iteration == self.iterations
        log_due = done or self.iteration % s.print_freq == 0
        weights_due = done or self.iteration % (s.val_freq * self.per_epoch) == 0
        checkpoint_due = done or self.iteration % s.checkpoint_freq == 0
        if not (log_due or weights_due or checkpoint_due):
            return
        loss = float(torch.stack(self.losses).mean()) if self.losses else None
        self._check_numbers(loss)
        row = {
            "iteration": self.iteration,
            "epoch": round(self.iteration / self.per_epoch, 3),
            "seconds": seconds,
        }
        if log_due:
            shown = "" if loss is None else f"{loss:.5f}"
            log.write(lr=f"{self.schedule.get_last_lr()[0]:.4g}", loss=shown, **row)
            self.losses = []
        if weights_due:
            self.finish(log, row)
        if checkpoint_due:
            checkpoint.save(self.out / CHECKPOINT, self.state())

    def _check_numbers(self, loss: float | None) -> None:
        state = self.model.state_dict().values()
        if loss is not None and not np.isfinite(loss):
            what = f"the loss is {loss}"
        elif not all(bool(torch.isfinite(v).all()) for v in state if v.is_floating_point()):
            what = "a weight is not finite"
        else:
            return
        raise DivergenceError(
            f"{what} at iteration {self.iteration}: try a lower --lr or --clip-grad-norm; "
            f"{self.out / CHECKPOINT} still holds the last good state"
        )

    def _progress(self, progress: bool) -> Iterator[tuple[Tensor, Tensor]]:
        s = self.settings
        loader: Any = batches(
            self.crops,
            s.batch_size,
            s.seed,
            self.iteration,
            self.iterations,
            s.workers,
            self.device.type == "cuda",
        )
        for batch in tqdm(
            loader,
            total=self.iterations,
            initial=self.iteration,
            disable=None if progress else True,
            unit="it",
        ):
            if isinstance(batch, Exception):  # a picture that cannot be read
                raise batch
            yield batch

    def finish(self, log: Log, row: dict[str, Any]) -> None:
        """Validate, and write the weights as they are now."""
        if self.val is not None:
            scores = evaluate_model(self.averaged.eval(), self.val).scores()
            log.write(
                val_mean_iu=f"{scores.mean_iu:.4f}",
                val_pixel_accuracy=f"{scores.pixel_accuracy:.4f}",
                **row,
            )
            tqdm.write(f"epoch {row['epoch']:g}: mean IU {100 * scores.mean_iu:.1f}")
        save_model(self.averaged, self.out / WEIGHTS)


def _wrapped(
    train: Any, val: Any, table: ClassTable | None
) -> tuple[SegmentationDataset, SegmentationDataset | None] | None:
    if train is None:
        return None
    table = table or getattr(train, "table", None)
    if table is None:
        raise InputError("train: a data set without a class table needs table=")
    return wrap_dataset(train, table), None if val is None else wrap_dataset(val, table)


def start(
    settings: TrainSettings, *, train: Any = None, val: Any = None, table: ClassTable | None = None
) -> Run:
    """Begin a new run; write the settings, the list of files and a first checkpoint.

    Args:
        settings: of the run; with `train` those of the data are not used.
        train, val: data sets of (image, labels) pairs, as `fcnfast.data.wrap_dataset` takes them;
            by default those that the settings name.
        table: their classes, where they have no attribute `table`.

    Raises:
        InputError: when the folder already holds a run, or a setting cannot be used.
    """
    out = Path(settings.output_dir)
    if settings.output_dir and (out / CHECKPOINT).exists():
        raise InputError(f"{out} already holds a run: go on with --resume {out / CHECKPOINT}")
    run = Run(settings, data=_wrapped(train, val, table))
    require_every_class(run.pictures)
    out.mkdir(parents=True, exist_ok=True)
    remove_unfinished(out)
    root = Path(settings.data_path)
    names = [
        p.relative_to(root) if p.is_relative_to(root) else p
        for s in run.pictures.samples
        for p in s
    ]
    write_bytes(out / "files.txt", b"".join(os.fsencode(f"{n.as_posix()}\n") for n in names))
    write_json(out / "settings.json", settings.to_json())
    (out / "log.csv").unlink(missing_ok=True)
    checkpoint.save(out / CHECKPOINT, run.state())
    return run


def resume(
    path: str,
    changes: dict[str, Any],
    *,
    train: Any = None,
    val: Any = None,
    table: ClassTable | None = None,
) -> Run:
    """Go on from a checkpoint, in its folder; `changes` may say where the run runs.

    A run that began with data sets of its own needs them again.

    Raises:
        WeightsError: when the checkpoint cannot be read, or not by this release.
        InputError: when a change is not allowed, or the pictures are not those of the run.
    """
    state = checkpoint.load(Path(path))
    try:
        saved = TrainSettings(**{**state["settings"], "output_dir": str(Path(path).parent)})
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not from this release of fcnfast: {error}") from None
    try:
        data = _wrapped(train, val, table)
        run = Run(resumed(saved, changes), state.get("network"), data)
        run.restore(state)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path}: does not fit {saved.model}: {reason}") from None
    remove_unfinished(run.out)
    return run
