"""torch.func and autograd over the ops: batches, derivatives of derivatives, checkpoints."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functionalize, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid
from tests.op_tools import grids

DOUBLE = torch.float64
GRID = SamplingGrid.resize((3, 4), (7, 6))
TARGET = (torch.arange(2 * 7 * 6) % 3).view(2, 7, 6)


def one_by_one(function, in_dims, *args):
    """What vmap promises: the function of every entry, stacked."""
    batch = next(a.shape[d] for a, d in zip(args, in_dims, strict=True) if d is not None)
    results = [
        function(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
        for i in range(batch)
    ]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return torch.stack(results)


def assert_mapped(function, in_dims, *args):
    torch.testing.assert_close(
        vmap(function, in_dims)(*args), one_by_one(function, in_dims, *args), rtol=0, atol=0
    )


def batched(shape, dim, batch=3):
    """A tensor of `shape` with a dimension of `batch` entries at `dim` (None: without it)."""
    generator = torch.Generator().manual_seed(sum(shape))
    shape = list(shape)
    if dim is not None:
        shape.insert(dim, batch)
    return torch.randn(shape, generator=generator, dtype=DOUBLE)


def leaf(*shape):
    return batched(shape, None).requires_grad_()


LINEAR = {
    "upsample": (lambda x: ops.upsample(x, GRID), [(2, 3, 3, 4)]),
    "crop_add": (lambda x, s: ops.crop_add(x, s, (1, 2)), [(2, 3, 3, 4), (2, 3, 5, 6)]),
    "upsample_crop_add": (
        lambda x, s: ops.upsample_crop_add(x, s, GRID, (1, 0)),
        [(2, 3, 3, 4), (2, 3, 8, 6)],
    ),
    "deconv": (lambda x, w: ops.deconv(x, w, 2, 1, (1, 0)), [(2, 3, 3, 4), (3, 1, 4, 4)]),
}


def loss(x, target=TARGET, reduction="mean"):
    return ops.upsample_cross_entropy(x, target, GRID, reduction=reduction)


@pytest.mark.parametrize("rule", [(0, 1), (1, None), (None, 0), (2, 3)])
@pytest.mark.parametrize("name", LINEAR)
def test_vmap_of_linear_ops_and_of_their_gradients(name, rule):
    function, shapes = LINEAR[name]
    in_dims = rule[: len(shapes)]
    if in_dims == (None,):
        in_dims = (4,)
    args = [batched(shape, dim) for shape, dim in zip(shapes, in_dims, strict=True)]
    assert_mapped(function, in_dims, *args)
    gradient = grad(lambda *a: function(*a).square().sum(), argnums=tuple(range(len(args))))
    assert_mapped(gradient, in_dims, *args)


def test_vmap_of_the_argmax():
    for labels in (
        lambda x: ops.upsample_argmax(x, GRID),
        lambda x: ops.upsample_argmax(x, GRID, confidence=True),
    ):
        assert_mapped(labels, (2,), batched((2, 3, 3, 4), 2))
        assert_mapped(vmap(labels), (0,), batched((4, 2, 3, 3, 4), 0))


@pytest.mark.parametrize("reduction", ["mean", "sum", "batch", "none"])
@pytest.mark.parametrize("in_dims", [(0, 0), (1, None), (None, 1)])
def test_vmap_of_the_loss_and_its_gradient(reduction, in_dims):
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE)

    def loss(x, target):
        return ops.upsample_cross_entropy(x, target, GRID, weight=weight, reduction=reduction)

    x = batched((2, 3, 3, 4), in_dims[0])
    target = batched((2, 7, 6), in_dims[1]).mul(9).long() % 3
    assert_mapped(loss, in_dims, x, target)
    gradient = grad(lambda x, t: loss(x, t).sum())
    assert_mapped(gradient, in_dims, x, target)
    whole = grad(lambda x: vmap(loss, in_dims)(x, target).sum())(x)
    each = vmap(gradient, in_dims, out_dims=0 if in_dims[0] is None else in_dims[0])(x, target)
    each = each.sum(0) if in_dims[0] is None else each
    torch.testing.assert_close(whole, each, rtol=0, atol=1e-12)


def test_vmap_of_the_confusion_matrix():
    x, target = batched((2, 3, 3, 4), 0), batched((2, 7, 6), 0).mul(9).long() % 3

    def counts(x, target):
        return ops.upsample_confusion(x, target, GRID)

    assert_mapped(counts, (0, 0), x, target)
    shared = torch.zeros(3, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="an out for each entry"):
        vmap(lambda x, t: ops.upsample_confusion(x, t, GRID, out=shared))(x, target)
    assert not shared.any()
    with pytest.raises(ValueError, match="out of range"):
        vmap(counts)(x, target + 1)


@settings(max_examples=10)
@given(st.data(), grids(most=5))
def test_linear_ops_are_differentiable_twice(data, grid):
    offset = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    skip = leaf(1, 2, *(n + o for n, o in zip(grid.size, offset, strict=True)))
    x = leaf(1, 2, *grid.in_size)
    for function, inputs in (
        (lambda x: ops.upsample(x, grid), (x,)),
        (lambda x, skip: ops.upsample_crop_add(x, skip, grid, offset), (x, skip)),
        (lambda x, skip: ops.crop_add(x, skip, offset), (leaf(1, 2, *grid.size), skip)),
    ):
        assert gradcheck(function, inputs, fast_mode=True, check_batched_grad=True)
        assert gradgradcheck(function, inputs, fast_mode=True)


@settings(max_examples=15)
@given(st.data())
def test_deconv_is_differentiable_twice(data):
    stride, kernel = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    in_size = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    full = [(n - 1) * stride + kernel for n in in_size]
    crop = tuple(data.draw(st.integers(0, f - 1)) for f in full)
    size = tuple(data.draw(st.integers(1, f - c)) for f, c in zip(full, crop, strict=True))
    inputs = leaf(2, 2, *in_size), leaf(2, 1, kernel, kernel)

    def function(x, weight):
        return ops.deconv(x, weight, stride, 0, crop, size)

    result, truth = function(*inputs), reference.deconv(*inputs, stride, 0, crop, size)
    torch.testing.assert_close(result, truth, rtol=0, atol=1e-12)
    assert gradcheck(function, inputs, fast_mode=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("wanted", range(3))
def test_only_the_gradients_that_are_wanted_are_made(wanted):
    inputs = [batched(s, None) for s in ((1, 3, 4, 5), (3, 1, 4, 4), (1, 3, 9, 9))]
    inputs[wanted].requires_grad_()
    x, weight, skip = inputs
    grid = SamplingGrid.deconv((4, 5), 2, size=(8, 8))
    up = ops.deconv(x, weight, 2, size=(8, 8))
    out = ops.crop_add(up, skip, 1) + ops.upsample_crop_add(x, skip, grid, 0)
    out.square().sum().backward()
    assert [a.grad is not None for a in inputs] == [i == wanted for i in range(3)]


CHECKPOINTED = LINEAR | {
    "loss": (loss, [(2, 3, 3, 4)]),
    "loss of each pixel": (lambda x: loss(x, reduction="none"), [(2, 3, 3, 4)]),
}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_within_an_activation_checkpoint(name, reentrant):
    function, shapes = CHECKPOINTED[name]
    gradients = []
    for run in (function, lambda *a: checkpoint(function, *a, use_reentrant=reentrant)):
        leaves = [leaf(*shape) for shape in shapes]
        run(*leaves).square().sum().backward()
        gradients.append([a.grad for a in leaves])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_vmap_of_nothing_is_nothing():
    for function, shapes in LINEAR.values():
        one = function(*(torch.zeros(shape) for shape in shapes))
        nothing = vmap(function)(*(torch.empty(0, *shape) for shape in shapes))
        assert nothing.shape == (0, *one.shape)
    x, target = torch.empty(0, 2, 3, 3, 4), torch.zeros(0, 2, 7, 6, dtype=torch.long)
    assert vmap(loss)(x, target).shape == (0,)
    found = vmap(lambda x: ops.upsample_argmax(x, GRID))(x)
    assert (found.shape, found.dtype) == ((0, 2, 7, 6), torch.uint8)


def test_forward_mode_is_refused_by_name():
    x, weight = batched((2, 3, 3, 4), None), batched((3, 1, 4, 4), None)
    for function in (
        loss,
        lambda x: ops.deconv(x, weight, 2),
        lambda x: ops.upsample(x, GRID),
        lambda x: ops.upsample_crop_add(x, x, GRID, 0),
    ):
        refused = pytest.raises(RuntimeError, match="no forward-mode derivative")
        with refused:
            jvp(function, (x,), (x,))
        with forward_ad.dual_level(), refused:
            function(forward_ad.make_dual(x, x))
    labels, change = jvp(lambda x: ops.upsample_argmax(x, GRID).double(), (x,), (x,))
    assert torch.equal(labels, ops.upsample_argmax(x, GRID).double())
    assert not change.any()


def test_functionalize_leaves_nothing_behind():
    """What torch wraps while it traces must not get into the caches of a grid."""
    grid = SamplingGrid.resize((3, 4), (8, 9))  # of this test alone
    x, target = batched((1, 3, 3, 4), None), torch.zeros(1, 8, 9, dtype=torch.long)
    ops.upsample_confusion(x, torch.zeros(1, 7, 6, dtype=torch.long), GRID)  # what is ordinary
    with pytest.raises(RuntimeError, match="alias annotations"):  # torch's own limit
        functionalize(lambda x: ops.upsample_confusion(x, target, grid))(x)
    expected = reference.upsample(x, grid)
    torch.testing.assert_close(ops.upsample(x, grid), expected)
    assert torch.equal(ops.upsample_argmax(x, grid).long(), expected.argmax(1))
    assert ops.upsample_confusion(x, target, grid).sum() == target.numel()
