"""The images of a split as a training reads them: from memory, from the disk or from a stream."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from timm.data import resolve_data_config
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..console import track
from ..errors import InputError
from .augment import eval_transform, train_transform
from .images import BATCHED, SMALL, ImageDataset, SmallImages, decode_all, decode_image
from .steps import parse_policy
from .stream import Stream, StreamedImages

__all__ = ["evaluation_images", "image_batches", "model_data_config", "training_images"]


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


IMAGE_BATCH = 32


def model_data_config(model: Any) -> dict:
    """timm's data settings of a model (mean, std, interpolation, crop), at the size and channels it has now.

    Raises:
        InputError: channels that are neither grey nor colour.
    """
    config = resolve_data_config(pretrained_cfg={**model.pretrained_cfg, **get_model_input_config(model)})
    channels = config["input_size"][0]
    if channels not in (1, 3):
        raise InputError(f"--model-kwargs in_chans={channels}: images are read as grey (1) or colour (3)")
    for name in ("mean", "std"):
        if len(config[name]) != channels:  # a grey model of a colour checkpoint
            config[name] = (sum(config[name]) / len(config[name]),) * channels
    return config


def image_batches(
    model: nn.Module, split: Dataset, most: int = sys.maxsize, label: str | None = None
) -> Iterator[Tensor]:
    """Images of a split as the model wants them in evaluation, batches (n, C, H, W): all in order, or `most` drawn.

    With a label, their progress is shown under it.

    Raises:
        InputError: as `model_data_config`, or an image that does not decode.
    """
    data_config = model_data_config(model)
    if most < len(split):
        split = split.shuffle(seed=0).take(most)  # the first ones are often all of one class
    images = ImageDataset(split, eval_transform(data_config), in_chans=data_config["input_size"][0])
    loader = DataLoader(images, batch_size=IMAGE_BATCH)
    batches = (batch for batch, _ in loader)
    return track(batches, label, len(loader)) if label else batches
