"""The exceptions for a user's mistakes; the command line prints each as one line."""

from importlib import import_module
from typing import Any


class InputError(ValueError):
    """An input (a file, a folder, an option) cannot be used."""


class ImageError(InputError):
    """A picture is missing, damaged or too large, or the file is not a picture."""


class LabelError(InputError):
    """A label picture does not fit its image, or some of its values are not classes."""


class DatasetError(InputError):
    """A data set folder is missing, empty, or not laid out as expected."""


class NoSplitError(DatasetError):
    """The data set has no such split."""


class DivergenceError(InputError):
    """The loss or a weight is no longer finite."""


class WeightsError(InputError):
    """A weights or checkpoint file is missing, damaged, unsafe, or made for a different model."""


def import_extra(module: str, extra: str, told: str) -> Any:
    """Import a module of one of the package's extras; InputError, `told` and how, if missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{told}: pip install 'fcnfast[{extra}]'") from error
