"""The command line: what it writes; one line and the right exit code for every mistake."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcnfast.cli.commands
from fcnfast import CAMVID, __version__, evaluate_model
from fcnfast.cli import main
from fcnfast.data import demo_scene, open_folder, read_labels, write_labels
from tests.model_tools import ROOT, Runs, contents, make_photo, make_scene
from tests.test_images import fail, full_disk
from tests.test_labels import png


def photos(folder, count):
    Path(folder).mkdir(exist_ok=True)
    names = [f"{folder}/p{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        make_photo(seed=number).save(name)
    return names


def outputs(*names):
    pictures = {f"out/{kind}/{name}.png" for kind in ("labels", "overlays") for name in names}
    return pictures | {"out/predictions.json"}


def camvid_like(root, count=2):
    """A data set of small streets in CamVid's layout."""
    for folder in ("val", "valannot"):
        Path(root, folder).mkdir(parents=True)
    for number in range(count):
        image, labels = make_scene(number)
        image.save(Path(root, "val", f"s{number}.png"))
        write_labels(Path(root, "valannot", f"s{number}.png"), labels, CAMVID.palette)


def bad_pictures(folder):
    Path(folder).mkdir(exist_ok=True)
    make_photo().save(f"{folder}/cut.jpg")
    os.truncate(f"{folder}/cut.jpg", 400)
    Path(folder, "empty.jpg").write_bytes(b"")
    Path(folder, "text.jpg").write_text("this is no picture")
    Path(folder, "bomb.png").write_bytes(png(60000, 60000, 8, 2, bytes(1000)))


def test_one_picture(here, weights, capsys):
    photos("in", 1)
    assert main(["predict", "in/p0.png", "--weights", weights]) == 0
    out, err = capsys.readouterr()
    assert err == "" and re.match(r"in/p0\.png: \w+ \d+\.\d %[^\n]*\nSegmented 1 picture in", out)
    assert all(f"out/{name}" in out for name in ("labels", "overlays", "predictions.json"))
    assert contents(".").keys() == {"in/p0.png"} | outputs("p0")
    assert read_labels("out/labels/p0.png", CAMVID, size=(36, 48)).max() < 11


