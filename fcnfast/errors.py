"""The exceptions that name a user's mistake; the command line turns each into one line and exit code 2."""


class InputError(ValueError):
    """Something given from outside (a file, a folder, an option) cannot be used; the message names it."""


class ImageError(InputError):
    """A picture is missing, damaged, too large, or no picture at all."""


class LabelError(InputError):
    """A label picture does not fit its image or holds values that are no class."""


class DatasetError(InputError):
    """A data set folder is missing, empty, or not laid out as expected."""


class WeightsError(InputError):
    """A weights or checkpoint file is missing, damaged, unsafe, or made for another model."""
