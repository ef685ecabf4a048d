"""Photo in, labels out: the network, its preprocessing and its classes behind one call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .data.classes import ClassTable, voc_palette
from .data.images import IMAGE_EXTENSIONS, PathLike, write_image, write_labels
from .data.inputs import Photo, as_photo, photo_tensor, shrink
from .data.outputs import output_folders, output_names, refuse_replacing, write_json
from .data.render import add_legend, blend
from .device import choose_device
from .errors import ImageError, WeightsError
from .models import load_model

# zlib's default level makes an overlay 8 % smaller in three times the time.
_PNG_LEVEL = 1


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One segmented picture.

    Attributes:
        image: the picture as the network saw it before shrinking: RGB, upright.
        labels: uint8 array H×W of the picture's own size; label k is ``table.names[k]``.
        table: the classes' names and colors.
        name: the stem of the picture's file, or "image".
    """

    image: Image.Image
    labels: np.ndarray
    table: ClassTable
    name: str = "image"

    @property
    def shares(self) -> dict[str, float]:
        """Share of the picture for every class by name, largest first; 0.0 for absent ones."""
        counts = np.bincount(self.labels.ravel(), minlength=256)
        order = sorted(range(len(self.table)), key=lambda k: -counts[k])
        return {self.table.names[k]: float(counts[k] / self.labels.size) for k in order}

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """Draw the classes' colors over the picture, with a legend of those that are there.

        Args:
            opacity: 0 (the picture alone) to 1 (the colors alone).

        Returns:
            An RGB picture, larger than the photo by the legend: below a landscape photo, to the
            right of a portrait.

        Raises:
            ValueError: `opacity` outside 0..1.
        """
        drawn = blend(self.image, self.labels, self.table, opacity)
        return add_legend(drawn, self.table, self.shares)

    def save(
        self, folder: PathLike, name: str | None = None, *, opacity: float = 0.5
    ) -> tuple[Path, Path]:
        """Write ``folder/labels/NAME.png`` (index PNG) and ``folder/overlays/NAME.png``.

        Args:
            folder: made when it is missing.
            name: the files' stem, by default the picture's.
            opacity: of the overlay.

        Returns:
            The two paths.

        Raises:
            ValueError: `folder` is the name of a picture, or `opacity` is outside 0..1.
            OSError: a file cannot be written; neither is left behind then.
        """
        folder, name = Path(folder), name or self.name
        if folder.suffix.lower() in IMAGE_EXTENSIONS and not folder.is_dir():
            raise ValueError(
                f"{folder}: save() takes a folder; overlay().save({str(folder)!r}) writes a picture"
            )
        overlay = self.overlay(opacity)
        paths = folder / "labels" / f"{name}.png", folder / "overlays" / f"{name}.png"
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_labels(paths[0], self.labels, self.table.palette)
        try:
            write_image(paths[1], overlay, compress_level=_PNG_LEVEL)
        except BaseException:  # Ctrl-C too: a picture is done or it is not
            with contextlib.suppress(OSError):
                paths[0].unlink()
            raise
        return paths


class Segmenter:
    """A network ready to segment pictures.

    Args:
        weights: a weights file; by default the street-scene network that comes with the package.
        device: where it runs, such as "cpu" or "cuda:1"; by default a CUDA GPU where there is one.

    Attributes:
        model: the network, in evaluation mode.
        table: its classes.
        device: where it runs.

    Raises:
        InputError: a device that this machine does not have.
        WeightsError: a file that cannot be used; the message names it.
    """

    def __init__(
        self, weights: PathLike | None = None, device: str | torch.device | None = None
    ) -> None:
        self.device = choose_device(device)
        self.model = load_model(weights, self.device)
        if self.device.type == "cpu":  # convolutions on a CPU are a quarter faster so
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.table = self.model.table or _numbered_table(self.model.num_classes)

    @torch.inference_mode()
    def __call__(self, image: Photo, *, max_size: int | None = None) -> Segmentation:
        """Segment one picture.

        Args:
            image: a path; a PIL image; or a uint8 array, H×W×3 in RGB order or H×W gray.
            max_size: longest side, in pixels, that the network sees. A larger picture is shrunk
                for it; the labels still come at the picture's own size. By default the size
                up to which the network learned, if its weights say so.

        Returns:
            Labels, shares and drawings, at the picture's own size.

        Raises:
            ImageError: a picture that cannot be read, or too large for the memory.
            TypeError, ValueError: no picture, or no positive integer as `max_size`.
        """
        photo = as_photo(image)
        if max_size is None:
            max_size = self.model.preprocessing.max_size
        seen = shrink(photo, max_size)
        try:
            pixels = self.model.preprocess(photo_tensor(seen).to(self.device))
            labels = self.model.predict(pixels, size=(photo.height, photo.width))
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            name = f"{image}: " if isinstance(image, (str, os.PathLike)) else ""
            raise ImageError(
                f"{name}{seen.width}x{seen.height} pixels are too many for the memory of "
                f"{self.device}; give a smaller max_size"
            ) from error
        stem = Path(image).stem if isinstance(image, (str, os.PathLike)) else "image"
        return Segmentation(photo, labels[0].cpu().numpy(), self.table, stem)


