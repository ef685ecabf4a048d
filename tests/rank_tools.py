"""Training in processes that are joined by gloo, or killed, for test_train_ranks.

    python tests/rank_tools.py SCENES OUT

Runs every scenario in forked processes and prints how they ended. Nothing is computed in this
process, so that its children start with everything imported and no threads.
"""

import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # optimizers import it; here once, and not in every child

from fcnfast.cli import commands, main
from fcnfast.models import create_model, save_model, vgg
from fcnfast.train import checkpoint, resume, start
from fcnfast.train.batches import Batch, count_labels
from tests.train_tools import TINY, small

SCENES, OUT = Path(sys.argv[1]), Path(sys.argv[2])
vgg.STAGES, vgg.FULLY_CONNECTED = ((2,), (3,), (4,), (5,), (6,)), 7
SMALL = {
    **{"weights": str(OUT / "tiny.safetensors"), "freeze": "bn", "optimizer": "sgd", "lr": 0.02},
    **{"print_freq": 1, "checkpoint_freq": 3, "val_freq": 1},
    "val_include": "drive0*",  # one picture: the second process has none
}
# A run that is killed again and again; with dropout, whose random numbers must come again.
LONG = {
    **{"weights": str(SCENES / "tiny.safetensors"), "freeze": "none", "optimizer": "adamw"},
    **{"lr": 1e-3, "epochs": 20, "val_split": "", "val_include": ""},
}


def settings(name, **changes):
    return small(SCENES, OUT / name, **{**SMALL, **changes})


def whole_run(name, **changes):
    start(settings(name, **changes)).train(progress=False)
    return 0


