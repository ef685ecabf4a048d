"""Each data set in miniature, exactly as it lies on disk: opened, checked, trained on, scored."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fcnfast.cli import main
from fcnfast.data import (
    collate,
    nyud,
    open_dataset,
    pascal_context,
    siftflow,
    train_transform,
    voc,
    voc_palette,
    write_labels,
)
from fcnfast.data.tables import PASCAL_CONTEXT_59
from fcnfast.errors import DatasetError, LabelError
from fcnfast.train import TrainSettings, start
from tests.model_tools import narrow_trunks

SIZE = (40, 48)


def photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def stored(values: list[int], seed: int, dtype: type = np.uint8) -> np.ndarray:
    """Labels in which each of the values has a pixel."""
    chance = np.random.default_rng(seed)
    labels = chance.choice(values, SIZE)
    labels.ravel()[chance.permutation(labels.size)[: len(values)]] = values
    return labels.astype(dtype)


def mask(path: Path, labels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if palette:
        image.putpalette([channel for color in voc_palette(256) for channel in color])
    image.save(path)


def mat(path: Path, **variables: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables)


def lines(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


Truth = dict[str, np.ndarray]


def make_voc(root: Path) -> Truth:
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


def make_nyud(root: Path) -> Truth:
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


def make_siftflow(root: Path) -> Truth:
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


def make_context(root: Path) -> Truth:
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


def make_camvid(root: Path) -> Truth:
    """Split folders, and list files with the paths of another machine."""
    truth = {}
    for k, (split, name) in enumerate((("train", "0001TP_1"), ("train", "0006R0_2"), ("val", "b"))):
        photo(root / split / f"{name}.png", k)
        labels = stored([*range(12)], k)
        mask(root / f"{split}annot" / f"{name}.png", labels)
        truth[name] = np.where(labels == 11, 255, labels)
    for split, names in (("train", ("0001TP_1", "0006R0_2")), ("val", ("b",))):
        rows = (
            f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png" for n in names
        )
        lines(root / f"{split}.txt", *rows)
    return truth


CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def make_cityscapes(root: Path) -> Truth:
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


def make_ade20k(root: Path) -> Truth:
    home, truth = root / "ADEChallengeData2016", {}
    for k, (split, part) in enumerate((("training", "train"), ("validation", "val"))):
        name = f"ADE_{part}_00000001"
        photo(home / "images" / split / f"{name}.jpg", k)
        labels = stored([*range(151)], k)
        mask(home / "annotations" / split / f"{name}.png", labels)
        truth[name] = np.where(labels == 0, 255, labels - 1)
    return truth


def make_folder(root: Path) -> Truth:
    """A plain folder whose dataset.json says all."""
    truth = {}
    for k, split in enumerate(("train", "val")):
        photo(root / "photos" / split / "a.jpg", k)
        labels = stored([0, 9, 100, 255], k)
        mask(root / "masks" / split / "a.png", labels)
        truth[f"a/{split}"] = np.select([labels == 9, labels == 100], [255, 1], labels == 255)
    described = {
        "classes": ["ground", "tree"],
        "palette": [[1, 2, 3], [4, 5, 6]],
        "ignore": 9,
        "label_map": {"0": "ground", "255": "tree", "100": "tree"},
        "images": "photos/{split}",
        "labels": "masks/{split}",
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return truth


MINIATURES: dict[str, tuple[Callable[[Path], Truth], int]] = {
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
    val = open_dataset(name, "data", "val")
    assert len(val.table) == classes
    samples = [(sample.labels, sample.name) for sample in val]
    for labels, called in samples:
        main_labels = labels if labels.ndim == 2 else labels[..., 0]
        np.testing.assert_array_equal(main_labels, truth.get(called, truth.get(f"{called}/val")))

    assert main(["check", "data", "--dataset", name, "-j", "0"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"pictures; width x height: {SIZE[1]}x{SIZE[0]}" in out.replace("picture;", "pictures;")

    data = ["--dataset", name, "--data-path", "data"]
    small = ["--epochs", "1", "-b", "1", "--crop-size", "64", "--val-freq", "5", "-j", "0"]
    assert main(["train", *data, "--output-dir", "run", *small, "--device", "cpu"]) == 0
    capsys.readouterr()
    weights = ["--weights", "run/best.safetensors", "--device", "cpu"]
    assert main(["evaluate", *data, *weights, "--json", "net.json"]) == 0
    assert np.sum(json.loads(Path("net.json").read_text())["confusion"]) == sum(
        int((labels.reshape(*SIZE, -1)[..., 0] != 255).sum()) for labels, _ in samples
    )

    # Predictions that take class 1 for class 0 and are right elsewhere: their scores by hand.
    pixels = np.zeros(classes)
    for labels, called in samples:
        main_labels = labels if labels.ndim == 2 else labels[..., 0]
        pixels += np.bincount(main_labels[main_labels != 255], minlength=classes)
        write_labels_to(Path("guess") / f"{called}.png", main_labels)
    capsys.readouterr()
    assert main(["evaluate", *data, "--predictions", "guess", "--json", "s.json"]) == 0
    scores = json.loads(Path("s.json").read_text())
    total = pixels.sum()
    assert scores["pixel_accuracy"] == pytest.approx((total - pixels[1]) / total)
    assert scores["mean_accuracy"] == pytest.approx((classes - 1) / classes)
    zero = pixels[0] / (pixels[0] + pixels[1])
    assert scores["mean_iu"] == pytest.approx((zero + classes - 2) / classes)
    rest = total - pixels[0] - pixels[1]
    assert scores["fw_iu"] == pytest.approx((pixels[0] * zero + rest) / total)
    capsys.readouterr()


def write_labels_to(path: Path, labels: np.ndarray) -> None:
    """Write a prediction: class 0 for class 1 and where there is no class."""
    path.parent.mkdir(exist_ok=True)
    write_labels(path, np.where((labels == 1) | (labels == 255), 0, labels).astype(np.uint8), ())


def test_they_feed_anyones_loop(tmp_path):
    make_voc(tmp_path)
    dataset = voc(tmp_path / "VOCdevkit", "train", transform=train_transform(32))
    assert isinstance(dataset, torch.utils.data.Dataset)
    for images, labels in DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=collate):
        assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8
        assert labels.shape == (2, 32, 32) and labels.dtype == torch.uint8


class TestVOC:
    @staticmethod
    def sbd(root: Path) -> Path:
        home = root / "benchmark_RELEASE" / "dataset"
        for k, name in enumerate(("2008_000002", "2008_000007", "2010_000008", "2012_000004")):
            photo(home / "img" / f"{name}.jpg", k)
            fields = {"Segmentation": stored([*range(21)], k), "CategoriesPresent": [1]}
            mat(home / "cls" / f"{name}.mat", GTcls=fields)
        lines(home / "train.txt", "2008_000002", "2008_000007")
        lines(home / "val.txt", "2010_000008", "2012_000004")
        return home

    def test_sbd_alone(self, tmp_path):
        home = self.sbd(tmp_path)
        dataset = voc(home, "train")
        assert dataset.names == ["2008_000002", "2008_000007"]
        np.testing.assert_array_equal(dataset[0].labels, stored([*range(21)], 0))
        assert voc(home, "sbd-val").names == ["2010_000008", "2012_000004"]

    def test_sets_by_arithmetic(self, tmp_path):
        """VOC's train and SBD's, without VOC's val; VOC's own labels count before SBD's."""
        make_voc(tmp_path)
        self.sbd(tmp_path)
        dataset = voc(tmp_path, "trainaug")
        assert dataset.names == ["2008_000002", "2008_000007", "2010_000008", "2011_000003"]
        kinds = [labels.suffix for _, labels in dataset.samples]
        assert kinds == [".png", ".mat", ".mat", ".png"]
        assert [len(sample.labels) for sample in dataset] == [SIZE[0]] * 4

    def test_seg11valid(self, tmp_path):
        make_voc(tmp_path)
        self.sbd(tmp_path)
        devkit = tmp_path / "VOCdevkit"
        lists = devkit / "VOC2012" / "ImageSets" / "Segmentation"
        with pytest.raises(DatasetError, match="'seg11valid' needs its list, or VOC2011"):
            voc(devkit / "VOC2012", "seg11valid")
        (devkit / "VOC2012").rename(devkit / "VOC2011")
        lines(
            devkit / "VOC2011" / lists.relative_to(devkit / "VOC2012") / "val.txt",
            "2012_000004",
            "2008_000002",
            "2007_000032",
        )
        assert voc(tmp_path, "seg11valid").names == ["2007_000032", "2012_000004"]

    def test_aug_lists_of_two_columns(self, tmp_path):
        make_voc(tmp_path)
        home = tmp_path / "VOCdevkit" / "VOC2012"
        photo(home / "JPEGImages" / "2009_000009.jpg")
        mask(home / "SegmentationClassAug" / "2009_000009.png", stored([*range(21)], 3))
        rows = [
            f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png"
            for n in ("2009_000009", "2011_000003")
        ]
        lines(home / "ImageSets" / "Segmentation" / "train_aug.txt", *rows)
        assert voc(home, "train_aug").names == ["2009_000009", "2011_000003"]
        lines(home / "ImageSets" / "Segmentation" / "aug.txt", "2009_000009")
        assert voc(home, "train+aug").names == ["2008_000002", "2009_000009", "2011_000003"]
        lines(tmp_path / "mine.txt", "2009_000009")
        assert voc(home, str(tmp_path / "mine.txt")).names == ["2009_000009"]

    def test_overlaps_are_refused_by_name(self, tmp_path, monkeypatch, capsys):
        make_voc(tmp_path)
        self.sbd(tmp_path)
        monkeypatch.chdir(tmp_path)
        lists = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
        lines(lists / "val.txt", "2008_000002", "2012_000004")
        arguments = ["train", "--dataset", "voc", "--data-path", ".", "--output-dir", "run"]
        assert main([*arguments, "--split", "sbd-train"]) == 2
        err = capsys.readouterr().err
        assert "1 of its pictures are in the training list, too: 2008_000002" in err

    @pytest.mark.parametrize(
        ("stored", "listed"),
        [
            ("a photo 1", "a photo 1"),
            ("bild.001", "bild.001"),
            ("caf\u00e9", "cafe\u0301"),  # composed and decomposed
            ("cafe\u0301", "caf\u00e9"),
            ("2008_000009", "2008_000009 -1"),
            ("2008_000009", "2008_000009  1"),
            ("a b", "/a/JPEGImages/a b.jpg /a/SegmentationClassAug/a b.png"),
        ],
    )
    def test_names_in_lists(self, stored, listed, tmp_path):
        make_voc(tmp_path)
        home = tmp_path / "VOCdevkit" / "VOC2012"
        photo(home / "JPEGImages" / f"{stored}.jpg", 1)
        mask(home / "SegmentationClass" / f"{stored}.png", np.ones(SIZE, np.uint8), palette=True)
        lines(home / "ImageSets" / "Segmentation" / "mine.txt", listed)
        (sample,) = voc(tmp_path, "mine")
        assert (sample.labels == 1).all()

    def test_what_is_missing_is_named(self, tmp_path):
        make_voc(tmp_path)
        devkit = tmp_path / "VOCdevkit"
        with pytest.raises(DatasetError, match=r"test\.txt: no such list: it has train, val"):
            voc(tmp_path, "test")
        with pytest.raises(DatasetError, match="needs SBD"):
            voc(tmp_path, "sbd-train")
        (devkit / "VOC2012" / "SegmentationClass" / "2008_000002.png").unlink()
        with pytest.raises(DatasetError, match="no labels for 2008_000002"):
            voc(tmp_path)
        (devkit / "VOC2012" / "JPEGImages" / "2008_000002.jpg").unlink()
        with pytest.raises(DatasetError, match="no picture for 2008_000002"):
            voc(tmp_path)
        (devkit / "VOC2007" / "JPEGImages").mkdir(parents=True)
        with pytest.raises(DatasetError, match="holds VOC2007, VOC2012: name one"):
            voc(devkit)
        with pytest.raises(DatasetError, match="nowhere: no such"):
            voc(tmp_path / "nowhere")


