"""The folder data set pairs files by name and says which file is wrong."""

import json
import pickle
import unicodedata

import numpy as np
import pytest
from PIL import Image

from fcnfast import CAMVID, evaluate_folder, evaluate_model, load_model
from fcnfast.data.folder import image_paths, open_folder, passed_over, wrap_dataset
from fcnfast.errors import DatasetError, LabelError
from tests.model_tools import make_photo


def fill(images, labels, names, size=(6, 8)):
    """Write a picture and labels for each name; the k-th sample's labels are all k."""
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        Image.new("RGB", size[::-1], (index, 20, 30)).save(images / f"{name}.png")
        Image.fromarray(np.full(size, index, np.uint8)).save(labels / f"{name}.png")


@pytest.fixture
def camvid(tmp_path):
    """A data set with CamVid's layout and two drives."""
    fill(tmp_path / "train", tmp_path / "trainannot", ("drive1_b", "drive2_a", "drive1_a"))
    return tmp_path


def opened(root, **options):
    return open_folder(root, "train", CAMVID, **options)


def test_samples_are_sorted_rgb_and_read_only(camvid):
    dataset = opened(camvid)
    assert [image.stem for image, _ in dataset.samples] == ["drive1_a", "drive1_b", "drive2_a"]
    assert all(image.stem == labels.stem for image, labels in dataset.samples)
    for sample, index in zip(dataset, (2, 0, 1), strict=True):
        assert sample.image.mode == "RGB"
        assert np.asarray(sample.image)[0, 0].tolist() == [index, 20, 30]
        assert sample.labels.dtype == np.uint8 and (sample.labels == index).all()
        with pytest.raises(ValueError, match="read-only"):
            sample.labels[0, 0] = 1
    assert dataset[-1].name == "drive2_a"
    with pytest.raises(IndexError):
        dataset[3]


def test_layouts(tmp_path):
    with pytest.raises(DatasetError, match="gone: no such data set folder"):
        opened(tmp_path / "gone")
    with pytest.raises(DatasetError, match="train and trainannot or images/train and labels"):
        opened(tmp_path)
    fill(tmp_path / "train", tmp_path / "trainannot", ())
    with pytest.raises(DatasetError, match="train: no pictures in this folder"):
        opened(tmp_path)
    fill(tmp_path / "images" / "val", tmp_path / "labels" / "val", ("a", "b"))
    assert len(open_folder(tmp_path, "val", CAMVID)) == 2
    fill(tmp_path / "val", tmp_path / "mine", ("c",))
    dataset = open_folder(tmp_path, "val", CAMVID, labels="mine")
    assert dataset.samples == [(tmp_path / "val" / "c.png", tmp_path / "mine" / "c.png")]
    assert open_folder(tmp_path, "val", CAMVID, tmp_path / "mine").samples == dataset.samples


def test_include_and_exclude(camvid):
    for filters, names in (
        ({"exclude": "drive1*"}, ["drive2_a"]),
        ({"exclude": ["drive1_a", "drive2_a.png"]}, ["drive1_b"]),
        ({"include": ("*_a",), "exclude": "drive2*"}, ["drive1_a"]),
    ):
        assert opened(camvid, **filters).names == names
    with pytest.raises(DatasetError, match="patterns leave no pictures"):
        opened(camvid, exclude="*")


def test_composed_and_decomposed_names(tmp_path):
    composed = unicodedata.normalize("NFC", "straße-né")
    fill(tmp_path / "train", tmp_path / "trainannot", (composed,))
    labels = tmp_path / "trainannot" / f"{composed}.png"
    labels.rename(labels.with_stem(unicodedata.normalize("NFD", composed)))
    dataset = opened(tmp_path, include="*né")
    assert evaluate_folder(tmp_path / "trainannot", dataset).matrix[0, 0] == 48


