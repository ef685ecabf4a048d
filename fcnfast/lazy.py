"""Lazy upsampled logits: fcnfast's fused ops for any network, without changes to its code.

`fuse` makes a module's bilinear resizes return `UpsampledLogits`. Such a tensor holds the coarse
score map and a `SamplingGrid`; a loss or an argmax of it runs as one fused op on the coarse map.
Everything else reads the real tensor, which ``F.interpolate`` itself computes once.
"""

from __future__ import annotations

import inspect
import math
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map_only

from .geometry import SamplingGrid
from .ops import upsample, upsample_argmax, upsample_cross_entropy
from .ops._checks import FLOATS, check_on_grid, grid_for
from .ops.upsample import adjoint
from .tiled._tiles import empty_map

Make = Callable[[Tensor], Tensor]
Module = TypeVar("Module", bound=nn.Module)
_as_wrapper = torch._C.DisableTorchFunctionSubclass  # reads the lazy tensor's own attributes


@dataclass
class Resize:
    """One ``F.interpolate`` that `fuse_report` saw.

    where: file and line of the call. shape: of its input. size: of its result. fused: what ran on
    the coarse map. real: what needed the real tensor, if anything did.
    """

    where: str
    shape: tuple[int, ...]
    size: tuple[int, ...]
    mode: str
    fused: list[str] = field(default_factory=list)
    real: str | None = None

    def __str__(self) -> str:
        ends = [*self.fused, f"real for {self.real}" if self.real else "still lazy"]
        return f"{self.where}: {self.mode}, {self.shape} to {self.size}: {', '.join(ends)}"


@dataclass
class _State:
    """What a lazy tensor is made of, until it is real.

    make: computes the real tensor from `source`, under autograd. scores, grid: those of an
    `UpsampledLogits`. after: "softmax", "log_softmax" or "". single: one image, C x H x W. parent,
    view: what this is a view of, and how it is made. base: what this is the softmax of. node: the
    initial grad_fn. version: the initial version of `source`.
    """

    source: Tensor
    make: Make
    scores: Any = None
    grid: Any = None
    after: str = ""
    single: bool = False
    parent: LazyTensor | None = None
    view: Make | None = None
    node: Any = None
    version: int = 0
    record: Resize | None = None
    base: LazyTensor | None = None

    def check(self) -> None:
        if _version(self.source) != self.version:
            raise RuntimeError(
                "the score map behind lazy logits was changed in place after its resize: use the "
                "logits, or call materialize() on them, before that, or resize a clone of the map"
            )


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


@contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """Disable modes, subclasses and autocast for our own calls of torch."""
    mixed = torch.is_autocast_enabled(device.type)
    plain = torch.autocast(device.type, enabled=False) if mixed else nullcontext()
    with torch._C.DisableTorchFunction(), plain:
        yield


