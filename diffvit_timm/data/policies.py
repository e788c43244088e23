"""The steps of an augmentation policy: albumentations, and torchvision's policies as a step of it."""

from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from torchvision.transforms import v2

__all__ = ["TorchvisionPolicy", "pipeline"]


class TorchvisionPolicy(A.ImageOnlyTransform):
    """One of torchvision.transforms.v2's policies on a uint8 image, its draws from this transform's own generator.

    Args:
        policy: RandAugment, AutoAugment, TrivialAugmentWide, ...
    """

    def __init__(self, policy: torch.nn.Module) -> None:
        super().__init__(p=1.0)
        self.policy = policy

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """(H, W, C) uint8 to the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.py_random.getrandbits(63))
            changed = self.policy(torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1))
        return np.ascontiguousarray(changed.permute(1, 2, 0).numpy())


def pipeline(names: tuple[str, ...], data_config: dict, crop_scale: float) -> A.Compose:
    """The steps of these names, and then the normalisation: (H, W, C) uint8 -> float tensor (C, H, W).

    Args:
        names: of `augment.parse_policy`.
        data_config, crop_scale: as in `augment.train_transform`.
    """
    height, width = size = data_config["input_size"][-2:]
    padded = height + 2 * (height // 8), width + 2 * (width // 8)
    interpolation = {"bicubic": cv2.INTER_CUBIC}.get(data_config["interpolation"], cv2.INTER_LINEAR)
    auto = v2.AutoAugmentPolicy.CIFAR10 if max(size) <= 64 else v2.AutoAugmentPolicy.IMAGENET
    jitter = (0.7, 1.3)
    steps = {
        "crop": [
            A.RandomResizedCrop(
                size=size, scale=(crop_scale, 1.0), interpolation=interpolation,
                area_for_downscale="image",  # cubic alone aliases when it shrinks
            )
        ],
        "shift": [A.PadIfNeeded(*padded), A.RandomCrop(height, width)],
        "flip": [A.HorizontalFlip(p=0.5)],
        "color": [A.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter, hue=0, p=0.8)],
        "randaugment": [TorchvisionPolicy(v2.RandAugment())],
        "autoaugment": [TorchvisionPolicy(v2.AutoAugment(auto))],
        "trivialaugment": [TorchvisionPolicy(v2.TrivialAugmentWide())],
        "erase": [_hole((0.1, 0.35), "random", p=0.25)],
        "cutout": [_hole((0.5, 0.5), tuple(255 * mean for mean in data_config["mean"]), p=1.0)],
    }  # fmt: skip
    end = [A.Normalize(mean=data_config["mean"], std=data_config["std"]), A.ToTensorV2()]
    return A.Compose([step for name in names for step in steps[name]] + end)


def _hole(sides: tuple[float, float], fill: Any, p: float) -> A.CoarseDropout:
    return A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=sides, hole_width_range=sides, fill=fill, p=p)
