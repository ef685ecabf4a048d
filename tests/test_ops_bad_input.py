"""What no op, layer or grid takes: an error that names the argument, what it was and may be."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from fcnfast import nn, ops
from fcnfast.geometry import SamplingGrid
from fcnfast.ops import _checks

GRID = SamplingGrid.resize((4, 5), (8, 10))
X, SKIP = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 9, 12)
T, W = torch.zeros(2, 8, 10, dtype=torch.uint8), torch.zeros(3, 1, 4, 4)
COUNTS = torch.zeros(3, 3, dtype=torch.int64)

# Every op as a function of its first map, of its grid, of its labels: all make the same checks.
BY_MAP = {
    "crop_add": lambda x: ops.crop_add(x, SKIP, 1),
    "upsample": lambda x, g=GRID: ops.upsample(x, g),
    "upsample_crop_add": lambda x, g=GRID: ops.upsample_crop_add(x, SKIP, g, 1),
    "deconv": lambda x: ops.deconv(x, W, 2),
    "upsample_cross_entropy": lambda x, g=GRID: ops.upsample_cross_entropy(x, T, g),
    "upsample_argmax": lambda x, g=GRID: ops.upsample_argmax(x, g),
    "upsample_confusion": lambda x, g=GRID: ops.upsample_confusion(x, T, g),
}
ON_GRID = [name for name in BY_MAP if name.startswith("upsample")]
BY_TARGET = (ops.upsample_cross_entropy, ops.upsample_confusion)


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
            BY_MAP[name](X, wrong)
    with pytest.raises(ValueError, match=r"grid was made for maps of \(5, 4\), but .* \(4, 5\)"):
        BY_MAP[name](X, SamplingGrid.resize((5, 4), (8, 10)))


@pytest.mark.parametrize("call", BY_TARGET)
def test_targets(call):
    call(X, T, GRID)
    bad, low = T.clone(), torch.full_like(T, -7, dtype=torch.int16)
    bad[1, 2, 3] = 3
    for error, message, target in (
        (TypeError, "target must be a tensor, not list", [0]),
        (TypeError, "uint8, int16, int32 or int64, not torch.float32", T.float()),
        (TypeError, "uint8, int16, int32 or int64, not torch.int8", T.to(torch.int8)),
        (ValueError, "scores is on cpu but target is on meta", T.to("meta")),
        (ValueError, r"target must be N x H x W = \(2, 8, 10\), not \(2, 7, 10\)", T[:, :7]),
        (ValueError, "target must be N x H x W, not of shape", T[0]),
        (ValueError, r"target holds 3 \(1 pixels out of range\).*\[0, 3\)", bad),
        (ValueError, "holds -7", low),
        (ValueError, r"holds -100 .*\(255\); pass ignore_index=-100", low.long() * 0 - 100),
    ):
        with pytest.raises(error, match=message):
            call(X, target, GRID)
    # -200 and 56, or 3 and -253, are the same bits as bytes, and not the same labels.
    for target, ignored in ((low * 0 - 200, 56), (bad, -253)):
        with pytest.raises(ValueError, match="target holds"):
            call(X, target, GRID, ignore_index=ignored)
    with pytest.raises(ValueError, match="at least one class"):
        call(X[:, :0], T, GRID)


@pytest.mark.parametrize("call", [ops.crop_add, ops.upsample_crop_add])
def test_skips_and_their_windows(call):
    grid = (GRID,) if call is ops.upsample_crop_add else ()
    call(X, SKIP, *grid, 1)
    for error, message, skip, offset in (
        (TypeError, "skip must be a tensor", None, 1),
        (TypeError, "share a dtype, not torch.float32 and torch.float16", SKIP.half(), 1),
        (ValueError, "cpu but skip is on meta", SKIP.to("meta"), 1),
        (ValueError, r"share batch and channels, not \(2, 3\) and \(2, 2\)", SKIP[:, :2], 1),
        (ValueError, "offset must not be negative", SKIP, (0, -2)),
        *((ValueError, r"leaves the skip map of \(9, 12\)", SKIP, at) for at in (6, (0, 8))),
        *(
            (TypeError, "offset must be an integer or a pair", SKIP, offset)
            for offset in (1.0, "11", (1, 2, 3), None, True)
        ),
    ):
        with pytest.raises(error, match=message):
            call(X, skip, *grid, offset)


def loss(**options):
    return ops.upsample_cross_entropy(X, T, GRID, **options)


def many(classes, target=T):
    return ops.upsample_cross_entropy(torch.zeros(2, classes, 4, 5), target, GRID)


def deconv(**options):
    return ops.deconv(**{"x": X, "weight": W, "stride": 2} | options)


def counts(out):
    return ops.upsample_confusion(X, T, GRID, out=out)


def deconv_grid(*args, **options):
    return SamplingGrid.deconv((4, 4), *args, **options)


def resized(*args, **options):
    return SamplingGrid.resize((4, 4), *args, **options)


def centers(stride, offset=0, size=8, border="zero"):
    return SamplingGrid.centers((4, 4), stride, offset, size, border)


VALUES = [
    # Grids.
    (lambda: resized(scale_factor=1e300), "scale_factor"),
    (lambda: resized(scale_factor=0.1), "size"),
    (lambda: resized(), "exactly one"),
    (lambda: resized((8, 8), scale_factor=2), "exactly one"),
    (lambda: SamplingGrid.resize((0, 4), (8, 8)), "in_size"),
    (lambda: centers(4, float("inf")), "offset.*inf"),
    (lambda: centers(float("nan")), "stride.*nan"),
    (lambda: centers(0), "stride"),
    (lambda: centers(Fraction(0.1), size=300), "int64"),
    (lambda: SamplingGrid(4, 8, 1 << 60, 0, 1, "clamp"), "int64"),
    (lambda: SamplingGrid(4, 8, 1, 0, 1, "reflect"), "border"),
    (lambda: SamplingGrid(4, 8, (-1, 1), 0, 1, "zero"), "num"),
    (lambda: deconv_grid(8, 17), "kernel 17 at stride 8"),
    (lambda: deconv_grid(3, 6), "kernel 6 at stride 3"),  # an even one of an odd stride
    (lambda: deconv_grid(8, crop=(-1, 0)), r"crop \(-1, 0\)"),
    (lambda: deconv_grid(8, crop=40), "crop .* begins beyond"),
    (lambda: deconv_grid(8, size=(0, 4)), r"size \(0, 4\) must be from 1"),
    (lambda: deconv_grid(8, padding=20), "padding 20 leaves"),
    (lambda: deconv_grid(8, crop=(3, 3), size=(38, 4)), r"size \(38, 4\)"),
    (lambda: deconv_grid(0), "stride 0"),
    (lambda: ops.upsample(X, GRID, size=8), "either a grid or size, not both"),
    (lambda: ops.upsample(X, GRID, scale_factor=2), "either a grid or scale_factor, not both"),
    (lambda: ops.upsample(X, GRID, align_corners=False), "either a grid or align_corners, not"),
    (lambda: ops.upsample(X), "exactly one of size and scale_factor"),
    (lambda: ops.upsample_cross_entropy(X, T, scale_factor=1.5), r"N x H x W = \(2, 6, 7\)"),
    # The transposed convolution.
    (lambda: deconv(weight=W[:2]), r"C x 1 x k x k with C = 3, not of shape \(2, 1, 4, 4\)"),
    (lambda: deconv(weight=W[..., :3]), r"not of shape \(3, 1, 4, 3\)"),
    (lambda: deconv(weight=W.expand(3, 3, 4, 4)), "C x 1 x k x k"),
    (lambda: deconv(weight=W[..., :0, :0]), "C x 1 x k x k"),
    (lambda: deconv(weight=W[0]), "weight must be C x 1 x k x k, not of shape"),
    (lambda: deconv(weight=W.to("meta")), "cpu but weight is on meta"),
    (lambda: deconv(padding=-1), "padding -1"),
    (lambda: deconv(crop=(10, 0)), r"crop \(10, 0\) begins beyond the 10 rows"),
    (lambda: deconv(crop=(0, 2), size=(10, 11)), r"size \(10, 11\) must be .* 10 columns"),
    (lambda: deconv(x=X[:, :, :0]), "x must have values to upsample, not 0 x 5"),
    # The loss and the labels.
    (lambda: loss(ignore_index=1 << 63), "ignore_index must fit int64"),
    (lambda: loss(reduction="avg"), "reduction must be one of .*, not 'avg'"),
    (lambda: loss(reduction=None), "reduction must be one of"),
    (lambda: loss(label_smoothing=-0.1), r"label_smoothing must lie in \[0, 1\], not -0.1"),
    (lambda: loss(label_smoothing=float("nan")), "label_smoothing"),
    (lambda: loss(weight=torch.ones(4)), "weight must hold 3 class weights, not 4"),
    (lambda: loss(weight=torch.ones(3, 1)), "must be C class weights, not of shape"),
    (lambda: loss(weight=torch.ones(3, device="meta")), "weight is on meta"),
    (lambda: loss(weight=torch.ones(3, requires_grad=True)), "not require a gradient"),
    (lambda: many(257), "target in uint8 cannot name 257 classes"),
    (lambda: many(32769, T.short()), "target in int16 cannot name 32769 classes"),
    (lambda: ops.upsample_argmax(X.new_zeros(2, 257, 4, 5), GRID), "uint8 cannot name 257 classes"),
    (lambda: counts(COUNTS.to("meta")), "out is on meta"),
    (lambda: counts(COUNTS.new_zeros(5, 3)), r"3 x 3 or 4 x 3 .* shape \(5, 3\)"),
    (lambda: counts(COUNTS.new_zeros(3, 4)), r"shape \(3, 4\)"),
    (lambda: counts(COUNTS.new_zeros(9)), r"shape \(9,\)"),
    (lambda: counts(COUNTS[:, :1].expand(3, 3)), "a place for every count"),
    # Layers.
    (lambda: nn.Upsample(nn.CentersGrid(4, 0))(X), "needs the size"),
    (lambda: nn.Upsample(nn.ResizeGrid(2.0))(X, (8, 10)), "exactly one"),
    (lambda: nn.bilinear_filter(0), "kernel must be positive"),
]
TYPES = [
    (lambda: deconv_grid(2, 4.0), "kernel must be an integer, not 4.0"),
    *((lambda s=s: deconv_grid(s), "stride must be") for s in (2.0, "2", (2, 2), True, None)),
    (lambda: deconv_grid(2, padding=0.5), "padding"),
    (lambda: resized(8, align_corners="x"), "align_corners must be"),
    (lambda: resized(scale_factor="22"), "scale_factor"),
    (lambda: resized("88"), "size"),
    (lambda: SamplingGrid.resize((4.0, 4), (8, 8)), "in_size"),
    (lambda: centers("2"), "stride must be"),
    (lambda: centers(True), "stride must be"),
    (lambda: centers(2, None), "offset must be"),
    *(
        (lambda size=size: ops.upsample(X, size=size), "size must be an integer or a pair")
        for size in (8.0, True, "8", (8,), torch.tensor(8.0), np.array([8.0, 9.0]))
    ),
    (lambda: deconv(weight=W.half()), "x and weight must share a dtype"),
    (lambda: deconv(weight=W.long()), "weight must be float32"),
    (lambda: deconv(weight=[1.0]), "weight must be a tensor"),
    (lambda: deconv(padding=True), "padding must be"),
    (lambda: deconv(size=4.0), "size must be"),
    (lambda: loss(ignore_index=1.0), "ignore_index must be an integer, not 1.0"),
    (lambda: loss(ignore_index=True), "ignore_index"),
    (lambda: loss(weight=torch.ones(3).long()), "weight must be float32, bfloat16"),
    (lambda: loss(weight=[1.0, 1.0, 1.0]), "weight must be a tensor, not list"),
    (lambda: loss(label_smoothing="0.1"), "label_smoothing must be a number, not '0.1'"),
    *(
        (lambda d=dtype: ops.upsample_argmax(X, GRID, dtype=d), "dtype must be uint8, int16")
        for dtype in (torch.float32, torch.int8, torch.bool, int, "uint8")
    ),
    (lambda: counts(COUNTS.int()), "out must be int64, not torch.int32"),
    (lambda: counts(COUNTS.numpy()), "out must be a tensor, not ndarray"),
    (lambda: ops.upsample_confusion(X, T, GRID, ignore_index=None), "ignore_index"),
    (lambda: nn.Upsample(GRID), "grid must be a callable that makes a SamplingGrid"),
    (lambda: nn.CropAdd("1"), "offset"),
    (lambda: nn.UpsampleCropAdd(nn.DeconvGrid(2), 1.5), "offset"),
]


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [(ValueError, *row) for row in VALUES] + [(TypeError, *row) for row in TYPES],
)
def test_refused(error, call, message):
    with pytest.raises(error, match=message):
        call()


def test_labels_are_looked_at_only_where_that_costs_nothing(monkeypatch):
    """A GPU's labels only on request; never while a graph is captured."""

    class OnGpu:
        device = torch.device("cuda")

    monkeypatch.delenv("FCNFAST_CHECK", raising=False)
    assert _checks.looks_at_labels(T)
    assert not _checks.looks_at_labels(OnGpu)
    monkeypatch.setenv("FCNFAST_CHECK", "1")
    for capturing in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda c=capturing: c)
        assert _checks.looks_at_labels(OnGpu) is not capturing


def test_the_backend_can_be_forced_and_a_wrong_name_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="backend"), ops.backend("cuda"):
        pass
    with ops.backend("torch"):
        assert ops.upsample(X, GRID).shape == (2, 3, 8, 10)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with ops.backend("triton"), pytest.raises(ValueError, match="TRITON_INTERPRET"):
        ops.upsample(X, GRID)
    monkeypatch.setenv("FCNFAST_BACKEND", "numpy")
    with pytest.raises(ValueError, match="FCNFAST_BACKEND"):
        ops.upsample(X, GRID)