class _Promise(torch.autograd.Function):
    """Ties a lazy tensor to its source for code that only sees its grad_fn."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, make: Make, build: Callable[[], Tensor]) -> Tensor:
        ctx.source, ctx.make = source.detach(), make
        return build()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source = ctx.source.detach().requires_grad_()
        with torch.enable_grad(), _quiet(source.device):
            made = ctx.make(source)
        return torch.autograd.grad(made, source, grad)[0], None, None


class _Read(torch.autograd.Function):
    """The values of a lazy tensor whose grad_fn has changed since it was made."""

    @staticmethod
    def forward(ctx: Any, lazy: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class LazyTensor(Tensor):
    """A tensor whose values are computed once, when something first reads them.

    It knows its shape, dtype and device. Once it is real, all functions and methods, including
    in-place ones, work on the ordinary tensor behind it.
    """

    _state: _State | None
    _real: Tensor | None
    _lock: threading.RLock
    _in_loss = False  # whether a fused loss has a gradient that goes past this tensor

    @property
    def is_lazy(self) -> bool:
        """Whether nothing has needed the real tensor yet, here or in the tensor it is a view of."""
        state = self._state
        if state is None or (state.parent is not None and not state.parent.is_lazy):
            return False
        with _as_wrapper():
            return self.grad_fn is state.node  # if not, it went through a foreign Function

    def materialize(self) -> Tensor:
        """The ordinary tensor behind this one; the first call makes it."""
        with self._lock:
            if self._state is not None:
                self._real, self._state = self._made(self._state), None
        return cast(Tensor, self._real)

    def _made(self, state: _State) -> Tensor:
        with _as_wrapper():
            grad, foreign = self.requires_grad, self.grad_fn is not state.node
        with torch.inference_mode(False), torch.set_grad_enabled(grad), _quiet(state.source.device):
            if state.parent is not None and state.view is not None:
                values = state.view(state.parent.materialize())
            else:
                state.check()
                values = state.make(state.source)
            return _Read.apply(self, values.detach()) if foreign else values

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA and args[0].is_lazy:
            with _as_wrapper():
                return func(*args, **kwargs)
        result = _fused(func, args, kwargs) if func in _FUSED else NotImplemented
        return _on_real(func, args, kwargs) if result is NotImplemented else result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Called by C++ code, which skips __torch_function__: run on the values, below autograd."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and any(isinstance(leaf, LazyTensor) for leaf in tree_leaves(value)):
                raise RuntimeError(f"{func} cannot write into lazy logits: pass x.materialize()")
        given = (tuple(args), kwargs or {})
        args, kwargs = tree_map_only(LazyTensor, LazyTensor.materialize, given)
        return func(*args, **kwargs)


class UpsampledLogits(LazyTensor):
    """N x C x H x W logits, held as a coarse score map and the grid that samples it.

    ``F.cross_entropy`` and ``F.nll_loss(F.log_softmax(...))`` with class labels, and ``argmax``,
    ``max`` and ``topk(1)`` over the classes, also after a softmax, run as fcnfast's fused ops.
    Images and slices of the batch stay lazy; everything else reads the real tensor.

    Args:
        scores: N x C x h x w, float32, bfloat16, float16 or float64.
        grid: from h x w to H x W.

    Raises:
        TypeError: `scores` or `grid` has the wrong type or dtype.
        ValueError: `scores` is not 4-D, or the grid was made for maps of a different size.
    """

    def __new__(cls, scores: Tensor, grid: SamplingGrid) -> Any:  # noqa: D102
        grid = grid_for(scores, "scores", grid)
        check_on_grid(scores, grid, "scores")
        make = partial(upsample, grid=grid)
        return _upsampled(scores, grid, make) if _can_wait(scores) else make(scores)

    @property
    def scores(self) -> Tensor | None:
        """The coarse score map; None when the tensor is real."""
        return self._state.scores if self._state is not None else None

    @property
    def grid(self) -> SamplingGrid | None:
        """Where the map is sampled; None when the tensor is real."""
        return self._state.grid if self._state is not None else None


def _can_wait(x: Any) -> bool:
    """Whether a resize of `x` may be lazy: an ordinary score map, and nothing is tracing."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if type(x) not in (Tensor, nn.Parameter) or x.is_meta:
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return x.dim() == 4 and x.dtype in FLOATS and x.numel() > 0


def _new(cls: type[LazyTensor], like: Tensor, state: _State) -> Any:
    """A lazy tensor with the shape, strides and dtype of the meta tensor `like`."""
    wrap = partial(Tensor._make_wrapper_subclass, cls, like.shape, strides=like.stride())
    build = partial(wrap, dtype=like.dtype, device=state.source.device)
    state.version = _version(state.source)
    if torch.is_grad_enabled() and state.source.requires_grad:
        x = _Promise.apply(state.source, state.make, build)
        with _as_wrapper():
            state.node = x.grad_fn
    else:  # nothing computed from it later has a gradient
        x, state.source = build(), state.source.detach()
        state.scores = state.scores.detach() if state.scores is not None else None
    x._state, x._real, x._lock = state, None, threading.RLock()
    return x


def _upsampled(x: Tensor, grid: SamplingGrid, make: Make) -> Any:
    with _quiet(x.device):
        like = empty_map(x, grid.size, device="meta")
        return _new(UpsampledLogits, like, _State(x, make, x, grid))


