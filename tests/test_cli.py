"""The command line: what it writes; one line and the right exit code for every mistake."""

import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcnfast.cli.commands
from fcnfast import __version__
from fcnfast.cli import main
from fcnfast.data.folder import demo_scene, open_folder
from fcnfast.data.labels import read_labels, write_labels
from fcnfast.data.tables import CAMVID
from fcnfast.evaluate import evaluate_model
from fcnfast.segment import Segmenter
from tests.model_tools import ROOT, make_photo, make_scene, run_command, write_small_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_small_weights(tmp_path_factory.mktemp("weights") / "small.safetensors"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the command runs in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def photos(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        make_photo(seed=number).save(folder / f"p{number}.png")
    return [f"{folder.name}/p{number}.png" for number in range(count)]


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def outputs(*names: str) -> set[str]:
    pictures = {f"out/{kind}/{name}.png" for kind in ("labels", "overlays") for name in names}
    return pictures | {"out/predictions.json"}


def bomb() -> bytes:
    """A small PNG that says it has 60000x60000 pixels."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        crc = zlib.crc32(kind + data)
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)
    return content


def camvid_like(root: Path, count: int = 2) -> None:
    """A data set of small streets in CamVid's layout."""
    for folder in ("val", "valannot"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        image, labels = make_scene(number)
        image.save(root / "val" / f"s{number}.png")
        write_labels(root / "valannot" / f"s{number}.png", labels, CAMVID.palette)


class Refusal:
    """Runs a command that must be refused: exit code 2, one line on stderr, nothing on stdout."""

    def __init__(self, capsys: pytest.CaptureFixture[str], here: Path) -> None:
        self.capsys, self.here = capsys, here

    def __call__(self, *arguments: str, says: str) -> None:
        before = {path: (self.here / path).read_bytes() for path in files(self.here)}
        assert main(arguments) == 2
        out, err = self.capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"fcnfast: error: [^\n]+\n", err)
        assert re.search(says, err)
        assert {path: (self.here / path).read_bytes() for path in files(self.here)} == before
        assert not (self.here / "out").exists()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], here: Path) -> Refusal:
    return Refusal(capsys, here)


