"""Samplers for repeated augmentation, and for classes that are drawn equally often."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["BalancedSampler", "RepeatedSampler"]


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


class BalancedSampler(Sampler[int]):
    """Draws every class with the same probability, and then one of its images, with replacement.

    An epoch has as many draws as there are images. An image that is drawn again is augmented anew.

    Args:
        labels: class index of every image.
        seed: seed of the draws; the epoch is added to it.
    """

    def __init__(self, labels: Sequence[int] | Tensor, seed: int = 0) -> None:
        found = torch.as_tensor(labels)
        self.by_class = found.argsort(stable=True)  # (n,), the images of each class in a row
        self.counts = found.unique(return_counts=True)[1]  # (classes with images,)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.by_class)

    def __iter__(self) -> Iterator[int]:
        """Yield indices: the draw number r of image i, counted from 0, has the index i + r * size."""
        size, generator = len(self), torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.randint(len(self.counts), (size,), generator=generator)  # classes
        places = (torch.rand(size, generator=generator, dtype=torch.float64) * self.counts[drawn]).long()
        images = self.by_class[(self.counts.cumsum(0) - self.counts)[drawn] + places]
        ordered, order = images.sort(stable=True)
        copies = torch.empty_like(images)
        copies[order] = torch.arange(size) - torch.searchsorted(ordered, ordered)
        return iter((images + size * copies).tolist())
