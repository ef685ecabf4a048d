"""A network is apart from the file that it came from, and takes no second copy of it to load."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

import fcnfast
from fcnfast.models import vgg
from tests.model_tools import ROOT
from tests.weights_tools import FORMATS, same, weights


def load(path):
    return fcnfast.create_model("fcn16s_vgg16", weights=path)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", FORMATS)
def test_another_file_copied_over_a_loaded_one_changes_nothing(tmp_path, kind):
    path, other = tmp_path / "net", tmp_path / "other"
    FORMATS[kind](path, weights())
    FORMATS[kind](other, {key: torch.zeros_like(value) for key, value in weights().items()})
    model = load(path)
    shutil.copyfile(other, path)
    assert same(model)
    path.write_bytes(b"")  # nor does a file that is cut
    assert same(model)
    # Nor do parameters share memory.
    state = model.state_dict().values()
    places = [tensor.untyped_storage() for tensor in state]
    assert len({place.data_ptr() for place in places}) == len(places)
    assert [place.nbytes() for place in places] == [tensor.nbytes for tensor in state]


@pytest.mark.usefixtures("narrow")
def test_tensors_that_share_memory_in_a_file_are_apart(tmp_path):
    state = weights()
    flat = torch.cat([state["fc7.bias"], state["fc6.bias"], torch.zeros(1000)])
    state["fc7.bias"], state["fc6.bias"] = flat[:13], flat[13:26]
    state["conv5_1.bias"] = state["conv4_1.bias"] = torch.arange(8.0)
    torch.save(state, tmp_path / "net.pth")
    model = load(tmp_path / "net.pth")
    with torch.no_grad():
        model.conv5_1.bias.zero_()
        model.fc7.bias.zero_()
    assert torch.equal(model.conv4_1.bias, torch.arange(8.0))
    assert torch.equal(model.fc6.bias, weights()["fc6.bias"])
    assert model.fc6.bias.untyped_storage().nbytes() == 13 * 4


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", FORMATS)
def test_the_default_device_does_not_matter(tmp_path, kind):
    FORMATS[kind](tmp_path / "net", weights())
    torch.set_default_device("meta")  # elsewhere it is cuda
    try:
        model = load(tmp_path / "net").eval()
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


MEASURE = """
import sys
import fcnfast, h5py
from fcnfast.models import vgg

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

vgg.FULLY_CONNECTED = 640
fcnfast.create_model("fcn4s_light")  # what every process needs once
for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins here
    before = status("VmRSS")
    model = fcnfast.create_model("fcn16s_vgg16", weights=path)
    print(status("VmHWM") - before)
    del model
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_a_model_is_ready_without_a_second_copy(tmp_path, monkeypatch):
    """How much memory is taken at the peak, in sizes of the file."""
    monkeypatch.setattr(vgg, "FULLY_CONNECTED", 640)
    with torch.device("meta"):
        model = fcnfast.create_model("fcn16s_vgg16", num_classes=3, upsampling="dense")
    state = {k: torch.full(v.shape, 0.01) for k, v in model.state_dict().items()}
    most = {"safetensors": 1.2, "zip": 1.2, "legacy": 2.2, "caffe": 2.2, "hdf5": 2.2}
    for kind in most:
        FORMATS[kind](tmp_path / kind, state)
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / kind) for kind in most)]
    # The allocator is to give back what is freed.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for kind, peak in zip(most, done.stdout.split(), strict=True):
        size = (tmp_path / kind).stat().st_size
        assert size > 120e6 and 0.9 * size < 1024 * int(peak) <= most[kind] * size, kind
