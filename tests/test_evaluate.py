"""Scores of a network and of a folder of label pictures, from one matrix over a data set."""

import json

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fcnfast import ClassTable, ConfusionMatrix, SamplingGrid, load_model, save_model
from fcnfast.data import Sample, open_folder, write_labels
from fcnfast.errors import DatasetError, ImageError, InputError, LabelError
from fcnfast.evaluate import evaluate_folder, evaluate_model, evaluate_oracle, scores_as_json
from fcnfast.files import refuse_replacing, write_json
from fcnfast.models.base import ScoreMap
from tests.model_tools import make_photo
from tests.test_images import fail
from tests.test_metrics import with_trimap

TABLE = ClassTable("three", ("a", "b", "c"), ((9, 0, 0), (0, 9, 0), (0, 0, 9)), (7, 255))


class Reader(nn.Module):
    """A network that reads a class from the red channel, and remembers what it was given."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.num_classes = num_classes
        self.layer = nn.Linear(1, 1)
        self.batches, self.was_training = [], set()

    def preprocess(self, images):
        return images.float()

    def score_maps(self, images, heads):
        self.batches.append(tuple(images.shape))
        self.was_training.add(self.training)
        scores = F.one_hot(images[:, 0].long(), self.num_classes).permute(0, 3, 1, 2).float()
        size = tuple(images.shape[2:])
        return {"out": ScoreMap(scores, SamplingGrid.resize(size, size))}


class Listed(list):
    table = TABLE

    def __init__(self, *pairs):
        for guess, truth in pairs:
            self.append(Sample(Image.merge("RGB", [Image.fromarray(guess)] * 3), truth, "sample"))


def random_pair(height, width, seed):
    rng = np.random.default_rng(seed)
    guess = rng.integers(0, 3, (height, width), dtype=np.uint8)
    return guess, rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))


def counted(pairs):
    matrix = np.zeros((3, 3), np.int64)
    for guess, truth in pairs:
        np.add.at(matrix, (truth[truth != 255], guess[truth != 255]), 1)
    return matrix


PAIRS = [
    random_pair(*size, seed) for seed, size in enumerate(((4, 5), (4, 5), (4, 5), (7, 3), (4, 5)))
]


def write_dataset(root, pairs):
    """Pictures without meaning, and the pairs' truths with the value 7 for no class."""
    for folder in ("val", "valannot"):
        (root / folder).mkdir(parents=True)
    for number, (_, truth) in enumerate(pairs):
        make_photo(*truth.shape).save(root / "val" / f"p{number}.png")
        write_labels(root / "valannot" / f"p{number}.png", np.where(truth == 255, 7, truth), ())
    return open_folder(root, "val", TABLE)


def write_predictions(folder, pairs):
    folder.mkdir()
    for number, (guess, _) in enumerate(pairs):
        write_labels(folder / f"p{number}.png", guess, TABLE.palette)
    return folder


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("training", [True, False])
def test_every_pixel_is_counted_whatever_the_batch(batch_size, training):
    model, seen = Reader().train(training), []
    expected = ConfusionMatrix(3, trimap=1)
    for guess, truth in PAIRS:
        expected.update(truth, guess)
    options = {"batch_size": batch_size, "trimap": 1}
    options["each"] = lambda sample, labels: seen.append((labels, sample.labels))
    matrix = evaluate_model(model, Listed(*PAIRS), **options)
    assert np.array_equal(matrix.matrix, counted(PAIRS))
    assert np.array_equal(matrix.trimap.matrix, expected.trimap.matrix)
    assert np.array_equal(counted(seen), counted(PAIRS))
    assert model.was_training == {False} and model.training == training
    if batch_size == 2:  # only neighbors of one size share a batch
        assert model.batches == [(2, 3, 4, 5), (1, 3, 4, 5), (1, 3, 7, 3), (1, 3, 4, 5)]


def test_what_is_refused():
    for classes, pairs, error, message in (
        (21, PAIRS, DatasetError, "21 classes.*'three' has 3"),
        (3, [], DatasetError, "no pictures"),
        (3, [(np.zeros((2, 2), np.uint8), np.full((2, 2), 77, np.uint8))], ValueError, "77"),
    ):
        model = Reader(classes)
        with pytest.raises(error, match=message):
            evaluate_model(model, Listed(*pairs))
        assert model.training  # as it was


