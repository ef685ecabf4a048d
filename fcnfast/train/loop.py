"""The training loop, in the order of execution.

fcnfast train --data-path CamVid --output-dir run                       # one CPU, or one GPU
torchrun --nproc_per_node=8 -m fcnfast train --data-path CamVid ...     # eight GPUs
torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 \
    -m fcnfast train --data-path CamVid ...                             # the same on two machines
fcnfast train --resume run                                              # resume a stopped run
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Subset

from ..data import ClassTable, SegmentationDataset, wrap_dataset
from ..data.check import require_every_class
from ..data.datasets import open_chosen, refuse_overlap
from ..data.folder import shortened
from ..errors import DivergenceError, InputError, WeightsError
from ..evaluate import evaluate_model
from ..files import locked, remove_unfinished, write_bytes, write_json
from ..metrics import ConfusionMatrix, Scores
from ..models import FCN, save_model
from . import batches, checkpoint, network
from .batches import Batch
from .checkpoint import BEST, CHECKPOINT, LAST
from .log import Log, Progress
from .processes import Processes, explained, has_bf16, peak_memory
from .recipes import RECIPES
from .settings import TrainSettings, flag, resumed


class Run:
    """One training run: its state, and the loop.

    saved: options and preprocessing of a resumed run, whose `weights` file may be gone.
    train, val, table: as in `start`.
    """

    def __init__(
        self,
        settings: TrainSettings,
        processes: Processes,
        saved: dict[str, Any] | None,
        train: Any,
        val: Any,
        table: ClassTable | None,
    ) -> None:
        for name in ("data_path", "output_dir"):
            if not getattr(settings, name) and (train is None or name == "output_dir"):
                raise InputError(f"{flag(name)} is needed")
        self.processes = p = processes
        settings = replace(settings, workers=batches.worker_count(settings.workers, p.local_world))
        self.settings = s = settings
        self.out = Path(s.output_dir)
        self.device = p.device(s.device)
        channels, self.val = max(3, s.in_channels), None
        if train is not None:
            table = table or getattr(train, "table", None)
            if table is None:
                raise InputError("train: a data set without a class table needs table=")
            self.pictures = wrap_dataset(train, table, channels)
            if val is not None:
                self.val = wrap_dataset(val, table, channels)
        else:
            if s.val_split:
                self.val = open_chosen(s, s.val_split, s.val_include, "", channels=channels)
            options = {"cache": s.cache, "channels": channels}
            self.pictures = open_chosen(s, s.split, s.include, s.exclude, **options)
            if self.val is not None and s.val_split != s.split:
                refuse_overlap(self.pictures, self.val, by_name=s.dataset == "voc")
        self.table = self.pictures.table
        self.crops = batches.Crops(self.pictures, s, p.world)
        self.per_epoch = len(self.crops) // (s.batch_size * s.grad_accum)
        self.iterations = s.iterations or s.epochs * self.per_epoch
        torch.manual_seed(s.seed)
        self.model = network.make_model(s, self.table, self.pictures, self.device, saved)
        self.crops.heads = tuple(getattr(self.model, "heads", ("out",)))
        self.frozen = network.freeze(self.model, s.freeze)
        self.optimizer = network.make_optimizer(self.model, s)
        scaled = s.amp and s.amp_dtype == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.average = None
        if s.ema_decay:
            update = network.moving_average(s.ema_decay)
            self.average = AveragedModel(self.model, multi_avg_fn=update, use_buffers=True)
        if s.checkpoint_activations:
            network.checkpoint_blocks(self.model)
        self.weight = None  # of each class in the loss
        if s.class_weights == "median-frequency":
            weights = network.median_frequency(self.pictures, s.class_weight_power)
            self.weight = weights.to(self.device)
        self.net: nn.Module = self.model  # what `train` wraps for several processes, or compiles
        self.progress = Progress(0, 0, False)
        self.iteration = 0
        self.loss_sum = torch.zeros((), device=self.device)  # this process's, since the last row
        self.loss_count = 0  # steps with any label
        self.best, self.best_epoch, self.stale = -1.0, 0.0, 0
        self.stopped_early = self.sigterm = self.stopping = False
        self.saved = 0  # iteration of the last checkpoint

    def identity(self) -> dict[str, Any]:
        """Return what all processes must agree on."""
        found = {"the classes": f"{len(self.table)} ({', '.join(self.table.names)})"}
        apart = ("data_path", "output_dir", "device", "workers")
        found |= {flag(k): v for k, v in asdict(self.settings).items() if k not in apart}
        for name, folder in (("the pictures", self.pictures), ("validation", self.val)):
            names = [image.name for image, _ in folder.samples] if folder else []
            found[name] = f"{len(names)} ({hashlib.sha1(repr(names).encode()).hexdigest()[:8]})"
        return found | {"iteration": self.iteration}

    @property
    def averaged(self) -> FCN:
        """The network that is validated and kept: the average, if there is one."""
        return self.model if self.average is None else cast(FCN, self.average.module)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.stopped_early or self.iteration >= self.iterations

    def train(self, progress: bool = True) -> bool:
        """Run to the last iteration, with the log, the checkpoints and the validations.

        Returns False after SIGTERM, with everything in the checkpoint; otherwise True.
        DivergenceError if the loss or a weight is not finite: neither is then written. InputError
        if the memory does not suffice, or another process of the run was lost.
        """
        p, s = self.processes, self.settings
        shown = progress and p.rank == 0
        if self.finished:
            if shown:
                print(f"{self.out}: finished after {self._epochs()}; a larger --epochs continues")
            return True
        self.progress = Progress(self.iteration, self.iterations, shown)
        with contextlib.ExitStack() as stack, explained(p, s):
            stack.callback(self.progress.bar.close)
            self.log = p.together(lambda: self._begin(stack))
            if self.log is not None:
                stack.callback(self.log.close)
            if threading.current_thread() is threading.main_thread():  # only it receives signals
                before = signal.signal(signal.SIGTERM, self._terminate)
                stack.callback(signal.signal, signal.SIGTERM, before)
            self.net = self._wrapped()
            first, pin = self.iteration, self.device.type == "cuda"
            loader = batches.loader(self.crops, s, first, self.iterations, p.rank, p.world, pin)
            source = iter(loader)
            # An error's traceback would keep the garbage collector from shutting them down.
            stack.callback(getattr(source, "_shutdown_workers", lambda: None))
            self.started = time.perf_counter() - (self.log.seconds if self.log else 0.0)
            self._reset_clocks()
            while not self.finished and not self.stopping:
                started = time.perf_counter()
                group = [batches.next_batch(source) for _ in range(s.grad_accum)]
                self.waited += time.perf_counter() - started
                self.loading += sum(batch.seconds for batch in group)
                self.step(group)
                self.progress.bar.update()
                self.spent += time.perf_counter() - started
                self._keep()
        if shown:
            self._tell_end()
        return self.finished

    def _begin(self, held: contextlib.ExitStack) -> Log | None:
        """Write the description of the run, print it and open the log, in process 0.

        InputError if another process trains in the folder; it is locked as long as `held`.
        """
        if self.processes.rank > 0:
            return None
        s = self.settings
        self.out.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(self.out))
        remove_unfinished(self.out)
        root, paths = Path(s.data_path), [path for pair in self.pictures.samples for path in pair]
        names = [path.relative_to(root) if path.is_relative_to(root) else path for path in paths]
        lines = [os.fsencode(f"{name.as_posix()}\n") for name in names]
        write_bytes(self.out / "files.txt", b"".join(lines))
        write_json(self.out / "settings.json", asdict(s))
        if self.iteration == 0:
            (self.out / "log.csv").unlink(missing_ok=True)
        learned = sum(q.numel() for q in self.model.parameters() if q.requires_grad)
        self.progress.say(
            f"{s.model}, {len(self.table)} classes, {learned / 1e6:.1f} M trainable parameters; "
            f"{len(self.pictures)} pictures, {self.iterations} iterations, {self.per_epoch} per "
            f"epoch; {self.processes.world} x {self.device.type}"
        )
        if self.pictures.passed_over:
            passed = [path.name for path in self.pictures.passed_over]
            self.progress.say(f"skipped, no picture extension: {shortened(passed)}")
        values = asdict(s)
        chosen = list(values)[list(values).index("freeze") : list(values).index("output_dir")]
        told = ", ".join(f"{name} {values[name]}" for name in chosen)
        self.progress.say(f"recipe {s.recipe} ({RECIPES[s.recipe].about}): {told}")
        if s.amp and s.amp_dtype == "bf16" and self.device.type == "cpu" and not has_bf16():
            told = "has no bfloat16 instructions; float32 is several times as fast"
            print(f"fcnfast: warning: --amp: this CPU {told}", file=sys.stderr)
        return Log(self.out, self.iteration, tensorboard=s.log == "tensorboard")

    def _terminate(self, *_: Any) -> None:
        """End the run after this step: the cluster wants the machine back."""
        self.sigterm = True

    def _wrapped(self) -> nn.Module:
        """Return the network as it is called: compiled, and for several processes in DDP."""
        net: nn.Module = self.model
        if self.settings.compile:
            net = cast(nn.Module, torch.compile(net))
        if self.processes.world > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            net = DistributedDataParallel(net, device_ids=ids, gradient_as_bucket_view=True)
        return net

    def step(self, group: list[Batch]) -> None:
        """Take one optimizer step, on this process's batches of it.

        The loss is the sum over all batches of all processes, divided by their valid pixels or
        images. DDP averages gradients, so every process multiplies its part by `world`.
        """
        s, world = self.settings, self.processes.world
        # Each step seeds its random numbers (for dropout): a resumed run draws the same.
        chance = np.random.SeedSequence([s.seed, self.iteration, self.processes.rank])
        torch.manual_seed(int(chance.generate_state(1, np.uint64)[0]))
        divisors, labeled = self._divisors(group)
        factor = self._lr_factor(self.iteration)
        for settings in self.optimizer.param_groups:
            settings["lr"] = s.lr * settings["share"] * factor
        self.model.train()
        for norm in self.frozen:
            norm.eval()
        self.optimizer.zero_grad(set_to_none=True)
        net: Any = self.net
        for index, batch in enumerate(group):
            reduce_later = world > 1 and index < len(group) - 1
            with net.no_sync() if reduce_later else contextlib.nullcontext():
                loss = self._loss(batch, divisors)
                self.scaler.scale(loss * world).backward()
            self.loss_sum += loss.detach()
        if s.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), s.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.iteration += 1
        self.loss_count += labeled

    def _divisors(self, group: list[Batch]) -> tuple[dict[str, Tensor], bool]:
        """Return what each head's sum is divided by, and whether the step has any label.

        That is the number of images, or of pixels with a class, each counted as its class's weight.
        The same sum over the processes also tells all of them if one of them has to stop.
        """
        images, heads = sum(len(batch.images) for batch in group), list(group[0].counts)
        # The pixels of each class, heads x 255; 255 itself is ignored.
        counts = torch.stack([torch.stack([batch.counts[h] for h in heads]) for batch in group])
        counts = counts.sum(0)[:, :255].double()
        own = valid = counts.sum(1)
        if self.settings.normalize == "images":
            own = torch.full_like(valid, images)
        elif self.weight is not None:
            own = (counts[:, : len(self.weight)] * self.weight.double().cpu()).sum(1)
        parts = [*own.tolist(), images, float(valid.mean()), self.sigterm]
        shared = torch.tensor(parts, dtype=torch.float64, device="cpu")
        *totals, images, valid, stop = self.processes.sum_(shared).tolist()
        self.stopping = stop > 0
        if self.iteration == 0:
            self._tell_loss(images, valid)
        # Without a label the loss is 0, and so is its gradient.
        divisors = {
            head: torch.tensor(total or 1.0, dtype=torch.float32, device=self.device)
            for head, total in zip(heads, totals, strict=True)
        }
        return divisors, valid > 0

    def _lr_factor(self, iteration: int) -> float:
        """Linear warm-up over a share of the run, then poly."""
        s = self.settings
        rise = min(1.0, (iteration + 1) / (int(s.warmup * self.iterations) + 1))
        return rise * (1 - min(iteration, self.iterations) / self.iterations) ** s.power

    def _loss(self, batch: Batch, divisors: dict[str, Tensor]) -> Tensor:
        """This batch's part of the loss; its pictures go to the device as uint8."""
        s = self.settings
        images = self.model.preprocess(batch.images.to(self.device, non_blocking=True))
        if s.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        targets: Any = batch.targets
        if isinstance(targets, Tensor):
            targets = targets.to(self.device, non_blocking=True)
        else:
            targets = {k: t.to(self.device, non_blocking=True) for k, t in targets.items()}
        dtype = torch.float16 if s.amp_dtype == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, dtype, enabled=s.amp):
            options = {"weight": self.weight, "label_smoothing": s.label_smoothing}
            return self.net(images, targets, normalizer=divisors, **options)["loss"]

    def _tell_loss(self, images: float, valid: float) -> None:
        """Print how the loss is normalized, and the rate that a mean loss would need."""
        lr, summed = self.settings.lr, "loss: sum over the step's valid pixels"
        if self.settings.normalize == "valid":
            told = f"{valid:,.0f} in the first step): --lr {lr:g} is that of a mean loss"
            self.progress.say(f"{summed} / their number ({told}")
        else:
            self.progress.say(
                f"{summed} / its {images:.0f} images; {valid / images:,.0f} valid pixels per image "
                f"in the first step: --lr {lr:g} equals {lr * valid / images:.2g} on a mean loss"
            )

    def _keep(self) -> None:
        """Write what is due after an iteration: a row of the log, the weights, a checkpoint."""
        s, p = self.settings, self.processes
        done = self.iteration >= self.iterations
        log_due = done or self.iteration % s.print_freq == 0
        weights_due = done or self.iteration % (s.val_freq * self.per_epoch) == 0
        save_due = done or self.stopping or self.iteration % s.checkpoint_freq == 0
        if not (log_due or weights_due or save_due):
            return
        total = self._checked_loss()
        row = {
            "iteration": self.iteration,
            "epoch": round(self.iteration / self.per_epoch, 3),
            "seconds": round(time.perf_counter() - self.started, 1),
        }
        if log_due:
            mean = total / self.loss_count if self.loss_count else None
            p.together(lambda: self._log(row, mean))
            self.loss_sum.zero_()
            total, self.loss_count = 0.0, 0
            self._reset_clocks()
        if weights_due:
            scores = self._validate() if self.val is not None else None
            p.together(lambda: self._keep_weights(row, scores))
            self.stopped_early = bool(s.patience) and self.stale >= s.patience
        if save_due or self.stopped_early:
            p.together(lambda: self._save(total))

    def _checked_loss(self) -> float:
        """Return the sum of the losses since the last row of the log, over all processes.

        DivergenceError if it, or a weight of any process, is not finite.
        """
        parameters = [p for p in self.averaged.state_dict().values() if p.is_floating_point()]
        parameters += [p.detach() for p in self.model.parameters()]
        finite = torch.stack([p.isfinite().all() for p in parameters]).all()
        parts = [float(self.loss_sum), float(not finite)]
        sums = torch.tensor(parts, dtype=torch.float64, device="cpu")
        total, bad = self.processes.sum_(sums).tolist()
        if bad or not np.isfinite(total):
            what = "a weight" if np.isfinite(total) else "the loss"
            good = f"the last good checkpoint is {self.out / CHECKPOINT}, iteration {self.saved}"
            good = good if self.saved else "there is no checkpoint yet"
            when = f"at iteration {self.iteration}: a lower --lr may help"
            self.processes.fail(DivergenceError(f"{what} is not finite {when}; {good}"))
        return total

    def _log(self, row: dict[str, Any], loss: float | None) -> None:
        if self.log is None:
            return
        s = self.settings
        images = (self.iteration - self.logged) * s.batch_size * s.grad_accum
        loaded = images * max(1, s.workers)  # the seconds are one worker's
        row = row | {
            "lr": f"{s.lr * self._lr_factor(self.iteration - 1):.4g}",
            "loss": "" if loss is None else f"{loss:.5g}",
            "images_per_second": f"{images / max(self.spent - self.waited, 1e-9):.1f}",
            "loader_images_per_second": f"{loaded / max(self.loading, 1e-9):.1f}",
            "memory_mib": peak_memory(self.device),
        }
        self.log.write(row)
        best = self.best if self.best >= 0 else None
        self.progress.tell(self.iteration, loss, best, row)

    def _reset_clocks(self) -> None:
        self.spent = self.waited = self.loading = 0.0
        self.logged = self.iteration

    def _validate(self) -> Scores:
        """Score the averaged network; every process labels a part of the pictures."""
        p, val = self.processes, cast(SegmentationDataset, self.val)
        for buffer in self.averaged.buffers():  # running statistics are process 0's
            p.share(buffer)
        part = Subset(val, range(p.rank, len(val), p.world))  # no picture twice
        none = ConfusionMatrix(len(self.table))  # if there are more processes than pictures
        net = self.averaged.eval()
        matrix = p.together(lambda: evaluate_model(net, part) if len(part) else none)
        p.sum_(torch.from_numpy(matrix.matrix))
        return matrix.scores()

    def _keep_weights(self, row: dict[str, Any], scores: Scores | None) -> None:
        """Write the latest weights, and write them again if they are the best so far."""
        if scores is not None:
            better = scores.mean_iu > self.best
            self.stale = 0 if better else self.stale + 1
            if better:
                self.best, self.best_epoch = scores.mean_iu, row["epoch"]
        if self.log is None:
            return
        if scores is not None:
            row = row | {
                "val_mean_iu": f"{scores.mean_iu:.4f}",
                "val_pixel_accuracy": f"{scores.pixel_accuracy:.4f}",
            }
            self.log.write(row)
            self.log.show(self.averaged, cast(SegmentationDataset, self.val), self.iteration)
            note = " (the best so far)" if better else ""
            counted, classes = int(np.isfinite(scores.iu).sum()), len(scores.iu)
            over = f" over {counted} of {classes} classes" if counted < classes else ""
            mean = f"mean IU {100 * scores.mean_iu:.1f}{over}"
            self.progress.say(f"epoch {row['epoch']:g}: {mean}{note}")
            if better:
                save_model(self.averaged, self.out / BEST)
        save_model(self.averaged, self.out / LAST)

    def _save(self, loss_sum: float) -> None:
        if self.processes.rank == 0:
            checkpoint.save(self.out / CHECKPOINT, self.state(loss_sum))
        self.saved = self.iteration

    def state(self, loss_sum: float) -> dict[str, Any]:
        """Return everything that a resumed run needs; `loss_sum` is over all processes."""
        preprocessing = self.model.preprocessing.to_json()
        return {
            "settings": asdict(self.settings),
            "pictures": [image.name for image, _ in self.pictures.samples],
            "classes": list(self.table.names),
            "network": {"options": self.model.options, "preprocessing": preprocessing},
            "iteration": self.iteration,
            "loss": [loss_sum, self.loss_count],
            "best": [self.best, self.best_epoch, self.stale],
            "stopped_early": self.stopped_early,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from `state`, on any number of processes; InputError if the pictures differ."""
        where = self.settings.data_path or "train"
        names = [image.name for image, _ in self.pictures.samples]
        if state["pictures"] != names:
            told = f"({len(state['pictures'])} then, {len(names)} now)"
            raise InputError(f"{where}: its pictures are not those that the run began with {told}")
        classes = state.get("classes", list(self.table.names))
        if classes != list(self.table.names):
            pairs = zip_longest(classes, self.table.names)
            k, (then, now) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
            told = f"class {k} was {then!r}, and is {now!r}"
            raise InputError(f"{where}: its classes are not those that the run began with: {told}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.saved = self.iteration = state["iteration"]
        loss, self.loss_count = state["loss"]
        self.loss_sum.fill_(loss if self.processes.rank == 0 else 0.0)
        self.best, self.best_epoch, self.stale = state["best"]
        before = state["settings"]
        same = all(before[n] == getattr(self.settings, n) for n in ("epochs", "patience"))
        self.stopped_early = state["stopped_early"] and same

    def _epochs(self) -> str:
        return f"{self.iteration} iterations ({self.iteration / self.per_epoch:.4g} epochs)"

    def _tell_end(self) -> None:
        s = self.settings
        if self.stopping and not self.finished:
            print(f"Stopped by SIGTERM after {self._epochs()}: resume with --resume {self.out}")
            return
        early = f", {self.stale} validations after the best" if self.stopped_early else ""
        print(f"Finished after {self._epochs()}{early}. The weights:")
        best = self.out / (BEST if self.best >= 0 else LAST)
        if self.best >= 0:
            print(f"  {best}  mean IU {100 * self.best:.1f}, epoch {self.best_epoch:g}")
        print(f"  {self.out / LAST}  the last")
        print(f"  fcnfast predict PHOTOS --weights {best}")
        if s.val_split and s.data_path:
            kind = "" if s.dataset == "folder" else f"--dataset {s.dataset} "
            data = f"{kind}--data-path {s.data_path} --split {s.val_split}"
            print(f"  fcnfast evaluate {data} --weights {best}")


def start(
    settings: TrainSettings,
    processes: Processes | None = None,
    *,
    train: Any = None,
    val: Any = None,
    table: ClassTable | None = None,
    over: bool = False,
) -> Run:
    """Create a new run; nothing is written before it trains.

    Args:
        processes: by default those of the environment.
        train, val: data sets of (image, labels) pairs, as `fcnfast.data.wrap_dataset` takes them,
            instead of those that the settings name.
        table: their classes, if they have no attribute `table`.
        over: replace the weights of a run that was stopped before its first checkpoint.

    InputError if the folder already holds a run or its weights, or a setting cannot be used.
    """
    p = processes or Processes()

    def new() -> Run:
        out = Path(settings.output_dir)
        if settings.output_dir and (out / CHECKPOINT).exists():
            raise InputError(f"{out} already holds a run: continue it with --resume {out}")
        if settings.output_dir and (out / BEST).exists() and not over:
            raise InputError(f"{out / BEST}: would be replaced; choose another --output-dir")
        s = replace(settings, model=settings.model or network.default_model(settings))
        run = Run(s, p, None, train, val, table)
        require_every_class(run.pictures)
        return run

    run = p.together(new)
    p.agree(run.identity())
    return run


def resume(
    path: str,
    changes: dict[str, Any],
    processes: Processes | None = None,
    *,
    train: Any = None,
    val: Any = None,
    table: ClassTable | None = None,
) -> Run:
    """Resume the run of a folder or a checkpoint; other arguments are as in `start`.

    `changes` are settings of where and how it runs, by name. WeightsError if the checkpoint cannot
    be read, or not by this release; InputError if a change is not allowed, or the pictures are not
    those of the run.
    """
    p = processes or Processes()
    at = Path(path) / CHECKPOINT if Path(path).is_dir() else Path(path)

    def restored() -> Run:
        state = checkpoint.load(at)
        try:
            saved = TrainSettings(**{**state["settings"], "output_dir": str(at.parent)})
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{at}: not from this release of fcnfast: {error}") from None
        try:
            s = resumed(saved, changes)
            run = Run(s, p, state["network"], train, val, table)
            run.restore(state)
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise WeightsError(f"{at}: does not fit {saved.model}: {reason}") from None
        return run

    run = p.together(restored)
    p.agree(run.identity())
    return run
