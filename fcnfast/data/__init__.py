"""Data: class tables, pictures and labels on disk, folders of them, paired transforms."""

from .classes import CAMVID, IGNORE_INDEX, VOC, ClassTable, class_table, voc_palette
from .folder import FolderDataset, Sample, demo_scene, image_paths
from .images import read_image, read_labels, write_image, write_labels
from .transforms import collate, eval_transform, train_transform

__all__ = [
    "CAMVID",
    "IGNORE_INDEX",
    "VOC",
    "ClassTable",
    "FolderDataset",
    "Sample",
    "class_table",
    "collate",
    "demo_scene",
    "eval_transform",
    "image_paths",
    "read_image",
    "read_labels",
    "train_transform",
    "voc_palette",
    "write_image",
    "write_labels",
]
