"""Transforms of images: augmentation policies with albumentations for training, and timm's own for evaluation."""

import os
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from ..errors import InputError
from .steps import parse_policy

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise it asks the network for its newest version at import

Transform = Callable[[Image.Image, int], torch.Tensor]  # image and seed -> (C, H, W)


class SeededCompose:
    """An albumentations pipeline whose random draws depend only on the seed that comes with each image.

    albumentations.Compose has its own random generator, with three problems: all workers draw the same augmentations,
    every epoch repeats them, and seeding torch or NumPy has no effect. With one seed per image, the result does not
    depend on the number of workers and ranks.

    Args:
        compose: the pipeline, an albumentations.Compose.
        prepare: function that is applied before the pipeline, PIL image -> uint8 tensor (C, H, W), or None.
    """

    def __init__(self, compose: Any, prepare: Callable[[Image.Image], torch.Tensor] | None = None) -> None:
        self.compose = compose
        self.prepare = prepare

    def __call__(self, image: Any, seed: int) -> Any:
        """Transform a PIL image, or an array (H, W, C) if there is no `prepare`; returns the pipeline's output."""
        seed_transforms(self.compose, seed)
        pixels = self.prepare(image).permute(1, 2, 0).numpy() if self.prepare else np.asarray(image)
        # (H, W, C), or (H, W) for a grey image
        return self.compose(image=pixels if pixels.ndim == 3 else pixels[..., None])["image"]


def seed_transforms(compose: Any, seed: int) -> None:
    """Give each transform of an albumentations.Compose a seed of its own.

    Compose.set_random_seed gives the same seed to all of them, and then all transforms with p=0.5 would be applied to
    the same images.
    """
    seeds = np.random.SeedSequence(seed).generate_state(len(compose.transforms))
    for transform, transform_seed in zip(compose.transforms, seeds, strict=True):
        transform.set_random_seed(int(transform_seed))


def train_transform(policy: str, data_config: dict, crop_scale: float = 0.35) -> Transform:
    """Return the training transform: image and seed -> normalised float tensor (C, H, W).

    Args:
        policy: names from `steps.STEPS` joined by '+', or 'none' for the evaluation transform. Without the step 'crop',
            the image is resized and cropped as in evaluation.
        data_config: timm's data settings of the model, from timm.data.resolve_data_config.
        crop_scale: smallest fraction of the image's area that a random crop keeps.

    Raises:
        InputError: the policy is invalid, or AlbumentationsX is installed instead of albumentations.
    """
    steps = parse_policy(policy)
    if not steps:
        return eval_transform(data_config)
    refuse_albumentationsx()
    from .policies import pipeline  # not above: albumentations is slow to import

    prepare = None if "crop" in steps else create_transform(**data_config, is_training=False, normalize=False)
    return SeededCompose(pipeline(steps, data_config, crop_scale), prepare)


def eval_transform(data_config: dict) -> Transform:
    """Return timm's evaluation transform of a model: resize, centre crop, normalise. It ignores the seed."""
    return without_seed(create_transform(**data_config, is_training=False))


def without_seed(transform: Callable[[Image.Image], torch.Tensor]) -> Transform:
    """Wrap a deterministic transform so that it accepts a seed, which it ignores."""
    return partial(_ignore_seed, transform)


def _ignore_seed(transform: Callable[[Image.Image], torch.Tensor], image: Image.Image, seed: int) -> torch.Tensor:
    return transform(image)  # a module-level function: a lambda could not be pickled for the loader's workers


def refuse_albumentationsx() -> None:
    """Raise an error for AlbumentationsX, a fork that is imported as albumentations but has another licence."""
    try:
        metadata.distribution("albumentationsx")
    except metadata.PackageNotFoundError:
        return
    raise InputError("AlbumentationsX (AGPL) is installed instead of albumentations: pip uninstall albumentationsx")
