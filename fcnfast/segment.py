"""Photo in, labels out: the network, its preprocessing and its classes behind one call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .data.classes import ClassTable, voc_palette
from .data.images import (
    IMAGE_EXTENSIONS,
    Photo,
    as_photo,
    check_channels,
    check_positive,
    shrink,
    write_image,
)
from .data.labels import write_labels
from .data.render import add_legend, blend
from .device import choose_device, image_errors
from .errors import ImageError, InputError, WeightsError
from .files import Names, PathLike, output_folders, output_names, refuse_replacing, write_json
from .geometry import SamplingGrid
from .inference import (
    BAND,
    ScoredView,
    Views,
    blended_labels,
    coarse_scores,
    mean_softmax,
    neighbors,
    probability_file,
)
from .models import FCN, load_model
from .models.base import check_model
from .ops import upsample, upsample_argmax

# zlib's default level makes an overlay 8 % smaller but takes three times as long.
_PNG_LEVEL = 1


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One segmented picture.

    Attributes:
        image: the picture at its own size: RGB, upright.
        labels: uint8 array H×W; label k is ``table.names[k]``.
        table: the classes' names and colors.
        name: the stem of the picture's file, with -2, ... where several of many have it; otherwise
            "image", or "image-1", ... of many.
        scores, grid: the network's coarse class scores, 1×C×h×w on the CPU, and where each pixel
            samples them. None if several views were blended.
        blended: in that case, the mean softmax of each pixel's label, float32 H×W.
    """

    image: Image.Image
    labels: np.ndarray
    table: ClassTable
    name: str = "image"
    scores: Tensor | None = field(default=None, repr=False)
    grid: SamplingGrid | None = field(default=None, repr=False)
    blended: np.ndarray | None = field(default=None, repr=False)

    @property
    def shares(self) -> dict[str, float]:
        """Each class's share of the picture by name, largest first; 0.0 for absent classes."""
        counts = np.bincount(self.labels.ravel(), minlength=256)
        order = sorted(range(len(self.table)), key=lambda k: -counts[k])
        return {self.table.names[k]: float(counts[k] / self.labels.size) for k in order}

    @cached_property
    def confidence(self) -> np.ndarray:
        """The softmax of each pixel's label, float32 H×W; ValueError without scores."""
        if self.blended is not None:
            return self.blended
        with torch.inference_mode():
            _, confidence = upsample_argmax(*self._sampled(), confidence=True)
        return confidence[0].float().numpy()

    def probabilities(self) -> np.ndarray:
        """Compute the softmax of all classes, float32 C×H×W; ValueError without scores."""
        scores, grid = self._sampled()
        with torch.inference_mode():
            return upsample(scores.float(), grid).softmax(1)[0].numpy()

    def _sampled(self) -> tuple[Tensor, SamplingGrid]:
        if self.blended is not None:
            told = "segment with probabilities=FILE to write them"
            raise ValueError(f"a blended result keeps no scores; {told}")
        if self.scores is None or self.grid is None:
            raise ValueError("this result has no scores: it was not made by a Segmenter")
        return self.scores, self.grid

    def overlay(self, opacity: float = 0.5, *, legend: bool = False) -> Image.Image:
        """Draw the classes' colors over the picture: RGB, of exactly its size without a legend.

        `opacity` is from 0 (the picture alone) to 1; ValueError outside. The legend has the names
        and shares of the classes present, below a landscape photo or to the right of a portrait.
        """
        drawn = blend(self.image, self.labels, self.table, opacity)
        return add_legend(drawn, self.table, self.shares) if legend else drawn

    def save(
        self, folder: PathLike, name: str | None = None, *, opacity: float = 0.5
    ) -> tuple[Path, Path]:
        """Write ``folder/labels/NAME.png`` (index PNG) and ``folder/overlays/NAME.png``.

        Missing folders are created. NAME defaults to the picture's name. The overlay has a legend.
        Returns the two paths. ValueError if `folder` is the name of a picture, or `opacity` is
        outside 0..1; OSError if a file cannot be written: neither is left behind.
        """
        folder, name = Path(folder), name or self.name
        if folder.suffix.lower() in IMAGE_EXTENSIONS and not folder.is_dir():
            told = f"save() takes a folder; overlay().save({str(folder)!r}) writes a picture"
            raise ValueError(f"{folder}: {told}")
        overlay = self.overlay(opacity, legend=True)
        paths = folder / "labels" / f"{name}.png", folder / "overlays" / f"{name}.png"
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_labels(paths[0], self.labels, self.table.palette)
        try:
            write_image(paths[1], overlay, compress_level=_PNG_LEVEL)
        except BaseException:  # including Ctrl-C: both files or neither
            paths[0].unlink(missing_ok=True)
            raise
        return paths


