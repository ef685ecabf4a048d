"""The ops: upsampling and skip fusion, and upsampling fused with the loss and the labels.

These functions are the public ones. Each checks its arguments and calls a raw op of its name under
``torch.ops.fcnfast``, which torch.compile, torch.export and torch.func work with; there the
grid is a list of integers, and what is forced of the implementations an argument. (torch cannot
compile torch.func.grad of any op that is not its own.)
"""

from ._portable import portable
from ._registry import backend
from .argmax import upsample_argmax
from .confusion import upsample_confusion
from .crop_add import crop_add
from .cross_entropy import Reduction, upsample_cross_entropy
from .deconv import deconv
from .upsample import upsample, upsample_crop_add

__all__ = [
    "Reduction",
    "backend",
    "crop_add",
    "deconv",
    "portable",
    "upsample",
    "upsample_argmax",
    "upsample_confusion",
    "upsample_crop_add",
    "upsample_cross_entropy",
]
