"""What the kernel tests share: the interpreter, tensors with poison around them, error limits.

Triton's interpreter runs the kernels on CPU tensors. With TRITON_INTERPRET=0 in the environment
the same tests run on a GPU.
"""

import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cache, reduce
from types import ModuleType
from typing import Any
from unittest import mock

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="no Triton for this platform")

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import (
    GridExecutor,
    InterpretedFunction,
    InterpreterBuilder,
    interpreter_builder,
)

from tests import op_tools
from tests.op_tools import CHANNELS_LAST, LAYOUTS

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
interpreter_only = pytest.mark.skipif(not INTERPRETED, reason="looks into the interpreter")


def laid_out(values: torch.Tensor, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """`op_tools.laid_out` on DEVICE, as it is when called."""
    return op_tools.laid_out(values, layout, dtype, DEVICE)


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
# Checks for overflow take half of the interpreter's time; it drops their results without debug.
interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)
_np_dtype_of_scalar = cache(interpreter._get_np_dtype)  # which builds a table at every call


def _np_dtype(dtype: Any) -> np.dtype:
    pointers = dtype.scalar.is_ptr()
    return np.dtype(np.uint64) if pointers else _np_dtype_of_scalar(dtype.scalar)


interpreter._get_np_dtype = _np_dtype


def _gather(self: InterpreterBuilder, x: Any, index: Any, axis: int) -> Any:
    """An index out of range is undefined on a GPU, also for a value that nobody uses."""
    assert ((index.data >= 0) & (index.data < x.data.shape[axis])).all()
    return _create_gather(self, x, index, axis)


_create_gather, InterpreterBuilder.create_gather = InterpreterBuilder.create_gather, _gather
if not hasattr(InterpreterBuilder, "get_int1_ty"):  # Triton 3.3 has no ~ of a mask

    def _all_ones(self: InterpreterBuilder, dtype: tl.dtype) -> interpreter.TensorHandle:
        if dtype == tl.int1:
            return interpreter.TensorHandle(np.ones(1, np.bool_), dtype)
        return _get_all_ones_value(self, dtype)

    _get_all_ones_value = InterpreterBuilder.get_all_ones_value
    InterpreterBuilder.get_all_ones_value = _all_ones
    InterpreterBuilder.get_int1_ty = lambda self: tl.int1
# On a GPU tl.maximum and tl.minimum ignore a NaN; the interpreter would return it.
InterpreterBuilder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
InterpreterBuilder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)


# ---- inputs


layouts, dtypes, seeds = st.sampled_from(LAYOUTS), st.sampled_from(DTYPES), st.integers(0, 2**31)
specials = st.sampled_from((None, None, torch.nan, torch.inf, -torch.inf))
# How two maps are: their dtype and layouts, what some values are instead, and a seed.
forms = st.tuples(dtypes, layouts, layouts, specials, seeds)


def examples(count: int) -> settings:
    """So many examples, the same in every run."""
    return settings(max_examples=count, derandomize=True)


def scores(shape: Sequence[int], dtype: torch.dtype, seed: int, special: float | None = None):
    """Values as float64, exact in `dtype`; where that is float64, so are sums of their products.

    special: what some of them are instead; then a few are infinite, too.
    """
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.float64:
        values = torch.randint(-(2**22), 2**22, tuple(shape), generator=generator).double()
    else:
        values = 4 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        values = values.to(dtype).double()
    if special is None:
        return values
    drawn = torch.rand(values.shape, generator=generator)
    return torch.where(drawn < 0.03, torch.inf, torch.where(drawn < 0.12, special, values))


def reserved(values: int, dtype: torch.dtype) -> Tensor:
    """A flat tensor of zeros that takes memory only where it is written to."""
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # not named before Python 3.13
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    try:
        pages = mmap.mmap(-1, values * dtype.itemsize, flags=flags)
    except OSError as error:
        pytest.skip(f"no address space for {values} values: {error}")
    return torch.frombuffer(pages, dtype=dtype)


# ---- launches


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


def giving(tensor: Tensor) -> AbstractContextManager[object]:
    """Launchers get `tensor` as what they allocate."""
    return mock.patch.object(torch, "empty", lambda *_, **__: tensor)


