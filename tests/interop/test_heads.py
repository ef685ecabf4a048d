"""segmentation_models_pytorch, a decode head in the style of mmsegmentation, and DDP."""

import copy
import os

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from fcnfast import UpsampledLogits, fuse, fuse_report
from tests.interop.tools import images, labels, same_labels, same_training, spread

CLASSES = 5
LOSSES = {
    "cross entropy": nn.CrossEntropyLoss(ignore_index=255),
    "dice": smp.losses.DiceLoss("multiclass", ignore_index=255),
    "focal": smp.losses.FocalLoss("multiclass", ignore_index=255),
    "jaccard": smp.losses.JaccardLoss("multiclass"),
    "lovasz": smp.losses.LovaszLoss("multiclass", ignore_index=255),
    "soft cross entropy": smp.losses.SoftCrossEntropyLoss(ignore_index=255, smooth_factor=0.1),
}


@pytest.fixture(scope="module")
def fpn():
    torch.manual_seed(0)
    return spread(smp.FPN("resnet18", encoder_weights=None, classes=CLASSES, decoder_dropout=0.0))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_smp(name, fpn):
    """Its heads align corners."""
    target = labels(CLASSES, ignored=0 if name == "jaccard" else 255)
    criterion = LOSSES[name]
    model = copy.deepcopy(fpn)
    same_training(model, lambda m: criterion(m(images()), target))


@pytest.mark.parametrize("name", ["DeepLabV3Plus", "PSPNet", "Linknet"])
def test_networks_of_smp(name):
    torch.manual_seed(0)
    make = getattr(smp, name)
    model = spread(make("resnet18", encoder_weights=None, classes=CLASSES)).eval()
    with torch.no_grad():
        wanted = model(images())
        found = fuse(model)(images())
        same_labels(found.argmax(1), wanted)
        same_labels(model.predict(images()).argmax(1), wanted)
        assert torch.equal(found * 1, wanted)
    assert name == "Linknet" or isinstance(found, UpsampledLogits)


class Head(nn.Module):
    """A decode head as mmsegmentation's: resize, loss by pixel, OHEM, its own average, accuracy."""

    def __init__(self, hard):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.fine, self.score = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(16, CLASSES, 1)
        self.hard = hard

    def forward(self, x, target=None):
        x = self.trunk(x)
        low = F.interpolate(self.fine(x), size=x.shape[2:], mode="bilinear", align_corners=False)
        logits = self.score(torch.cat([x, low], 1))
        if target is None:
            return logits
        logits = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
        weight = logits.new_ones(target.shape)
        if self.hard:
            with torch.no_grad():
                one = logits.softmax(1).gather(1, target.clamp(max=CLASSES - 1)[:, None])[:, 0]
                weight = ((one < one.median()) & (target != 255)).float()
        options = {"weight": logits.new_tensor([1.0, 2.0, 0.5, 1.0, 1.0]), "reduction": "none"}
        by_pixel = F.cross_entropy(logits, target, ignore_index=255, **options)
        count = target.numel() - (target == 255).sum().item()
        _, best = logits.topk(1, dim=1)
        right = best.transpose(0, 1).eq(target).flatten().float().sum() / count
        return (by_pixel * weight).sum() / count, right


@pytest.mark.parametrize("hard", [False, True])
def test_a_head_of_mmsegmentation(hard):
    torch.manual_seed(0)
    model, target = Head(hard), labels(CLASSES)
    same_training(model, lambda m: m(images(), target)[0])
    features, logits = fuse_report(fuse(model), (images(), target))
    assert features.real == "torch.cat"
    assert logits.real == ("torch.Tensor.gather" if hard else None)  # of its softmax
    assert logits.fused == ["fused cross_entropy", "fused topk"]
    shares = [m(images(), target)[1] for m in (model, copy.deepcopy(model))]
    assert shares[0] == shares[1]


class Logits(nn.Module):
    def __init__(self, unused):
        super().__init__()
        self.head = Head(False)
        if unused:
            self.unused = nn.Linear(1, 1)

    def forward(self, x):
        return {"out": F.interpolate(self.head(x), size=x.shape[2:], mode="bilinear")}


@pytest.mark.parametrize("unused", [False, True])
def test_ddp(unused, tmp_path):
    """Gradients are those of one process without DDP; where DDP copies outputs, they are real."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model = Logits(unused)
        plain = copy.deepcopy(model)
        wrapped = nn.parallel.DistributedDataParallel(fuse(model), find_unused_parameters=unused)
        for one in (wrapped, plain) * 2:
            F.cross_entropy(one(images())["out"], labels(CLASSES), ignore_index=255).backward()
    finally:
        dist.destroy_process_group()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