class TestNYUD:
    def test_modalities_and_joined_lists(self, tmp_path):
        make_nyud(tmp_path)
        assert len(nyud(tmp_path, "trainval")) == 4
        depth = nyud(tmp_path, "train", modality="depth")[0].image
        assert depth.mode == "F" and np.asarray(depth).max() == 2550
        hha = open_dataset("nyud-hha", tmp_path, "train")[0].image
        with Image.open(tmp_path / "nyud" / "data" / "hha" / "img_5001.png") as image:
            np.testing.assert_array_equal(np.asarray(hha), np.asarray(image))
        with pytest.raises(ValueError, match="modality"):
            nyud(tmp_path, modality="color+depth")

    def test_the_official_file(self, tmp_path):
        chance = np.random.default_rng(0)
        images = chance.integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)
        labels = chance.integers(0, 895, (3, *SIZE), dtype=np.uint16)
        depths = chance.uniform(0.5, 9, (3, *SIZE)).astype(np.float32)
        with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:  # columns first
            file["images"] = images.transpose(0, 3, 2, 1)
            file["labels"], file["depths"] = labels.transpose(0, 2, 1), depths.transpose(0, 2, 1)
        with pytest.raises(DatasetError, match=r"splits\.mat: is needed"):
            nyud(tmp_path, "test")
        mat(tmp_path / "splits.mat", trainNdxs=[[1], [3]], testNdxs=[[2]])
        forty = chance.integers(1, 41, (1, 894))
        mat(tmp_path / "classMapping40.mat", mapClass=forty, className=["x"])
        dataset = nyud(tmp_path, "trainval")
        assert dataset.names == ["5001", "5003"]
        image, read, _ = dataset[1]
        np.testing.assert_array_equal(np.asarray(image), images[2])
        expected = np.where(labels[2] == 0, 255, forty[0][labels[2].astype(int) - 1] - 1)
        np.testing.assert_array_equal(read, expected)
        assert dataset.size(0) == SIZE[::-1]
        depth = nyud(tmp_path, "test", modality="depth")[0].image
        np.testing.assert_allclose(np.asarray(depth), 1000 * depths[1])
        with pytest.raises(DatasetError, match="no modality 'hha'"):
            nyud(tmp_path, "test", modality="hha")


