"""upsample_confusion against a count of the labels that upsample_argmax gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnfast import ops, reference
from fcnfast.geometry import SamplingGrid
from fcnfast.tiled import confusion
from tests.op_tools import FLOATS, LABELS, allocations, counted, grids, maps

GRID = SamplingGrid.resize((4, 5), (40, 50))
PACKED = [4, 5, 40, 50, 1, 1, 0, 0, 10, 10], True


@settings(max_examples=50)
@given(st.data(), grids(most=12), st.sampled_from(FLOATS), st.sampled_from(LABELS))
def test_counts_every_pixel_once(data, grid, dtype, label_dtype):
    x = data.draw(maps(grid.in_size, dtype))
    classes = x.shape[1]
    ignore_index = data.draw(st.sampled_from((255, -100, 0)))
    values = [*range(classes + 2), 255, max(-100, torch.iinfo(label_dtype).min)]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    pick = torch.randint(len(values), (x.shape[0], *grid.size), generator=generator)
    target = torch.tensor(values)[pick].to(label_dtype)
    before = torch.randint(0, 9, (classes + 1, classes), generator=generator)
    out = before.clone()
    assert ops.upsample_confusion(x, target, grid, ignore_index=ignore_index, out=out) is out
    expected = counted(ops.upsample_argmax(x, grid), target, classes, ignore_index)
    assert torch.equal(out - before, expected)
    strays = bool(expected[classes].any())
    if strays:  # nothing is counted when a label is refused
        out = before[:classes].clone()
        with pytest.raises(ValueError, match="out of range"):
            ops.upsample_confusion(x, target, grid, ignore_index=ignore_index, out=out)
        assert torch.equal(out, before[:classes])
    else:
        counts = ops.upsample_confusion(x, target, grid, ignore_index=ignore_index)
        assert torch.equal(counts, expected[:classes])


def test_is_the_definition_where_no_two_classes_are_close():
    x = torch.randint(-9, 9, (2, 4, 4, 5), generator=torch.Generator().manual_seed(3)).double()
    x[:, 0] += 0.123456789
    x[:, 1] += 0.314159265
    x[:, 2] += 0.577215664
    target = torch.arange(4000).view(2, 40, 50) % 6
    out = torch.zeros(5, 4, dtype=torch.int64)
    ops.upsample_confusion(x, target, GRID, ignore_index=2, out=out)
    assert torch.equal(out, reference.upsample_confusion(x, target, GRID, ignore_index=2))
    assert out[4].any() and not out[2].any()


def test_what_is_counted_in_pieces_by_image_and_of_nothing(monkeypatch):
    x = torch.randn(3, 300, 4, 5, requires_grad=True)
    target = (torch.arange(6000) % 300).view(3, 40, 50).short()
    labels = ops.upsample_argmax(x, GRID, dtype=torch.int16)
    whole = ops.upsample_confusion(x, target, GRID, ignore_index=-1)
    assert torch.equal(whole, counted(labels, target, 300, -1)[:300])
    assert not whole.requires_grad
    part = torch.zeros(301, 600, dtype=torch.int64)[:300, ::2]  # any strides
    for image in range(3):
        one = x[image : image + 1], target[image : image + 1]
        ops.upsample_confusion(*one, GRID, ignore_index=-1, out=part)
    assert torch.equal(part, whole)
    assert not ops.upsample_confusion(x[:0], target[:0], GRID).any()
    for pixels in (1, 130, 600):
        monkeypatch.setattr(confusion, "PIXELS", pixels)
        assert torch.equal(ops.upsample_confusion(x, target, GRID, ignore_index=-1), whole)


def test_the_out_that_is_changed_has_a_new_version():
    """Autograd notices when something it kept is overwritten."""
    out = torch.zeros(3, 3, dtype=torch.int64)
    before = out._version
    x, target = torch.randn(1, 3, 4, 5), torch.zeros(1, 40, 50, dtype=torch.uint8)
    torch.ops.fcnfast.upsample_confusion(out, x, target, *PACKED, 255, None)
    assert out._version > before and out.sum() == 2000
    with torch.inference_mode():
        ops.upsample_confusion(x, target, GRID, out=torch.zeros_like(out))


def test_memory_stays_far_below_the_logits():
    grid = SamplingGrid.resize((32, 32), (256, 256))
    x, target = torch.randn(1, 20, 32, 32), torch.zeros(1, 256, 256, dtype=torch.uint8)
    ops.upsample_confusion(x, target, grid)
    sizes = allocations(lambda: ops.upsample_confusion(x, target, grid))
    assert max(sizes) < x.shape[1] * 256 * 256 * 4 / 4
