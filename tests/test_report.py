"""The page of an evaluation and the drawing of runs: whole, escaped, readable in a browser."""

import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fcnfast import ConfusionMatrix, InputError
from fcnfast.cli import main
from fcnfast.data import ClassTable, Sample, voc_palette
from fcnfast.evaluate import scores_as_json
from fcnfast.plot import Curves, drawn, plot_runs, read_curves
from fcnfast.report import Gallery, write_report
from tests.model_tools import make_photo, write_small_weights
from tests.test_evaluate import PAIRS, TABLE, write_dataset, write_predictions

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HEADER = "iteration,epoch,lr,loss,seconds,val_mean_iu\n"


class Page(HTMLParser):
    """A page's texts and tags; an element that is closed out of turn is an error."""

    def __init__(self, path):
        super().__init__()
        self.open, self.texts, self.tags = [], [], []
        self.content = Path(path).read_text(encoding="utf-8")
        self.feed(self.content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def images(self, alt):
        """The pictures of one kind, decoded."""
        uris = [of["src"] for tag, of in self.tags if tag == "img" and of["alt"] == alt]
        return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]

    def below(self, heading):
        """The names of the pictures below a heading."""
        part = self.content.partition(f"<h2>{heading}</h2>")[2].partition("</section>")[0]
        return [html.unescape(name) for name in re.findall("<h3>(.*?)</h3>", part)]


def table(*names):
    return ClassTable("some", names, voc_palette(len(names)))


def sample(truth, name="p"):
    return Sample(make_photo(*truth.shape), truth, name)


def page(folder, classes, *pairs, facts=None, curves=None, matrix=None):
    gallery = Gallery(classes)
    own = ConfusionMatrix(len(classes))
    for name, truth, guess in pairs:
        gallery.add(sample(truth, name), guess)
        own.update(truth, guess)
    scores = scores_as_json(own if matrix is None else matrix, classes.names)
    facts = facts or {"data": "here"}
    return Page(write_report(folder, scores, classes, gallery, facts=facts, curves=curves))


HOSTILE = ["<b>&amp;\"'</b>", "</script><script>alert(1)</script>", "π 街 é"]


@settings(max_examples=30)
@example(names=HOSTILE, seed=0)
@given(
    names=st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True), seed=st.integers(0)
)
def test_names_stay_texts(tmp_path_factory, names, seed):
    """Whatever classes, pictures, folders and runs are called, tags are the page's own."""
    folder = tmp_path_factory.getbasetemp()
    chance = np.random.default_rng(seed)
    truth, guess = chance.integers(0, len(names), (2, 6, 7)).astype(np.uint8)

    def called(*names):
        pairs = [(name, truth, guess) for name in names]
        return page(folder, table(*names), *pairs, facts={name: name for name in names})

    found, plain = called(*names), called(*map(str, range(len(names))))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    printable = ["".join(c if c.isprintable() else "\ufffd" for c in name) for name in names]
    assert all(found.texts.count(text) >= 3 for text in printable)
    assert set(printable) <= {*found.below("The best pictures"), *found.below("The worst pictures")}


