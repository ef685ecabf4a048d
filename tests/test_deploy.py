"""Exported networks, run by onnxruntime and by torch without fcnfast: the same labels as ours."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxscript._framework_apis import torch_2_5
from torch import nn

import fcnfast
from fcnfast import InputError
from fcnfast.cli import main
from fcnfast.models import FCN, MODELS, create_model, efficientnet_lite, load_model, resnet
from tests.model_tools import is_score, narrow_trunks, randomize_scores

if torch.__version__ < "2.13":
    pytest.skip("export is tried with torch 2.13 and newer", allow_module_level=True)

SMALL = {"widths": (8,) * 5, "depths": (1,) * 4, "decoder": 8}

# Of each class the network with the most parts; depths and numbers of classes change no part.
TRIED = [
    ("fcn32s_alexnet", {}),
    ("fcn4s_light", {}),
    ("fcn4s_lite0", {}),
    ("fcn8s_atonce_vgg16", {"padding": None, "fc6_padding": 3, "upsampling": "depthwise"}),
    ("fcn8s_googlenet", {}),
    ("fcn8s_resnet18", {"upsampling": "depthwise", "final_upsampling": "fixed"}),
    ("fcn_resnet50", {}),
    ("fcn_resnet101_mmseg", {}),
    ("nyud_fcn32s_vgg16_color_d", {}),
    ("nyud_fcn32s_vgg16_color_hha", {}),
    ("nyud_fcn16s_vgg16_color_hha", {}),
    ("fcn_pool4_vgg16", {}),
    ("siftflow_fcn16s_vgg16", {"upsampling": "depthwise", "final_upsampling": "dense"}),
]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """All kinds of layers, few of each: tracing takes time by the layer."""
    narrow_trunks(monkeypatch)
    shallow = {depth: ((1, 1, 1, 1), wide) for depth, (_, wide) in resnet.DEPTHS.items()}
    monkeypatch.setattr(resnet, "DEPTHS", shallow)
    stages = tuple((1, *stage[1:4], 8) for stage in efficientnet_lite.STAGES)
    monkeypatch.setattr(efficientnet_lite, "STAGES", stages)


@pytest.fixture(autouse=True, scope="module")
def library():
    """The exporter reads its own library anew each time, which takes longer than our graphs."""
    with pytest.MonkeyPatch.context() as patch:
        cached = functools.cache(torch_2_5.get_torchlib_ops)
        patch.setattr(torch_2_5, "get_torchlib_ops", cached)
        yield


def images_for(model: FCN, *size: int) -> torch.Tensor:
    return 60 * torch.randn(size[0], model.channels, *size[1:])


def network(name: str, **options) -> FCN:
    """A small network that gives several labels."""
    torch.manual_seed(0)
    options |= SMALL if name == "fcn4s_light" else {}
    model = randomize_scores(create_model(name, **options)).eval()
    scores = model(images_for(model, 2, 65, 97))["out"].detach()
    layers = [layer for key, layer in model.named_modules() if is_score(key)]
    # Of a net with skips, all score layers are summed; with two heads the first is the main one.
    last = next(layer for layer in layers if len(layer.bias) == scores.shape[1])
    last.bias.data -= scores.mean((0, 2, 3))
    return model


def run_onnx(path: Path | str, image: torch.Tensor) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image.numpy()})


def assert_same_labels(found: np.ndarray, expected: torch.Tensor) -> None:
    """But for the rounding of few."""
    assert found.shape == expected.shape and found.dtype == expected.numpy().dtype
    assert (found == expected.numpy()).mean() >= 0.9999


def shapes(values) -> dict[str, list]:
    """Names and shapes of a graph's inputs or outputs."""
    dims = {value.name: value.type.tensor_type.shape.dim for value in values}
    return {name: [d.dim_param or d.dim_value for d in dim] for name, dim in dims.items()}


