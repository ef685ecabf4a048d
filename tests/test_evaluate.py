"""Scores of a network and of a folder of label pictures, from one matrix over a data set."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fcnfast.data.classes import ClassTable
from fcnfast.data.folder import Sample, SegmentationDataset, open_folder
from fcnfast.data.images import shrink
from fcnfast.data.labels import write_labels
from fcnfast.data.tables import CAMVID
from fcnfast.errors import DatasetError, ImageError, LabelError
from fcnfast.evaluate import evaluate_folder, evaluate_model, evaluate_oracle, scores_as_json
from fcnfast.geometry import SamplingGrid
from fcnfast.metrics import ConfusionMatrix
from fcnfast.models.base import ScoreMap
from fcnfast.segment import Segmenter
from tests.model_tools import make_photo, make_scene, write_small_weights

TABLE = ClassTable("three", ("a", "b", "c"), ((9, 0, 0), (0, 9, 0), (0, 0, 9)), (7, 255))


class Reader(nn.Module):
    """A network that reads a class from the red channel, and remembers what it was given."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layer = nn.Linear(1, 1)
        self.batches: list[tuple[int, ...]] = []
        self.was_training: set[bool] = set()

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()

    def score_maps(self, images: torch.Tensor, heads: tuple[str]) -> dict[str, ScoreMap]:
        self.batches.append(tuple(images.shape))
        self.was_training.add(self.training)
        scores = F.one_hot(images[:, 0].long(), self.num_classes).permute(0, 3, 1, 2).float()
        size = tuple(images.shape[2:])
        return {"out": ScoreMap(scores, SamplingGrid.resize(size, size))}


class Listed:
    """A data set of given (guess, truth) pairs."""

    table = TABLE

    def __init__(self, *pairs: tuple[np.ndarray, np.ndarray]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        guess, truth = self.pairs[index]
        image = Image.fromarray(np.repeat(guess[..., None], 3, axis=2))
        return Sample(image, truth, f"sample{index}")


def random_pair(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    guess = rng.integers(0, 3, (height, width), dtype=np.uint8)
    return guess, rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))


