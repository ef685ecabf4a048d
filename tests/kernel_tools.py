"""What the kernel tests share: the interpreter, tensors with poison around them, error limits.

Triton's interpreter runs the kernels on CPU tensors. With TRITON_INTERPRET=0 in the environment
the same tests run on a GPU.
"""

import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported

import numpy as np
import pytest
import torch
from hypothesis import event
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="no Triton for this platform")

import triton.language as tl
from triton.runtime.interpreter import (
    GridExecutor,
    InterpretedFunction,
    InterpreterBuilder,
    interpreter_builder,
)

from fcnfast.geometry import SamplingGrid
from tests.op_tools import assert_error, worst

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
interpreter_only = pytest.mark.skipif(not INTERPRETED, reason="looks into the interpreter")
CHANNELS_LAST = ("channels_last", "channels_last sliced")
LAYOUTS = ("contiguous", "sliced", "transposed", "expanded", *CHANNELS_LAST)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
GUARD = 64  # poisoned values on either side of a result

_call_device_function = InterpretedFunction.__call__


def _call_without_patching(self: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
    """The interpreter patches triton.language at every call of a device function, which takes half
    of its time. For a function that sees only what its kernel's launch has patched, once will do.
    """
    if any(value is tl for value in self.fn.__globals__.values()):
        return self.rewrite()(*args, **kwargs)
    return _call_device_function(self, *args, **kwargs)


InterpretedFunction.__call__ = _call_without_patching


def _gather(self: InterpreterBuilder, x: Any, index: Any, axis: int) -> Any:
    """An index out of range is undefined on a GPU, also for a value that nobody uses."""
    assert ((index.data >= 0) & (index.data < x.data.shape[axis])).all()
    return _create_gather(self, x, index, axis)


_create_gather, InterpreterBuilder.create_gather = InterpreterBuilder.create_gather, _gather
# tl.maximum and tl.minimum pass a NaN over, on a GPU; the interpreter would hand it on.
InterpreterBuilder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
InterpreterBuilder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype, device=DEVICE)


def bits(x: Tensor) -> Tensor:
    """The bit patterns of `x`, for comparisons to which NaN is a value like others."""
    return x.contiguous().view(BITS[x.dtype.itemsize])


def laid_out(values: Tensor, layout: str, dtype: torch.dtype) -> Tensor:
    """`values` (N x C x H x W) in `dtype`, inside a larger tensor that is NaN everywhere else."""
    n, c, h, w = values.shape
    if layout == "contiguous":
        view = poisoned(n + 2, c, h, w, dtype=dtype)[1:-1]
    elif layout == "channels_last":
        view = poisoned(n + 2, h, w, c, dtype=dtype).permute(0, 3, 1, 2)[1:-1]
    elif layout == "sliced":
        view = poisoned(n + 2, c + 2, h + 2, 2 * w + 2, dtype=dtype)[1:-1, 1:-1, 1:-1, 1:-1:2]
    elif layout == "channels_last sliced":
        big = poisoned(n + 2, h + 2, w + 2, c + 3, dtype=dtype).permute(0, 3, 1, 2)
        view = big[1:-1, 1 : 1 + c, 1:-1, 1:-1]
    elif layout == "transposed":
        view = poisoned(n + 2, c, w + 2, h + 2, dtype=dtype)[1:-1, :, 1:-1, 1:-1].mT
    elif layout == "expanded":
        view, values = poisoned(n + 2, 1, h, w, dtype=dtype)[1:-1], values[:, :1]
        view.copy_(values)
        return view.expand(n, c, h, w)
    else:
        raise ValueError(layout)
    return view.copy_(values)


@contextmanager
def planned(*modules: ModuleType, **constants: int) -> Iterator[None]:
    """The launchers in `modules` plan with other constants; none of these plans is kept."""

    def forget() -> None:
        for module in modules:
            for function in vars(module).values():
                if hasattr(function, "cache_clear"):
                    function.cache_clear()

    with ExitStack() as stack:
        stack.callback(forget)
        for module in modules:
            own = {name: value for name, value in constants.items() if hasattr(module, name)}
            if own:
                stack.enter_context(mock.patch.multiple(module, **own))
        forget()
        yield


def giving(*tensors: Tensor) -> AbstractContextManager[object]:
    """Launchers get `tensors` as what they allocate, in this order; at last always the last."""
    left = list(tensors)
    return mock.patch.object(
        torch, "empty", lambda *_, **__: left.pop(0) if len(left) > 1 else left[0]
    )


