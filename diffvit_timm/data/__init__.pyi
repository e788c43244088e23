"""Datasets by name or folder, their images, and augmentation."""

from .augment import Transform, eval_transform, train_transform, without_seed
from .datasets import Splits, digits_splits, load_images, load_splits
from .images import ImageDataset, SmallImages, decode_image
from .loading import evaluation_images, training_images
from .noise import with_input_noise, with_label_noise
from .sampler import RepeatedSampler
from .steps import STEPS, parse_policy
from .stream import Stream, StreamedImages

__all__ = [
    "STEPS",
    "ImageDataset",
    "RepeatedSampler",
    "SmallImages",
    "Splits",
    "Stream",
    "StreamedImages",
    "Transform",
    "decode_image",
    "digits_splits",
    "eval_transform",
    "evaluation_images",
    "load_images",
    "load_splits",
    "parse_policy",
    "train_transform",
    "training_images",
    "with_input_noise",
    "with_label_noise",
    "without_seed",
]
