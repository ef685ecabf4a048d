"""deconv and its gradients, interpreted kernels and plain torch, against the reference."""

from contextlib import AbstractContextManager
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from tests import kernel_tools as tools
from tests.op_tools import assert_accurate, worst

from fcnfast import reference  # isort: skip
from fcnfast.kernels import deconv, deconv_backward  # isort: skip
from fcnfast.kernels import grid as kernel_grid  # isort: skip
from fcnfast.tiled import deconv as tiled  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
FACTORS = {
    "forward": ("x", "weight"),
    "input_gradient": ("grad", "weight"),
    "weight_gradient": ("grad", "x"),
}
KINDS = pytest.mark.parametrize("kind", FACTORS)
# Values of a block, channels if not all, programs to aim at: results are made in few or many parts.
SHARES = [(2048, 32, 1), (2048, 32, 2048), (64, 2, 1), (64, 2, 2048)]


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
        if name == "weight":
            return self.batch[1], 1, self.kernel, self.kernel
        return (*self.batch, *(self.in_size if name == "x" else self.size))


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


def shared_out(share) -> AbstractContextManager[None]:
    constants = dict(zip(("TILE", "CHANNELS", "PROGRAMS"), share, strict=True))
    return tools.planned(deconv, deconv_backward, kernel_grid, **constants)


def run(implementation, kind, problem, factors):
    """The launcher of a kind, given two of x, weight and grad by name."""
    x, weight, grad = (factors.get(name) for name in ("x", "weight", "grad"))
    where = problem.stride, problem.start
    if kind == "forward":
        return implementation.forward(x, weight, *where, problem.size)
    if kind == "input_gradient":
        return implementation.input_gradient(grad, weight, *where, problem.in_size)
    return implementation.weight_gradient(grad, x, *where, problem.kernel, x.dtype)


def defined(kind, problem, factors):
    """What the reference gives, or autograd for it, in the dtype of the factors."""
    like = next(iter(factors.values()))
    x, weight = (
        factors.get(name, like.new_zeros(problem.shape(name))).clone().requires_grad_()
        for name in ("x", "weight")
    )
    result = reference.deconv(x, weight, problem.stride, 0, problem.start, problem.size)
    if kind == "forward":
        return result.detach()
    wanted = x if kind == "input_gradient" else weight
    return torch.autograd.grad(result, wanted, factors["grad"])[0]


def drawn(kind, problem, dtype, seed, special=None):
    """The two factors of a kind as float64; of one of them some are `special`.

    Not the weights: at an edge of the map, they meet zeros.
    """
    names = FACTORS[kind]
    where = names[seed % 2 if kind == "weight_gradient" else 0]
    return {
        name: tools.scores(problem.shape(name), dtype, seed + i, special if name == where else None)
        for i, name in enumerate(names)
    }


