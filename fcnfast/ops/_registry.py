"""How the raw ops under torch.ops.fcnfast are registered, and which implementation they run.

A raw op takes its grid as integers. It is registered for every device; its body calls the Triton
launcher for CUDA tensors and the plain-torch implementation in `tiled` for all others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ..geometry import SamplingGrid
from ._portable import RULES, is_portable

LIBRARY = torch.library.Library("fcnfast", "DEF")
# A grid in a schema: integers (possibly symbolic), and whether the border repeats the edge.
GRID = "SymInt[] grid, bool clamp"
BACKEND = "str? backend"
_BACKENDS = ("torch", "triton")
# Process-wide, so that autograd's threads see it.
_forced: str | None = None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force the "torch" or "triton" backend inside the block, overriding FCNFAST_BACKEND.

    It holds for all threads. A backward pass uses the backend of its forward pass. A compiled or
    exported function keeps the backend that was forced when it was traced.

    Raises:
        ValueError: `name` is neither "torch" nor "triton".
    """
    global _forced
    before, _forced = _forced, _checked(name, "backend")
    try:
        yield
    finally:
        _forced = before


def _checked(name: str, source: str) -> str:
    if name not in _BACKENDS:
        raise ValueError(f"{source} must be 'torch' or 'triton', not {name!r}")
    return name


@torch.compiler.assume_constant_result
def forced() -> str | None:
    """The forced backend, or None; ValueError if FCNFAST_BACKEND has any other value."""
    if _forced is not None:
        return _forced
    variable = os.environ.get("FCNFAST_BACKEND")
    return _checked(variable, "FCNFAST_BACKEND") if variable else None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@lru_cache(maxsize=1024)
def _fits_int32(grid: SamplingGrid) -> bool:
    """Whether positions up to a block beyond each axis fit the kernels' int32, and remainders the
    24-bit significand of a float32.
    """
    axes = zip(grid.in_size, grid.size, grid.num, grid.off, grid.den, strict=True)
    return all(
        den <= 1 << 24 and num * (size + 2048) + abs(off) + (n + 2048) * den < 1 << 31
        for n, size, num, off, den in axes
    )


def uses_triton(backend: str | None, x: Tensor, grid: SamplingGrid | None = None) -> bool:
    """Whether the Triton launcher runs an op on the map `x` at `grid`.

    The kernels compute in float32 and int32. Plain torch runs float64 maps and larger positions;
    if Triton is forced, they raise ValueError.
    """
    if backend is None:
        if x.device.type != "cuda" or x.dtype == torch.float64 or not _has_triton():
            return False
        return grid is None or _fits_int32(grid)
    if backend == "torch":
        return False
    if not _has_triton():
        raise ValueError("Triton is forced, but it is not installed")
    if x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
        raise ValueError("Triton kernels need tensors on a GPU, or TRITON_INTERPRET=1")
    if x.dtype == torch.float64:
        raise ValueError("Triton is forced, but its kernels do not take float64 maps")
    if grid is not None and not _fits_int32(grid):
        raise ValueError(
            f"Triton is forced, but its kernels compute in int32, too small for {grid}"
        )
    return True


def define(
    schema: str,
    body: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[..., Any],
    entry: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register a differentiable raw op and return the function that calls it.

    Args:
        schema: name, arguments and results, as ``torch.library.define`` takes it.
        body, fake: compute the results, or empty tensors like them, from positional arguments.
        setup, backward: as ``torch.library.register_autograd`` takes them.
        entry: calls the op for one batch entry under vmap; by default the op itself.
    """
    op, name = _register(schema, body, fake)
    torch.library.register_autograd(name, backward, setup_context=setup, lib=LIBRARY)

    def refuse(*_: Any) -> None:
        raise RuntimeError(f"{name} has no forward-mode derivative: use reverse mode")

    run = _or_portable(op)

    def call(*args: Any) -> Any:
        if not torch.compiler.is_compiling():
            for a in args:
                if isinstance(a, Tensor) and unpack_dual(a).tangent is not None:
                    refuse()
        return run(*args)

    # torch.func differentiates an autograd.Function, but not an op with register_autograd. This
    # dispatch key is reached only while one of its transforms is active.
    methods = {"forward": lambda *args: op(*args), "setup_context": setup, "backward": backward}
    methods |= {"vmap": _one_by_one(entry or op), "jvp": refuse}
    statics = {key: staticmethod(method) for key, method in methods.items()}
    function: Any = type(name, (torch.autograd.Function,), statics)
    LIBRARY.impl(op, function.apply, "FuncTorchDynamicLayerFrontMode")
    return call


def define_without_gradient(
    schema: str, body: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Register a raw op whose results have no gradient and return the function that calls it."""
    op, name = _register(schema, body, fake)
    LIBRARY.impl(op, torch.library.fallthrough_kernel, "Autograd")
    rule = _one_by_one(op, in_place="(a!)" in schema)
    torch.library.register_vmap(name, rule, lib=LIBRARY)
    return _or_portable(op)


def _or_portable(op: Any) -> Callable[..., Any]:
    """A function that calls `op` or, if `is_portable`, its equivalent in torch's own operators."""
    rule = RULES.get(op.name().partition("::")[2])
    if rule is None:
        return op
    return lambda *args: (rule if is_portable() else op)(*args)


def _register(schema: str, body: Callable[..., Any], fake: Callable[..., Any]) -> tuple[Any, str]:
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fcnfast::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.fcnfast, name).default, f"fcnfast::{name}"


def _one_by_one(call: Callable[..., Any], in_place: bool = False) -> Callable[..., tuple[Any, Any]]:
    """The rule for torch.func.vmap: one call per entry. in_place: it changes its first argument."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        if in_place and in_dims[0] is None:
            raise ValueError("vmap of an op that adds to out needs an out for each entry")

        def entry(a: Any, dim: int | None, i: int) -> Any:
            if not isinstance(a, Tensor) or dim is None:
                return a
            # An empty batch runs one entry of zeros, which gives the shapes of the results.
            return a.select(dim, i) if info.batch_size else a.sum(dim, dtype=a.dtype)

        results = [
            call(*(entry(a, dim, i) for a, dim in zip(args, in_dims, strict=True)))
            for i in range(max(info.batch_size, 1))
        ]
        if in_place:
            return None, None
        if isinstance(results[0], Tensor):
            return torch.stack(results)[: info.batch_size], 0
        stacked = [torch.stack(parts)[: info.batch_size] for parts in zip(*results, strict=True)]
        return tuple(stacked), (0,) * len(stacked)

    return rule
