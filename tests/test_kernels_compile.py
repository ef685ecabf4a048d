"""Every kernel compiles ahead of time for the GPUs that it is meant for, without spilling.

No GPU is needed. Run as a program, this file compiles what the launchers would launch and prints a
table of it as JSON; the tests run it so, because the interpreter and the compiler cannot share a
process.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Scores of FCN-8s for a batch of 16 at 512 x 512, 21 classes, stride 8.
SHAPE, SIZE = (16, 21, 64, 64), (512, 512)
SKIP = (16, 21, 80, 80)
OPS = ("upsample.forward", "upsample.adjoint", "crop_add.forward", "crop_add.backward_skip")
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
}
CASES = [(op, dtype, last, False) for op in OPS for dtype in ("fp32", "bf16") for last in (0, 1)]
CASES += [(op, "fp32", last, True) for op in OPS[:2] for last in (0, 1)]  # beyond int32
CASES += [(op, "fp64", 0, False) for op in OPS]
# Results whose rows start at multiples of 16 bytes.
ALIGNED = [case for case in CASES if case[0].endswith("forward")]


def name_of(op: str, dtype: str, last: int, wide: bool) -> str:
    return " ".join([op, dtype, *["channels_last"] * last, *["wide"] * wide])


class Recorder:
    """Stands in for a kernel, and keeps what a launcher calls it with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: setattr(self, "call", (args, options))


def launch(op: str, dtype: str, last: int, wide: bool) -> Recorder:
    """Run a launcher on tensors without data."""
    from fcnfast.geometry import SamplingGrid
    from fcnfast.kernels import crop_add, upsample

    def tensor(shape: tuple[int, ...]) -> torch.Tensor:
        memory_format = torch.channels_last if last else torch.contiguous_format
        return torch.empty(shape, dtype=DTYPES[dtype], device="meta", memory_format=memory_format)

    grid = SamplingGrid.resize(SHAPE[2:], SIZE)
    if wide:
        large = [[v * 2**40 for v in values] for values in (grid.num, grid.off, grid.den)]
        grid = SamplingGrid(SHAPE[2:], SIZE, *large, "zero")
    module = upsample if op.startswith("upsample") else crop_add
    kernel = op.split(".")[1] + "_kernel"
    recorder = Recorder(getattr(module, kernel))
    with mock.patch.object(module, kernel, recorder):
        if op == "upsample.forward":
            upsample.forward(tensor(SHAPE), grid)
        elif op == "upsample.adjoint":
            upsample.adjoint(tensor((*SHAPE[:2], *SIZE)), grid)
        elif op == "crop_add.forward":
            crop_add.forward(tensor(SHAPE), tensor(SKIP), (5, 5))
        else:
            crop_add.backward_skip(tensor(SHAPE), SKIP, (5, 5))
    return recorder


def source_of(recorder: Recorder, dtype: str) -> Any:
    """The kernel as a launch specialises it: on strides of 1, on what 16 divides, on options."""
    from triton.compiler import ASTSource

    kernel, (args, options) = recorder.kernel, recorder.call
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = args[index] if index < len(args) else options[name]
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{dtype}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif index >= len(args) or (value == 1 and name not in kernel.do_not_specialize):
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and name not in kernel.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def measured(compiled: Any) -> dict[str, int]:
    """What a compiled kernel takes of a GPU."""
    import triton

    if "amdgcn" in compiled.asm:
        keys = {"registers": "vgpr_count", "spills": "vgpr_spill_count"}
        text = compiled.asm["amdgcn"]
        row = {k: int(re.search(rf"\.{v}:\s+(\d+)", text)[1]) for k, v in keys.items()}
        return row | {"wide stores": len(re.findall(r"store_dwordx4", text))}
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()

        def output(tool: str, option: str) -> str:
            command = [tools / tool, option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = output("cuobjdump", "--dump-resource-usage")
        code = output("nvdisasm", "-c")
    sizes = {k: int(re.search(rf"{k}:(\d+)", usage)[1]) for k in ("REG", "STACK", "LOCAL")}
    return {
        "registers": sizes["REG"],
        "spills": sizes["STACK"] + sizes["LOCAL"] + len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "shared": compiled.metadata.shared,
        "instructions": len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/", code, re.MULTILINE)),
        "loads": len(re.findall(r"\bLDG\b", code)),
        "wide stores": len(re.findall(r"\bSTG\.E\.128\b", code)),
        "stores": len(re.findall(r"\bSTG\b", code)),
    }


def compile_all() -> dict[str, dict[str, dict[str, int]]]:
    """Every case for every target."""
    import triton
    from triton.backends.compiler import GPUTarget

    table: dict[str, dict[str, dict[str, int]]] = {}
    for case in CASES:
        recorder = launch(*case)
        source = source_of(recorder, case[1])
        options = {"num_warps": recorder.call[1]["num_warps"]}
        for name in TARGETS:
            cuda = name.startswith("sm_")
            target = GPUTarget("cuda", int(name[3:]), 32) if cuda else GPUTarget("hip", name, 64)
            compiled = triton.compile(source, target=target, options=options)
            table.setdefault(name_of(*case), {})[name] = measured(compiled)
    return table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, int]]]:
    pytest.importorskip("triton", reason="no Triton for this platform")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    command = [sys.executable, __file__]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: name_of(*case))
def test_fits_in_registers(table, case, target):
    row = table[name_of(*case)][target]
    assert row["registers"] > 0
    if case[1] != "fp64":
        assert row["spills"] == 0


@pytest.mark.parametrize("target", [target for target in TARGETS if target.startswith("sm_")])
@pytest.mark.parametrize("case", ALIGNED, ids=lambda case: name_of(*case))
def test_stores_sixteen_bytes(table, case, target):
    row = table[name_of(*case)][target]
    assert 0 < row["wide stores"] == row["stores"]


if __name__ == "__main__":
    print(json.dumps(compile_all(), indent=1))
