"""Training: `fcnfast train`, and the same from Python."""

from __future__ import annotations

import argparse

from .loop import Run, resume, start
from .settings import TrainSettings, add_arguments, given

__all__ = ["Run", "TrainSettings", "add_arguments", "resume", "run", "start"]


def run(args: argparse.Namespace) -> Run:
    """Do what ``fcnfast train`` does with its arguments."""
    job = resume(args.resume, given(args)) if args.resume else start(TrainSettings(**given(args)))
    job.train()
    return job
