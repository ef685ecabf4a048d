"""What the commands do; what they need is imported when they run, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, NoSplitError
from .errors import FAILED, STOPPED, UNUSABLE, complain, warn

if TYPE_CHECKING:
    from ..data import ClassTable, SegmentationDataset


def demo(args: argparse.Namespace) -> int:
    """Segment the package's own street and compare with its exact labels."""
    from ..data import CAMVID, demo_scene, write_image, write_labels
    from ..data.render import percent
    from ..files import output_folders
    from ..metrics import ConfusionMatrix
    from ..segment import Segmenter

    folder = Path(args.output_dir)
    with output_folders(folder):
        segmenter = Segmenter(device=args.device)
        photo, truth, _ = demo_scene()
        result = segmenter(photo)
        write_image(folder / "photo.png", photo)
        write_image(folder / "overlay.png", result.overlay(legend=True))
        write_labels(folder / "labels.png", result.labels, result.table.palette)
        write_labels(folder / "truth.png", truth, CAMVID.palette)
    matrix = ConfusionMatrix(len(CAMVID))
    matrix.update(truth, result.labels)
    print(f"A drawn street of {photo.width}x{photo.height} pixels. The network sees:")
    for name, share in result.shares.items():
        if share > 0:
            print(f"  {name:<12} {percent(share):>8}")
    print(f"{100 * matrix.scores().pixel_accuracy:.1f} % of the pixels are labeled right.")
    print("The pictures:")
    print(f"  {folder / 'photo.png'}    the street")
    print(f"  {folder / 'overlay.png'}  what the network sees in it")
    print(f"  {folder / 'labels.png'}   the same as labels")
    print(f"  {folder / 'truth.png'}    the exact labels")
    return 0


def predict(args: argparse.Namespace) -> int:
    """Segment files into a folder; failures are listed at the end."""
    from ..data import image_paths
    from ..data.folder import passed_over
    from ..data.render import percent
    from ..segment import Segmenter, segment_files

    paths = image_paths(args.inputs)
    segmenter = Segmenter(args.weights, args.device, args.bit_depth)
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
        complain(failure["error"])
    _tell_passed_over(passed_over(args.inputs))
    if report.failed:
        return FAILED if report.done else UNUSABLE
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _tell_passed_over(paths: Sequence[Path]) -> None:
    """Name the files of a folder that are not pictures, so that none vanishes without a word."""
    if paths:
        from ..data.folder import shortened

        names = shortened([path.name for path in paths])
        print(
            f"fcnfast: {_count(len(paths), 'file')} passed over, not pictures by their names: "
            f"{names}",
            file=sys.stderr,
        )


def _open(
    args: argparse.Namespace, split: str, default: ClassTable | None = None
) -> SegmentationDataset:
    """Open a split of the data set that the arguments name."""
    from ..data import class_table, open_dataset

    return open_dataset(
        args.dataset,
        args.data_path,
        split,
        table=class_table(args.classes) if args.classes else None,
        labels=args.labels_dir,
        default=default,
        include=args.include,
        exclude=args.exclude,
        bit_depth=getattr(args, "bit_depth", None),
    )


def check(args: argparse.Namespace) -> int:
    """Read every pair of a data set; print its sizes and classes, and what is wrong."""
    from ..data.datasets import DATASETS, refuse_overlap

    row = DATASETS.get(args.dataset)
    splits = (args.split,) if args.split or row is None else row.splits
    opened, missing = {}, []
    for split in splits:
        try:
            opened[split] = _open(args, split)
        except NoSplitError as error:
            missing.append(error)
    if not opened:
        raise missing[0]
    if len(opened) == 2:
        train, val = opened.values()
        refuse_overlap(train, val, by_name=args.dataset == "voc")
    return max(
        _check_split(args, split, dataset, learned=split == splits[0] and split not in HELD_OUT)
        for split, dataset in opened.items()
    )


HELD_OUT = ("val", "validation", "test")
"""Splits that nothing learns from."""