def assert_right(result, kind, problem, factors):
    """What is not finite reaches its readers only; elsewhere the error is that of plain torch.

    Of this the largest over hundreds of values, of channels like these.
    """
    factors = {name: value.cpu() for name, value in factors.items()}
    result, dtype = result.cpu(), factors[FACTORS[kind][0]].dtype
    ones = {name: torch.ones(value.shape).double() for name, value in factors.items()}
    finite = {name: value.isfinite().double() for name, value in factors.items()}
    reached = defined(kind, problem, finite) < defined(kind, problem, ones)
    assert torch.equal(result.isfinite(), ~reached)
    usual = {n: torch.where(value.isfinite(), value, 1.0) for n, value in factors.items()}

    (images, channels), times = problem.batch, max(2, 200 // result.numel())
    many = problem._replace(batch=(images, channels * (times + 1)))
    more = drawn(kind, problem._replace(batch=(images, channels * times)), dtype, 1)
    axes = {name: 0 if name == "weight" else 1 for name in factors}
    like = {n: torch.cat([v, more[n].to(dtype)], axes[n]) for n, v in usual.items()}
    torchs, truth = (
        defined(kind, many, {name: value.to(wide) for name, value in like.items()})
        for wide in (torch.promote_types(dtype, torch.float32), torch.float64)
    )
    error = worst(torchs.to(dtype), truth)
    truth = truth.narrow(0 if kind == "weight_gradient" else 1, 0, channels)
    assert_accurate(torch.where(reached, truth.to(dtype), result), truth, error, truth)


def laid(factors, dtype, layout, other_layout):
    pairs = zip(factors.items(), (layout, other_layout), strict=True)
    return {name: tools.laid_out(value, layout, dtype) for (name, value), layout in pairs}


@KINDS
@tools.examples(20)
@given(problems(), tools.forms, st.sampled_from(SHARES))
def test_kernels(kind, problem, form, share):
    dtype, layout, other_layout, special, seed = form
    factors = laid(drawn(kind, problem, dtype, seed, special), dtype, layout, other_layout)
    with tools.guarded(*factors.values()), shared_out(share):
        result = run(deconv, kind, problem, factors)
    assert_right(result, kind, problem, factors)
    if kind == "weight_gradient":
        return
    assert tools.is_format_kept(result, layout)
    if problem.batch[0] > 1:  # images stand alone, whatever the shares
        last = {n: v if n == "weight" else v[1:] for n, v in factors.items()}
        assert worst(run(deconv, kind, problem, last), result[1:].cpu()) == 0


@KINDS
@tools.examples(20)
@given(problems(), tools.forms, st.booleans(), st.sampled_from([64, 2**18]))
def test_plain_torch(kind, problem, form, double, elements):
    dtype, layout, _, special, seed = form
    dtype = torch.float64 if double else dtype
    # The weights' gradient adds products with the zeros around the window, too.
    special = None if kind == "weight_gradient" else special
    factors = laid(drawn(kind, problem, dtype, seed, special), dtype, layout, layout)
    factors = {name: value.cpu() for name, value in factors.items()}
    with mock.patch.multiple(tiled, TILE_ELEMENTS=elements, LEAST_STRIDE=2):
        result = run(tiled, kind, problem, factors)
    assert_right(result, kind, problem, factors)
    assert kind == "weight_gradient" or tools.is_format_kept(result, layout)


@KINDS
def test_several_strips_and_blocks(kind):
    problem = Problem((2, 2), (6, 22), 2, 4, (1, 1), (11, 42))
    dtype, layout = torch.float32, "contiguous"
    factors = laid(drawn(kind, problem, dtype, 0), dtype, layout, layout)
    with tools.guarded(*factors.values()), shared_out((32, 2, 2048)):
        result = run(deconv, kind, problem, factors)
    assert_right(result, kind, problem, factors)


@pytest.mark.parametrize("implementation", [deconv, tiled], ids=["kernel", "tiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_a_wider_filter_is_not_rounded(dtype, implementation):
    """A sum of 2**17 ones: too large for float16, and more than the eight bits of bfloat16."""
    x = torch.ones(1, 1, 2, 8, dtype=dtype, device=tools.DEVICE)
    grad = torch.full((1, 1, 4, 16), 2.0**13 + 64, dtype=dtype, device=tools.DEVICE)
    result = implementation.weight_gradient(grad, x, 2, (0, 0), 2, torch.float32)
    assert result.dtype == torch.float32
    assert torch.equal(result.cpu(), torch.full((1, 1, 2, 2), 16 * (2.0**13 + 64)))


@pytest.mark.parametrize("batch", [(0, 3), (2, 0)])
@pytest.mark.parametrize("implementation", [deconv, tiled])
def test_nothing(batch, implementation):
    problem = Problem(batch, (2, 3), 4, 8, (1, 2), (5, 6))
    factors = {
        n: torch.zeros(problem.shape(n), device=tools.DEVICE) for n in ("x", "weight", "grad")
    }
    for kind, name in zip(FACTORS, ("grad", "x", "weight"), strict=True):
        result = run(implementation, kind, problem, factors)
        assert result.shape == problem.shape(name)
        assert not result.any()