@contextmanager
def guarded(*inputs: Tensor | None) -> Iterator[list[Tensor]]:
    """What launchers allocate starts as poison, between guards that must not change.

    In the interpreter, kernels touch elements of `inputs` and of what is allocated, of views
    nothing between; and what a program of a launch writes no other reads or writes, so that they
    may run in any order. Yields what is allocated.
    """
    stores: list[tuple[Tensor, Tensor]] = []
    made: list[Tensor] = []
    watch, empty = _Watch(x for x in inputs if x is not None), torch.empty

    def allocate(shape: Any, dtype: torch.dtype, device: torch.device, **form: Any) -> Tensor:
        like = empty(shape, dtype=dtype, device="meta", **form)
        poison = math.nan if dtype.is_floating_point else torch.iinfo(dtype).max // 3
        store = empty(like.numel() + 2 * GUARD, dtype=dtype, device=device).fill_(poison)
        stores.append((store, store.clone()))
        made.append(watch.allow(store.as_strided(like.shape, like.stride(), GUARD)))
        return made[-1]

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "empty", allocate))
        if INTERPRETED:
            stack.enter_context(watch.looking())
        yield made
    for store, before in stores:
        for guard in (slice(None, GUARD), slice(store.numel() - GUARD, None)):
            assert torch.equal(bits(store[guard]), bits(before[guard]))


class _Watch:
    """The addresses that kernels may touch, and those that the programs of a launch touched."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.allowed = np.empty(0, np.int64)
        self.read: list[tuple[int, np.ndarray]] = []  # by program
        self.written: list[tuple[int, np.ndarray]] = []
        for x in tensors:
            self.allow(x)

    def allow(self, x: Tensor) -> Tensor:
        steps = (np.arange(n) * s for n, s in zip(x.shape, x.stride(), strict=True))
        offsets = reduce(np.add.outer, steps, np.zeros((), np.int64))
        self.allowed = np.union1d(self.allowed, x.data_ptr() + x.element_size() * offsets)
        return x

    @contextmanager
    def looking(self) -> Iterator[None]:
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
        launch, cat, contiguous = GridExecutor.__call__, torch.cat, Tensor.contiguous

        def loaded(builder: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
            self.touch(ptrs, mask, self.read)
            return load(builder, ptrs, mask, *rest)

        def stored(builder: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            used = self.touch(ptrs, mask, self.written)
            assert len(np.unique(used)) == len(used)  # no two lanes store to one place
            return store(builder, ptrs, value, mask, *rest)

        def kept_contiguous(*args: Any, **form: Any) -> Tensor:
            return self.allow(contiguous(*args, **form))

        def launched(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
            self.read, self.written = [], []
            launch(executor, *args, **kwargs)
            self.check_programs()

        with (
            mock.patch.object(GridExecutor, "__call__", launched),
            mock.patch.object(InterpreterBuilder, "create_masked_load", loaded),
            mock.patch.object(InterpreterBuilder, "create_masked_store", stored),
            mock.patch.object(torch, "cat", lambda *args: self.allow(cat(*args))),
            mock.patch.object(Tensor, "contiguous", kept_contiguous),
        ):
            yield

    def touch(self, ptrs: Any, mask: Any, log: list[tuple[int, np.ndarray]]) -> np.ndarray:
        used = np.asarray(ptrs.data)[np.asarray(mask.data, dtype=bool)].astype(np.int64)
        place = np.searchsorted(self.allowed, used)
        assert (self.allowed.take(place, mode="clip") == used).all()
        log.append((interpreter_builder.grid_idx[0], used))
        return used

    def check_programs(self) -> None:
        def joined(log: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
            programs = np.repeat([program for program, _ in log], [len(used) for _, used in log])
            return programs, np.concatenate([used for _, used in log])

        if not self.written:  # but by atomic additions
            return
        writer, place = joined(self.written)
        order = np.argsort(place, kind="stable")
        writer, place = writer[order], place[order]
        assert (writer[1:] == writer[:-1])[place[1:] == place[:-1]].all()
        if self.read and len(place):
            reader, seen = joined(self.read)
            found = np.searchsorted(place, seen).clip(max=len(place) - 1)
            assert (writer[found] == reader)[place[found] == seen].all()


@contextmanager
def only_programs(choose: Callable[[int], Sequence[int]]) -> Iterator[None]:
    """Launches run the programs that `choose` names of their number."""
    call = GridExecutor.__call__
    count, place = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx

    def launch(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        programs = self.grid[0]
        chosen = choose(programs)
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
        yield


# ---- results


def bits(x: Tensor) -> Tensor:
    """The bit patterns of `x`, for comparisons to which NaN is a value like others."""
    return x.flatten().view(torch.uint8)


def is_format_kept(result: Tensor, layout: str) -> bool:
    """Dense, and channels_last where the input was (one channel has no such format)."""
    last = layout in CHANNELS_LAST and result.shape[1] > 1
    return result.is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
