"""torchvision's augmentation policies as a step of an albumentations pipeline."""

from typing import Any

import albumentations as A
import numpy as np
import torch

__all__ = ["TorchvisionPolicy"]


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