def counted(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The matrix, pixel by pixel."""
    matrix = np.zeros((3, 3), np.int64)
    for guess, truth in pairs:
        for row, column in zip(truth.ravel(), guess.ravel(), strict=True):
            if row != 255:
                matrix[row, column] += 1
    return matrix


PAIRS = [
    random_pair(*size, seed) for seed, size in enumerate(((4, 5), (4, 5), (4, 5), (7, 3), (4, 5)))
]


def write_dataset(root: Path, pairs: list[tuple[np.ndarray, np.ndarray]]) -> SegmentationDataset:
    """Pictures without meaning, and the pairs' truths with the value 7 for no class."""
    for folder in ("val", "valannot"):
        (root / folder).mkdir(parents=True)
    for number, (_, truth) in enumerate(pairs):
        make_photo(*truth.shape).save(root / "val" / f"p{number}.png")
        write_labels(root / "valannot" / f"p{number}.png", np.where(truth == 255, 7, truth), ())
    return open_folder(root, "val", TABLE)


def write_predictions(folder: Path, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Path:
    folder.mkdir()
    for number, (guess, _) in enumerate(pairs):
        write_labels(folder / f"p{number}.png", guess, TABLE.palette)
    return folder


class TestModel:
    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    def test_every_pixel_is_counted_whatever_the_batch(self, batch_size):
        matrix = evaluate_model(Reader(), Listed(*PAIRS), batch_size=batch_size)
        assert np.array_equal(matrix.matrix, counted(PAIRS))

    def test_only_neighbors_of_one_size_share_a_batch(self):
        model = Reader()
        evaluate_model(model, Listed(*PAIRS), batch_size=2)
        assert model.batches == [(2, 3, 4, 5), (1, 3, 4, 5), (1, 3, 7, 3), (1, 3, 4, 5)]

    @pytest.mark.parametrize("training", [True, False])
    def test_the_network_is_left_as_it_was(self, training):
        model = Reader().train(training)
        evaluate_model(model, Listed(*PAIRS))
        assert model.was_training == {False}
        assert model.training == training

    def test_the_network_is_left_as_it_was_after_an_error(self):
        model = Reader()
        bad = (np.zeros((2, 2), np.uint8), np.full((2, 2), 77, np.uint8))
        with pytest.raises(ValueError, match="77"):
            evaluate_model(model, Listed(bad))
        assert model.training

    def test_a_shrunk_picture_is_scored_at_its_own_size(self):
        model, pair = Reader(), random_pair(8, 10, 3)
        matrix = evaluate_model(model, Listed(pair), max_size=5)
        assert model.batches == [(1, 3, 4, 5)]
        seen = np.asarray(shrink(Listed(pair)[0].image, 5))[..., 0]
        guess = seen.repeat(2, axis=0).repeat(2, axis=1)
        assert np.array_equal(matrix.matrix, counted([(guess, pair[1])]))

    def test_it_agrees_with_the_segmenter(self, tmp_path):
        segmenter = Segmenter(write_small_weights(tmp_path / "w.safetensors"), "cpu")
        scenes = [Sample(*make_scene(seed, 40, 56), "street") for seed in (3, 4)]
        expected = ConfusionMatrix(len(CAMVID))
        for sample in scenes:
            expected.update(sample.labels, segmenter(sample.image).labels)
        found = evaluate_model(segmenter.model, scenes, batch_size=2)
        assert found.matrix.sum() == 2 * 40 * 56
        assert np.array_equal(found.matrix, expected.matrix)

    def test_classes_that_do_not_fit_are_refused(self):
        with pytest.raises(DatasetError, match="21 classes.*'three' has 3"):
            evaluate_model(Reader(21), Listed(*PAIRS))

    def test_an_empty_data_set_is_refused(self):
        with pytest.raises(DatasetError, match="no pictures"):
            evaluate_model(Reader(), Listed())

    @pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"max_size": 0}])
    def test_wrong_numbers_are_refused(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            evaluate_model(Reader(), Listed(*PAIRS), **wrong)

    def test_a_damaged_picture_is_named(self, tmp_path):
        dataset = write_dataset(tmp_path, PAIRS)
        (tmp_path / "val" / "p0.png").write_bytes(b"no picture")
        with pytest.raises(ImageError, match=r"p0\.png"):
            evaluate_model(Reader(), dataset)


class TestFolder:
    def test_every_pixel_is_counted(self, tmp_path):
        dataset = write_dataset(tmp_path / "data", PAIRS)
        predictions = write_predictions(tmp_path / "labels", PAIRS)
        (predictions / "another.png").write_bytes(b"not looked at")
        matrix = evaluate_folder(predictions, dataset)
        assert np.array_equal(matrix.matrix, counted(PAIRS))

    def test_a_missing_folder_or_prediction_is_named(self, tmp_path):
        dataset = write_dataset(tmp_path / "data", PAIRS)
        with pytest.raises(DatasetError, match="labels: no such folder"):
            evaluate_folder(tmp_path / "labels", dataset)
        predictions = write_predictions(tmp_path / "labels", PAIRS)
        (predictions / "p2.png").unlink()
        with pytest.raises(DatasetError, match=r"labels: no prediction p2\.png$"):
            evaluate_folder(predictions, dataset)
        for path in predictions.iterdir():
            path.unlink()
        with pytest.raises(DatasetError, match=r"p0\.png, p1\.png, p2\.png and 2 more"):
            evaluate_folder(predictions, dataset)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.zeros((5, 4), np.uint8), r"p1\.png.*4x5.*5x4"),
            (np.full((4, 5), 3, np.uint8), r"p1\.png: value 3 \(pixels: 20\)"),
        ],
    )
    def test_a_prediction_that_does_not_fit_is_named(self, tmp_path, labels, message):
        dataset = write_dataset(tmp_path / "data", PAIRS)
        predictions = write_predictions(tmp_path / "labels", PAIRS)
        write_labels(predictions / "p1.png", labels, ())
        with pytest.raises(LabelError, match=message):
            evaluate_folder(predictions, dataset)

    def test_pixels_may_lack_a_class_only_where_the_truth_does(self, tmp_path):
        guess, truth = (labels.copy() for labels in PAIRS[0])
        void = int((truth == 255).sum())
        assert void > 0
        dataset = write_dataset(tmp_path / "data", [(guess, truth)])
        guess[truth == 255] = 255
        matrix = evaluate_folder(write_predictions(tmp_path / "fits", [(guess, truth)]), dataset)
        assert matrix.matrix.sum() == 20 - void
        guess[:] = 255
        predictions = write_predictions(tmp_path / "nothing", [(guess, truth)])
        with pytest.raises(LabelError, match=rf"p0\.png: no class in {20 - void} pixels"):
            evaluate_folder(predictions, dataset)