@contextmanager
def guarded() -> Iterator[list[Tensor]]:
    """What launchers allocate starts as poison, between guards that must not change.

    Yields the tensors that were given out.
    """
    stores: list[tuple[Tensor, Tensor]] = []
    given: list[Tensor] = []
    empty = torch.empty

    def allocate(shape: Any, dtype: torch.dtype, device: torch.device, **form: Any) -> Tensor:
        like = empty(shape, dtype=dtype, device="meta", **form)
        poison = math.nan if dtype.is_floating_point else torch.iinfo(dtype).max // 3
        store = empty(like.numel() + 2 * GUARD, dtype=dtype, device=device).fill_(poison)
        stores.append((store, store.clone()))
        given.append(store.as_strided(like.shape, like.stride(), GUARD))
        return given[-1]

    with mock.patch.object(torch, "empty", allocate):
        yield given
    assert stores
    for store, before in stores:
        for guard in (slice(None, GUARD), slice(store.numel() - GUARD, None)):
            assert torch.equal(store[guard].view(torch.uint8), before[guard].view(torch.uint8))


def assert_stays_within(launch: Callable[[], Any], *tensors: Tensor) -> Any:
    """The interpreter reads and writes only elements of `tensors` and of what `launch` makes.

    Returns what `launch` returns.
    """
    makers, made = ("empty", "cat"), []

    def keeping(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            made.append(function(*args, **kwargs))
            return made[-1]

        return call

    with mock.patch.multiple(torch, **{name: keeping(getattr(torch, name)) for name in makers}):
        launch()
    again = iter(made)
    with (
        mock.patch.multiple(torch, **{name: lambda *_, **__: next(again) for name in makers}),
        watched(*tensors, *made),
    ):
        return launch()


@contextmanager
def watched(*tensors: Tensor) -> Iterator[None]:
    """The interpreter reads and writes elements of `tensors` only, and of views nothing between."""
    addresses = [
        x.data_ptr()
        + x.element_size()
        * sum(
            np.arange(size, dtype=np.int64).reshape([-1 if d == k else 1 for d in range(x.dim())])
            * stride
            for k, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True))
        )
        for x in tensors
    ]
    allowed = np.concatenate([np.ravel(a) for a in addresses])
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    seen = 0

    def check(pointers: np.ndarray, mask: np.ndarray) -> None:
        nonlocal seen
        used = np.asarray(pointers)[np.asarray(mask, dtype=bool)]
        seen += used.size
        assert np.isin(used.astype(np.int64), allowed).all()

    def checked_load(self, ptrs, mask, *rest):
        check(ptrs.data, mask.data)
        return load(self, ptrs, mask, *rest)

    def checked_store(self, ptrs, value, mask, *rest):
        check(ptrs.data, mask.data)
        return store(self, ptrs, value, mask, *rest)

    with ExitStack() as stack:
        for name, function in (("load", checked_load), ("store", checked_store)):
            attribute = f"create_masked_{name}"
            stack.enter_context(mock.patch.object(InterpreterBuilder, attribute, function))
        yield
    assert seen


@contextmanager
def written_once(results: list[Tensor], again: bool = False) -> Iterator[None]:
    """No two lanes, and no two programs of a launch, write to one place, in whatever order they
    run; and of `results`, dense tensors, filled in within, every place is written.

    again: whether a program may write to a place again, or one of a later launch to memory that
    has been given out again.
    """
    store, written = InterpreterBuilder.create_masked_store, {}

    def kept(self, ptrs, value, mask, *rest):
        used = np.asarray(ptrs.data)[np.asarray(mask.data, dtype=bool)].astype(np.int64)
        assert len(np.unique(used)) == len(used)
        written.setdefault(self.grid_idx, []).append(used)
        return store(self, ptrs, value, mask, *rest)

    with mock.patch.object(InterpreterBuilder, "create_masked_store", kept):
        yield
    programs = [np.concatenate(used) for used in written.values()]
    addresses = np.concatenate([np.unique(used) if again else used for used in programs])
    assert len(np.unique(addresses)) == len(addresses)
    assert results
    for result in results:
        first, size = result.data_ptr(), result.numel() * result.itemsize
        assert ((addresses >= first) & (addresses < first + size)).sum() == result.numel()