class _Prepared(NamedTuple):
    photo: Image.Image
    name: str
    source: str  # its name in errors


class Segmenter:
    """A network ready to segment pictures: `model`, in evaluation mode, with its class `table`.

    Args:
        weights: a weights file, or a network, which is moved to the device and put in evaluation
            mode; by default the street-scene network that comes with the package.
        device: where it runs, such as "cpu" or "cuda:1"; by default a CUDA GPU if there is one.
        bit_depth: significant bits of the samples of 16-bit picture files, 8 to 16, such as 12.

    InputError if this machine does not have the device, or a bit depth is given for a network of
    four channels; WeightsError if the file cannot be used, or the network does not take pictures.
    """

    def __init__(
        self,
        weights: PathLike | FCN | None = None,
        device: str | torch.device | None = None,
        bit_depth: int | None = None,
    ) -> None:
        self.bit_depth = bit_depth
        self.device = choose_device(device)
        if isinstance(weights, torch.nn.Module):
            check_model(weights)
            self.model, weights = weights.to(self.device).eval(), weights.title
        else:
            self.model = load_model(weights, self.device)
        if (channels := self.model.channels) != self.model.in_channels:
            raise WeightsError(f"{weights}: the network takes {channels} channels, a picture has 3")
        if bit_depth is not None and self.model.in_channels == 4:
            raise InputError(f"--bit-depth {bit_depth}: is for pictures of 1 or 3 channels")
        if self.device.type == "cpu":  # makes convolutions a quarter faster
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if (count := self.model.num_classes) > 255:
            raise WeightsError(f"the network has {count} classes; label pictures hold up to 255")
        numbered = tuple(f"class {k}" for k in range(count))
        self.table = self.model.table or ClassTable("numbered", numbered, voc_palette(count))

    @overload
    def __call__(self, image: Photo, **options: Any) -> Segmentation: ...
    @overload
    def __call__(self, image: Iterable[Photo], **options: Any) -> Iterator[Segmentation]: ...
    def __call__(  # type: ignore[misc]  # it names the options
        self,
        image: Photo | Iterable[Photo],
        *,
        max_size: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        batch_size: int = 8,
        probabilities: PathLike | None = None,
    ) -> Segmentation | Iterator[Segmentation]:
        """Segment one picture, or many.

        Args:
            image: a path; the content of a picture file (bytes) or a file open for reading; a PIL
                image; a uint8 array H×W (gray), H×W×3 (RGB) or H×W×4 (RGBA); a uint8 tensor C×H×W
                with 1, 3 or 4 channels. For many pictures, any iterable of these (even an endless
                one) or a uint8 tensor N×C×H×W.
            max_size: longest side, in pixels, that the network sees; larger pictures are shrunk.
                By default the largest size of its training, if its weights record it; with `tile`
                no limit.
            tile: side, in pixels of the picture, of the squares that the network sees one by one;
                for pictures too large for the memory, or for the network to see whole.
            overlap: pixels that neighboring tiles share, by default a quarter of a tile.
            scales: factors by which the picture, or each tile, is resized.
            flip: also see the mirrored picture. The label is that of the mean softmax of all views.
            batch_size: of many pictures, the most neighbors of equal size that go through the
                network together if nothing is blended; no more are held in memory.
            probabilities: for one picture, also write the softmax of all classes to this ``.npy``
                file: float16 C×H×W.

        Returns:
            The result at the picture's own size; for many pictures an iterator of results, in
            order, that reads each picture when its turn comes. A bad picture raises there.

        Raises:
            ImageError: a picture cannot be read, is too large for the memory, or too small for the
                network.
            TypeError, ValueError: not a picture; a number out of range; `max_size` with `tile`,
                `overlap` without one, or `probabilities` of many pictures.
            OSError: `probabilities` cannot be written.
        """
        if max_size is None and tile is None:
            max_size = self.model.preprocessing.max_size
        views = Views(max_size, tile, overlap, scales, flip)
        check_positive("batch_size", batch_size)
        if isinstance(image, Tensor):
            check_channels(image)
            many = image.dim() == 4
        else:
            single = (str, bytes, bytearray, memoryview, np.ndarray, Mapping)
            many = isinstance(image, Iterable) and not isinstance(image, single)
            many = many and not hasattr(image, "read")  # an open file iterates over its lines
        if not many:
            prepared = self._prepare(image, "image")  # type: ignore[arg-type]
            return self._run([prepared], views, probabilities)[0]
        if probabilities is not None:
            raise ValueError("probabilities are written for one picture at a time")
        each, names = enumerate(image, 1), Names()  # type: ignore[arg-type]
        group = (self._prepare(one, f"image-{k}", names) for k, one in each)
        batches = neighbors(group, lambda one: one.photo.size, batch_size)
        return (result for batch in batches for result in self._run(batch, views))

    def _prepare(self, image: Photo, name: str, names: Names | None = None) -> _Prepared:
        """Decode a picture; a file is named after its stem. `names` makes the names of many."""
        photo = as_photo(image, self.bit_depth, self.model.picture_channels)
        source = "the picture"
        if isinstance(image, (str, os.PathLike)):
            name, source = Path(image).stem, os.fspath(image)
        return _Prepared(photo, name if names is None else names.new(name), source)

    @torch.inference_mode()
    def _run(
        self, batch: Sequence[_Prepared], views: Views, path: PathLike | None = None
    ) -> list[Segmentation]:
        """Segment pictures of equal size in one pass, or blend the views of one after the other."""
        size = batch[0].photo.size[::-1]
        if not views.single(size):
            return [self._blend(one, views, path) for one in batch]
        seen = [shrink(one.photo, views.max_size) for one in batch]
        count = f"{len(batch)} times " if len(batch) > 1 else ""
        what = f"{count}{seen[0].width}x{seen[0].height} pixels"
        with image_errors(batch[0].source, what, self.device):
            scores, grid = coarse_scores(self.model, seen, size)
            labels = upsample_argmax(scores, grid).cpu().numpy()
            scores = scores.cpu()
        if path is not None:
            whole = [ScoredView(scores.float(), grid, False)]
            with probability_file(path, (len(self.table), *size)) as write:
                for first in range(0, size[0], BAND):
                    write(first, mean_softmax(whole, first, min(first + BAND, size[0])))
        parts = [(labels[0], scores)]
        if len(batch) > 1:  # each result gets its own copy, so that keeping one does not keep all
            parts = [(n.copy(), s.clone()) for n, s in zip(labels, scores.split(1), strict=True)]
        return [
            Segmentation(_rgb(one.photo), own, self.table, one.name, score, grid)
            for one, (own, score) in zip(batch, parts, strict=True)
        ]

    def _blend(self, one: _Prepared, views: Views, path: PathLike | None) -> Segmentation:
        shape = len(self.table), *one.photo.size[::-1]
        with probability_file(path, shape) if path else contextlib.nullcontext() as write:
            labels, confidence = blended_labels(self.model, one.photo, views, one.source, write)
        return Segmentation(_rgb(one.photo), labels, self.table, one.name, blended=confidence)


