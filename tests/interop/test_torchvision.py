"""torchvision: its segmentation networks fused, and fcnfast's own beside them."""

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
import torchvision
from torch import nn
from torchvision.models import segmentation

import fcnfast
from fcnfast import UpsampledLogits, fuse, fuse_report
from tests import foreign_nets, foreign_torch_nets
from tests.interop.tools import images, labels, same_labels, same_training, spread

CLASSES = 7
MODELS = ("fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large")


def build(name, **options):
    torch.manual_seed(0)
    make = getattr(segmentation, name)
    model = make(weights=None, weights_backbone=None, num_classes=CLASSES, **options)
    return spread(model)


def criterion(output, target):
    """As in torchvision's references."""
    losses = {k: F.cross_entropy(x, target, ignore_index=255) for k, x in output.items()}
    return losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"]


@pytest.mark.parametrize("name", MODELS)
def test_training_and_labels(name):
    model = build(name, **({"aux_loss": True} if "resnet" in name else {}))
    target = labels(CLASSES)
    same_training(model, lambda m: criterion(m(images()), target))
    fuse(model.eval())
    with torch.no_grad():
        out = model(images())["out"]
        assert isinstance(out, UpsampledLogits)
        found = out.argmax(1)
        assert out.is_lazy
        same_labels(found, out * 1)
    heads = [row for row in fuse_report(model, images()) if row.size == (64, 64)]
    assert heads and all(row.real is None for row in heads)


def test_metrics_of_torchmetrics():
    model = fuse(build("lraspp_mobilenet_v3_large").eval())
    target = labels(CLASSES)
    arguments = {"task": "multiclass", "num_classes": CLASSES, "ignore_index": 255}
    with torch.no_grad():
        out = model(images())["out"]
        for metric in (torchmetrics.Accuracy(**arguments), torchmetrics.JaccardIndex(**arguments)):
            ours = metric(out, target)
            assert torch.equal(ours, metric(out.materialize(), target))
            assert torch.equal(metric(model(images())["out"].argmax(1), target), ours)


def test_compiled():
    head = segmentation.fcn.FCNHead(8, CLASSES)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), head, nn.UpsamplingBilinear2d(scale_factor=4)).eval()
    with torch.no_grad():
        wanted = model(images())
        compiled = torch.compile(fuse(model), backend="aot_eager", fullgraph=True)
        with pytest.warns(UserWarning, match="upsample_cross_entropy"):
            found = compiled(images())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    loss = torch.compile(lambda x: F.cross_entropy(x, labels(CLASSES)[:, 4:, 4:]), backend="eager")
    wanted = F.cross_entropy(wanted[..., :60, :60], labels(CLASSES)[:, 4:, 4:])
    torch.testing.assert_close(loss(model(images())[..., :60, :60]), wanted)


@pytest.mark.parametrize("depth", [50, 101])
def test_ours_is_torchvisions_fcn(depth):
    """The state dict loads, and the outputs are the same, loss and labels too."""
    theirs = build(f"fcn_resnet{depth}", aux_loss=True)
    foreign_nets.randomize(theirs)
    ours = fcnfast.create_model(f"fcn_resnet{depth}", num_classes=CLASSES, aux_loss=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        mine, wanted = ours.eval()(images(65)), theirs.eval()(images(65))
        for name in ("out", "aux"):
            scale = float(wanted[name].abs().max())
            torch.testing.assert_close(mine[name], wanted[name], rtol=0, atol=1e-5 * scale)
        same_labels(ours.predict(images(65)).long(), wanted["out"])
        target = labels(CLASSES, 65)
        loss = ours(images(65), target)["loss"]
        torch.testing.assert_close(loss, criterion(wanted, target), rtol=1e-4, atol=1e-4)


def real_and_rebuilt(name):
    """torchvision's network, and the one in foreign_torch_nets.py with its weights."""
    if name == "resnet50":
        theirs = foreign_nets.randomize(torchvision.models.resnet50(weights=None))
        ours = foreign_torch_nets.ResNet(dilated=False)
        ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if "fc." not in k})
        return nn.Sequential(*list(theirs.children())[:-2]), lambda x: ours.eval()(x)[-1]
    if name == "fcn_resnet50":
        theirs = segmentation.fcn_resnet50(
            weights=None, weights_backbone=None, num_classes=5, aux_loss=True
        )
        ours = foreign_torch_nets.Segmentation()
        ours.load_state_dict(foreign_nets.randomize(theirs).state_dict())
        return lambda x: theirs(x)["out"], lambda x: ours.eval()(x)[""]
    theirs = {"alexnet": torchvision.models.AlexNet, "vgg16": torchvision.models.vgg16}[name]()
    ours = {"alexnet": foreign_torch_nets.AlexNet, "vgg16": foreign_torch_nets.VGG16}[name]()
    ours.features.load_state_dict(foreign_nets.randomize(theirs.features).state_dict())
    return theirs.features, ours.features


@pytest.mark.parametrize("name", ["resnet50", "fcn_resnet50", "vgg16", "alexnet"])
def test_networks_rebuilt_by_hand(name, monkeypatch):
    """At the real widths: the same state dict, the same outputs."""
    real = {
        "RESNET": 64,
        "TORCHVISION_ALEXNET": (64, 192, 384, 256, 256),
        "STAGES": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
        "rgb": lambda x: x,
    }
    for key, value in real.items():
        monkeypatch.setattr(foreign_torch_nets, key, value)
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)  # the slowest part
    theirs, ours = real_and_rebuilt(name)
    with torch.no_grad():
        wanted, found = theirs(images(96, 1)), ours(images(96, 1))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
