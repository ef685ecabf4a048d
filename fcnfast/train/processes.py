"""The processes of a run: one, or those that torchrun started, joined by torch.distributed."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..data.check import explained_workers
from ..device import choose_device, out_of_memory, too_small
from ..errors import InputError
from .settings import TrainSettings

JOINING = timedelta(seconds=60)
# The others wait while process 0 writes a checkpoint, or one validates large pictures.
WAITING = timedelta(minutes=30)
FAILED = 2  # the exit code of every process when one of them cannot go on

T = TypeVar("T")


class Processes:
    """One process of a run, and what it does together with the others.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; without them this is the only
    process. CPU tensors use gloo, GPU tensors NCCL. InputError if the others cannot be joined.

    rank, world: the process's number and how many there are, over all machines. local_rank,
    local_world: the same on this machine.
    """

    def __init__(self) -> None:
        def env(name: str, default: int) -> int:
            text = os.environ.get(name, str(default))
            if not text.isdigit():
                raise InputError(f"{name} must be a number, not {text!r}")
            return int(text)

        self.rank, self.world = env("RANK", 0), env("WORLD_SIZE", 1)
        self.local_rank = env("LOCAL_RANK", self.rank)
        self.local_world = env("LOCAL_WORLD_SIZE", self.world)
        for name, size in (("WORLD_SIZE", self.world), ("LOCAL_WORLD_SIZE", self.local_world)):
            if size < 1:
                raise InputError(f"{name} must be at least 1, not {size}")
        if self.rank >= self.world:
            raise InputError(f"RANK {self.rank} must be below WORLD_SIZE, {self.world}")
        if self.world > 1:
            self._join()

    def _join(self) -> None:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store, rank, world = next(iter(dist.rendezvous("env://", timeout=JOINING)))
            store.set_timeout(JOINING)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=world, timeout=WAITING
            )
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            told = f"cannot join the {self.world} of this run at {address}: {reason}"
            raise InputError(f"process {self.rank} {told}") from None

    def leave(self) -> None:
        """Leave the process group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def device(self, name: str) -> torch.device:
        """Return the device called `name`; each of several processes has its own GPU."""
        device = choose_device(name or None)
        if self.world > 1 and device.type == "cuda":
            if device.index is not None:
                raise InputError(f"--device {name}: every process needs a GPU of its own")
            device = choose_device(f"cuda:{self.local_rank}")
            torch.cuda.set_device(device)
        return device

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place; all of them get the sum."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, tensor: Tensor) -> None:
        """Give all processes the tensor of process 0, in place."""
        if self.world > 1:
            dist.broadcast(tensor, 0)

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in the order of their ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            if not _lost(error):
                raise
            raise InputError(f"process {self.rank} lost another process of this run") from error
        return values

    def together(self, work: Callable[[], T]) -> T:
        """Call `work` in every process; if it fails in one of them, all of them end.

        Process 0 raises the first InputError or OSError of any process, the others SystemExit.
        """
        result, error = None, None
        try:
            result = work()
        except (InputError, OSError) as caught:
            error = caught
        for rank, found in enumerate(self.gather(error)):
            if found is not None:
                self.fail(found if rank == 0 else InputError(f"process {rank}: {found}"))
        return result  # type: ignore[return-value]

    def fail(self, error: Exception) -> NoReturn:
        """Raise an error that all processes share in process 0, and end the others quietly."""
        if self.rank == 0:
            raise error
        raise SystemExit(FAILED)

    def agree(self, what: dict[str, Any]) -> None:
        """Fail, as `together` does, if processes differ in something that must be the same."""
        first, *others = self.gather(what)
        for rank, theirs in enumerate(others, 1):
            for key, value in first.items():
                if theirs[key] != value:
                    told = f"{value} in process 0, {theirs[key]} in process {rank}"
                    self.fail(InputError(f"the processes differ in {key}: {told}"))


@contextlib.contextmanager
def explained(processes: Processes, settings: TrainSettings) -> Iterator[None]:
    """Turn torch's errors about memory, sizes and other processes into InputError.

    Each message begins with the flags that may help, and their values.
    """
    crop = f"--crop-size {settings.crop_size}"
    sizes = f"--batch-size {settings.batch_size}, {crop}"
    try:
        with explained_workers(settings.workers):
            yield
    except InputError:
        raise
    except (RuntimeError, MemoryError, ValueError) as error:
        reason = " ".join(str(error).split())
        if out_of_memory(error):
            told = (
                f"{sizes}: out of memory; try smaller ones with more --grad-accum, --amp, or "
                f"--checkpoint-activations ({reason})"
            )
        elif "more than 1 value per channel" in reason:
            told = f"{sizes}: batch norm needs more than one value; try larger ones or --freeze bn"
        elif too_small(error):
            told = f"{crop}: too small for the network: {reason}"
        elif processes.world > 1 and _lost(error):
            told = (
                f"process {processes.rank} lost another process of this run: see its error, and "
                f"resume with --resume {settings.output_dir}"
            )
        else:
            raise
        raise InputError(told) from error


def _lost(error: Exception) -> bool:
    """Whether an error of torch means that another process was lost."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def has_bf16() -> bool:
    """Whether the CPU reports bfloat16 instructions; True if that cannot be found out."""
    info = Path("/proc/cpuinfo")
    return not info.exists() or re.search(r"\b(\w+_)?bf16\b", info.read_text()) is not None


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far, MiB, of the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    unit = 1 if platform.system() == "Darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20