def test_it_needs_no_other_file(tmp_path):
    run = Curves("a", {"loss": [(1, 3.0)], "lr": [(1, 0.1)], "val_mean_iu": [(1, 50.0)]})
    pairs = [("p", truth, guess) for guess, truth in PAIRS]
    found = page(tmp_path, TABLE, *pairs, curves=drawn([run], "svg"))
    for _, attributes in found.tags:
        for key in attributes.keys() & {"src", "href", "srcset", "data", "action"}:
            assert attributes[key].startswith("data:image/"), (key, attributes[key])
    assert "url(" not in found.content and "@import" not in found.content
    assert not re.findall(r"https?://", found.content)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_nothing_to_score_and_one_class(tmp_path):
    """No labeled pixel: dashes, no pictures, and no division by zero."""
    labels = np.zeros((4, 5), np.uint8)
    found = page(tmp_path, TABLE, ("p", np.full_like(labels, 255), labels))
    assert found.texts.count("-") == 5 + 3 * 3  # the metrics, and three for each class
    assert not found.images("photo") and "The worst pictures" not in found.texts
    assert "over 0 of 3 classes" in found.texts
    assert "nan" not in "".join(found.texts)
    found = page(tmp_path, table("all"), ("p", labels, labels))
    assert found.texts.count("100.0") == 8
    assert not [text for text in found.texts if "over 1 of" in text]
    assert found.below("The worst pictures") == []


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(1, 4))
def test_the_best_and_the_worst(rights, kept):
    """Of many pictures the ends by score, no picture twice, the rest not in memory."""
    gallery = Gallery(table("a", "b"), kept)
    truth = np.array([[0, 1] * 10], np.uint8)
    for number, right in enumerate(rights):
        guess = np.where(np.arange(20) < right, truth, 1 - truth)
        gallery.add(sample(truth, f"{number}"), guess)
    best, worst = gallery.best_and_worst()
    ordered = sorted((right / 20 for right in rights), reverse=True)
    count = min(kept, (len(rights) + 1) // 2), min(kept, len(rights) // 2)
    assert [one.accuracy for one in best] == pytest.approx(ordered[: count[0]])
    assert [one.accuracy for one in worst] == pytest.approx(ordered[::-1][: count[1]])
    assert len({one.name for one in (*best, *worst)}) == sum(count)
    assert len(gallery._shown) <= 2 * kept


def test_the_pictures_of_a_picture(tmp_path):
    """A large one is shrunk; the classes in their colors, void in none of them, errors in red."""
    truth = np.zeros((600, 800), np.uint8)
    truth[:, 400:], truth[:100] = 1, 255
    found = page(tmp_path, TABLE, ("p", truth, np.zeros_like(truth)))
    kinds = ("photo", "truth", "prediction", "error")
    photo, seen, said, error = (found.images(kind)[0].convert("RGB") for kind in kinds)
    assert photo.size == seen.size == error.size == (320, 240)
    corners = [(10, 10), (10, 200), (310, 200)]
    colors = [seen.getpixel(at) for at in corners]
    assert colors == [(236, 238, 242), TABLE.palette[0], TABLE.palette[1]]
    assert {said.getpixel(at) for at in corners} == {TABLE.palette[0]}
    red = [error.getpixel(at) for at in corners]
    assert red[2][0] > 200 > 60 > red[2][1]
    assert all(max(color) - min(color) < 12 for color in red[:2])


def test_many_classes_stay_small(tmp_path):
    count = 150
    matrix = ConfusionMatrix(count)
    matrix.matrix += np.eye(count, dtype=np.int64) * 99999 + 1
    found = page(tmp_path, table(*(f"a class {k}" for k in range(count))), matrix=matrix)
    assert [tag for tag, _ in found.tags].count("rect") == count
    assert len(found.content) < 200_000


def test_the_page_of_predictions_and_of_a_network_and_its_run(here, capsys):
    write_dataset(here / "data", PAIRS)
    Path("three.json").write_text('{"names": ["a", "b", "c"], "void_values": [7, 255]}')
    data = ["evaluate", "--data-path", "data", "--classes", "three.json", "--report", "page"]
    write_predictions(Path("labels"), PAIRS)
    assert main([*data, "--predictions", "labels"]) == 0
    assert "The report: page/index.html" in capsys.readouterr().out
    found = Page("page/index.html")
    assert "data, val, 5 pictures" in found.texts and "labels" in found.texts
    assert len(found.images("photo")) == 5
    Path("run").mkdir()
    weights = write_small_weights(Path("run/best.safetensors"), TABLE, 3)
    log = Path("run/log.csv")
    log.write_text(f"{HEADER}5,1,1e-3,2.5,1.0,\n10,2,1e-4,2.0,2.0,0.25\n")
    data += ["--weights", str(weights), "--device", "cpu"]
    assert main(data) == 0
    found = Page("page/index.html")
    (training,) = [attrs["src"] for _, attrs in found.tags if attrs.get("alt") == "curves"]
    assert b"best mean IU 25.0 at iteration 10" in base64.b64decode(training.partition(",")[2])
    assert "run/best.safetensors" in found.texts and "Training" in found.texts
    log.write_text("no log\n")
    assert main([*data, "--max-size", "32"]) == 0
    assert "warning: --report: no learning curves: run/log.csv:" in capsys.readouterr().err
    texts = Page("page/index.html").texts
    assert "Training" not in texts and "32 pixels" in texts


def write_log(folder, text):
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "log.csv").write_text(text)
    return folder


def texts_of(path):
    texts = [element for element in ET.parse(path).iter() if element.tag.endswith("text")]
    return ["".join(text.itertext()).strip() for text in texts]


def test_plots_of_several_runs(here, capsys):
    rows = "20,1,1e-3,5.0,1,\n20,1,,,1,0.5\n40,2,1e-3,0.02,2,\n40,2,,,2,0.4\n"
    write_log("a", HEADER + rows)
    write_log("b<&>", f"{HEADER}30,1,1e-10,7.5,1,\n9")  # a row that a kill cut off
    assert main(["plot", "a", "b<&>/log.csv"]) == 0
    assert capsys.readouterr().out == "The curves of 2 runs: curves.svg\n"
    assert {
        "a: best mean IU 50.0 at iteration 20",
        "b<&>/log.csv",
        "loss by iteration, logarithmic",
        "validation mean IU, %, by iteration",
    } <= set(texts_of("curves.svg"))
    assert main(["plot", "a", "b<&>", "-o", "new/c.PNG"]) == 0
    with Image.open("new/c.PNG") as image:
        assert image.size == (2400, 620) and len(image.getchannel("A").getcolors()) > 20
    plot_runs(["b<&>"], "c.svg")  # without a validation
    assert texts_of("c.svg")[-1] == "b<&>"
    assert not [text for text in texts_of("c.svg") if "mean IU" in text]


