"""What the tests of weights share: a file of each kind, and how a file is refused."""

import contextlib
import copy
import functools

import pytest
import torch

import fcnfast
from fcnfast.errors import WeightsError
from fcnfast.weights import open_weights
from tests.foreign_nets import VGG, randomize
from tests.wire_tools import caffemodel, hdf5_model


def read_weights(path):
    """The tensors of a file, and its description."""
    with open_weights(path) as file:
        return {name: stored.read() for name, stored in file.tensors.items()}, file.meta


def new_model():
    """The network that the tests load files into."""
    torch.manual_seed(1)
    return fcnfast.create_model("fcn16s_vgg16", num_classes=5)


@functools.cache
def _weights():
    return randomize(VGG(16)).state_dict()


def weights():
    return copy.deepcopy(_weights())


def same(model, state=None):
    """Whether a network has the values of `weights`, or of another state dict."""
    own, state = model.state_dict(), _weights() if state is None else state
    return all(torch.equal(value, state[key]) for key, value in own.items())


def _write_ours(path, state):
    classes = len(state["score_fr.bias"])
    with torch.device("meta"):
        model = fcnfast.create_model("fcn16s_vgg16", num_classes=classes, upsampling="dense")
    fcnfast.save_model(model, path, state=state)


def _write_caffe(path, state, **layout):
    path.write_bytes(caffemodel(state, **layout))


# How `weights` are written as a file of each kind.
FORMATS = {
    "safetensors": _write_ours,
    "zip": lambda path, state: torch.save(state, path),
    "legacy": lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False),
    "caffe": _write_caffe,
    "caffe v1": functools.partial(_write_caffe, generation=1, legacy=True),
    "caffe v0": functools.partial(_write_caffe, generation=0, packed=False),
    "hdf5": hdf5_model,
}


@contextlib.contextmanager
def unchanged(model):
    """Whatever happens, the network stays what it was."""

    def seen():
        parts = {name: id(part) for name, part in model.named_modules()}
        return parts, model.preprocessing, model.options, model.table, model.training

    before, state = seen(), {key: value.clone() for key, value in model.state_dict().items()}
    yield
    assert seen() == before and same(model, state)


def refuse(model, path, says, load_model=True):
    """Load a file that must be refused, in all ways."""
    with unchanged(model), pytest.raises(WeightsError, match=says) as raised:
        fcnfast.load_weights(model, path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(WeightsError):
        fcnfast.create_model(model.name, weights=path)
    if load_model:  # takes a while where it looks at every network
        with pytest.raises(WeightsError):
            fcnfast.load_model(path)
    return str(raised.value)
