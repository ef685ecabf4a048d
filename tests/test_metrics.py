"""The metrics against hand-worked figures and a pixel-by-pixel definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fcnfast.metrics import ConfusionMatrix, format_oracle, format_scores, keep_trimap


def filled(matrix):
    counts = np.array(matrix)
    confusion = ConfusionMatrix(len(counts))
    rows, columns = np.indices(counts.shape)
    confusion.update(rows.ravel().repeat(counts.ravel()), columns.ravel().repeat(counts.ravel()))
    return confusion


def with_trimap():
    matrix = ConfusionMatrix(3, trimap=1)
    matrix.update(np.array([[0, 0, 0, 1]]), np.array([[0, 0, 1, 1]]))
    return matrix


def test_absent_classes():
    """One stray pixel of a class that the truth lacks moves the mean IU from 0.917 to 0.611."""
    # Truth has the classes 0 and 1; one pixel of class 0 is called 2; class 3 is nowhere.
    confusion = filled([[5, 0, 1, 0], [0, 6, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    for absent, iu, counted in (
        ("union", [5 / 6, 1, 0, np.nan], 2),
        ("truth", [5 / 6, 1, np.nan, np.nan], 2),
        ("zero", [5 / 6, 1, 0, 0], 4),
    ):
        scores = confusion.scores(absent)
        np.testing.assert_allclose(scores.iu, iu)
        assert scores.mean_iu == pytest.approx(np.nanmean(iu))
        assert scores.mean_accuracy == pytest.approx((5 / 6 + 1) / counted)
        assert scores.fw_iu == pytest.approx((6 * 5 / 6 + 6) / 12)


@given(data=st.data(), classes=st.integers(1, 9))
def test_update_counts_every_pixel(data, classes):
    """The matrix equals a loop over the pixels, whatever dtype, shape and split into updates."""
    shape = data.draw(npst.array_shapes(min_dims=1, max_dims=3, max_side=6))
    dtype = data.draw(st.sampled_from([np.uint8, np.int16, np.int32, np.int64]))
    label = st.one_of(st.integers(0, classes - 1), st.just(255))
    target = data.draw(npst.arrays(dtype, shape, elements=label))
    prediction = data.draw(npst.arrays(np.uint8, shape, elements=st.integers(0, classes - 1)))
    expected = np.zeros((classes, classes), np.int64)
    for i, j in zip(target.ravel(), prediction.ravel(), strict=True):
        if i != 255:
            expected[i, j] += 1
    whole, parts = ConfusionMatrix(classes), ConfusionMatrix(classes)
    whole.update(torch.from_numpy(target), torch.from_numpy(prediction))
    for i in range(shape[0]):
        parts.update(target[i], prediction[i])
    np.testing.assert_array_equal(whole.matrix, expected)
    np.testing.assert_array_equal(parts.matrix, expected)
    scores = whole.scores()
    for value in (scores.pixel_accuracy, scores.mean_accuracy, scores.mean_iu, scores.fw_iu):
        assert np.isnan(value) or 0.0 <= value <= 1.0


def updated(target, prediction, **options):
    matrix = ConfusionMatrix(3, **options)
    try:
        matrix.update(np.array(target), np.array(prediction))
    finally:
        assert not matrix.matrix.any()  # nothing is added


def test_bad_arguments():
    for call, error, message in (
        (lambda: updated([3, 0, 3], [0, 0, 0]), ValueError, r"target: value 3 \(pixels: 2\)"),
        (lambda: updated([254], [0]), ValueError, r"target: value 254 \(pixels: 1\)"),
        (lambda: updated([0, 0], [0, 7]), ValueError, r"prediction: value 7 \(pixels: 1\)"),
        (lambda: updated([-1, 0, -1], [0, 0, 0]), ValueError, r"target: value -1 \(pixels: 2\)"),
        (lambda: updated([0, 300], [0, 0]), ValueError, r"target: value 300 \(pixels: 1\)"),
        (lambda: updated([0, 0], [0, 0, 0]), ValueError, "shape"),
        (lambda: updated([0], [0], trimap=1), ValueError, r"H×W or N×H×W, not \(1,\)"),
        (lambda: updated([0], [1.5]), TypeError, "prediction must hold integers, not float64"),
        (lambda: ConfusionMatrix(0), ValueError, "0"),
        (lambda: ConfusionMatrix(256), ValueError, "256"),
        (lambda: ConfusionMatrix(2.5), ValueError, "must be an integer, 1 to 255, not 2.5"),
        (lambda: ConfusionMatrix(3).scores("both"), ValueError, "'both'"),
        (lambda: ConfusionMatrix(2, ignore_index=None), TypeError, "ignore_index must be an int"),
        (lambda: ConfusionMatrix(3, trimap=0), ValueError, "trimap must be a positive .* not 0"),
        (lambda: ConfusionMatrix(3, trimap=True), ValueError, "trimap must be .* not True"),
        (lambda: format_scores(ConfusionMatrix(3), "ab"), ValueError, "2 names for 3 classes"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_format():
    table = format_scores(filled([[6, 2, 0], [1, 3, 0], [0, 0, 0]]), ["a", "b", "none"])
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[:2] == ["class IU accuracy Dice", "a 66.7 75.0 80.0"]
    assert lines[3] == "none - - -"
    for mean in ("mean IU 58.3", "mean accuracy 75.0", "mean Dice 73.3"):
        assert f"{mean} over 2 of 3 classes" in lines
    assert len({line.index("  ", 22) for line in table.splitlines()[:4]}) == 1
    full = format_scores(filled(np.eye(3, dtype=int)), ["a", "b", "c"])
    assert full.splitlines()[7].split() == ["mean", "IU", "100.0", "over", "3", "classes"]
    lines = [line.split() for line in format_scores(with_trimap(), "abc").splitlines()]
    assert [line[-1] for line in lines[:4]] == ["IU", "0.0", "50.0", "-"]  # a column of its own
    assert " ".join(lines[-1]) == "mean IU, trimap of 1 px 25.0 over 2 of 3 classes"
    perfect, bad = filled([[2, 0], [0, 2]]), filled([[1, 1], [0, 0]])
    lines = [line.split() for line in format_oracle({1: perfect, 8: bad}).splitlines()]
    assert lines[1] == ["1", *["100.0"] * 5, "2"]
    assert lines[2] == ["8", "50.0", "50.0", "25.0", "50.0", "33.3", "2"]
    head, line = (row.split("  ") for row in format_oracle({4: with_trimap()}).splitlines())
    assert head[-2:] == ["mean IU, trimap of 1 px", "classes"]
    assert [part.strip() for part in line[-2:]] == ["25.0", "2 of 3"]


def near(truth, width):
    found = np.zeros(truth.shape, bool)
    for y, x in np.ndindex(truth.shape):
        rows = slice(max(0, y - width), y + width + 1)
        columns = slice(max(0, x - width), x + width + 1)
        found[y, x] = (truth[rows, columns] != truth[y, x]).any()
    return found


@given(data=st.data(), width=st.integers(1, 5))
def test_a_trimap_is_a_band_along_the_borders(data, width):
    """Of any labels, in blocks or scattered; void makes borders, but its pixels do not count."""
    shape = data.draw(npst.array_shapes(min_dims=2, max_dims=2, max_side=5))
    label = st.sampled_from([0, 1, 2, 254, 255])
    truth = data.draw(npst.arrays(np.uint8, shape, elements=label))
    block = data.draw(st.integers(1, 4))
    truth = truth.repeat(block, 0).repeat(block, 1)
    expected = np.where(near(truth, width), truth, 255)
    for dtype in (torch.uint8, torch.int64):
        found = keep_trimap(torch.from_numpy(truth).to(dtype), width)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.numpy(), expected)
    both = torch.from_numpy(np.stack([truth, truth[::-1]]))
    np.testing.assert_array_equal(keep_trimap(both, width)[1].numpy(), expected[::-1])
    all_of_it = truth if len(np.unique(truth)) > 1 else np.full_like(truth, 255)
    np.testing.assert_array_equal(keep_trimap(torch.from_numpy(truth), 10**9).numpy(), all_of_it)


def test_what_is_ignored():
    confusion = ConfusionMatrix(3)
    confusion.matrix += 2**40  # counts have 64 bits
    confusion.update(np.array([255, 1]), np.array([255, 1]))  # void may be predicted under void
    assert confusion.matrix.sum() == 9 * 2**40 + 1 and confusion.matrix[1, 1] == 2**40 + 1
    matrix = ConfusionMatrix(2, ignore_index=-1)
    matrix.update(np.array([0, 1, -1, 1]), np.array([0, 1, 1, 0]))
    assert matrix.matrix.tolist() == [[1, 0], [1, 1]]
    with pytest.raises(ValueError, match=r"target: value 255 \(pixels: 1\)"):
        matrix.update(np.array([255], np.uint8), np.array([0]))
    with pytest.raises(ValueError, match=r"value 2 .*\(0 to 1, or -1 to ignore\)"):
        matrix.update(np.array([2]), np.array([0]))
    within = ConfusionMatrix(2, ignore_index=0)
    within.update(np.array([0, 1], np.uint8), np.array([1, 1], np.uint8))
    assert within.matrix.tolist() == [[0, 0], [0, 1]]
