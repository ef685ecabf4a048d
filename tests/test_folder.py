"""The folder data set pairs files by name and says which file is wrong."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcnfast.data.folder import open_folder
from fcnfast.data.tables import CAMVID
from fcnfast.errors import DatasetError, ImageError, LabelError


def _fill(
    images: Path, labels: Path, names: tuple[str, ...], size: tuple[int, int] = (6, 8)
) -> None:
    """Write a picture and labels for each name; the k-th sample's labels are all k."""
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        color = Image.new("RGB", size[::-1], (index, 20, 30))
        color.save(images / f"{name}.png")
        Image.fromarray(np.full(size, index, np.uint8)).save(labels / f"{name}.png")


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """A data set with CamVid's layout and two drives."""
    _fill(tmp_path / "train", tmp_path / "trainannot", ("drive1_b", "drive2_a", "drive1_a"))
    return tmp_path


def test_samples(camvid: Path) -> None:
    """Samples come sorted by name, as an RGB picture and read-only uint8 labels."""
    dataset = open_folder(camvid, "train", CAMVID)
    assert len(dataset) == 3
    assert [image.stem for image, _ in dataset.samples] == ["drive1_a", "drive1_b", "drive2_a"]
    assert all(image.stem == labels.stem for image, labels in dataset.samples)
    for sample, index in zip(dataset, (2, 0, 1), strict=True):
        assert sample.image.mode == "RGB"
        assert np.asarray(sample.image)[0, 0].tolist() == [index, 20, 30]
        assert sample.labels.dtype == np.uint8
        assert (sample.labels == index).all()
        with pytest.raises(ValueError, match="read-only"):
            sample.labels[0, 0] = 1
    assert dataset[-1].name == "drive2_a"
    with pytest.raises(IndexError):
        dataset[3]


def test_other_layouts(tmp_path: Path) -> None:
    """The layout images/split + labels/split, and a folder of labels given by hand."""
    _fill(tmp_path / "images" / "val", tmp_path / "labels" / "val", ("a", "b"))
    assert len(open_folder(tmp_path, "val", CAMVID)) == 2
    _fill(tmp_path / "val", tmp_path / "mine", ("c",))
    dataset = open_folder(tmp_path, "val", CAMVID, labels="mine")
    assert dataset.samples == [(tmp_path / "val" / "c.png", tmp_path / "mine" / "c.png")]
    assert open_folder(tmp_path, "val", CAMVID, tmp_path / "mine").samples == dataset.samples


def test_include_and_exclude(camvid: Path) -> None:
    """Patterns keep or leave out whole drives, in pictures and labels alike."""

    def names(**filters: object) -> list[str]:
        return [sample.name for sample in open_folder(camvid, "train", CAMVID, **filters)]

    assert names(exclude="drive1*") == ["drive2_a"]
    assert names(exclude=["drive1_a", "drive2_a.png"]) == ["drive1_b"]
    assert names(include="*_a") == ["drive1_a", "drive2_a"]
    assert names(include=("*_a",), exclude="drive2*") == ["drive1_a"]
    with pytest.raises(DatasetError, match="left by the patterns"):
        names(exclude="*")


@pytest.mark.parametrize("cache", [False, True])
def test_cache(camvid: Path, cache: bool) -> None:
    """With the cache a file is decoded once; what is handed out stays the same."""
    dataset = open_folder(camvid, "train", CAMVID, cache=cache)
    first = dataset[0]
    pixels = np.array(first.image)
    first.image.paste((255, 255, 255), (0, 0, 8, 6))  # a caller's picture is its own
    (camvid / "train" / "drive1_a.png").unlink()
    if not cache:
        with pytest.raises(ImageError, match=r"drive1_a\.png: no such file"):
            dataset[0]
        return
    again = dataset[0]
    np.testing.assert_array_equal(np.asarray(again.image), pixels)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert again.name == first.name
    assert pickle.loads(pickle.dumps(dataset))[0].name == first.name  # loader workers need this


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    """The message names the folder, and what was expected in it."""
    with pytest.raises(DatasetError, match="gone: no such data set folder"):
        open_folder(tmp_path / "gone", "train", CAMVID)
    with pytest.raises(DatasetError, match="train and trainannot or images/train and labels"):
        open_folder(tmp_path, "train", CAMVID)
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    with pytest.raises(DatasetError, match="train: no pictures in this folder"):
        open_folder(tmp_path, "train", CAMVID)


def test_unpaired_files_are_named(camvid: Path) -> None:
    """A picture without labels, labels without a picture, two pictures of one name."""
    (camvid / "train" / "notes.txt").touch()  # not a picture: no labels are expected
    assert len(open_folder(camvid, "train", CAMVID)) == 3
    (camvid / "trainannot" / "drive1_b.png").unlink()
    with pytest.raises(DatasetError, match=r"no labels for drive1_b\.png"):
        open_folder(camvid, "train", CAMVID)
    assert len(open_folder(camvid, "train", CAMVID, exclude="drive1_b")) == 2
    (camvid / "train" / "drive1_b.png").unlink()
    for index in range(7):
        (camvid / "trainannot" / f"extra{index}.png").touch()
    with pytest.raises(DatasetError, match=r"no picture for extra0\.png.* and 2 more"):
        open_folder(camvid, "train", CAMVID)
    (camvid / "train" / "drive1_a.jpg").touch()
    with pytest.raises(DatasetError, match=r"drive1_a\.jpg and drive1_a\.png"):
        open_folder(camvid, "train", CAMVID, include="drive*")


def test_labels_that_do_not_fit(camvid: Path) -> None:
    """Another size or a value that is not a class is a LabelError that names the file."""
    path = camvid / "trainannot" / "drive1_a.png"
    dataset = open_folder(camvid, "train", CAMVID)
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(path)
    with pytest.raises(LabelError, match=r"drive1_a\.png: the labels are 6x8 .* image is 8x6"):
        dataset[0]
    Image.fromarray(np.full((6, 8), 77, np.uint8)).save(path)
    with pytest.raises(LabelError, match=r"drive1_a\.png: value 77 \(pixels: 48\)"):
        dataset[0]
