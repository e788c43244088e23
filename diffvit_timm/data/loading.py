"""The images of a split as a training reads them: from memory, from the disk or from a stream."""

from typing import Any

import torch
from datasets import Dataset

from .augment import train_transform
from .images import BATCHED, SMALL, ImageDataset, SmallImages, decode_all, decode_image
from .steps import parse_policy
from .stream import Stream, StreamedImages

__all__ = ["evaluation_images", "training_images"]


def training_images(
    split: Dataset | Stream, policy: str, data_config: dict, crop_scale: float = 0.35, seed: int = 0
) -> ImageDataset | SmallImages | StreamedImages:
    """The images to train on.

    Args:
        split: a split of `Splits`.
        policy, data_config, crop_scale: of `train_transform`.
        seed: of the augmentation, which is a function of seed, epoch and index alone.

    Raises:
        InputError: a policy that is none, or a small image that does not decode.
    """
    names, channels = parse_policy(policy), data_config["input_size"][0]
    if isinstance(split, Stream):
        return StreamedImages(split, train_transform(policy, data_config, crop_scale), channels, seed)
    if set(names) <= BATCHED and _fits(split, data_config):
        pixels = decode_all(split, channels)
        if pixels is not None:
            labels = torch.tensor(split["label"])
            return SmallImages(pixels, labels, names, data_config["mean"], data_config["std"], seed)
    return ImageDataset(split, train_transform(policy, data_config, crop_scale), channels, seed)


def evaluation_images(split: Dataset, data_config: dict) -> Any:
    """The images as the model wants them in evaluation; arguments as in `training_images`."""
    return training_images(split, "none", data_config)


def _fits(split: Dataset, data_config: dict) -> bool:
    """Whether the first image is small, and has already the size that evaluation would give it."""
    height, width = data_config["input_size"][-2:]
    if max(height, width) > SMALL or data_config["crop_pct"] != 1.0:
        return False
    return decode_image(split[0]["image"], "L", f"image 0 of split {split.split}").size == (width, height)
