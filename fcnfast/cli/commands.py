"""The commands. Each imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, NoSplitError
from .errors import FAILED, STOPPED, UNUSABLE, complain, warn

if TYPE_CHECKING:
    from ..models import FCN


def demo(args: argparse.Namespace) -> int:
    """Segment the package's own street and compare with its exact labels."""
    from ..data import CAMVID, demo_scene, write_image, write_labels
    from ..data.render import percent
    from ..files import output_folders
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
    right = (truth == result.labels)[truth < len(CAMVID)].mean()
    print(f"A drawn street of {photo.width}x{photo.height} pixels. The network sees:")
    for name, share in result.shares.items():
        if share > 0:
            print(f"  {name:<12} {percent(share):>8}")
    print(f"{100 * right:.1f} % of the pixels are labeled correctly.")
    print(f"""The pictures:
  {folder / "photo.png"}    the street
  {folder / "overlay.png"}  what the network sees in it
  {folder / "labels.png"}   the same as labels
  {folder / "truth.png"}    the exact labels""")
    return 0


def predict(args: argparse.Namespace) -> int:
    """Segment files into a folder; failures are listed at the end."""
    from ..data import image_paths
    from ..data.folder import passed_over
    from ..data.render import percent
    from ..segment import Segmenter, segment_files

    options = _views(args)
    paths = image_paths(args.inputs)
    segmenter = Segmenter(args.weights, args.device, args.bit_depth)
    started = time.perf_counter()
    options |= {"opacity": args.opacity, "probabilities": args.probabilities}
    options["progress"] = len(paths) > 1 and sys.stderr.isatty()
    report = segment_files(segmenter, paths, args.output_dir, **options)
    seconds = time.perf_counter() - started
    if report.done:
        if len(paths) == 1:
            shares = report.done[0]["shares"].items()
            seen = [f"{name} {percent(share)}" for name, share in shares if share > 0]
            print(f"{paths[0]}: {', '.join(seen)}")
        done = _count(len(report.done), "picture")
        print(f"Segmented {done} in {seconds:.1f} s on {segmenter.device}:")
        written = {"labels": "labels", "overlays": "overlays", "shares": "predictions.json"}
        if args.probabilities:
            written["softmax"] = "probabilities"
        for what, name in written.items():
            print(f"  {what:<8}  {Path(args.output_dir) / name}")
        sys.stdout.flush()
    if len(report.failed) > 1 or (report.failed and report.done):
        failed = _count(len(report.failed), "picture")
        print(f"fcnfast: {failed} could not be segmented:", file=sys.stderr)
    for failure in report.failed:
        complain(failure["error"])
    _tell_passed_over(passed_over(args.inputs))
    return 0 if not report.failed else FAILED if report.done else UNUSABLE


VIEWS = ("max_size", "tile", "overlap", "scales", "flip")  # of `fcnfast.inference.Views`


def _views(args: argparse.Namespace) -> dict[str, Any]:
    from ..inference import Views

    given = {name: getattr(args, name) for name in VIEWS if getattr(args, name) is not None}
    try:
        Views(**given)
    except ValueError as error:  # its message begins with the argument's name
        raise InputError(f"--{error}") from None
    return given


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _tell_passed_over(paths: Sequence[Path]) -> None:
    if paths:
        from ..data.folder import shortened

        told = "skipped, no picture extension"
        names = shortened([path.name for path in paths])
        print(f"fcnfast: {_count(len(paths), 'file')} {told}: {names}", file=sys.stderr)


