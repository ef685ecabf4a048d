"""The command line: ``fcnfast demo | predict | evaluate | train | plot | convert | export | ...``.

This module only builds the parser. The commands import torch themselves, so that ``--help`` answers
at once. A user's mistake is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .._version import __version__
from . import commands
from .errors import CLOSED, INTERRUPTED, UNUSABLE, complain, explain, one_line_warnings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default the process's; return 0 or a code of `fcnfast.cli.errors`."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may be unable to encode a file name
        sys.stdout.reconfigure(errors="backslashreplace")
    args = argparse.Namespace()
    try:
        args = _parser(training="train" in arguments[:2]).parse_args(arguments)
        with one_line_warnings():
            code: int = args.command(args)
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be reported
        return code
    except SystemExit as done:  # argparse: help, version, or a wrong option
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        print("fcnfast: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError):
            _abandon_stdout()
        if isinstance(error, BrokenPipeError):
            return CLOSED
        reason = explain(error, args)
        if reason is None:  # a bug of ours
            raise
        if getattr(args, "debug", False):
            traceback.print_exc()
        return complain(reason)


def _abandon_stdout() -> None:
    """Discard what is left in stdout's buffer, so that leaving Python does not fail on it."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _number(
    kind: type[int] | type[float], least: int, most: int | None = None
) -> Callable[[str], Any]:
    noun = "an integer" if kind is int else "a number"
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if least <= value and (most is None or value <= most):
                return value
        raise argparse.ArgumentTypeError(f"must be {noun} {bounds}, not {text}")

    return read


_COUNT, _POSITIVE = _number(int, 0), _number(int, 1)
_DEVICE = "cpu, cuda, ...; by default a GPU if there is one"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"fcnfast: error: {message} (see '{self.prog} --help')\n")

    def option(self, *names_and_help: str, **options: Any) -> None:
        *names, text = names_and_help
        self.add_argument(*names, help=text, **options)


