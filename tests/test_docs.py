"""The pages in docs/: links lead somewhere, code runs, and the new network is one."""

import doctest
import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import fcnfast
from fcnfast import data
from fcnfast.models import table
from tests import foreign_nets, foreign_torch_nets
from tests.foreign_nets import randomize
from tests.model_tools import narrow_trunks
from tests.wire_tools import caffemodel

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"])


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert links or page.parent == DOCS
    for link in links:
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)


def results(block, names):
    """Run a block, and for each of its lines that is an expression give value and comment."""
    for line in block.splitlines():
        code, _, comment = map(str.strip, line.partition("#"))
        try:
            yield eval(code, names), comment
        except SyntaxError:
            exec(code, names)


def test_the_fields_and_the_crop_of_the_docs(monkeypatch):
    narrow_trunks(monkeypatch)  # fields do not depend on widths
    (block,) = (block for block in blocks("theory.md") if "receptive_field" in block)
    found = list(results(block, {"fcnfast": fcnfast}))
    assert len(found) == 2
    for field, comment in found:
        said = f"{field.size} pixels, stride {field.stride}, offset {field.offset}:"
        assert comment.startswith(said)
    ((crop, comment),) = results(blocks("padding.md")[0], {})
    assert crop == int(comment) == 19


def test_the_resizes_of_the_docs_are_fused(capsys):
    names = {}
    for block in blocks("fuse.md"):
        exec(block, names)
        assert names["out"].is_lazy and names["labels"].shape == (2, 64, 64)
    assert "still lazy" in capsys.readouterr().out


def test_the_files_of_the_docs(monkeypatch, here):
    """The pages' code with files of the names that it has; the networks are narrow."""
    narrow_trunks(monkeypatch)
    torch.save(foreign_torch_nets.vgg16(), "vgg16.pth")
    torch.save(foreign_torch_nets.alexnet(), "alexnet.pth")
    torch.save(randomize(foreign_nets.VGG(32)).state_dict(), "other.pth")
    Path("fcn8s.caffemodel").write_bytes(caffemodel(randomize(foreign_nets.VGG(8)).state_dict()))
    names = {"fcnfast": fcnfast}
    for block in blocks("weights.md"):
        exec(block, names)
    assert names["model"].num_classes == 11 and not names["model"].training
    assert names["alexnet"].family == "torchvision"
    for block in blocks("networks.md")[2:]:
        exec(block, names)
    assert names["finer"].name == "fcn16s_vgg16" and names["more"].num_classes == 25
    coarse, depth = names["coarse"].conv1_1.weight, names["depth"].conv1_1_bgrd.weight
    assert torch.allclose(depth[:, 3], coarse.mean(1)) and coarse.any()
    with pytest.raises(fcnfast.InputError, match="has no 'conv1_1_bgrd.weight'.*expand_input"):
        fcnfast.load_weights(names["depth"], "vgg16.pth")
    with pytest.raises(fcnfast.InputError, match="suffix='color'"):
        fcnfast.create_model("nyud_fcn32s_vgg16_color_hha", weights_backbone="vgg16.pth")


def test_the_data_of_the_docs(here):
    pixels = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8)
    pairs = [(pixels, torch.arange(3).repeat(40, 16))] * 2
    names = {"pairs": pairs}
    for block in blocks("data.md"):
        exec(block, names)
    assert Path("run/best.safetensors").exists()
    assert fcnfast.load_model("run/best.safetensors").table.names == ("background", "road", "car")
    entries = re.findall(
        r"```json\n(.*?)```", (DOCS / "data.md").read_text(encoding="utf-8"), re.DOTALL
    )
    Path("dataset.json").write_text(entries[0])
    for folder in ("images/train", "labels/train"):
        Path(folder).mkdir(parents=True)
        Image.new("L", (4, 4)).save(f"{folder}/a.png")
    assert len(fcnfast.open_dataset("folder", ".", "train").table) == 3


@pytest.mark.parametrize("path", sorted(DOCS.glob("notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_notebooks(path, here):
    """Each was executed as it stands: its cells run, here with fewer epochs."""
    names: dict = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["execution_count"], cell["source"]
            exec("".join(cell["source"]).replace("epochs=30", "epochs=1"), names)
    assert path.stat().st_size < 200_000


FUNCTIONS = [n for n in fcnfast.__all__ if inspect.isfunction(getattr(fcnfast, n))]


class Net(torch.nn.Module):
    """Somebody's network, in the examples."""

    def forward(self, images):
        return F.interpolate(images[:, :, ::4, ::4], scale_factor=4, mode="bilinear")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_of_the_reference(name, here):
    """Every public function has one, and all of it runs: here CamVid is one drawn street."""
    demo = Path(data.__file__).with_name("demo")
    for folder in ("train", "trainannot", "val", "valannot"):
        (here / "CamVid" / folder).mkdir(parents=True)
        kind = "street_labels" if folder.endswith("annot") else "street"
        shutil.copy(demo / f"{kind}.png", here / "CamVid" / folder / "street.png")
    shutil.copytree(here / "CamVid" / "valannot", here / "out" / "labels")
    names = {"fcnfast": fcnfast, "torch": torch, "F": F, "Net": Net}
    names |= {"images": torch.randn(1, 4, 8, 8), "target": torch.zeros(1, 8, 8, dtype=torch.long)}
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(getattr(fcnfast, name), name, globs=names)
    assert example.examples, "its docstring has no example"
    assert not any(doctest.SKIP in part.options for part in example.examples)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    assert runner.run(example).failed == 0


def test_the_network_of_the_docs(monkeypatch):
    code, row = blocks("networks.md")[:2]
    names = {"Row": table.Row}
    exec(code, names)
    rows = eval("{" + row + "}", names)
    monkeypatch.setattr(table, "MODELS", table.MODELS | rows)
    (name,) = rows
    model = fcnfast.create_model(name, num_classes=5)
    images = model.preprocess(torch.randint(0, 256, (2, 3, 61, 75), dtype=torch.uint8))
    assert model(images)["out"].shape == (2, 5, 61, 75)
    assert model.predict(images).shape == (2, 61, 75)
    targets = torch.randint(0, 5, (2, 61, 75))
    model(images, targets)["loss"].backward()
    assert model.score_fr.weight.grad.any() and model.score_conv4.weight.grad.any()
    traced = fcnfast.theory.trace(model, 200)
    assert traced.outputs["out"].stride == 1 and traced.outputs["out"].offset == 0