def two_steps(name, model, weighted=False, **changes):
    """Two steps of three batches: unequal shares without a label, and one of them all of it."""
    changes = {"weights": "", "freeze": "none", "grad_accum": 3, "batch_size": 2, **changes}
    run = start(settings(name, model=model, **changes))
    rank, world = run.processes.rank, run.processes.world
    for layer in (m for m in run.model.modules() if isinstance(m, torch.nn.Dropout)):
        layer.p = 0.0
    generator = torch.Generator().manual_seed(3)
    for score in (m for n, m in run.model.named_parameters() if "score" in n):
        score.data.copy_(torch.randn(score.shape, generator=generator) * 0.3)
    if weighted:
        run.weight = torch.linspace(0.2, 2.0, 11)
    run.net = run._wrapped()
    for _ in range(2):
        group = []
        for index in range(3):
            images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=generator)
            out = torch.randint(0, 11, (2, 24, 24), dtype=torch.uint8, generator=generator)
            out[1, : 8 * (index + 1)] = 255  # in the last batch the second picture has no label
            geo = torch.randint(0, 3, (2, 24, 24), dtype=torch.uint8, generator=generator)
            geo[0, 5:] = 255
            mine = slice(rank * 2 // world, (rank + 1) * 2 // world)
            targets = {"out": out[mine], "geo": geo[mine]} if "sift" in model else out[mine]
            group.append(Batch(images[mine], targets, count_labels(targets), 0.0))
        run.step(group)
    content = {
        "loss": run.processes.sum_(run.loss_sum.clone()),
        "gradients": {n: p.grad for n, p in run.model.named_parameters() if p.requires_grad},
        "weights": run.model.state_dict(),
    }
    torch.save(content, OUT / f"{name}.{rank}.pt")
    return 0


def before_step(run, iteration, act):
    """Let `act` happen before the step of that number."""
    step = run.step

    def acting(group):
        if run.iteration == iteration:
            act()
        step(group)

    run.step = acting


def interrupted(name, rank, act, **changes):
    run = start(settings(name, val_split="", val_include="", **changes))
    if run.processes.rank == rank:
        before_step(run, 4, lambda: act(run))
    return 0 if run.train(progress=False) else commands.STOPPED


def go_on(name):
    return 0 if resume(str(OUT / name), {}).train(progress=False) else commands.STOPPED


def spoil(run):
    next(run.model.parameters()).data.fill_(float("nan"))


def fill_disk(run):
    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    checkpoint.torch.save = full


def kill(run):
    os.kill(os.getpid(), signal.SIGKILL)


def terminate(run):
    os.kill(os.getpid(), signal.SIGTERM)


def differing(name, **theirs):
    return whole_run(name, **(theirs if os.environ["RANK"] == "1" else {}))


def renamed_classes():
    """A table of as many classes by other names."""
    path = OUT / f"classes{os.environ['RANK']}.json"
    path.write_text(json.dumps({"names": [f"class {k}" for k in range(11)]}))
    return str(path)


def on_taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        os.environ["MASTER_PORT"] = str(taken.getsockname()[1])
        return whole_run("port")


def start_or_go_on(writes=None):
    """The long run; killed halfway through writing its checkpoint number `writes`, from 0 on."""
    if writes is not None:
        checkpoint.torch.save = partial(half_written, torch.save, [writes])
    return go_on("long") if (OUT / "long" / "checkpoint.pt").exists() else whole_run("long", **LONG)


def half_written(save, left, content, file):
    left[0] -= 1
    if left[0] >= 0:
        return save(content, file)
    buffer = io.BytesIO()
    save(content, buffer)
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def kill_again_and_again():
    """Kill the long run, in writes of a checkpoint and at any moment; how the processes ended."""
    chance, found = random.Random(7), {"write": [], "anywhere": []}
    for kind in ("write", "write", "anywhere", "anywhere", "anywhere", "anywhere"):
        writes = chance.randint(0, 1) if kind == "write" else None
        pid = child("long", 0, 1, 0, partial(start_or_go_on, writes))
        if kind == "anywhere":
            time.sleep(chance.uniform(0.05, 0.8))
            os.kill(pid, signal.SIGKILL)
        found[kind] += ended([pid])
    return found


# Name: how many processes, and what each of them does.
SCENARIOS = {
    "one": (1, lambda: whole_run("one")),
    "two": (2, lambda: whole_run("two")),
    "again": (2, lambda: whole_run("again")),
    **{
        f"{kind}{world}": (world, lambda a=(f"{kind}{world}", model), k=keys: two_steps(*a, **k))
        for kind, model, keys in (
            ("plain", "fcn16s_vgg16", {"weighted": True}),
            ("heads", "siftflow_fcn16s_vgg16", {"normalize": "images", "lr": 1e-5}),
            ("norms", "fcn4s_light", {"weights": SMALL["weights"], "freeze": "bn"}),
        )
        for world in (1, 2)
    },
    "stopped": (2, lambda: interrupted("stopped", 1, terminate)),
    "resumed": (1, lambda: go_on("stopped")),
    "unstopped": (1, lambda: whole_run("unstopped", val_split="", val_include="")),
    "killed": (2, lambda: interrupted("killed", 1, kill)),
    "nan": (2, lambda: interrupted("nan", 1, spoil)),
    "full": (2, lambda: interrupted("full", 0, fill_disk)),
    "classes": (2, lambda: differing("classes", classes=renamed_classes(), weights="")),
    "pictures": (2, lambda: differing("pictures", data_path=str(OUT / "fewer"))),
    "folder": (2, lambda: differing("folder", data_path="nowhere")),
    "port": (1, on_taken_port),
    "odd": (2, lambda: whole_run("odd", batch_size=3)),
    "long": (1, start_or_go_on),
    "in one go": (1, lambda: whole_run("in one go", **LONG)),
}


def child(name, rank, world, port, job):
    """Run a job in a child process; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    error = os.open(OUT / f"{name}.{rank}.err", os.O_WRONLY | os.O_CREAT)
    os.dup2(error, 2)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world if name != "port" else 2)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    commands.train = lambda _: job()
    code = 1
    try:
        code = main(["train"])
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pids, seconds=300):
    """How the processes of a scenario ended; None for one that had to be ended."""
    codes = {}
    limit = time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(status[1])
            elif pid not in codes and time.monotonic() > limit:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = None
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def run_all():
    report = {"kills": kill_again_and_again()}
    for name, (world, job) in SCENARIOS.items():
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        pids = [child(name, rank, world, port, job) for rank in range(world)]
        started = time.monotonic()
        codes = ended(pids)
        print(name, round(time.monotonic() - started, 1), file=sys.stderr)
        errors = [(OUT / f"{name}.{rank}.err").read_text() for rank in range(world)]
        report[name] = {"codes": codes, "errors": errors}
    print(json.dumps(report))


if __name__ == "__main__":
    torch.manual_seed(0)
    # Without dropout, whose random numbers are each process's own.
    model = create_model("fcn4s_light", num_classes=11, dropout=0.0, **TINY)
    save_model(model, OUT / "tiny.safetensors")
    shutil.copytree(SCENES, OUT / "fewer")
    for path in (OUT / "fewer").glob("train*/drive0_2.png"):
        path.unlink()
    run_all()
