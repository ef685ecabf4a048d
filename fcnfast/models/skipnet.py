"""What the FCNs of the paper share: a trunk, scores read from its maps, fused coarse to fine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from ..geometry import Border, ReceptiveField
from .base import FCN, Preprocessing, ScoreMap
from .decoder import (
    IMAGE,
    UPSAMPLINGS,
    Located,
    Step,
    Upsampling,
    Upscore,
    after,
    fuse,
    on_image,
    size_after,
    step_between,
    window_of,
)

_T = TypeVar("_T")


class Up(NamedTuple):
    """An upsampling that can be learned: the name and the weight's shape (C x 1 x k x k) then.

    step: what it does. final: whether it is the last, to the image.
    """

    name: str
    shape: tuple[int, ...]
    step: Step
    final: bool


def taps_of_stride(stride: int, taps: dict[str, int]) -> dict[str, int]:
    """The taps, of three from coarse to fine, that a net of stride 32, 16 or 8 reads."""
    if stride not in (32, 16, 8):
        raise ValueError(f"stride must be 32, 16 or 8, not {stride}")
    return dict(list(taps.items())[: (32, 16, 8).index(stride) + 1])


class SkipNet(FCN):
    """A network whose layers are its direct children, named as in the source of their weights.

    A subclass lists its trunk with `add_trunk`, says with `add_heads` which maps it reads scores
    from, and calls `finish` last. Crops, grids and upsamplings follow from the receptive fields.

    Attributes:
        trunk: names of the trunk's layers, in order.
        taps: names of the maps that scores are read from, coarsest first.
        scales: factors by which some of these maps are multiplied first.
        heads: for every output the suffix of its layers' names.
        padding: of the first convolution, with crops as in the paper; None: every layer pads its
            own border, and maps are sampled where they lie.
        upsampling, final_upsampling: see `set_upsampling`.
    """

    def __init__(
        self, num_classes: int, preprocessing: Preprocessing, padding: int | None = None
    ) -> None:
        super().__init__(num_classes, preprocessing)
        if padding is not None and (type(padding) is not int or padding < 0):
            raise ValueError(f"padding must be None or a number of pixels, not {padding!r}")
        self.padding = padding
        self.border: Border = "clamp" if padding is None else "zero"
        self.trunk: list[str] = []
        self.trunk_modules = self.trunk
        self.taps: tuple[str, ...] = ()
        self.scales: dict[str, float] = {}
        self.heads: dict[str, str] = {}
        self.upsampling: Upsampling = "fixed"
        self.final_upsampling: Upsampling = "fixed"

    def add_trunk(self, layers: Mapping[str, nn.Module]) -> None:
        """Append layers to the trunk; each becomes an attribute of its name.

        ValueError for a name with a dot, or one that the network already has (`features`).
        """
        for name, layer in layers.items():
            if "." in name or hasattr(self, name):
                why = "it has a dot" if "." in name else f"{type(self).__name__} has that already"
                raise ValueError(f"a layer of the trunk cannot be called {name!r}: {why}")
            self.add_module(name, layer)
            self.trunk.append(name)

    def add_heads(
        self, taps: Mapping[str, int], heads: Mapping[str, tuple[str, int]] | None = None
    ) -> None:
        """Add score layers for `heads` (name: suffix, classes) on the maps `taps` (name: channels).

        By default the only head is "out", without a suffix.
        """
        heads = {"out": ("", self.num_classes)} if heads is None else heads
        self.taps = tuple(taps)
        self.heads = {head: suffix for head, (suffix, _) in heads.items()}
        for suffix, classes in heads.values():
            for tap, channels in taps.items():
                self.add_module(self._score_name(tap, suffix), nn.Conv2d(channels, classes, 1))

    def finish(self, upsampling: Upsampling, final_upsampling: Upsampling | None) -> None:
        """Initialize the layers, set the upsampling and check the padding; call this last."""
        if self.border == "zero":
            self._check_padding()
        for name, layer in self.named_modules():
            self.initialize(name, layer)
        self.set_upsampling(upsampling, final_upsampling)

    def _check_padding(self) -> None:
        """Reject a padding with which scores begin or end inside an image.

        Where they end depends only on the image's length modulo the trunk's stride.
        """
        steps, last = self._steps(), self._steps()[-1]
        problem = f"padding {self.padding} is too small for stride {last.stride}"
        if last.start > 0:
            raise ValueError(f"{problem}: scores would begin {last.start} pixels inside the image")
        period = int(self.fields()[self.taps[0]].stride)
        for length in range(64 * period, 65 * period):
            sizes = self._along(length, size_after)
            count = sizes[self.taps[0]]
            for tap, step in zip(self.taps[1:], steps, strict=False):
                count = min(sizes[tap], step.start + step.length(count)) - max(0, step.start)
            missing = length - last.start - last.length(count)
            if missing > 0:
                missed = f"of {length} pixels the scores would miss the last {missing}"
                raise ValueError(f"{problem}: {missed}")

    def _layers(self, trunk: Iterable[str]) -> list[tuple[str, nn.Module, str]]:
        """Names, layers, and the names of their maps: as in Caffe, activations keep the last."""
        found, blob = [], "image"
        for name in trunk:
            layer = getattr(self, name)
            kinds = (nn.ConvTranspose2d, nn.LocalResponseNorm)
            if window_of(layer) is not None or isinstance(layer, kinds) or any(layer.children()):
                blob = name
            found.append((name, layer, blob))
        return found

    def _along(self, here: _T, step: Callable[[_T, nn.Module], _T]) -> dict[str, _T]:
        """What `step` makes of `here` layer by layer, by the trunk's maps."""
        found = {}
        for _, layer, blob in self._layers(self.trunk):
            found[blob] = here = step(here, layer)
        return found

    def fields(self) -> dict[str, ReceptiveField]:
        """Where the units of the trunk's maps lie, by the name of the map."""
        return self._along(IMAGE, after)

    def _score_name(self, tap: str, suffix: str) -> str:
        return f"score_{'fr' if tap == self.taps[0] else tap}{suffix}"

    def upscores(self, head: str = "") -> list[Up]:
        """The upsamplings of one head, or head by head; coarse to fine, the last is the image's."""
        found, steps = [], self._steps()
        names = [f"upscore_{tap}" for tap in self.taps[:-1]]
        names[:1] = ["upscore2"][: len(names)]
        names.append(f"upscore{steps[-1].stride}" if names else "upscore")
        for suffix in [self.heads[head]] if head else self.heads.values():
            score = cast(nn.Conv2d, getattr(self, self._score_name(self.taps[0], suffix)))
            for name, step in zip(names, steps, strict=True):
                shape = (score.out_channels, 1, step.kernel, step.kernel)
                found.append(Up(name + suffix, shape, step, name == names[-1]))
        return found

    def set_upsampling(self, kind: Upsampling, final: Upsampling | None = None) -> None:
        """Make the upsampling fixed or learned from now on.

        Args:
            kind: "fixed": bilinear, without parameters; "depthwise": a learned filter for every
                class; "dense": learned filters between all classes, as in some early weights. New
                ones start bilinear; existing ones keep their values.
            final: of the last step to the image; by default `kind`. The paper learned all others.

        ValueError for any other kind.
        """
        final = kind if final is None else final
        for name, value in (("upsampling", kind), ("final_upsampling", final)):
            if value not in UPSAMPLINGS:
                raise ValueError(f"{name} must be one of {', '.join(UPSAMPLINGS)}, not {value!r}")
        like = next(self.parameters())
        for up in self.upscores():
            wanted, now = final if up.final else kind, self._up(up.name)
            if wanted == "fixed":
                self._modules.pop(up.name, None)
            elif now is None or now.dense != (wanted == "dense"):
                with torch.device(like.device):
                    new = Upscore(up.shape[0], up.step, wanted == "dense")
                self.add_module(up.name, new.to(like))
        self.upsampling, self.final_upsampling = kind, final
        settings = {"upsampling": kind, "final_upsampling": final}
        default = {"upsampling": "fixed", "final_upsampling": kind}
        kept = {key: value for key, value in self.options.items() if key not in settings}
        self.options = kept | {k: v for k, v in settings.items() if v != default[k]}

    def _up(self, name: str) -> Upscore | None:
        """The learned upsampling of that name, if it is one."""
        return cast("Upscore | None", self._modules.get(name))

    def _steps(self) -> list[Step]:
        """The upsamplings, from one tap to the next finer one and from the last to the image."""
        fields = self.fields()
        here, steps = fields[self.taps[0]], []
        for tap in self.taps[1:]:
            steps.append(step_between(here, fields[tap]))
            here = fields[tap]
            if self.border == "zero":  # the result begins where both maps do
                here = here.crop(max(0, steps[-1].start))
        return [*steps, step_between(here, IMAGE)]

    def features(self, images: Tensor) -> dict[str, Located]:
        """The maps that scores are read from; ValueError when an image is too small."""
        return self._walk(self.trunk, images, self.taps)

    def _walk(
        self, trunk: Iterable[str], images: Tensor, wanted: Collection[str]
    ) -> dict[str, Located]:
        """The wanted maps of a trunk; rejects a map that a window does not fit into."""
        found, here, before = {}, Located(images, IMAGE), "the image"
        for name, layer, blob in self._layers(trunk):
            window, size = window_of(layer), tuple(here.x.shape[-2:])
            if window is not None and min(size_after(n, layer) for n in size) < 1:
                why = "" if self.padding is None else f" for a padding of {self.padding}"
                raise ValueError(
                    f"an image of {tuple(images.shape[-2:])} is too small{why}: {before} is "
                    f"{size}, {name} needs {window[0]} x {window[0]}"
                )
            here = Located(layer(here.x), after(here.field, layer))
            before = blob
            if blob in wanted:
                found[blob] = here
        return found

    def _score(self, features: Mapping[str, Located], tap: str, suffix: str) -> Located:
        """The scores that one head reads from one map."""
        x, field = features[tap]
        if tap in self.scales:
            x = x * self.scales[tap]
        return Located(getattr(self, self._score_name(tap, suffix))(x), field)

    def score_maps(
        self, images: Tensor, heads: Collection[str] | None = None
    ) -> dict[str, ScoreMap]:
        """Scores at the stride of the finest tap; full size if the last upsampling is learned."""
        features, found = self.features(images), {}
        for head, suffix in self.heads.items():
            if heads is None or head in heads:
                ups = [self._up(up.name) for up in self.upscores(head)]
                here = self._score(features, self.taps[0], suffix)
                for tap, up in zip(self.taps[1:], ups[:-1], strict=True):
                    here = fuse(here, self._score(features, tap, suffix), self.border, up)
                found[head] = on_image(here, images.shape[-2:], self.border, ups[-1])
        return found
