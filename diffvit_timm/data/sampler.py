"""Sampler for repeated augmentation."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

__all__ = ["RepeatedSampler"]


class RepeatedSampler(Sampler[int]):
    """Repeated augmentation: an epoch contains several augmented copies of each image that it draws.

    The copies of an image follow each other, so they are in the same batch or in neighbouring batches. As in DeiT, the
    length of an epoch is the number of images, so an epoch draws only a part of the images, a different one each time.

    Paper: `Hoffer et al. 2020` - https://arxiv.org/abs/1901.09335

    Args:
        size: number of images.
        repeats: number of copies of each image.
        seed: seed of the shuffling; the epoch is added to it.
    """

    def __init__(self, size: int, repeats: int, seed: int = 0) -> None:
        self.size = size
        self.repeats = repeats
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        """Yield indices: copy r of image i has the index i + r * size."""
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        indices = order[:, None] + self.size * torch.arange(self.repeats)  # (size, repeats)
        return iter(indices.flatten()[: self.size].tolist())
