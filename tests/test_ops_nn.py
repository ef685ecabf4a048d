"""The layers: what the ops give, grids for every size, states that others' layers have, too."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F

from fcnfast import nn, ops
from fcnfast.geometry import SamplingGrid

X = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
SKIP = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(1))
WEIGHT = torch.tensor([1.0, 2.0, 0.5])


def test_upsample_makes_its_grid_for_every_map():
    layer = nn.Upsample(nn.DeconvGrid(8, crop=3))
    for size in ((4, 5), (7, 2)):
        x = torch.randn(1, 2, *size)
        assert torch.equal(layer(x), ops.upsample(x, SamplingGrid.deconv(size, 8, crop=3)))
        assert torch.equal(layer(x, (11, 13)), layer(x)[..., :11, :13])
    doubled = nn.Upsample(nn.ResizeGrid(2.0))(X)
    expected = F.interpolate(X, scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(doubled, expected, rtol=0, atol=1e-6)
    aligned = nn.Upsample(nn.ResizeGrid(align_corners=True))(X, (9, 9))
    expected = F.interpolate(X, (9, 9), mode="bilinear", align_corners=True)
    torch.testing.assert_close(aligned, expected, rtol=0, atol=1e-6)
    centered = nn.Upsample(nn.CentersGrid(4, 1.5, "clamp"))(X, (16, 20))
    assert torch.equal(centered, nn.Upsample(nn.ResizeGrid(4.0))(X))


def test_fusion():
    assert torch.equal(nn.CropAdd((2, 3))(X, SKIP), ops.crop_add(X, SKIP, (2, 3)))
    fused = nn.UpsampleCropAdd(nn.DeconvGrid(2), offset=5)(X, SKIP)
    assert torch.equal(fused, ops.upsample_crop_add(X, SKIP, SamplingGrid.deconv((4, 5), 2), 5))
    assert nn.UpsampleCropAdd(nn.ResizeGrid())(X, SKIP, (20, 24)).shape == SKIP.shape


def test_the_loss_follows_the_labels_size_and_has_the_state_of_torchs():
    target = torch.arange(2 * 16 * 20).view(2, 16, 20) % 3
    options = {"weight": WEIGHT, "ignore_index": 2, "label_smoothing": 0.1}
    layer = nn.UpsampleCrossEntropy(**options)
    assert torch.equal(layer(X, target), ops.upsample_cross_entropy(X, target, **options))
    pixels = nn.UpsampleCrossEntropy(nn.DeconvGrid(4, crop=1), reduction="none")(X, target)
    assert pixels.shape == target.shape
    layer = nn.UpsampleCrossEntropy(weight=torch.ones(3))
    layer.load_state_dict(torch.nn.CrossEntropyLoss(weight=WEIGHT).state_dict())
    assert torch.equal(layer.weight, WEIGHT)
    assert layer.double().weight.dtype == torch.float64
    assert not nn.UpsampleCrossEntropy().state_dict()


@pytest.mark.parametrize(("stride", "kernel"), [(2, None), (3, None), (8, 16), (4, 7)])
def test_deconv_begins_bilinear_and_has_the_state_of_torchs(stride, kernel):
    layer = nn.Deconv(3, stride, kernel, padding=1, crop=(1, 0))
    fixed = nn.Upsample(nn.DeconvGrid(stride, kernel, padding=1, crop=(1, 0)))
    torch.testing.assert_close(layer(X), fixed(X), rtol=0, atol=1e-6)
    k = layer.kernel
    torchs = torch.nn.ConvTranspose2d(3, 3, k, stride, padding=1, groups=3, bias=False)
    layer.load_state_dict(torchs.state_dict())
    torch.testing.assert_close(layer(X), torchs(X)[..., 1:, :], rtol=1e-5, atol=1e-6)
    layer.reset_parameters()
    assert torch.equal(layer(X), nn.Deconv(3, stride, kernel, 1, (1, 0))(X))


def test_deconv_learns_keeps_only_what_it_needs_and_is_cast():
    layer = nn.Deconv(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        scores = F.conv2d(X, torch.ones(3, 3, 1, 1))
        assert scores.dtype == layer(scores).dtype == torch.bfloat16
        layer(scores).sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.shape == (3, 1, 4, 4)
    layer.weight.requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        layer(X.clone().requires_grad_(), (6, 6))
    assert [tensor.shape for tensor in kept] == [layer.weight.shape]  # not the maps


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Upsample(nn.DeconvGrid(8, crop=31)), ("Upsample", "stride=8", "crop=31")),
        (nn.CropAdd(5), ("CropAdd", "offset=(5, 5)")),
        (nn.UpsampleCropAdd(nn.ResizeGrid(2.0), 1), ("scale_factor=2.0", "offset=(1, 1)")),
        (nn.UpsampleCrossEntropy(reduction="sum"), ("reduction='sum'", "ignore_index=255")),
        (nn.Deconv(21, 8), ("21, stride=8, kernel=16, padding=0",)),
    ],
)
def test_layers_show_copy_and_save_themselves(layer, words):
    assert all(word in repr(layer) for word in words)
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(layer), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert repr(loaded) == repr(layer)
    assert loaded.state_dict().keys() == layer.state_dict().keys()
