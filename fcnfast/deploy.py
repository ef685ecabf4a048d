"""A network as a graph that runs without fcnfast: ONNX, or a program of `torch.export`.

The raw ops become torch's own operators (`fcnfast.ops._portable`), and those become ONNX's: two
Gathers for each axis of an upsampling, or one Resize if its grid is that of ``F.interpolate``.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ._version import __version__
from .errors import InputError
from .files import PathLike, refuse_replacing, replacing
from .geometry import Size, as_pair
from .models import FCN, load_model
from .models.base import check_model
from .ops import portable, upsample

FORMATS = (".onnx", ".pt2")
DEFAULT_SIZE = (512, 512)
# The size that a network of any size is traced with: not divisible by strides, so that no two maps
# agree in size by chance.
EXAMPLE_SIZE = (505, 643)
# Conditions of a traced graph may fail up to this length of an axis, as they do for maps of one
# unit. From there to twice the length they must hold.
LONGEST_EXCEPTION = 256


class _Graph(nn.Module):
    """What is exported: one head of a network, from its own input or from uint8 RGB."""

    def __init__(self, model: FCN, head: str, scores: bool, uint8: bool) -> None:
        super().__init__()
        self.model, self.head, self.scores, self.uint8 = model, head, scores, uint8

    def forward(self, image: Tensor) -> Tensor:
        """N x C x H x W to labels N x H x W, or to scores N x classes x H x W."""
        x = self.model.preprocess(image) if self.uint8 else image
        coarse = self.model.score_map(x, self.head)
        return upsample(coarse.scores, coarse.grid) if self.scores else coarse.labels()


def export(
    model: FCN | PathLike,
    path: PathLike,
    *,
    size: Size | None = None,
    dynamic: bool = False,
    scores: bool = False,
    uint8: bool = False,
    half: bool = False,
    head: str = "out",
) -> None:
    """Write a network as a graph of standard operators, for machines without fcnfast.

    The input "image" is the network's own, N x C x H x W (see `FCN.preprocess`). The output is
    "labels", N x H x W, uint8 (int16 with more than 256 classes), or "scores",
    N x classes x H x W. The file's metadata holds, as JSON, the class names, the preprocessing that
    the input needs and, with `dynamic`, the least image size that the graph is known to support.
    The network itself is not changed.

    Args:
        model: a network, a weights file, or "bundled".
        path: ``.onnx`` (needs ``pip install 'fcnfast[export]'``) or ``.pt2``, which
            ``torch.export.load`` reads.
        size: (H, W) of the images, 512 x 512 by default; N is 1.
        dynamic: take batches and images of any size instead.
        scores: write scores instead of labels.
        uint8: take uint8 RGB, N x 3 x H x W (N x 4 x H x W of a network of four channels): the
            preprocessing becomes part of the graph.
        half: weights, input and scores in float16.
        head: the output to export, such as "geo" of a SIFT Flow network.

    Raises:
        InputError: for any other suffix, a missing extra, a size or a head that the network does
            not support, weights beyond float16, or a network that no graph expresses at every size.
        TypeError: when `model` is not a network of fcnfast.
        ValueError: for both `size` and `dynamic`.
        WeightsError: when the weights cannot be used.
        OSError: when the file cannot be written; nothing is left behind.

    Example:
        >>> fcnfast.export("bundled", "street.pt2", size=(64, 96))
    """
    if size is not None and dynamic:
        raise ValueError("give size or dynamic, not both")
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: the name must end in .onnx or .pt2")
    if suffix == ".onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise InputError(f"{path}: ONNX needs onnx and onnxscript: pip install 'fcnfast[export]'")
    wanted = None if dynamic else as_pair(DEFAULT_SIZE if size is None else size, "size")
    if isinstance(model, (str, os.PathLike)):
        refuse_replacing([model], [path])
    with replacing(path) as temporary:
        network = _network(model)
        if uint8 and network.channels != network.in_channels:
            raise InputError(
                f"{network.title}: takes {network.channels} channels, uint8 RGB pictures have 3"
            )
        network = network.to("cpu", torch.float16 if half else torch.float32)
        state = network.state_dict().values()
        if half and any(value.isinf().any() for value in state):
            raise InputError(f"{network.title}: has weights beyond the range of float16")
        graph = _Graph(network.eval().requires_grad_(False), head, scores, uint8)
        with _quiet():
            program = _program(graph, wanted)
            least = _least_length(program, network.title) if dynamic else None
            _write(program, graph, _metadata(graph, least), temporary, suffix)


def _network(model: FCN | PathLike) -> FCN:
    """A copy of the network, or one from its file, that may be changed."""
    if isinstance(model, (str, os.PathLike)):
        return load_model(None if model == "bundled" else model)
    check_model(model)
    return copy.deepcopy(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' logs and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _program(graph: _Graph, size: tuple[int, int] | None) -> ExportedProgram:
    """The graph in torch's own operators, for one size or for all."""
    network = graph.model
    batch, (height, width) = (1, size) if size else (2, EXAMPLE_SIZE)
    if min(height, width) < 1:
        raise InputError(f"size must be positive, not {size}")
    dtype = torch.uint8 if graph.uint8 else next(network.parameters()).dtype
    channels = network.picture_channels if graph.uint8 else network.channels
    image = torch.zeros(batch, channels, height, width, dtype=dtype, device="cpu")
    shapes = None if size else ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    try:
        with portable(), torch.autocast("cpu", enabled=False):
            return torch.export.export(graph, (image,), dynamic_shapes=shapes)
    except (RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        place = f" at {height}x{width}" if size else ": no graph takes every size; give one"
        raise InputError(f"{network.title}{place}: {told}") from error


def _least_length(program: ExportedProgram, name: str) -> int:
    """The least height and width from which a graph for all sizes is known to hold.

    Tracing follows one path through the code and keeps the conditions on sizes that led there. A
    .pt2 checks them whenever it runs. ONNX does not, so they are checked here.

    Raises:
        InputError: for a condition that fails for large images.
    """
    failed = 0
    # torch 2.7 has no such list: it refuses to trace under such conditions.
    for guard in getattr(program, "_guards_code", None) or ():
        condition = compile(guard, "guard", "eval")
        for length in range(1, 2 * LONGEST_EXCEPTION):
            for size in ((length, length), (length, EXAMPLE_SIZE[1]), (EXAMPLE_SIZE[0], length)):
                image = torch.empty(2, 0, *size, device="meta")
                if not eval(condition, {"L": {"image": image}}):
                    failed = max(failed, length)
        if failed > LONGEST_EXCEPTION:
            raise InputError(
                f"{name}: no graph takes every size; give one: {failed} pixels differ from "
                f"{EXAMPLE_SIZE[0]}, by {guard}"
            )
    return failed + 1


def _metadata(graph: _Graph, least: int | None) -> dict[str, str]:
    """What a program must know about the graph, as strings."""
    network = graph.model
    about: dict[str, Any] = {"fcnfast": __version__, "network": network.name}
    if network.table is not None and graph.head == "out":
        about["classes"] = network.table.names
    if least is not None:
        about["least_size"] = [least, least]
    if not graph.uint8:
        about["preprocessing"] = network.preprocessing.to_json()
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}


def _write(
    program: ExportedProgram, graph: _Graph, about: dict[str, str], path: Path, suffix: str
) -> None:
    if suffix == ".pt2":
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files=about)
        return
    axes = ({0: "batch", 2: "height", 3: "width"},) if "least_size" in about else None
    made: Any = torch.onnx.export(
        program,
        input_names=["image"],
        output_names=["scores" if graph.scores else "labels"],
        dynamic_shapes=axes,
        dynamo=True,
        verbose=False,
    )
    made.model.metadata_props.update(about)
    made.save(path, external_data=False)
