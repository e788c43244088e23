"""Datasets by name or folder, and augmentation."""

from .augment import POLICIES, Transform, eval_transform, train_transform
from .datasets import ImageDataset, Splits, digits_splits, load_images, load_splits

__all__ = [
    "POLICIES",
    "ImageDataset",
    "Splits",
    "Transform",
    "digits_splits",
    "eval_transform",
    "load_images",
    "load_splits",
    "train_transform",
]