@pytest.mark.parametrize(("name", "options"), TRIED)
def test_onnx_of_every_class(name, options, tmp_path):
    assert {MODELS[name].make for name, _ in TRIED} == {row.make for row in MODELS.values()}
    model = network(name, **options)
    path, image = tmp_path / "net.onnx", images_for(model, 1, 33, 70)
    fcnfast.export(model, path, size=(33, 70))
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    assert shapes(graph.graph.input) == {"image": [1, model.channels, 33, 70]}
    assert shapes(graph.graph.output) == {"labels": [1, 33, 70]}
    assert {node.domain for node in graph.graph.node} == {""}
    expected = model.predict(image)
    assert len(expected.unique()) > 1
    assert_same_labels(run_onnx(path, image)[0], expected)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("name", ["fcn4s_light", "fcn_resnet50"])
def test_onnx_of_any_size(name, tmp_path):
    model = network(name)
    path = tmp_path / "net.onnx"
    fcnfast.export(model, path, dynamic=True)
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    assert shapes(graph.graph.input) == {"image": ["batch", model.channels, "height", "width"]}
    assert shapes(graph.graph.output) == {"labels": ["batch", "height", "width"]}
    about = {p.key: json.loads(p.value) for p in graph.metadata_props if p.key == "least_size"}
    assert 2 <= about["least_size"][0] <= 33
    operators = {node.op_type for node in graph.graph.node}
    assert ("Resize" in operators) == (name == "fcn_resnet50")
    for size in ((1, 64, 96), (3, 35, 50), (1, 7, 2), (2, 131, 40)):
        image = images_for(model, *size)
        assert_same_labels(run_onnx(path, image)[0], model.predict(image))


def test_only_the_first_axis_of_a_row_of_pixels(tmp_path):
    """A resize to one row samples its middle, not its first row, which ONNX' Resize takes."""
    model = network("fcn_resnet50")
    image = images_for(model, 1, 1, 40)
    fcnfast.export(model, tmp_path / "net.onnx", size=(1, 40))
    assert_same_labels(run_onnx(tmp_path / "net.onnx", image)[0], model.predict(image))


def test_half(tmp_path):
    model = network("fcn4s_light")
    image = images_for(model, 1, 40, 40).half()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fcnfast.export(model, tmp_path / "net.onnx", size=40, half=True, scores=True)
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert shapes(graph.output) == {"scores": [1, model.num_classes, 40, 40]}
    kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    (scores,) = run_onnx(tmp_path / "net.onnx", image)
    assert scores.dtype == np.float16
    expected = model(image.float())["out"].detach()
    assert np.abs(scores - expected.numpy()).max() < 0.02 * expected.abs().max()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_command(weights, here, monkeypatch, capsys):
    """uint8 in, labels out; the metadata says what they are."""
    assert main(["export", weights, "net.onnx", "--size", "36x50", "--uint8"]) == 0
    assert capsys.readouterr() == ("Written: net.onnx\n", "")
    model = load_model(weights)
    image = torch.randint(0, 256, (1, 3, 36, 50), dtype=torch.uint8)
    assert_same_labels(run_onnx("net.onnx", image)[0], model.predict(model.preprocess(image)))
    about = {p.key: p.value for p in onnx.load("net.onnx").metadata_props}
    assert tuple(json.loads(about["classes"])) == model.table.names
    assert about["network"] == "fcn4s_light" and "preprocessing" not in about
    monkeypatch.setattr("fcnfast.models.loading.bundled_path", lambda: Path(weights))
    assert main(["export", "bundled", "net.pt2", "--size", "32x32", "--scores"]) == 0
    extra = {"classes": "", "preprocessing": ""}
    program = torch.export.load("net.pt2", extra_files=extra)
    assert tuple(json.loads(extra["classes"])) == model.table.names
    assert fcnfast.models.Preprocessing(**json.loads(extra["preprocessing"])) == (
        load_model().preprocessing
    )
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(program.module()(image), load_model()(image)["out"])


