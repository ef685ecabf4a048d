"""What the static gate records of a launch, and what makes a kernel another one."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")  # as the kernels' own tests need it, before Triton

pytest.importorskip("triton", reason="no Triton for this platform")

from bench import launches

# The decorator would make interpreted functions here.
SOURCE = """\
import triton.language as tl
from triton.runtime.jit import JITFunction

FACTOR = tl.constexpr(2)

def jit(**options):
    return lambda function: JITFunction(function, **options)

@jit()
def helper(x):
    return x * FACTOR

@jit()
def unused(x):
    return x + 1

@jit(do_not_specialize=["size"])
def kernel(x_ptr, size, stride, more, BLOCK: tl.constexpr):
    tl.store(x_ptr, helper(size) + stride)
"""


def module_of(tmp_path: Path, source: str = SOURCE):
    path = tmp_path / "kernels_of_a_test.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kernel(tmp_path):
    return module_of(tmp_path).kernel


def launch(kernel, x=None, size=5, stride=7, more=None, **options):
    x = torch.empty(64, device="meta") if x is None else x
    (found,) = launches.record(lambda: kernel[(1,)](x, size, stride, more=more, BLOCK=8, **options))
    return found


def test_a_launch_is_recorded_by_name(kernel) -> None:
    found = launch(kernel, num_warps=2)
    assert found.kernel is kernel and found.options == {"num_warps": 2} and found.threads == 64
    assert list(found.arguments) == ["x_ptr", "size", "stride", "more", "BLOCK"]
    assert found.arguments["BLOCK"] == 8
    assert launch(kernel).threads == 128  # Triton's default: four warps


@pytest.mark.parametrize(
    ("values", "signature", "constants", "divisible"),
    [
        ({}, ("*fp32", "i32", "i32", "constexpr"), {"more": None}, ["x_ptr"]),
        ({"stride": 1}, ("*fp32", "i32", "constexpr", "constexpr"), {"stride": 1}, ["x_ptr"]),
        ({"size": 1}, ("*fp32", "i32", "i32", "constexpr"), {}, ["x_ptr"]),
        ({"size": 16, "stride": 16}, ("*fp32", "i32", "i32", "constexpr"), {}, ["x_ptr", "stride"]),
        ({"stride": 2**40 + 1}, ("*fp32", "i32", "i64", "constexpr"), {}, ["x_ptr"]),
        ({"stride": -(2**31)}, ("*fp32", "i32", "i32", "constexpr"), {}, ["x_ptr", "stride"]),
        ({"more": True}, ("*fp32", "i32", "i32", "u1"), {}, ["x_ptr"]),
        ({"more": 0.5}, ("*fp32", "i32", "i32", "fp32"), {}, ["x_ptr"]),
    ],
)
def test_a_launch_is_specialized_as_on_a_device(
    kernel, values, signature, constants, divisible
) -> None:
    found = launch(kernel, **values)
    types, fixed, attributes = launches.specialized(found, amd=False)
    assert tuple(types.values()) == (*signature, "constexpr")
    assert fixed.items() >= {**constants, "BLOCK": 8}.items()
    names = list(found.arguments)
    assert [names[place] for (place,) in attributes] == divisible


def test_pointers(kernel) -> None:
    whole = torch.empty(64, dtype=torch.bfloat16, device="meta")
    for x, facts in ((whole[8:], [["tt.divisibility", 16]]), (whole[1:], None)):
        types, _, attributes = launches.specialized(launch(kernel, x), amd=False)
        assert types["x_ptr"] == "*bf16" and attributes.get((0,)) == facts
    small, large = torch.empty(64, device="meta"), torch.empty(2**29, device="meta")
    for x, buffers in ((small, True), (large, False)):
        _, _, attributes = launches.specialized(launch(kernel, x), amd=True)
        assert (["tt.pointer_range", 32] in attributes[(0,)]) is buffers


def test_unknown_arguments_are_named(kernel) -> None:
    with pytest.raises(TypeError, match="kernel: stride is a str"):
        launches.specialized(launch(kernel, stride="far"), amd=False)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("x + 1", "x + 2", True),  # a function that the kernel does not call
        ("x * FACTOR", "x + FACTOR", False),
        ("constexpr(2)", "constexpr(3)", False),
        ("+ stride)", "- stride)", False),
        ('["size"]', '["stride"]', False),
    ],
)
def test_a_fingerprint_is_of_all_that_a_kernel_calls(tmp_path, old, new, same) -> None:
    def mark(source: str) -> str:
        return launches.fingerprint(launch(module_of(tmp_path, source).kernel), "sm_90", ())

    assert (mark(SOURCE) == mark(SOURCE.replace(old, new))) is same


def test_a_fingerprint_is_of_the_launch_and_the_target(kernel) -> None:
    def mark(target="sm_90", work=(), **values):
        return launches.fingerprint(launch(kernel, **values), target, work)

    others = (
        mark("sm_100"),
        mark("gfx942"),
        mark(work=("output", {"kernel: for": 8})),
        mark(stride=1),
        mark(num_warps=8),
        mark(x=torch.empty(64, dtype=torch.bfloat16, device="meta")),
    )
    assert len({mark(), *others}) == 1 + len(others) and mark() == mark(size=6)
