"""The amortization suite: the patches, and the table of what was measured."""

import pytest
import torch
from torch import nn

pytest.importorskip("bench.amortization")

from bench import amortization, run
from bench.timing import Time


def test_patches_are_the_windows():
    image = torch.arange(3 * 500 * 500.0).reshape(1, 3, 500, 500)
    windows = amortization.patches(image)
    assert windows.shape == (100, 3, 227, 227)
    assert torch.equal(windows[12], image[0, :, 32 : 32 + 227, 64 : 64 + 227])
    last = windows[99]
    assert torch.equal(last[:, :212, :212], image[0, :, 288:, 288:])
    assert not last[:, 212:].any() and not last[..., 212:].any()


def test_a_network_of_another_grid_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 2, 227, stride=64))
    image = torch.zeros(1, 3, 500, 500)
    with pytest.raises(ValueError, match=r"grid is \(5, 5\)"):
        amortization.check(model, image, amortization.patches(image))


def test_the_table_shows_both():
    time = {"forward": Time(10.0, 9.0, 11.0, 3), "both": Time(30.0, 29.0, 31.0, 3)}
    slow = {"forward": Time(80.0, 9.0, 11.0, 3), "both": Time(200.0, 29.0, 31.0, 3)}
    found = {"whole image": time, "patches, batched": slow, "patches, one by one": slow}
    text = "\n".join(amortization.lines(found))
    assert "80 (8.0x)" in text and "200 (6.7x)" in text
    assert "120 (5.5x)" in text and "240 (6.5x)" in text  # the paper's
    assert amortization.as_dict(found)["amortization"]["ms"]["whole image"]["both"]["median"] == 30


def test_it_is_a_suite_by_itself(capsys):
    assert run.main(["--suite", "amortization", "voc"]) == 2
    assert "no other suite" in capsys.readouterr().err