def test_pictures_that_cannot_be_evaluated_are_named(tmp_path, monkeypatch):
    dataset, model = write_dataset(tmp_path, PAIRS), Reader()
    monkeypatch.setattr(model, "score_maps", fail(MemoryError()))
    told = "p0: 5x4 pixels are too many for the memory of cpu"
    with pytest.raises(ImageError, match=told):
        evaluate_model(model, dataset)
    (tmp_path / "val" / "p0.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"p0\.png"):
        evaluate_model(model, dataset)


def test_a_folder(tmp_path):
    dataset = write_dataset(tmp_path / "data", PAIRS)
    with pytest.raises(DatasetError, match="labels: no such folder"):
        evaluate_folder(tmp_path / "labels", dataset)
    predictions = write_predictions(tmp_path / "labels", PAIRS)
    (predictions / "another.png").write_bytes(b"not looked at")
    found = evaluate_folder(predictions, dataset, trimap=1)
    expected = evaluate_model(Reader(), Listed(*PAIRS), trimap=1)
    assert np.array_equal(found.matrix, counted(PAIRS))
    assert np.array_equal(found.trimap.matrix, expected.trimap.matrix)
    (predictions / "p2.png").unlink()
    with pytest.raises(DatasetError, match=r"labels: no prediction p2\.png$"):
        evaluate_folder(predictions, dataset)
    for path in predictions.iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"p0\.png, p1\.png, p2\.png and 2 more"):
        evaluate_folder(predictions, dataset)


def test_a_prediction_that_does_not_fit_is_named(tmp_path):
    dataset = write_dataset(tmp_path / "data", PAIRS)
    predictions = write_predictions(tmp_path / "labels", PAIRS)
    for labels, message in (
        (np.zeros((5, 4), np.uint8), r"p1\.png.*4x5.*5x4"),
        (np.full((4, 5), 3, np.uint8), r"p1\.png: value 3 \(pixels: 20\)"),
        (np.full((4, 5), 255, np.uint8), rf"p1\.png: no class in {(PAIRS[1][1] < 255).sum()} pix"),
    ):
        write_labels(predictions / "p1.png", labels, ())
        with pytest.raises(LabelError, match=message):
            evaluate_folder(predictions, dataset)
    # Pixels may lack a class only where the truth does.
    write_labels(predictions / "p1.png", np.where(PAIRS[1][1] == 255, 255, 0).astype(np.uint8), ())
    assert evaluate_folder(predictions, dataset).matrix.sum() == counted(PAIRS).sum()


def test_upper_bounds_by_hand(tmp_path):
    for factor, truth, expected in (
        # Cells of 2×2; the last ones are cut. Of equals the first class stays: 000/0 1: 0;
        # 11/00: a tie, 0; 2/2: 2; 2 and void: 2; void alone; 1.
        (
            2,
            [[0, 0, 1, 1, 2], [0, 1, 0, 0, 2], [2, 255, 255, 255, 1]],
            [[5, 0, 0], [3, 1, 0], [0, 0, 3]],
        ),
        # A border at column 5 moves to 4 at stride 4, and to 8 at stride 8.
        (1, [[0] * 5 + [1] * 11] * 8, [[40, 0, 0], [0, 88, 0], [0, 0, 0]]),
        (4, [[0] * 5 + [1] * 11] * 8, [[32, 8, 0], [0, 88, 0], [0, 0, 0]]),
        (8, [[0] * 5 + [1] * 11] * 8, [[40, 0, 0], [24, 64, 0], [0, 0, 0]]),
        (99, [[1, 1, 2], [0, 1, 2]], [[0, 1, 0], [0, 3, 0], [0, 2, 0]]),
    ):
        labels = np.array(truth, np.uint8)
        dataset = write_dataset(tmp_path / f"{factor}", [(labels, labels)])
        assert evaluate_oracle(dataset, [factor])[factor].matrix.tolist() == expected
        with pytest.raises(ValueError, match="factors must be at least 1, not 0"):
            evaluate_oracle(dataset, [factor, 0])


def test_scores_as_json():
    found = scores_as_json(with_trimap(), TABLE.names)
    trimap = found.pop("trimap")
    assert found == {
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
    assert trimap["width"] == 1 and trimap["classes"]["b"]["iu"] == 0.5
    assert trimap["confusion"] == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_json_never_replaces_an_input_and_reaches_a_device(tmp_path, capfd):
    weights = tmp_path / "w.safetensors"
    save_model(load_model(), weights)
    with pytest.raises(InputError, match=r"w\.safetensors: would be replaced by an output"):
        refuse_replacing([weights], [weights])
    for content in ({"a": 1}, {"b": 2}):
        write_json(tmp_path / "out.json", content)
    assert json.loads((tmp_path / "out.json").read_text()) == {"b": 2}
    write_json("/dev/stdout", {"c": 3})
    assert json.loads(capfd.readouterr().out) == {"c": 3}
    with pytest.raises(OSError, match="/dev/full"):
        write_json("/dev/full", {})