@dataclass
class Report:
    """What `segment_files` did.

    Attributes:
        done: for each segmented picture what ``predictions.json`` says of it: "input", "labels"
            and "overlay" (relative to the folder), "width", "height", "shares".
        failed: for each other picture its "input" and the "error".
    """

    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def segment_files(
    segmenter: Segmenter,
    paths: Sequence[PathLike],
    folder: PathLike,
    *,
    max_size: int | None = None,
    opacity: float = 0.5,
    progress: bool = False,
) -> Report:
    """Segment picture files one by one into a folder.

    Writes ``labels/NAME.png`` (index PNG), ``overlays/NAME.png`` and, at the end, also when it was
    interrupted, ``predictions.json``. NAME is the stem of the picture's file; where several
    pictures have one stem, all but the first get ``-2``, ``-3``, ... in the order given.

    Args:
        segmenter: the network.
        paths: the pictures.
        folder: made when it is missing; existing files of the same names are replaced.
        max_size: longest side that the network sees, by default as in a call of `segmenter`.
        opacity: of the overlays.
        progress: show a bar on stderr.

    Returns:
        What was done, and which pictures failed: a bad one does not stop the others.

    Raises:
        InputError: an output would replace one of the pictures; nothing was done.
        OSError: something cannot be written. No file is left half-written.
    """
    folder = Path(folder)
    names = output_names(paths)
    folders = folder / "labels", folder / "overlays"
    refuse_replacing(paths, [place / f"{name}.png" for place in folders for name in names])
    report = Report()
    bar = tqdm(zip(paths, names, strict=True), total=len(names), unit="image", disable=not progress)
    with output_folders(*folders), bar:
        try:
            for path, name in bar:
                try:
                    result = segmenter(path, max_size=max_size)
                    files = result.save(folder, name, opacity=opacity)
                except ImageError as error:
                    report.failed.append({"input": str(path), "error": str(error)})
                except MemoryError:  # the drawing takes more than the labels
                    message = f"{path}: too large for the memory"
                    report.failed.append({"input": str(path), "error": message})
                else:
                    report.done.append(_entry(path, result, files, folder))
        finally:
            if report.done:
                _write_report(folder / "predictions.json", segmenter, report)
    return report


def _entry(
    path: PathLike, result: Segmentation, files: tuple[Path, Path], folder: Path
) -> dict[str, Any]:
    """Describe one picture for the report."""
    labels, overlay = (file.relative_to(folder).as_posix() for file in files)
    return {
        "input": str(path),
        "labels": labels,
        "overlay": overlay,
        "width": result.image.width,
        "height": result.image.height,
        "shares": {name: round(share, 6) for name, share in result.shares.items()},
    }


def _write_report(path: Path, segmenter: Segmenter, report: Report) -> None:
    """Write predictions.json."""
    table = segmenter.table
    content = {
        "model": segmenter.model.name,
        "classes": [
            {"name": name, "color": "#" + bytes(color).hex()}
            for name, color in zip(table.names, table.palette, strict=True)
        ],
        "pictures": report.done,
        "failed": report.failed,
    }
    write_json(path, content)


def _numbered_table(num_classes: int) -> ClassTable:
    """Return a table for weights that do not name their classes."""
    if num_classes > 255:
        raise WeightsError(f"the network has {num_classes} classes; label pictures hold up to 255")
    names = tuple(f"class {k}" for k in range(num_classes))
    return ClassTable("numbered", names, voc_palette(num_classes))


def _out_of_memory(error: Exception) -> bool:
    """Tell whether torch, on any device, ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error)  # what the CPU's allocator says
