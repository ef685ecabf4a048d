"""How a raw op under torch.ops.fcnfast is declared, and how it is called.

A raw op is a schema, a body that runs it, a fake that says what the result looks like, its
gradient and its rule for vmap. torch.compile, torch.export, vmap and tensor subclasses see the op
itself. A plain eager call goes around the dispatcher, with the same body and the same gradient:
that takes a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..geometry import SamplingGrid, as_pair, lowest_terms

LIBRARY = torch.library.Library("fcnfast", "DEF")
# A grid in a schema: integers, which may be symbolic, and whether the border repeats the edge.
GRID = "SymInt[] grid, bool clamp"
BACKEND = "str? backend=None"

# None has a public name; without them every call goes through the dispatcher.
_modes = getattr(torch._C, "_len_torch_dispatch_stack", None)
_transforms = getattr(torch._C, "_are_functorch_transforms_active", None)
_keys = getattr(torch._C, "_dispatch_keys", None)
# Sets of dispatch keys, as integers, that ordinary tensors have.
_ordinary: set[int] = set()


def packed(grid: SamplingGrid) -> tuple[tuple[int, ...], bool]:
    """A grid as the arguments of a raw op; `unpacked` reverses it."""
    integers = (*grid.in_size, *grid.size, *grid.num, *grid.off, *grid.den)
    return integers, grid.border == "clamp"


@lru_cache(maxsize=1024)
def _made(integers: tuple[int, ...], clamp: bool) -> SamplingGrid:
    in_size, size = as_pair(integers[:2], "in_size"), as_pair(integers[2:4], "size")
    num, off, den = zip(*(lowest_terms(*integers[4 + axis :: 2]) for axis in (0, 1)), strict=True)
    return SamplingGrid(in_size, size, num, off, den, "clamp" if clamp else "zero")


def unpacked(integers: Any, clamp: bool) -> SamplingGrid:
    """The grid of a raw op's arguments, in lowest terms.

    Raises:
        ValueError: for what is no grid.
    """
    if len(integers) != 10:
        raise ValueError(f"grid must be in_size, size, num, off, den: 10 integers, not {integers}")
    return _made(tuple(integers), clamp)


def _is_ordinary(x: Tensor) -> bool:
    """Whether `x` is what a tensor just made is: no wrapper of any kind, not fake, not meta."""
    assert _keys is not None
    keys = _keys(x).raw_repr()
    if keys in _ordinary:
        return True
    if x.is_meta or _transforms is None or _transforms():  # in which a new tensor is wrapped, too
        return False
    for inference in (False, True):
        with torch.inference_mode(inference):
            if keys == _keys(torch.empty(0, device=x.device)).raw_repr():
                _ordinary.add(keys)
                return True
    return False


def _is_plain(args: tuple[Any, ...]) -> bool:
    """Whether nothing but autograd takes part in a call with these arguments."""
    if _modes is None or _keys is None or _modes():
        return False
    return all(
        (type(a) is Tensor or type(a) is torch.nn.Parameter) and _is_ordinary(a)
        for a in args
        if isinstance(a, Tensor)
    )


def define(
    schema: str,
    body: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup: Callable[..., None],
    backward: Callable[..., Any],
    vmap: Callable[..., Any],
    jvp: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Declare a differentiable raw op and return the function that calls it.

    Args:
        schema: name, arguments and results, as `torch.library.define` takes it.
        body, fake: take the arguments by position.
        setup, backward: as `torch.library.register_autograd` takes them.
        vmap: makes the rule from the returned function (see `torch.library.register_vmap`).
        jvp: the directional derivative, as `torch.autograd.Function` takes it; by default
            forward-mode differentiation is refused.
    """
    name = schema.partition("(")[0]
    op = declare(schema, body, fake)
    torch.library.register_autograd(f"fcnfast::{name}", backward, setup_context=setup, lib=LIBRARY)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return (body if _is_plain(args) else op)(*args)

    # As `Eager.apply`, which looks for torch.func's transforms and binds default values first:
    # that takes longer than all the rest.
    apply = super(torch.autograd.Function, Eager).apply

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or _transforms is None:
            return op(*args)
        if _transforms():
            return Eager.apply(*args)
        return (apply if _is_plain(args) else op)(*args)

    def refuse(*_: Any) -> None:
        raise RuntimeError(f"fcnfast::{name} has no forward-mode derivative: use reverse mode")

    rule = vmap(call)
    functions = {"setup_context": setup, "backward": backward, "vmap": rule, "jvp": jvp or refuse}
    for key, function in functions.items():
        setattr(Eager, key, staticmethod(function))
    torch.library.register_vmap(f"fcnfast::{name}", rule, lib=LIBRARY)
    return call


def define_in_place(
    schema: str,
    body: Callable[..., None],
    fake: Callable[..., None],
    *,
    vmap: Callable[..., Any],
) -> Callable[..., None]:
    """Declare a raw op that changes its first argument, returns nothing and has no gradient."""

    def run(out: Tensor, *args: Any) -> None:
        with torch.no_grad():
            body(out, *args)
        if not out.is_inference():
            torch.autograd.graph.increment_version(out)

    op = declare(schema, run, fake)
    name = schema.partition("(")[0]
    LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")

    def call(*args: Any) -> None:
        traced = torch.compiler.is_compiling() or _transforms is None or _transforms()
        around = not traced and _is_plain(args)
        (run if around else op)(*args)

    torch.library.register_vmap(f"fcnfast::{name}", vmap(call), lib=LIBRARY)
    return call


def declare(schema: str, body: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fcnfast::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.fcnfast, name).default
