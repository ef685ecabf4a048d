"""docs/reproduce.md: each of its commands and programs runs, for two iterations, in miniature.

They run as they stand and in the page's order, on miniatures at its own paths, files of Caffe's
format under the released names, and networks with all layers and few channels.
"""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from fcnfast.cli import main
from fcnfast.data.tables import PASCAL_CONTEXT_59
from tests import foreign_nets, test_datasets
from tests.foreign_nets import STAGES, VGG, randomize
from tests.model_tools import narrow_trunks
from tests.wire_tools import caffemodel

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "reproduce.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def blocks(section):
    """The fenced blocks of a section: their language, "" for commands, and their lines."""
    return re.findall(r"^```(\w*)\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)


def commands(section):
    """The commands of a section, without "fcnfast"."""
    shell = "".join(text for language, text in blocks(section) if not language)
    found = [shlex.split(line) for line in shell.replace("\\\n", "").splitlines()]
    assert all(words[0] == "fcnfast" for words in found)
    return [words[1:] for words in found]


def value(command, flag):
    return command[command.index(flag) + 1]


def make_voc2011(root):
    """VOC 2011 with SBD beside it; twenty pictures to train on, as `paper-light` accumulates."""
    test_datasets.make_voc(root)
    home = root / "VOCdevkit" / "VOC2011"
    (root / "VOCdevkit" / "VOC2012").rename(home)
    names = [f"2009_{k:06d}" for k in range(20)]
    test_datasets.make_sbd(root, names)
    test_datasets.lines(home / "ImageSets" / "Segmentation" / "train.txt", *names)


def make_data(root):
    make_voc2011(root)
    test_datasets.make_nyud(root)
    test_datasets.lines(root / "nyud" / "test.txt", "5003", "5004")
    test_datasets.lines(root / "nyud" / "trainval.txt", "5001", "5002")
    test_datasets.make_siftflow(root / "SiftFlow")
    test_datasets.make_context(root / "pascal-context")
    names = {"names": PASCAL_CONTEXT_59.names[:33]}
    (root / "context33.json").write_text(json.dumps(names))


def write_net(path, net, **layers):
    """Write a network as a Caffe model; `layers` are more weights."""
    state = net if isinstance(net, dict) else randomize(net).state_dict()
    more = {f"{name}.weight": weight for name, weight in layers.items()}
    Path(path).write_bytes(caffemodel(state | more))


def write_weights():
    """The classifiers and the released networks, with the page's names."""
    fc8 = torch.ones(9, foreign_nets.FULLY_CONNECTED)
    alex, google = foreign_nets.AlexNet(21), foreign_nets.GoogLeNet()
    loss3 = torch.ones(9, google.state["score_fr.weight"].shape[1])
    for path, net, layer in (
        ("VGG_ILSVRC_16_layers", VGG(32), {"fc8": fc8}),
        ("bvlc_reference_caffenet", alex, {"fc8": fc8}),
        ("bvlc_googlenet", google, {"loss3/classifier": loss3}),
    ):
        state = randomize(net).state_dict()
        trunk = {name: weight for name, weight in state.items() if "score" not in name}
        write_net(f"{path}.caffemodel", trunk, **layer)
    write_net("fcn-alexnet-pascal.caffemodel", alex)
    for stride in (32, 16, 8):
        write_net(f"fcn{stride}s-heavy-pascal.caffemodel", VGG(stride, heads={"": 21}))
        heads = {"_sem": 33, "_geo": 3}
        write_net(f"siftflow-fcn{stride}s-heavy.caffemodel", VGG(stride, heads=heads))
        write_net(f"pascalcontext-fcn{stride}s-heavy.caffemodel", VGG(stride, heads={"": 60}))
    scales = {"scale_pool4": torch.full((STAGES[3][-1],), 0.01)}
    scales["scale_pool3"] = torch.full((STAGES[2][-1],), 0.0001)
    write_net("fcn8s-atonce-pascal.caffemodel", VGG(8, True, {"": 21}), **scales)
    for stream in ("color", "hha"):
        write_net(f"nyud-fcn32s-{stream}-heavy.caffemodel", VGG(32, heads={"": 40}))
    write_net("nyud-fcn32s-color-hha-heavy.caffemodel", foreign_nets.LateFusion(40))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A working folder with everything that the page takes, and narrow networks."""
    root = tmp_path_factory.mktemp("reproduce")
    with pytest.MonkeyPatch.context() as patch:
        narrow_trunks(patch)
        patch.chdir(root)
        make_data(root)
        write_weights()
        yield root


def test_every_row_has_its_command_or_the_reason():
    rows = re.findall(r"^\| (?!row|-)(.*?) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 8 + 11 + 5 + 3 + 6 and all("not run here" in row for row in rows)
    every = [command for section in SECTIONS for command in commands(section)]
    trained = [value(c, "--output-dir") for c in every if c[0] == "train"]
    used = {c[c.index("--weights") + 1] for c in every if c[0] == "evaluate"}
    used |= {c[-2] for c in every if c[0] == "convert"} | set(
        re.findall(r'load_model\("(.*?)"', PAGE)
    )
    for row in rows:
        *_, into, released, _ = (cell.strip(" `") for cell in row.split("|"))
        assert into in trained or into == "the program below", row
        assert released == "none" or released in used, row
    assert len(set(trained)) == len(trained)
    assert set(trained) == set(re.findall(r"\| `(runs/.*?)`", PAGE))


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_runs(here, capsys, section):
    for words in commands(section):
        training = words[0] == "train"
        code = main([*words, *(["--iterations", "2", "-j", "0"] if training else [])])
        out, err = capsys.readouterr()
        assert code == 0, (words, err)
        if training:
            run = Path(value(words, "--output-dir"))
            kept = json.loads((run / "settings.json").read_text())
            assert kept["recipe"] == value(words, "--recipe") and kept["crop_size"] == 0
            *_, last = csv.DictReader((run / "log.csv").open())
            assert last["iteration"] == "2" and last["val_mean_iu"]
            assert (run / "last.safetensors").exists()
        elif words[0] == "evaluate":
            assert re.search(r"^mean IU +\d", out, re.MULTILINE), out
    for language, text in blocks(section):
        if language == "python":
            exec(text.replace("iterations=100_000", "iterations=2"), {})
            tables = re.findall(r"mean IU +\d", capsys.readouterr().out)
            assert len(tables) == {"PASCAL VOC": 6, "NYUDv2": 4, "SIFT Flow": 2}[section]
