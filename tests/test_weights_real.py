"""Real files' names and shapes, at the real widths: which network they are of, what fits where."""

from pathlib import Path

import pytest
import torch

import fcnfast
from fcnfast.errors import WeightsError
from fcnfast.models.identify import identify
from fcnfast.models.loading import load_file
from fcnfast.weights import Stored, WeightsFile, recognize


class TestIdentify:
    """Which network a file is of; only names and shapes are looked at, at the real widths."""

    @staticmethod
    def file(state: dict[str, tuple[int, ...]], form: str = "PyTorch", **notes: object):
        tensors = {key: Stored(shape, pytest.fail) for key, shape in state.items()}
        return WeightsFile(Path("net"), form, tensors, None, notes)

    def identify(self, file: WeightsFile) -> str:
        return identify(file, recognize(file))[0]

    @pytest.mark.parametrize(
        ("name", "form", "notes"),
        [
            ("fcn32s_vgg16", "PyTorch", {}),
            ("fcn16s_vgg16", "Caffe", {}),
            ("fcn8s_vgg16", "Caffe", {}),
            ("fcn8s_vgg16", "PyTorch", {"arch": "FCN8s"}),
            ("fcn8s_atonce_vgg16", "PyTorch", {"arch": "FCN8sAtOnce"}),
            ("fcn32s_alexnet", "Caffe", {}),
            ("fcn32s_googlenet", "PyTorch", {}),
            ("fcn16s_googlenet", "PyTorch", {}),
            ("fcn8s_googlenet", "PyTorch", {}),
            ("nyud_fcn32s_vgg16_color_d", "Caffe", {}),
            ("nyud_fcn32s_vgg16_color_hha", "Caffe", {}),
            ("siftflow_fcn32s_vgg16", "Caffe", {}),
            ("siftflow_fcn16s_vgg16", "Caffe", {}),
            ("siftflow_fcn8s_vgg16", "Caffe", {}),
            ("pascalcontext_fcn32s_vgg16", "Caffe", {}),
            ("pascalcontext_fcn8s_vgg16", "HDF5", {}),
            ("fcn_resnet50", "PyTorch", {}),
            ("fcn8s_resnet18", "PyTorch", {}),
            ("fcn8s_resnet50", "PyTorch", {}),
            ("fcn4s_light", "PyTorch", {}),
            ("fcn4s_lite0", "PyTorch", {}),
            ("fcn4s_lite2", "PyTorch", {}),
            ("fcn_resnet101", "PyTorch", {}),
            ("fcn_resnet50_mmseg", "PyTorch", {}),
            ("fcn_resnet101_mmseg", "PyTorch", {}),
        ],
    )
    def test_a_network_is_told_by_its_layers(self, name, form, notes):
        state = {key: tuple(t.shape) for key, t in on_meta(name).state_dict().items()}
        assert self.identify(self.file(state, form, **notes)) == name

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("fcn8s_vgg16", "of fcn8s_vgg16 or fcn8s_atonce_vgg16, whose layers are alike"),
            ("nyud_fcn32s_vgg16_color", "nyud_fcn32s_vgg16_color or nyud_fcn32s_vgg16_hha"),
        ],
    )
    def test_what_cannot_be_told_is_asked_for(self, name, says):
        state = {key: tuple(t.shape) for key, t in on_meta(name).state_dict().items()}
        with pytest.raises(WeightsError, match=says):
            self.identify(self.file(state))

    def test_a_classifier_is_no_segmentation_network(self, tmp_path):
        shapes = {k: v for k, v in alexnet_shapes().items() if not k.startswith("classifier.6")}
        with pytest.raises(
            WeightsError, match=r"create_model\('fcn32s_alexnet', weights_backbone=...\)"
        ):
            self.identify(self.file(shapes))


def on_meta(name: str, **options: object) -> fcnfast.models.FCN:
    with torch.device("meta"):
        return fcnfast.create_model(name, **options)


def vgg16_shapes() -> dict[str, tuple[int, ...]]:
    """torchvision's VGG-16: 32 tensors, 138,357,544 numbers."""
    layers = [(0, 64, 3), (2, 64, 64), (5, 128, 64), (7, 128, 128), (10, 256, 128), (12, 256, 256)]
    layers += [(14, 256, 256), (17, 512, 256)] + [(k, 512, 512) for k in (19, 21, 24, 26, 28)]
    shapes: dict[str, tuple[int, ...]] = {}
    for number, width, before in layers:
        shapes |= {f"features.{number}.weight": (width, before, 3, 3)}
        shapes |= {f"features.{number}.bias": (width,)}
    for number, width, before in ((0, 4096, 25088), (3, 4096, 4096), (6, 1000, 4096)):
        shapes |= {f"classifier.{number}.weight": (width, before)}
        shapes |= {f"classifier.{number}.bias": (width,)}
    return shapes


