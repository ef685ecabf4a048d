"""What no op takes: an error that names the argument, what it was and what it may be."""

import pytest
import torch

from fcnfast import nn, ops
from fcnfast.geometry import SamplingGrid

GRID = SamplingGrid.resize((4, 5), (8, 10))
X, SKIP = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 9, 12)
T, W = torch.zeros(2, 8, 10, dtype=torch.uint8), torch.zeros(3, 1, 4, 4)
OUT = torch.zeros(3, 3, dtype=torch.int64)

# Every op as a function of its first map, so that the checks of maps are tried on each.
BY_MAP = {
    "crop_add": lambda x: ops.crop_add(x, SKIP, 1),
    "upsample": lambda x: ops.upsample(x, GRID),
    "upsample_crop_add": lambda x: ops.upsample_crop_add(x, SKIP, GRID, 1),
    "deconv": lambda x: ops.deconv(x, W, 2),
    "upsample_cross_entropy": lambda x: ops.upsample_cross_entropy(x, T, GRID),
    "upsample_argmax": lambda x: ops.upsample_argmax(x, GRID),
    "upsample_confusion": lambda x: ops.upsample_confusion(x, T, GRID),
}
ON_GRID = [name for name in BY_MAP if name.startswith("upsample")]
BY_GRID = {
    "upsample": lambda g: ops.upsample(X, g),
    "upsample_crop_add": lambda g: ops.upsample_crop_add(X, SKIP, g, 1),
    "upsample_cross_entropy": lambda g: ops.upsample_cross_entropy(X, T, g),
    "upsample_argmax": lambda g: ops.upsample_argmax(X, g),
    "upsample_confusion": lambda g: ops.upsample_confusion(X, T, g),
}
BY_TARGET = {
    "upsample_cross_entropy": lambda t, s=X, i=255: ops.upsample_cross_entropy(
        s, t, GRID, ignore_index=i
    ),
    "upsample_confusion": lambda t, s=X, i=255: ops.upsample_confusion(s, t, GRID, ignore_index=i),
}


@pytest.mark.parametrize("name", BY_MAP)
def test_maps(name):
    call = BY_MAP[name]
    call(X)
    with pytest.raises(TypeError, match=r"must be a tensor, not list"):
        call([1.0])
    for dtype in (torch.int64, torch.complex64, torch.bool):
        with pytest.raises(TypeError, match=f"float32, bfloat16, float16 or float64, not {dtype}"):
            call(X.to(dtype))
    for shape in ((3, 4, 5), (1, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"N x C x h x w, not of shape \("):
            call(torch.zeros(shape))


@pytest.mark.parametrize("name", ON_GRID)
def test_grids(name):
    for wrong in ((8, 10), 2):
        with pytest.raises(TypeError, match="grid must be a SamplingGrid"):
            BY_GRID[name](wrong)
    with pytest.raises(ValueError, match=r"grid was made for maps of \(5, 4\), but .* \(4, 5\)"):
        BY_GRID[name](SamplingGrid.resize((5, 4), (8, 10)))


@pytest.mark.parametrize(
    "call",
    [
        lambda skip, offset=1: ops.crop_add(X, skip, offset),
        lambda skip, offset=1: ops.upsample_crop_add(X, skip, GRID, offset),
    ],
)
def test_skips_and_their_windows(call):
    call(SKIP)
    with pytest.raises(TypeError, match="skip must be a tensor"):
        call(None)
    with pytest.raises(TypeError, match="share a dtype, not torch.float32 and torch.float16"):
        call(SKIP.half())
    with pytest.raises(ValueError, match="cpu but skip is on meta"):
        call(SKIP.to("meta"))
    for skip in (SKIP[:1], SKIP[:, :2]):
        with pytest.raises(ValueError, match=r"share batch and channels, not \(2, 3\) and"):
            call(skip)
    for offset in (-1, (0, -2)):
        with pytest.raises(ValueError, match=r"offset must not be negative"):
            call(SKIP, offset)
    for offset in (6, (0, 8)):
        with pytest.raises(ValueError, match=r"leaves the skip map of \(9, 12\)"):
            call(SKIP, offset)
    for offset in (1.0, "11", (1, 2, 3), None, True):
        with pytest.raises(TypeError, match="offset must be an integer or a pair"):
            call(SKIP, offset)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": W[:2]}, ValueError, r"C x 1 x k x k with C = 3, not of shape \(2, 1, 4, 4\)"),
        ({"weight": W[..., :3]}, ValueError, r"not of shape \(3, 1, 4, 3\)"),
        ({"weight": W.expand(3, 3, 4, 4)}, ValueError, "C x 1 x k x k"),
        ({"weight": W[..., :0, :0]}, ValueError, "C x 1 x k x k"),
        ({"weight": W[0]}, ValueError, "weight must be N x C|weight must be"),
        ({"weight": W.double()}, TypeError, "x and weight must share a dtype"),
        ({"weight": W.half()}, TypeError, "x and weight must share a dtype"),
        ({"weight": W.long()}, TypeError, "weight must be float32"),
        ({"weight": [1.0]}, TypeError, "weight must be a tensor"),
        ({"weight": W.to("meta")}, ValueError, "cpu but weight is on meta"),
        ({"stride": 0}, ValueError, "stride 0"),
        ({"stride": 2.0}, TypeError, "stride must be an integer, not 2.0"),
        ({"stride": (2, 2)}, TypeError, "stride must be"),
        ({"padding": -1}, ValueError, "padding -1"),
        ({"padding": True}, TypeError, "padding must be"),
        ({"crop": -1}, ValueError, r"crop \(-1, -1\)"),
        ({"crop": (10, 0)}, ValueError, r"crop \(10, 0\) begins beyond the 10 rows"),
        ({"crop": (0, 2), "size": (10, 11)}, ValueError, r"size \(10, 11\) must be .* 10 columns"),
        ({"size": (0, 4)}, ValueError, r"size \(0, 4\) must be from 1"),
        ({"size": 4.0}, TypeError, "size must be"),
        ({"padding": 9}, ValueError, "padding 9 leaves"),
        ({"x": X[:, :, :0]}, ValueError, "x must have values to upsample, not 0 x 5"),
    ],
)
def test_deconv(arguments, error, message):
    with pytest.raises(error, match=message):
        ops.deconv(**{"x": X, "weight": W, "stride": 2} | arguments)