class TestOracle:
    def bound(self, tmp_path: Path, truth: list[list[int]], factor: int) -> np.ndarray:
        labels = np.array(truth, np.uint8)
        dataset = write_dataset(tmp_path, [(labels, labels)])
        (matrix,) = evaluate_oracle(dataset, [factor]).values()
        return matrix.matrix

    def test_by_hand(self, tmp_path):
        """Cells of 2×2; the last ones are cut. Of equals the first class stays."""
        truth = [
            [0, 0, 1, 1, 2],
            [0, 1, 0, 0, 2],
            [2, 255, 255, 255, 1],
        ]
        # 000/0 1: 0; 11/00: a tie, 0; 2/2: 2; 2 and void: 2; void alone; 1.
        found = self.bound(tmp_path, truth, 2)
        assert found.tolist() == [[5, 0, 0], [3, 1, 0], [0, 0, 3]]

    def test_an_edge_falls_on_the_nearest_multiple(self, tmp_path):
        """A border at column 5 moves to 4 at stride 4, and to 8 at stride 8."""
        for factor, wrong in ((1, 0), (4, 1), (8, 3)):
            truth = [[0] * 5 + [1] * 11] * 8
            found = self.bound(tmp_path / str(factor), truth, factor)
            assert found.sum() == 8 * 16
            assert found[0, 1] + found[1, 0] == 8 * wrong

    def test_one_cell_takes_all(self, tmp_path):
        assert self.bound(tmp_path, [[1, 1, 2], [0, 1, 2]], 99).tolist() == [
            [0, 1, 0],
            [0, 3, 0],
            [0, 2, 0],
        ]

    def test_bounds_fall_with_the_factor(self, tmp_path):
        (tmp_path / "val").mkdir(parents=True)
        (tmp_path / "valannot").mkdir()
        for seed in (1, 2):
            photo, labels = make_scene(seed, 72, 96)
            photo.save(tmp_path / "val" / f"s{seed}.png")
            write_labels(tmp_path / "valannot" / f"s{seed}.png", labels, CAMVID.palette)
        dataset = open_folder(tmp_path, "val", CAMVID)
        found = evaluate_oracle(dataset, (1, 2, 4, 8, 16, 32), trimap=2)
        scores = [matrix.scores().mean_iu for matrix in found.values()]
        assert scores[0] == 1.0
        assert scores == sorted(scores, reverse=True) and scores[-1] < 0.6
        for matrix in list(found.values())[1:]:
            assert matrix.trimap.scores().pixel_accuracy < matrix.scores().pixel_accuracy

    def test_bad_factors(self, tmp_path):
        with pytest.raises(ValueError, match="factors must be at least 1, not 0"):
            evaluate_oracle(write_dataset(tmp_path, PAIRS), [4, 0])


def test_a_trimap_of_batches_and_of_files(tmp_path):
    expected = ConfusionMatrix(3, trimap=1)
    for guess, truth in PAIRS:
        expected.update(truth, guess)
    for batch_size in (1, 3):
        found = evaluate_model(Reader(), Listed(*PAIRS), batch_size=batch_size, trimap=1)
        assert np.array_equal(found.matrix, expected.matrix)
        assert np.array_equal(found.trimap.matrix, expected.trimap.matrix)
    dataset = write_dataset(tmp_path / "data", PAIRS)
    predictions = write_predictions(tmp_path / "labels", PAIRS)
    found = evaluate_folder(predictions, dataset, trimap=1)
    assert np.array_equal(found.trimap.matrix, expected.trimap.matrix)


def test_scores_as_json():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    assert scores_as_json(matrix, TABLE.names) == {
        "pixel_accuracy": 0.75,
        "mean_accuracy": pytest.approx((2 / 3 + 1) / 2),
        "mean_iu": pytest.approx((2 / 3 + 1 / 2) / 2),
        "mean_dice": pytest.approx((4 / 5 + 2 / 3) / 2),
        "fw_iu": pytest.approx(3 / 4 * 2 / 3 + 1 / 4 * 1 / 2),
        "classes_in_mean": {"iu": 2, "accuracy": 2, "dice": 2},
        "classes": {
            "a": {"iu": pytest.approx(2 / 3), "accuracy": pytest.approx(2 / 3), "dice": 0.8},
            "b": {"iu": 0.5, "accuracy": 1.0, "dice": pytest.approx(2 / 3)},
            "c": {"iu": None, "accuracy": None, "dice": None},
        },
        "confusion": [[2, 1, 0], [0, 1, 0], [0, 0, 0]],
    }


def test_a_trimap_as_json():
    matrix = ConfusionMatrix(3, trimap=1)
    matrix.update(np.array([[0, 0, 0, 1]]), np.array([[0, 0, 1, 1]]))
    found = scores_as_json(matrix, TABLE.names)["trimap"]
    assert found["width"] == 1
    assert found["confusion"] == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert found["classes"]["b"]["iu"] == 0.5