class TestSiftFlow:
    def test_two_targets(self, tmp_path):
        make_siftflow(tmp_path)
        both = siftflow(tmp_path, "test")
        semantic = siftflow(tmp_path, "test", target="semantic")
        geometric = siftflow(tmp_path, "test", target="geometric")
        assert both.heads == ("out", "geo")
        expected = stored([-1, 1, 2, 3], 1, np.int16)
        np.testing.assert_array_equal(
            geometric[0].labels, np.where(expected == -1, 255, expected - 1)
        )
        planes = both[0].labels
        np.testing.assert_array_equal(planes[..., 0], semantic[0].labels)
        np.testing.assert_array_equal(planes[..., 1], geometric[0].labels)
        assert geometric.table.names == ("sky", "horizontal", "vertical")
        images, targets = siftflow(tmp_path, "test", transform=train_transform(24))[0]
        assert images.shape == (3, 24, 24) and targets.shape == (24, 24, 2)

    def test_the_rest_is_for_training_without_a_list(self, tmp_path):
        make_siftflow(tmp_path)
        assert siftflow(tmp_path).names == ["coast_a1", "street_c3"]
        (tmp_path / "trainval.txt").unlink()
        assert siftflow(tmp_path).names == ["coast_a1", "street_c3"]

    def test_a_network_of_two_heads_learns_from_both(self, tmp_path, monkeypatch):
        narrow_trunks(monkeypatch)
        make_siftflow(tmp_path / "data")
        run = start(
            TrainSettings(
                data_path=str(tmp_path / "data"),
                dataset="siftflow",
                model="siftflow_fcn8s_vgg16",
                output_dir=str(tmp_path / "run"),
                val_split="",
                crop_size=40,
                batch_size=1,
                epochs=1,
                workers=0,
                device="cpu",
            )
        )
        weights = {n: p.clone() for n, p in run.model.named_parameters() if "score_fr" in n}
        run.train(progress=False)
        for name in ("score_fr_sem.weight", "score_fr_geo.weight"):
            assert not torch.equal(weights[name], dict(run.model.named_parameters())[name])


