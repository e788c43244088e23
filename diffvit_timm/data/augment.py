"""Augmentation policies by name, with albumentations; evaluation uses timm's own transform."""

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

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for its newest version at import

Transform = Callable[[Image.Image, int], torch.Tensor]


class SeededCompose:
    """An albumentations pipeline whose draws are a function of the seed given with each image.

    Compose carries its own generator: with workers all draw the same augmentations, each epoch repeats them, and
    seeding torch or NumPy changes nothing. Seeding every image makes the result independent of workers and ranks.

    Args:
        compose: the pipeline.
        part: what takes place before it: PIL image -> uint8 tensor (C, H, W); None: nothing.
    """

    def __init__(self, compose: Any, part: Callable[[Image.Image], torch.Tensor] | None = None) -> None:
        self.compose = compose
        self.part = part

    def __call__(self, image: Image.Image, seed: int) -> torch.Tensor:
        # A seed a transform: Compose.set_random_seed gives all the same one, and every p=0.5 would fall alike.
        seeds = np.random.SeedSequence(seed).generate_state(len(self.compose.transforms))
        for transform, transform_seed in zip(self.compose.transforms, seeds, strict=True):
            transform.set_random_seed(int(transform_seed))
        pixels = self.part(image).permute(1, 2, 0).numpy() if self.part else np.asarray(image)
        return self.compose(image=pixels if pixels.ndim == 3 else pixels[..., None])["image"]


def train_transform(policy: str, data_config: dict, crop_scale: float = 0.35) -> Transform:
    """The training transform: image and seed -> normalised float tensor (C, H, W).

    Args:
        policy: steps of STEPS joined by '+'; 'none' is as in evaluation. Without crop, the part of the image is
            evaluation's.
        data_config: of timm.data.resolve_data_config.
        crop_scale: smallest share of the image's area that a random crop keeps.

    Raises:
        InputError: a policy that is none.
    """
    names = parse_policy(policy)
    if not names:
        return eval_transform(data_config)
    _refuse_albumentationsx()
    from .policies import pipeline  # albumentations is slow to import

    part = None if "crop" in names else create_transform(**data_config, is_training=False, normalize=False)
    return SeededCompose(pipeline(names, data_config, crop_scale), part)


def eval_transform(data_config: dict) -> Transform:
    """timm's evaluation transform of a model: resize, centre crop, normalise; the seed is not read."""
    return without_seed(create_transform(**data_config, is_training=False))


def without_seed(transform: Callable[[Image.Image], torch.Tensor]) -> Transform:
    """A transform that draws nothing, where one with a seed is asked for."""
    return partial(_unseeded, transform)


def _unseeded(transform: Callable[[Image.Image], torch.Tensor], image: Image.Image, seed: int) -> torch.Tensor:
    return transform(image)


def _refuse_albumentationsx() -> None:
    """Stop at the fork that takes albumentations' import name under another licence."""
    try:
        metadata.distribution("albumentationsx")
    except metadata.PackageNotFoundError:
        return
    raise InputError(
        "AlbumentationsX (AGPL) is installed in the place of albumentations: pip uninstall albumentationsx"
    )
