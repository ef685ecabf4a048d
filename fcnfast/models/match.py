"""Matching a file's tensors with a network's: everything that fits is loaded, or nothing."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import torch
from torch import Tensor

from ..data.classes import ClassTable, table_from_json
from ..data.tables import TABLES
from ..errors import WeightsError
from ..weights import Family, Stored, WeightsFile
from .base import FCN, LoadReport
from .decoder import UPSAMPLINGS, Upsampling, as_upsampling, upsampling_of
from .identify import SCORES, fits, fits_other_classes, is_classifier, scales_in
from .skipnet import SkipNet
from .table import MODELS
from .vgg import AT_ONCE_SCALES

# Options that may differ between a file and the network: they do not change what weights mean.
# (RGB filters are converted to other channels; any other difference shows in the shape.)
_FREE_OPTIONS = {"dropout", "upsampling", "final_upsampling", "aux_loss", "in_channels"}


class Match:
    """Finds which of a file's tensors belong where, and whether it is for a different network.

    Nothing of the network changes before everything is read and fits. By the network's names:
    keys: the file's names; own: shape and dtype of its tensors, including learned upsamplings to
    come; values: tensors that are already read. By the file's: dropped: why a tensor is not used.
    """

    def __init__(self, model: FCN, file: WeightsFile, family: Family) -> None:
        self.model, self.file, self.family, self.keys = model, file, family, family.keys
        self.name = model.title
        state = model.state_dict()
        self.own = {key: (tuple(t.shape), t.dtype) for key, t in state.items()}
        self.dropped = dict(family.dropped)
        self.values: dict[str, Tensor] = {}

    def load(self) -> LoadReport:
        """Load what fits; for a bad file or a different network, WeightsError before any change."""
        model = self.model
        self._check_options()
        self._check_scales()
        table = self._table()
        kinds = self._choose_upsampling(model) if isinstance(model, SkipNet) else ()
        found = self._found()
        missing = tuple(key for key in self.own if key not in found)
        known = {self.keys[key] for key in self.own if key in self.keys} | self.dropped.keys()
        unexpected = tuple(key for key in self.file.tensors if key not in known)
        self._check_rest(missing, unexpected)
        state = {key: self._value(key) for key in self.own if key in found}
        shapes = {key: (self._stored(key).shape, tuple(state[key].shape)) for key in state}
        if isinstance(model, SkipNet):
            model.set_upsampling(*kinds)
        _assign(model, state)
        model.set_preprocessing(self.family.preprocess or model.default_preprocessing)
        model.table = table
        return LoadReport(
            path=self.file.path,
            format=self.file.format,
            family=self.family.title,
            loaded=tuple(state),
            reshaped={key: pair for key, pair in shapes.items() if pair[0] != pair[1]},
            missing=missing,
            unexpected=unexpected,
            dropped=self.dropped,
            preprocessing=model.preprocessing,
            notes=self._notes(),
        )

    @property
    def _other(self) -> str:
        """What to add to an error if the file is for a different network, rather than damaged."""
        same = self.family.network == self.model.name
        if not self.family.network:  # then the number of common layers decides
            same = 2 * len(self.own.keys() & self.keys.keys()) > len(self.own)
        return "" if same else f"; it holds weights of {self.family.title}, not of {self.name}"

    def _error(self, text: str) -> WeightsError:
        return WeightsError(f"{self.file.path}: {text}")

    def _stored(self, key: str) -> Stored:
        return self.file.tensors[self.keys[key]]

    def _check_options(self) -> None:
        """Reject a network that was not made with the options that the weights need."""
        model, family = self.model, self.family
        defaults = {p.name: p.default for p in inspect.signature(type(model)).parameters.values()}
        told = family.options.keys() & defaults.keys()
        theirs, ours = MODELS.get(family.network), MODELS.get(model.name)
        # Options that it omits have their default, also in a coarser net of the same class.
        if theirs and ours and theirs.make is ours.make:
            told |= model.options.keys()
        for key in sorted(told - _FREE_OPTIONS):
            has, needs = (
                _plain(options.get(key, defaults.get(key)))
                for options in (model.options, family.options)
            )
            if has != needs:
                # `create_model` takes options from the file, unless it is for a different network.
                own = "" if family.network in ("", model.name) else f"{key}={needs!r}, "
                argument = "weights_backbone" if is_classifier(family) else "weights"
                call = f"create_model({self.name!r}, {own}{argument}=...)"
                raise self._error(
                    f"weights of {family.title} for {key}={needs!r}, but {self.name} was made "
                    f"with {key}={has!r}; {call} makes it as the file needs"
                )

    def _check_scales(self) -> None:
        """Reject a staged FCN-8s for an at-once one, or the reverse, if the file shows it."""
        scales, ours = scales_in(self.file, self.family), getattr(self.model, "scales", {})
        if scales is None:
            return
        for tap in AT_ONCE_SCALES:
            if (layer := f"scale_{tap}.weight") in self.keys:
                self.dropped[self.keys[layer]] = "a constant, which the network has"
            here, there = ours.get(tap, 1.0), scales.get(tap, 1.0)
            both = f"score_{tap}.weight" in self.keys.keys() & self.own.keys()
            if both and not math.isclose(here, there, rel_tol=1e-6):
                raise self._error(
                    f"multiplies {tap} by {there:g}, {self.name} by {here:g}: FCN-8s trained at "
                    "once and in stages are different networks"
                )

    def _table(self) -> ClassTable | None:
        """The classes, if the file names them, with what labels of a known data set store."""
        family, meta, count = self.family, self.file.meta, self.model.num_classes
        if not len(family.classes) == count == len(family.palette):
            return self.model.table
        try:
            table = ClassTable(family.network or "foreign", family.classes, family.palette)
            if meta is None or not meta.table:
                return next((t for t in TABLES.values() if t.names == table.names), table)
            table = table_from_json(self.file.path, meta.table)
            if len(table) != count:
                raise ValueError(f"{len(table)} classes in the table, {count} in the network")
        except (TypeError, ValueError) as error:
            raise self._error(f"its classes cannot be used: {error}") from None
        return table

    def _choose_upsampling(self, model: SkipNet) -> tuple[Upsampling, Upsampling]:
        """The upsampling that the file's weights need, or the network's if it is richer."""
        kinds, ups = [model.upsampling, model.final_upsampling], model.upscores()
        for up in ups:
            name, shape = f"{up.name}.weight", up.shape
            self.own.pop(name, None)
            if name not in self.keys:
                continue
            key, stored = self.keys[name], self._stored(name)
            there = stored.shape
            if len(there) != 4 or there[1] not in (1, there[0]) or there[2:] != shape[2:]:
                raise self._error(
                    f"{key!r} is {there}, but the upsampling {up.name!r} of {self.name} is "
                    f"{(*shape[:1], *shape[:1], *shape[2:])}, or {shape} without its zeros"
                )
            if there[0] == shape[0]:
                value = self.values[name] = stored.read()
                kinds[up.final] = max(kinds[up.final], upsampling_of(value), key=UPSAMPLINGS.index)
            else:
                self.dropped[key] = f"for {there[0]} classes, the network has {shape[0]}"
        dtype = next(model.parameters()).dtype
        for up in ups:
            name, kind = f"{up.name}.weight", kinds[up.final]
            if kind != "fixed":
                classes, _, *window = up.shape
                self.own[name] = (classes, classes if kind == "dense" else 1, *window), dtype
                if name in self.values:
                    self.values[name] = as_upsampling(self.values[name], kind == "dense")
            elif self.values.pop(name, None) is not None:
                self.dropped[self.keys[name]] = "bilinear: the network's fixed upsampling"
        return kinds[0], kinds[1]

    def _found(self) -> set[str]:
        """The network's tensors that the file has; scores for other classes go to `dropped`.

        WeightsError if a layer of the trunk is missing or does not fit.
        """
        found = set(self.values)
        given = {key for key in self.own if key in self.keys and self.keys[key] not in self.dropped}
        begun = {key.partition(".")[0] for key in given}
        for key, (shape, _) in self.own.items():
            if key not in given:
                # A head may be absent as a whole; part of one belongs to a different network.
                head = not self._in_trunk(key) and key.partition(".")[0] not in begun
                old = key.endswith("num_batches_tracked")  # not in the oldest files
                if not (head or old or key.startswith(self.family.partial)):
                    raise self._missing(key)
                continue
            stored = self._stored(key)
            if key in found or fits(stored.shape, shape) or self._is_rgb(key):
                found.add(key)
            elif fits_other_classes(key, stored.shape, shape):
                why = f"for {stored.shape[0]} classes, the network has {shape[0]}"
                self.dropped[self.keys[key]] = why
            else:
                counts = f"{math.prod(stored.shape)} numbers for {math.prod(shape)}"
                raise self._error(
                    f"{self.keys[key]!r} is {stored.shape}, but {self.name} with "
                    f"{self.model.num_classes} classes needs {shape} ({counts}){self._other}"
                )
        return found

    def _in_trunk(self, key: str) -> bool:
        trunk = self.model.trunk_modules
        return not trunk or key.partition(".")[0] in trunk

    def _is_rgb(self, key: str) -> bool:
        """Whether a tensor is the first layer's: for RGB in the file, for other channels here."""
        if key != f"{self.model.first_layer()[0]}.weight" or self.model.in_channels == 3:
            return False
        shape = self.own[key][0]
        return self._stored(key).shape == (shape[0], 3, *shape[2:])

    def _missing(self, key: str) -> WeightsError:
        """The error for a tensor that the file lacks, by the name that it would have there."""
        layer, _, what = key.rpartition(".")
        theirs = self.keys.get(key, f"{self.family.theirs(layer)}.{what}")
        first = key.partition(".")[0] in self.model.trunk_modules[:1]
        hint = f"; {self.model.transplanting}" if first and self.model.transplanting else ""
        return self._error(f"has no {theirs!r}{self._other}{hint}")

    def _check_rest(self, missing: tuple[str, ...], unexpected: tuple[str, ...]) -> None:
        """Reject what only the file of a different network can lack or hold.

        Our own files for this network lack nothing and hold nothing else; in others, a trunk's
        layer that this network does not have shows that the file is for a deeper one.
        """
        same = self.family.network == self.model.name != ""
        classes = classes_in(self.model, self.file, self.family)
        if same and missing and classes == self.model.num_classes:
            raise self._error(f"has no {missing[0]!r}, which {self.name} needs")
        kinds = {_kind(key) for key in self.own if self._in_trunk(key)}
        for key in unexpected:
            deeper = not self.model.cut_trunk and _kind(self.family.names.get(key, "")) in kinds
            if same or deeper:
                raise self._error(f"holds {key!r}, which {self.name} does not have{self._other}")

    def _value(self, key: str) -> Tensor:
        """A tensor of the file in the network's shape and dtype."""
        shape, dtype = self.own[key]
        value = self.values.pop(key) if key in self.values else self._stored(key).read()
        if value.is_floating_point() != dtype.is_floating_point:
            raise self._error(f"{self.keys[key]!r} holds {value.dtype}{self._other}")
        if self._is_rgb(key):  # for gray, or with a fourth channel
            gray, extra = value.sum(1, keepdim=True), value.mean(1, keepdim=True)
            value = gray if shape[1] == 1 else torch.cat((value, extra), 1)
        value = value.reshape(shape).to(dtype)
        if value.is_floating_point() and value.numel():
            low, high = torch.aminmax(value)  # both NaN when anything is; needs no memory
            if not (low.isfinite() and high.isfinite()):
                raise self._error(f"{self.keys[key]!r} holds values that are not finite in {dtype}")
        return value

    def _notes(self) -> tuple[str, ...]:
        """Note if a foreign network's padding differs: no error, since one may train further."""
        padding, needs = getattr(self.model, "padding", None), self.family.padding
        if needs is None or padding == needs:
            return ()
        return (
            f"released weights of such layers were trained with padding={needs}, {self.name} was "
            f"made with padding={padding}: scores near the border will differ, unless it is "
            "trained further or the weights are of a network made so",
        )