def test_a_bad_picture_does_not_stop_the_others(here, weights, capsys):
    bad_pictures("in")
    assert main(["predict", "in/empty.jpg", "in/text.jpg", "--weights", weights]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 3 and not Path("out").exists()
    photos("in", 2)
    Path("in/notes.txt").touch()
    assert main(["predict", "in", "missing.jpg", "--weights", weights]) == 1
    out, err = capsys.readouterr()
    assert "Segmented 2 pictures" in out
    head, *lines, last = err.splitlines()
    assert head == "fcnfast: 5 pictures could not be segmented:"
    assert last == "fcnfast: 1 file skipped, no picture extension: notes.txt"
    said = [r"in/bomb\.png: .*too large", r"in/cut\.jpg: .*damaged", r"in/empty\.jpg: .*empty"]
    said += [r"in/text\.jpg: .*not a picture", r"missing\.jpg: .*no such file"]
    for line, reason in zip(lines, said, strict=True):
        assert re.match(f"fcnfast: error: {reason}", line)
    assert {path for path in contents(".") if path.startswith("out/")} == outputs("p0", "p1")
    failed = json.loads(Path("out/predictions.json").read_text())["failed"]
    assert [entry["input"] for entry in failed] == [line.split(": ")[2] for line in lines]


def test_mistakes_of_predict(weights, refused):
    photos("labels", 1)
    bad_pictures("bad")
    Path("folder").mkdir()
    Path("file").write_text("in the way")
    Path("cut.safetensors").write_bytes(Path(weights).read_bytes()[:-100])
    Path("model.pth").write_bytes(pickle.dumps({"model": Runs(open, "made", "w")}))
    for arguments, says in (
        ("bad/cut.jpg", r"bad/cut\.jpg: .*damaged"),
        ("folder", "folder: .*no pictures in this folder"),
        ("missing.jpg", r"missing\.jpg: .*no such file"),
        ("*.tif", r"\*\.tif: .*no picture matches"),
        ("labels --output-dir .", r"labels/p0\.png: would be replaced"),
        ("labels --output-dir file", "is not a folder"),
        ("labels --output-dir /proc/fcnfast/out", "/proc/fcnfast"),
        ("labels --weights cut.safetensors", r"cut\.safetensors: .*is cut or damaged"),
        ("labels --weights model.pth", "pickle.* and is not run"),
        *(
            (f"labels --{option}", option.replace(" ", ".*"))
            for option in (
                *("opacity 1.01", "opacity half", "max-size 12.5", "tile 0", "scales one"),
                *("probabilities jpg", "device gpu", "color red"),
            )
        ),
        ("labels --overlap 8", "--overlap 8 needs a tile"),
    ):
        given = [] if "--weights" in arguments else ["--weights", weights]
        refused("predict", *arguments.split(), *given, says=says)


def test_options_reach_the_result(here, weights, segmenter, capsys):
    photos("in", 1)
    options = ["--device", "cpu", "--opacity", "0", "--max-size", "16"]
    assert main(["predict", "in", "--weights", weights, *options]) == 0
    overlay = np.asarray(Image.open("out/overlays/p0.png"))
    assert np.array_equal(overlay[:36, :48], np.asarray(make_photo()))
    expected = segmenter("in/p0.png", max_size=16).labels
    assert np.array_equal(read_labels("out/labels/p0.png", CAMVID), expected)
    views = ("--tile", "24", "--overlap", "8", "--scales", "0.75,1", "--flip")
    arguments = ["predict", "in", "--weights", weights, *views, "--device", "cpu"]
    assert main([*arguments, "--probabilities", "npy"]) == 0
    assert "softmax   out/probabilities" in capsys.readouterr().out
    expected = segmenter("in/p0.png", tile=24, overlap=8, scales=(0.75, 1), flip=True)
    assert np.array_equal(read_labels("out/labels/p0.png", CAMVID), expected.labels)
    found = np.load("out/probabilities/p0.npy")
    np.testing.assert_allclose(found.max(0), expected.confidence, atol=5e-4)


def test_no_room_on_the_disk(here, weights, capsys):
    names = photos("in", 3)
    for limit in (0, 3000):  # not for the first file; for the labels, but not for the overlay
        with full_disk(limit):
            assert main(["predict", "in", "--weights", weights]) == 2
        err = capsys.readouterr().err
        assert re.fullmatch(r"fcnfast: error: out/[^\n]*: File too large\n", err)
        assert contents(".").keys() == {*names} and not Path("out").exists()


def test_scores_of_perfect_predictions_through_a_link_and_a_pipe(here):
    camvid_like("data")
    arguments = ["evaluate", "--predictions", "data/valannot", "--data-path", "data", "--json"]
    os.symlink("real.json", "link.json")
    assert main([*arguments, "link.json"]) == 0 and Path("link.json").is_symlink()
    scores = json.loads(Path("real.json").read_text())
    assert {scores[n] for n in ("pixel_accuracy", "mean_accuracy", "mean_iu", "fw_iu")} == {1.0}
    reading, writing = os.pipe()
    assert main([*arguments, f"/dev/fd/{writing}"]) == 0
    os.close(writing)
    with open(reading) as pipe:
        assert json.load(pipe) == scores


def test_filters_trimap_and_views(here, weights, segmenter, capsys):
    camvid_like("data", 3)
    os.rename("data/valannot", "labels")
    data = ["--data-path", "data", "--labels-dir", str(here / "labels"), "--include", "s[01]*"]
    views = ["--tile", "24", "--flip", "--scales", "1,1.5", "--trimap", "3", "--exclude", "s0*"]
    assert main(["evaluate", "--weights", weights, *data, *views, "--json", "s.json"]) == 0
    scores = json.loads(Path("s.json").read_text())
    assert scores["pictures"] == 1 and scores["trimap"]["width"] == 3
    mean = f"mean IU, trimap of 3 px {100 * scores['trimap']['mean_iu']:.1f} over"
    assert mean in " ".join(capsys.readouterr().out.split())
    dataset = open_folder("data", "val", CAMVID, here / "labels", include="s1*")
    matrix = evaluate_model(segmenter.model, dataset, tile=24, flip=True, scales=(1, 1.5))
    assert scores["confusion"] == matrix.matrix.tolist()


def test_oracle(here, capsys):
    camvid_like("data")
    arguments = ["evaluate", "--data-path", "data", "--oracle", "--trimap", "1"]
    assert main([*arguments, "--json", "s.json"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["factor", "128", "64", "32", "16", "8", "4"]
    found = json.loads(Path("s.json").read_text())["oracle"]
    assert rows[6][3] == f"{100 * found['4']['mean_iu']:.1f}"
    assert 1 > found["4"]["mean_iu"] > found["32"]["mean_iu"] > 0
    assert found["4"]["trimap"]["width"] == 1


NETWORK, DATA = "--weights W", "--data-path data"


def test_mistakes_of_evaluate(weights, refused):
    camvid_like("data")
    Path("some").mkdir()
    write_labels("some/s0.png", np.zeros((36, 48), np.uint8), ())
    Path("short.json").write_text('{"names": ["a", "b"]}')
    for arguments, says in (
        (NETWORK, "required: --data-path"),
        (f"{NETWORK} --data-path nothing", "nothing: no such"),
        (f"{NETWORK} {DATA} --split test", "split 'test'"),
        (f"{NETWORK} {DATA} --classes voc", "11 classes.*'voc' has 21"),
        (f"{NETWORK} {DATA} --json data", "data: is a folder"),
        (f"{DATA} --predictions some", r"some: no prediction s1\.png"),
        (f"{DATA} --predictions some --device cpu", "--device is for a network"),
        (f"{DATA} --predictions data/valannot --classes short.json", r"s0\.png: value \d+ \(pix"),
        (f"{DATA} --oracle --weights W", "--weights is for a network, --oracle scores"),
        (f"{DATA} --oracle --predictions data", "give --predictions or --oracle"),
        (f"{DATA} --oracle --report page", "--report shows a prediction, --oracle scores the"),
        (f"{DATA} --predictions data/valannot --report page.html", "page.html: --report needs a f"),
        (f"{DATA} --predictions data/valannot --report short.json", "short.json: is not a folder"),
    ):
        given = [weights if text == "W" else text for text in arguments.split()]
        refused("evaluate", *given, says=says)


def test_the_demo_segments_and_tells(weights, monkeypatch, capsys, refused):
    """With the tests' own network: the package's is looked at by its own tests."""
    monkeypatch.setattr("fcnfast.models.loading.bundled_path", lambda: Path(weights))
    Path("file").write_text("in the way")
    refused("demo", "--output-dir", "file", says="file: is not a folder")
    assert main(["demo", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    folder = Path("out/demo")
    assert contents(folder).keys() == {"photo.png", "overlay.png", "labels.png", "truth.png"}
    assert all(str(folder / name) in out for name in contents(folder))
    scene, truth, _ = demo_scene()
    assert np.array_equal(np.asarray(Image.open(folder / "photo.png")), np.asarray(scene))
    assert np.array_equal(read_labels(folder / "truth.png", CAMVID), truth)
    right = (read_labels(folder / "labels.png", CAMVID) == truth).mean()
    assert f"{100 * right:.1f} % of the pixels are labeled correctly" in out


def test_version_help_and_models(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fcnfast {__version__}\n"
    for arguments in (["--help"], ["predict", "--help"], ["train", "--help"]):
        assert main(arguments) == 0
        assert "usage: fcnfast" in capsys.readouterr().out
    assert main(["models"]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert rows["fcn8s_vgg16"].strip() == "FCN-8s over VGG-16, trained in stages, PASCAL VOC"


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from fcnfast.cli import main; main(['predict', '--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'PIL')))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, stdout=subprocess.DEVNULL)


def test_unknown_commands_and_options(refused):
    for arguments in ([], ["segment"], ["predict"], ["--verbose"]):
        refused(*arguments, says="--help")
    refused("train", "--data-path", "nothing", "--output-dir", "o", says="nothing")


def test_a_bug_is_not_hidden_and_ctrl_c_is_told(monkeypatch, capsys):
    monkeypatch.setattr(fcnfast.cli.commands, "models", fail(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        main(["models"])
    monkeypatch.setattr(fcnfast.cli.commands, "models", fail(KeyboardInterrupt()))
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "fcnfast: interrupted\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_stdout_that_cannot_be_written(monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    full = r"fcnfast: error: [^\n]*No space left on device\n"
    for place, code, told in (("/dev/full", 2, full), (writing, 141, "")):
        with open(place, "w") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            assert main(["models"]) == code
        assert re.fullmatch(told, capsys.readouterr().err)
