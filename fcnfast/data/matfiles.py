"""MATLAB files of data sets; scipy and h5py (the extra ``data``) are imported only to read one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DatasetError, ImageError, LabelError, import_extra
from .classes import ClassTable
from .labels import to_labels


def read_mat(path: Path) -> dict[str, Any]:
    """Read the variables of a MATLAB file of version 4 to 7; LabelError if that fails."""
    io = import_extra("scipy.io", "data", f"{path}: reading it needs scipy")
    if not path.is_file():
        raise LabelError(f"{path}: no such file")
    try:
        return dict(io.loadmat(str(path)))
    except Exception as error:  # the bytes may be anything, and so may the error
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise LabelError(f"{path}: not a MATLAB file, or a damaged one: {detail}") from error


def mat_labels(path: Path, table: ClassTable, key: str) -> np.ndarray:
    """Read labels H×W from a variable of a MATLAB file, or from a field, "struct.field".

    LabelError as in `read_mat`, or if there is no such variable, or a value is not a class.
    """
    variable, _, field = key.partition(".")
    variables = read_mat(path)
    try:
        values = variables[variable]
        values = np.asarray(values[field].flat[0] if field else values)
    except (LookupError, ValueError, TypeError) as error:
        raise LabelError(f"{path}: has no variable {key!r}") from error
    if values.ndim != 2 or values.dtype.kind not in "uif" or 0 in values.shape:
        raise LabelError(f"{path}: {key!r} is not a label map but {values.dtype} {values.shape}")
    if values.dtype != np.uint8:
        if not np.isfinite(values).all() or (np.rint(values) != values).any():
            raise LabelError(f"{path}: {key!r} holds numbers that are not integers")
        values = values.astype(np.int64)
    return to_labels(values, table, path)


# The official NYUDv2 file holds all pictures; a sample is "file#number", numbered from 1.


def nyud_item(source: Path, variable: str) -> np.ndarray:
    """Read "file#number" from a variable of ``nyu_depth_v2_labeled.mat``, rows first."""
    name, _, number = str(source).rpartition("#")
    h5py = import_extra("h5py", "data", f"{name}: reading it needs h5py")
    try:
        with h5py.File(name, "r") as file:
            values = np.asarray(file[variable][int(number) - 1])
    except Exception as error:  # the bytes may be anything, and so may the error
        raise ImageError(f"{source}: cannot be read: {' '.join(str(error).split())}") from error
    return values.T  # MATLAB stores columns first: [C×]W×H here


def nyud_picture(source: Path, modality: str) -> Image.Image:
    """Return "color", or "depth" in millimeters as mode F, of "file#number"."""
    if modality == "color":
        return Image.fromarray(np.ascontiguousarray(nyud_item(source, "images")))
    meters = nyud_item(source, "depths").astype(np.float32)
    return Image.fromarray(np.ascontiguousarray(meters * 1000))


def nyud_labels(source: Path, table: ClassTable, mapping: Path) -> np.ndarray:
    """Return the labels of "file#number": 0 to 894 as stored, mapped to 0 to 40 and to classes."""
    stored, forty = nyud_item(source, "labels"), _mapping(mapping)
    if stored.max() >= len(forty):
        raise LabelError(f"{source}: label {stored.max()} is not one of {len(forty) - 1}")
    return to_labels(forty[stored], table, source)


@cache
def _mapping(path: Path) -> np.ndarray:
    """Read which of 40 classes each of the 894 labels is; entry 0 is 0."""
    for values in read_mat(path).values():
        if isinstance(values, np.ndarray) and values.size == 894 and values.dtype.kind in "uif":
            return np.concatenate(([0], values.ravel())).astype(np.uint8)
    raise DatasetError(f"{path}: has no list of 894 numbers, the class of each label")
