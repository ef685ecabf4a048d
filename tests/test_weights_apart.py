"""A network is apart from the file that it came from: the file may be written over."""

import shutil
from pathlib import Path

import pytest
import torch

import fcnfast
from tests.test_weights_bad import FORMATS
from tests.weights_tools import narrow_vgg, new_model, weights
from tests.wire_tools import caffemodel, hdf5_model


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_vgg(monkeypatch)


def write_zeros(path: Path, kind: str) -> None:
    """A file of the same kind and the same shapes."""
    zeros = {key: torch.zeros_like(value) for key, value in weights().items()}
    if kind == "safetensors":
        model = new_model()
        fcnfast.save_model(model, path, state={key: zeros[key] for key in model.state_dict()})
    elif kind == "hdf5":
        hdf5_model(path, zeros)
    elif kind.startswith("caffe"):
        path.write_bytes(caffemodel(zeros))
    else:
        torch.save(zeros, path, _use_new_zipfile_serialization=kind == "zip")


def load(path: Path, how: str) -> fcnfast.models.FCN:
    if how == "load_model":
        return fcnfast.load_model(path)
    if how == "weights":
        return fcnfast.create_model("fcn16s_vgg16", weights=path)
    model = new_model()
    fcnfast.load_weights(model, path)
    return model


def check(model: fcnfast.models.FCN) -> None:
    state = model.state_dict()
    assert "fc7.weight" in state
    assert all(torch.equal(value, weights()[key]) for key, value in state.items())


@pytest.mark.parametrize("how", ["load_model", "weights", "load_weights"])
@pytest.mark.parametrize("kind", FORMATS)
def test_another_file_copied_over_a_loaded_one_changes_nothing(tmp_path, kind, how):
    path = tmp_path / "net"
    FORMATS[kind](path)
    write_zeros(tmp_path / "other", kind)
    model = load(path, how)
    shutil.copyfile(tmp_path / "other", path)
    check(model)
    path.write_bytes(b"")  # nor does a file that is cut
    check(model)


@pytest.mark.parametrize("saver", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_network_is_saved_over_the_file_that_it_came_from(tmp_path, kind, saver):
    path = tmp_path / "net"
    FORMATS[kind](path)
    model = fcnfast.load_model(path)
    with torch.no_grad():  # fine-tuning
        model.fc7.bias += 1
    if saver == "safetensors":
        fcnfast.save_model(model, path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=saver == "zip")
    again = fcnfast.load_model(path)
    assert torch.equal(again.fc7.bias, weights()["fc7.bias"] + 1)
    with torch.no_grad():
        again.fc7.bias -= 1
    assert torch.equal(again.fc6.weight, weights()["fc6.weight"])


@pytest.mark.parametrize("kind", FORMATS)
def test_parameters_share_no_memory(tmp_path, kind):
    FORMATS[kind](tmp_path / "net")
    model = fcnfast.load_model(tmp_path / "net")
    places = [tensor.untyped_storage() for tensor in model.state_dict().values()]
    assert len({place.data_ptr() for place in places}) == len(places)
    sizes = [tensor.nbytes for tensor in model.state_dict().values()]
    assert [place.nbytes() for place in places] == sizes


def test_tensors_that_share_memory_in_a_file_are_apart(tmp_path):
    state = weights()
    flat = torch.cat([state["fc7.bias"], state["fc6.bias"], torch.zeros(1000)])
    state["fc7.bias"], state["fc6.bias"] = flat[:13], flat[13:26]
    state["conv5_1.bias"] = state["conv4_1.bias"] = torch.arange(8.0)
    torch.save(state, tmp_path / "net.pth")
    model = fcnfast.load_model(tmp_path / "net.pth")
    with torch.no_grad():
        model.conv5_1.bias.zero_()
        model.fc7.bias.zero_()
    assert torch.equal(model.conv4_1.bias, torch.arange(8.0))
    assert torch.equal(model.fc6.bias, weights()["fc6.bias"])
    assert model.fc6.bias.untyped_storage().nbytes() == 13 * 4


@pytest.mark.parametrize("kind", FORMATS)
def test_the_default_device_does_not_matter(tmp_path, kind):
    FORMATS[kind](tmp_path / "net")
    torch.set_default_device("meta")  # elsewhere it is cuda
    try:
        model = fcnfast.load_model(tmp_path / "net")
        model.set_upsampling("depthwise")
        refined = fcnfast.models.refine(model)
        images = torch.full((1, 3, 9, 9), 128, dtype=torch.uint8, device="cpu")
        labels = model.predict(model.preprocess(images))
    finally:
        torch.set_default_device("cpu")
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
    assert torch.equal(model.fc6.weight, weights()["fc6.weight"])
    assert labels.shape == (1, 9, 9) and labels.device.type == "cpu"
    assert refined.name == "fcn8s_vgg16"
