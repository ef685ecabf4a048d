"""What the launchers refuse, and that they make nothing of nothing; in the interpreter."""

import pytest
import torch

from tests.kernel_tools import DEVICE, laid_out

from fcnfast.geometry import SamplingGrid  # isort: skip
from fcnfast.kernels import (  # isort: skip
    argmax,
    confusion,
    crop_add,
    cross_entropy,
    cross_entropy_corners,
    deconv,
    deconv_backward,
    upsample,
    upsample_backward,
    winners,
)

IN, SIZE = (2, 3), (4, 6)
NEAR = SamplingGrid.resize(IN, SIZE)
FAR = SamplingGrid(IN, SIZE, (1, 1), (0, 0), (2**24 + 1, 2), "zero")  # remainders of 25 bits
PIXELS = torch.zeros(1, 1, *SIZE)
FILTER = torch.zeros(1, 1, 2, 2)
TARGET = torch.zeros(1, *SIZE, dtype=torch.uint8)
OUT = torch.zeros(1, 1, dtype=torch.int64)
AT_GRIDS = {
    "upsample.forward": lambda x, g: upsample.forward(x, g),
    "upsample.forward_add": lambda x, g: upsample.forward_add(x, PIXELS.to(x.dtype), g, (0, 0)),
    "upsample.adjoint": lambda x, g: upsample.adjoint(PIXELS.to(x.dtype), g),
    "argmax": lambda x, g: argmax.forward(x, g, torch.uint8, False),
    "confusion": lambda x, g: confusion.add(OUT, x, TARGET, g, 255),
    "loss": lambda x, g: cross_entropy.forward(x, TARGET, None, g, 255, "mean", 0.0, True),
    "loss of each pixel": lambda x, g: cross_entropy.per_pixel_gradient(
        x, TARGET, None, g, 255, 0.0, x[:0], PIXELS[0]
    ),
}
WITHOUT_GRIDS = {
    "crop_add": lambda x: crop_add.forward(x, x, (0, 0)),
    "crop_add.backward_skip": lambda x: crop_add.backward_skip(x, x.shape, (0, 0)),
    "deconv": lambda x: deconv.forward(x, FILTER.to(x.dtype), 2, (0, 0), SIZE),
    "deconv.input_gradient": lambda x: deconv.input_gradient(x, FILTER.to(x.dtype), 2, (0, 0), IN),
    "deconv.weight_gradient": lambda x: deconv.weight_gradient(x, x, 2, (0, 0), 2, x.dtype),
    "scaled": lambda x: cross_entropy.scaled(x, x.sum(), x.sum(), torch.float64),
}


@pytest.mark.parametrize("name", [*AT_GRIDS, *WITHOUT_GRIDS])
def test_what_the_kernels_do_not_compute_is_refused(name):
    x = torch.zeros(1, 1, *IN)
    with pytest.raises(ValueError, match="float64 maps need the torch backend"):
        AT_GRIDS[name](x.double(), NEAR) if name in AT_GRIDS else WITHOUT_GRIDS[name](x.double())
    if name in AT_GRIDS:
        with pytest.raises(ValueError, match="positions leave int32"):
            AT_GRIDS[name](x, FAR)


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


LONG = (2, 2**10, 2**20, 1)
TALL, FLAT = SamplingGrid.resize((1, 1), (2**20, 1)), SamplingGrid.resize((2**20, 1), (1, 1))
WIDE = SamplingGrid.resize((2, 2), (2**16, 2**16))
MANY = SamplingGrid.resize((2**16, 2**16), (2**16, 2**16))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crop_add.plan(LONG, torch.float32, False), "rows"),
        (lambda: crop_add.plan((1, 2**11, 1, 2**20), torch.float32, True), "rows"),
        (lambda: upsample.plan(LONG, torch.float32, TALL, False), "rows"),
        (lambda: upsample_backward.plan((2, 2**10, 1, 1), TALL, False, 1), "rows"),
        (lambda: upsample_backward.plan(LONG, FLAT, False, 1), "rows"),
        (lambda: deconv.plan(LONG, torch.float32, False, 4, 2), "rows"),
        (lambda: deconv_backward.weight_plan(LONG, False, 1, 4, 2), "rows"),
        (
            lambda: deconv.input_gradient(meta(*LONG), meta(2**10, 1, 4, 4), 2, (0, 0), (2**19, 1)),
            "rows",
        ),
        (lambda: winners.tiles((2**7, 1, 2, 2), WIDE), "patches"),
        (
            lambda: winners.tiles((1, 1, 2, 2), SamplingGrid.resize((2, 2), (1, 2**27 + 1))),
            "axis",
        ),
        (
            lambda: argmax.forward(meta(1, 1, 2**16, 2**16), MANY, torch.uint8, False),
            "points",
        ),
        (
            lambda: confusion.add(
                meta(2**17, 2**16, dtype=torch.int64),
                meta(1, 2**16, *IN),
                meta(1, *SIZE, dtype=torch.uint8),
                NEAR,
                255,
            ),
            "reaches over",
        ),
        (lambda: cross_entropy_corners.launch_of((2**12, 1, 2**16, 2**16), MANY), "too many"),
    ],
)
def test_more_than_int32_counts(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("batch", [(0, 3), (2, 0)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nothing(batch, layout):
    x = laid_out(torch.zeros(*batch, *IN), layout, torch.float32)
    grad = laid_out(torch.zeros(*batch, *SIZE), layout, torch.float32)
    assert upsample.forward(x, NEAR).shape == grad.shape
    assert upsample.forward_add(x, grad, NEAR, (0, 0)).shape == grad.shape
    assert upsample.adjoint(grad, NEAR).shape == x.shape
    assert crop_add.forward(x, grad, (1, 1)).shape == x.shape
    assert crop_add.backward_skip(x, grad.shape, (1, 1)).shape == grad.shape


def test_no_labels_and_no_counts():
    x, truth = torch.zeros(0, 3, *IN, device=DEVICE), torch.zeros(0, *SIZE, device=DEVICE)
    labels, probability = argmax.forward(x, NEAR, torch.int32, True)
    assert labels.shape == probability.shape == (0, *SIZE)
    assert (labels.dtype, probability.dtype) == (torch.int32, torch.float32)
    out = torch.ones(3, 3, dtype=torch.int64, device=DEVICE)
    confusion.add(out, x, truth, NEAR, 255)
    assert (out == 1).all()