def _check_split(
    args: argparse.Namespace, split: str, dataset: SegmentationDataset, learned: bool
) -> int:
    """Check one split; return the exit code that it alone would give."""
    import os

    from ..data.check import examine, share_lines, without_pixels

    workers = min(os.cpu_count() or 1, 8) if args.workers is None else args.workers
    found = examine(dataset, workers, progress=sys.stderr.isatty())
    common = ", ".join(f"{w}x{h} ({n})" for (w, h), n in found.sizes.most_common(3))
    more = f" and {len(found.sizes) - 3} more sizes" if len(found.sizes) > 3 else ""
    print(f"{split}: {_count(len(dataset), 'picture')}; width x height: {common or '-'}{more}")
    print("\n".join(share_lines(dataset.table, found.pixels)))
    sys.stdout.flush()
    for fault in found.faults:
        complain(fault)
    _tell_passed_over(dataset.passed_over)
    problem = without_pixels(dataset, found.pixels) if found.sizes else ""
    if problem and learned:
        return complain(problem)
    if problem:
        warn(problem)
    if found.faults:
        return FAILED if found.sizes else UNUSABLE
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Print the four metrics and the table of classes."""
    from ..evaluate import evaluate_folder, evaluate_model, scores_as_json
    from ..files import output_folders, write_json
    from ..metrics import format_scores

    for name in ("weights", "device", "max_size", "bit_depth"):
        if args.predictions and getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} is for a network, --predictions brings its own labels")
    if args.json and Path(args.json).is_dir():
        raise InputError(f"{args.json}: is a folder, --json needs a file")
    if args.predictions:
        model = None
        dataset = _open(args, args.split)
    else:
        from ..segment import Segmenter

        model = Segmenter(args.weights, args.device).model
        dataset = _open(args, args.split, default=model.table)
    table = dataset.table
    progress = sys.stderr.isatty()
    with output_folders(Path(args.json).parent) if args.json else contextlib.nullcontext():
        if model is None:
            matrix = evaluate_folder(args.predictions, dataset, progress=progress)
        else:
            matrix = evaluate_model(model, dataset, max_size=args.max_size, progress=progress)
        if args.json:
            write_json(args.json, {"pictures": len(dataset), **scores_as_json(matrix, table.names)})
    print(format_scores(matrix.scores(), table.names))
    sys.stdout.flush()
    _tell_passed_over(dataset.passed_over)
    return 0


def train(args: argparse.Namespace) -> int:
    """Train; everything about it is in `fcnfast.train`."""
    from ..train import run

    return 0 if run(args) else STOPPED


def convert(args: argparse.Namespace) -> int:
    """Write a weights file of any kind as one of fcnfast's, and say what it took of it."""
    import torch

    from ..data.tables import class_table
    from ..models import save_model
    from ..models.loading import load_as

    output = Path(args.output)
    if output.is_dir():
        raise InputError(f"{output}: is a folder, convert writes a file")
    if output.exists() and Path(args.input).exists() and output.samefile(args.input):
        raise InputError(f"{output}: would replace the file that is converted")
    table = None if args.classes is None else class_table(args.classes)
    model = load_as(args.model, args.input)
    if table is not None and len(table) != model.num_classes:
        raise InputError(
            f"--classes {args.classes}: {len(table)} classes, but {args.input} has "
            f"{model.num_classes}"
        )
    model.table = table or model.table
    try:
        save_model(model, output, dtype=torch.float16 if args.half else None)
    except ValueError as error:  # a number that float16 does not reach
        raise InputError(f"{args.input}: {error}") from None
    print(model.load_report)
    named = "classes" if model.table is None else f"classes of {model.table.name!r}"
    print(f"Written as {model.name}, {model.num_classes} {named}: {output}")
    return 0


def export(args: argparse.Namespace) -> int:
    """Write a network as a graph of standard operators, and say what goes in and comes out."""
    from ..deploy import export

    export(
        args.weights,
        args.output,
        size=args.size,
        dynamic=args.dynamic,
        scores=args.scores,
        uint8=args.uint8,
        half=args.half,
        head=args.head,
    )
    print(f"Written: {args.output}")
    return 0


def models(_: argparse.Namespace) -> int:
    """Print the names that `--model` takes, and what each network is."""
    from ..models import MODELS, list_models

    width = max(map(len, MODELS))
    print("\n".join(f"{name:<{width}}  {MODELS[name].about}" for name in list_models()))
    return 0


def _dash(value: object) -> str:
    return "-" if value is None else str(value)


def info(args: argparse.Namespace) -> int:
    """Print a network's layers: where their units are, and what they see of the image."""
    import torch

    from ..models import create_model
    from ..models.googlenet import FCNGoogLeNet
    from ..theory import trace

    with torch.device("meta"):  # no weights are made
        model = create_model(args.model, num_classes=args.num_classes)
    try:
        seen = trace(model, args.size)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{args.model} on an image of {args.size} pixels: {error}") from error
    table: list[tuple[str, ...]] = [
        ("layer", "kind", "output", "field", "stride", "offset", "parameters")
    ]
    for layer in seen.layers:
        field, shape = layer.field, " x ".join(map(str, layer.shape))
        places = (field.size, field.stride, field.offset) if field else (None, None, None)
        if layer.parameters or layer.given != field:  # not those that act on each value alone
            own = f"{layer.parameters:,}" if layer.parameters else ""
            table.append((layer.name, layer.kind, shape, *map(_dash, places), own))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        cells = [
            text.ljust(width) if i < 3 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"{total:,} parameters, {seen.macs / 1e9:.1f} GMAC on {args.size} x {args.size} pixels")
    print("field: pixels that a unit sees. Unit u is centered on pixel stride * u + offset.")
    if isinstance(model, FCNGoogLeNet):
        print(
            "The paper's 907 pixels count the classifier's 7 x 7 average pooling, which an FCN "
            "leaves out: 907 = 715 + 6 * 32."
        )
    return 0
