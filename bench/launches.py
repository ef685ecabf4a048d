"""What launchers launch, recorded on tensors without data, and what Triton makes of it."""

from __future__ import annotations

import hashlib
import inspect
import re
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

FIGURES = ("registers", "spills", "shared", "instructions")
# Triton's names of the types behind a pointer.
TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip


class Launch(NamedTuple):
    """A call of a kernel: its arguments by name, and options such as num_warps."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]


def record(launcher: Callable[..., object], *arguments: Any) -> list[Launch]:
    """What a launcher launches for tensors of the device "meta"."""
    launches: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        named = {n: options.pop(n) for n in list(options) if n in kernel.arg_names}
        parameters = kernel.signature.bind(*args, **named)
        parameters.apply_defaults()
        launches.append(Launch(kernel, dict(parameters.arguments), options))

    with mock.patch.object(JITFunction, "run", run):
        launcher(*arguments)
    return launches


def _typed(value: Any, special: bool, amd: bool) -> tuple[str, list[list[Any]]]:
    """An argument's type, and what a launch finds out about its value."""
    facts: list[list[Any]] = []
    if isinstance(value, Tensor):
        if value.storage_offset() * value.itemsize % 16 == 0:
            facts.append(["tt.divisibility", 16])
        if amd and value.untyped_storage().nbytes() < 2**31:
            facts.append(["tt.pointer_range", 32])
        return f"*{TYPES[value.dtype]}", facts
    if isinstance(value, bool | float):
        return ("u1" if isinstance(value, bool) else "fp32"), facts
    if special and value % 16 == 0:
        facts.append(["tt.divisibility", 16])
    if -(2**31) <= value < 2**31:
        return "i32", facts
    return ("i64" if value < 2**63 else "u64"), facts


def specialized(launch: Launch, amd: bool) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Signature, constants and attributes, as a launch on a device specializes the kernel."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[Any, Any] = {}
    for parameter in launch.kernel.params:
        name, value = parameter.name, launch.arguments[parameter.name]
        special = not parameter.do_not_specialize
        one = special and isinstance(value, int) and value is not True and value == 1
        if parameter.is_constexpr or value is None or one:
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name], facts = _typed(value, special, amd)
        if facts:
            attributes[(parameter.num,)] = facts
    return signature, constants, attributes


def _uses(function: Any) -> Iterator[tuple[str, Any]]:
    """The globals that a function names, also those of our modules: ``geometry.taps``."""
    names, found = function.__code__.co_names, function.__globals__
    for name in names:
        value = found.get(name)
        if isinstance(value, ModuleType) and value.__name__.startswith("fcnfast.kernels"):
            yield from ((n, getattr(value, n)) for n in names if hasattr(value, n))
        elif name in found:
            yield name, value


def _collect(function: Any, texts: dict[str, str]) -> None:
    """Enter the source of a device function, and of all that it names, by their names."""
    module = function.__module__
    if f"{module}.{function.__name__}" in texts:
        return
    texts[f"{module}.{function.__name__}"] = textwrap.dedent(inspect.getsource(function))
    for used, value in _uses(function):
        if isinstance(value, JITFunction):
            if not value.__module__.startswith("triton."):  # whose version stands for them
                _collect(value.fn, texts)
        elif isinstance(value, type) and issubclass(value, tuple):
            texts[f"{module}.{used}"] = repr(getattr(value, "_fields", value))
        elif isinstance(value, int | float | str | tuple | triton.language.constexpr):
            texts[f"{module}.{used}"] = repr(value)


@cache
def _text(function: Any) -> str:
    """The source of a device function and of all that it names."""
    texts: dict[str, str] = {}
    _collect(function, texts)
    return "\n".join(f"{name}:\n{text}" for name, text in sorted(texts.items()))


def fingerprint(launch: Launch, target: str) -> str:
    """Of all that a row depends on: the machine code's sources, and Triton's version."""
    parts = [_text(launch.kernel.fn), *map(str, specialized(launch, not target.startswith("sm_")))]
    parts += [str(sorted(launch.options.items())), target, triton.__version__]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _nvidia(kernel: Any) -> list[int]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def tool(name: str, *arguments: str) -> str:
        command = [str(tools / name), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = tool("cuobjdump", "--dump-resource-usage", file.name)
        code = tool("nvdisasm", "-c", file.name)
    registers, stack, local = (
        int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")
    )
    found = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", code, re.MULTILINE)
    spills = stack + local + sum(op in ("LDL", "STL") for op in found)
    return [registers, spills, kernel.metadata.shared, sum(op != "NOP" for op in found)]


def _amd(kernel: Any) -> list[int]:
    text = kernel.asm["amdgcn"]
    keys = ("vgpr_count", "vgpr_spill_count", "group_segment_fixed_size")
    noted = [int(re.search(rf"\.{key}:\s+(\d+)", text)[1]) for key in keys]
    found = re.findall(r"^\s+(?:[vs]|ds|global|buffer|flat)_\w+", text, re.MULTILINE)
    return [*noted, len(found)]


def compiled(launch: Launch, target: str) -> dict[str, int]:
    """Compile ahead of time, without a GPU: registers a thread, spills (NVIDIA: bytes of stack plus
    accesses to it; AMD: registers), bytes of shared memory, instructions."""
    nvidia = target.startswith("sm_")
    names = ("signature", "constexprs", "attrs")
    source = ASTSource(
        fn=launch.kernel, **dict(zip(names, specialized(launch, not nvidia), strict=True))
    )
    gpu = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)
    kernel = triton.compile(source, target=gpu, options=launch.options)
    return dict(zip(FIGURES, (_nvidia if nvidia else _amd)(kernel), strict=True))
