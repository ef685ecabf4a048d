"""Class tables, pictures and labels on disk, data sets of them, and paired transforms."""

from .classes import IGNORE_INDEX, ClassTable, voc_palette
from .datasets import ade20k, camvid, cityscapes, nyud, open_dataset, pascal_context, siftflow, voc
from .folder import Sample, SegmentationDataset, demo_scene, image_paths, open_folder, wrap_dataset
from .images import read_image, write_image
from .labels import read_labels, write_labels
from .tables import CAMVID, VOC, class_table
from .transforms import collate, eval_transform, train_transform

__all__ = [
    "CAMVID",
    "IGNORE_INDEX",
    "VOC",
    "ClassTable",
    "Sample",
    "SegmentationDataset",
    "ade20k",
    "camvid",
    "cityscapes",
    "class_table",
    "collate",
    "demo_scene",
    "eval_transform",
    "image_paths",
    "nyud",
    "open_dataset",
    "open_folder",
    "pascal_context",
    "read_image",
    "read_labels",
    "siftflow",
    "train_transform",
    "voc",
    "voc_palette",
    "wrap_dataset",
    "write_image",
    "write_labels",
]