class TestContext:
    def test_59_classes(self, tmp_path):
        truth = make_context(tmp_path)
        dataset = pascal_context(tmp_path, table=PASCAL_CONTEXT_59)
        expected = truth["2008_000002"]
        np.testing.assert_array_equal(dataset[0].labels, np.where(expected == 0, 255, expected - 1))

    def test_pngs_of_60_values(self, tmp_path):
        make_context(tmp_path)
        labels = stored([*range(60)], 5)
        mask(tmp_path / "VOC2010" / "SegmentationClassContext" / "2008_000002.png", labels)
        np.testing.assert_array_equal(pascal_context(tmp_path)[0].labels, labels)

    def test_a_list_without_a_class(self, tmp_path):
        make_context(tmp_path)
        path = tmp_path / "context" / "labels.txt"
        path.write_text(path.read_text().replace("keyboard", "keys"))
        with pytest.raises(DatasetError, match=r"labels\.txt: has no class 'keyboard'"):
            pascal_context(tmp_path)


class TestOthers:
    def test_cityscapes_train_ids(self, tmp_path):
        make_cityscapes(tmp_path)
        place = tmp_path / "gtFine" / "train" / "aachen"
        for path in place.glob("*labelIds.png"):
            path.unlink()
        labels = stored([*range(19), 255], 0)
        mask(place / "aachen_000000_000019_gtFine_labelTrainIds.png", labels)
        np.testing.assert_array_equal(
            open_dataset("cityscapes", tmp_path, "train")[0].labels, labels
        )
        with pytest.raises(DatasetError, match=r"test: no CITY/\*_leftImg8bit\.png"):
            open_dataset("cityscapes", tmp_path, "test")

    def test_camvid_lists(self, tmp_path):
        make_camvid(tmp_path)
        lines(
            tmp_path / "train.txt", "/SegNet/CamVid/train/0006R0_2.png /x/trainannot/0006R0_2.png"
        )
        assert open_dataset("camvid", tmp_path, "train").names == ["0006R0_2"]
        for folder in ("train", "trainannot"):
            (tmp_path / folder / "0006R0_2.png").rename(tmp_path / folder / "one of two.png")
        lines(tmp_path / "train.txt", "/a b/train/one of two.png /a b/trainannot/one of two.png")
        assert open_dataset("camvid", tmp_path, "train").names == ["one of two"]
        lines(tmp_path / "train.txt", "/SegNet/CamVid/train/gone.png /x/trainannot/gone.png")
        with pytest.raises(DatasetError, match=r"train\.txt: no picture for gone"):
            open_dataset("camvid", tmp_path, "train")
        lines(tmp_path / "train.txt", "train/0006R0_2.png")
        with pytest.raises(DatasetError, match="not a picture and its labels"):
            open_dataset("camvid", tmp_path, "train")

    def test_unknown_names_and_labels_elsewhere(self, tmp_path):
        with pytest.raises(DatasetError, match="--dataset vok: not one of voc"):
            open_dataset("vok", tmp_path, "train")
        with pytest.raises(DatasetError, match="--labels-dir x: nyud keeps"):
            open_dataset("nyud", tmp_path, "train", labels="x")
        make_voc(tmp_path)
        home = tmp_path / "VOCdevkit" / "VOC2012"
        (home / "SegmentationClass").rename(home / "Other")
        assert len(open_dataset("voc", home, "train", labels="Other")) == 2

    @pytest.mark.parametrize("content", [b"", b"no mat", b"MATLAB 5.0 MAT-file" + bytes(200)])
    def test_damaged_mat_files(self, tmp_path, content):
        make_nyud(tmp_path)
        path = tmp_path / "nyud" / "segmentation" / "img_5001.mat"
        path.write_bytes(content)
        with pytest.raises(LabelError, match=r"img_5001\.mat: "):
            nyud(tmp_path)[0]

    @pytest.mark.parametrize(
        ("variables", "reason"),
        [
            ({"other": [[1]]}, "has no variable 'segmentation'"),
            ({"segmentation": [[0.5, 1]]}, "not integers"),
            ({"segmentation": np.zeros((2, 2, 2))}, "not a label map"),
            ({"segmentation": np.full(SIZE, 41)}, r"value 41 \(pixels: 1920\)"),
        ],
    )
    def test_other_variables(self, tmp_path, variables, reason):
        make_nyud(tmp_path)
        mat(tmp_path / "nyud" / "segmentation" / "img_5001.mat", **variables)
        with pytest.raises(LabelError, match=rf"img_5001\.mat: .*{reason}"):
            nyud(tmp_path)[0]

    def test_without_the_extra(self, tmp_path, monkeypatch):
        make_nyud(tmp_path)
        monkeypatch.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(ValueError, match=r"needs scipy: pip install 'fcnfast\[data\]'"):
            nyud(tmp_path)[0]
