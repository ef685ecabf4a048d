"""The command line: ``fcnfast demo | predict | evaluate | train | models``.

Only the parser is made here before a command is known: torch is imported by the commands, so that
``--help`` answers at once. A user's mistake is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ._version import __version__
from .errors import InputError

FAILED, UNUSABLE, INTERRUPTED, CLOSED = 1, 2, 130, 141
"""Exit codes: some pictures failed; nothing could be done; Ctrl-C; the reader of stdout left."""

# A scene with all classes in it. Training draws other seeds (from a million up).
DEMO_SEED = 175
# Options of `evaluate` that belong to one kind of data set.
_FOLDER_OPTIONS = {
    "data_path": "folder: where the data set is",
    "split": "folder: which part of it (val)",
    "labels_dir": "folder: where its labels are, if elsewhere",
    "include": "folder: only names that match this pattern",
    "exclude": "folder: no names that match this pattern",
    "classes": "folder: a class table by name, or a JSON file (camvid)",
}
_SYNTHETIC_OPTIONS = {
    "count": "synthetic: the number of scenes (50)",
    "seed": "synthetic: the first scene (10000)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the arguments are those of the process by default.

    Returns:
        The exit code: 0, or one of `FAILED`, `UNUSABLE`, `INTERRUPTED` and `CLOSED`.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what it cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args = _parser(training=arguments[:1] == ["train"]).parse_args(arguments)
        code: int = args.command(args)
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
        return code
    except SystemExit as done:  # argparse: help, version, or a wrong option
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        print("fcnfast: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return CLOSED
    except InputError as error:
        return _complain(str(error))
    except OSError as error:
        _abandon_stdout()
        named = error.filename is not None and error.strerror
        return _complain(f"{error.filename}: {error.strerror}" if named else str(error))


def _complain(message: str) -> int:
    """Print one line on stderr; the exit code that goes with it."""
    print(f"fcnfast: error: {' '.join(message.splitlines())}", file=sys.stderr)
    return UNUSABLE


def _abandon_stdout() -> None:
    """Send what is left in stdout's buffer nowhere, so that leaving Python does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"fcnfast: error: {message} (see '{self.prog} --help')\n")


def _parser(training: bool) -> argparse.ArgumentParser:
    """Make the parser; the flags of `train` need torch and are added when they are asked for."""
    parser = _Parser(prog="fcnfast", description="Semantic segmentation with FCNs.")
    parser.add_argument("--version", action="version", version=f"fcnfast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=run)
        return sub

    demo = command("demo", _demo, "segment the sample scene with the bundled weights")
    demo.add_argument("--output-dir", default="out/demo", metavar="DIR", help="(%(default)s)")
    demo.add_argument("--seed", type=_at_least(0), default=DEMO_SEED, help="which scene is drawn")
    demo.add_argument("--device", help="cpu, cuda, ...; by default a GPU if there is one")

    predict = command("predict", _predict, "segment pictures: files, folders or glob patterns")
    predict.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, folder or pattern")
    predict.add_argument("--output-dir", default="out", metavar="DIR", help="(%(default)s)")
    predict.add_argument("--opacity", type=_opacity, default=0.5, help="of the colours (0.5)")
    _add_model_options(predict)

    evaluate = command("evaluate", _evaluate, "score a network, or label pictures, on a data set")
    evaluate.add_argument("--predictions", metavar="DIR", help="score these label PNGs instead")
    evaluate.add_argument("--dataset", choices=("folder", "synthetic"), default="folder")
    for name, text in (_FOLDER_OPTIONS | _SYNTHETIC_OPTIONS).items():
        kind = _at_least(0 if name == "seed" else 1) if name in _SYNTHETIC_OPTIONS else str
        evaluate.add_argument(_flag(name), help=text, type=kind, default=argparse.SUPPRESS)
    evaluate.add_argument("--json", metavar="FILE", help="also write the scores to this file")
    _add_model_options(evaluate)

    train = command("train", _train, "train a network")
    if training:
        from .train import add_arguments

        add_arguments(train)
    command("models", _models, "list the networks by name")
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="FILE", help="by default the bundled weights")
    parser.add_argument("--device", help="cpu, cuda, ...; by default a GPU if there is one")
    parser.add_argument(
        "--max-size",
        type=_at_least(1),
        metavar="PIXELS",
        help="longest side that the network sees (predict: by default the size up to which it "
        "learned); labels come at the picture's own size",
    )


def _at_least(least: int) -> Callable[[str], int]:
    """Return a reader of integers from `least` up."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, not {text}")
        return value

    return read


def _opacity(text: str) -> float:
    """Read a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text}")
    return value