@pytest.mark.parametrize(
    ("name", "options", "head"),
    [
        ("fcn4s_light", {"in_channels": 1}, "out"),
        ("fcn4s_light", {"in_channels": 4}, "out"),
        ("siftflow_fcn32s_vgg16", {}, "geo"),  # BGR
    ],
)
def test_pictures_of_other_channels_and_the_second_head(name, options, head, tmp_path):
    model = network(name, **options)
    image = torch.randint(0, 256, (1, model.picture_channels, 20, 30), dtype=torch.uint8)
    fcnfast.export(model, tmp_path / "net.onnx", size=(20, 30), uint8=True, head=head)
    expected = model.predict(model.preprocess(image), head=head)
    assert_same_labels(run_onnx(tmp_path / "net.onnx", image)[0], expected)


class Strided(FCN):
    """One convolution; `even`: with another result for heights that are even, as no graph has."""

    def __init__(self, even: bool) -> None:
        super().__init__(3, fcnfast.models.IMAGENET)
        self.score, self.even = nn.Conv2d(3, 3, 3, stride=2, padding=1), even

    def score_maps(self, images, heads=None):
        scores = self.score(images)
        if self.even and images.shape[2] % 2 == 0:
            scores = scores.flip(3)
        size = scores.shape[2:]
        grid = fcnfast.SamplingGrid.centers(size, 2, 0, images.shape[2:], "zero")
        return {"out": fcnfast.models.ScoreMap(scores, grid)}


WITHOUT = """
import sys
sys.modules["fcnfast"] = None
import torch
count = 0
for name in sys.argv[1:]:
    program = torch.export.load(f"{name}.pt2").module()
    for image, labels in torch.load(f"{name}.pt"):
        assert torch.equal(program(image), labels), (name, image.shape)
        count += 1
print(count)
"""


def test_a_program_opens_without_fcnfast(tmp_path):
    cases = {
        "fcn4s_light": [(1, 33, 70)],
        "fcn_resnet50": [(1, 33, 70), (2, 64, 50), (1, 90, 61)],
    }
    for name, sizes in cases.items():
        model = network(name)
        size = {"dynamic": True} if len(sizes) > 1 else {"size": sizes[0][1:]}
        fcnfast.export(model, tmp_path / f"{name}.pt2", **size)
        images = [images_for(model, *size) for size in sizes]
        torch.save([(x, model.predict(x)) for x in images], tmp_path / f"{name}.pt")
    command = [sys.executable, "-c", WITHOUT, *cases]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("4\n", 0), done.stderr