@contextmanager
def only_programs(choose: Callable[[int], Sequence[int]]) -> Iterator[list[int]]:
    """Launches run the programs that `choose` names of their number; yields the list of them."""
    ran: list[int] = []
    call = GridExecutor.__call__
    count, place = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx

    def launch(self, *args, **kwargs):
        programs = self.grid[0]
        chosen = list(choose(programs))
        ran.extend(chosen)
        self.grid = (len(chosen),)
        with mock.patch.multiple(
            interpreter_builder,
            set_grid_dim=lambda x, y, z: count(programs, y, z),
            set_grid_idx=lambda x, y, z: place(chosen[x], y, z),
        ):
            call(self, *args, **kwargs)

    with (
        mock.patch.object(GridExecutor, "__call__", launch),
        # The arguments are CPU tensors: copying them onto themselves would touch every page.
        mock.patch.object(GridExecutor, "_restore_args_dev", lambda *_: None),
    ):
        yield ran


def reserved(values: int, dtype: torch.dtype) -> Tensor:
    """A flat tensor of zeros that takes memory only where it is written to."""
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # not named before Python 3.13
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    try:
        pages = mmap.mmap(-1, values * dtype.itemsize, flags=flags)
    except OSError as error:
        pytest.skip(f"no address space for {values} values: {error}")
    return torch.frombuffer(pages, dtype=dtype)


def assert_accurate(result: Tensor, truth: Tensor, torchs: float, x: Tensor) -> None:
    """The error is at most 1.25 times `torchs`, plain torch's in that dtype, plus one ulp.

    The ulp is that of the largest value among the inputs `x` and the true results.
    """
    largest = max(truth.abs().max().item(), x.abs().max().item())
    ulp = torch.finfo(result.dtype).eps * 2.0 ** math.floor(math.log2(largest)) if largest else 0.0
    assert_error(worst(result, truth), torchs, ulp)


def numerators(grid: SamplingGrid, axis: int) -> np.ndarray:
    """Weights times `den` of one axis, outputs x coarse values: exact, from the definition."""
    n, size, num, off, den = (
        v[axis] for v in (grid.in_size, grid.size, grid.num, grid.off, grid.den)
    )
    result = np.zeros((size, n), dtype=object)
    for y in range(size):
        position = num * y + off
        if grid.border == "clamp":
            position = min(max(position, 0), (n - 1) * den)
        for i in range(n):
            result[y, i] = max(den - abs(position - i * den), 0)
    return result


def whole(x: Tensor) -> np.ndarray:
    """The integers that `x` holds, as objects without bounds."""
    return np.vectorize(int, otypes=[object])(x.cpu().double().numpy())


def scores(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Values as float64, exact in `dtype`; whole numbers where that is float64."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.float64:
        return torch.randint(-(2**52), 2**52, tuple(shape), generator=generator).double()
    values = 4 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return values.to(dtype).double()


def spread_out(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values`, at most 3 along each axis, at strides whose products no int32 holds."""
    strides = [2**30 + 7**k for k in range(4)]
    far = reserved(1 + sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True)), dtype)
    return far.as_strided(values.shape, strides).copy_(values)


def is_format_kept(result: Tensor, layout: str) -> bool:
    """Dense, and channels_last where the input was (one channel has no such format)."""
    last = layout in CHANNELS_LAST and result.shape[1] > 1
    return result.is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


@st.composite
def any_grids(
    draw: st.DrawFn, dens: Sequence[int] = range(1, 10), larger: bool = True
) -> SamplingGrid:
    """Grids that no builder makes: any position, the axes unlike, also of large integers."""
    axes = []
    for most in (8, 12):
        num, off, den = (
            draw(st.integers(0, 9)),
            draw(st.integers(-40, 40)),
            draw(st.sampled_from(dens)),
        )
        large = draw(st.sampled_from((1, 1, 2**15 + 1))) if larger else 1
        size, n = draw(st.integers(1, most)), draw(st.integers(1, 6))
        axes.append((n, size, num * large, off * large, den * large))  # the same place, unreduced
    border = draw(st.sampled_from(("zero", "clamp")))
    grid = SamplingGrid(*zip(*axes, strict=True), border)
    event(f"one place along an axis: {0 in grid.num}")
    event(f"large integers: {max(grid.den) > 2**15}")
    return grid
