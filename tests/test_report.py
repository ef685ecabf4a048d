"""The page of an evaluation and the drawing of runs: whole, escaped, readable in a browser."""

import base64
import html
import io
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcnfast.cli import main
from fcnfast.data import ClassTable, Sample, voc_palette
from fcnfast.errors import InputError
from fcnfast.evaluate import scores_as_json
from fcnfast.metrics import ConfusionMatrix
from fcnfast.plot import Curves, _short, _ticks, panel, plot_runs, read_curves
from fcnfast.report import Gallery, write_report
from tests.model_tools import make_photo, write_small_weights
from tests.test_evaluate import PAIRS, TABLE, write_dataset, write_predictions

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HEADER = "iteration,epoch,lr,loss,seconds,val_mean_iu\n"
VOID_TAGS = ("meta", "img", "br", "link")


class Page(HTMLParser):
    """A page's texts and tags; an element that is closed out of turn is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.content = path.read_text(encoding="utf-8")
        self.feed(self.content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def images(self, alt: str) -> list[Image.Image]:
        """The pictures of one kind, decoded."""
        uris = [of["src"] for tag, of in self.tags if tag == "img" and of["alt"] == alt]
        return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]

    def below(self, heading: str) -> list[str]:
        """The names of the pictures below a heading."""
        part = self.content.partition(f"<h2>{heading}</h2>")[2].partition("</section>")[0]
        return [html.unescape(name) for name in re.findall("<h3>(.*?)</h3>", part)]


def page(folder: Path, matrix: ConfusionMatrix, gallery: Gallery, **more) -> Page:
    names = gallery.table.names
    more = {"facts": {"data": "here"}, **more}
    scores = scores_as_json(matrix, names)
    return Page(write_report(folder, scores, gallery.table, gallery, **more))


def table(*names: str) -> ClassTable:
    return ClassTable("some", names, voc_palette(len(names)))


def sample(truth: np.ndarray, name: str = "p") -> Sample:
    return Sample(make_photo(*truth.shape), truth, name)


@settings(max_examples=30)
@given(
    names=st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True), seed=st.integers(0)
)
def test_names_stay_texts(tmp_path_factory, names, seed):
    """Whatever classes, pictures, folders and runs are called, tags are the page's own."""
    folder = tmp_path_factory.mktemp("page")
    chance = np.random.default_rng(seed)
    gallery = Gallery(table(*names))
    matrix = ConfusionMatrix(len(names))
    truth, guess = chance.integers(0, len(names), (2, 6, 7)).astype(np.uint8)
    for name in names:
        gallery.add(sample(truth, name), guess)
    matrix.update(truth, guess)
    run = Curves(names[-1], {"loss": [(1, 3.0), (2, 2.0)]})
    found = page(folder, matrix, gallery, facts={name: name for name in names}, run=run)
    plain = page(folder, matrix, Gallery(table(*map(str, range(len(names))))))
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in plain.tags} | {
        *("h3", "p", "div", "figure", "figcaption", "img", "polyline", "ol", "li", "style")
    }
    printable = ["".join(c if c.isprintable() else "\ufffd" for c in name) for name in names]
    assert sum(text in printable for text in found.texts) >= 3 * len(names)


@pytest.mark.parametrize(
    "text", ["<b>&amp;\"'</b>", "</script><script>alert(1)</script>", "π 街 é"]
)
def test_hostile_names(tmp_path, text):
    gallery = Gallery(table(text, "other"))
    truth = np.array([[0, 1, 255]], np.uint8)
    gallery.add(sample(truth, text), np.zeros_like(truth))
    matrix = ConfusionMatrix(2)
    matrix.update(truth, np.zeros_like(truth))
    found = page(tmp_path, matrix, gallery, facts={"data": text})
    assert found.texts.count(text) >= 3
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert found.below("The best pictures") == [text]


