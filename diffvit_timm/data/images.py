"""The images of a split, decoded, augmented and normalised: one at a time, or small images in batches from memory."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from .augment import Transform
from .decoding import decode_image
from .labels import target_of

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["BATCHED", "MODES", "SMALL", "ImageDataset", "SmallImages", "decode_all"]

SMALL = 64  # largest side in pixels of images that are decoded once and kept in memory
BATCHED = {"shift", "flip", "cutout"}  # augmentation steps that SmallImages applies to a whole batch

MODES = {1: "L", 3: "RGB"}  # PIL's mode for a number of channels


class _EpochDataset(torch.utils.data.Dataset):
    """A dataset whose augmentation differs in every epoch.

    Indices beyond the length are further augmented copies of the same images (see `RepeatedSampler`).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        # In shared memory, so that persistent workers of a DataLoader see the new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        # Python's default iteration stops at an IndexError, which never comes: every index is valid.
        return (self[index] for index in range(len(self)))


class ImageDataset(_EpochDataset):
    """Decoded and transformed images of one split.

    Args:
        split: a split of `Splits`.
        transform: image and seed -> tensor (C, H, W).
        in_chans: 1 (grey) or 3 (RGB).
        seed: seed of the augmentation, which depends only on seed, epoch and index.
    """

    collate = staticmethod(default_collate)

    def __init__(self, split: "Dataset", transform: Transform, in_chans: int = 3, seed: int = 0) -> None:
        super().__init__(seed)
        self.split = split
        self.transform = transform
        self.mode = MODES[in_chans]
        self.target = target_of(split.features)

    @property
    def labels(self) -> list[int]:
        """The class index of every image; only of a split with one label per image."""
        return self.split["label"][:]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        row = self.split[index % len(self.split)]
        seed = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0]
        image = decode_image(row["image"], self.mode, f"image {index} of split {self.split.split}")
        return self.transform(image, int(seed)), self.target(row["label"])


def _identity(batch: Any) -> Any:
    return batch


class SmallImages(_EpochDataset):
    """Small images of one size, decoded in memory and augmented in batches: faster than decoding them one at a time.

    Args:
        pixels: (n, C, H, W), uint8.
        labels: (n,), class indices; or (n, classes) for several labels per image, as `label_targets` returns them.
        steps: augmentation steps, all of them in BATCHED.
        mean, std: one number per channel, for images in [0, 1].
        seed: seed of the augmentation, which depends only on seed, epoch and index.
    """

    collate = staticmethod(_identity)  # __getitems__ returns whole batches

    def __init__(self, pixels: Tensor, labels: Tensor, steps: tuple[str, ...], mean, std, seed: int = 0) -> None:
        super().__init__(seed)
        self.pixels = pixels
        self.labels = labels
        self.steps = steps
        self.mean, self.std = (torch.tensor(value).view(-1, 1, 1) for value in (mean, std))  # (C, 1, 1)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return the normalised images (B, C, H, W) and their labels. A DataLoader calls this for a whole batch."""
        rows = torch.tensor(indices) % len(self)
        images = self.pixels[rows]
        draws = self._draws(indices) if self.steps else torch.empty(0, 5)  # (B, 5)
        if "shift" in self.steps:
            images = _shifted(images, draws[:, 0], draws[:, 1])
        if "flip" in self.steps:
            images = torch.where(draws[:, 2].view(-1, 1, 1, 1) < 0.5, images.flip(-1), images)
        images = (images / 255 - self.mean) / self.std
        if "cutout" in self.steps:  # after the normalisation, so that 0 is the mean colour
            images = _cut_out(images, draws[:, 3], draws[:, 4])
        return images, self.labels[rows]

    def _draws(self, indices: list[int]) -> Tensor:
        """Return five random numbers in [0, 1) per image, (B, 5)."""
        states = [np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(5) for index in indices]
        return torch.from_numpy(np.stack(states) / 2**32)


def _spans(draws: Tensor, starts: int, length: int) -> Tensor:
    """Return `length` consecutive positions per image from a random start in [0, starts): (B,) -> (B, length)."""
    return (draws * starts).long()[:, None] + torch.arange(length)


def _shifted(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pad the images with an eighth of their side in black, and crop at random to their size, (B, C, H, W).

    Args:
        images: (B, C, H, W).
        rows, columns: (B,), random numbers in [0, 1) for the position of the crop.
    """
    height, width = images.shape[-2:]
    down, right = height // 8, width // 8
    padded = F.pad(images, [right, right, down, down])
    y, x = _spans(rows, 2 * down + 1, height), _spans(columns, 2 * right + 1, width)  # (B, H), (B, W)
    image = torch.arange(len(images)).view(-1, 1, 1)
    # Index tensors on both sides of a slice move its axis to the end: (B, H, W, C).
    return padded[image, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _cut_out(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Fill a square of half the side with 0, the mean colour.

    Paper: `Cutout` - https://arxiv.org/abs/1708.04552

    Args:
        images: (B, C, H, W), normalised.
        rows, columns: (B,), random numbers in [0, 1) for the position of the square.
    """
    height, width = images.shape[-2:]
    y, x = (  # (B, H) and (B, W), True in the square
        torch.zeros(len(images), side, dtype=torch.bool).scatter_(
            1, _spans(draws, side - side // 2 + 1, side // 2), True
        )
        for draws, side in ((rows, height), (columns, width))
    )
    return images.masked_fill((y[:, :, None] & x[:, None, :]).unsqueeze(1), 0.0)


def decode_all(split: "Dataset", in_chans: int) -> Tensor | None:
    """Decode all images of a split into one tensor, (n, C, H, W), uint8.

    Returns:
        The images, or None if their sizes differ.

    Raises:
        InputError: an image cannot be decoded.
    """
    shape, rows = None, []
    for index, image in enumerate(split["image"]):
        pixels = np.asarray(decode_image(image, MODES[in_chans], f"image {index} of split {split.split}"))
        shape = pixels.shape if shape is None else shape
        if pixels.shape != shape:
            return None
        rows.append(pixels)
    decoded = torch.from_numpy(np.stack(rows))  # (n, H, W) or (n, H, W, 3)
    return decoded.unsqueeze(1) if in_chans == 1 else decoded.permute(0, 3, 1, 2).contiguous()
