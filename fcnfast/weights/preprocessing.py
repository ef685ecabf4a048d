"""What networks expect of their input; each family of weights has its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """What a family of weights expects: ``(channels * scale - mean) / std``.

    order: "rgb" or "bgr", also of mean and std. scale: 1/255 for inputs in 0..1, 1 for 0..255.
    max_size: longest side of the training pictures at their largest scale, to which larger photos
    should be shrunk; None: unknown. ValueError for any other value.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    order: str = "rgb"
    scale: float = 1.0
    max_size: int | None = None

    def __post_init__(self) -> None:
        if self.order not in ("rgb", "bgr"):
            raise ValueError(f"order must be 'rgb' or 'bgr', not {self.order!r}")
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) != 3:
                raise ValueError(f"{name} must hold 3 values, not {values}")
            object.__setattr__(self, name, values)
        if self.max_size is not None and self.max_size < 1:
            raise ValueError(f"max_size must be positive, not {self.max_size}")

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values; ``Preprocessing(**settings)`` reads them back."""
        return asdict(self)


# The ILSVRC mean that the Caffe networks subtract, and the VGG authors' mean.
CAFFE = Preprocessing((104.00699, 116.66877, 122.67892), order="bgr")
VGG_BGR = Preprocessing((103.939, 116.779, 123.68), order="bgr")
# torchvision's. Its GoogLeNet normalizes its (already normalized) input again: RGB in -1..1.
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), scale=1 / 255)
INCEPTION = Preprocessing((0.5,) * 3, (0.5,) * 3, scale=1 / 255)
# The weights that torchvision names IMAGENET1K_FEATURES, from the SSD implementation.
FEATURES = Preprocessing((0.48235, 0.45882, 0.40784), (1 / 255,) * 3, scale=1 / 255)
# mmsegmentation's, of RGB in 0..255.
MMSEG = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