class Own(nn.Module):
    """Somebody's network that ends in our ops."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, image):
        x = self.conv(image)
        skip = image.sum(1, keepdim=True).expand(-1, 4, -1, -1)
        finer = fcnfast.upsample_crop_add(x, skip, size=9)
        return fcnfast.upsample_argmax(finer, size=(20, 30), confidence=True)


def test_own_networks(tmp_path):
    own, image = Own().eval(), torch.randn(1, 3, 16, 16)
    with fcnfast.ops.portable():
        program = torch.export.export(own, (image,))
    assert not any("fcnfast" in str(node.target) for node in program.graph.nodes)
    assert "fcnfast" in str(torch.export.export(own, (image,)).graph)
    torch.onnx.export(own, (image,), tmp_path / "own.onnx", dynamo=True, verbose=False)
    found = run_onnx(tmp_path / "own.onnx", image)
    traced = torch.jit.trace(own, (torch.zeros_like(image),), check_trace=False)
    with torch.no_grad():
        for labels, confidence in (program.module()(image), traced(image), found):
            expected = own(image)
            assert_same_labels(np.asarray(labels), expected[0])
            np.testing.assert_allclose(np.asarray(confidence), expected[1], rtol=1e-5)


def test_what_would_be_wrong_in_a_graph_is_refused():
    grid = fcnfast.SamplingGrid.resize((4, 4), (8, 8))
    with fcnfast.ops.portable():
        with pytest.raises(ValueError, match=r"made for maps of \(4, 4\), not \(5, 4\)"):
            fcnfast.upsample(torch.zeros(1, 1, 5, 4), grid)
        with pytest.raises(ValueError, match="cannot name 300 classes"):
            fcnfast.upsample_argmax(torch.zeros(1, 300, 4, 4), grid)


def test_wrong_calls(tmp_path):
    model, wide = network("fcn4s_light"), network("fcn4s_light")
    wide.score.bias.data[0] = 1e5
    unpadded = create_model("fcn8s_vgg16", padding=None)
    late = create_model("nyud_fcn32s_vgg16_color_hha")
    for error, says, call in (
        (InputError, "must end in .onnx or .pt2", {"path": tmp_path / "net.pb"}),
        (TypeError, "of fcnfast, not Conv2d", {"model": nn.Conv2d(1, 1, 1)}),
        (ValueError, "not both", {"size": 32, "dynamic": True}),
        (InputError, r"size must be positive, not \(0, 5\)", {"size": (0, 5)}),
        (TypeError, "size must be an integer or a pair", {"size": "big"}),
        (InputError, "fcn4s_light.*no head 'geo'", {"head": "geo"}),
        (InputError, "an image of .40, 50. is too small", {"model": unpadded, "size": (40, 50)}),
        (InputError, "takes 6 channels, uint8 RGB .* 3", {"model": late, "uint8": True}),
        (InputError, "weights beyond the range of float16", {"model": wide, "half": True}),
        (InputError, "none.pth: no such weights file", {"model": tmp_path / "none.pth"}),
        (FileNotFoundError, "missing/net.pt2", {"path": tmp_path / "missing" / "net.pt2"}),
    ):
        with pytest.raises(error, match=says):
            fcnfast.export(**{"model": model, "path": tmp_path / "net.pt2", **call})
    assert list(tmp_path.iterdir()) == []


def test_no_graph_for_every_size(tmp_path):
    with pytest.raises(InputError, match="Strided: no graph takes every size; give one"):
        fcnfast.export(Strided(even=True), tmp_path / "net.onnx", dynamic=True)
    fcnfast.export(Strided(even=True), tmp_path / "net.pt2", size=10)
    fcnfast.export(Strided(even=False), tmp_path / "net.pt2", dynamic=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["net.onnx", "--size", "12"], "height x width, as 360x480, not 12"),
        (["net.onnx", "--size", "8x8", "--dynamic"], "not allowed with argument"),
        (["missing/net.pt2"], "missing/net.pt2: No such file or directory"),
        (["net.onnx"], "pip install 'fcnfast[export]'"),
    ],
)
def test_mistakes_on_the_command_line(arguments, says, here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", "bundled", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err
    assert list(here.iterdir()) == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_aotinductor_compiles_a_program(tmp_path):
    model = Strided(even=False)
    fcnfast.export(model, tmp_path / "net.pt2", size=(33, 40))
    program = torch.export.load(tmp_path / "net.pt2")
    quick = {
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.precompile_headers": False,
    }
    # Without the headers that later compilations would share, and a program to try vectors with.
    settings = {"cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": True}
    with torch._inductor.config.patch(settings):
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "compiled.pt2"), inductor_configs=quick
        )
    image = images_for(model, 1, 33, 40)
    labels = torch._inductor.aoti_load_package(package)(image)
    assert_same_labels(labels.numpy(), model.predict(image))


def test_autocast_and_a_default_device_do_not_reach_the_graph(tmp_path):
    model = create_model("fcn4s_light", num_classes=3, **SMALL)
    randomize_scores(model)
    image = torch.rand(1, 3, 40, 56)
    expected = model.eval().predict(image)
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        fcnfast.export(model, tmp_path / "net.pt2", size=(40, 56))
    found = torch.export.load(tmp_path / "net.pt2").module()(image)
    assert (found == expected).float().mean() > 0.999
