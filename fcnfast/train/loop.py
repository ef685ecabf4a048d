"""The training loop, in the order in which things happen.

fcnfast train --data-path CamVid --output-dir run            # one machine, GPU if there is one
fcnfast train --resume run/checkpoint.pt                     # go on after a stop
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ..data import ClassTable, FolderDataset, class_table, train_transform
from ..data.images import picture_size
from ..data.synthetic import SyntheticScenes
from ..device import choose_device
from ..errors import DivergenceError, InputError
from ..metrics import ConfusionMatrix
from ..models import FCN, create_model, save_model
from . import checkpoint
from .batches import Cached, Crops, Samples, batches
from .log import Log
from .settings import TrainSettings, resumed

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
# Drawn scenes are learned from seeds of their own; the ones below are for demos and tests.
FIRST_SCENE = 1_000_000

# Scores a network on a data set: `fcnfast.evaluate.evaluate_model`, handed in from above.
Validate = Callable[[FCN, FolderDataset], ConfusionMatrix]


def _folder(
    settings: TrainSettings, table: ClassTable, split: str, include: str, exclude: str
) -> FolderDataset:
    return FolderDataset(
        settings.data_path, split, table, include=include or None, exclude=exclude or None
    )


class Run:
    """One training run: everything that changes while it goes on, and the loop."""

    def __init__(self, settings: TrainSettings, validate: Validate) -> None:
        for name in ("data_path", "output_dir"):
            if not getattr(settings, name):
                raise InputError(f"--{name.replace('_', '-')} is needed")
        self.settings = s = settings
        self.validate = validate
        self.out = Path(s.output_dir)
        self.device = choose_device(s.device or None)
        self.table = class_table(s.classes)
        self.val = None
        if s.val_split:
            self.val = _folder(s, self.table, s.val_split, s.val_include, "")
        self.pictures = _folder(s, self.table, s.split, s.include, s.exclude)
        torch.manual_seed(s.seed)
        np.random.seed(s.seed % 2**32)
        random.seed(s.seed)
        self.model = self._make_model()
        self.optimizer = _optimizer(self.model, s)
        self.crops = self._crops()
        if len(self.crops) < s.batch_size:
            raise InputError(
                f"--batch-size {s.batch_size} is more than the {len(self.crops)} pictures"
            )
        self.per_epoch = len(self.crops) // s.batch_size
        self.iterations = s.epochs * self.per_epoch
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        self.average = None
        if s.ema_decay:
            self.average = AveragedModel(
                self.model, multi_avg_fn=_moving_average(s.ema_decay), use_buffers=True
            )
        self.weight = self._class_weights()
        self.iteration = 0

    def _make_model(self) -> FCN:
        s = self.settings
        model = create_model(s.model, num_classes=len(self.table), weights=s.weights or None)
        model.table = self.table
        longest = max(max(picture_size(image)) for image, _ in self.pictures.samples)
        model.set_preprocessing(replace(model.preprocessing, max_size=int(longest * s.scale_max)))
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _crops(self) -> Crops:
        s = self.settings
        parts: list[Samples] = [Cached(self.pictures) if s.cache else self.pictures]
        if s.synthetic:
            parts.append(Cached(SyntheticScenes(s.synthetic, seed=FIRST_SCENE + s.seed)))
        transform = train_transform(
            s.crop_size, scale=(s.scale_min, s.scale_max), strength=s.augment
        )
        return Crops(parts, transform, s.seed)

    def _lr_factor(self, iteration: int) -> float:
        """Linear warm-up, then poly."""
        s = self.settings
        rise = min(1.0, (iteration + 1) / (s.warmup + 1))
        return rise * (1 - min(iteration, self.iterations) / self.iterations) ** s.power

    def _class_weights(self) -> Tensor | None:
        """Median frequency balancing: the median class frequency over the class' own.

        A class' frequency is its pixels over the pixels of the pictures that hold it.
        """
        if self.settings.class_weights == "none":
            return None
        classes = len(self.table)
        pixels, room = np.zeros(classes), np.zeros(classes)
        for index in range(len(self.pictures)):
            count = np.bincount(self.pictures[index].labels.ravel(), minlength=256)[:classes]
            pixels += count
            room += np.where(count > 0, count.sum(), 0)
        frequency = np.divide(pixels, room, out=np.zeros(classes), where=room > 0)
        present = frequency[frequency > 0]
        weights = np.divide(
            np.median(present), frequency, out=np.ones(classes), where=frequency > 0
        )
        weights = weights**self.settings.class_weight_power
        return torch.tensor(weights, dtype=torch.float32, device=self.device)

    @property
    def averaged(self) -> FCN:
        """The network that is validated and kept: the average, if there is one."""
        return self.model if self.average is None else cast(FCN, self.average.module)

    def state(self) -> dict[str, Any]:
        """Everything that is needed to go on."""
        return {
            "settings": self.settings.to_json(),
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "random": checkpoint.random_states(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.iteration = state["iteration"]
        checkpoint.set_random_states(state["random"])

    def step(self, images: Tensor, targets: Tensor) -> Tensor:
        """One batch of uint8 images and labels: forward, backward, update. Gives the loss."""
        s = self.settings
        images = self.model.preprocess(images.to(self.device, non_blocking=True))
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=s.amp):
            loss = self.model(
                images,
                targets.to(self.device, non_blocking=True),
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
        return loss.detach()

    def train(self, progress: bool = True) -> None:
        """Run to the last iteration, with the log, the checkpoints and the validations.

        Raises:
            DivergenceError: when the loss is no number; the last checkpoint stays.
        """
        s = self.settings
        log = Log(self.out / "log.csv", self.iteration)
        started, losses = time.perf_counter() - log.seconds, []
        for images, targets in self._progress(progress):
            self.model.train()
            losses.append(self.step(images, targets))
            done = self.iteration == self.iterations
            row = {
                "iteration": self.iteration,
                "epoch": round(self.iteration / self.per_epoch, 3),
                "seconds": round(time.perf_counter() - started, 1),
            }
            if self.iteration % s.print_freq == 0 or done:
                loss, losses = float(torch.stack(losses).mean()), []
                if not np.isfinite(loss):
                    raise DivergenceError(
                        f"the loss is {loss} at iteration {self.iteration}: try a lower --lr or "
                        f"--clip-grad-norm; {self.out / CHECKPOINT} is as it was"
                    )
                log.write(lr=f"{self.schedule.get_last_lr()[0]:.4g}", loss=f"{loss:.5f}", **row)
            if self.iteration % (s.val_freq * self.per_epoch) == 0 or done:
                self.finish(log, row)
            if self.iteration % s.checkpoint_freq == 0 or done:
                checkpoint.save(self.out / CHECKPOINT, self.state())
        log.close()

    def _progress(self, progress: bool) -> Iterator[tuple[Tensor, Tensor]]:
        s = self.settings
        loader = batches(
            self.crops,
            s.batch_size,
            s.seed,
            self.iteration,
            self.iterations,
            s.workers,
            self.device.type == "cuda",
        )
        yield from tqdm(
            loader,
            total=self.iterations,
            initial=self.iteration,
            disable=None if progress else True,
            unit="it",
        )

    def finish(self, log: Log, row: dict[str, Any]) -> None:
        """Validate, and write the weights as they are now."""
        if self.val is not None:
            scores = self.validate(self.averaged.eval(), self.val).scores()
            log.write(
                val_mean_iu=f"{scores.mean_iu:.4f}",
                val_pixel_accuracy=f"{scores.pixel_accuracy:.4f}",
                **row,
            )
            tqdm.write(f"epoch {row['epoch']:g}: mean IU {100 * scores.mean_iu:.1f}")
        self.averaged.table = self.table
        save_model(self.averaged, self.out / WEIGHTS)


Tensors = list[Tensor] | tuple[Tensor, ...]


def _moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """An exponential average that forgets its first, untrained values sooner than its decay."""

    @torch.no_grad()
    def update(averages: Tensors, currents: Tensors, count: Tensor | int) -> None:
        step = int(count)
        share = 1 - min(decay, (1 + step) / (10 + step))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, share)
        else:  # counters
            torch._foreach_copy_(averages, currents)

    return update


def _optimizer(model: FCN, s: TrainSettings) -> torch.optim.Optimizer:
    """Weight decay holds for the weights of convolutions, not for biases and norms."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": s.weight_decay}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    if s.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=s.lr)
    return torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum)


