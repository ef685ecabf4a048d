"""A network with and without `fuse`."""

import copy

import torch
from torch import Tensor

from fcnfast import fuse


def images(size=64, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=generator)


def labels(classes, size=64, batch=2, ignored=255):
    target = torch.randint(0, classes, (batch, size, size), generator=torch.manual_seed(1))
    target[:, :3] = ignored
    return target


def randomize(model):
    """Weights as `spread` gives them, and biases and norms that are not the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in spread(model).state_dict().items():
            if tensor.dim() == 1:
                scales = name.endswith(("weight", "running_var"))
                tensor.normal_(1.2 if scales else 0, 0.1 if scales else 0.3, generator=generator)
    return model


def spread(model):
    """Weights that give every layer's output a part in the result."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, (2 / p[0].numel()) ** 0.5, generator=generator)
    return model


def same_training(model, loss_of):
    """`loss_of(model)` and all gradients, fused and not; the fused model's loss."""
    losses = []
    models = (fuse(copy.deepcopy(model)), model)
    for one in models:
        torch.manual_seed(3)  # dropout
        losses.append(loss_of(one))
        losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    scale = max(p.grad.abs().max() for p in model.parameters() if p.grad is not None)
    assert scale > 0
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=2e-5 * float(scale))
    return losses[0]


def same_labels(found: Tensor, logits: Tensor, dim=1):
    """Labels are the argmax of `logits`, where rounding does not decide."""
    first, second = logits.topk(2, dim).values.unbind(dim)
    clear = first - second > 1e-4 * logits.abs().max()
    assert clear.float().mean() > 0.9
    assert torch.equal(found[clear], logits.argmax(dim)[clear])
