"""Upsampling by transposed convolution and by interpolation: how they relate, exactly.

T is the transposed convolution with the bilinear filter of stride s and kernel k = 2s - s mod 2,
padded by p = (k - s) / 2; I is ``F.interpolate`` by s. T extends the map by zeros, I repeats its
edge. The relations are checked of `ops.upsample`, mostly against torch's own T and I.
"""

import torch
import torch.nn.functional as F
from hypothesis import event, given, settings
from hypothesis import strategies as st

from fcnfast import ops
from fcnfast.geometry import SamplingGrid
from fcnfast.nn import bilinear_filter

DOUBLE = torch.float64
strides = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 16, 32))
some = settings(max_examples=40)


@st.composite
def maps(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (1, 2, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    event(f"one-pixel map: {1 in shape[2:]}")
    return torch.randn(shape, generator=generator, dtype=DOUBLE)


def kernel_of(stride):
    kernel = 2 * stride - stride % 2
    return kernel, (kernel - stride) // 2


def size_of(x):
    return tuple(x.shape[-2:])


def transposed(x, stride):
    """Our T."""
    return ops.upsample(x, SamplingGrid.deconv(size_of(x), stride, *kernel_of(stride)))


def torchs_transposed(x, stride, kernel, padding):
    weight = bilinear_filter(kernel, DOUBLE).expand(x.shape[1], 1, kernel, kernel)
    return F.conv_transpose2d(x, weight, stride=stride, padding=padding, groups=x.shape[1])


def interpolated(x, stride):
    """Our I."""
    return ops.upsample(x, SamplingGrid.resize(size_of(x), scale_factor=stride))


def torchs_interpolated(x, stride):
    return F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)


def inner(x, margin):
    """Without `margin` pixels at each side."""
    return F.pad(x, [-margin] * 4)


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=2e-14, atol=2e-14 * (1 + b.abs().max().item()))


@some
@given(maps(), strides)
def test_they_differ_by_the_fading_at_the_borders(x, stride):
    """T(x) = I(x) E, with E the outer product of the axes' fading and T of ones."""

    def fading(n):
        t = torch.arange(n * stride, dtype=DOUBLE)
        near, far = (t + 0.5) / stride + 0.5, (n * stride - t - 0.5) / stride + 0.5
        return torch.minimum(near, far).clamp(max=1)

    fade = torch.outer(*(fading(n) for n in size_of(x)))
    assert_equal(transposed(torch.ones_like(x), stride), fade.expand(*x.shape[:2], -1, -1))
    assert_equal(transposed(x, stride), torchs_interpolated(x, stride) * fade)


@some
@given(maps(), strides)
def test_the_map_extended_by_zeros_and_by_its_edge(x, stride):
    kernel, padding = kernel_of(stride)
    wide = torchs_interpolated(F.pad(x, (1, 1, 1, 1)), stride)
    assert_equal(transposed(x, stride), inner(wide, stride))
    full = ops.upsample(x, SamplingGrid.deconv(size_of(x), stride))  # without padding
    assert_equal(full, inner(wide, stride - padding))
    wide = torchs_transposed(F.pad(x, (1, 1, 1, 1), "replicate"), stride, kernel, padding)
    assert_equal(interpolated(x, stride), inner(wide, stride))


@some
@given(maps(), strides)
def test_the_odd_kernel_of_an_even_stride_aligns_corners(x, stride):
    """k = 2s - 1, cropped by s - 1, samples whole pixels: to (n - 1) s + 1 between the corners."""
    kernel, margin = 2 * stride - 1, stride - 1
    size = tuple((n - 1) * stride + 1 for n in size_of(x))
    grid = SamplingGrid.deconv(size_of(x), stride, kernel, crop=margin, size=size)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
    assert_equal(ops.upsample(x, grid), expected)
    aligned = SamplingGrid.resize(size_of(x), size, align_corners=True)
    assert_equal(ops.upsample(x, aligned), expected)
    assert_equal(inner(torchs_transposed(x, stride, kernel, 0), margin), expected)


@some
@given(st.integers(0, 2**31), st.sampled_from((2, 3, 4, 5)), st.sampled_from((2, 3, 4, 8)))
def test_a_chain_is_one_step_if_the_first_is_odd(seed, first, second):
    """An even step has no pixel at the values of the map, where straight lines meet.

    So 2 then 8 is not 16: noise differs by a part of its own deviation, also inside.
    """
    x = torch.randn(1, 2, 6, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    chain = transposed(transposed(x, first), second)
    once = transposed(x, first * second)
    chain, once = (inner(y, 2 * first * second) for y in (chain, once))
    if first % 2:
        assert_equal(chain, once)
    else:
        assert (chain - once).abs().max() > 0.01


@some
@given(maps(), strides, st.integers(0, 99))
def test_the_gradient_is_a_strided_convolution(x, stride, seed):
    kernel, padding = kernel_of(stride)
    result = transposed(x.requires_grad_(), stride)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(result.shape, generator=generator, dtype=DOUBLE)
    weight = bilinear_filter(kernel, DOUBLE).expand(2, 1, kernel, kernel)
    expected = F.conv2d(cotangent, weight, stride=stride, padding=padding, groups=2)
    assert_equal(torch.autograd.grad(result, x, cotangent)[0], expected)


@some
@given(maps(), st.integers(1, 40))
def test_fcn32s_end_to_end(x, height):
    """Row y of the score is the zero-extended map at (y - 12.5) / 32."""
    size = (min(height, size_of(x)[0] * 32), 20)
    grid = SamplingGrid.deconv(size_of(x), 32, crop=19, size=size)
    rows, columns = (
        (1 - ((torch.arange(m)[:, None] - 12.5) / 32 - torch.arange(n)).abs()).clamp(min=0).double()
        for m, n in zip(size, size_of(x), strict=True)
    )
    assert_equal(ops.upsample(x, grid), rows @ x @ columns.T)
    assert SamplingGrid.centers(size_of(x), 32, 12.5, size, "zero") == grid
