"""The images of a split as a model reads them: from memory, from disk or from a stream, in training and evaluation."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from timm.data import resolve_data_config
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..console import track
from ..errors import InputError
from .augment import eval_transform, train_transform
from .decoding import decode_image
from .images import BATCHED, SMALL, ImageDataset, SmallImages, decode_all
from .labels import label_targets
from .steps import parse_policy
from .stream import Stream, StreamedImages

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["evaluation_images", "image_batches", "mask_batches", "model_data_config", "training_images"]

BATCH_SIZE = 32  # images per batch of `image_batches`


def model_data_config(model: Any) -> dict:
    """Return timm's data settings of a model (mean, std, interpolation, crop), for its present size and channels.

    Raises:
        InputError: the model reads neither grey nor colour images.
    """
    config = resolve_data_config(pretrained_cfg={**model.pretrained_cfg, **get_model_input_config(model)})
    channels = config["input_size"][0]
    if channels not in (1, 3):
        raise InputError(f"`in_chans={channels}`: images are read as grey (1 channel) or colour (3 channels)")
    for name in ("mean", "std"):
        if len(config[name]) != channels:  # a grey model made from a colour checkpoint
            config[name] = (sum(config[name]) / len(config[name]),) * channels
    return config


def training_images(
    split: "Dataset | Stream", policy: str, model_config: dict, crop_scale: float = 0.5, seed: int = 0
) -> ImageDataset | SmallImages | StreamedImages:
    """Prepare a split for training.

    Args:
        split: a split of `Splits`.
        policy, crop_scale: the augmentation, as in `train_transform`.
        model_config: data settings of the model, from `model_data_config`.
        seed: seed of the augmentation, which depends only on the seed, the epoch and the index of the image.

    Raises:
        InputError: an invalid policy, or a small image that does not decode.
    """
    steps, channels = parse_policy(policy), model_config["input_size"][0]
    if not isinstance(split, Stream) and (small := _in_memory(split, steps, model_config, seed)) is not None:
        return small
    kind = StreamedImages if isinstance(split, Stream) else ImageDataset
    return kind(split, train_transform(policy, model_config, crop_scale), channels, seed)


def evaluation_images(split: "Dataset", model_config: dict) -> Any:
    """Prepare a stored split for evaluation, without augmentation; arguments and errors as in `training_images`."""
    return training_images(split, "none", model_config)


def _in_memory(split: "Dataset", steps: tuple[str, ...], model_config: dict, seed: int = 0) -> SmallImages | None:
    """Decode small images into memory, if they all have the model's size and the steps work on whole batches."""
    if not set(steps) <= BATCHED or not _is_small(split, model_config):
        return None
    pixels = decode_all(split, model_config["input_size"][0])
    if pixels is None:
        return None
    return SmallImages(pixels, label_targets(split), steps, model_config["mean"], model_config["std"], seed)


def _is_small(split: "Dataset", model_config: dict) -> bool:
    """Return whether the first image is small and already has the size that evaluation would give it."""
    height, width = model_config["input_size"][-2:]
    if max(height, width) > SMALL or model_config["crop_pct"] != 1.0:
        return False
    return decode_image(split[0]["image"], "L", f"image 0 of split {split.split}").size == (width, height)


def image_batches(
    model: nn.Module, split: "Dataset", max_images: int = sys.maxsize, label: str | None = None
) -> Iterator[Tensor]:
    """Yield the images of a split as a model reads them in evaluation.

    Args:
        model: timm model.
        split: a stored split of `Splits`.
        max_images: number of images to draw at random if the split has more; a smaller split comes whole, in order.
        label: show progress under this label.

    Yields:
        Batches (n, C, H, W), normalised.

    Raises:
        InputError: as `model_data_config`, or an image that does not decode.
    """
    model_config = model_data_config(model)
    if max_images < len(split):
        split = split.shuffle(seed=0).take(max_images)  # the first images are often all of one class
    images = ImageDataset(split, eval_transform(model_config), in_chans=model_config["input_size"][0])
    loader = DataLoader(images, batch_size=BATCH_SIZE)
    batches = (batch for batch, _ in loader)
    return track(batches, label, len(loader)) if label else batches


def mask_batches(model: nn.Module, split: "Dataset") -> Iterator[Tensor]:
    """Yield the masks of a split, resized and cropped as their images are in evaluation.

    Args:
        model: timm model.
        split: a split with the column 'mask', as `clutter_splits` makes it.

    Yields:
        Batches (n, H, W) of the size of `image_batches`, with the share of each pixel that belongs to the object.

    Raises:
        InputError: as `image_batches`.
    """
    model_config = model_data_config(model)
    only_masks = {"input_size": (1, *model_config["input_size"][1:]), "mean": (0.0,), "std": (1.0,)}
    masks = split.select_columns(["mask", "label"]).rename_column("mask", "image")
    loader = DataLoader(ImageDataset(masks, eval_transform(model_config | only_masks), in_chans=1), BATCH_SIZE)
    return (batch[:, 0] for batch, _ in loader)