def _kind(name: str) -> str:
    """A layer's name up to its number: "conv" of conv3_4.weight, "stages" of stages.6.0.weight."""
    return re.split(r"[\d.]", name, maxsplit=1)[0]


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def classes_in(model: FCN, file: WeightsFile, family: Family) -> int:
    """How many classes a file's main head has; the network's own if the file does not say."""
    if file.meta is not None:
        return file.meta.num_classes
    keys, state = family.keys, model.state_dict()
    score = next((key for key in state if SCORES.match(key) and key in keys), None)
    shape = () if score is None else file.tensors[keys[score]].shape
    if score is None or not fits_other_classes(score, shape, tuple(state[score].shape)):
        return model.num_classes  # of a different network: loading says so
    return shape[0]


def _assign(model: FCN, state: dict[str, Tensor]) -> None:
    """Put all tensors into the network: copied, or, for a network on the meta device, assigned."""
    if not any(tensor.is_meta for tensor in model.state_dict().values()):
        model.load_state_dict(state, strict=False)
        return
    seen: set[int] = set()
    for key, tensor in state.items():
        if tensor.data_ptr() in seen:  # two names in a file may share memory; parameters must not
            state[key] = tensor.clone()
        seen.add(tensor.data_ptr())
    model.load_state_dict(state, strict=False, assign=True)
    model.materialize()
