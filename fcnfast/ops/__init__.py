"""The ops: upsampling and skip fusion, and upsampling fused with the loss and the labels.

Each public function checks its arguments and calls the raw op of the same name under
``torch.ops.fcnfast``, which works with torch.compile, torch.export and torch.func. A raw op takes
its grid as a list of integers and the forced backend as an argument. (torch cannot compile
torch.func.grad of a custom op.)
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