def test_with_a_cache_a_file_is_decoded_once(camvid):
    dataset = opened(camvid, cache=True)
    first = dataset[0]
    pixels = np.array(first.image)
    first.image.paste((255, 255, 255), (0, 0, 8, 6))  # a caller's picture is its own
    (camvid / "train" / "drive1_a.png").unlink()
    again = dataset[0]
    np.testing.assert_array_equal(np.asarray(again.image), pixels)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert again.name == first.name
    assert pickle.loads(pickle.dumps(dataset))[0].name == first.name  # loader workers need this


def test_unpaired_files_are_named(camvid):
    (camvid / "train" / "notes.txt").touch()  # not a picture: no labels are expected
    assert len(opened(camvid)) == 3
    (camvid / "trainannot" / "drive1_b.png").unlink()
    with pytest.raises(DatasetError, match=r"no labels for drive1_b\.png"):
        opened(camvid)
    assert len(opened(camvid, exclude="drive1_b")) == 2
    (camvid / "train" / "drive1_b.png").unlink()
    for index in range(7):
        (camvid / "trainannot" / f"extra{index}.png").touch()
    with pytest.raises(DatasetError, match=r"no picture for extra0\.png.* and 2 more"):
        opened(camvid)
    (camvid / "train" / "drive1_a.jpg").touch()
    with pytest.raises(DatasetError, match=r"drive1_a\.jpg and drive1_a\.png"):
        opened(camvid, include="drive*")


def test_labels_that_do_not_fit(camvid):
    def refused(message):
        with pytest.raises(LabelError, match=rf"drive1_a\.png: {message}"):
            opened(camvid)[0]

    exif = Image.Exif()
    exif[0x0112] = 6
    make_photo(6, 8).save(camvid / "train" / "drive1_a.png", exif=exif)
    refused("the labels are 8x6 pixels, their image is 6x8: EXIF turns it upright, and the labels")
    Image.new("L", (7, 8)).save(camvid / "trainannot" / "drive1_a.png")
    refused("the labels are 7x8 pixels, their image is 6x8$")
    Image.new("L", (6, 8), 77).save(camvid / "trainannot" / "drive1_a.png")
    refused(r"value 77 \(pixels: 48\)")


def test_entries_beside_a_named_table(camvid):
    classes = {"names": ["x", "y", "z"]}
    (camvid / "own.json").write_text(json.dumps(classes))
    described = {"classes": "own.json", "label_map": {"0": "y", "1": "x", "2": "void"}}
    (camvid / "dataset.json").write_text(json.dumps(described))
    assert [int(sample.labels[0, 0]) for sample in open_folder(camvid, "train")] == [255, 1, 0]
    (camvid / "dataset.json").write_text(json.dumps({**described, "imagse": "train"}))
    with pytest.raises(DatasetError, match="unknown entry 'imagse'"):
        open_folder(camvid, "train")


def test_links_to_nothing_and_other_files_are_named(tmp_path):
    make_photo().save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "c.heic").touch()
    for spec in (tmp_path, tmp_path / "*"):
        assert [path.name for path in image_paths(spec)] == ["a.png", "b.png"]
        assert [path.name for path in passed_over([spec])] == ["c.heic"]


def test_items_that_are_no_pairs():
    photo, labels = make_photo(), np.zeros((3, 4), np.uint8)
    for item, told in (
        ({"image": photo, "mask": labels}, "item 0: must be .*, not a dict with 'image', 'mask'"),
        ((photo,), "item 0: must be .*, not a tuple"),
    ):
        with pytest.raises(TypeError, match=told):
            wrap_dataset([item], CAMVID)[0]
    with pytest.raises(LabelError, match="item 0: the labels are 4x3 pixels"):
        wrap_dataset([(photo, labels)], CAMVID)[0]
    with pytest.raises(TypeError, match="item 0 of the data set must be a Sample, not a tuple"):
        evaluate_model(load_model(), [(photo, labels)])
