"""How a run begins in its folder, and how it goes on there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError, WeightsError
from . import checkpoint
from .loop import CHECKPOINT, Run, Validate
from .settings import TrainSettings, resumed


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
    """The run of a checkpoint, in the checkpoint's folder; `changes` may say where it runs.

    Raises:
        WeightsError: when the checkpoint cannot be read, or not by this release.
        InputError: when a change is not allowed, or the pictures are not those of the run.
    """
    state = checkpoint.load(Path(path))
    try:
        saved = TrainSettings(**{**state["settings"], "output_dir": str(Path(path).parent)})
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not of this release of fcnfast: {error}") from None
    try:
        run = Run(resumed(saved, changes), validate, state.get("network"))
        run.restore(state)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path}: does not fit {saved.model}: {reason}") from None
    checkpoint.clear_unfinished(run.out, CHECKPOINT)
    return run
