"""From an idle process to a network with its weights: how much memory that takes at the peak."""

import os
import subprocess
import sys

import pytest
import torch

import fcnfast
from fcnfast.models import vgg
from tests.model_tools import ROOT
from tests.wire_tools import caffemodel, hdf5_model

MEASURE = """
import sys
import fcnfast
from fcnfast.models import vgg

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))

vgg.FULLY_CONNECTED = 640
if sys.argv[2] == "hdf5":
    import h5py
fcnfast.create_model("fcn4s_light")  # what every process needs once
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins here
before = status("VmRSS")
model = fcnfast.create_model("fcn16s_vgg16", weights=sys.argv[1])
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("kind", "most"),
    [("safetensors", 1.2), ("zip", 1.2), ("legacy", 2.2), ("caffe", 2.2), ("hdf5", 2.2)],
)
def test_a_model_is_ready_without_a_second_copy(tmp_path, monkeypatch, kind, most):
    monkeypatch.setattr(vgg, "FULLY_CONNECTED", 640)
    path = tmp_path / "net"
    with torch.device("meta"):
        model = fcnfast.create_model("fcn16s_vgg16", num_classes=3)
    state = {k: torch.full(v.shape, 0.01) for k, v in model.state_dict().items()}
    if kind == "safetensors":
        fcnfast.save_model(model, path, state=state)
    elif kind == "caffe":
        path.write_bytes(caffemodel(state))
    elif kind == "hdf5":
        pytest.importorskip("h5py")
        hdf5_model(path, state)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    size = path.stat().st_size
    assert size > 120e6
    command = [sys.executable, "-c", MEASURE, str(path), kind]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 1024 * int(done.stdout) <= most * size