def check(args: argparse.Namespace) -> int:
    """Read every pair of a data set; print its sizes and classes, and what is wrong."""
    from ..data.check import examine, share_lines, without_pixels
    from ..data.datasets import SPLITS, open_chosen, refuse_overlap
    from ..data.folder import shortened
    from ..train.batches import worker_count

    splits = (args.split,) if args.split else SPLITS.get(args.dataset, ("train", "val"))
    opened, missing = {}, []
    for split in splits:
        try:
            opened[split] = open_chosen(args, split, args.include, args.exclude)
        except NoSplitError as error:
            missing.append(error)
    if not opened:
        raise missing[0]
    if len(opened) == 2:
        train, val = opened.values()
        refuse_overlap(train, val, by_name=args.dataset == "voc")
    learned = {splits[0]} - {"val", "validation", "test"}
    workers, codes = worker_count(-1 if args.workers is None else args.workers, 1), []
    for split, dataset in opened.items():
        found = examine(dataset, workers, progress=sys.stderr.isatty())
        sizes = [f"{w}x{h} ({n})" for (w, h), n in found.sizes.most_common()]
        told = f"{_count(len(dataset), 'picture')}; width x height: {shortened(sizes, 3) or '-'}"
        shares = share_lines(dataset.table, found.pixels)
        print("\n".join([f"{split}: {told}", *shares]), flush=True)
        for fault in found.faults:
            complain(fault)
        _tell_passed_over(dataset.passed_over)
        codes.append(0 if not found.faults else FAILED if found.sizes else UNUSABLE)
        problem = without_pixels(dataset, found.pixels) if found.sizes else ""
        if problem and split in learned:
            codes.append(complain(problem))
        elif problem:
            warn(problem)
    return max(codes)


def evaluate(args: argparse.Namespace) -> int:
    """Print the metrics and the table of classes; write them as JSON, or as a page."""
    from ..data.datasets import open_chosen
    from ..evaluate import evaluate_folder, evaluate_model, evaluate_oracle, scores_as_json
    from ..files import output_folders, refuse_replacing, write_json
    from ..metrics import format_oracle, format_scores
    from ..report import Gallery, write_report
    from ..segment import Segmenter

    views = _views(args)
    labels = "--predictions" if args.predictions else "--oracle" if args.oracle else ""
    if args.predictions and args.oracle:
        raise InputError("give --predictions or --oracle: one scores label pictures, one the truth")
    for name in ("weights", "device", "bit_depth", *VIEWS):
        if labels and getattr(args, name) not in (None, False):
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} is for a network, {labels} scores labels")
    if args.json and Path(args.json).is_dir():
        raise InputError(f"{args.json}: is a folder, --json needs a file")
    if args.report and args.oracle:
        raise InputError("--report shows a prediction, --oracle scores the truth; give one of them")
    if args.report and Path(args.report).suffix.lower() in (".html", ".htm"):
        raise InputError(f"{args.report}: --report needs a folder, and writes index.html into it")
    model = None if labels else Segmenter(args.weights, args.device, args.bit_depth).model
    own = {"default": model.table, "channels": model.picture_channels} if model else {}
    dataset = open_chosen(args, args.split, args.include, args.exclude, **own)
    table = dataset.table
    if args.json:
        files = [path for sample in dataset.samples for path in sample]
        refuse_replacing([*files, *([args.weights] if args.weights else [])], [args.json])
    gallery = Gallery(table) if args.report else None
    options: dict[str, Any] = {"trimap": args.trimap, "progress": sys.stderr.isatty()}
    each = gallery.add if gallery else None
    folders = [Path(args.json).parent] if args.json else []
    folders += [Path(args.report)] if args.report else []
    with output_folders(*folders):
        if args.oracle:
            bounds = evaluate_oracle(dataset, **options)
            text, found = format_oracle(bounds), {}
            found["oracle"] = {str(k): scores_as_json(m, table.names) for k, m in bounds.items()}
        else:
            if model is None:
                matrix = evaluate_folder(args.predictions, dataset, **options, each=each)
            else:
                matrix = evaluate_model(model, dataset, **views, **options, each=each)
            text, found = format_scores(matrix, table.names), scores_as_json(matrix, table.names)
        if args.json:
            write_json(args.json, {"pictures": len(dataset), **found})
        if gallery:
            facts, run = _facts(args, model, len(dataset)), _training(args)
            page = write_report(args.report, found, table, gallery, facts=facts, curves=run)
            text += f"\nThe report: {page}"
    print(text, flush=True)
    _tell_passed_over(dataset.passed_over)
    return 0


def _facts(args: argparse.Namespace, model: FCN | None, pictures: int) -> dict[str, str]:
    facts = {"data": f"{args.data_path}, {args.split}, {_count(pictures, 'picture')}"}
    if model is None:
        return {"predictions": args.predictions, **facts}
    shrunk = {"longest side": f"{args.max_size} pixels"} if args.max_size else {}
    return {"network": model.name, "weights": args.weights or "bundled", **facts, **shrunk}