def test_bad_logs(tmp_path):
    for text, message in (
        ("", r"a/log\.csv: the log is empty"),
        (HEADER, r"a/log\.csv: no row of the log has a loss or lr or val_mean_iu yet"),
        ("step,value\n1,2\n", r"not the log of a run: it needs .* and has step, value"),
        (f"{HEADER}1,1,0.1,2,3,\n2,1,0.1,nan,3,\n", "line 3: loss is 'nan', not a finite number"),
        (f"{HEADER}x,1,0.1,2,3,\n", "line 2: iteration is 'x', not a finite number"),
        (f"{HEADER}1,1,fast\n", "line 2: lr is 'fast', not a finite number"),
        ("\0\0\n1\n", r"a/log\.csv: not "),
    ):
        with pytest.raises(InputError, match=message):
            read_curves(write_log(tmp_path / "a", text))


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'fcnfast\[plots\]'"):
        drawn([Curves("a", {"loss": [(1, 3.0)]})], "svg")


def test_mistakes_of_plot(here, capsys):
    write_log("a", f"{HEADER}20,1,1e-3,5.0,1,\n")
    Path("staged").mkdir()
    write_log("staged/fcn32s", HEADER)
    Path("bytes.csv").write_bytes(b"\xff\xfe\xff\n")
    for arguments, message in (
        ("nothing", "nothing: No such file"),
        ("a .", "log.csv, but a below it"),
        ("staged", "staged: no log.csv, but fcn32s below it have one"),
        ("bytes.csv", "bytes.csv: not a CSV file"),
        ("a -o c.jpg", "c.jpg: must end in .svg or .png"),
        ("a -o bytes.csv/c.svg", "bytes.csv: is not a folder"),
    ):
        assert main(["plot", *arguments.split()]) == 2
        assert message in capsys.readouterr().err
        assert not list(here.glob("**/*.svg"))


# What a browser tells of a page, `doc` in a frame: what reaches over the edge, how the table sorts.
LOOK = """
    const edge = doc.documentElement.clientWidth, rows = () => doc.querySelectorAll("tbody tr")
    const reaches = e => !e.closest(".wide, svg") && e.getBoundingClientRect().right > edge + 1
    const sorted = k => {
        const button = doc.querySelectorAll("#classes button")[k]
        button.click()
        return [button.parentNode.ariaSort, [...rows()].map(row => row.cells[k].textContent)]
    }
    return {
        over: [...doc.body.querySelectorAll("*")].filter(reaches).map(e => e.tagName),
        width: [frame.contentWindow.innerWidth, doc.documentElement.scrollWidth - edge],
        shown: [...doc.images].every(i => i.naturalWidth > 0),
        color: frame.contentWindow.getComputedStyle(doc.body).backgroundColor,
        sorted: [sorted(1), sorted(1), sorted(0)],
    }"""


def look(path, width, *options):
    """What LOOK says of a page that headless Chromium shows at a width."""
    wrapper = path.with_name("wrapper.html")
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8"><iframe style="border:0;width:{width}px;'
        f'height:900px" srcdoc="{html.escape(path.read_text(encoding="utf-8"))}"></iframe>'
        '<pre id="said"></pre><script>const frame = document.querySelector("iframe");'
        f"const look = doc => {{{LOOK}}};"
        "frame.onload = () => document.querySelector('#said').textContent ="
        " JSON.stringify(look(frame.contentDocument))</script>",
        encoding="utf-8",
    )
    profile = f"--user-data-dir={path.with_name('profile')}"
    command = [CHROMIUM, "--headless", "--disable-gpu", profile, "--virtual-time-budget=5000"]
    command += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command += [f"--window-size={max(500, width)},900", *options, "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall('<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    return json.loads(html.unescape(found))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
def test_in_a_browser(tmp_path):
    """On a phone in light colors, on a desktop in dark ones: nothing overflows, a click sorts."""
    names = ["Unbroken" * 8, *(f"{k} a class with a long name" for k in range(1, 21))]
    pairs = []
    for seed in range(3):
        truth, guess = np.random.default_rng(seed).integers(0, 21, (2, 60, 80), dtype=np.uint8)
        pairs.append(("name" * 20, truth, np.where(np.arange(80) < 50, truth, guess)))
    run = Curves("a", {"loss": [(1, 3.0), (9, 2.0)], "val_mean_iu": [(1, 50.0), (9, 60.0)]})
    facts = {"weights": "folder/" * 40}
    page(tmp_path, table(*names), *pairs, facts=facts, curves=drawn([run], "svg"))
    dark = "--blink-settings=preferredColorScheme=0"
    for width, options, least, most in ((390, [], 700, 765), (1280, [dark], 0, 120)):
        seen = look(tmp_path / "index.html", width, *options)
        assert seen["over"] == [] and seen["width"] == [width, 0] and seen["shown"]
        assert least <= sum(map(int, re.findall(r"\d+", seen["color"]))) <= most
        (first, down), (second, up), (_, by_name) = seen["sorted"]
        assert (first, second) == ("descending", "ascending") and by_name == names
        falling = [float(text) for text in down]
        assert falling == sorted(falling, reverse=True) and len(set(falling)) > 9
        assert [float(text) for text in up] == falling[::-1]