def _demo(args: argparse.Namespace) -> int:
    """Draw a scene, segment it, and compare with the labels that it was drawn with."""
    from .data.classes import CAMVID
    from .data.images import write_image, write_labels
    from .data.outputs import output_folders
    from .data.render import percent
    from .data.synthetic import draw_scene
    from .metrics import ConfusionMatrix
    from .segment import Segmenter

    folder = Path(args.output_dir)
    with output_folders(folder):
        segmenter = Segmenter(device=args.device)
        scene, truth = draw_scene(args.seed)
        result = segmenter(scene)
        write_image(folder / "photo.png", scene)
        write_image(folder / "overlay.png", result.overlay())
        write_labels(folder / "labels.png", result.labels, result.table.palette)
        write_labels(folder / "truth.png", truth, CAMVID.palette)
    matrix = ConfusionMatrix(len(CAMVID))
    matrix.update(truth, result.labels)
    print(f"A drawn street scene of {scene.width}x{scene.height} pixels. The network sees:")
    for name, share in result.shares.items():
        if share > 0:
            print(f"  {name:<12} {percent(share):>8}")
    print(f"{100 * matrix.scores().pixel_accuracy:.1f} % of the pixels are labelled right.")
    print("The pictures:")
    print(f"  {folder / 'photo.png'}    the scene")
    print(f"  {folder / 'overlay.png'}  what the network sees in it")
    print(f"  {folder / 'labels.png'}   the same as labels")
    print(f"  {folder / 'truth.png'}    the labels it was drawn with")
    return 0


def _predict(args: argparse.Namespace) -> int:
    """Segment files into a folder; failures are listed at the end."""
    from .data.images import image_paths
    from .data.render import percent
    from .segment import Segmenter, segment_files

    paths = image_paths(args.inputs)
    segmenter = Segmenter(args.weights, args.device)
    started = time.perf_counter()
    report = segment_files(
        segmenter,
        paths,
        args.output_dir,
        max_size=args.max_size,
        opacity=args.opacity,
        progress=len(paths) > 1 and sys.stderr.isatty(),
    )
    seconds = time.perf_counter() - started
    if report.done:
        folder = Path(args.output_dir)
        if len(paths) == 1:
            shares = report.done[0]["shares"].items()
            seen = [f"{name} {percent(share)}" for name, share in shares if share > 0]
            print(f"{paths[0]}: {', '.join(seen)}")
        done = _count(len(report.done), "picture")
        print(f"Segmented {done} in {seconds:.1f} s on {segmenter.device}:")
        print(f"  labels    {folder / 'labels'}")
        print(f"  overlays  {folder / 'overlays'}")
        print(f"  shares    {folder / 'predictions.json'}")
        sys.stdout.flush()
    if len(report.failed) > 1 or (report.failed and report.done):
        failed = _count(len(report.failed), "picture")
        print(f"fcnfast: {failed} could not be segmented:", file=sys.stderr)
    for failure in report.failed:
        _complain(failure["error"])
    if report.failed:
        return FAILED if report.done else UNUSABLE
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _evaluate(args: argparse.Namespace) -> int:
    """Print the four metrics and the table of classes."""
    from .data.folder import FolderDataset
    from .data.outputs import output_folders, write_json
    from .evaluate import evaluate_folder, evaluate_model, open_dataset, scores_as_json
    from .metrics import format_scores

    for name in ("weights", "device", "max_size"):
        if args.predictions and getattr(args, name) is not None:
            raise InputError(f"{_flag(name)} is for a network, --predictions brings its own labels")
    if args.predictions and args.dataset != "folder":
        raise InputError("--predictions needs --dataset folder")
    if args.json and Path(args.json).is_dir():
        raise InputError(f"{args.json}: is a folder, --json needs a file")
    own = _FOLDER_OPTIONS.keys() | _SYNTHETIC_OPTIONS.keys()
    given = {name: value for name, value in vars(args).items() if name in own}
    dataset, table = open_dataset(args.dataset, **given)
    progress = sys.stderr.isatty()
    with output_folders(Path(args.json).parent) if args.json else contextlib.nullcontext():
        if isinstance(dataset, FolderDataset) and args.predictions:
            matrix = evaluate_folder(args.predictions, dataset, progress=progress)
        else:
            from .segment import Segmenter

            model = Segmenter(args.weights, args.device).model
            matrix = evaluate_model(model, dataset, max_size=args.max_size, progress=progress)
        if args.json:
            write_json(args.json, {"pictures": len(dataset), **scores_as_json(matrix, table.names)})
    print(format_scores(matrix.scores(), table.names))
    return 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _train(args: argparse.Namespace) -> int:
    """Train; everything about it is in `fcnfast.train`."""
    from .evaluate import evaluate_model
    from .train import run

    run(args, evaluate_model)
    return 0


def _models(_: argparse.Namespace) -> int:
    """Print the names that `--model` takes."""
    from .models import list_models

    print("\n".join(list_models()))
    return 0