def alexnet_shapes() -> dict[str, tuple[int, ...]]:
    layers = [
        (0, 64, 3, 11),
        (3, 192, 64, 5),
        (6, 384, 192, 3),
        (8, 256, 384, 3),
        (10, 256, 256, 3),
    ]
    shapes: dict[str, tuple[int, ...]] = {}
    for number, width, before, kernel in layers:
        shapes |= {f"features.{number}.weight": (width, before, kernel, kernel)}
        shapes |= {f"features.{number}.bias": (width,)}
    for number, width, before in ((1, 4096, 9216), (4, 4096, 4096), (6, 1000, 4096)):
        shapes |= {f"classifier.{number}.weight": (width, before)}
        shapes |= {f"classifier.{number}.bias": (width,)}
    return shapes


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def resnet_shapes(blocks: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shapes = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    before = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for k in range(count):
            block = f"layer{stage + 1}.{k}"
            for number, size in enumerate(((width, before, 1), (width, width, 3)), 1):
                shapes[f"{block}.conv{number}.weight"] = (*size, size[2])
                shapes |= norm(f"{block}.bn{number}", width)
            shapes[f"{block}.conv3.weight"] = (4 * width, width, 1, 1)
            shapes |= norm(f"{block}.bn3", 4 * width)
            if k == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * width, before, 1, 1)
                shapes |= norm(f"{block}.downsample.1", 4 * width)
            before = 4 * width
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def googlenet_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def unit(name: str, width: int, before: int, kernel: int) -> None:
        shapes[f"{name}.conv.weight"] = (width, before, kernel, kernel)
        shapes.update(norm(f"{name}.bn", width))

    unit("conv1", 64, 3, 7)
    unit("conv2", 64, 64, 1)
    unit("conv3", 192, 64, 3)
    before = 192
    for block, one, reduce3, three, reduce5, five, pooled in (
        ("3a", 64, 96, 128, 16, 32, 32),
        ("3b", 128, 128, 192, 32, 96, 64),
        ("4a", 192, 96, 208, 16, 48, 64),
        ("4b", 160, 112, 224, 24, 64, 64),
        ("4c", 128, 128, 256, 24, 64, 64),
        ("4d", 112, 144, 288, 32, 64, 64),
        ("4e", 256, 160, 320, 32, 128, 128),
        ("5a", 256, 160, 320, 32, 128, 128),
        ("5b", 384, 192, 384, 48, 128, 128),
    ):
        unit(f"inception{block}.branch1", one, before, 1)
        unit(f"inception{block}.branch2.0", reduce3, before, 1)
        unit(f"inception{block}.branch2.1", three, reduce3, 3)
        unit(f"inception{block}.branch3.0", reduce5, before, 1)
        unit(f"inception{block}.branch3.1", five, reduce5, 3)
        unit(f"inception{block}.branch4.1", pooled, before, 1)
        before = one + three + five + pooled
    return shapes | {"fc.weight": (1000, 1024), "fc.bias": (1000,)}


class TestRealWidths:
    """Every tensor of the real files has its place; nothing of their size is made."""

    @staticmethod
    def file(path: Path, state: dict[str, tuple[int, ...]], form: str = "PyTorch") -> WeightsFile:
        def stored(shape: tuple[int, ...]) -> Stored:
            if not shape:
                return Stored(shape, lambda: torch.tensor(1))
            line = torch.linspace(0.1, 0.2, shape[0]).view(-1, *[1] * (len(shape) - 1))
            return Stored(shape, lambda: line.expand(shape))

        path.touch()
        return WeightsFile(path, form, {key: stored(shape) for key, shape in state.items()})

    @pytest.mark.parametrize(
        ("name", "shapes", "count", "loaded", "options"),
        [
            ("fcn8s_vgg16", vgg16_shapes, 32, 30, {}),
            ("siftflow_fcn16s_vgg16", vgg16_shapes, 32, 30, {}),
            ("fcn32s_alexnet", alexnet_shapes, 16, 14, {"family": "torchvision"}),
            ("fcn16s_googlenet", googlenet_shapes, 344, 342, {"family": "torchvision"}),
            ("fcn_resnet50", lambda: resnet_shapes((3, 4, 6, 3)), 320, 318, {}),
            ("fcn8s_resnet101", lambda: resnet_shapes((3, 4, 23, 3)), 626, 624, {}),
        ],
    )
    def test_torchvisions_classifiers(self, tmp_path, name, shapes, count, loaded, options):
        file = self.file(tmp_path / "net", shapes())
        assert len(file.tensors) == count
        model = on_meta(name, **options)
        report = load_file(model, file, recognize(file))
        assert len(report.loaded) == loaded and report.unexpected == ()
        heads = ("score", "classifier", "aux_classifier")
        assert report.missing and all(key.startswith(heads) for key in report.missing)
        assert not any(tensor.is_meta for tensor in model.state_dict().values())

    @pytest.mark.parametrize(
        ("stride", "keys"), [(32, 33), (16, 36), (8, 39)], ids=["32s", "16s", "8s"]
    )
    def test_pytorch_fcn(self, tmp_path, stride, keys):
        """The key counts and widths of the reference, upsampling included."""
        state = {}
        before = 3
        for stage, widths in enumerate(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)):
            for number, width in enumerate(widths):
                state[f"conv{stage + 1}_{number + 1}"] = (width, before, 3, 3)
                before = width
        state |= {"fc6": (4096, 512, 7, 7), "fc7": (4096, 4096, 1, 1), "score_fr": (21, 4096, 1, 1)}
        state |= {"score_pool4": (21, 512, 1, 1)} if stride <= 16 else {}
        state |= {"score_pool3": (21, 256, 1, 1)} if stride == 8 else {}
        shapes = {f"{k}.weight": v for k, v in state.items()}
        shapes |= {f"{k}.bias": v[:1] for k, v in state.items()}
        up = {32: {"upscore": 64}, 16: {"upscore2": 4, "upscore16": 32}}
        up[8] = {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16}
        shapes |= {f"{k}.weight": (21, 21, size, size) for k, size in up[stride].items()}
        assert len(shapes) == keys
        file = self.file(tmp_path / "net", shapes)
        report = load_file(on_meta(f"fcn{stride}s_vgg16"), file, recognize(file))
        assert len(report.loaded) == keys and not report.missing and not report.unexpected
