"""Lazy logits: the fused calls, and that everything else is what torch gives."""

import copy
import io
import pickle
import re
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import fcnfast
from fcnfast import SamplingGrid, UpsampledLogits, fuse, fuse_report, lazy, lazy_logits, unfuse

SIZES = st.integers(1, 7)
TARGET = torch.zeros(2, 8, 8, dtype=torch.long)


def lazily(x, *args, **options):
    with lazy_logits():
        return F.interpolate(x, *args, **{"mode": "bilinear", **options})


def random_scores(shape=(2, 5, 4, 6), dtype=torch.float32, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad)


@st.composite
def resizes(draw):
    """Scores, and the arguments of a resize of them."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), SIZES, SIZES))
    x = random_scores(shape, draw(st.sampled_from([torch.float32, torch.float64])))
    if draw(st.booleans()):
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    options = {"align_corners": draw(st.sampled_from([None, False, True]))}
    kind = draw(st.sampled_from(["size", "int", "factor", "factors", "recomputed"]))
    if kind == "size":
        options["size"] = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    elif kind == "int":
        options["size"] = draw(st.integers(1, 20))
    else:
        factors = draw(st.tuples(*[st.sampled_from([1, 1.5, 2, 2.7, 4])] * 2))
        options["scale_factor"] = factors if kind == "factors" else factors[0]
        options["recompute_scale_factor"] = True if kind == "recomputed" else None
    return x, options


@given(resizes())
def test_it_says_of_itself_what_the_real_tensor_says(case):
    x, options = case
    y, z = lazily(x, **options), F.interpolate(x, mode="bilinear", **options)
    assert isinstance(y, UpsampledLogits) and isinstance(y, torch.Tensor)

    def said(t):
        methods = "size dim numel is_contiguous is_floating_point element_size __len__"
        names = "shape dtype device ndim requires_grad layout nbytes"
        strides = [step for step, n in zip(t.stride(), t.shape, strict=True) if n > 1]
        said = [getattr(t, name)() for name in methods.split()]
        return [*said, *(getattr(t, name) for name in names.split()), strides]

    assert said(y) == said(z)
    for new in (y.new_zeros(2), y.new_ones((1, 2)), y.new_full((1,), 3), y.new_tensor([1, 2])):
        assert type(new) is torch.Tensor and new.dtype == y.dtype and not new.requires_grad
    assert y.is_lazy and y.scores is x and y.grid.in_size == x.shape[2:]
    assert torch.equal(y.materialize(), z)
    assert not y.is_lazy and y.scores is None and y.grid is None
    assert said(y) == said(z)


def in_place(x):
    y = x * 1
    y[x > 0] = 2
    return x.mul_(3), x, y


def views(x):
    first = x[0]
    flat = x.view(-1) if x.is_contiguous() else x.reshape(-1)
    return first.exp(), flat * 2, x.permute(0, 2, 3, 1), x[..., 0], x[:, 0], x[None], x[-1:]


def copies(x):
    file = io.BytesIO()
    torch.save({"logits": x}, file)
    file.seek(0)
    return torch.load(file)["logits"], pickle.loads(pickle.dumps(x)), copy.deepcopy(x)


# Expressions of a tensor x.
EXPRESSIONS = """
    x + 1 | 1.5 + x | torch.add(input=x, other=x, alpha=2) | x**2 | -x | torch.abs(x)
    x @ x.transpose(2, 3) | torch.maximum(x, x.flip(0)) | torch.einsum("nchw,nchw->n", x, x)
    x.aminmax() | x.argmax() | x.argmax(-1) | x.argmin(1) | x.argsort(1) | x.min(1) | x.max()
    x.max(1).values | x[0].max(0, keepdim=True) | x.topk(1, 1)[0] | x.cumsum(1) | x.logsumexp(1)
    x.std() | x.norm() | x.mean((2, 3)) | (x.softmax(1), torch.softmax(x, dim=-1), F.softmax(x, 1))
    x.softmax(1).max(1) | -(x.softmax(1) * x.log_softmax(1)).sum(1) | nn.Softmax(dim=2)(x)
    F.kl_div(x.log_softmax(1), x.softmax(1), reduction="sum") | F.mse_loss(x, torch.zeros_like(x))
    F.conv2d(x, torch.ones(2, x.shape[1], 1, 1, dtype=x.dtype)) | F.layer_norm(x, x.shape[2:])
    F.relu(x, inplace=True) | F.dropout(x, 0.5, training=False) | F.max_pool2d(x, 1)
    F.pad(input=x, pad=(1, 1)) | F.interpolate(x, scale_factor=2, mode="nearest")
    torch.cat([x, x.detach(), x], 1) | torch.cat(tensors=(x, *[t[None] for t in x]), dim=0)
    torch.stack(list({"a": x, "b": x * 2}.values())) | [t.sum(0) for t in x] | x.chunk(2, 0)
    torch.split(x, 1, dim=1) | x[:1].expand_as(x) | x.flatten(2).transpose(1, 2)
    x[torch.zeros(1, dtype=torch.long)] | x[x > 0] | x.masked_fill(x < 0, 0.0) | views(x)
    x.gather(1, torch.zeros_like(x[:, :1], dtype=torch.long)) | x.detach().nonzero() | in_place(x)
    torch.where(condition=x > 0, input=x, other=torch.zeros_like(x)) | torch.flip(x, [3])
    (x == x, x < 0, torch.equal(x, x), torch.allclose(x, x)) | (x > 0).any() | torch.zeros_like(x)
    (torch.sigmoid(x) > 0.5).sum() | bool((x.sum() * 0 == 0).all()) | x.clone() | x.clamp(min=0)
    x.flatten()[0].item() in x | x.sum().item() | x.tolist()
    x.half() | x.float().double() | x.to(torch.float64).to("cpu").cpu() | x.type(torch.float64)
    torch.as_tensor(x.detach().numpy() + 1) | torch.as_tensor(np.asarray(x.detach()))
    torch.tensor(x.detach()) | torch.exp(x.detach(), out=torch.empty_like(x))
    repr(x.detach()) | str(x.detach())
    (x[:1].squeeze(0) * 1, x.squeeze() * 1) | f"{x.sum():.3f}" | x.data_ptr() != 0 | {x: 1}[x]
    copies(x.detach()) | [type(t) for t in copies(x.detach())] | torch.from_dlpack(x.detach())
    torch.equal(nn.Parameter(x.detach() * 1), x)
