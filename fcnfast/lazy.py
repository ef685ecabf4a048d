"""Lazy upsampled logits: fcnfast's fused ops under anyone's network, without changes to its code.

`fuse` makes a module's bilinear resizes return `UpsampledLogits`. Such a tensor holds the coarse
score map and a `SamplingGrid`; a loss or an argmax of it runs as one fused op on the coarse map.
Everything else reads it through an ordinary tensor, made once by ``F.interpolate`` itself.
"""

from __future__ import annotations

import inspect
import math
import operator
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map_only

from .geometry import SamplingGrid
from .ops import upsample, upsample_argmax, upsample_cross_entropy
from .ops._checks import FLOATS, check_grid, check_map, check_on_grid
from .ops._library import _is_plain
from .tiled._formats import memory_format

Make = Callable[[Tensor], Tensor]
Module = TypeVar("Module", bound=nn.Module)


@dataclass
class Resize:
    """One resize that `fuse_report` saw.

    where: file and line of the call. shape: of its input. size: H x W of its result. mode: as in
    ``F.interpolate``. fused: what ran on the coarse map. real: the function that needed the real
    tensor, "not lazy" where the resize was left to torch, None while the result is lazy.
    """

    where: str
    shape: tuple[int, ...]
    size: tuple[int, ...]
    mode: str
    fused: list[str] = field(default_factory=list)
    real: str | None = None

    def __str__(self) -> str:
        end = f"real for {self.real}" if self.real else "still lazy"
        end = self.real if self.real == "not lazy" else end
        shape, size = ("x".join(map(str, n)) for n in (self.shape, self.size))
        return f"{self.where}: {shape} to {size}, {self.mode}: " + ", ".join([*self.fused, end])


@dataclass
class _State:
    """What a lazy tensor is made of; dropped when the real one exists.

    make: the real tensor from `source`, as a function that autograd follows. parent, view: the lazy
    tensor that this one is a view of, and how. node: grad_fn as it was made. version: of `source`.
    scores: the coarse maps behind an `UpsampledLogits`, after: what is done to its logits ("",
    "softmax" or "log_softmax"), single: it is one image, C x H x W.
    """

    source: Tensor
    make: Make
    parent: LazyTensor | None = None
    view: Make | None = None
    node: Any = None
    version: int = 0
    scores: Tensor | None = None
    grid: SamplingGrid | None = None
    after: str = ""
    single: bool = False
    record: Resize | None = None


@contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """For our own calls of torch: no modes, no subclasses, no autocast."""
    with torch._C.DisableTorchFunction():
        if torch.is_autocast_enabled(device.type):
            with torch.autocast(device.type, enabled=False):
                yield
        else:
            yield


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


