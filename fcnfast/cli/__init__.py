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
    """Run one command; by default with the arguments of the process.

    Returns:
        The exit code: 0, or one of those in `fcnfast.cli.errors`.
    """
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
    except BrokenPipeError:
        _abandon_stdout()
        return CLOSED
    except Exception as error:
        if isinstance(error, OSError):
            _abandon_stdout()
        reason = explain(error, args)
        if reason is None:  # a bug of ours
            raise
        if getattr(args, "debug", False):
            traceback.print_exc()
        return complain(reason)


def _abandon_stdout() -> None:
    """Discard what is left in stdout's buffer, so that leaving Python does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _number(
    kind: type[int] | type[float], least: int, most: int | None = None
) -> Callable[[str], Any]:
    """Return a parser of numbers from `least`, up to `most` if given."""
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


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"fcnfast: error: {message} (see '{self.prog} --help')\n")


def _parser(training: bool) -> argparse.ArgumentParser:
    """Make the parser; the flags of `train` need torch and are added only if asked for."""
    parser = _Parser(prog="fcnfast", description="Semantic segmentation with FCNs.")
    parser.add_argument("--version", action="version", version=f"fcnfast {__version__}")
    debug: Any = {"action": "store_true", "help": "show the traceback of an error"}
    parser.add_argument("--debug", **debug)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        sub = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=run)
        sub.add_argument("--debug", default=argparse.SUPPRESS, **debug)
        return sub

    demo = command("demo", commands.demo, "segment the sample scene with the bundled weights")
    demo.add_argument("--output-dir", default="out/demo", metavar="DIR", help="(%(default)s)")
    demo.add_argument("--device", help="cpu, cuda, ...; by default a GPU if there is one")

    text = "segment pictures: files, folders or glob patterns"
    predict = command("predict", commands.predict, text)
    predict.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, folder or pattern")
    predict.add_argument("--output-dir", default="out", metavar="DIR", help="(%(default)s)")
    predict.add_argument(
        "--opacity", type=_number(float, 0, 1), default=0.5, help="opacity of the colors (0.5)"
    )
    text = "also write the softmax: of all classes (float16 C x H x W), or the label's in 8 bits"
    predict.add_argument("--probabilities", choices=("npy", "png"), help=text)
    _add_model_options(predict)

    text = "score a network, or label pictures, on a data set"
    evaluate = command("evaluate", commands.evaluate, text)
    evaluate.add_argument("--predictions", metavar="DIR", help="score these label PNGs instead")
    text = "score the labels themselves, downsampled by 128, 64, ... 4 and upsampled again"
    evaluate.add_argument("--oracle", action="store_true", help=text)
    evaluate.add_argument("--data-path", metavar="DIR", required=True, help="the data set's folder")
    evaluate.add_argument("--split", default="val", help="which part of it (%(default)s)")
    _add_data_options(evaluate, "by default the data set's own, then those of the weights")
    text = "also the IU within this many pixels of a true border"
    evaluate.add_argument("--trimap", type=_POSITIVE, metavar="WIDTH", help=text)
    evaluate.add_argument("--json", metavar="FILE", help="also write the scores to this file")
    evaluate.add_argument("--report", metavar="DIR", help="also write a page, DIR/index.html")
    _add_model_options(evaluate)

    train = command("train", commands.train, "train a network")
    if training:
        from ..train import add_arguments

        add_arguments(train)
    plot = command("plot", commands.plot, "draw the loss, rate and mean IU of runs together")
    plot.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its log.csv")
    text = ".svg or .png (%(default)s)"
    plot.add_argument("-o", "--output", metavar="FILE", default="curves.svg", help=text)
    check = command("check", commands.check, "read every pair of a data set, and count its classes")
    check.add_argument("data_path", metavar="DATA", help="the data set's folder")
    check.add_argument("--split", help="which part of it; by default those to train and validate")
    _add_data_options(check, "by default the data set's own")
    check.add_argument("-j", "--workers", type=_COUNT, help="processes that read pictures")

    text = "convert a weights file of any kind to fcnfast's"
    convert = command("convert", commands.convert, text)
    convert.add_argument("input", metavar="IN", help="PyTorch, Caffe, HDF5 or safetensors file")
    convert.add_argument("output", metavar="OUT", help="safetensors file to write")
    text = "the network, if the file does not say"
    convert.add_argument("--model", metavar="NAME", help=text)
    text = "a class table by name (voc), or a JSON file"
    convert.add_argument("--classes", metavar="TABLE", help=text)
    convert.add_argument("--half", action="store_true", help="store float16: half the size")
    export = command(
        "export", commands.export, "write a network as a graph that runs without fcnfast"
    )
    export.add_argument("weights", metavar="MODEL", help="a weights file, or bundled")
    export.add_argument("output", metavar="OUT", help="file to write: NAME.onnx or NAME.pt2")
    sizes = export.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=_size, metavar="HxW", help="of the images (512x512)")
    sizes.add_argument("--dynamic", action="store_true", help="take batches and images of any size")
    outputs = export.add_mutually_exclusive_group()
    outputs.add_argument("--labels", action="store_true", help="give label maps (the default)")
    outputs.add_argument("--scores", action="store_true", help="give the scores of all classes")
    export.add_argument(
        "--uint8", action="store_true", help="take uint8 RGB: the preprocessing is in the graph"
    )
    export.add_argument("--half", action="store_true", help="float16 weights, input and scores")
    export.add_argument("--head", default="out", help="the output to export (%(default)s)")
    command("models", commands.models, "list the networks by name")
    info = command("info", commands.info, "print the layers of a network and their fields")
    info.add_argument("model", metavar="MODEL", help="its name, as `fcnfast models` lists it")
    info.add_argument("--size", type=_POSITIVE, default=500, help="of a square image (500)")
    info.add_argument("--num-classes", type=_POSITIVE, help="by default the network's own")
    return parser


def _add_data_options(parser: argparse.ArgumentParser, classes: str) -> None:
    # Written out: the table of data sets needs torch.
    text = "voc, nyud, nyud-hha, siftflow, pascal-context, camvid, cityscapes, ade20k"
    text = f"{text} or a plain folder (folder)"
    parser.add_argument("--dataset", metavar="NAME", default="folder", help=text)
    parser.add_argument("--labels-dir", metavar="DIR", help="where its labels are, if elsewhere")
    parser.add_argument("--include", metavar="PATTERN", help="only names that match this pattern")
    parser.add_argument("--exclude", metavar="PATTERN", help="no names that match this pattern")
    parser.add_argument("--classes", metavar="TABLE", help=f"a name or a JSON file; {classes}")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    text = "significant bits of the samples of 16-bit pictures, such as 12"
    parser.add_argument("--bit-depth", type=_number(int, 8, 16), metavar="BITS", help=text)
    parser.add_argument("--weights", metavar="FILE", help="by default the bundled weights")
    parser.add_argument("--device", help="cpu, cuda, ...; by default a GPU if there is one")
    text = (
        "longest side that the network sees (predict: by default the largest that it was "
        "trained on); labels have the picture's own size"
    )
    parser.add_argument("--max-size", type=_POSITIVE, metavar="PIXELS", help=text)
    text = "cut pictures into squares of this size, without shrinking them"
    parser.add_argument("--tile", type=_POSITIVE, metavar="SIZE", help=text)
    text = "pixels that neighboring tiles share (a quarter of a tile)"
    parser.add_argument("--overlap", type=_COUNT, metavar="PIXELS", help=text)
    average = "average over pictures"
    parser.add_argument("--scales", type=_scales, help=f"{average} resized by, say, 0.75,1,1.25")
    parser.add_argument("--flip", action="store_true", help=f"{average} and their mirror images")


def _scales(text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers such as 0.75,1, not {text}") from None


def _size(text: str) -> tuple[int, int]:
    """Parse a height and a width, such as 360x480."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"must be height x width, as 360x480, not {text}")
    return int(parts[0]), int(parts[1])