def _training(args: argparse.Namespace) -> bytes | None:
    """Return the curves of the run that made the weights, as SVG; warn if they cannot be drawn."""
    from ..plot import drawn, read_curves

    log = Path(args.weights).with_name("log.csv") if args.weights else None
    try:
        return drawn([read_curves(log)], "svg") if log and log.is_file() else None
    except InputError as error:
        warn(f"--report: no learning curves: {error}")
        return None


def plot(args: argparse.Namespace) -> int:
    """Draw the curves of several runs together."""
    from ..files import output_folders
    from ..plot import plot_runs

    with output_folders(Path(args.output).parent):
        plot_runs(args.runs, args.output)
    print(f"The curves of {_count(len(args.runs), 'run')}: {args.output}")
    return 0


def train(args: argparse.Namespace) -> int:
    """Train a network; see `fcnfast.train`."""
    from ..train import run

    return 0 if run(args) else STOPPED


def convert(args: argparse.Namespace) -> int:
    """Rewrite a weights file of any kind as fcnfast's, and print what was loaded."""
    import torch

    from ..data.tables import class_table
    from ..models import save_model
    from ..models.loading import load_as

    output = Path(args.output)
    if output.is_dir():
        raise InputError(f"{output}: is a folder, convert writes a file")
    if output.exists() and Path(args.input).exists() and output.samefile(args.input):
        raise InputError(f"{output}: would replace the file to convert")
    table = None if args.classes is None else class_table(args.classes)
    model = load_as(args.model, args.input)
    if table is not None and len(table) != model.num_classes:
        told = f"{len(table)} classes, but {args.input} has {model.num_classes}"
        raise InputError(f"--classes {args.classes}: {told}")
    model.table = table or model.table
    try:
        save_model(model, output, dtype=torch.float16 if args.half else None)
    except ValueError as error:  # a value beyond float16
        raise InputError(f"{args.input}: {error}") from None
    print(model.load_report)
    named = "classes" if model.table is None else f"classes of {model.table.name!r}"
    print(f"Written as {model.name}, {model.num_classes} {named}: {output}")
    return 0


def export(args: argparse.Namespace) -> int:
    """Write a network as a graph of standard operators."""
    from ..deploy import export

    names = ("size", "dynamic", "scores", "uint8", "half", "head")
    export(args.weights, args.output, **{name: getattr(args, name) for name in names})
    print(f"Written: {args.output}")
    return 0


def models(_: argparse.Namespace) -> int:
    """Print the names that `--model` takes, and what each network is."""
    from ..models import MODELS, list_models

    width = max(map(len, MODELS))
    print("\n".join(f"{name:<{width}}  {MODELS[name].about}" for name in list_models()))
    return 0


def info(args: argparse.Namespace) -> int:
    """Print a network's layers with their receptive fields."""
    import torch

    from ..models import create_model
    from ..models.googlenet import FCNGoogLeNet
    from ..theory import trace

    with torch.device("meta"):  # without weights
        model = create_model(args.model, num_classes=args.num_classes)
    try:
        seen = trace(model, args.size)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{args.model} on an image of {args.size} pixels: {error}") from error
    head = ("layer", "kind", "output", "field", "stride", "offset", "parameters")
    table: list[tuple[str, ...]] = [head]
    for layer in seen.layers:
        field, shape = layer.field, " x ".join(map(str, layer.shape))
        places = (field.size, field.stride, field.offset) if field else ("-",) * 3
        if layer.parameters or layer.given != field:  # skips elementwise layers
            own = f"{layer.parameters:,}" if layer.parameters else ""
            table.append((layer.name, layer.kind, shape, *map(str, places), own))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        left, right = map(str.ljust, row[:3], widths), map(str.rjust, row[3:], widths[3:])
        print("  ".join([*left, *right]).rstrip())
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"{total:,} parameters, {seen.macs / 1e9:.1f} GMAC on {args.size} x {args.size} pixels")
    print("field: pixels that a unit sees. Unit u is centered on pixel stride * u + offset.")
    if isinstance(model, FCNGoogLeNet):
        told = "the classifier's 7 x 7 average pooling, which an FCN leaves out"
        print(f"The paper's 907 pixels include {told}: 907 = 715 + 6 * 32.")
    return 0