def _rgb(photo: Image.Image) -> Image.Image:
    return photo if photo.mode == "RGB" else photo.convert("RGB")  # without a fourth channel


class Report(NamedTuple):
    """What `segment_files` did with each picture, as in ``predictions.json``."""

    done: list[dict[str, Any]]  # "input", "labels", "overlay", "width", "height" and "shares"
    failed: list[dict[str, str]]  # "input" and "error"


def segment_files(
    segmenter: Segmenter,
    paths: Sequence[PathLike],
    folder: PathLike,
    *,
    opacity: float = 0.5,
    probabilities: Literal["npy", "png"] | None = None,
    progress: bool = False,
    **options: Any,
) -> Report:
    """Segment picture files one by one into a folder, with `options` of a call of `segmenter`.

    Writes ``labels/NAME.png`` (index PNG), ``overlays/NAME.png`` and at the end, even after an
    interruption, ``predictions.json``. NAME is the stem of the picture's file, followed by ``-2``,
    ... if an earlier picture has that stem. A bad picture does not stop the others. `probabilities`
    also writes ``probabilities/NAME.npy``, the softmax of all classes, float16 C×H×W, or
    ``probabilities/NAME.png``, that of the label in 8 bits (255 is 1).

    InputError if an output would replace one of the pictures: nothing is written. OSError if
    something cannot be written: no file is left half-written.
    """
    folder = Path(folder)
    names = output_names(paths)
    kinds = {"labels": (folder / "labels", ".png"), "overlay": (folder / "overlays", ".png")}
    if probabilities is not None:
        kinds["probabilities"] = folder / "probabilities", f".{probabilities}"
    files = [{kind: at / f"{name}{end}" for kind, (at, end) in kinds.items()} for name in names]
    refuse_replacing(paths, [file for group in files for file in group.values()])
    report = Report([], [])
    bar = tqdm(zip(paths, files, strict=True), total=len(names), unit="image", disable=not progress)
    with output_folders(*(place for place, _ in kinds.values())), bar:
        try:
            for path, group in bar:
                try:
                    entry = _segment_file(segmenter, path, group, folder, opacity, options)
                    report.done.append(entry)
                except (ImageError, MemoryError) as error:
                    told = str(error)
                    if isinstance(error, MemoryError):  # drawing needs more than labeling
                        told = f"{path}: too large for the memory"
                    report.failed.append({"input": str(path), "error": told})
        finally:
            if report.done:
                rows = zip(segmenter.table.names, segmenter.table.palette, strict=True)
                content = {
                    "model": segmenter.model.name,
                    "classes": [{"name": n, "color": "#" + bytes(c).hex()} for n, c in rows],
                    "pictures": report.done,
                    "failed": report.failed,
                }
                write_json(folder / "predictions.json", content)
    return report


def _segment_file(
    segmenter: Segmenter,
    path: PathLike,
    files: Mapping[str, Path],
    folder: Path,
    opacity: float,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Write all files of one picture, or none of them; describe them for the report."""
    extra = files.get("probabilities")
    if extra and extra.suffix == ".npy":
        options = {**options, "probabilities": extra}
    result = segmenter(path, **options)
    try:
        if extra and extra.suffix == ".png":
            gray = np.rint(result.confidence * 255).astype(np.uint8)
            write_image(extra, Image.fromarray(gray), compress_level=_PNG_LEVEL)
        result.save(folder, files["labels"].stem, opacity=opacity)
    except BaseException:  # including Ctrl-C
        if extra:
            extra.unlink(missing_ok=True)
        raise
    return {
        "input": str(path),
        **{kind: file.relative_to(folder).as_posix() for kind, file in files.items()},
        "width": result.image.width,
        "height": result.image.height,
        "shares": {name: round(share, 6) for name, share in result.shares.items()},
    }
