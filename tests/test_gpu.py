"""The ops on a real GPU, through their public functions: run by bench/gpu_check.sh.

Only with TRITON_INTERPRET=0 in the environment: elsewhere Triton may be set to interpret.
"""

import os

import pytest
import torch

from bench.cases import CONTENTS, USUAL, WORST, Case, content
from bench.check import errors, tolerance
from bench.measure import call, peak_bytes, with_gradients
from bench.operations import OPERATIONS
from fcnfast import SamplingGrid, ops

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "0" or not torch.cuda.is_available(),
    reason="needs a GPU, and TRITON_INTERPRET=0",
)
GPU = torch.device("cuda")
CASES = (
    Case("even", 2, 5, (7, 33), 8),
    Case("one image", 1, 21, (16, 17), 2),
    Case("many classes", 1, 171, (9, 12), 4),
)
VOC = Case("VOC", 16, 21, (64, 64), 8)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
each_op = pytest.mark.parametrize("operation", OPERATIONS, ids=[o.title for o in OPERATIONS])


@pytest.fixture(autouse=True)
def own_stream():
    """Captures need another stream than the default; a backward pass keeps to its forward's."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield
    torch.cuda.synchronize()


def problem_of(operation, case, dtype, name=USUAL):
    problem = operation.problem(case, *content(name, case, dtype, GPU))
    return with_gradients(operation, problem) if operation.trainable else problem


def results(operation, problem):
    return call(operation.ours, problem, operation.trainable)


@each_op
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_right(operation, dtype, case):
    for name in CONTENTS if operation.result == "loss" else (USUAL, WORST):
        problem = problem_of(operation, case, dtype, name)
        found = errors(operation, problem, {"ours": results(operation, problem)})
        assert found["ours"] <= tolerance(dtype, ours=True)


@each_op
def test_bits_are_the_same_every_time_also_under_autocast(operation):
    problem = problem_of(operation, VOC, torch.float32)
    first = results(operation, problem)
    for mixed in (False, False, False, False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
            again = results(operation, problem)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@each_op
def test_nothing_waits_for_the_gpu(operation):
    problem = problem_of(operation, CASES[0], torch.float32)
    results(operation, problem)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(operation, problem)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_op
def test_a_cuda_graph_replays_on_new_values(operation):
    problem = problem_of(operation, CASES[0], torch.float32)
    for _ in range(3):
        results(operation, problem)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        replayed = results(operation, problem)
    with torch.no_grad():
        problem.maps[0].copy_(problem.maps[0].flip(-1).clone())
    graph.replay()
    torch.cuda.synchronize()
    wanted = results(operation, problem)
    assert all(torch.equal(a, b) for a, b in zip(replayed, wanted, strict=True))


@pytest.mark.parametrize("case", [VOC, Case("ADE20K", 16, 150, (128, 128), 4)], ids=str)
def test_the_loss_holds_little_memory(case):
    """At most 2.2 float32 copies of the coarse scores, its gradient included."""
    operation = next(o for o in OPERATIONS if o.result == "loss")
    problem = problem_of(operation, case, torch.float32)
    results(operation, problem)
    peak = peak_bytes(lambda: results(operation, problem), GPU)
    assert peak <= 2.2 * 4 * problem.maps[0].numel()


def test_more_than_2_to_the_31_outputs():
    """Twelve planes of 14336 x 14336: 2.5e9 values, in which the last plane is as the first."""
    if torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs 8 GiB of free memory")
    grid = SamplingGrid.resize((448, 448), scale_factor=32)
    plane = torch.randn(1, 1, 448, 448, device=GPU, dtype=torch.bfloat16)
    result = ops.upsample(plane.expand(1, 12, 448, 448), grid)
    assert result.numel() > 2**31
    assert torch.equal(result[:, 0], ops.upsample(plane, grid)[:, 0])
    assert torch.equal(result[:, 0], result[:, 11])


@each_op
def test_torch_compile_gives_the_same(operation):
    problem = problem_of(operation, CASES[0], torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(operation.ours, fullgraph=True)
    found = errors(operation, problem, {"ours": call(compiled, problem, operation.trainable)})
    assert found["ours"] <= tolerance(torch.float32, ours=True)