def test_it_needs_no_other_file(tmp_path):
    gallery = Gallery(TABLE)
    for guess, truth in PAIRS:
        gallery.add(sample(truth), guess)
    matrix = ConfusionMatrix(3)
    run = Curves("a", {"loss": [(1, 3.0)], "lr": [(1, 0.1)], "val_mean_iu": [(1, 50.0)]})
    found = page(tmp_path, matrix, gallery, run=run)
    for _, attributes in found.tags:
        for key, value in attributes.items():
            if key in ("src", "href", "srcset", "data", "action"):
                assert value.startswith("data:image/"), (key, value)
    assert "url(" not in found.content and "@import" not in found.content
    assert set(re.findall(r"https?://[^\"]*", found.content)) == {"http://www.w3.org/2000/svg"}
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert "best mean IU 50.0 at iteration 1" in "".join(found.texts)


def test_nothing_to_score(tmp_path):
    """No picture, and no labeled pixel: dashes, no pictures, and no division by zero."""
    gallery = Gallery(TABLE)
    gallery.add(sample(np.full((4, 5), 255, np.uint8)), np.zeros((4, 5), np.uint8))
    found = page(tmp_path, ConfusionMatrix(3), gallery)
    assert found.texts.count("–") == 5 + 3 * 3  # the metrics, and three for each class
    assert not found.images("photo") and "The worst pictures" not in found.texts
    assert "over 0 of 3 classes" in found.texts
    assert "nan" not in "".join(found.texts)