def start(settings: TrainSettings, validate: Validate) -> Run:
    """A new run; its folder gets the settings, the list of files, and a first checkpoint.

    Raises:
        InputError: when the folder already holds a run, or a setting cannot be used.
    """
    out = Path(settings.output_dir)
    if settings.output_dir and (out / CHECKPOINT).exists():
        raise InputError(f"{out} already holds a run: go on with --resume {out / CHECKPOINT}")
    run = Run(settings, validate)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.clear_unfinished(out, CHECKPOINT)
    root = Path(settings.data_path)
    names = [
        p.relative_to(root) if p.is_relative_to(root) else p
        for s in run.pictures.samples
        for p in s
    ]
    (out / "files.txt").write_text("".join(f"{name.as_posix()}\n" for name in names))
    (out / "settings.json").write_text(json.dumps(settings.to_json(), indent=1) + "\n")
    (out / "log.csv").unlink(missing_ok=True)
    checkpoint.save(out / CHECKPOINT, run.state())
    return run


def resume(path: str, changes: dict[str, Any], validate: Validate) -> Run:
    """The run of a checkpoint; `changes` may say where and how it runs.

    Raises:
        WeightsError: when the checkpoint cannot be read.
        InputError: when a change is not allowed.
    """
    state = checkpoint.load(Path(path))
    settings = resumed(TrainSettings(**state["settings"]), changes)
    run = Run(settings, validate)
    run.restore(state)
    checkpoint.clear_unfinished(run.out, CHECKPOINT)
    return run