"""
FUNCTIONS = [text.strip() for text in re.split(r"[|\n]", EXPRESSIONS) if text.strip()]
if torch.__version__ < "2.8":  # no derivative there
    FUNCTIONS.remove("x.aminmax()")


def leaves(value):
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


@pytest.mark.parametrize("expression", FUNCTIONS)
@settings(max_examples=4)
@given(resizes(), st.booleans())
def test_other_functions_give_what_torch_gives(expression, case, inside):
    """Results, their types and the gradient, with a lazy tensor and with a real one."""
    (x, options), results = case, []
    for make in (lazily, F.interpolate):
        with lazy_logits() if inside and make is lazily else torch.enable_grad():
            made = make(x, mode="bilinear", **options)
            found = leaves(eval(expression, globals(), {"x": made, "np": np}))
        total = sum(t.double().sum() for t in found if isinstance(t, torch.Tensor))
        gradient = None
        if isinstance(total, torch.Tensor) and total.requires_grad:
            (gradient,) = torch.autograd.grad(total, x)
        results.append((found, gradient))
    (ours, our_gradient), (theirs, their_gradient) = results
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, torch.Tensor):
            assert (a.dtype, a.shape, a.requires_grad) == (b.dtype, b.shape, b.requires_grad)
            a, b = (torch.stack([t.detach()])[0] for t in (a, b))
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b or (a != a and b != b)
    assert (our_gradient is None) == (their_gradient is None)
    if our_gradient is not None:
        torch.testing.assert_close(our_gradient, their_gradient, equal_nan=True)


CRITERIA = {
    "reduction": st.sampled_from(["mean", "sum", "none"]),
    "ignore_index": st.sampled_from([-100, 1, 255]),
    "label_smoothing": st.sampled_from([0.0, 0.2, 1.0]),
}


@given(resizes(), st.fixed_dictionaries(CRITERIA), st.booleans(), st.integers(0, 99))
def test_the_loss(case, criterion, weighted, seed):
    x, options = case
    x = x.detach().double().requires_grad_()
    y, z = lazily(x, **options), F.interpolate(x, mode="bilinear", **options)
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, x.shape[1], (len(x), *z.shape[2:]), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = criterion["ignore_index"]
    weight = torch.rand(x.shape[1], generator=generator).double() + 0.1 if weighted else None
    ours, theirs = (nn.CrossEntropyLoss(weight, **criterion)(t, target) for t in (y, z))
    assert y.is_lazy and ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    if theirs.isfinite().all():
        gradients = [torch.autograd.grad(loss.sum(), x)[0] for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients)
    if criterion.pop("label_smoothing") == 0.0:
        again = F.nll_loss(F.log_softmax(y, 1), target, weight, **criterion)
        torch.testing.assert_close(again, ours, equal_nan=True)
        assert y.is_lazy


@settings(max_examples=20)
@given(resizes(), st.booleans())
def test_labels(case, keepdim):
    x, options = case
    x = x.double()
    y, z = lazily(x, **options), F.interpolate(x, mode="bilinear", **options)
    wanted = z.argmax(1, keepdim)
    top = z.topk(min(2, z.shape[1]), 1).values
    clear = (top[:, :1] - top[:, -1:] > 1e-9) | (z.shape[1] == 1)
    clear = clear if keepdim else clear.squeeze(1)

    def same(found):
        assert found.dtype == torch.int64 and found.shape == wanted.shape
        return bool(((found == wanted) | ~clear).all())

    for found in (
        y.argmax(1, keepdim),
        torch.argmax(input=y, dim=-3, keepdim=keepdim),
        y.max(1, keepdim).indices,
        torch.max(y, dim=1, keepdim=keepdim)[1],
        y.softmax(1).argmax(1, keepdim),
        F.log_softmax(y, dim=1).max(1, keepdim)[1],
        y.detach().softmax(1).max(1, keepdim).indices,
        torch.stack([image.argmax(0, keepdim) for image in y]),
        torch.cat([y[n : n + 1].argmax(1, keepdim) for n in range(len(y))]),
        torch.stack([y[n].unsqueeze(0)[0].argmax(-3, keepdim) for n in range(len(y))]),
        torch.stack([y[n - len(y)].argmax(0, keepdim) for n in range(len(y))]),
    ):
        assert same(found)
    assert y.topk(1, 1).indices.shape == z.topk(1, 1).indices.shape
    assert y.is_lazy
    share, labels = y.detach().softmax(1).max(1, keepdim)
    torch.testing.assert_close(share * 1, z.softmax(1).max(1, keepdim).values)
    assert same(labels) and y.is_lazy


def test_labels_of_what_is_not_finite():
    x = random_scores((1, 3, 4, 4), grad=False)
    x[0, 2, 1, 1], x[0, 1, 3, 3], x[0, :, 0, 3] = float("nan"), float("inf"), -float("inf")
    y = lazily(x, size=8)
    z = fcnfast.ops.upsample(x, y.grid)  # unlike torch, it does not read a tap of weight 0
    assert torch.equal(y.argmax(1), z.argmax(1))
    assert torch.equal(y.softmax(1).argmax(1), z.softmax(1).argmax(1))
    share = y.softmax(1).max(1).values
    torch.testing.assert_close(share * 1, z.softmax(1).max(1).values, equal_nan=True)
    assert y.is_lazy
    ties = torch.ones(1, 3, 2, 2)
    assert not lazily(ties, size=5).argmax(1).any()


def test_losses_that_need_the_real_tensor():
    x, t = random_scores((2, 5, 3, 3)), torch.randint(0, 5, (2, 5, 7))
    shares = F.one_hot(t, 5).permute(0, 3, 1, 2).float()
    for loss in (
        lambda y: F.cross_entropy(y, shares),
        lambda y: F.cross_entropy(y, t, reduce=False),
        lambda y: F.cross_entropy(y, t, size_average=False),
        lambda y: F.cross_entropy(y, lazily(random_scores(), size=y.shape[2:])),
        lambda y: F.cross_entropy(y[0], t[0]),
        lambda y: F.binary_cross_entropy_with_logits(y, shares),
    ):
        y, z = lazily(x, size=(5, 7)), F.interpolate(x, size=(5, 7), mode="bilinear")
        assert torch.equal(loss(y), loss(z)) and not y.is_lazy


def test_wrong_targets_fail_as_in_torch():
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    with_gradient = torch.ones(5).requires_grad_()
    for target, options, error, message in (
        (labels.int(), {}, RuntimeError, ""),
        (labels[:, 1:], {}, (RuntimeError, ValueError), ""),
        (labels.float(), {}, RuntimeError, ""),
        (labels, {"reduction": "batch"}, ValueError, "not a valid value for reduction"),
        (labels, {"weight": torch.ones(5).double()}, RuntimeError, "expected scalar type|weight"),
        (labels, {"weight": with_gradient}, RuntimeError, "not differentiable .*'weight'"),
        (labels + 7, {}, ValueError, "holds 7"),
    ):
        with pytest.raises(error, match=message):
            F.cross_entropy(lazily(random_scores(), size=8), target, **options)


def test_half_precision_and_autocast(monkeypatch):
    x, target = random_scores(dtype=torch.bfloat16), TARGET
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            y, z = lazily(x, size=8), F.interpolate(x, size=8, mode="bilinear")
            ours, theirs = F.cross_entropy(y, target), F.cross_entropy(z, target)
            assert y.is_lazy and (y.dtype, ours.dtype) == (z.dtype, theirs.dtype)
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
            weighted = F.cross_entropy(y.float(), target, torch.rand(5))
            assert weighted.dtype == torch.float32 and y.is_lazy
            assert y.softmax(1).dtype == z.softmax(1).dtype
            ours.backward()
    # On a GPU autocast resizes in float32.
    monkeypatch.setattr(lazy, "_resized_dtype", lambda x: torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = lazily(x, size=8)
        assert y.dtype == y.scores.dtype == torch.float32
        assert F.cross_entropy(y, target).dtype == torch.float32
        assert torch.equal(y * 1, F.interpolate(x.float(), size=8, mode="bilinear"))
        again = lazily(y, size=8)
        assert torch.equal(again * 1, y * 1)


def test_a_resize_of_lazy_logits_is_composed_only_where_it_is_exact():
    x = random_scores()

    def resized(t, size, **options):
        return F.interpolate(t, size=size, mode="bilinear", **options)

    y, z = lazily(x, size=(9, 8)), resized(x, (9, 8))
    same = resized(y, (9, 8))
    assert same is not y and same.is_lazy and same.scores is x and same.grid == y.grid
    first = resized(lazily(x, size=x.shape[2:]), (9, 8))
    assert first.scores is x and first.grid == y.grid and torch.equal(first * 1, z)
    other = resized(y, (5, 13), align_corners=True)
    assert not y.is_lazy and other.is_lazy and torch.equal(other.scores, z)
    assert torch.equal(other * 1, resized(z, (5, 13), align_corners=True))
    image = resized(lazily(x, size=(9, 8))[1].unsqueeze(0), 4)
    assert torch.equal(image[0].argmax(0), resized(z[1:], 4)[0].argmax(0)) and image.is_lazy
    softmax = resized(lazily(x, size=(9, 8)).softmax(1), 4)
    assert torch.equal(softmax * 1, resized(z.softmax(1), 4))


def test_what_cannot_wait_is_left_alone():
    x = random_scores((1, 2, 3, 3))
    for mode in ("nearest", "bicubic", "area", "bilinear"):
        options = {"size": 8, "mode": mode, "antialias": mode == "bilinear"}
        y = lazily(x, **options)
        assert type(y) is torch.Tensor and torch.equal(y, F.interpolate(x, **options))
    assert type(lazily(x.to("meta"), size=4)) is torch.Tensor
    assert type(lazily(torch.zeros(0, 2, 3, 3), size=4)) is torch.Tensor
    assert torch.func.vmap(lambda t: lazily(t, size=4))(x[None]).shape == (1, 1, 2, 4, 4)
    with torch.autograd.forward_ad.dual_level():
        assert type(lazily(x, size=4)) is torch.Tensor
    for wrong in ({}, {"size": 4, "scale_factor": 2}, {"size": (4, 4, 4)}, {"size": "4"}):
        with pytest.raises((ValueError, TypeError)):
            lazily(x, **wrong)
    with pytest.raises((NotImplementedError, ValueError)):
        lazily(x[0], size=4)
    traced = torch.jit.trace(lambda t: lazily(t, size=4) * 1, x.detach())
    assert torch.equal(traced(x), F.interpolate(x, size=4, mode="bilinear"))


def test_views_share_what_is_written_and_copies_do_not():
    for write in (lambda t: t.mul_(2), lambda t: t.__setitem__(0, 5.0)):
        x = random_scores(grad=False)
        found = []
        for make in (lazily, F.interpolate):
            y = make(x, size=8, mode="bilinear")
            image, part, batch = y[0], y[1:], y[1].unsqueeze(0)
            soft, wide, detached = y.softmax(1), y.double(), y.detach()
            best = y.max(1).values
            write(image)
            write(y)
            found.append([t * 1 for t in (y, image, part, batch, soft, wide, detached, best)])
            assert torch.equal(part.argmax(1), (part * 1).argmax(1))
            assert y.mul_(1) is y
        for ours, theirs in zip(*found, strict=True):
            assert torch.equal(ours, theirs)


def test_a_map_changed_in_place_is_refused():
    x = random_scores(grad=False)
    y, image = lazily(x, size=8), lazily(x, size=8)[0]
    made = lazily(x, size=8)
    kept = made * 1
    x.zero_()
    for use in (lambda: y * 1, lambda: y.argmax(1), lambda: image.argmax(0), lambda: repr(y)):
        with pytest.raises(RuntimeError, match="changed in place after its resize"):
            use()
    assert torch.equal(made * 1, kept)


def test_gradients_meet():
    """Fused and real uses of one tensor add up; hooks and retained gradients are the real ones."""
    x, seen = random_scores(), []
    for make in (lazily, F.interpolate):
        y = make(x, size=8, mode="bilinear")
        loss = F.cross_entropy(y, TARGET) + y.exp().sum() + F.cross_entropy(y, TARGET)
        seen += torch.autograd.grad(loss, x)
        y = make(x, size=8, mode="bilinear")
        y.register_hook(seen.append)
        y.retain_grad()
        F.cross_entropy(y, TARGET).backward()
        seen.append(y.grad)
        assert y.grad_fn is not None and not y.is_leaf
    torch.testing.assert_close(seen[:3], seen[3:])
    y = lazily(x, size=8)
    with torch.no_grad():
        assert not y[0].requires_grad and not F.cross_entropy(y, TARGET).requires_grad
        assert not (y * 1).requires_grad
        late = lazily(x, size=8)
    assert not late.requires_grad and not F.cross_entropy(late, TARGET).requires_grad
    assert (y * 1).requires_grad  # made real without gradients first
    with torch.inference_mode():
        made = lazily(x, size=8)
    assert torch.equal(made * 1, y.detach() * 1)
    leaf = lazily(x.detach(), size=8).requires_grad_()
    leaf.sum().backward()
    assert torch.equal(leaf.grad, torch.ones(2, 5, 8, 8))


@pytest.mark.parametrize("size", [(9, 11), (4, 6), (3, 6)])
def test_a_real_resize_is_differentiable_twice(size):
    x, seen = random_scores(dtype=torch.float64), []
    for make in (lazily, F.interpolate):
        cubes = make(x, size=size, mode="bilinear").pow(3).sum()
        (first,) = torch.autograd.grad(cubes, x, create_graph=True)
        seen.append((first, *torch.autograd.grad(first.pow(2).sum(), x)))
    torch.testing.assert_close(*seen)


class Foreign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Handed(torch.autograd.Function):
    """Returns what it made without gradients, as reentrant checkpoints do."""

    @staticmethod
    def forward(ctx, x):
        return lazily(x, size=8)

    @staticmethod
    def backward(ctx, grad):
        return grad[..., :4, :6] * 3


def test_functions_of_others():
    """C++ code knows a lazy tensor by its own grad_fn alone."""
    x, wanted = random_scores(), random_scores()
    Foreign.apply(lazily(x, size=8)).exp().sum().backward()
    (2 * F.interpolate(wanted, size=8, mode="bilinear").exp().sum()).backward()
    torch.testing.assert_close(x.grad, wanted.grad * torch.ones(()), rtol=1e-4, atol=1e-4)
    y = Handed.apply(x)
    assert y.requires_grad and not y.is_lazy
    (gradient,) = torch.autograd.grad(F.cross_entropy(y, y.argmax(1)), x)
    z = F.interpolate(x, size=8, mode="bilinear").detach().requires_grad_()
    (full,) = torch.autograd.grad(F.cross_entropy(z, z.argmax(1)), z)
    torch.testing.assert_close(gradient, full[..., :4, :6] * 3)
    torch.autograd.backward(lazily(x, size=8), torch.ones(2, 5, 8, 8))
    with (
        pytest.raises(RuntimeError, match="cannot write into lazy logits"),
        torch._C.DisableTorchFunctionSubclass(),
    ):
        lazily(x.detach(), size=8).zero_()


class Net(nn.Module):
    """A network of the usual kind: features resized into a cat, and the logits last."""

    def __init__(self, mode="bilinear"):
        super().__init__()
        self.down, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(7, 5, 1)
        self.mode = mode

    def forward(self, x):
        features = F.interpolate(self.down(x), size=x.shape[2:], mode=self.mode)
        scores = self.head(torch.cat([features, x], 1))[..., ::2, ::2]
        return {"out": F.interpolate(scores, size=x.shape[2:], mode=self.mode)}


IMAGES = random_scores((2, 3, 8, 8), grad=False)


def is_over():
    return type(F.interpolate(IMAGES, size=4, mode="bilinear")) is torch.Tensor


def test_fuse_keeps_the_module():
    net = Net()
    plain, calls = copy.deepcopy(net), []
    net.register_forward_hook(lambda module, args, output: calls.append(type(output["out"])))
    assert fuse(net) is net and fuse(net) is net
    assert type(net) is Net and list(net.state_dict()) == list(plain.state_dict())
    loaded = pickle.loads(pickle.dumps(fuse(Net())))
    for model in (net, copy.deepcopy(net), loaded):
        model.load_state_dict(plain.state_dict())
        out = model(IMAGES)["out"]
        assert isinstance(out, UpsampledLogits) and out.is_lazy
        assert torch.equal(out * 1, plain(IMAGES)["out"])
    assert calls == [UpsampledLogits, UpsampledLogits]
    assert unfuse(net) is net and unfuse(net) is net
    assert type(net(IMAGES)["out"]) is torch.Tensor
    assert len(net._forward_hooks) == 1 and not net._forward_hooks_always_called and is_over()


def test_exceptions_leave_the_mode():
    net = fuse(Net())

    def fail(error):
        raise error

    for prepend in (False, True):
        hook = net.register_forward_pre_hook(lambda *_: fail(KeyError("here")), prepend=prepend)
        with pytest.raises(KeyError, match="here"):
            net(IMAGES)
        hook.remove()
        assert is_over()
    for error in (ValueError, KeyboardInterrupt):
        hook = net.head.register_forward_hook(lambda *_, error=error: fail(error("there")))
        with pytest.raises(error, match="there"):
            net(IMAGES)
        hook.remove()
    assert net(IMAGES)["out"].is_lazy
    assert is_over()


def test_nested_and_threads():
    inner = fuse(Net())
    outer = fuse(nn.Sequential(nn.Identity(), inner))
    with lazy_logits(), lazy_logits():
        assert outer(IMAGES)["out"].is_lazy
    assert is_over()
    out = outer(IMAGES)["out"]
    with lazy_logits(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: (is_over(), out * 1, outer(IMAGES)["out"].is_lazy), "four"))
    assert all(over and lazy and torch.equal(real, out * 1) for over, real, lazy in found)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant):
    net = fuse(Net())
    images = IMAGES.clone().requires_grad_()

    def logits(x):
        return net(x)["out"]

    gradients = []
    for out in (logits(images), checkpoint(logits, images, use_reentrant=reentrant)):
        F.cross_entropy(out, TARGET).backward()
        gradients.append(images.grad)
        images.grad = None
    torch.testing.assert_close(*gradients)


def test_full_backward_hooks():
    net, seen = fuse(nn.UpsamplingBilinear2d(8)), []
    net.register_full_backward_hook(lambda module, gin, gout: seen.append((gin[0], gout[0])))
    x = random_scores()
    F.cross_entropy(net(x), TARGET).backward()
    assert seen[0][1].shape == (2, 5, 8, 8) and torch.equal(seen[0][0], x.grad)


def test_models_without_a_bilinear_resize_warn_once():
    with pytest.warns(
        UserWarning, match=r"ran in Net \(other resizes: nearest; modules: Conv2d, Net\)"
    ):
        nearest = fuse(Net("nearest"))
        nearest(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nearest(IMAGES)
        fuse(Net())(IMAGES)
    with pytest.warns(UserWarning, match="resizes: none;.*lazy_logits"):
        fuse(nn.Conv2d(3, 1, 1))(IMAGES)
    for wrong in (Net, lambda x: x, torch.jit.script(nn.Conv2d(3, 1, 1))):
        with pytest.raises(TypeError, match="lazy_logits"):
            fuse(wrong)


def test_compiled_models_warn_once_and_are_right():
    net = Net()
    wanted = net(IMAGES)["out"]
    compiled = torch.compile(fuse(net), backend="eager", fullgraph=True)
    with pytest.warns(UserWarning, match="upsample_cross_entropy") as caught:
        out = compiled(IMAGES)["out"]
    assert len([w for w in caught if "torch.compile makes" in str(w.message)]) == 1
    torch.testing.assert_close(out, wanted)
    assert type(out) is torch.Tensor
    loss = torch.compile(lambda y: F.cross_entropy(y, TARGET), backend="eager")
    torch.testing.assert_close(loss(net(IMAGES)["out"]), F.cross_entropy(wanted, TARGET))


def test_by_hand():
    x = random_scores((1, 3, 4, 4))
    grid = SamplingGrid.deconv((4, 4), 8)
    y = UpsampledLogits(x, grid)
    wanted = fcnfast.ops.upsample(x, grid)
    target = torch.zeros(1, *grid.size, dtype=torch.long)
    torch.testing.assert_close(F.cross_entropy(y, target), F.cross_entropy(wanted, target))
    assert y.is_lazy and torch.equal(y * 1, wanted)
    with pytest.raises(ValueError, match="grid was made for maps of"):
        UpsampledLogits(x[..., 1:], grid)
    with pytest.raises(TypeError, match="grid must be a SamplingGrid"):
        UpsampledLogits(x, 8)


def test_the_report():
    class Loss(Net):
        def forward(self, x):
            out = super().forward(x)["out"]
            near = F.interpolate(x, scale_factor=2)
            return {"loss": F.cross_entropy(out, out.argmax(1)), "near": near, "out": out}

    net = fuse(Loss())
    for inputs in (IMAGES, (IMAGES,), {"x": IMAGES}):
        features, logits, near = fuse_report(net, inputs)
        assert (features.real, features.fused, features.size) == ("torch.cat", [], (8, 8))
        assert logits.real is None and logits.fused == ["fused argmax", "fused cross_entropy"]
        assert (near.mode, near.real) == ("nearest", "torch")
        assert "test_lazy.py:" in str(logits) and "still lazy" in str(logits)
    assert net(IMAGES)["out"].is_lazy


def test_nothing_is_kept():
    x = random_scores()
    y = lazily(x.exp(), size=8)
    maps, loss = weakref.ref(y.scores), F.cross_entropy(y, torch.zeros(2, 8, 8, dtype=torch.long))
    real = weakref.ref(lazily(x, size=8).materialize())
    assert real() is None
    y.materialize()
    del y, loss
    assert maps() is None


@pytest.mark.parametrize("late", ["register_hook", "retain_grad", "grad"])
def test_what_would_miss_the_gradient_of_a_fused_loss(late):
    x = random_scores()
    out = lazily(x, size=(8, 8))
    loss = F.nll_loss(F.log_softmax(out, 1), TARGET)
    calls = {"register_hook": lambda: out.register_hook(lambda g: g * 0)}
    calls |= {"retain_grad": out.retain_grad, "grad": lambda: torch.autograd.grad(loss, out)}
    with pytest.raises(RuntimeError, match=f"{late}: .* call materialize.. before computing"):
        calls[late]()
    weight = torch.ones(5, requires_grad=True)
    grad = torch.autograd.grad(out * weight[:, None, None], weight, torch.ones(2, 5, 8, 8))
    assert torch.allclose(grad[0], out.sum((0, 2, 3)))
    loss.backward()
    assert x.grad is not None