@pytest.mark.parametrize("name", BY_TARGET)
def test_targets(name):
    call = BY_TARGET[name]
    call(T)
    with pytest.raises(TypeError, match="target must be a tensor, not list"):
        call([0])
    for dtype in (torch.float32, torch.bool, torch.int8):
        with pytest.raises(TypeError, match=f"uint8, int16, int32 or int64, not {dtype}"):
            call(T.to(dtype))
    with pytest.raises(ValueError, match="scores is on cpu but target is on meta"):
        call(T.to("meta"))
    for wrong in (T[:1], T[:, :7], T[..., :9]):
        with pytest.raises(ValueError, match=r"target must be N x H x W = \(2, 8, 10\), not \("):
            call(wrong)
    with pytest.raises(ValueError, match="target must be N x H x W, not of shape"):
        call(T[0])
    bad = T.clone()
    bad[1, 2, 3] = 3
    with pytest.raises(ValueError, match=r"target holds 3 \(1 pixels out of range\).*\[0, 3\)"):
        call(bad)
    with pytest.raises(ValueError, match="holds -7"):
        call(torch.full_like(T, -7, dtype=torch.int16))
    with pytest.raises(ValueError, match="holds -200"):  # not 56, which is ignored
        call(torch.full_like(T, -200, dtype=torch.int16), i=56)
    with pytest.raises(ValueError, match="at least one class"):
        call(T, X[:, :0])
    with pytest.raises(
        ValueError, match=r"holds -100 .*ignore_index \(255\); pass ignore_index=-100"
    ):
        call(torch.full_like(T, -100, dtype=torch.int64))