class TestPredict:
    def test_one_picture(self, here, weights, capsys):
        photos(here / "in", 1)
        assert main(["predict", "in/p0.png", "--weights", weights]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert re.match(r"in/p0\.png: \w+ \d+\.\d %", out)
        assert "Segmented 1 picture in" in out
        for name in ("labels", "overlays", "predictions.json"):
            assert f"out/{name}" in out
        assert files(here) == {"in/p0.png"} | outputs("p0")
        assert Image.open("out/labels/p0.png").size == (48, 36)
        assert read_labels("out/labels/p0.png", CAMVID, size=(36, 48)).max() < 11

    def test_files_folders_and_patterns(self, here, weights, capsys):
        photos(here / "a", 2)
        photos(here / "b", 3)
        (here / "b" / "notes.txt").write_text("no picture")
        arguments = ["predict", "a", "b/*2.png", "a/p1.png", "--weights", weights]
        assert main([*arguments, "--output-dir", "new/out"]) == 0
        report = json.loads(Path("new/out/predictions.json").read_text())
        assert [entry["input"] for entry in report["pictures"]] == [
            "a/p0.png",
            "a/p1.png",
            "b/p2.png",
        ]
        assert "Segmented 3 pictures" in capsys.readouterr().out

    def test_results_do_not_depend_on_the_batch(self, here, weights):
        paths = photos(here / "in", 3)
        make_photo(50, 20).save("in/p3.png")
        assert main(["predict", "in", "--weights", weights, "--output-dir", "all"]) == 0
        for path in [*paths, "in/p3.png"]:
            assert main(["predict", path, "--weights", weights, "--output-dir", "one"]) == 0
        for kind in ("labels", "overlays"):
            for path in Path("all", kind).iterdir():
                assert path.read_bytes() == Path("one", kind, path.name).read_bytes()

    def test_options_reach_the_result(self, here, weights):
        photos(here / "in", 1)
        for folder, extra in (
            ("plain", []),
            ("clear", ["--opacity", "0"]),
            ("small", ["--max-size", "16"]),
            ("cpu", ["--device", "cpu"]),
        ):
            arguments = ["predict", "in", "--weights", weights, "--output-dir", folder]
            assert main([*arguments, *extra]) == 0

        def read(folder: str, kind: str) -> np.ndarray:
            return np.asarray(Image.open(f"{folder}/{kind}/p0.png"))

        photo = np.asarray(make_photo())
        assert np.array_equal(read("clear", "overlays")[:36, :48], photo)
        assert not np.array_equal(read("plain", "overlays")[:36, :48], photo)
        assert read("small", "labels").shape == (36, 48)
        assert not np.array_equal(read("small", "labels"), read("plain", "labels"))
        assert np.array_equal(read("cpu", "labels"), read("plain", "labels"))

    def test_a_bad_picture_does_not_stop_the_others(self, here, weights, capsys):
        photos(here / "in", 2)
        whole = (here / "in" / "p0.png").read_bytes()
        (here / "in" / "cut.png").write_bytes(whole[: len(whole) // 2])
        (here / "in" / "empty.png").write_bytes(b"")
        (here / "in" / "text.jpg").write_text("this is no picture")
        (here / "in" / "bomb.png").write_bytes(bomb())
        assert main(["predict", "in", "missing.jpg", "--weights", weights]) == 1
        out, err = capsys.readouterr()
        assert "Segmented 2 pictures" in out
        lines = err.splitlines()
        assert lines[0] == "fcnfast: 5 pictures could not be segmented:"
        for line, (name, reason) in zip(
            lines[1:],
            (
                ("in/bomb.png", "too large"),
                ("in/cut.png", "damaged"),
                ("in/empty.png", "empty"),
                ("in/text.jpg", "not a picture"),
                ("missing.jpg", "no such file"),
            ),
            strict=True,
        ):
            assert line.startswith(f"fcnfast: error: {name}: ")
            assert reason in line
        assert {path for path in files(here) if path.startswith("out/")} == outputs("p0", "p1")
        failed = json.loads(Path("out/predictions.json").read_text())["failed"]
        assert [entry["input"] for entry in failed] == [line.split(": ")[2] for line in lines[1:]]

    def test_when_no_picture_of_several_can_be_read(self, here, weights, capsys):
        Path("a.jpg").write_bytes(b"")
        Path("b.jpg").write_bytes(b"text")
        assert main(["predict", "a.jpg", "b.jpg", "--weights", weights]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 3
        assert files(here) == {"a.jpg", "b.jpg"}
        assert not Path("out").exists()

    def test_single_bad_pictures(self, here, weights, refused):
        photo = make_photo()
        photo.save("whole.jpg")
        Path("cut.jpg").write_bytes(Path("whole.jpg").read_bytes()[:400])
        Path("empty.jpg").write_bytes(b"")
        Path("text.jpg").write_text("this is no picture")
        Path("bomb.png").write_bytes(bomb())
        Path("folder").mkdir()
        for name, reason in (
            ("cut.jpg", "damaged"),
            ("empty.jpg", "empty"),
            ("text.jpg", "not a picture"),
            ("bomb.png", "too large"),
            ("folder", "no pictures in this folder"),
            ("missing.jpg", "no such file"),
            ("*.tif", "no picture matches"),
        ):
            refused("predict", name, "--weights", weights, says=f"{re.escape(name)}: .*{reason}")

    def test_bad_weights(self, here, weights, refused):
        photos(here / "in", 1)
        whole = Path(weights).read_bytes()
        Path("cut.safetensors").write_bytes(whole[:-100])
        Path("text.safetensors").write_text("these are no weights")
        for name, reason in (
            ("cut.safetensors", "is cut or damaged"),
            ("text.safetensors", "not a weights file"),
            ("missing.safetensors", "no such"),
            ("in", "is a folder"),
        ):
            refused("predict", "in", "--weights", name, says=f"{name}: .*{reason}")

    def test_a_pickle_is_not_run(self, here, refused):
        photos(here / "in", 1)

        class Payload:
            def __reduce__(self) -> tuple:
                return open, ("made-by-the-pickle", "w")

        Path("model.pth").write_bytes(pickle.dumps({"model": Payload()}))
        refused("predict", "in", "--weights", "model.pth", says="pickle.* and is not run")
        assert not Path("made-by-the-pickle").exists()

    @pytest.mark.parametrize("folder", ["file", "file/below", "/proc/fcnfast/out"])
    def test_an_output_folder_that_cannot_be_written(self, here, weights, refused, folder):
        photos(here / "in", 1)
        Path("file").write_text("in the way")
        arguments = ["predict", "in", "--weights", weights, "--output-dir", folder]
        refused(*arguments, says="is not a folder" if "file" in folder else "/proc/fcnfast")

    def test_outputs_in_place_of_inputs(self, here, weights, refused):
        photos(here / "labels", 1)
        arguments = ["predict", "labels", "--weights", weights, "--output-dir", "."]
        refused(*arguments, says=r"labels/p0\.png: would be replaced")

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--opacity", "1.01"),
            ("--opacity", "nan"),
            ("--opacity", "half"),
            ("--max-size", "0"),
            ("--max-size", "12.5"),
            ("--tile", "0"),
            ("--overlap", "-1"),
            ("--scales", "0"),
            ("--scales", "nan"),
            ("--scales", "one"),
            ("--scales", "99"),
            ("--probabilities", "jpg"),
            ("--device", "gpu"),
            ("--device", "cuda:99"),
            ("--color", "red"),
        ],
    )
    def test_wrong_options(self, here, weights, refused, option, value):
        photos(here / "in", 1)
        arguments = ["predict", "in", "--weights", weights, option, value]
        refused(*arguments, says=f"{option.lstrip('-')}.*{value}")

    def test_tiles_and_probabilities(self, here, weights, refused, capsys):
        photos(here / "in", 2)
        of = ("predict", "in", "--weights", weights)
        with_tiles = ("--tile", "24", "--overlap", "8", "--scales", "0.75,1", "--flip")
        assert main([*of, *with_tiles, "--probabilities", "npy", "--device", "cpu"]) == 0
        assert "softmax   out/probabilities" in capsys.readouterr().out
        expected = Segmenter(weights, "cpu")(
            "in/p1.png", tile=24, overlap=8, scales=(0.75, 1), flip=True
        )
        assert np.array_equal(read_labels("out/labels/p1.png", CAMVID), expected.labels)
        found = np.load("out/probabilities/p1.npy")
        np.testing.assert_allclose(found.max(0), expected.confidence, atol=5e-4)
        shutil.rmtree("out")
        refused(*of, "--overlap", "8", says="--overlap 8 needs a tile")
        refused(*of, "--tile", "8", "--overlap", "9", says="--overlap must be .*the tile, 8, not 9")
        refused(*of, "--tile", "8", "--max-size", "9", says="--tile 8: .*own size.*max_size 9")

    def test_no_room_on_the_disk(self, here, weights):
        """A limit on the size of files stands for the full disk: every write past it fails."""
        photos(here / "in", 3)
        for limit in (0, 3000):  # not even the first file; the labels, but not the overlay
            done = run_command(
                "predict",
                "in",
                "--weights",
                weights,
                cwd=here,
                preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)),
            )
            assert done.returncode == 2
            assert re.fullmatch(r"fcnfast: error: out/[^\n]*: File too large\n", done.stderr)
            assert files(here) == {"in/p0.png", "in/p1.png", "in/p2.png"}
            assert not Path("out").exists()

    def test_names_that_are_no_text(self, here, weights):
        name = os.fsdecode(b"caf\xe9.png")
        make_photo().save("plain.png")
        try:
            os.rename("plain.png", name)
        except OSError:
            pytest.skip("this file system takes no such name")
        done = run_command("predict", ".", "--weights", weights, cwd=here)
        assert (done.returncode, done.stderr) == (0, "")
        assert Path("out/labels", name).is_file()


