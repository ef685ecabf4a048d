"""Semantic segmentation with fully convolutional networks, without full-resolution logits."""

from pathlib import Path

from ._version import __version__

# An installed fcnfast holds its kernels as a folder of its own. In a checkout they stand beside the
# package, as kernels/: the root joins the search path, and `fcnfast.kernels` is found there.
_package = Path(__file__).resolve().parent
if not (_package / "kernels").is_dir():
    __path__.append(str(_package.parent))

__all__ = ["__version__"]