def test_more_classes_than_labels_can_name():
    x = torch.zeros(2, 257, 4, 5)
    with pytest.raises(ValueError, match="target in uint8 cannot name 257 classes"):
        ops.upsample_cross_entropy(x, T, GRID)
    with pytest.raises(ValueError, match="labels in uint8 cannot name 257 classes"):
        ops.upsample_argmax(x, GRID)
    assert ops.upsample_argmax(x, GRID, dtype=torch.int16).shape == (2, 8, 10)
    assert ops.upsample_cross_entropy(x[:, :256], T, GRID, ignore_index=-1).isfinite()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ignore_index": 1.0}, TypeError, "ignore_index must be an integer, not 1.0"),
        ({"ignore_index": True}, TypeError, "ignore_index"),
        ({"ignore_index": 1 << 63}, ValueError, "ignore_index must fit int64"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of .*, not 'avg'"),
        ({"reduction": None}, ValueError, "reduction must be one of"),
        ({"label_smoothing": -0.1}, ValueError, r"label_smoothing must lie in \[0, 1\], not -0.1"),
        ({"label_smoothing": float("nan")}, ValueError, "label_smoothing"),
        ({"weight": torch.ones(4)}, ValueError, r"3 class weights in torch.float32, not \(4,\)"),
        ({"weight": torch.ones(3, 1)}, ValueError, "3 class weights"),
        ({"weight": torch.ones(3).long()}, TypeError, "weight must be a floating-point tensor"),
        ({"weight": [1.0, 1.0, 1.0]}, TypeError, "tensor of class weights, not list"),
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing must be a number, not '0.1'"),
        ({"label_smoothing": None}, TypeError, "label_smoothing must be a number"),
        ({"weight": torch.ones(3, device="meta")}, ValueError, "weight is on meta"),
        ({"weight": torch.ones(3, requires_grad=True)}, ValueError, "not require a gradient"),
    ],
)
def test_settings_of_the_loss(options, error, message):
    with pytest.raises(error, match=message):
        ops.upsample_cross_entropy(X, T, GRID, **options)


def test_types_of_labels():
    for wrong in (torch.float32, torch.int8, torch.bool, int, "uint8"):
        with pytest.raises(TypeError, match="dtype must be uint8, int16, int32 or int64"):
            ops.upsample_argmax(X, GRID, dtype=wrong)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (OUT.int(), TypeError, "out must be an int64 tensor, not torch.int32"),
        (OUT.numpy(), TypeError, "out must be an int64 tensor, not ndarray"),
        (OUT.to("meta"), ValueError, "out is on meta"),
        (torch.zeros(5, 3, dtype=torch.int64), ValueError, r"3 x 3 or 4 x 3 .* shape \(5, 3\)"),
        (torch.zeros(3, 4, dtype=torch.int64), ValueError, r"shape \(3, 4\)"),
        (torch.zeros(9, dtype=torch.int64), ValueError, r"shape \(9,\)"),
        (torch.zeros(3, 1, dtype=torch.int64).expand(3, 3), ValueError, "a place for every count"),
    ],
)
def test_counts(out, error, message):
    with pytest.raises(error, match=message):
        ops.upsample_confusion(X, T, GRID, out=out)
    with pytest.raises(TypeError, match="ignore_index"):
        ops.upsample_confusion(X, T, GRID, ignore_index=None)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Upsample(GRID), TypeError, "grid must make a SamplingGrid"),
        (lambda: nn.Upsample(nn.CentersGrid(4, 0))(X), ValueError, "needs the size"),
        (lambda: nn.Upsample(nn.ResizeGrid())(X), ValueError, "exactly one"),
        (lambda: nn.Upsample(nn.ResizeGrid(2.0))(X, (8, 10)), ValueError, "exactly one"),
        (lambda: nn.Upsample(nn.DeconvGrid(8, 17))(X), ValueError, "kernel 17"),
        (lambda: nn.CropAdd("1"), TypeError, "offset"),
        (lambda: nn.UpsampleCropAdd(nn.DeconvGrid(2), 1.5), TypeError, "offset"),
        (lambda: nn.bilinear_filter(0), ValueError, "kernel must be positive"),
    ],
)
def test_layers(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_labels_are_looked_at_only_where_that_costs_nothing(monkeypatch):
    """A GPU's labels only on request; never while a graph is captured."""
    from fcnfast.ops import _checks

    class OnGpu:
        device = torch.device("cuda")

    monkeypatch.delenv("FCNFAST_CHECK", raising=False)
    assert _checks.looks_at_labels(T)
    assert not _checks.looks_at_labels(OnGpu)
    monkeypatch.setenv("FCNFAST_CHECK", "1")
    for capturing in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda c=capturing: c)
        assert _checks.looks_at_labels(OnGpu) is not capturing
