"""Networks of gray pictures and of four channels, and how RGB weights start them."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from fcnfast import InputError, Segmenter, create_model, load_model, save_model
from fcnfast.cli import main
from fcnfast.data import train_transform
from fcnfast.data.images import read_image, rgbx
from fcnfast.models import CAFFE
from fcnfast.train import TrainSettings, start
from tests.model_tools import narrow_trunks
from tests.train_tools import TINY, small
from tests.weights_tools import same


@pytest.fixture(scope="module")
def four(scenes, tmp_path_factory):
    """The scenes with a fourth channel: 200 where a road is, and 20 elsewhere."""
    root = tmp_path_factory.mktemp("four") / "data"
    shutil.copytree(scenes, root)
    for split in ("train", "val"):
        for path in (root / split).iterdir():
            labels = np.asarray(Image.open(root / f"{split}annot" / path.name))
            rgb = np.asarray(Image.open(path).convert("RGB"))
            more = np.where(labels == 3, 200, 20).astype(np.uint8)
            path.unlink()
            Image.fromarray(np.dstack((rgb, more))).save(path.with_suffix(".tif"))
    return root


def rgb_file(folder):
    model = create_model("fcn4s_light", num_classes=11, **TINY)
    with torch.no_grad():
        model(model.preprocess(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)))
    save_model(model, folder / "rgb.safetensors")
    return folder / "rgb.safetensors"


@pytest.mark.parametrize("name", ["fcn4s_light", "fcn4s_lite0", "fcn8s_resnet18", "fcn32s_alexnet"])
@pytest.mark.parametrize("channels", [1, 4])
def test_rgb_weights_start_a_network_of_other_channels(name, channels, tmp_path, monkeypatch):
    narrow_trunks(monkeypatch)
    rgb = create_model(name, **(TINY if name == "fcn4s_light" else {}))
    save_model(rgb, tmp_path / "rgb.safetensors")
    model = create_model(name, weights=tmp_path / "rgb.safetensors", in_channels=channels)
    key, layer = model.first_layer()
    filters = rgb.first_layer()[1].weight
    if channels == 1:
        assert torch.equal(layer.weight, filters.sum(1, keepdim=True))
    else:
        assert torch.equal(layer.weight[:, :3], filters)
        assert torch.equal(layer.weight[:, 3], filters.mean(1))
    assert same(model, rgb.state_dict() | {f"{key}.weight": layer.weight})
    assert model.load_report.reshaped == {
        f"{key}.weight": (tuple(filters.shape), tuple(layer.weight.shape))
    }
    save_model(model, tmp_path / "own.safetensors")  # and its own file makes it again
    again = load_model(tmp_path / "own.safetensors")
    assert again.in_channels == channels and same(again, model.state_dict())


def test_what_the_network_sees_of_a_picture():
    pixels = torch.randint(0, 256, (2, 4, 5, 6), dtype=torch.uint8)
    gray = create_model("fcn4s_light", in_channels=1, **TINY)
    luma = (pixels[:, :3].double() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    p = gray.preprocessing
    wanted = (luma * p.scale - sum(p.mean) / 3) / (sum(p.std) / 3)
    found = gray.preprocess(pixels[:, :3])[:, 0].double()
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    model = create_model("fcn4s_light", in_channels=4, **TINY)
    model.set_preprocessing(CAFFE)  # BGR
    mean = torch.tensor([*CAFFE.mean, sum(CAFFE.mean) / 3]).view(4, 1, 1)
    torch.testing.assert_close(model.preprocess(pixels), pixels[:, [2, 1, 0, 3]] - mean)
    with pytest.raises(ValueError, match="N x 4 x H x W, not"):
        model.preprocess(pixels[:, :3])


def test_four_channels_are_read_as_they_are_stored(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    for name in ("a.png", "a.tif", "a.webp"):
        options = {"lossless": True, "exact": True} if name == "a.webp" else {}
        Image.fromarray(pixels).save(tmp_path / name, **options)
        read = read_image(tmp_path / name, channels=4)
        assert read.mode == "RGBX"
        np.testing.assert_array_equal(np.asarray(read), pixels)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "b.png", exif=turned)
    read = read_image(tmp_path / "b.png", channels=4)
    np.testing.assert_array_equal(np.asarray(read), np.rot90(pixels, -1))


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_the_fourth_channel_takes_part_in_the_geometry_alone(strength):
    """It is the labels' own picture: it still is after scaling, cutting and turning."""
    labels = np.zeros((40, 48), np.uint8)
    labels[10:30, 12:36] = 1
    image = rgbx(np.dstack([np.full_like(labels, 90)] * 3 + [200 * labels]))
    transform = train_transform(32, scale=(0.5, 1.5), strength=strength)
    for seed in range(20):
        pixels, moved = transform(image, labels, np.random.default_rng(seed))
        inside = moved != 255
        wrong = (pixels[3] > 100) != (moved == 1)
        assert pixels.shape == (4, 32, 32) and float(wrong[inside].float().mean()) < 0.1


@pytest.mark.parametrize("channels", [1, 4])
def test_trained_evaluated_and_segmented(channels, four, scenes, tmp_path, capsys):
    root = four if channels == 4 else scenes
    rgb = str(rgb_file(tmp_path))
    options = {"in_channels": channels, "weights": rgb, "epochs": 1, "val_freq": 1}
    settings = small(root, tmp_path / "run", **options)
    start(settings).train(progress=False)
    weights = tmp_path / "run" / "last.safetensors"
    assert load_model(weights).in_channels == channels
    assert main(["evaluate", "--data-path", str(root), "--weights", str(weights)]) == 0
    result = Segmenter(weights)(next((root / "val").iterdir()))
    assert result.labels.shape == (48, 64) and result.overlay().mode == "RGB"
    if channels == 4:
        flat = next((scenes / "val").iterdir())
        assert main(["predict", str(flat), "--weights", str(weights), "--output-dir", "x"]) == 2
        assert f"{flat}: has 3 channels (RGB), but the network takes 4" in capsys.readouterr().err


def test_refused(scenes, tmp_path, monkeypatch):
    narrow_trunks(monkeypatch)
    path, light = tmp_path / "four.safetensors", partial(create_model, "fcn4s_light", **TINY)
    save_model(light(num_classes=11, in_channels=4), path)
    trained = small(scenes, tmp_path / "run", weights=str(path))
    only = "in_channels must be 1, 3 or 4, not"
    for call, says in (
        (lambda: light(in_channels=0), only),
        (lambda: light(in_channels="4"), only),
        (lambda: create_model("nyud_fcn32s_vgg16_color_hha", in_channels=4), "own input has 6"),
        (lambda: start(trained), "four.safetensors: its network needs --in-channels 4"),
        (lambda: light(weights=path, in_channels=1), "is .*, but fcn4s_light .* needs"),
        (lambda: TrainSettings(in_channels=4, bit_depth=12), "without --in-channels 1 or 3"),
        (lambda: Segmenter(path, bit_depth=12), "--bit-depth 12: is for pictures of 1 or 3 chan"),
        (lambda: Segmenter(path)(np.zeros((9, 9), np.uint8)), r"has 1 channel \(L\), but the netw"),
    ):
        with pytest.raises(InputError, match=says):
            call()
