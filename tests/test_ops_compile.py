"""torch.compile and torch.export: one graph for all sizes, with grids made from tensors' shapes."""

import shutil

import pytest
import torch

from fcnfast import nn, ops
from fcnfast.geometry import SamplingGrid

SIZES = ((5, 7), (8, 8), (12, 4))


def by_every_grid(x):
    h, w = x.shape[-2:]
    grids = (
        SamplingGrid.deconv((h, w), 8, crop=(3, 5)),
        SamplingGrid.resize((h, w), (4 * h, 3 * w)),
        SamplingGrid.resize((h, w), (4 * h - 3, 2 * w - 1), align_corners=True),
        SamplingGrid.resize((h, w), scale_factor=2.5),
        SamplingGrid.centers((h, w), 4, 3.5, (4 * h, 4 * w), "clamp"),
        SamplingGrid.resize((h, w), (4 * h, 4 * w)).rescaled((3 * h, 5 * w)),
    )
    return tuple(ops.upsample(x, grid) for grid in grids)


def linear(x):
    h, w = x.shape[-2:]
    grid = SamplingGrid.deconv((h, w), 2, crop=1, size=(2 * h - 1, 2 * w))
    skip = x.repeat(1, 1, 3, 3)
    weight = torch.linspace(-1, 1, 48).view(3, 1, 4, 4) * x.mean()
    return (
        ops.crop_add(x[..., 1 : h - 1, : w - 2], x, (1, 2)),
        ops.upsample_crop_add(x, skip, grid, (2, 3)) * ops.upsample_crop_add(x, skip, grid, 0),
        ops.deconv(x, weight, 2, 1, (1, 0)),
    )


def labels_for(x, size):
    return (torch.arange(x.shape[0] * size[0] * size[1]) % 4).view(-1, *size)


def losses(x):
    h, w = x.shape[-2:]
    target = labels_for(x, (4 * h, 4 * w))
    grid = SamplingGrid.resize((h, w), target.shape[-2:])
    options = {"weight": torch.tensor([0.5, 1.0, 2.0]), "ignore_index": 3, "label_smoothing": 0.1}
    return tuple(
        ops.upsample_cross_entropy(x, target, grid, reduction=reduction, **options)
        for reduction in ("mean", "none")
    )


def without_grids(x):
    target = labels_for(x, (3 * x.shape[2], 2 * x.shape[3]))
    full = ops.upsample(x, size=target.shape[-2:], align_corners=True)
    skip = full.sum(1, keepdim=True).expand_as(full)
    fused = ops.upsample_crop_add(x, skip, offset=(1, 2))
    loss = ops.upsample_cross_entropy(x, target, ignore_index=3)
    return full, fused, loss, ops.upsample(x, scale_factor=1.5)


def labeled(x):
    h, w = x.shape[-2:]
    grid = SamplingGrid.resize((h, w), (4 * h, 4 * w))
    return ops.upsample_argmax(x, grid), ops.upsample_argmax(x, grid, confidence=True)[1]


def counted(x):
    h, w = x.shape[-2:]
    grid = SamplingGrid.deconv((h, w), 4)
    out = ops.upsample_confusion(x, labels_for(x, grid.size), grid, ignore_index=3)
    return ops.upsample_confusion(x, labels_for(x, grid.size), grid, ignore_index=3, out=out)


def maps():
    for number, size in enumerate(SIZES):
        yield torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(number))


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@pytest.fixture
def counter():
    """A backend that counts what is compiled."""
    # Not at the top: this imports Triton, which the kernels' tests do after a word of their own.
    from torch._dynamo.testing import CompileCounterWithBackend

    return CompileCounterWithBackend("aot_eager")


def results(function, x):
    """What a function gives, and the gradient of the sum of its squares if there is one."""
    leaf = x.clone().requires_grad_()
    found = function(leaf)
    found = found if isinstance(found, tuple) else (found,)
    if not found[0].requires_grad:
        return found
    return *found, torch.autograd.grad(sum(r.square().sum() for r in found), leaf)[0]


@pytest.mark.parametrize("function", [by_every_grid, linear, losses, labeled, counted])
def test_one_graph_for_all_sizes(function, counter):
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for x in maps():
        torch.testing.assert_close(results(compiled, x), results(function, x))
    # torch 2.7 makes a second graph of some.
    assert counter.frame_count in ((1,) if torch.__version__ >= "2.8" else (1, 2))


