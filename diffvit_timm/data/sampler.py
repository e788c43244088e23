"""The order of the images of an epoch where each is looked at several times."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

__all__ = ["RepeatedSampler"]


class RepeatedSampler(Sampler[int]):
    """Repeated augmentation: the looks at an image follow each other, and so share a batch or its neighbour.

    `Hoffer et al. 2020` - https://arxiv.org/abs/1901.09335; an epoch has as many looks as there are images, at a part
    of them that is another one each epoch, as in DeiT.

    Args:
        size: how many images.
        repeats: looks at each.
        seed: of the order, which is a function of seed and epoch alone.
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
        """Image i at its look number r is index i + r size."""
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        looks = order[:, None] + self.size * torch.arange(self.repeats)
        return iter(looks.flatten()[: self.size].tolist())
