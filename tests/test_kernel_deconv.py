"""deconv and its gradients, interpreted kernels and plain torch, against exact integers."""

from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.kernel_tools import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    assert_accurate,
    assert_stays_within,
    bits,
    giving,
    guarded,
    interpreter_only,
    is_format_kept,
    laid_out,
    only_programs,
    planned,
    reserved,
    scores,
    spread_out,
    whole,
    worst,
    written_once,
)

from fcnfast import reference  # isort: skip
from fcnfast.kernels import deconv, deconv_backward  # isort: skip
from fcnfast.kernels import grid as kernel_grid  # isort: skip
from fcnfast.tiled import deconv as tiled  # isort: skip

MODULES = deconv, deconv_backward
KINDS = "forward", "input_gradient", "weight_gradient"
layouts, dtypes = st.sampled_from(LAYOUTS), st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31)
# Values of a block, channels if not all, programs to aim at: results are made in few or many parts.
shares = st.sampled_from([(2048, 32, 1), (2048, 32, 2048), (64, 2, 1), (64, 2, 2048)])


class Problem(NamedTuple):
    """A deconv: N and C, the coarse map, stride, kernel, and what is kept of the full result."""

    batch: tuple[int, int]
    in_size: tuple[int, int]
    stride: int
    kernel: int
    start: tuple[int, int]
    size: tuple[int, int]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of "x", "weight" or "grad"."""
        weight = self.batch[1], 1, self.kernel, self.kernel
        return {
            "x": (*self.batch, *self.in_size),
            "weight": weight,
            "grad": (*self.batch, *self.size),
        }[name]


@st.composite
def problems(draw, most: int = 12) -> Problem:
    batch = draw(st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (5, 1)]))
    in_size = draw(st.tuples(st.integers(1, 3), st.integers(1, 5)))
    stride = draw(st.sampled_from((1, 2, 3, 4, 5)))
    usual = (2 * stride - stride % 2, 2 * stride - 1, stride)
    kernel = draw(st.one_of(st.sampled_from(usual), st.integers(1, 5 * stride + 1)))
    full = [(n - 1) * stride + kernel for n in in_size]
    start = tuple(draw(st.integers(0, f - 1)) for f in full)
    size = tuple(draw(st.integers(1, min(f - a, most))) for f, a in zip(full, start, strict=True))
    event(f"pairs of values along an axis: {min(kernel_grid.pairs_of(kernel, stride), 3)}")
    event(f"kernel a multiple of the stride: {kernel % stride == 0}")
    return Problem(batch, in_size, stride, kernel, start, size)


@contextmanager
def shared_out(share):
    tile, channels, programs = share
    with planned(*MODULES, kernel_grid, TILE=tile, PROGRAMS=programs, CHANNELS=channels):
        yield


def run(implementation, kind, problem, factors):
    """The launcher of one of KINDS, given x, weight and grad by name."""
    x, weight, grad = (factors.get(name) for name in ("x", "weight", "grad"))
    where = problem.stride, problem.start
    if kind == "forward":
        return implementation.forward(x, weight, *where, problem.size)
    if kind == "input_gradient":
        return implementation.input_gradient(grad, weight, *where, problem.in_size)
    return implementation.weight_gradient(grad, x, *where, problem.kernel, x.dtype)


FACTORS = {
    "forward": ("x", "weight"),
    "input_gradient": ("grad", "weight"),
    "weight_gradient": ("grad", "x"),
}


def definition(kind, problem, factors):
    """What the reference gives, or autograd for it."""
    like = next(iter(factors.values()))
    x, weight = (
        factors.get(name, torch.zeros(problem.shape(name), dtype=like.dtype)).clone()
        for name in ("x", "weight")
    )
    x, weight = x.requires_grad_(), weight.requires_grad_()
    result = reference.deconv(x, weight, problem.stride, 0, problem.start, problem.size)
    if kind == "forward":
        return result.detach()
    wanted = x if kind == "input_gradient" else weight
    return torch.autograd.grad(result, wanted, factors["grad"])[0]


def true(kind, problem, factors):
    """The sum of products that defines each, in integers where the dtype is float64."""
    exactly = next(iter(factors.values())).dtype == torch.float64
    arrays = {
        name: whole(value) if exactly else value.double().numpy() for name, value in factors.items()
    }
    zero = np.zeros((), dtype=object if exactly else np.float64)
    s, k, (top, left) = problem.stride, problem.kernel, problem.start
    full = np.full((*problem.batch, *((n - 1) * s + k for n in problem.in_size)), zero)
    window = full[..., top : top + problem.size[0], left : left + problem.size[1]]
    if "grad" in arrays:
        window[...] = arrays["grad"]
    x = arrays.get("x", np.full(problem.shape("x"), zero))
    weight = arrays.get("weight", np.full(problem.shape("weight"), zero))[:, 0]
    for i in range(problem.in_size[0]):
        for j in range(problem.in_size[1]):
            pixels = full[..., i * s : i * s + k, j * s : j * s + k]
            if kind == "forward":
                pixels += x[:, :, i, j, None, None] * weight
            elif kind == "input_gradient":
                x[:, :, i, j] = (pixels * weight).sum((2, 3))
            else:
                weight += (pixels * x[:, :, i, j, None, None]).sum(0)
    result = {"forward": window, "input_gradient": x, "weight_gradient": weight[:, None]}[kind]
    return torch.from_numpy(result.astype(np.float64))


def drawn(kind, problem, dtype, seed):
    """The two factors that the launcher takes, as float64."""
    names = FACTORS[kind]
    return {n: scores(problem.shape(n), dtype, seed + i) for i, n in enumerate(names)}


def check(result, kind, problem, factors, dtype):
    """The error is at most 1.25 times plain torch's, over hundreds of values, plus one ulp."""
    typed = {name: value.to(dtype) for name, value in factors.items()}

    def plain(factors):
        wide = torch.promote_types(dtype, torch.float32)
        return definition(kind, problem, {n: v.to(wide) for n, v in factors.items()}).to(dtype)

    truth = true(kind, problem, typed)
    more = (drawn(kind, problem, dtype, 2 * seed) for seed in range(max(2, 200 // result.numel())))
    torchs = max(
        worst(plain(other), true(kind, problem, {n: v.to(dtype) for n, v in other.items()}))
        for other in (factors, *more)
    )
    assert_accurate(result, truth, torchs, truth)


@settings(max_examples=36)
@given(problems(), st.sampled_from(KINDS), dtypes, layouts, layouts, shares, seeds)
def test_kernels(problem, kind, dtype, layout, other_layout, share, seed):
    factors = drawn(kind, problem, dtype, seed)
    first, second = FACTORS[kind]
    chosen = {
        first: laid_out(factors[first], layout, dtype),
        second: laid_out(factors[second], other_layout, dtype),
    }
    factors = {name: value.cpu().double() for name, value in chosen.items()}  # some are expanded
    with shared_out(share), guarded():
        result = run(deconv, kind, problem, chosen)
    check(result, kind, problem, factors, dtype)
    assert kind == "weight_gradient" or is_format_kept(result, layout)


@pytest.mark.parametrize("kind", KINDS)
def test_many_strips(kind):
    """Two images, each in several strips of rows and several blocks of columns."""
    problem = Problem((2, 2), (12, 40), 2, 4, (1, 1), (23, 78))
    factors = drawn(kind, problem, torch.float32, 0)
    chosen = {n: value.float().to(DEVICE) for n, value in factors.items()}
    with shared_out((64, 2, 2048)), guarded():
        result = run(deconv, kind, problem, chosen)
    check(result, kind, problem, factors, torch.float32)


@settings(max_examples=36)
@given(
    problems(),
    st.sampled_from(KINDS),
    st.sampled_from((*DTYPES, torch.float64)),
    layouts,
    st.sampled_from([64, 2**18]),
    seeds,
)
def test_plain_torch(problem, kind, dtype, layout, elements, seed):
    factors = drawn(kind, problem, dtype, seed)
    chosen = {n: laid_out(value, layout, dtype).cpu() for n, value in factors.items()}
    factors = {name: value.double() for name, value in chosen.items()}
    with mock.patch.multiple(tiled, TILE_ELEMENTS=elements, LEAST_STRIDE=2):
        result = run(tiled, kind, problem, chosen)
    check(result, kind, problem, factors, dtype)
    assert kind == "weight_gradient" or is_format_kept(result, layout)


@pytest.mark.parametrize("implementation", [deconv, tiled], ids=["kernel", "tiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_a_wider_filter_is_not_rounded(dtype, implementation):
    """A sum of 2**17 ones: too large for float16, and more than the eight bits of bfloat16."""
    x = torch.ones(1, 1, 2, 8, dtype=dtype, device=DEVICE)
    grad = torch.full((1, 1, 4, 16), 2.0**13 + 64, dtype=dtype, device=DEVICE)
    where = (2, (0, 0), 2, torch.float32)
    result = implementation.weight_gradient(grad, x, *where)
    assert result.dtype == torch.float32
    assert torch.equal(result.cpu(), torch.full((1, 1, 2, 2), 16 * (2.0**13 + 64)))


@settings(max_examples=6)
@given(problems(), dtypes, layouts, seeds)
def test_same_bits_in_any_run_and_batch(problem, dtype, layout, seed):
    problem = problem._replace(batch=(2, 2))
    for kind in KINDS:
        factors = drawn(kind, problem, dtype, seed)
        factors = {n: laid_out(value, layout, dtype) for n, value in factors.items()}
        first, second = (run(deconv, kind, problem, factors) for _ in range(2))
        assert torch.equal(bits(first), bits(second))
        if kind != "weight_gradient":
            last = {n: v if n == "weight" else v[1:] for n, v in factors.items()}
            with shared_out((2048, 32, 1)):  # the longest strips
                assert torch.equal(bits(first[1:]), bits(run(deconv, kind, problem, last)))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
@settings(max_examples=20)
@given(
    problems(),
    st.sampled_from(KINDS),
    layouts,
    shares,
    seeds,
    st.sampled_from([torch.nan, torch.inf, -torch.inf]),
)
def test_special_values_reach_their_readers_only(problem, kind, layout, share, seed, special):
    """Elsewhere the result is as if the value were another."""
    factors = {n: value.float() for n, value in drawn(kind, problem, torch.float32, seed).items()}
    name = FACTORS[kind][0 if kind != "weight_gradient" else seed % 2]
    if kind == "forward":
        name = "x"  # not the weights: at an edge of the map, they meet zeros
    drawn_marks = torch.rand(problem.shape(name), generator=torch.Generator().manual_seed(seed))
    factors[name] = torch.where(drawn_marks < 0.1, special, factors[name])
    factors = {n: laid_out(value, layout, torch.float32) for n, value in factors.items()}
    usual = factors | {name: torch.where(factors[name].isfinite(), factors[name], 1.0)}
    ones = {n: torch.ones(problem.shape(n), dtype=torch.float64) for n in factors}
    marks = factors[name].isfinite().logical_not().double().cpu()
    reached = true(kind, problem, ones | {name: marks}) > 0
    event(f"some special, some not: {0 < reached.sum() < reached.numel()}")
    with shared_out(share):
        result = run(deconv, kind, problem, factors).cpu()
        assert torch.equal(result.isfinite(), ~reached)
        assert torch.equal(result[~reached], run(deconv, kind, problem, usual).cpu()[~reached])
    if kind != "weight_gradient":  # whose products have the zeros around the window, too
        result = run(tiled, kind, problem, {n: value.cpu() for n, value in factors.items()})
        assert torch.equal(result.isfinite(), ~reached)


@pytest.mark.parametrize(
    ("kernel", "stride"), [(1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (2, 3), (3, 3), (4, 3), (7, 3)]
)
def test_an_infinity_reaches_its_readers_alone(kernel, stride):
    """Whatever kernels and strides have in common: taps beyond a kernel, or a map, meet nothing."""
    problem = Problem((1, 2), (2, 3), stride, kernel, (0, 0), (1, 1))
    problem = problem._replace(size=tuple((n - 1) * stride + kernel for n in problem.in_size))
    for kind in KINDS:
        name = FACTORS[kind][0]
        ones = {n: torch.ones(problem.shape(n)) for n in FACTORS[kind]}
        height, width = ones[name].shape[2:]
        last = range(max(0, width - stride), width)  # one for each phase of the stride
        for row, column in ((0, 0), (height - 1, 0), *((height - 1, column) for column in last)):
            x = ones[name].clone()
            x[..., row, column] = torch.inf
            marks = {n: value.double() for n, value in ones.items()}
            marks[name] = x.isinf().double()
            reached = true(kind, problem, marks) > 0
            factors = {n: value.to(DEVICE) for n, value in (ones | {name: x}).items()}
            result = run(deconv, kind, problem, factors).cpu()
            assert torch.equal(result.isinf(), reached), kind
            assert not result.isnan().any(), kind


@interpreter_only
@settings(max_examples=10)
@given(problems(), st.sampled_from(KINDS[:2]), layouts, shares, seeds)
def test_writes_each_value_once(problem, kind, layout, share, seed):
    dtype = torch.float32
    factors = {
        n: laid_out(value, layout, dtype) for n, value in drawn(kind, problem, dtype, seed).items()
    }
    results = []
    with shared_out(share), written_once(results, again=True):
        results.append(run(deconv, kind, problem, factors))


@interpreter_only
@settings(max_examples=10)
@given(problems(), st.sampled_from(KINDS), layouts, shares, seeds)
def test_reads_and_writes_only_its_tensors(problem, kind, layout, share, seed):
    dtype = torch.float32
    factors = {
        n: laid_out(value, layout, dtype) for n, value in drawn(kind, problem, dtype, seed).items()
    }
    if "weight" in factors:
        factors["weight"] = factors["weight"].contiguous()
    with shared_out(share):
        assert_stays_within(lambda: run(deconv, kind, problem, factors), *factors.values())


@interpreter_only
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["channels_last", "channels_last sliced"])
@pytest.mark.parametrize("channels", [3, 5])
def test_groups_that_do_not_divide_the_channels(channels, layout, kind):
    """A program that takes the last channels of a group reads no others."""
    problem = Problem((2, channels), (3, 4), 2, 4, (1, 1), (6, 8))
    factors = drawn(kind, problem, torch.float32, 0)
    factors = {n: laid_out(value, layout, torch.float32) for n, value in factors.items()}
    if "weight" in factors:
        factors["weight"] = factors["weight"].contiguous()
    with shared_out((64, 2, 1)):
        assert_stays_within(lambda: run(deconv, kind, problem, factors), *factors.values())


@pytest.mark.parametrize("batch", [(0, 3), (2, 0)])
@pytest.mark.parametrize("implementation", [deconv, tiled])
def test_nothing(batch, implementation):
    problem = Problem(batch, (2, 3), 4, 8, (1, 2), (5, 6))
    factors = {n: torch.zeros(problem.shape(n), device=DEVICE) for n in ("x", "weight", "grad")}
    for kind, name in zip(KINDS, ("grad", "x", "weight"), strict=True):
        result = run(implementation, kind, problem, factors)
        assert result.shape == problem.shape(name)
        assert not result.any()


@interpreter_only
def test_inputs_beyond_int32():
    problem = Problem((3, 3), (3, 3), 2, 4, (1, 2), (3, 3))
    for kind in KINDS:
        values = {n: v.bfloat16() for n, v in drawn(kind, problem, torch.bfloat16, 0).items()}
        far = {n: v if n == "weight" else spread_out(v, torch.bfloat16) for n, v in values.items()}
        with only_programs(range):
            result = run(deconv, kind, problem, far)
        assert torch.equal(result, run(deconv, kind, problem, values))


@interpreter_only
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["forward", "input_gradient"])
def test_maps_beyond_int32(kind, channels_last):
    """The last program on maps of more than 2**31 elements: only their end is set."""
    problem = Problem((1, 2**13 + 9), (256, 256), 2, 4, (2, 1), (512, 512))

    def reserved_map(name):
        _, channels, height, width = problem.shape(name)
        flat = reserved(channels * height * width, torch.float16)
        if channels_last:
            return flat.view(1, height, width, channels).permute(0, 3, 1, 2)
        return flat.view(1, channels, height, width)

    x, grad = reserved_map("x"), reserved_map("grad")
    given, out = (x, grad) if kind == "forward" else (grad, x)
    weight = torch.arange(9.0).view(9, 1, 1, 1).add(1).expand(9, 1, 4, 4).half()
    weights = torch.zeros(problem.shape("weight"), dtype=torch.float16)
    weights[-9:] = weight
    given[:, -9:, -4:, -4:] = 1
    factors = {"x": given, "grad": given, "weight": weights}
    small = Problem((1, 9), (8, 8), 2, 4, (2, 1), (16, 16))
    near = torch.zeros(small.shape("x" if kind == "forward" else "grad"))
    near[..., -4:, -4:] = 1
    expected = run(tiled, kind, small, {"x": near, "grad": near, "weight": weight.float()}).half()
    with giving(out), only_programs(lambda count: [0, count - 1]):
        run(deconv, kind, problem, factors)
    seen = slice(-9 if channels_last else -1, None)  # channels that the last program makes
    assert torch.equal(out[:, seen, -1, -1], expected[:, seen, -1, -1])
    assert expected[:, seen, -1, -1].all()
    assert not out[:, problem.batch[1] // 2].any()