def test_calls_without_a_grid_compile():
    compiled = torch.compile(without_grids, backend="aot_eager", fullgraph=True, dynamic=True)
    for x in list(maps())[:2]:
        torch.testing.assert_close(results(compiled, x), results(without_grids, x))


def test_a_grid_made_outside_is_an_argument_like_others():
    compiled = torch.compile(ops.upsample, backend="aot_eager", fullgraph=True)
    for size in SIZES:
        x, grid = torch.randn(1, 2, *size), SamplingGrid.deconv(size, 4, crop=2)
        assert torch.equal(compiled(x, grid), ops.upsample(x, grid))


def test_errors_of_compiled_code_are_those_of_eager_code():
    """A label, or a size that no trace can see."""

    def run(x, target):
        return ops.upsample_cross_entropy(x, target, SamplingGrid.resize((5, 7), (10, 14)))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    x, target = torch.randn(2, 3, 5, 7), torch.zeros(2, 10, 14, dtype=torch.uint8)
    compiled(x, target)
    with pytest.raises(ValueError, match=r"holds 3 \(280 pixels"):
        compiled(x, target + 3)
    with pytest.raises(ValueError, match=r"grid was made for maps of \(5, 7\)"):
        compiled(x[..., :6], target)
    with pytest.raises(ValueError, match="N x H x W"):
        compiled(x, target[:, :9])


def test_a_compiled_graph_keeps_the_backend_of_its_tracing(counter, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def resized(x):
        return ops.upsample(x, SamplingGrid.resize(x.shape[-2:], (20, 21)))

    compiled = torch.compile(resized, backend=counter, fullgraph=True)
    x = next(maps())
    expected = compiled(x)
    with ops.backend("triton"):
        assert torch.equal(compiled(x), expected)
    assert counter.frame_count == 1
    torch._dynamo.reset()
    with ops.backend("triton"), pytest.raises(ValueError, match="Triton"):
        compiled(x)


class Head(torch.nn.Module):
    """Fusion, a learned upsampling and an argmax of maps of any size."""

    def __init__(self):
        super().__init__()
        self.fuse = nn.UpsampleCropAdd(nn.DeconvGrid(2), offset=1)
        self.up = nn.Deconv(3, 4)
        self.to_image = nn.Upsample(nn.ResizeGrid(scale_factor=2))

    def forward(self, x, skip):
        scores = self.to_image(self.up(self.fuse(x, skip)))
        grid = nn.ResizeGrid(align_corners=True)(scores.shape[-2:], (20, 30))
        return scores, ops.upsample_argmax(scores, grid)


@pytest.mark.parametrize("strict", [True, False])
def test_export_with_any_size(strict, tmp_path):
    h, w = torch.export.Dim("h", min=2, max=512), torch.export.Dim("w", min=2, max=512)
    sizes = {0: torch.export.Dim("n"), 2: h, 3: w}
    fine = {0: sizes[0], 2: 2 * h + 4, 3: 2 * w + 4}
    head = Head().eval()

    def example(n, h, w):
        return torch.randn(n, 3, h, w), torch.randn(n, 3, 2 * h + 4, 2 * w + 4)

    shapes = {"x": sizes, "skip": fine}
    program = torch.export.export(head, example(2, 5, 7), dynamic_shapes=shapes, strict=strict)
    torch.export.save(program, tmp_path / "head.pt2")
    loaded = torch.export.load(tmp_path / "head.pt2").module()
    targets = {str(node.target) for node in program.graph.nodes}
    assert "fcnfast.upsample_crop_add.default" in targets
    for n, height, width in ((2, 5, 7), (1, 3, 11), (3, 16, 2)):
        inputs = example(n, height, width)
        for exported, eager in zip(loaded(*inputs), head(*inputs), strict=True):
            torch.testing.assert_close(exported, eager)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor():
    target = labels_for(torch.zeros(2), (10, 14)).to(torch.uint8)

    def step(x):
        h, w = x.shape[-2:]
        scores = ops.upsample(x.sin(), SamplingGrid.deconv((h, w), 2, crop=1, size=(8, 12)))
        grid = SamplingGrid.resize((8, 12), target.shape[-2:])
        return (ops.upsample_cross_entropy(scores, target, grid, ignore_index=3),)

    # What was kept of another version of the ops would not fit.
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        compiled = torch.compile(step, fullgraph=True, dynamic=True)
        x = next(maps()).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(results(compiled, x), results(step, x))