class TestEvaluate:
    def test_a_network_and_its_predictions_score_the_same(self, here, weights, capsys):
        camvid_like(here / "data")
        assert main(["predict", "data/val", "--weights", weights]) == 0
        capsys.readouterr()
        of_data = ["--dataset", "folder", "--data-path", "data", "--split", "val"]
        assert main(["evaluate", "--predictions", "out/labels", *of_data, "--json", "p.json"]) == 0
        from_files, err = capsys.readouterr()
        assert err == ""
        model = ["--weights", weights, "--device", "cpu"]
        assert main(["evaluate", *model, *of_data, "--json", "new/m.json"]) == 0
        assert capsys.readouterr().out == from_files
        for name in (*CAMVID.names, "pixel accuracy", "mean accuracy", "mean IU", "frequency"):
            assert name in from_files
        scores = json.loads(Path("p.json").read_text())
        assert scores == json.loads(Path("new/m.json").read_text())
        assert scores["pictures"] == 2
        assert np.sum(scores["confusion"]) == 2 * 36 * 48

    def test_perfect_predictions(self, here, capsys):
        camvid_like(here / "data")
        arguments = ["--predictions", "data/valannot", "--data-path", "data", "--json", "s.json"]
        assert main(["evaluate", *arguments]) == 0
        scores = json.loads(Path("s.json").read_text())
        assert {scores[n] for n in ("pixel_accuracy", "mean_accuracy", "mean_iu", "fw_iu")} == {1.0}

    def test_scores_go_to_a_pipe(self, here, weights):
        camvid_like(here / "data", 1)
        before = files(here)
        arguments = ["--data-path", "data", "--max-size", "32"]
        arguments += ["--weights", weights, "--json", "/dev/stdout"]
        done = run_command("evaluate", *arguments, cwd=here)  # its stdout is a pipe
        assert (done.returncode, done.stderr) == (0, "")
        scores, end = json.JSONDecoder().raw_decode(done.stdout)
        assert np.sum(scores["confusion"]) == 36 * 48
        assert f"mean IU {100 * scores['mean_iu']:.1f}" in " ".join(done.stdout[end:].split())
        assert files(here) == before

    def test_filters(self, here, weights, capsys):
        camvid_like(here / "data", 4)
        arguments = ["--data-path", "data", "--weights", weights, "--json", "s.json"]
        assert main(["evaluate", *arguments, "--include", "s[01]*", "--exclude", "s0*"]) == 0
        assert json.loads(Path("s.json").read_text())["pictures"] == 1
        os.rename("data/valannot", "labels")
        assert main(["evaluate", *arguments, "--labels-dir", str(here / "labels")]) == 0
        assert json.loads(Path("s.json").read_text())["pictures"] == 4

    def test_trimap_and_views(self, here, weights, capsys):
        camvid_like(here / "data")
        arguments = ["--weights", weights, "--data-path", "data", "--trimap", "3"]
        views = ["--tile", "24", "--flip", "--scales", "1,1.5"]
        assert main(["evaluate", *arguments, *views, "--json", "s.json"]) == 0
        out = capsys.readouterr().out
        scores = json.loads(Path("s.json").read_text())
        assert scores["trimap"]["width"] == 3
        mean = f"mean IU, trimap of 3 px {100 * scores['trimap']['mean_iu']:.1f} over"
        assert mean in " ".join(out.split())
        model = Segmenter(weights, "cpu").model
        dataset = open_folder("data", "val", CAMVID)
        matrix = evaluate_model(model, dataset, tile=24, flip=True, scales=(1, 1.5))
        assert scores["confusion"] == matrix.matrix.tolist()

    def test_oracle(self, here, weights, refused, capsys):
        camvid_like(here / "data")
        of = ("evaluate", "--data-path", "data", "--oracle")
        assert main([*of, "--trimap", "1", "--json", "s.json"]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [row[0] for row in rows] == ["factor", "128", "64", "32", "16", "8", "4"]
        found = json.loads(Path("s.json").read_text())
        assert found["pictures"] == 2
        found = found["oracle"]
        assert rows[6][3] == f"{100 * found['4']['mean_iu']:.1f}"
        assert 1 > found["4"]["mean_iu"] > found["32"]["mean_iu"] > 0
        assert found["4"]["trimap"]["width"] == 1
        refused(*of, "--weights", weights, says="--weights is for a network, --oracle scores")
        refused(*of, "--flip", says="--flip is for a network, --oracle scores")
        refused(*of, "--predictions", "data", says="--predictions scores .*, --oracle the truth")

    def test_a_link_is_followed(self, here):
        camvid_like(here / "data")
        os.symlink("real.json", "link.json")
        arguments = ["--predictions", "data/valannot", "--data-path", "data", "--json"]
        assert main(["evaluate", *arguments, "link.json"]) == 0
        assert Path("link.json").is_symlink()
        assert json.loads(Path("real.json").read_text())["pictures"] == 2

    def test_mistakes(self, here, weights, refused):
        camvid_like(here / "data")
        Path("labels").mkdir()
        write_labels("labels/s0.png", np.zeros((36, 48), np.uint8), ())
        Path("short.json").write_text('{"names": ["a", "b"]}')
        data = ("--data-path", "data")
        of = ("evaluate", "--weights", weights)
        with_files = ("evaluate", "--predictions")
        refused(*of, says="required: --data-path")
        refused(*of, "--data-path", "nothing", says="nothing: no such")
        refused(*of, *data, "--split", "test", says="split 'test'")
        refused(*of, *data, "--classes", "nothing", says="nothing: no class table")
        refused(*of, *data, "--classes", "voc", says="11 classes.*'voc' has 21")
        refused(*of, *data, "--include", "x*", says="no pictures left")
        refused(*of, *data, "--json", "data", says="data: is a folder")
        refused(*of, *data, "--json", "short.json/s.json", says="is not a folder")
        refused(*of, *data, "--dataset", "vok", says="--dataset vok: not one of voc, nyud")
        refused(*with_files, "nothing", *data, says="nothing: no such folder")
        refused(*with_files, "labels", *data, says=r"labels: no prediction s1\.png")
        refused(*with_files, "labels", *data, "--device", "cpu", says="--device is for a network")
        short = ("--classes", "short.json")
        refused(*with_files, "data/valannot", *data, *short, says=r"s0\.png: value \d+ \(pixels")
        write_labels("labels/s1.png", np.zeros((48, 36), np.uint8), ())
        refused(*with_files, "labels", *data, says=r"labels/s1\.png: .*36x48.*48x36")


class TestDemo:
    def test_it_segments_and_tells(self, here, weights, monkeypatch, capsys):
        """With the tests' own network: the package's is looked at by its own tests."""
        monkeypatch.setattr("fcnfast.models.loading.bundled_path", lambda: Path(weights))
        assert main(["demo", "--device", "cpu"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        folder = Path("out/demo")
        assert files(folder) == {"photo.png", "overlay.png", "labels.png", "truth.png"}
        assert all(str(folder / name) in out for name in files(folder))
        scene, truth, _ = demo_scene()
        assert np.array_equal(np.asarray(Image.open(folder / "photo.png")), np.asarray(scene))
        assert np.array_equal(read_labels(folder / "truth.png", CAMVID), truth)
        right = (read_labels(folder / "labels.png", CAMVID) == truth).mean()
        assert f"{100 * right:.1f} % of the pixels are labeled right" in out

    def test_it_can_write_elsewhere_and_says_when_it_cannot(
        self, here, weights, monkeypatch, refused
    ):
        monkeypatch.setattr("fcnfast.models.loading.bundled_path", lambda: Path(weights))
        Path("file").write_text("in the way")
        refused("demo", "--output-dir", "file", says="file: is not a folder")
        assert main(["demo", "--output-dir", "a/b"]) == 0
        assert Path("a/b/overlay.png").is_file()


class TestCommand:
    def test_version_help_and_models(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"fcnfast {__version__}\n"
        for arguments in (["--help"], ["predict", "--help"], ["train", "--help"]):
            assert main(arguments) == 0
            assert "usage: fcnfast" in capsys.readouterr().out
        assert main(["models"]) == 0
        rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
        assert rows["fcn8s_vgg16"].strip() == "FCN-8s over VGG-16, trained in stages, PASCAL VOC"

    def test_help_does_not_wait_for_torch(self):
        code = (
            "import sys; from fcnfast.cli import main; main(['predict', '--help']);"
            "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'PIL')))"
        )
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], env=env, check=True, stdout=subprocess.DEVNULL)

    @pytest.mark.parametrize("arguments", [[], ["segment"], ["predict"], ["--verbose"]])
    def test_unknown_commands_and_options(self, refused, arguments):
        refused(*arguments, says="--help")

    def test_a_bug_is_not_hidden(self, monkeypatch):
        def bug(_: object) -> int:
            raise TypeError("a bug")

        monkeypatch.setattr(fcnfast.cli.commands, "models", bug)
        with pytest.raises(TypeError, match="a bug"):
            main(["models"])

    def test_ctrl_c(self, monkeypatch, capsys):
        def interrupt(_: object) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr(fcnfast.cli.commands, "models", interrupt)
        assert main(["models"]) == 130
        assert capsys.readouterr().err == "fcnfast: interrupted\n"

    def test_training_mistakes_are_told_like_the_others(self, refused):
        refused("train", "--data-path", "nothing", "--output-dir", "o", says="nothing")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
    def test_a_full_disk_behind_stdout(self, here):
        command = [sys.executable, "-m", "fcnfast", "models"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, env=env, stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == 2
        assert re.fullmatch(r"fcnfast: error: [^\n]*No space left on device\n", done.stderr)

    def test_a_reader_that_leaves(self, here):
        command = [sys.executable, "-m", "fcnfast", "models"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            command, env=env, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, "")
