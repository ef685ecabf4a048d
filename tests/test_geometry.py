"""SamplingGrid against torch's own upsampling, and the receptive-field calculus."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from fcnfast import reference
from fcnfast.geometry import ReceptiveField, SamplingGrid
from tests.foreign_nets import tent

DOUBLE = torch.float64
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
factor = st.integers(1, 300).map(lambda f: f / 50) | st.floats(0.1, 6.0) | st.just(2.9999999)


def assert_samples(grid, x, expected):
    torch.testing.assert_close(reference.upsample(x, grid), expected, rtol=0, atol=1e-12)


@settings(max_examples=80)
@given(st.data())
def test_deconv_is_the_transposed_convolution_and_its_crop(data):
    in_size = data.draw(sizes)
    stride = data.draw(st.sampled_from((1, 2, 3, 4, 5, 7, 8, 16, 32)))
    kernel = data.draw(st.sampled_from((2 * stride - stride % 2, 2 * stride - 1)))
    padding = data.draw(st.integers(0, (kernel - 1) // 2))
    x = torch.randn(1, 2, *in_size, dtype=DOUBLE)
    weight = tent(kernel).expand(2, 1, kernel, kernel)
    full = F.conv_transpose2d(x, weight, stride=stride, padding=padding, groups=2)
    height, width = full.shape[-2:]
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    size = (data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    event(f"one-pixel map: {1 in in_size}")
    event(f"odd stride: {stride % 2 == 1}")
    event(f"crop to one pixel: {size == (1, 1)}")
    grid = SamplingGrid.deconv(in_size, stride, kernel, padding, (top, left), size)
    assert_samples(grid, x, full[..., top : top + size[0], left : left + size[1]])


@settings(max_examples=80)
@given(sizes, st.tuples(st.integers(1, 40), st.integers(1, 40)), st.booleans())
def test_resize_is_interpolate_to_a_size(in_size, size, align_corners):
    event(f"down-sampling: {size[0] < in_size[0] or size[1] < in_size[1]}")
    event(f"one-pixel map: {1 in in_size}")
    x = torch.randn(1, 2, *in_size, dtype=DOUBLE)
    grid = SamplingGrid.resize(in_size, size, align_corners=align_corners)
    assert_samples(grid, x, F.interpolate(x, size, None, "bilinear", align_corners))


@settings(max_examples=80)
@given(sizes, st.tuples(factor, factor), st.booleans())
def test_resize_is_interpolate_by_a_factor(in_size, factors, align_corners):
    assume(all(int(n * f) >= 1 for n, f in zip(in_size, factors, strict=True)))
    event(f"down-sampling: {min(factors) < 1}")
    x = torch.randn(1, 2, *in_size, dtype=DOUBLE)
    grid = SamplingGrid.resize(in_size, scale_factor=factors, align_corners=align_corners)
    assert_samples(grid, x, F.interpolate(x, None, factors, "bilinear", align_corners))


@given(sizes, st.sampled_from((2, 4, 8, 32)), st.integers(0, 40))
def test_centers_reproduce_a_cropped_deconvolution(in_size, stride, crop):
    size = tuple((n + 1) * stride - crop for n in in_size)
    assume(min(size) > 0)
    field = ReceptiveField(1, Fraction(stride)).deconv(2 * stride, stride).crop(crop)
    # Pixel 0 of the cropped result lies at field.offset of the map's own pixels.
    centers = SamplingGrid.centers(in_size, stride, -field.offset, size, "zero")
    assert centers == SamplingGrid.deconv(in_size, stride, crop=crop, size=size)


@given(sizes, st.integers(1, 8), sizes)
def test_rescaled_is_one_sampling_of_two_resizes_positions(in_size, scale, size):
    middle = (in_size[0] * scale, in_size[1] * scale)
    once = SamplingGrid.resize(in_size, middle).rescaled(size)
    assert once == SamplingGrid.resize(in_size, size)


@given(st.integers(1, 400), st.integers(-4000, 4000), st.integers(1, 2000))
def test_floats_of_centers_stand_for_the_fractions_they_print_as(tenths, thousandths, size):
    place = Fraction(tenths, 10), Fraction(thousandths, 1000)
    exact = SamplingGrid.centers((4, 4), *place, size, "zero")
    assert SamplingGrid.centers((4, 4), *map(float, place), size, "zero") == exact


def test_calculus_gives_the_offsets_of_the_reference_networks():
    """FCN-32s, 16s and 8s over VGG-16, whose image is padded by 100."""
    image, pools = ReceptiveField(), []
    field = image.conv(3, 1, 100).conv(3, 1, 1).conv(2, 2)
    for convs in (2, 3, 3, 3):
        for _ in range(convs):
            field = field.conv(3, 1, 1)
        field = field.conv(2, 2)
        pools.append(field)
    score = field.conv(7)
    assert score == ReceptiveField(404, Fraction(32), Fraction(25, 2))
    up2 = score.deconv(4, 2)
    up4 = up2.deconv(4, 2)
    finest = (score.deconv(64, 32), up2.deconv(32, 16), up4.deconv(16, 8))
    assert [fine.crop_onto(image) for fine in finest] == [19, 27, 31]
    assert (pools[2].crop_onto(up2), pools[1].crop_onto(up4)) == (5, 9)


@settings(max_examples=40)
@given(sizes, st.sampled_from((1, 2, 3, 4, 5, 7, 8, 16)))
def test_transposed_convolution_and_interpolation_differ_by_the_fading_at_the_borders(size, stride):
    """docs/upsampling.md: T(x) = I(x) T(1), and T(1) is the outer product of the axes' fading."""

    def fading(n):
        t = torch.arange(n * stride, dtype=DOUBLE)
        near, far = (t + 0.5) / stride + 0.5, (n * stride - t - 0.5) / stride + 0.5
        return torch.minimum(near, far).clamp(max=1)

    x, fade = torch.randn(1, 2, *size, dtype=DOUBLE), torch.outer(*map(fading, size))
    kernel = 2 * stride - stride % 2
    grid = SamplingGrid.deconv(size, stride, kernel, (kernel - stride) // 2)
    assert_samples(grid, torch.ones_like(x), fade.expand(1, 2, -1, -1))
    assert_samples(grid, x, F.interpolate(x, None, stride, "bilinear", False) * fade)


@pytest.mark.parametrize(
    ("grid", "axis"),
    [
        (SamplingGrid.deconv((70, 70), 8, crop=31, size=500), (2, 47, 16)),
        (SamplingGrid.deconv((34, 34), 16, crop=27, size=500), (2, 23, 32)),
        (SamplingGrid.deconv((16, 16), 32, crop=19, size=500), (2, -25, 64)),
        (SamplingGrid.deconv((16, 16), 32, 63, crop=18, size=500), (1, -13, 32)),
    ],
    ids=["fcn8s", "fcn16s", "fcn32s", "alexnet"],
)
def test_positions_of_the_paper_are_exact_rationals(grid, axis):
    assert (grid.num[0], grid.off[0], grid.den[0]) == axis


def test_calculus_refuses_what_no_crop_aligns():
    image = ReceptiveField()
    with pytest.raises(ValueError, match="strides|stride 2"):
        image.conv(2, 2).crop_onto(image)
    for offset in (Fraction(1, 2), Fraction(3)):
        with pytest.raises(ValueError, match="no crop"):
            ReceptiveField(offset=offset).crop_onto(image)
