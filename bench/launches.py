"""What the launchers launch, recorded on tensors without data, and how Triton would compile it."""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

# Triton's names of the types behind a pointer.
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.uint8: "u8",
    torch.bool: "i1",
}
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
OURS = "fcnfast.kernels"


@dataclass(frozen=True)
class Launch:
    """A call of a kernel: its arguments by name, and options such as num_warps."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Kernels that are launched within are not run: the list gets their calls."""
    launches: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        parameters = kernel.signature.bind(
            *args, **{n: options.pop(n) for n in list(options) if n in kernel.arg_names}
        )
        parameters.apply_defaults()
        launches.append(Launch(kernel, dict(parameters.arguments), options))

    with mock.patch.object(JITFunction, "run", run):
        yield launches


def record(call: Callable[[], object]) -> list[Launch]:
    """The launches of one call of a launcher, which gets tensors of the device "meta"."""
    with recorded() as launches:
        call()
    return launches


def target_of(name: str) -> GPUTarget:
    """What Triton calls one of TARGETS."""
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name[3:]), 32)
    return GPUTarget("hip", name, 64)


def _pointer(x: Tensor, amd: bool) -> tuple[str, list[list[Any]]]:
    """The type of a pointer to `x`, and what a launch finds out about it."""
    facts: list[list[Any]] = []
    if x.storage_offset() * x.itemsize % 16 == 0:
        facts.append(["tt.divisibility", 16])
    if amd and x.untyped_storage().nbytes() < 2**31:
        facts.append(["tt.pointer_range", 32])
    return f"*{TYPES[x.dtype]}", facts


def _integer(value: int) -> str:
    if -(2**31) <= value < 2**31:
        return "i32"
    return "i64" if value < 2**63 else "u64"


def specialized(launch: Launch, amd: bool) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Signature, constants and attributes, as a launch on a device specializes the kernel.

    Raises:
        TypeError: for an argument of a kind that no kernel here takes.
    """
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[Any, Any] = {}
    for parameter in launch.kernel.params:
        name, place = parameter.name, (parameter.num,)
        value, special = launch.arguments[name], not parameter.do_not_specialize
        one = special and isinstance(value, int) and value is not True and value == 1
        if parameter.is_constexpr or value is None or one:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name], attributes[place] = _pointer(value, amd)
        elif isinstance(value, bool):
            signature[name] = "u1"
        elif isinstance(value, int):
            signature[name] = _integer(value)
            if special and value % 16 == 0:
                attributes[place] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            raise TypeError(f"{launch.kernel.__name__}: {name} is a {type(value).__name__}")
    return signature, constants, {k: v for k, v in attributes.items() if v}


def _uses(function: Any) -> Iterator[tuple[str, Any]]:
    """The globals that a function names, also those of our modules: ``geometry.taps``."""
    names, found = function.__code__.co_names, function.__globals__
    for name in names:
        value = found.get(name)
        if isinstance(value, ModuleType) and value.__name__.startswith(OURS):
            yield from ((n, getattr(value, n)) for n in names if hasattr(value, n))
        elif name in found:
            yield name, value


# By the kernels' identities, each kept alive beside its text; their own hashes take long.
_TEXTS: dict[int, tuple[JITFunction, str]] = {}


def source_text(kernel: JITFunction) -> str:
    """The source of a kernel, of all device functions that it calls, and its global constants."""
    texts: dict[str, str] = {}

    def visit(function: JITFunction) -> None:
        name = f"{function.__module__}.{function.__name__}"
        if name in texts:
            return
        texts[name] = textwrap.dedent(inspect.getsource(function.fn))
        for used, value in _uses(function.fn):
            if isinstance(value, JITFunction) and value.__module__.startswith("triton."):
                continue  # Triton's own: its version stands for them
            if isinstance(value, JITFunction):
                visit(value)
            elif isinstance(value, type) and issubclass(value, tuple):
                texts[f"{function.__module__}.{used}"] = repr(getattr(value, "_fields", value))
            elif isinstance(value, int | float | str | tuple | triton.language.constexpr):
                texts[f"{function.__module__}.{used}"] = repr(value)

    if id(kernel) not in _TEXTS:
        visit(kernel)
        text = "\n".join(f"{name}:\n{text}" for name, text in sorted(texts.items()))
        _TEXTS[id(kernel)] = kernel, text
    return _TEXTS[id(kernel)][1]


def fingerprint(launch: Launch, target: str) -> str:
    """Of all that a row depends on: the machine code's sources, and Triton's version."""
    parts = [
        source_text(launch.kernel),
        *map(str, specialized(launch, not target.startswith("sm_"))),
    ]
    parts += [str(sorted(launch.options.items())), target, triton.__version__]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def variant(launch: Launch) -> str:
    """What tells a launch's compiled kernel from others on an NVIDIA GPU: two launches of one
    variant share it, and the second one compiles nothing."""
    kernel, options = launch.kernel, sorted(launch.options.items())
    return f"{kernel.__module__}.{kernel.__name__} {specialized(launch, False)} {options}"


def compiled(launch: Launch, target: str) -> Any:
    """The kernel compiled ahead of time; needs no GPU."""
    signature, constants, attributes = specialized(launch, not target.startswith("sm_"))
    source = ASTSource(
        fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes
    )
    return triton.compile(source, target=target_of(target), options=launch.options)
