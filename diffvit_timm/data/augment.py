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

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for its newest version at import

POLICIES = ("none", "crop", "color", "erase")

Transform = Callable[[Image.Image, int], torch.Tensor]


class SeededCompose:
    """An albumentations pipeline whose draws are a function of the seed given with each image.

    Compose carries its own generator: with workers all draw the same augmentations, each epoch repeats them, and
    seeding torch or NumPy changes nothing. Seeding every image makes the result independent of workers and ranks.
    """

    def __init__(self, compose: Any) -> None:
        self.compose = compose

    def __call__(self, image: Image.Image, seed: int) -> torch.Tensor:
        # A seed a transform: Compose.set_random_seed gives all the same one, and every p=0.5 would fall alike.
        seeds = np.random.SeedSequence(seed).generate_state(len(self.compose.transforms))
        for transform, transform_seed in zip(self.compose.transforms, seeds, strict=True):
            transform.set_random_seed(int(transform_seed))
        pixels = np.asarray(image)
        return self.compose(image=pixels if pixels.ndim == 3 else pixels[..., None])["image"]


def train_transform(policy: str, data_config: dict, crop_scale: float = 0.35) -> Transform:
    """The training transform: image and seed -> normalised float tensor (C, H, W).

    Args:
        policy: 'none' (as in evaluation), 'crop' (random resized crop, horizontal flip), 'color' (with colour jitter),
            'erase' (with colour jitter and random erasing).
        data_config: of timm.data.resolve_data_config.
        crop_scale: smallest share of the image's area that a random crop keeps.
    """
    if policy not in POLICIES:
        raise InputError(f"--augment {policy} is not known: choose one of {', '.join(POLICIES)}")
    if policy == "none":
        return eval_transform(data_config)
    _refuse_albumentationsx()
    import albumentations as A
    import cv2

    steps = [
        A.RandomResizedCrop(
            size=data_config["input_size"][-2:],
            scale=(crop_scale, 1.0),
            interpolation={"bicubic": cv2.INTER_CUBIC}.get(data_config["interpolation"], cv2.INTER_LINEAR),
            area_for_downscale="image",  # cubic alone aliases when it shrinks
        ),
        A.HorizontalFlip(p=0.5),
    ]
    if policy in ("color", "erase"):
        steps.append(A.ColorJitter(brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=0, p=0.8))
    if policy == "erase":
        size = (0.1, 0.35)
        steps.append(
            A.CoarseDropout(
                num_holes_range=(1, 1), hole_height_range=size, hole_width_range=size, fill="random", p=0.25
            )
        )
    steps += [A.Normalize(mean=data_config["mean"], std=data_config["std"]), A.ToTensorV2()]
    return SeededCompose(A.Compose(steps))


def eval_transform(data_config: dict) -> Transform:
    """timm's evaluation transform of a model: resize, centre crop, normalise; the seed is not read."""
    return partial(_unseeded, create_transform(**data_config, is_training=False))


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