def _derived(x: LazyTensor, function: Make, scores: Tensor | None, **changes: Any) -> Any:
    """``function(x)``, also lazy. Later changes to `x` do not affect it, unless it is a view.

    scores: the coarse maps of the result; None if it is not a map of logits.
    """
    with _quiet(x.device):
        old = x._state
        assert old is not None
        like = function(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta"))
        made = {"make": lambda s: function(old.make(s)), "scores": scores, "node": None}
        state = replace(old, **{"parent": None, "view": None, "base": None, **made, **changes})
        return _new(LazyTensor if scores is None else UpsampledLogits, like, state)


# Functions that run on the coarse map, with torch's signatures. They return NotImplemented where
# they need the real tensor.


def _has_classes(x: Tensor, dim: Any) -> bool:
    return type(dim) is int and dim in (x.dim() - 3, -3)


def _undefined(state: _State) -> Tensor | None:
    """N x H x W: where a NaN or an infinity makes the softmax NaN; None if nowhere."""
    scores = state.scores.detach()
    bad = (scores.isnan() | scores.isposinf()).any(1, keepdim=True)
    if bad.device.type == "cpu" and not bad.any():
        return None
    return upsample(bad.float(), state.grid)[:, 0] > 0


def _winners(state: Any, dim: int, keepdim: bool, share: bool = False) -> Tensor:
    """The int64 labels of all images or, with `share`, the softmax of the winners."""
    if share:
        found = upsample_argmax(state.scores, state.grid, dtype=torch.int64, confidence=True)[1]
    else:
        found = upsample_argmax(state.scores, state.grid, dtype=torch.int64)
    if state.after and (bad := _undefined(state)) is not None:
        found = found.masked_fill(bad, math.nan if share else 0)  # if all are NaN, the first wins
    found = found[0] if state.single else found
    return found.unsqueeze(dim) if keepdim else found


def _argmax(input: UpsampledLogits, dim: Any = None, keepdim: bool = False) -> Any:
    return _winners(input._state, dim, keepdim) if _has_classes(input, dim) else NotImplemented


def _max(
    input: UpsampledLogits,
    dim: Any = None,
    keepdim: bool = False,
    kind: Any = torch.return_types.max,
) -> Any:
    """Values and labels; the values are lazy, since most callers want only the labels."""
    if not _has_classes(input, dim):
        return NotImplemented
    state, dtype = input._state, input.dtype
    values = _derived(input, lambda logits: logits.max(dim, keepdim).values, None)
    if state is not None and state.after == "softmax" and not input.requires_grad:
        values._state.make = lambda _: _winners(state, dim, keepdim, share=True).to(dtype)
    return kind((values, _winners(state, dim, keepdim)))


def _topk(
    input: UpsampledLogits, k: int, dim: Any = -1, largest: bool = True, sorted: bool = True
) -> Any:
    only = k == 1 and largest
    return _max(input, dim, True, torch.return_types.topk) if only else NotImplemented


def _softmax(
    name: str, input: UpsampledLogits, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
) -> Any:
    state: Any = input._state
    wide = input.dtype in (torch.float32, torch.float64)  # autocast leaves those alone
    wide |= not torch.is_autocast_enabled(input.device.type)
    usual = wide and dtype in (None, input.dtype) and _has_classes(input, dim)
    if state.after or not usual:
        return NotImplemented
    function = getattr(torch, name)
    make = lambda logits: function(logits, dim)  # noqa: E731
    return _derived(input, make, state.scores, after=name, base=input)


def _loss(
    after: str,
    input: UpsampledLogits,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: Any = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """F.cross_entropy of logits, and F.nll_loss of their log_softmax, if torch would accept it."""
    state: Any = input._state
    mixed = torch.is_autocast_enabled(input.device.type)
    if state.after != after or state.single or type(target) is not Tensor:
        return NotImplemented
    fits = target.dtype == torch.int64 and target.device == input.device
    fits &= tuple(target.shape) == (input.shape[0], *input.shape[2:])
    fits &= size_average is None and reduce is None and reduction in ("mean", "sum", "none")
    fits &= isinstance(label_smoothing, (int, float)) and 0 <= label_smoothing <= 1
    if fits and weight is not None:
        fits = isinstance(weight, Tensor) and weight.shape == input.shape[1:2]
        fits &= weight.device == input.device
        fits &= not weight.requires_grad and weight.is_floating_point()
        fits &= mixed or weight.dtype == input.dtype
    if not fits:
        return NotImplemented
    options = {"ignore_index": ignore_index, "reduction": reduction}
    options |= {"weight": weight, "label_smoothing": label_smoothing}
    loss = upsample_cross_entropy(state.scores, target, state.grid, **options)
    return loss if mixed else loss.to(input.dtype)


def _item(input: UpsampledLogits, key: Any) -> Any:
    """An image or a slice of the batch; ``image[None]`` is a batch again."""
    state: Any = input._state
    scores, single = state.scores, False
    count = len(scores)
    if type(key) is int and not state.single and -count <= key < count:
        first, single = key % count, True
        scores = scores[first : first + 1]
    elif isinstance(key, slice) and not state.single:
        scores = scores[key]
    elif key is not None or not state.single:
        return NotImplemented
    return _view(input, lambda t: t[key], scores, single=single)


def _view(input: UpsampledLogits, function: Make, scores: Any, **changes: Any) -> Any:
    return _derived(input, function, scores, parent=input, view=function, **changes)


def _unbind(input: UpsampledLogits, dim: int = 0) -> Any:
    batch = input.dim() == 4 and dim in (0, -4)
    return tuple(_item(input, n) for n in range(input.shape[0])) if batch else NotImplemented


def _iter(input: UpsampledLogits) -> Any:
    return iter(_unbind(input)) if input.dim() == 4 else NotImplemented


def _unsqueeze(input: UpsampledLogits, dim: int) -> Any:
    return _item(input, None) if dim in (0, -4) else NotImplemented


def _squeeze(input: UpsampledLogits, dim: Any = None) -> Any:
    one = input.dim() == 4 and dim in (0, -4) and input.shape[0] == 1
    return _item(input, 0) if one else NotImplemented


def _detach(input: UpsampledLogits) -> Any:
    state: Any = input._state
    return _view(input, Tensor.detach, state.scores.detach(), source=state.source.detach())


def _to(input: UpsampledLogits, target: Any) -> Any:
    """To a floating dtype, or to the device that it is already on."""
    if isinstance(target, (str, torch.device)) and torch.device(target) == input.device:
        return input
    state: Any = input._state
    if target not in FLOATS or state.after:
        return NotImplemented
    scores = state.scores.to(target)
    return input if target == input.dtype else _derived(input, lambda t: t.to(target), scores)


def _factory(function: Any, input: UpsampledLogits, *args: Any, **kwargs: Any) -> Any:
    """``new_zeros`` and the like, which need only the dtype and the device."""
    return function(torch.empty(0, dtype=input.dtype, device=input.device), *args, **kwargs)


def _resize(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """A resize, made lazy. That of a lazy tensor joins the first if one of the two is a copy."""
    state = input._state if isinstance(input, UpsampledLogits) and input.is_lazy else None
    if isinstance(input, UpsampledLogits) and (state is None or state.after or state.single):
        input, state = input.materialize(), None
    x = input if state is None else state.scores
    if mode != "bilinear" or antialias or not _can_wait(x):
        return NotImplemented
    new, factor = size, scale_factor
    try:
        if recompute_scale_factor and size is None:
            factors = factor if isinstance(factor, (tuple, list)) else (factor, factor)
            new = [math.trunc(n * f) for n, f in zip(input.shape[2:], factors, strict=True)]
            factor = None
        grid = grid_for(input, "input", None, new, factor, bool(align_corners))
    except (TypeError, ValueError):  # torch says why
        return NotImplemented
    options = {"size": grid.size if size is not None else None, "scale_factor": scale_factor}
    options |= {"align_corners": align_corners, "recompute_scale_factor": recompute_scale_factor}
    make, dtype = partial(_Interpolate.apply, grid, options), _resized_dtype(x)
    if state is not None and dtype == x.dtype and (_is_copy(grid) or _is_copy(state.grid)):
        return _derived(input, make, x, grid=state.grid if _is_copy(grid) else grid)
    x = input if state is None else input.materialize()
    return _upsampled(x.to(dtype), grid, make)


class _Interpolate(torch.autograd.Function):
    """``F.interpolate`` with the adjoint of `upsample`: faster, and deterministic on a GPU too."""

    @staticmethod
    def forward(ctx: Any, grid: SamplingGrid, options: dict[str, Any], x: Tensor) -> Tensor:
        ctx.grid = grid
        return F.interpolate(x, mode="bilinear", **options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        return None, None, grad if _is_copy(ctx.grid) else adjoint(grad, ctx.grid)


def _is_copy(grid: SamplingGrid) -> bool:
    axes = zip(grid.in_size, grid.size, grid.num, grid.off, grid.den, strict=True)
    return all(n == m and o == 0 and (m == 1 or a == b) for n, m, a, o, b in axes)


def _resized_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a bilinear resize of `x`: autocast widens it on some devices."""
    if not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    with torch._C.DisableTorchFunction(), torch.no_grad():
        return F.interpolate(x[:1, :1, :1, :1], size=(1, 1), mode="bilinear").dtype


def _caller() -> str:
    """The file and line that called torch."""
    frame = sys._getframe(1)
    inside = (__file__, "/torch/nn/", "/torch/overrides", "/torch/_tensor")
    while frame.f_back and any(part in frame.f_code.co_filename for part in inside):
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{frame.f_lineno}"


_BY_NAME: dict[str, Callable[..., Any]] = {
    "argmax": _argmax,
    "max": _max,
    "topk": _topk,
    "softmax": partial(_softmax, "softmax"),
    "log_softmax": partial(_softmax, "log_softmax"),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "unbind": _unbind,
    "detach": _detach,
}
_FACTORIES = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
_FUSED: dict[Any, Callable[..., Any]] = {
    **{getattr(home, name): run for name, run in _BY_NAME.items() for home in (torch, Tensor)},
    F.interpolate: _resize,
    F.cross_entropy: partial(_loss, ""),
    F.nll_loss: partial(_loss, "log_softmax"),
    F.softmax: _BY_NAME["softmax"],
    F.log_softmax: _BY_NAME["log_softmax"],
    Tensor.__iter__: _iter,
    Tensor.__getitem__: _item,
    **{getattr(Tensor, name): partial(_factory, getattr(Tensor, name)) for name in _FACTORIES},
    Tensor.to: _to,
    Tensor.float: lambda input: _to(input, torch.float32),
    Tensor.cpu: lambda input: _to(input, "cpu"),
    Tensor.contiguous: lambda input: input if input.is_contiguous() else NotImplemented,
}
# Asked for after a fused loss, they would miss its gradient.
_LATE = (Tensor.register_hook, Tensor.retain_grad)
_REPORTED = ("argmax", "max", "topk", "cross_entropy", "nll_loss")
_PROPERTIES = "shape dtype device ndim layout requires_grad is_cuda is_cpu is_meta is_sparse nbytes"
_METHODS = (
    "size dim ndimension stride numel nelement is_floating_point is_complex is_contiguous "
    "element_size get_device storage_offset __len__"
)
_METADATA = {
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES.split()),
    *(getattr(Tensor, name) for name in _METHODS.split()),
    *(torch.numel, torch.is_floating_point, torch.is_complex),
}


@lru_cache(maxsize=64)
def _signature(func: Any) -> inspect.Signature:
    return inspect.signature(_FUSED[func])


def _fused(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run `func` on the coarse map; NotImplemented if it needs the real tensor."""
    try:
        given = _signature(func).bind(*args, **kwargs).arguments
    except TypeError:
        return NotImplemented
    x = given.pop("input", None)
    others = any(isinstance(leaf, LazyTensor) for leaf in tree_leaves(given))
    if others or not isinstance(x, UpsampledLogits):
        return NotImplemented
    with x._lock:  # no other thread may make it real meanwhile
        if not x.is_lazy or (state := x._state) is None:
            return NotImplemented
        state.check()
        with _as_wrapper():
            result = _FUSED[func](*args, **kwargs)
    name = getattr(func, "__name__", "")
    if name in ("cross_entropy", "nll_loss") and result is not NotImplemented:
        for priced in (x, state.base):
            if priced is not None:
                priced._in_loss |= result.requires_grad
    if state.record is not None and name in _REPORTED and result is not NotImplemented:
        state.record.fused.append(f"fused {name}")
    return result


def _on_real(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run `func` on the real tensors; if it returns one of them, return its lazy tensor instead."""
    used: list[LazyTensor] = []
    late: Any = args[:1] if func in _LATE else ()
    if func is torch.autograd.grad:
        late = tree_leaves(args[1:2] or kwargs.get("inputs"))

    def real(x: LazyTensor) -> Tensor:
        if x._in_loss and any(x is other for other in late):
            told = "a fused loss bypasses these logits, so they get no gradient of it: call "
            told += "materialize() before computing the loss"
            raise RuntimeError(f"{func.__name__}: {told}")
        if (state := x._state) is not None and state.record is not None:
            state.record.real = state.record.real or resolve_name(func) or str(func)
        used.append(x)
        return x.materialize()

    args, kwargs = tree_map_only(LazyTensor, real, (tuple(args), dict(kwargs)))
    result = func(*args, **kwargs)
    return next((x for x in used if x._real is result), result)


class _Mode(TorchFunctionMode):
    """Makes bilinear resizes lazy. seen: modes of all resizes. records: for `fuse_report`."""

    def __init__(self, records: list[Resize] | None = None) -> None:
        super().__init__()
        self.records, self.seen = records, set[str]()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.interpolate:
            return func(*args, **kwargs)
        mode = kwargs.get("mode", "nearest")
        self.seen.add(mode)
        lazy = _resize(*args, **kwargs)
        result = func(*args, **kwargs) if lazy is NotImplemented else lazy
        if self.records is not None:
            shape = tuple((args[0] if args else kwargs["input"]).shape)
            record = Resize(_caller(), shape, tuple(result.shape[2:]), mode)
            self.records.append(record)
            if lazy is NotImplemented:
                record.real = "torch"
            else:
                lazy._state.record = record
        return result


def lazy_logits() -> AbstractContextManager[Any]:
    """Within ``with lazy_logits():``, bilinear resizes of 4-D maps return `UpsampledLogits`.

    It holds for this thread, in all code that the block calls.

    Example:
        >>> with fcnfast.lazy_logits():
        ...     labels = Net()(images).argmax(1)
    """
    return _Mode()


_entered = threading.local()
_told: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@torch.compiler.assume_constant_result  # called by the compiler while it traces
def _warn_compiled() -> None:
    warnings.warn(
        "torch.compile makes the full logits of a fused module; instead compile the network up "
        "to its scores and call upsample_cross_entropy or upsample_argmax of fcnfast.ops on them",
        stacklevel=2,
    )


def _enter(module: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling():
        _warn_compiled()
        return
    stack = _entered.__dict__.setdefault("stack", [])
    while any(module is other for other, _ in stack):  # a KeyboardInterrupt went past _leave
        stack.pop()[1].__exit__(None, None, None)
    stack.append((module, _Mode()))
    stack[-1][1].__enter__()


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    stack = [] if torch.compiler.is_compiling() else _entered.__dict__.get("stack", [])
    if not stack or stack[-1][0] is not module:  # a hook before _enter has failed
        return
    mode = stack.pop()[1]
    mode.__exit__(None, None, None)
    for _, outer in stack:
        outer.seen |= mode.seen
    if "bilinear" in mode.seen or output is None or module in _told:
        return
    _told.add(module)
    kinds = ", ".join(sorted({type(m).__name__ for m in module.modules()}))
    others = ", ".join(sorted(mode.seen)) or "none"
    message = f"fuse: no bilinear resize ran in {type(module).__name__} (other resizes: {others}; "
    message += f"modules: {kinds}); around a resize outside the module use fcnfast.lazy_logits()"
    warnings.warn(message, stacklevel=2)


def fuse(model: Module) -> Module:
    """Let the bilinear resizes in a module's forward pass return `UpsampledLogits`.

    This adds two hooks and returns the module. Its class, state dict and mode do not change, and
    copies and pickles stay fused. Fusing twice has no further effect.

    Raises:
        TypeError: when `model` is not an ``nn.Module``, or is a TorchScript module.

    Example:
        >>> model = fcnfast.fuse(Net())  # ends in F.interpolate(scores, size, mode="bilinear")
        >>> loss = F.cross_entropy(model(images), target)  # no full-resolution logits
    """
    if isinstance(model, torch.jit.ScriptModule) or not isinstance(model, nn.Module):
        raise TypeError(
            f"fuse takes a torch.nn.Module, not {type(model).__name__} (TorchScript has no hooks); "
            "around other code use fcnfast.lazy_logits()"
        )
    if _enter not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_enter)
        model.register_forward_hook(_leave, prepend=True, always_call=True)
    return model


def unfuse(model: Module) -> Module:
    """Undo `fuse` and return the module; a module that is not fused stays as it is.

    Example:
        >>> fcnfast.unfuse(fcnfast.fuse(Net()))(images).shape
        torch.Size([1, 4, 8, 8])
    """
    for hooks, ours in ((model._forward_pre_hooks, _enter), (model._forward_hooks, _leave)):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)
    return model


def fuse_report(model: nn.Module, inputs: Any) -> list[Resize]:
    """Run a module once, fused or not, and report what became of every ``F.interpolate`` in it.

    Args:
        model: the module, in the mode to report on.
        inputs: its argument, a tuple of arguments, or a mapping of keyword arguments.

    Returns:
        One printable entry for each resize, in order.

    Example:
        >>> [resize.size for resize in fcnfast.fuse_report(Net(), images)]
        [(8, 8)]
    """
    records: list[Resize] = []
    fused = _enter in model._forward_pre_hooks.values()
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
    try:
        with _Mode(records):
            unfuse(model)(*args if isinstance(args, (tuple, list)) else (args,), **kwargs)
    finally:
        if fused:
            fuse(model)
    return records
