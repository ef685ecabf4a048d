"""The metrics against hand-worked figures and a pixel-by-pixel definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fcnfast.metrics import ConfusionMatrix, format_scores


def _filled(matrix: list[list[int]]) -> ConfusionMatrix:
    """Return a ConfusionMatrix with given counts, entered pixel by pixel."""
    counts = np.array(matrix)
    confusion = ConfusionMatrix(len(counts))
    rows, columns = np.indices(counts.shape)
    confusion.update(rows.ravel().repeat(counts.ravel()), columns.ravel().repeat(counts.ravel()))
    return confusion


def test_scores_by_hand() -> None:
    """Two classes: 6 of 8 and 3 of 4 right."""
    confusion = _filled([[6, 2], [1, 3]])
    assert confusion.matrix.dtype == np.int64
    assert confusion.matrix.tolist() == [[6, 2], [1, 3]]
    scores = confusion.scores()
    assert scores.pixel_accuracy == pytest.approx(9 / 12)
    assert scores.mean_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    np.testing.assert_allclose(scores.iu, [6 / 9, 3 / 6])
    assert scores.mean_iu == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert scores.fw_iu == pytest.approx((8 * 6 / 9 + 4 * 3 / 6) / 12)


@pytest.mark.parametrize(
    ("absent", "mean_iu", "mean_accuracy"),
    [
        # Truth has the classes 0 and 1; one pixel of class 0 is called 2; class 3 is nowhere.
        ("union", (5 / 6 + 1 + 0) / 3, (5 / 6 + 1) / 2),
        ("truth", (5 / 6 + 1) / 2, (5 / 6 + 1) / 2),
        ("zero", (5 / 6 + 1) / 4, (5 / 6 + 1) / 4),
    ],
)
def test_absent_classes(absent: str, mean_iu: float, mean_accuracy: float) -> None:
    """One stray pixel of a class that the truth lacks moves the mean IU from 0.917 to 0.611."""
    confusion = _filled([[5, 0, 1, 0], [0, 6, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = confusion.scores(absent)
    assert scores.mean_iu == pytest.approx(mean_iu)
    assert scores.mean_accuracy == pytest.approx(mean_accuracy)
    assert scores.fw_iu == pytest.approx((6 * 5 / 6 + 6) / 12)
    if absent == "union":
        assert round(scores.mean_iu, 3) == 0.611
        assert scores.iu[2] == 0.0
        assert np.isnan(scores.iu[3])
    if absent == "truth":
        assert round(scores.mean_iu, 3) == 0.917
        assert np.isnan(scores.iu[2])


def test_nothing_seen() -> None:
    """No pixel gives NaN, not a warning or a crash."""
    confusion = ConfusionMatrix(3)
    confusion.update(np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8))
    for absent in ("union", "truth"):
        scores = confusion.scores(absent)
        assert np.isnan([scores.pixel_accuracy, scores.mean_iu, scores.fw_iu]).all()
    assert "-" in format_scores(confusion.scores(), ["a", "b", "c"])


@given(data=st.data(), classes=st.integers(1, 9))
def test_update_counts_every_pixel(data: st.DataObject, classes: int) -> None:
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


def test_counts_pass_32_bits() -> None:
    """Counts are int64: a thousand megapixel pictures do not wrap round."""
    confusion = ConfusionMatrix(2)
    confusion.matrix += 2**40
    confusion.update(np.array([0], np.uint8), np.array([1], np.uint8))
    assert confusion.matrix[0, 1] == 2**40 + 1
    assert confusion.scores().pixel_accuracy == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("target", "prediction", "message"),
    [
        ([3, 0, 3], [0, 0, 0], "target: value 3 .pixels: 2"),
        ([254], [0], "target: value 254 .pixels: 1"),
        ([0, 0], [0, 7], "prediction: value 7 .pixels: 1"),
        ([-1, 0, -1], [0, 0, 0], "target: value -1 .pixels: 2"),
        ([0, 300], [0, 0], "target: value 300 .pixels: 1"),
        ([0, 0], [0, 0, 0], "shape"),
    ],
)
def test_bad_labels(target: list[int], prediction: list[int], message: str) -> None:
    """A label that is no class is refused by value and count, and nothing is added."""
    confusion = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        confusion.update(np.array(target), np.array(prediction))
    assert not confusion.matrix.any()


def test_a_prediction_under_void_does_not_matter() -> None:
    """Where the truth is 255 the prediction may be anything."""
    confusion = ConfusionMatrix(3)
    confusion.update(np.array([255, 1]), np.array([255, 1]))
    assert confusion.matrix.sum() == confusion.matrix[1, 1] == 1


def test_wrong_types() -> None:
    """Floats, a class count and a policy that make no sense are refused."""
    with pytest.raises(TypeError, match="prediction must hold integers"):
        ConfusionMatrix(3).update(np.array([1]), np.array([1.0]))
    for count in (0, 256):
        with pytest.raises(ValueError, match=str(count)):
            ConfusionMatrix(count)
    with pytest.raises(ValueError, match="'both'"):
        ConfusionMatrix(3).scores("both")


def test_format() -> None:
    """The table shows percent with one decimal, and a dash for a class that is nowhere."""
    table = format_scores(_filled([[6, 2, 0], [1, 3, 0], [0, 0, 0]]).scores(), ["a", "b", "none"])
    lines = [line.split() for line in table.splitlines()]
    assert lines[1] == ["a", "66.7", "75.0"]
    assert lines[3] == ["none", "-", "-"]
    assert ["mean", "IU", "58.3", "over", "2", "of", "3", "classes"] in lines
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        format_scores(_filled([[1, 0, 0], [0, 1, 0], [0, 0, 1]]).scores(), ["a", "b"])


def test_another_value_to_ignore() -> None:
    """The value is left out of the truth, and 255 is then no label."""
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
    with pytest.raises(TypeError, match="ignore_index must be an integer"):
        ConfusionMatrix(2, ignore_index=None)
