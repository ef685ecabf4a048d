"""SamplingGrid against torch's own upsampling, and the receptive-field calculus."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, event, given
from hypothesis import strategies as st

from fcnfast import reference
from fcnfast.geometry import ReceptiveField, SamplingGrid

DOUBLE = torch.float64
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def bilinear_filter(kernel: int) -> torch.Tensor:
    """The filter of the paper's upsampling layers, k x k (independent of the geometry)."""
    factor = (kernel + 1) // 2
    center = factor - 1 if kernel % 2 else factor - 0.5
    w = [1 - abs(i - center) / factor for i in range(kernel)]
    return torch.outer(torch.tensor(w, dtype=DOUBLE), torch.tensor(w, dtype=DOUBLE))


def deconvolved(x: torch.Tensor, stride: int, kernel: int, padding: int) -> torch.Tensor:
    """The depthwise bilinear transposed convolution by torch."""
    weight = bilinear_filter(kernel).expand(x.shape[1], 1, kernel, kernel)
    return F.conv_transpose2d(x, weight, stride=stride, padding=padding, groups=x.shape[1])


@given(st.data())
def test_deconv_is_the_transposed_convolution_and_its_crop(data):
    in_size = data.draw(sizes)
    stride = data.draw(st.sampled_from((1, 2, 3, 4, 5, 7, 8, 16, 32)))
    kernel = data.draw(st.sampled_from((2 * stride - stride % 2, 2 * stride - 1)))
    padding = data.draw(st.integers(0, (kernel - 1) // 2))
    x = torch.randn(1, 2, *in_size, dtype=DOUBLE)
    full = deconvolved(x, stride, kernel, padding)
    height, width = full.shape[-2:]
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    size = (data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    event(f"one-pixel map: {1 in in_size}")
    event(f"odd stride: {stride % 2 == 1}")
    event(f"crop to one pixel: {size == (1, 1)}")
    grid = SamplingGrid.deconv(in_size, stride, kernel, padding, (top, left), size)
    expected = full[..., top : top + size[0], left : left + size[1]]
    assert (reference.upsample(x, grid) - expected).abs().max() < 1e-13


@given(sizes, st.tuples(st.integers(1, 40), st.integers(1, 40)), st.booleans())
def test_resize_is_interpolate_to_a_size(in_size, size, align_corners):
    event(f"down-sampling: {size[0] < in_size[0] or size[1] < in_size[1]}")
    event(f"one-pixel map: {1 in in_size}")
    x = torch.randn(1, 2, *in_size, dtype=DOUBLE)
    grid = SamplingGrid.resize(in_size, size, align_corners=align_corners)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
    assert (reference.upsample(x, grid) - expected).abs().max() < 1e-12


factor = st.integers(1, 300).map(lambda f: f / 50) | st.floats(0.1, 6.0) | st.just(2.9999999)


@given(sizes, st.tuples(factor, factor), st.booleans())
def test_resize_is_interpolate_by_a_factor(in_size, factors, align_corners):
    assume(all(int(n * f) >= 1 for n, f in zip(in_size, factors, strict=True)))
    event(f"down-sampling: {min(factors) < 1}")
    x = torch.randn(1, 2, *in_size, dtype=DOUBLE)
    grid = SamplingGrid.resize(in_size, scale_factor=factors, align_corners=align_corners)
    expected = F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=align_corners)
    assert grid.size == tuple(expected.shape[-2:])
    assert (reference.upsample(x, grid) - expected).abs().max() < 1e-12


def test_a_factor_is_used_as_given_not_as_the_ratio_of_sizes():
    by_factor = SamplingGrid.resize((5, 7), scale_factor=1.5)
    by_size = SamplingGrid.resize((5, 7), by_factor.size)
    assert by_factor.size == (7, 10)
    assert by_factor != by_size


def test_positions_of_the_paper_are_exact_rationals():
    final = {
        "fcn8s": (SamplingGrid.deconv((70, 70), 8, crop=31, size=500), (2, 47, 16)),
        "fcn16s": (SamplingGrid.deconv((34, 34), 16, crop=27, size=500), (2, 23, 32)),
        "fcn32s": (SamplingGrid.deconv((16, 16), 32, crop=19, size=500), (2, -25, 64)),
        "alexnet": (SamplingGrid.deconv((16, 16), 32, 63, crop=18, size=500), (1, -13, 32)),
    }
    for grid, axis in final.values():
        assert (grid.num[0], grid.off[0], grid.den[0]) == axis


@given(sizes, st.sampled_from((2, 4, 8, 32)), st.integers(0, 40))
def test_centers_reproduce_a_cropped_deconvolution(in_size, stride, crop):
    full = [(n + 1) * stride for n in in_size]
    assume(all(crop < f for f in full))
    size = tuple(f - crop for f in full)
    field = ReceptiveField(1, Fraction(stride)).deconv(2 * stride, stride).crop(crop)
    deconv = SamplingGrid.deconv(in_size, stride, crop=crop, size=size)
    # Pixel 0 of the cropped result lies at field.offset of the map's own pixels.
    centers = SamplingGrid.centers(in_size, stride, -field.offset, size, "zero")
    assert centers == deconv


@given(sizes, st.integers(1, 8), sizes)
def test_rescaled_is_one_sampling_of_two_resizes_positions(in_size, scale, size):
    middle = (in_size[0] * scale, in_size[1] * scale)
    once = SamplingGrid.resize(in_size, middle).rescaled(size)
    direct = SamplingGrid.resize(in_size, size)
    assert once == direct


def test_calculus_gives_the_offsets_of_the_reference_networks():
    def trunk(pad):
        field = ReceptiveField().conv(3, 1, pad).conv(3, 1, 1).conv(2, 2)
        pools = []
        for convs in (2, 3, 3, 3):
            for _ in range(convs):
                field = field.conv(3, 1, 1)
            field = field.conv(2, 2)
            pools.append(field)
        return pools, field.conv(7)

    image = ReceptiveField()
    for pad in (81, 97, 100):
        (_, pool3, pool4, _), score = trunk(pad)
        assert score.size == 404 and score.stride == 32
        assert score.deconv(64, 32).crop_onto(image) == pad - 81
        up2 = score.deconv(4, 2)
        assert pool4.crop_onto(up2) == 5
        assert up2.deconv(32, 16).crop_onto(image) == pad - 73
        up4 = up2.deconv(4, 2)
        assert pool3.crop_onto(up4) == 9
        assert up4.deconv(16, 8).crop_onto(image) == pad - 69
    assert trunk(100)[1].offset == Fraction(25, 2)


def test_calculus_refuses_what_no_crop_aligns():
    with pytest.raises(ValueError, match="strides|stride 2"):
        ReceptiveField().conv(2, 2).crop_onto(ReceptiveField())
    with pytest.raises(ValueError, match="no crop"):
        ReceptiveField(offset=Fraction(1, 2)).crop_onto(ReceptiveField())
    with pytest.raises(ValueError, match="no crop"):
        ReceptiveField(offset=Fraction(3)).crop_onto(ReceptiveField())


@given(st.integers(1, 400), st.integers(-4000, 4000), st.integers(1, 2000))
def test_floats_of_centers_stand_for_the_fractions_they_print_as(tenths, thousandths, size):
    grid = SamplingGrid.centers((4, 4), tenths / 10, thousandths / 1000, size, "zero")
    exact = SamplingGrid.centers(
        (4, 4), Fraction(tenths, 10), Fraction(thousandths, 1000), size, "zero"
    )
    assert grid == exact


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SamplingGrid.resize((4, 4), scale_factor=1e300), "scale_factor"),
        (lambda: SamplingGrid.centers((4, 4), 4, float("inf"), 8, "zero"), "offset.*inf"),
        (lambda: SamplingGrid.centers((4, 4), float("nan"), 0, 8, "zero"), "stride.*nan"),
        (lambda: SamplingGrid.centers(4, Fraction(0.1), 0, 300, "zero"), "int64"),
        (lambda: SamplingGrid(4, 8, 1 << 60, 0, 1, "clamp"), "int64"),
        (lambda: SamplingGrid.deconv((4, 4), 8, 15 + 2), "kernel 17"),
        (lambda: SamplingGrid.deconv((4, 4), 8, crop=(-1, 0)), "crop"),
        (lambda: SamplingGrid.deconv((4, 4), 8, crop=40), "crop .* begins beyond"),
        (lambda: SamplingGrid.deconv((4, 4), 8, padding=20), "padding 20 leaves"),
        (lambda: SamplingGrid.deconv((4, 4), 8, crop=(3, 3), size=(38, 4)), r"size \(38, 4\)"),
        (lambda: SamplingGrid.deconv((4, 4), 0), "stride 0"),
        (lambda: SamplingGrid.resize((4, 4)), "exactly one"),
        (lambda: SamplingGrid.resize((4, 4), (8, 8), scale_factor=2), "exactly one"),
        (lambda: SamplingGrid.resize((4, 4), scale_factor=-1.0), "scale_factor"),
        (lambda: SamplingGrid.resize((4, 4), scale_factor=0.1), "size"),
        (lambda: SamplingGrid.centers((4, 4), 0, 0, (8, 8), "zero"), "stride"),
        (lambda: SamplingGrid.resize((0, 4), (8, 8)), "in_size"),
        (
            lambda: SamplingGrid((4, 4), (8, 8), (1, 1), (0, 0), (1, 1), "reflect"),  # type: ignore[arg-type]
            "border",
        ),
        (lambda: SamplingGrid((4, 4), (8, 8), (-1, 1), (0, 0), (1, 1), "zero"), "num"),
    ],
)
def test_bad_grids_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SamplingGrid.deconv((4, 4), 2, 4.0), "kernel must be an integer, not 4.0"),  # type: ignore[arg-type]
        (lambda: SamplingGrid.deconv((4, 4), 2, "4"), "kernel must be an integer, not '4'"),  # type: ignore[arg-type]
        (lambda: SamplingGrid.resize((4, 4), 8, align_corners="x"), "align_corners must be"),  # type: ignore[arg-type]
        (lambda: SamplingGrid.centers((4, 4), "2", 0, 8, "zero"), "stride must be"),  # type: ignore[arg-type]
        (lambda: SamplingGrid.centers((4, 4), True, 0, 8, "zero"), "stride must be"),
        (lambda: SamplingGrid.centers((4, 4), 2, None, 8, "zero"), "offset must be"),  # type: ignore[arg-type]
    ],
)
def test_other_types_are_refused_by_name(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_sizes_must_be_integers():
    with pytest.raises(TypeError, match="in_size"):
        SamplingGrid.resize((4.0, 4), (8, 8))
    with pytest.raises(TypeError, match="size"):
        SamplingGrid.resize((4, 4), "88")
    for wrong in (2.0, (2, 2), True, None):
        with pytest.raises(TypeError, match="stride"):
            SamplingGrid.deconv((4, 4), wrong)
    with pytest.raises(TypeError, match="padding"):
        SamplingGrid.deconv((4, 4), 2, padding=0.5)
    with pytest.raises(TypeError, match="scale_factor"):
        SamplingGrid.resize((4, 4), scale_factor="22")
