"""A training run that is killed again and again, for test_train.

    python tests/kill_tools.py SETTINGS.json KILLS WRITES SEED

Runs the training of the settings in child processes. KILLS of them die by SIGKILL at a random
moment, WRITES of these in the middle of writing a checkpoint; each time the next child goes on from
the checkpoint. Prints how often each happened. Nothing is computed in this process, so that its
children start with everything imported and no threads.
"""

import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from fcnfast.train import TrainSettings, checkpoint, resume, start


def train(settings: TrainSettings) -> None:
    """Start the run, or go on with it."""
    torch.set_num_threads(1)
    path = Path(settings.output_dir) / "checkpoint.pt"
    job = resume(str(path), {}) if path.exists() else start(settings)
    job.train(progress=False)


def stop_in_a_write(after: int) -> None:
    """Make the write of checkpoint number `after` stop half way and wait for the end."""
    whole, count = torch.save, [0]

    def half(content, file):
        count[0] += 1
        if count[0] <= after:
            return whole(content, file)
        buffer = io.BytesIO()
        whole(content, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.torch.save = half


def child(settings: TrainSettings, job) -> int:
    """Run `job`, then the training, in a child process; gives its id."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
            train(settings)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def ended(pid: int) -> str:
    """How a child ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {0: "done", -signal.SIGKILL: "killed"}.get(code, f"failed ({code})")


def main(path: str, kills: int, writes: int, seed: int) -> None:
    """Kill, go on, and finish."""
    settings = TrainSettings(**json.loads(Path(path).read_text()))
    chance = random.Random(seed)
    # The kills in a write come early, before the run can be over.
    plan = ["write", "anywhere"] * writes + ["anywhere"] * (kills - 2 * writes)
    seen = {"write": 0, "anywhere": 0}
    for kind in plan:
        if kind == "write":
            pid = child(settings, lambda: stop_in_a_write(chance.randint(0, 1)))
        else:
            pid = child(settings, lambda: None)
            time.sleep(chance.uniform(0.05, 1.2))
            os.kill(pid, signal.SIGKILL)
        how = ended(pid)
        if how not in ("killed", "done"):
            sys.exit(f"a child {how}")
        seen[kind] += how == "killed"
    how = ended(child(settings, lambda: None))
    print(json.dumps({**seen, "last": how}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
