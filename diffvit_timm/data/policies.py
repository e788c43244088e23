"""The steps of an augmentation policy as albumentations transforms, including torchvision's policies."""

from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from torchvision.transforms import v2

__all__ = ["TorchvisionPolicy", "pipeline"]


class TorchvisionPolicy(A.ImageOnlyTransform):
    """A policy of torchvision.transforms.v2 for uint8 images, which draws from the generator of this transform.

    Args:
        policy: RandAugment, AutoAugment, TrivialAugmentWide, ...
    """

    def __init__(self, policy: torch.nn.Module) -> None:
        super().__init__(p=1.0)
        self.policy = policy

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Augment an image, (H, W, C) uint8 -> (H, W, C) uint8."""
        # torchvision draws from torch's global generator: seed it here, and restore its state afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.py_random.getrandbits(63))
            changed = self.policy(torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1))  # (C, H, W)
        return np.ascontiguousarray(changed.permute(1, 2, 0).numpy())


def pipeline(steps: tuple[str, ...], data_config: dict, crop_scale: float) -> A.Compose:
    """Return the pipeline of these steps and the normalisation: (H, W, C) uint8 -> float tensor (C, H, W).

    Args:
        steps: names from `steps.parse_policy`, in their order.
        data_config, crop_scale: as in `augment.train_transform`.
    """
    height, width = size = data_config["input_size"][-2:]
    padded = height + 2 * (height // 8), width + 2 * (width // 8)
    interpolation = {"bicubic": cv2.INTER_CUBIC}.get(data_config["interpolation"], cv2.INTER_LINEAR)
    auto = v2.AutoAugmentPolicy.CIFAR10 if max(size) <= 64 else v2.AutoAugmentPolicy.IMAGENET
    jitter = (0.7, 1.3)
    transforms = {
        "crop": [
            A.RandomResizedCrop(
                size=size, scale=(crop_scale, 1.0), interpolation=interpolation,
                area_for_downscale="image",  # cubic interpolation aliases when it makes an image smaller
            )
        ],
        "shift": [A.PadIfNeeded(*padded), A.RandomCrop(height, width)],
        "flip": [A.HorizontalFlip(p=0.5)],
        "color": [A.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter, hue=0, p=0.8)],
        "randaugment": [TorchvisionPolicy(v2.RandAugment())],
        "autoaugment": [TorchvisionPolicy(v2.AutoAugment(auto))],
        "trivialaugment": [TorchvisionPolicy(v2.TrivialAugmentWide())],
        "erase": [_erase((0.1, 0.35), "random", p=0.25)],
        "cutout": [_erase((0.5, 0.5), tuple(255 * mean for mean in data_config["mean"]), p=1.0)],
    }  # fmt: skip
    normalise = [A.Normalize(mean=data_config["mean"], std=data_config["std"]), A.ToTensorV2()]
    return A.Compose([transform for step in steps for transform in transforms[step]] + normalise)


def _erase(sides: tuple[float, float], fill: Any, p: float) -> A.CoarseDropout:
    """Return a transform that fills one rectangle, whose sides are a random fraction of the image's sides."""
    return A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=sides, hole_width_range=sides, fill=fill, p=p)
