"""Training: `fcnfast train`, and the same from Python."""

from __future__ import annotations

import argparse

from .begin import resume, start
from .loop import Run, Validate
from .settings import TrainSettings, add_arguments, given

__all__ = ["Run", "TrainSettings", "Validate", "add_arguments", "resume", "run", "start"]


def run(args: argparse.Namespace, validate: Validate) -> None:
    """What ``fcnfast train`` does with its arguments; `validate` scores a network on a data set."""
    if args.resume:
        job = resume(args.resume, given(args), validate)
    else:
        job = start(TrainSettings(**given(args)), validate)
    job.train()
