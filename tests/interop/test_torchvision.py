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
from fcnfast.models import vgg
from tests.interop.tools import images, labels, randomize, same_labels, same_training, spread

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


@pytest.mark.parametrize("depth", [50, 101])
def test_ours_is_torchvisions_fcn(depth):
    """The state dict loads, and the outputs are the same, loss and labels too."""
    theirs = randomize(build(f"fcn_resnet{depth}", aux_loss=True))
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


def classifier(name):
    """torchvision's network, padded by 100, with poolings that round up and narrow last layers."""
    options = {"init_weights": False} if name in ("vgg16", "googlenet") else {}
    net = getattr(torchvision.models, name)(weights=None, **options)
    if hasattr(net, "features"):
        net.features[0].padding = (100, 100)
        for layer in net.features:
            layer.ceil_mode = True
        numbers = [k for k, layer in enumerate(net.classifier) if isinstance(layer, nn.Linear)]
        widths = [net.classifier[numbers[0]].in_features, 8, 8, 10]
        for number, width, out in zip(numbers, widths[:-1], widths[1:], strict=True):
            net.classifier[number] = nn.Linear(width, out)
    return randomize(net).eval()


@pytest.mark.parametrize(
    ("theirs", "name", "last", "size"),
    [
        ("vgg16", "fcn8s_vgg16", "fc7", 26),  # fc6 has one window
        ("alexnet", "fcn32s_alexnet", "fc7", 27),
        ("googlenet", "fcn32s_googlenet", "inception_5b", 96),
        ("resnet18", "fcn8s_resnet18", "layer4", 96),
        ("resnet50", "fcn8s_resnet50", "layer4", 96),
    ],
)
def test_classifiers_become_trunks(theirs, name, last, size, monkeypatch, tmp_path):
    """Real files at the real widths: every tensor has its place, and the maps are theirs."""
    monkeypatch.setattr(vgg, "FULLY_CONNECTED", 8)
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)  # the slowest part
    net, x = classifier(theirs), images(size, 1)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = fcnfast.create_model(name, weights_backbone=tmp_path / "net.pth").eval()
    assert not model.load_report.unexpected
    assert all(key.startswith("score") for key in model.load_report.missing)
    seen = []
    if theirs == "googlenet":
        pixels, net.transform_input = torch.arange(75).view(1, 3, 5, 5).byte(), True
        wanted = net._transform_input(fcnfast.create_model("fcn4s_light").preprocess(pixels))
        torch.testing.assert_close(model.preprocess(pixels), wanted)
        net.transform_input = False
    layer = net.classifier[-2] if last == "fc7" else getattr(net, last.replace("_", ""))
    layer.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    with torch.no_grad():
        net(x)
        found = model.features(x)[last].x
    wanted = seen[0].view(found.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
