"""The exceptions that name a mistake of the user's; the command line makes one line of each."""


class InputError(ValueError):
    """Something given from outside (a file, a folder, an option) cannot be used."""


class ImageError(InputError):
    """A picture is missing, damaged, too large, or no picture at all."""


class LabelError(InputError):
    """A label picture does not fit its image or holds values that are no class."""


class DatasetError(InputError):
    """A data set folder is missing, empty, or not laid out as expected."""


class DivergenceError(InputError):
    """A training's loss is no number any more; its settings do not work."""


class WeightsError(InputError):
    """A weights or checkpoint file is missing, damaged, unsafe, or made for another model."""
