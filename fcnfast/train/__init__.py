"""Training: `fcnfast train`, and the same from Python."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from ..errors import InputError
from ..files import write_json
from .checkpoint import CHECKPOINT
from .loop import Run, resume, start
from .processes import Processes
from .recipes import RECIPES, make_settings, stages
from .settings import STAGED, TrainSettings, add_arguments, given

__all__ = [
    "RECIPES",
    "Processes",
    "Run",
    "TrainSettings",
    "add_arguments",
    "make_settings",
    "resume",
    "run",
    "start",
    "train_stages",
]


def run(args: argparse.Namespace) -> bool:
    """Run ``fcnfast train`` with its parsed arguments; False if SIGTERM stopped it."""
    if args.resume and args.config:
        raise InputError("give --resume or --config, not both")
    processes, changes, config = Processes(), given(args), args.config
    kept = Path(args.resume or "", "settings.json")
    staged = args.resume and kept.is_file() and not kept.with_name(CHECKPOINT).exists()
    if staged:
        changes, config = {"output_dir": args.resume} | changes, str(kept)
    if args.resume and not staged:
        finished = resume(args.resume, changes, processes).train()
    else:
        settings = processes.together(lambda: make_settings(changes, config))
        if settings.recipe == STAGED:
            finished = train_stages(settings, processes)
        else:
            if staged and processes.rank == 0:
                print(f"{args.resume}: no checkpoint yet, so the run starts over", file=sys.stderr)
            finished = start(settings, processes, over=bool(staged)).train()
    processes.leave()
    return finished


def train_stages(settings: TrainSettings, processes: Processes, progress: bool = True) -> bool:
    """Train 32s, 16s and 8s in one go, each from the weights of the one before.

    A stopped run resumes where it was. Returns False if SIGTERM stopped it.
    """
    out = Path(settings.output_dir)
    parts = processes.together(lambda: stages(settings))
    for stage in parts:
        at = Path(stage.output_dir) / CHECKPOINT
        if at.exists():
            current = resume(str(at), asdict(stage), processes)
        else:
            current = start(stage, processes, over=True)
            if processes.rank == 0:
                out.mkdir(parents=True, exist_ok=True)
                write_json(out / "settings.json", asdict(settings))
        if not current.train(progress):
            return False
    return True
