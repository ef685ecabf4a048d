"""What a compiled kernel takes of a GPU, read from its machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton

from bench import sass
from bench.launches import Launch
from bench.static_case import Work

NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _tool(name: str, *arguments: str) -> str:
    """What one of the CUDA tools prints that come with Triton."""
    command = [str(NVIDIA_TOOLS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _nvidia(kernel: Any, launch: Launch, work: Sequence[Work]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        text = _tool("nvdisasm", "-c", "-gi", file.name)
    registers, stack, local = (
        int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")
    )
    code, _ = sass.parse(text)
    stores = [i.op for i in code if i.stem == "STG"]
    row = {
        "registers": registers,
        "spills": stack + local + sass.count(code, "LDL", "STL"),
        "shared": kernel.metadata.shared,
        "stores": len(stores),
        "wide_stores": sum(op.endswith(".128") for op in stores),
        "loads": sass.count(code, *sass.LOADS),
        "instructions": len(code),
        "ex2": sass.exponentials(code),
    }
    units = {w.unit: sass.per_unit(text, w.trips(launch), w.odds) for w in work}
    if units:
        row["per_unit"] = {
            unit: {name: round(value, 4) for name, value in figures.items()}
            for unit, figures in units.items()
        }
    return row


def _amd(kernel: Any) -> dict[str, Any]:
    text = kernel.asm["amdgcn"]

    def noted(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", text)[1])

    def count(pattern: str) -> int:
        return len(re.findall(rf"^\s+{pattern}\b", text, re.MULTILINE))

    return {
        "registers": noted("vgpr_count"),
        "spills": noted("vgpr_spill_count"),
        "shared": noted("group_segment_fixed_size"),
        "stores": count(r"(?:global|buffer|flat)_store_\w+"),
        "wide_stores": count(r"(?:global|buffer|flat)_store_dwordx4"),
        "loads": count(r"(?:global|buffer|flat)_load_\w+"),
        "instructions": count(r"(?:[vs]|ds|global|buffer|flat)_\w+"),
        "ex2": count(r"v_exp_\w+"),
    }


def measured(kernel: Any, launch: Launch, work: Sequence[Work]) -> dict[str, Any]:
    """Registers a thread, bytes of shared memory, and how many instructions there are of a kind.

    spills: on NVIDIA bytes of stack plus accesses to it, on AMD vector registers. wide_stores:
    those of 16 bytes. per_unit (NVIDIA, with `work`): what a thread does for each unit of it.

    Raises:
        ValueError: when `work` does not describe the loops of the kernel.
    """
    return _amd(kernel) if "amdgcn" in kernel.asm else _nvidia(kernel, launch, work)