class _Promise(torch.autograd.Function):
    """Ties a lazy tensor to its source, for C++ code that knows it only by its grad_fn."""

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
    """The values of a lazy tensor whose grad_fn is no longer the one it was made with."""

    @staticmethod
    def forward(ctx: Any, lazy: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class LazyTensor(Tensor):
    """A tensor whose values are made when something reads them, once and for all.

    It knows its shape, dtype, device and gradient function. Once it is real, all functions and
    methods, in-place ones too, work on the ordinary tensor behind it.
    """

    _state: _State | None
    _real: Tensor | None
    _lock: threading.RLock

    @property
    def is_lazy(self) -> bool:
        """Whether no function has needed the real tensor yet, here or where this is a view of."""
        state = self._state
        if state is None or (state.parent is not None and not state.parent.is_lazy):
            return False
        with torch._C.DisableTorchFunctionSubclass():
            return self.grad_fn is state.node

    def real(self) -> Tensor:
        """The ordinary tensor behind this one; the first call makes it."""
        with self._lock:
            if self._state is not None:
                self._real, self._state = self._made(self._state), None
        assert self._real is not None
        return self._real

    def _made(self, state: _State) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            grad, same = self.requires_grad, self.grad_fn is state.node
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(grad and same),
            _quiet(state.source.device),
        ):
            if state.parent is not None and state.view is not None:
                values = state.view(state.parent.real())
            else:
                _check_unchanged(state)
                values = state.make(state.source)
            if grad and not same:  # an autograd.Function of someone else's has returned it
                with torch.enable_grad():
                    values = _Read.apply(self, values.detach())
        return values

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA and args[0].is_lazy:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _FUSED:
            result = _fused(func, args, kwargs)
            if result is not NotImplemented:
                return result
        return _on_real(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """What C++ code, which sees no torch functions, calls: by values, below autograd."""
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                if any(isinstance(leaf, LazyTensor) for leaf in tree_leaves(value)):
                    raise RuntimeError(f"{func} cannot write into lazy logits: pass x.real()")
        args, kwargs = tree_map_only(LazyTensor, LazyTensor.real, (tuple(args), kwargs))
        return func(*args, **kwargs)


class UpsampledLogits(LazyTensor):
    """N x C x H x W logits that are a coarse score map and where to sample it.

    ``F.cross_entropy`` and ``F.nll_loss(F.log_softmax(...))`` with class labels, ``argmax``,
    ``max`` and ``topk(1)`` over the classes, also after a softmax, run as fcnfast's fused ops.
    Images and slices of the batch stay lazy. All else reads the real tensor, which is made once.

    Args:
        scores: N x C x h x w, float32, bfloat16, float16 or float64.
        grid: from h x w to H x W.

    Raises:
        TypeError: on other dtypes or types.
        ValueError: on another rank, or a grid made for maps of another size.
    """

    def __new__(cls, scores: Tensor, grid: SamplingGrid) -> Any:
        check_map(scores, "scores")
        check_grid(grid)
        check_on_grid(scores, grid, "scores")
        make = partial(upsample, grid=grid)
        return _upsampled(scores, grid, make) if _can_wait(scores) else make(scores)

    @property
    def scores(self) -> Tensor | None:
        """The coarse score map; None once the tensor is real."""
        return self._state.scores if self._state is not None else None

    @property
    def grid(self) -> SamplingGrid | None:
        """Where the map is sampled; None once the tensor is real."""
        return self._state.grid if self._state is not None else None


def _check_unchanged(state: _State) -> None:
    if _version(state.source) != state.version:
        raise RuntimeError(
            "the score map behind lazy logits was changed in place after its resize; use the "
            "logits (or call .real()) before that, or resize a clone of the map"
        )


def _can_wait(x: Tensor) -> bool:
    """Whether `x` may stand for its resize: an ordinary score map, and nothing is tracing."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if not isinstance(x, Tensor) or getattr(forward_ad, "_current_level", -1) >= 0:
        return False
    return x.dim() == 4 and x.dtype in FLOATS and x.numel() > 0 and _is_plain((x,))


def _new(cls: type[LazyTensor], like: Tensor, state: _State) -> Any:
    """A lazy tensor with the shape, strides and dtype of the meta tensor `like`."""
    grad = torch.is_grad_enabled() and state.source.requires_grad
    device = state.source.device

    def build() -> Tensor:
        wrap = Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        return wrap(cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device)

    state.version = _version(state.source)
    if grad:
        x = _Promise.apply(state.source, state.make, build)
        with torch._C.DisableTorchFunctionSubclass():
            state.node = x.grad_fn
    else:  # what is computed from this one later has no gradient either
        x, state.source = build(), state.source.detach()
        state.scores = state.scores.detach() if state.scores is not None else None
    x._state, x._real, x._lock = state, None, threading.RLock()
    return x


def _upsampled(scores: Tensor, grid: SamplingGrid, make: Make, record: Resize | None = None) -> Any:
    shape = (*scores.shape[:2], *grid.size)
    with _quiet(scores.device):
        form = memory_format(scores)
        like = torch.empty(shape, dtype=scores.dtype, device="meta", memory_format=form)
        return _new(
            UpsampledLogits, like, _State(scores, make, scores=scores, grid=grid, record=record)
        )


def _derived(
    x: UpsampledLogits,
    function: Make,
    scores: Tensor | None,
    *,
    view: bool = False,
    detach: bool = False,
    **changes: Any,
) -> Any:
    """``function(x)``, lazy again; one that is no view is made from the map, whatever `x` becomes.

    scores: the coarse maps of the result; None where it is no map of logits any more.
    """
    with _quiet(x.device), torch._C.DisableTorchFunction():
        old = x._state
        assert old is not None
        like = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        source = old.source.detach() if detach else old.source
        state = _State(
            source,
            lambda s: function(old.make(s)),
            x if view else None,
            function if view else None,
            scores=scores,
            **{"grid": old.grid, "after": old.after, "single": old.single, **changes},
            record=old.record,
        )
        return _new(LazyTensor if scores is None else UpsampledLogits, function(like), state)


# --- what runs on the coarse map. Each function has the signature of torch's; NotImplemented means
# that the real tensor is needed after all.


def _is_class_axis(x: UpsampledLogits, dim: Any) -> bool:
    return isinstance(dim, int) and not isinstance(dim, bool) and dim in (x.dim() - 3, -3)


def _winners(x: UpsampledLogits, dim: int, keepdim: bool) -> Tensor:
    """int64 labels; a softmax makes NaN of all classes of a pixel, and 0 of its label."""
    state = x._state
    assert state is not None and state.scores is not None and state.grid is not None
    labels = upsample_argmax(state.scores.detach(), state.grid, dtype=torch.int64)
    if state.after and (bad := _undefined(state.scores, state.grid)) is not None:
        labels = labels.masked_fill(bad, 0)
    labels = labels[0] if state.single else labels
    return labels.unsqueeze(dim) if keepdim else labels


def _undefined(scores: Tensor, grid: SamplingGrid) -> Tensor | None:
    """N x H x W: where the softmax is NaN, because a NaN or an infinity takes part."""
    bad = (scores.detach().amax(1, keepdim=True) - scores.detach().amin(1, keepdim=True)).isnan()
    bad |= scores.detach().isposinf().any(1, keepdim=True)
    if scores.device.type == "cpu" and not bad.any():
        return None
    return upsample(bad.float(), grid)[:, 0] > 0


def _argmax(input: UpsampledLogits, dim: Any = None, keepdim: bool = False) -> Any:
    return _winners(input, dim, keepdim) if _is_class_axis(input, dim) else NotImplemented


def _best(x: UpsampledLogits, dim: Any, keepdim: bool, kind: Any) -> Any:
    """The largest values, lazy, and where they are."""
    if not _is_class_axis(x, dim):
        return NotImplemented
    state, dtype = x._state, x.dtype
    assert state is not None and state.scores is not None and state.grid is not None
    scores, grid, single = state.scores, state.grid, state.single

    def largest(logits: Tensor) -> Tensor:
        return logits.max(dim, keepdim).values

    def confidence(like: Tensor) -> Tensor:
        if like.is_meta:
            return largest(like)
        _, share = upsample_argmax(scores, grid, confidence=True, dtype=torch.int64)
        if (bad := _undefined(scores, grid)) is not None:
            share = share.masked_fill(bad, float("nan"))
        share = (share[0] if single else share).to(dtype)
        return share.unsqueeze(dim) if keepdim else share

    values = _derived(x, largest, None)
    if state.after == "softmax" and not x.requires_grad:
        values._state.make = lambda _: confidence(scores)
    return kind((values, _winners(x, dim, keepdim)))


def _max(input: UpsampledLogits, dim: Any = None, keepdim: bool = False) -> Any:
    return _best(input, dim, keepdim, torch.return_types.max)


def _topk(
    input: UpsampledLogits, k: int, dim: Any = -1, largest: bool = True, sorted: bool = True
) -> Any:
    if k != 1 or not largest:
        return NotImplemented
    return _best(input, dim, True, torch.return_types.topk)


def _softmax(
    input: UpsampledLogits,
    dim: Any = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    name: str,
) -> Any:
    state = input._state
    assert state is not None
    single = input.dtype in (torch.bfloat16, torch.float16) and (
        dtype is not None or torch.is_autocast_enabled(input.device.type)
    )
    if single or state.after or dtype not in (None, input.dtype):
        return NotImplemented
    if not _is_class_axis(input, dim):
        return NotImplemented
    return _derived(input, partial(getattr(torch, name), dim=dim), state.scores, after=name)


def _loss(
    after: str,
    input: UpsampledLogits,
    target: Any,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: Any = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """F.cross_entropy of logits, and F.nll_loss of their log_softmax: both the same op."""
    state = input._state
    assert state is not None and state.scores is not None and state.grid is not None
    mixed = torch.is_autocast_enabled(input.device.type)
    fits = (
        state.after == after
        and type(target) is Tensor
        and target.dtype == torch.int64
        and target.device == input.device
        and not state.single
        and tuple(target.shape) == (input.shape[0], *input.shape[2:])
        and size_average is None
        and reduce is None
        and reduction in ("mean", "sum", "none")
        and isinstance(label_smoothing, (int, float))
        and 0 <= label_smoothing <= 1
    )
    if fits and weight is not None:
        fits = isinstance(weight, Tensor) and weight.shape == input.shape[1:2]
        fits = fits and weight.device == input.device and not weight.requires_grad
        fits = fits and (weight.dtype == input.dtype or (mixed and weight.is_floating_point()))
    if not fits:
        return NotImplemented
    options = dict(weight=weight, ignore_index=ignore_index, reduction=reduction)
    loss = upsample_cross_entropy(
        state.scores, target, state.grid, label_smoothing=label_smoothing, **options
    )
    return loss if mixed else loss.to(input.dtype)


def _item(input: UpsampledLogits, key: Any) -> Any:
    """Images and slices of the batch; None makes a batch of an image."""
    state = input._state
    assert state is not None and state.scores is not None
    scores, changes = state.scores, {"single": False}
    if state.single:
        if key is not None:
            return NotImplemented
    elif isinstance(key, int) and not isinstance(key, bool):
        if not -len(scores) <= key < len(scores):
            return NotImplemented
        first = key % len(scores)
        scores, changes = scores[first : first + 1], {"single": True}
    elif isinstance(key, slice):
        scores = scores[key]
    else:
        return NotImplemented
    return _derived(input, lambda t: t[key], scores, view=True, **changes)


def _unsqueeze(input: UpsampledLogits, dim: int) -> Any:
    return _item(input, None) if input.dim() == 3 and dim in (0, -4) else NotImplemented


def _squeeze(input: UpsampledLogits, dim: Any = None) -> Any:
    one = input.dim() == 4 and dim in (0, -4) and input.shape[0] == 1
    return _item(input, 0) if one else NotImplemented


def _unbind(input: UpsampledLogits, dim: int = 0) -> Any:
    if input.dim() != 4 or dim not in (0, -4):
        return NotImplemented
    return tuple(_item(input, index) for index in range(input.shape[0]))


def _iter(input: UpsampledLogits) -> Any:
    images = _unbind(input)
    return images if images is NotImplemented else iter(images)


def _detach(input: UpsampledLogits) -> Any:
    assert input._state is not None and input._state.scores is not None
    scores = input._state.scores.detach()
    return _derived(input, Tensor.detach, scores, view=True, detach=True)


def _to(input: UpsampledLogits, target: Any) -> Any:
    """To another floating dtype, or to where it is already."""
    if not isinstance(target, torch.dtype):
        here = isinstance(target, (str, torch.device)) and torch.device(target) == input.device
        return input if here else NotImplemented
    state = input._state
    assert state is not None and state.scores is not None
    if target == input.dtype:
        return input
    if target not in FLOATS or state.after:
        return NotImplemented
    return _derived(input, lambda t: t.to(target), state.scores.to(target))


def _float(input: UpsampledLogits) -> Any:
    return _to(input, torch.float32)


def _cpu(input: UpsampledLogits) -> Any:
    return _to(input, "cpu")


def _contiguous(input: UpsampledLogits) -> Any:
    return input if input.is_contiguous() else NotImplemented


def _is_identity(grid: SamplingGrid) -> bool:
    axes = zip(grid.in_size, grid.size, grid.num, grid.off, grid.den, strict=True)
    return all(n == m and o == 0 and (m == 1 or a == b) for n, m, a, o, b in axes)


def _resize(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
    *,
    records: list[Resize] | None = None,
) -> Any:
    """A bilinear resize: lazy, and composed with the one before where one of the two is a copy."""
    if isinstance(input, UpsampledLogits) and not (input.is_lazy and _is_map(input)):
        input = input.real()
    given = (size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    options = dict(zip(_RESIZE, given, strict=True))

    def make(s: Tensor) -> Tensor:
        return F.interpolate(s, **options)

    before = input._state if isinstance(input, UpsampledLogits) else None
    scores = input if before is None else before.scores
    grid = None
    if mode == "bilinear" and not antialias and _can_wait(scores) and _keeps_dtype(scores):
        shape = tuple(input.shape[2:])
        grid = _resized(shape, size, scale_factor, bool(align_corners), recompute_scale_factor)
    record = None
    if records is not None:
        record = Resize(_caller(), tuple(input.shape), grid.size if grid else (), mode)
        record.real = None if grid else "not lazy"
        records.append(record)
    if grid is None:
        return NotImplemented
    if before is None:
        return _upsampled(input, grid, make, record)
    assert before.grid is not None
    if _is_identity(grid):
        return _derived(input, make, scores)
    if _is_identity(before.grid):
        return _derived(input, make, scores, grid=grid)
    return _upsampled(input.real(), grid, make, record)


_RESIZE = tuple(inspect.signature(_resize).parameters)[1:7]


def _is_map(x: UpsampledLogits) -> bool:
    """Whether its values are the samples of its map: a whole batch, and nothing done to them."""
    return x._state is not None and not x._state.after and not x._state.single


def _resized(
    shape: tuple[int, ...], size: Any, scale_factor: Any, align_corners: bool, recompute: Any
) -> SamplingGrid | None:
    """The grid of ``F.interpolate``'s arguments; None where torch has to refuse them."""
    try:
        if recompute and size is None:
            pair = isinstance(scale_factor, (tuple, list))
            factors = scale_factor if pair else (scale_factor, scale_factor)
            size, scale_factor = (
                [math.trunc(n * f) for n, f in zip(shape, factors, strict=True)],
                None,
            )
        if size is not None:
            pair = isinstance(size, (tuple, list))
            size = tuple(map(operator.index, size if pair else (size, size)))
        return SamplingGrid.resize(
            shape, size, scale_factor=scale_factor, align_corners=align_corners
        )
    except (TypeError, ValueError):
        return None


def _keeps_dtype(x: Tensor) -> bool:
    """Whether autocast leaves a bilinear resize alone."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return True
    return _autocast_keeps(x.device, x.dtype, torch.get_autocast_dtype(kind))


@lru_cache(maxsize=64)
def _autocast_keeps(device: torch.device, dtype: torch.dtype, cast_to: torch.dtype) -> bool:
    with torch._C.DisableTorchFunction(), torch.autocast(device.type, cast_to):
        one = torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)
        return F.interpolate(one, size=(1, 1), mode="bilinear").dtype == dtype


def _caller() -> str:
    """The line that called torch."""
    frame = sys._getframe(1)
    inside = (__file__, *(f"/torch/{part}" for part in ("nn/", "overrides", "_tensor")))
    while frame.f_back and any(part in frame.f_code.co_filename for part in inside):
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{frame.f_lineno}"


_FUSED: dict[Any, Callable[..., Any]] = {
    F.interpolate: _resize,
    F.cross_entropy: partial(_loss, ""),
    F.nll_loss: partial(_loss, "log_softmax"),
    F.softmax: partial(_softmax, name="softmax"),
    F.log_softmax: partial(_softmax, name="log_softmax"),
    Tensor.__iter__: _iter,
    Tensor.__getitem__: _item,
    Tensor.to: _to,
    Tensor.float: _float,
    Tensor.cpu: _cpu,
    Tensor.contiguous: _contiguous,
}
for _name, _function in {
    "argmax": _argmax,
    "max": _max,
    "topk": _topk,
    "softmax": partial(_softmax, name="softmax"),
    "log_softmax": partial(_softmax, name="log_softmax"),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "unbind": _unbind,
    "detach": _detach,
}.items():
    _FUSED[getattr(Tensor, _name)] = _FUSED[getattr(torch, _name)] = _function

# What a lazy tensor says of itself.
_PROPERTIES = (
    "shape dtype device ndim layout requires_grad grad_fn is_leaf is_cuda is_cpu is_meta is_sparse "
    "is_quantized is_nested is_mkldnn is_mps is_xpu itemsize nbytes output_nr"
)
_METHODS = (
    "size dim ndimension stride numel nelement is_floating_point is_complex is_contiguous "
    "element_size get_device storage_offset __len__ is_inference"
)
_METADATA = {
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES.split()),
    *(getattr(Tensor, name) for name in _METHODS.split()),
    *(torch.numel, torch.is_floating_point, torch.is_complex),
}


def _fused(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What `func` gives from the coarse map; NotImplemented where it has to see the real tensor."""
    try:
        call = inspect.signature(_FUSED[func]).bind(*args, **kwargs)
    except TypeError:
        return NotImplemented
    x = call.arguments.get("input")
    others = [v for name, v in call.arguments.items() if name != "input"]
    if not isinstance(x, UpsampledLogits) or not x.is_lazy:
        return NotImplemented
    state = x._state
    if state is None or any(isinstance(leaf, LazyTensor) for leaf in tree_leaves(others)):
        return NotImplemented
    _check_unchanged(state)
    with torch._C.DisableTorchFunctionSubclass():
        result = _FUSED[func](*args, **kwargs)
    if state.record is not None and result is not NotImplemented:
        name = getattr(func, "__name__", str(func))
        if name in ("argmax", "max", "topk", "cross_entropy", "nll_loss"):
            state.record.fused.append(f"fused {name}")
    return result


def _on_real(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``func`` of the real tensors, wherever among the arguments; in place it returns its own."""
    used: list[LazyTensor] = []

    def real(x: LazyTensor) -> Tensor:
        state = x._state
        if state is not None and state.record is not None and state.record.real is None:
            state.record.real = resolve_name(func) or str(func)
        used.append(x)
        return x.real()

    args, kwargs = tree_map_only(LazyTensor, real, (tuple(args), dict(kwargs)))
    result = func(*args, **kwargs)
    return next((x for x in used if x._real is result), result)


class _Mode(TorchFunctionMode):
    """Bilinear resizes are lazy. seen: the modes of all resizes."""

    def __init__(self, records: list[Resize] | None = None) -> None:
        super().__init__()
        self.records = records
        self.seen: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate:
            self.seen.add(kwargs.get("mode", "nearest"))
            lazy = _resize(*args, **kwargs, records=self.records)
            if lazy is not NotImplemented:
                return lazy
        return func(*args, **kwargs)


def lazy_logits() -> AbstractContextManager[Any]:
    """Within ``with lazy_logits():``, bilinear resizes of 4-D maps return `UpsampledLogits`.

    It holds for the thread, and for code that calls ``F.interpolate`` or a module that does.
    """
    return _Mode()


# --- modules

_entered = threading.local()
_told: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@torch.compiler.assume_constant_result
def _tell_compiled() -> None:
    """Called while a compiler traces, once for each graph."""
    warnings.warn(
        "torch.compile cannot follow lazy logits: the graph of a fused module makes real ones. "
        "Compile the network up to its scores, and call fcnfast.ops.upsample_cross_entropy or "
        "upsample_argmax on them.",
        stacklevel=2,
    )


def _enter(module: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling():
        _tell_compiled()
        return
    stack = _entered.__dict__.setdefault("stack", [])
    while any(module is other for other, _ in stack):  # left by a KeyboardInterrupt
        stack.pop()[1].__exit__(None, None, None)
    mode = _Mode()
    mode.__enter__()
    stack.append((module, mode))


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    stack = _entered.__dict__.get("stack", [])
    if not stack or stack[-1][0] is not module:  # a hook before ours has failed
        return
    mode = stack.pop()[1]
    mode.__exit__(None, None, None)
    if "bilinear" not in mode.seen and output is not None and module not in _told:
        _told.add(module)
        kinds = sorted({type(m).__name__ for m in module.modules()})
        modes = f"only of mode {', '.join(sorted(mode.seen))}" if mode.seen else "none"
        warnings.warn(
            f"fuse: no bilinear resize ran in {type(module).__name__} ({modes}; modules: "
            f"{', '.join(kinds)}); for a resize outside the module use fcnfast.lazy_logits()",
            stacklevel=2,
        )


def fuse(model: Module) -> Module:
    """Let the bilinear resizes in a module's forward pass return `UpsampledLogits`.

    It adds two hooks to the module, which keeps its class and its state dict; copies and pickles
    are fused, too. Fusing twice is fusing once.

    Returns:
        The module itself.

    Raises:
        TypeError: when it is not a module, or one of TorchScript.
    """
    if isinstance(model, torch.jit.ScriptModule) or not isinstance(model, nn.Module):
        raise TypeError(
            f"fuse takes a torch.nn.Module that is not scripted, not {type(model).__name__}; "
            "use fcnfast.lazy_logits() around other code"
        )
    if _enter not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_enter)
        model.register_forward_hook(_leave, prepend=True, always_call=True)
    return model


def unfuse(model: Module) -> Module:
    """Undo `fuse`; the module itself. One that is not fused is left as it is."""
    for hooks, ours in ((model._forward_pre_hooks, _enter), (model._forward_hooks, _leave)):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)
    return model


def fuse_report(model: nn.Module, inputs: Any) -> list[Resize]:
    """Run a module once and say of every ``F.interpolate`` in it what became of it.

    Args:
        inputs: its argument: a tensor, a tuple of arguments, or a mapping of named ones.

    Returns:
        One entry a resize, in order; print them.
    """
    records: list[Resize] = []
    fused = _enter in model._forward_pre_hooks.values()
    with _Mode(records):
        unfuse(model)
        try:
            if isinstance(inputs, Mapping):
                model(**inputs)
            else:
                model(*inputs if isinstance(inputs, (tuple, list)) else (inputs,))
        finally:
            if fused:
                fuse(model)
    return records
