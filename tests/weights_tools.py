"""What the tests of weights share: narrow networks, and how a file is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fcnfast
from fcnfast.errors import WeightsError
from fcnfast.models import FCN, vgg
from tests import foreign_nets
from tests.foreign_nets import VGG, randomize


def narrow_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give fcnfast's VGG-16 the widths of the foreign one."""
    monkeypatch.setattr(vgg, "STAGES", foreign_nets.STAGES)
    monkeypatch.setattr(vgg, "FULLY_CONNECTED", foreign_nets.FULLY_CONNECTED)


def new_model() -> FCN:
    """The network that the tests load files into."""
    torch.manual_seed(1)
    return fcnfast.create_model("fcn16s_vgg16", num_classes=5)


def weights() -> dict[str, Tensor]:
    return randomize(VGG(16)).state_dict()


class Unchanged:
    """Tells whether a network is still what it was."""

    def __init__(self, model: FCN) -> None:
        self.model = model
        self.state = {key: value.clone() for key, value in model.state_dict().items()}
        self.parts = {name: id(part) for name, part in model.named_modules()}
        self.said = (model.preprocessing, model.options, model.table, model.training)

    def check(self) -> None:
        model = self.model
        state = model.state_dict()
        assert state.keys() == self.state.keys()
        assert all(torch.equal(state[key], value) for key, value in self.state.items())
        assert {name: id(part) for name, part in model.named_modules()} == self.parts
        assert (model.preprocessing, model.options, model.table, model.training) == self.said


def refuse(model: FCN, path: Path, says: str) -> str:
    """Load a file that must be refused, in all three ways."""
    before = Unchanged(model)
    with pytest.raises(WeightsError, match=says) as raised:
        fcnfast.load_weights(model, path)
    before.check()
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(WeightsError):
        fcnfast.create_model(model.name, weights=path)
    with pytest.raises(WeightsError):
        fcnfast.load_model(path)
    return str(raised.value)