def test_one_class(tmp_path):
    labels = np.zeros((4, 5), np.uint8)
    gallery, matrix = Gallery(table("all")), ConfusionMatrix(1)
    gallery.add(sample(labels), labels)
    matrix.update(labels, labels)
    found = page(tmp_path, matrix, gallery)
    assert found.texts.count("100.0") == 8
    assert not [text for text in found.texts if "over 1 of" in text]
    assert found.below("The worst pictures") == []


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(1, 4))
def test_the_best_and_the_worst(rights, kept):
    """Of many pictures the ends by score, no picture twice, the rest not in memory."""
    gallery = Gallery(table("a", "b"), kept)
    truth = np.array([[0, 1] * 10], np.uint8)
    for number, right in enumerate(rights):
        guess = truth.copy()
        guess[0, right:] = 1 - guess[0, right:]
        gallery.add(sample(truth, f"{number}"), guess)
    best, worst = gallery.best_and_worst()
    scores = [one.accuracy for one in best]
    low = [one.accuracy for one in worst]
    ordered = sorted((right / 20 for right in rights), reverse=True)
    assert scores == pytest.approx(ordered[: len(best)])
    assert low == pytest.approx(ordered[::-1][: len(worst)])
    assert len(best) == min(kept, (len(rights) + 1) // 2)
    assert len(worst) == min(kept, len(rights) // 2)
    names = [one.name for one in (*best, *worst)]
    assert len(set(names)) == len(names)
    assert all(len(shown) <= kept for shown in gallery._kept.values())


def test_the_pictures_of_a_picture(tmp_path):
    """A large one is shrunk; the classes in their colors, void in none of them, errors in red."""
    truth = np.zeros((600, 800), np.uint8)
    truth[:, 400:], truth[:100] = 1, 255
    guess = np.zeros_like(truth)
    gallery = Gallery(TABLE)
    gallery.add(sample(truth), guess)
    found = page(tmp_path, ConfusionMatrix(3), gallery)
    (error,) = found.images("error")
    assert all(found.images(kind)[0].size == (320, 240) for kind in ("photo", "truth", "error"))
    (seen,), (said,) = found.images("truth"), found.images("prediction")
    corners = [(10, 10), (10, 200), (310, 200)]
    colors = [seen.convert("RGB").getpixel(at) for at in corners]
    assert colors == [(236, 238, 242), TABLE.palette[0], TABLE.palette[1]]
    assert {said.convert("RGB").getpixel(at) for at in corners} == {TABLE.palette[0]}
    red = [error.getpixel(at) for at in corners]
    assert red[2][0] > 200 > 60 > red[2][1]
    assert all(max(color) - min(color) < 12 for color in red[:2])


def test_many_classes_stay_small(tmp_path):
    count = 150
    matrix = ConfusionMatrix(count)
    matrix.matrix += np.eye(count, dtype=np.int64) * 99999 + 1
    found = page(tmp_path, matrix, Gallery(table(*(f"a class {k}" for k in range(count)))))
    assert [tag for tag, _ in found.tags].count("rect") == count
    assert len(found.content) < 200_000


class TestCommand:
    @pytest.fixture
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_dataset(tmp_path / "data", PAIRS)
        Path("three.json").write_text('{"names": ["a", "b", "c"], "void_values": [7, 255]}')
        return tmp_path

    DATA = ("--data-path", "data", "--classes", "three.json", "--report", "page")

    def test_of_predictions(self, here, capsys):
        write_predictions(here / "labels", [(guess, truth) for guess, truth in PAIRS])
        assert main(["evaluate", "--predictions", "labels", *self.DATA]) == 0
        assert "The report: page/index.html" in capsys.readouterr().out
        found = Page(Path("page/index.html"))
        assert "data, val, 5 pictures" in found.texts and "labels" in found.texts
        assert len(found.images("photo")) == 5

    def test_of_a_network_and_its_run(self, here, capsys):
        Path("run").mkdir()
        weights = write_small_weights(Path("run/best.safetensors"), TABLE, 3)
        log = Path("run/log.csv")
        log.write_text(f"{HEADER}5,1,1e-3,2.5,1.0,\n10,2,1e-4,2.0,2.0,0.25\n")
        of = ["evaluate", "--weights", str(weights), "--device", "cpu", *self.DATA]
        assert main([*of, "--json", "s.json"]) == 0
        capsys.readouterr()
        found = Page(Path("page/index.html"))
        assert [tag for tag, _ in found.tags].count("polyline") > 6
        assert "run/best.safetensors" in found.texts and "Training" in found.texts
        log.write_text("no log\n")
        assert main(of) == 0
        assert "warning: --report: no learning curves: run/log.csv:" in capsys.readouterr().err
        assert "Training" not in Page(Path("page/index.html")).texts
        log.unlink()
        assert main([*of, "--max-size", "32"]) == 0
        assert "32 pixels" in Page(Path("page/index.html")).texts

    def test_what_it_shows_is_what_is_counted(self, here):
        """The labels that `each` sees give the matrix again."""
        from fcnfast.data import open_folder
        from fcnfast.evaluate import evaluate_model
        from fcnfast.segment import Segmenter

        weights = write_small_weights(Path("w.safetensors"), TABLE, 3)
        dataset, again = open_folder("data", "val", TABLE), ConfusionMatrix(3)
        matrix = evaluate_model(
            Segmenter(weights, "cpu").model,
            dataset,
            batch_size=3,
            each=lambda sample, labels: again.update(sample.labels, labels),
        )
        assert np.array_equal(matrix.matrix, again.matrix) and matrix.matrix.any()

    def test_a_place_that_cannot_be_written(self, here, capsys):
        write_predictions(here / "labels", PAIRS)
        Path("page").write_text("a file")
        assert main(["evaluate", "--predictions", "labels", *self.DATA]) == 2
        assert "error: page: is not a folder" in capsys.readouterr().err
        assert Path("page").read_text() == "a file"
        assert main(["evaluate", *self.DATA[:-1], "page.html"]) == 2
        assert "page.html: --report needs a folder" in capsys.readouterr().err


def write_log(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_text(text)
    return folder


def texts_of(path: Path) -> list[str]:
    return [element.text or "" for element in ET.parse(path).iter() if element.tag.endswith("text")]


class TestPlot:
    def test_several_runs(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        write_log(
            Path("a"), f"{HEADER}20,1,1e-3,5.0,1,\n20,1,,,1,0.5\n40,2,1e-3,0.02,2,\n40,2,,,2,0.4\n"
        )
        write_log(Path("b<&>"), f"{HEADER}30,1,1e-10,7.5,1,\n9")  # a row that a kill cut off
        assert main(["plot", "a", "b<&>/log.csv"]) == 0
        assert capsys.readouterr().out == "The curves of 2 runs: curves.svg\n"
        texts = texts_of(Path("curves.svg"))
        assert "a: best mean IU 50.0 at iteration 20" in texts and "b<&>/log.csv" in texts
        assert (
            "loss by iteration, logarithmic" in texts
            and "validation mean IU, %, by iteration" in texts
        )
        assert {"0.01", "10", "1e-10"} <= set(texts)
        assert main(["plot", "a", "b<&>", "-o", "new/c.PNG"]) == 0
        with Image.open("new/c.PNG") as image:
            assert image.size == (2400, 2 * 298) and len(image.convert("L").getcolors()) > 20

    def test_without_a_validation(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_log(tmp_path / "a", f"{HEADER}20,1,1e-3,5.0,1,\n")
        plot_runs(["a"], "c.svg")
        assert texts_of(tmp_path / "c.svg")[-1] == "a"
        assert not [text for text in texts_of(tmp_path / "c.svg") if "mean IU" in text]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"a/log\.csv: the log is empty"),
            ("iteration,loss", r"a/log\.csv: the log is empty"),
            (HEADER, r"a/log\.csv: no row of the log has a loss or lr or val_mean_iu yet"),
            ("step,value\n1,2\n", r"not the log of a run: it needs .* and has step, value"),
            ("iteration,epoch\n1,2\n", "not the log of a run"),
            (
                f"{HEADER}1,1,0.1,2,3,\n2,1,0.1,nan,3,\n",
                "line 3: loss is 'nan', not a finite number",
            ),
            (f"{HEADER}1,1,0.1,inf,3,\n", "line 2: loss is 'inf', not a finite number"),
            (f"{HEADER}x,1,0.1,2,3,\n", "line 2: iteration is 'x', not a finite number"),
            (f"{HEADER}1,1,fast\n", "line 2: lr is 'fast', not a finite number"),
            ("\0\0\n1\n", r"a/log\.csv: not "),
        ],
    )
    def test_logs_that_are_none(self, tmp_path, text, message):
        with pytest.raises(InputError, match=message):
            read_curves(write_log(tmp_path / "a", text))

    def test_mistakes(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        write_log(Path("a"), f"{HEADER}20,1,1e-3,5.0,1,\n")
        Path("staged").mkdir()
        write_log(Path("staged/fcn32s"), HEADER)
        Path("bytes.csv").write_bytes(b"\xff\xfe\xff\n")
        for arguments, message in (
            (["nothing"], "nothing: No such file"),
            (["a", "."], "log.csv, but a below it"),
            (["staged"], "staged: no log.csv, but fcn32s below it have one"),
            (["bytes.csv"], "bytes.csv: not a CSV file"),
            (["a", "-o", "c.jpg"], "c.jpg: must end in .svg or .png"),
            (["a", "-o", "bytes.csv/c.svg"], "bytes.csv: is not a folder"),
        ):
            assert main(["plot", *arguments]) == 2
            assert message in capsys.readouterr().err
        assert not list(tmp_path.glob("**/*.svg"))

    @given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
    def test_ticks_are_round_and_reach_around(self, low, span):
        high = low + span
        ticks = _ticks(low, high)
        assert 2 <= len(ticks) <= 8
        slack = 1e-5 * (ticks[1] - ticks[0])
        assert ticks[0] <= low + slack and high - slack <= ticks[-1]
        digits = f"{ticks[1] - ticks[0]:.6e}"
        assert digits[0] in "125" and set(digits[2:8]) <= {"0"} or digits.startswith("9.99999")

    def test_numbers_of_an_axis(self):
        shown = [_short(v) for v in (0, 0.25, 1500, 20000, 3e7, 0.00045, 1e-14, -5)]
        assert shown == ["0", "0.25", "1500", "20k", "30M", "4.5e-4", "1e-14", "-5"]

    def test_a_long_run_is_thinned_by_means(self):
        points = [(float(k), k % 2 * 2.0) for k in range(5000)]
        *_, line = panel("loss", [Curves("a", {"loss": points})])
        assert len(line.points) <= 400
        heights = [y for _, y in line.points]
        assert max(heights) - min(heights) < 15


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    names = [f"{k} a class with a long name" for k in range(21)]
    names[3] = "Unbroken" * 8
    gallery, matrix = Gallery(table(*names)), ConfusionMatrix(21)
    for seed in range(3):
        truth, guess = np.random.default_rng(seed).integers(0, 21, (2, 60, 80), dtype=np.uint8)
        guess = np.where(np.arange(80) < 50, truth, guess).astype(np.uint8)
        gallery.add(sample(truth, "name" * 20), guess)
        matrix.update(truth, guess)
    run = Curves("a", {"loss": [(1, 3.0), (9, 2.0)], "val_mean_iu": [(1, 50.0), (9, 60.0)]})
    page(folder, matrix, gallery, facts={"weights": "folder/" * 40}, run=run)
    return folder / "index.html"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
class TestBrowser:
    """The page in headless Chromium, in a frame of a phone's and of a desktop's width."""

    def look(self, path: Path, folder: Path, script: str, width: int, *options: str) -> list[str]:
        """Run a script that sees the page as `doc`, and return what it says."""
        framed = html.escape(path.read_text(encoding="utf-8"))
        wrapper = folder / "wrapper.html"
        wrapper.write_text(
            f'<!doctype html><meta charset="utf-8"><iframe style="border:0;width:{width}px;'
            f'height:900px" srcdoc="{framed}"></iframe><pre id="said"></pre><script>'
            'const frame = document.querySelector("iframe");'
            "frame.onload = () => { const doc = frame.contentDocument, said = [];"
            f"{script}; document.querySelector('#said').textContent = said.join('|') }}</script>",
            encoding="utf-8",
        )
        command = [CHROMIUM, "--headless", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--no-sandbox")
        command += ["--virtual-time-budget=5000", f"--window-size={max(500, width)},900", *options]
        done = subprocess.run(
            [*command, "--dump-dom", wrapper.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        (found,) = re.findall('<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
        return html.unescape(found).split("|")

    @pytest.mark.parametrize("width", [390, 1280])
    def test_nothing_reaches_over_the_edge(self, made, tmp_path, width):
        script = """
        said.push(frame.contentWindow.innerWidth)
        if (doc.documentElement.scrollWidth > doc.documentElement.clientWidth) said.push("over")
        for (const e of doc.body.querySelectorAll(":scope *")) {
            if (!e.closest(".wide") && !e.closest("svg")
                && e.getBoundingClientRect().right > doc.documentElement.clientWidth + 1)
                said.push(e.tagName)
        }
        said.push([...doc.images].every(i => i.naturalWidth > 0))"""
        assert self.look(made, tmp_path, script, width) == [str(width), "true"]

    def test_a_click_sorts(self, made, tmp_path):
        script = """
        const iu = doc.querySelectorAll("#classes button")[1]
        const column = k => [...doc.querySelectorAll("#classes tbody tr")].map(
            row => row.cells[k].textContent)
        said.push(column(0).length)
        iu.click(); said.push(column(1).join(" "), iu.parentNode.ariaSort)
        iu.click(); said.push(column(1).join(" "), iu.parentNode.ariaSort)
        doc.querySelector("#classes button").click(); said.push(column(0)[0])"""
        count, down, first, up, second, name = self.look(made, tmp_path, script, 1280)
        falling = [float(text) for text in down.split()]
        assert count == "21" and falling == sorted(falling, reverse=True) and len(set(falling)) > 9
        assert [float(text) for text in up.split()] == falling[::-1]
        assert (first, second) == ("descending", "ascending")
        assert name == "0 a class with a long name"

    def test_light_and_dark(self, made, tmp_path):
        script = "said.push(frame.contentWindow.getComputedStyle(doc.body).backgroundColor)"
        (light,) = self.look(made, tmp_path, script, 390)
        dark = self.look(made, tmp_path, script, 390, "--blink-settings=preferredColorScheme=0")
        shades = [sum(map(int, re.findall(r"\d+", color))) for color in (light, *dark)]
        assert shades[0] > 700 and shades[1] < 120
