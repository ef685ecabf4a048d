"""Each data set in miniature, exactly as it lies on disk: opened, checked, trained on, scored."""

import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fcnfast import data
from fcnfast.cli import main
from fcnfast.data.tables import PASCAL_CONTEXT_59
from fcnfast.errors import DatasetError, LabelError

SIZE = (40, 48)


def below(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def photo(path, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(below(path))


def stored(values, seed, dtype=np.uint8):
    chance = np.random.default_rng(seed)
    labels = chance.choice(values, SIZE)
    labels.ravel()[chance.permutation(labels.size)[: len(values)]] = values
    return labels.astype(dtype)


def mask(path, labels, palette=False):
    image = Image.fromarray(labels)
    if palette:
        image.putpalette([channel for color in data.voc_palette(256) for channel in color])
    image.save(below(path))


def mat(path, **variables):
    scipy.io.savemat(below(path), variables)


def lines(path, *names):
    below(path).write_text("".join(f"{name}\n" for name in names))


def make_voc(root):
    """VOC2012: palette PNGs, 255 around objects."""
    home, truth = root / "VOCdevkit" / "VOC2012", {}
    for k, name in enumerate(("2007_000032", "2008_000002", "2011_000003", "2012_000004")):
        photo(home / "JPEGImages" / f"{name}.jpg", k)
        truth[name] = stored([*range(21), 255], k)
        mask(home / "SegmentationClass" / f"{name}.png", truth[name], palette=True)
    lists = home / "ImageSets" / "Segmentation"
    lines(lists / "train.txt", "2008_000002", "2011_000003")
    lines(lists / "val.txt", "2007_000032", "2012_000004")
    return truth


def make_nyud(root):
    """The reference implementation's layout."""
    home, truth = root / "nyud", {}
    for k in range(1, 5):
        name = str(5000 + k)
        photo(home / "data" / "images" / f"img_{name}.png", k)
        photo(home / "data" / "hha" / f"img_{name}.png", k + 9)
        mask(home / "data" / "depth" / f"img_{name}.png", np.full(SIZE, 2550, np.uint16))
        labels = stored([*range(41)], k)
        mat(home / "segmentation" / f"img_{name}.mat", segmentation=labels)
        truth[f"img_{name}"] = np.where(labels == 0, 255, labels - 1)
    lines(home / "train.txt", "5001", "5002")
    lines(home / "val.txt", "5003", "5004")
    return truth


SCENES = "spatial_envelope_256x256_static_8outdoorcategories"


def make_siftflow(root):
    truth = {}
    for k, name in enumerate(("coast_a1", "coast_b2", "street_c3", "street_urb506")):
        photo(root / "Images" / SCENES / f"{name}.jpg", k)
        labels = stored([*range(34)], k)
        mat(root / "SemanticLabels" / SCENES / f"{name}.mat", S=labels, names=["x"])
        geometric = stored([-1, 1, 2, 3], k, np.int16)
        mat(root / "GeoLabels" / SCENES / f"{name}.mat", S=geometric)
        truth[name] = np.where(labels == 0, 255, labels - 1)
    lines(root / "trainval.txt", "coast_a1", "street_c3", "street_urb506")
    lines(root / "test.txt", "coast_b2")
    return truth


def make_context(root):
    """459 names, of which three are spelled otherwise among the 59."""
    classes = list(PASCAL_CONTEXT_59.names)
    spelled = {"table": "diningtable", "bedclothes": "bedcloth", "cloth": "clothes"}
    names = [f"thing{k}" for k in range(400)] + [spelled.get(name, name) for name in classes]
    text = "".join(f"{k}: {name}\n" for k, name in enumerate(names, 1))
    (root / "context").mkdir(parents=True)
    (root / "context" / "labels.txt").write_text(text)
    truth = {}
    for k, name in enumerate(("2008_000002", "2008_000003")):
        photo(root / "VOC2010" / "JPEGImages" / f"{name}.jpg", k)
        labels = stored([0, 1, 400, *range(401, 460)], k, np.uint16)
        mat(root / "context" / "trainval" / f"{name}.mat", LabelMap=labels)
        truth[name] = np.where(labels > 400, labels - 400, 0)
    lines(root / "VOC2010" / "ImageSets" / "Main" / "train.txt", "2008_000002")
    lines(root / "VOC2010" / "ImageSets" / "Main" / "val.txt", "2008_000003")
    return truth


def make_camvid(root):
    """Split folders, and list files with the paths of another machine."""
    truth = {}
    for k, (split, name) in enumerate((("train", "0001TP_1"), ("train", "0006R0_2"), ("val", "b"))):
        photo(root / split / f"{name}.png", k)
        labels = stored([*range(12)], k)
        mask(root / f"{split}annot" / f"{name}.png", labels)
        truth[name] = np.where(labels == 11, 255, labels)
    row = "/a b/CamVid/{0}/{1}.png /a b/CamVid/{0}annot/{1}.png"
    lines(root / "train.txt", row.format("train", "0001TP_1"), row.format("train", "0006R0_2"))
    lines(root / "val.txt", row.format("val", "b"))
    return truth


CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def make_cityscapes(root):
    truth = {}
    for k, (split, city) in enumerate((("train", "aachen"), ("val", "ulm"))):
        name = f"{city}_000000_000019"
        photo(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", k)
        labels = stored([*range(34), 255], k)
        mask(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", labels)
        mask(root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", labels)
        lookup = np.full(256, 255)
        lookup[list(CITYSCAPES_IDS)] = range(19)
        truth[f"{name}_leftImg8bit"] = lookup[labels]
    return truth


def make_ade20k(root):
    home, truth = root / "ADEChallengeData2016", {}
    for k, (split, part) in enumerate((("training", "train"), ("validation", "val"))):
        name = f"ADE_{part}_00000001"
        photo(home / "images" / split / f"{name}.jpg", k)
        labels = stored([*range(151)], k)
        mask(home / "annotations" / split / f"{name}.png", labels)
        truth[name] = np.where(labels == 0, 255, labels - 1)
    return truth


def make_folder(root):
    """A plain folder whose dataset.json says all."""
    truth = {}
    for k, split in enumerate(("train", "val")):
        photo(root / "photos" / split / "a.jpg", k)
        labels = stored([0, 9, 100, 255], k)
        mask(root / "masks" / split / "a.png", labels)
        truth[f"a/{split}"] = np.select([labels == 9, labels == 100], [255, 1], labels == 255)
    described = {"classes": ["ground", "tree"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore": 9}
    described["label_map"] = {"0": "ground", "255": "tree", "100": "tree"}
    described |= {"images": "photos/{split}", "labels": "masks/{split}"}
    (root / "dataset.json").write_text(json.dumps(described))
    return truth


MINIATURES = {
    "voc": (make_voc, 21),
    "nyud": (make_nyud, 40),
    "siftflow": (make_siftflow, 33),
    "pascal-context": (make_context, 60),
    "camvid": (make_camvid, 11),
    "cityscapes": (make_cityscapes, 19),
    "ade20k": (make_ade20k, 150),
    "folder": (make_folder, 2),
}


@pytest.mark.parametrize("name", MINIATURES)
def test_check_train_and_evaluate(name, tmp_path, monkeypatch, capsys):
    make, classes = MINIATURES[name]
    truth = make(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    val = data.open_dataset(name, "data", "val")
    assert len(val.table) == classes
    pixels = np.zeros(classes)
    for _, labels, called in val:
        labels = labels.reshape(*SIZE, -1)[..., 0]
        np.testing.assert_array_equal(labels, truth.get(called, truth.get(f"{called}/val")))
        pixels += np.bincount(labels[labels != 255], minlength=classes)
        # A prediction that takes class 1 for class 0 and is right elsewhere.
        guess = np.where((labels == 1) | (labels == 255), 0, labels).astype(np.uint8)
        data.write_labels(below(Path("guess", f"{called}.png")), guess, ())

    assert main(["check", "data", "--dataset", name, "-j", "0"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(rf"pictures?; width x height: {SIZE[1]}x{SIZE[0]}", out)

    def scores(*arguments):
        assert main(["evaluate", *given, *arguments, "--json", "s.json"]) == 0
        return json.loads(Path("s.json").read_text())

    given = ["--dataset", name, "--data-path", "data"]
    small = ["--epochs", "1", "-b", "1", "--crop-size", "64", "--val-freq", "5", "-j", "0"]
    assert main(["train", *given, "--output-dir", "run", *small, "--device", "cpu"]) == 0
    of_network = scores("--weights", "run/best.safetensors", "--device", "cpu")
    assert np.sum(of_network["confusion"], axis=1).tolist() == pixels.tolist()

    found, total = scores("--predictions", "guess"), pixels.sum()
    assert found["pixel_accuracy"] == pytest.approx((total - pixels[1]) / total)


def make_sbd(root, train, val=()):
    home = root / "benchmark_RELEASE" / "dataset"
    for k, name in enumerate((*train, *val)):
        photo(home / "img" / f"{name}.jpg", k)
        fields = {"Segmentation": stored([*range(21)], k), "CategoriesPresent": [1]}
        mat(home / "cls" / f"{name}.mat", GTcls=fields)
    lines(home / "train.txt", *train)
    lines(home / "val.txt", *val)


@pytest.fixture
def devkit(tmp_path):
    """VOC2012, with SBD beside its devkit."""
    make_voc(tmp_path)
    make_sbd(tmp_path, ("2008_000002", "2008_000007"), ("2010_000008", "2012_000004"))
    return tmp_path / "VOCdevkit"


LISTS = Path("ImageSets", "Segmentation")


def test_sbd(devkit):
    home = devkit.parent / "benchmark_RELEASE" / "dataset"
    dataset = data.voc(home, "train")
    assert dataset.names == ["2008_000002", "2008_000007"]
    np.testing.assert_array_equal(dataset[0].labels, stored([*range(21)], 0))
    assert data.voc(home, "sbd-val").names == ["2010_000008", "2012_000004"]
    # VOC's train and SBD's, without VOC's val; VOC's own labels count before SBD's.
    dataset = data.voc(devkit.parent, "trainaug")
    assert dataset.names == ["2008_000002", "2008_000007", "2010_000008", "2011_000003"]
    assert [path.suffix for _, path in dataset.samples] == [".png", ".mat", ".mat", ".png"]
    assert [len(sample.labels) for sample in dataset] == [SIZE[0]] * 4


def test_seg11valid_and_overlaps(devkit, monkeypatch, capsys):
    monkeypatch.chdir(devkit.parent)
    (devkit / "VOC2012").rename(devkit / "VOC2011")
    names = ("2012_000004", "2008_000002", "2007_000032")
    lines(devkit / "VOC2011" / LISTS / "val.txt", *names)
    assert data.voc(devkit.parent, "seg11valid").names == ["2007_000032", "2012_000004"]
    arguments = ["train", "--dataset", "voc", "--data-path", ".", "--output-dir", "run"]
    assert main([*arguments, "--split", "sbd-train"]) == 2
    told = "1 of its pictures are also in the training list: 2008_000002"
    assert told in capsys.readouterr().err


def test_aug_lists_of_two_columns(tmp_path):
    make_voc(tmp_path)
    home = tmp_path / "VOCdevkit" / "VOC2012"
    photo(home / "JPEGImages" / "2009_000009.jpg")
    mask(home / "SegmentationClassAug" / "2009_000009.png", stored([*range(21)], 3))
    names = ["2009_000009", "2011_000003"]
    rows = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in names]
    lines(home / LISTS / "train_aug.txt", *rows)
    assert data.voc(home, "train_aug").names == names
    lines(home / LISTS / "aug.txt", "2009_000009")
    assert data.voc(home, "train+aug").names == ["2008_000002", *names]
    lines(tmp_path / "mine.txt", "2009_000009")
    assert data.voc(home, str(tmp_path / "mine.txt")).names == ["2009_000009"]
    (home / "SegmentationClass").rename(home / "Other")
    assert len(data.open_dataset("voc", home, "train", labels="Other")) == 2
    with pytest.raises(DatasetError, match="--dataset vok: not one of voc"):
        data.open_dataset("vok", home, "train")
    with pytest.raises(DatasetError, match="--labels-dir x: nyud keeps"):
        data.open_dataset("nyud", home, "train", labels="x")


def test_names_in_lists(tmp_path):
    home = tmp_path / "VOC2012"
    for stored, listed in (
        ("a photo 1", "a photo 1"),
        ("bild.001", "bild.001"),
        ("caf\u00e9", "cafe\u0301"),  # composed and decomposed
        ("2008_000009", "2008_000009 -1"),
        ("a b", "/a/JPEGImages/a b.jpg /a/SegmentationClassAug/a b.png"),
    ):
        photo(home / "JPEGImages" / f"{stored}.jpg", 1)
        mask(home / "SegmentationClass" / f"{stored}.png", np.ones(SIZE, np.uint8), palette=True)
        lines(home / LISTS / "mine.txt", listed)
        (sample,) = data.voc(tmp_path, "mine")
        assert (sample.labels == 1).all()


def test_what_voc_lacks_is_named(tmp_path):
    make_voc(tmp_path)
    devkit = tmp_path / "VOCdevkit"

    def refused(root, split, message):
        with pytest.raises(DatasetError, match=message):
            data.voc(root, split)

    refused(tmp_path, "test", r"test\.txt: no such list: it has train, val")
    refused(tmp_path, "sbd-train", "needs SBD")
    refused(tmp_path, "seg11valid", "'seg11valid' needs its list, or VOC2011")
    for folder, kind in (("SegmentationClass", "labels"), ("JPEGImages", "picture")):
        next((devkit / "VOC2012" / folder).glob("2008_000002.*")).unlink()
        refused(tmp_path, "train", f"no {kind} for 2008_000002")
    (devkit / "VOC2007" / "JPEGImages").mkdir(parents=True)
    refused(devkit, "train", "holds VOC2007, VOC2012: name one")
    refused(tmp_path / "nowhere", "train", "nowhere: no such")


def test_nyud_modalities_and_joined_lists(tmp_path, monkeypatch):
    make_nyud(tmp_path)
    assert len(data.nyud(tmp_path, "trainval")) == 4
    depth = data.nyud(tmp_path, "train", modality="depth")[0].image
    assert depth.mode == "F" and np.asarray(depth).max() == 2550
    hha = data.open_dataset("nyud-hha", tmp_path, "train")[0].image
    with Image.open(tmp_path / "nyud" / "data" / "hha" / "img_5001.png") as image:
        np.testing.assert_array_equal(np.asarray(hha), np.asarray(image))
    with pytest.raises(ValueError, match="modality"):
        data.nyud(tmp_path, modality="color+depth")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"needs scipy: pip install 'fcnfast\[data\]'"):
        data.nyud(tmp_path)[0]


def test_the_official_file_of_nyud(tmp_path):
    chance = np.random.default_rng(0)
    images = chance.integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)
    labels = chance.integers(0, 895, (3, *SIZE), dtype=np.uint16)
    depths = chance.uniform(0.5, 9, (3, *SIZE)).astype(np.float32)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:  # columns first
        file["images"] = images.transpose(0, 3, 2, 1)
        file["labels"], file["depths"] = labels.transpose(0, 2, 1), depths.transpose(0, 2, 1)
    with pytest.raises(DatasetError, match=r"splits\.mat: is needed"):
        data.nyud(tmp_path, "test")
    mat(tmp_path / "splits.mat", trainNdxs=[[1], [3]], testNdxs=[[2]])
    forty = chance.integers(1, 41, (1, 894))
    mat(tmp_path / "classMapping40.mat", mapClass=forty, className=["x"])
    dataset = data.nyud(tmp_path, "trainval")
    assert dataset.names == ["5001", "5003"]
    image, read, _ = dataset[1]
    np.testing.assert_array_equal(np.asarray(image), images[2])
    expected = np.where(labels[2] == 0, 255, forty[0][labels[2].astype(int) - 1] - 1)
    np.testing.assert_array_equal(read, expected)
    assert dataset.size(0) == SIZE[::-1]
    depth = data.nyud(tmp_path, "test", modality="depth")[0].image
    np.testing.assert_allclose(np.asarray(depth), 1000 * depths[1])
    with pytest.raises(DatasetError, match="no modality 'hha'"):
        data.nyud(tmp_path, "test", modality="hha")


def test_the_two_targets_of_siftflow(tmp_path):
    make_siftflow(tmp_path)
    both = data.siftflow(tmp_path, "test")
    semantic = data.siftflow(tmp_path, "test", target="semantic")
    geometric = data.siftflow(tmp_path, "test", target="geometric")
    assert both.heads == ("out", "geo")
    expected = stored([-1, 1, 2, 3], 1, np.int16)
    expected = np.where(expected == -1, 255, expected - 1)
    np.testing.assert_array_equal(geometric[0].labels, expected)
    np.testing.assert_array_equal(both[0].labels[..., 0], semantic[0].labels)
    np.testing.assert_array_equal(both[0].labels[..., 1], expected)
    assert geometric.table.names == ("sky", "horizontal", "vertical")
    crops = data.train_transform(24)
    dataset = data.siftflow(tmp_path, "trainval", transform=crops)  # in anyone's loop
    (batch,) = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=data.collate)
    assert [tuple(part.shape) for part in batch] == [(2, 3, 24, 24), (2, 24, 24, 2)]
    assert dataset[0][1].dtype == torch.uint8
    assert data.siftflow(tmp_path).names == ["coast_a1", "street_c3"]
    (tmp_path / "trainval.txt").unlink()  # then all but the test pictures
    assert data.siftflow(tmp_path).names == ["coast_a1", "street_c3"]


def test_other_forms_of_pascal_context(tmp_path):
    truth = make_context(tmp_path)["2008_000002"]
    found = data.pascal_context(tmp_path, table=PASCAL_CONTEXT_59)[0].labels
    np.testing.assert_array_equal(found, np.where(truth == 0, 255, truth - 1))
    path = tmp_path / "context" / "labels.txt"
    path.write_text(path.read_text().replace("keyboard", "keys"))
    with pytest.raises(DatasetError, match=r"labels\.txt: has no class 'keyboard'"):
        data.pascal_context(tmp_path)
    labels = stored([*range(60)], 5)  # pictures, for which no list of names is needed
    mask(tmp_path / "VOC2010" / "SegmentationClassContext" / "2008_000002.png", labels)
    np.testing.assert_array_equal(data.pascal_context(tmp_path)[0].labels, labels)


def test_cityscapes_train_ids(tmp_path):
    make_cityscapes(tmp_path)
    place = tmp_path / "gtFine" / "train" / "aachen"
    for path in place.glob("*labelIds.png"):
        path.unlink()
    labels = stored([*range(19), 255], 0)
    mask(place / "aachen_000000_000019_gtFine_labelTrainIds.png", labels)
    found = data.open_dataset("cityscapes", tmp_path, "train")[0].labels
    np.testing.assert_array_equal(found, labels)
    with pytest.raises(DatasetError, match=r"test: no CITY/\*_leftImg8bit\.png"):
        data.open_dataset("cityscapes", tmp_path, "test")


def test_camvid_lists(tmp_path):
    make_camvid(tmp_path)
    told = {
        "train/a.png /x/trainannot/a.png": "train.txt: no picture for a",
        "train/a.png": "not a pic",
    }
    for listed, message in told.items():
        lines(tmp_path / "train.txt", listed)
        with pytest.raises(DatasetError, match=message):
            data.open_dataset("camvid", tmp_path, "train")


def test_mat_files_without_labels(tmp_path):
    make_nyud(tmp_path)
    path = tmp_path / "nyud" / "segmentation" / "img_5001.mat"
    for content, reason in (
        (b"MATLAB 5.0 MAT-file" + bytes(200), ""),
        ({"other": [[1]]}, "has no variable 'segmentation'"),
        ({"segmentation": [[0.5, 1]]}, "not integers"),
        ({"segmentation": np.zeros((2, 2, 2))}, "not a label map"),
        ({"segmentation": np.full(SIZE, 41)}, r"value 41 \(pixels: 1920\)"),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            mat(path, **content)
        with pytest.raises(LabelError, match=rf"img_5001\.mat: .*{reason}"):
            data.nyud(tmp_path)[0]


def test_lists_that_repeat_a_name(tmp_path):
    for k in range(2):
        photo(tmp_path / f"s{k}" / "0.png", k)
        mask(tmp_path / f"s{k}" / "0_L.png", np.full(SIZE, k, np.uint8))
    lines(tmp_path / "train.txt", "s0/0.png s0/0_L.png", "s1/0.png s1/0_L.png")
    dataset = data.open_dataset("camvid", tmp_path, "train")
    assert dataset.names == ["0", "0-2"]
    assert [int(sample.labels[0, 0]) for sample in dataset] == [0, 1]


def test_siftflow_labels_of_two_sizes(tmp_path):
    make_siftflow(tmp_path)
    dataset = data.open_dataset("siftflow", tmp_path, "trainval")
    path = next((tmp_path / "GeoLabels").rglob(f"{dataset.names[0]}.mat"))
    mat(path, S=np.ones((8, 9), np.uint8))
    with pytest.raises(LabelError, match=r"\.mat: the semantic and the geometric labels are 48x40"):
        dataset[0]


def test_what_macos_leaves_behind(tmp_path):
    make_cityscapes(tmp_path / "c")
    for path in [*(tmp_path / "c").rglob("*.png")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0" * 64)
    (tmp_path / "__MACOSX" / "leftImg8bit").mkdir(parents=True)
    found = data.open_dataset("cityscapes", tmp_path, "train")
    assert not any(image.name.startswith("._") for image, _ in found.samples)
