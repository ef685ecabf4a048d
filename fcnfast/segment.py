"""Photo in, labels out: the network, its preprocessing and its classes behind one call."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .data.classes import ClassTable, voc_palette
from .data.images import IMAGE_EXTENSIONS, PathLike, write_image, write_labels
from .data.inputs import Photo, as_photo, photo_tensor, shrink
from .data.render import add_legend, blend
from .errors import ImageError, InputError, WeightsError
from .models import load_model

# PNG's stronger compression makes a photo a few percent smaller in twice the time.
_PNG_LEVEL = 3


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One segmented picture.

    Attributes:
        image: the picture as the network saw it before shrinking: RGB, upright.
        labels: uint8 array H×W of the picture's own size; label k is ``table.names[k]``.
        table: the classes' names and colours.
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
        """Draw the classes' colours over the picture, with a legend of those that are there.

        Args:
            opacity: 0 (the picture alone) to 1 (the colours alone).

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
        except OSError:
            paths[0].unlink(missing_ok=True)
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
            image: a path; a PIL image; or a uint8 array, H×W×3 in RGB order or H×W grey.
            max_size: longest side, in pixels, that the network sees. A larger picture is shrunk
                for it; the labels still come at the picture's own size. None: no limit.

        Returns:
            Labels, shares and drawings, at the picture's own size.

        Raises:
            ImageError: a picture that cannot be read, or too large for the memory.
            TypeError, ValueError: no picture, or no positive integer as `max_size`.
        """
        photo = as_photo(image)
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


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device that is meant: a CUDA GPU where there is one, else the CPU, by default.

    Raises:
        InputError: a name that torch does not know, or a device that this machine does not have.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used: {reason}") from error
    return chosen


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