def _parser(training: bool) -> argparse.ArgumentParser:
    """Make the parser; the flags of `train` need torch and are added only if asked for."""
    parser = _Parser(prog="fcnfast", description="Semantic segmentation with FCNs.")
    parser.add_argument("--version", action="version", version=f"fcnfast {__version__}")
    debug: Any = {"action": "store_true", "help": "show the traceback of an error"}
    parser.add_argument("--debug", **debug)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str) -> _Parser:
        sub = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=getattr(commands, name))
        sub.add_argument("--debug", default=argparse.SUPPRESS, **debug)
        return sub

    demo = command("demo", "segment the sample scene with the bundled weights")
    demo.option("--output-dir", "(%(default)s)", default="out/demo", metavar="DIR")
    demo.option("--device", _DEVICE)

    predict = command("predict", "segment pictures: files, folders or glob patterns")
    predict.option("inputs", "picture, folder or pattern", nargs="+", metavar="INPUT")
    predict.option("--output-dir", "(%(default)s)", default="out", metavar="DIR")
    predict.option("--opacity", "of the colors (0.5)", type=_number(float, 0, 1), default=0.5)
    text = "also write the softmax: of all classes (float16 C x H x W), or the label's in 8 bits"
    predict.option("--probabilities", text, choices=("npy", "png"))
    _add_model_options(predict)

    evaluate = command("evaluate", "score a network, or label pictures, on a data set")
    evaluate.option("--predictions", "score these label PNGs instead", metavar="DIR")
    text = "score the labels themselves, downsampled by 128, 64, ... 4 and upsampled again"
    evaluate.option("--oracle", text, action="store_true")
    evaluate.option("--data-path", "the data set's folder", metavar="DIR", required=True)
    evaluate.option("--split", "which part of it (%(default)s)", default="val")
    _add_data_options(evaluate, "by default the data set's own, then those of the weights")
    text = "also the IU within this many pixels of a true border"
    evaluate.option("--trimap", text, type=_POSITIVE, metavar="WIDTH")
    evaluate.option("--json", "also write the scores to this file", metavar="FILE")
    evaluate.option("--report", "also write a page, DIR/index.html", metavar="DIR")
    _add_model_options(evaluate)

    train = command("train", "train a network")
    if training:
        from ..train import add_arguments

        add_arguments(train)
    plot = command("plot", "draw the loss, rate and mean IU of runs together")
    plot.option("runs", "folder of a run, or its log.csv", nargs="+", metavar="RUN")
    plot.option("-o", "--output", ".svg or .png (%(default)s)", default="curves.svg")
    check = command("check", "read every pair of a data set, and count its classes")
    check.option("data_path", "the data set's folder", metavar="DATA")
    check.option("--split", "which part of it; by default those to train and validate")
    _add_data_options(check, "by default the data set's own")
    check.option("-j", "--workers", "processes that read pictures", type=_COUNT)

    convert = command("convert", "convert a weights file of any kind to fcnfast's")
    convert.option("input", "PyTorch, Caffe, HDF5 or safetensors file", metavar="IN")
    convert.option("output", "safetensors file to write", metavar="OUT")
    convert.option("--model", "the network, if the file does not say", metavar="NAME")
    convert.option("--classes", "a class table by name (voc), or a JSON file", metavar="TABLE")
    convert.option("--half", "store float16: half the size", action="store_true")
    export = command("export", "write a network as a graph that runs without fcnfast")
    export.option("weights", "a weights file, or bundled", metavar="MODEL")
    export.option("output", "file to write: NAME.onnx or NAME.pt2", metavar="OUT")
    sizes, outputs = (export.add_mutually_exclusive_group() for _ in range(2))
    sizes.add_argument("--size", type=_size, metavar="HxW", help="of the images (512x512)")
    sizes.add_argument("--dynamic", action="store_true", help="take batches and images of any size")
    outputs.add_argument("--labels", action="store_true", help="give label maps (the default)")
    outputs.add_argument("--scores", action="store_true", help="give the scores of all classes")
    export.option("--uint8", "take uint8 RGB, preprocessed in the graph", action="store_true")
    export.option("--half", "float16 weights, input and scores", action="store_true")
    export.option("--head", "the output to export (%(default)s)", default="out")
    command("models", "list the networks by name")
    info = command("info", "print the layers of a network and their fields")
    info.option("model", "its name, as `fcnfast models` lists it", metavar="MODEL")
    info.option("--size", "of a square image (500)", type=_POSITIVE, default=500)
    info.option("--num-classes", "by default the network's own", type=_POSITIVE)
    return parser


def _add_data_options(parser: _Parser, classes: str) -> None:
    # Written out: the table of data sets needs torch.
    text = "voc, nyud, nyud-hha, siftflow, pascal-context, camvid, cityscapes, ade20k or folder"
    parser.option("--dataset", text, metavar="NAME", default="folder")
    parser.option("--labels-dir", "where its labels are, if elsewhere", metavar="DIR")
    parser.option("--include", "only names that match this pattern", metavar="PATTERN")
    parser.option("--exclude", "no names that match this pattern", metavar="PATTERN")
    parser.option("--classes", f"a name or a JSON file; {classes}", metavar="TABLE")


def _add_model_options(parser: _Parser) -> None:
    text = "significant bits of the samples of 16-bit pictures, such as 12"
    parser.option("--bit-depth", text, type=_number(int, 8, 16), metavar="BITS")
    parser.option("--weights", "by default the bundled weights", metavar="FILE")
    parser.option("--device", _DEVICE)
    text = "longest side that the network sees (predict: by default the largest that it was "
    text += "trained on); labels have the picture's own size"
    parser.option("--max-size", text, type=_POSITIVE, metavar="PIXELS")
    text = "cut pictures into squares of this size, without shrinking them"
    parser.option("--tile", text, type=_POSITIVE, metavar="SIZE")
    text = "pixels that neighboring tiles share (a quarter of a tile)"
    parser.option("--overlap", text, type=_COUNT, metavar="PIXELS")
    parser.option("--scales", "average over pictures resized by, say, 0.75,1,1.25", type=_scales)
    parser.option("--flip", "average over pictures and their mirror images", action="store_true")


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers such as 0.75,1, not {text}") from None


def _size(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"must be height x width, as 360x480, not {text}")
    return int(parts[0]), int(parts[1])
