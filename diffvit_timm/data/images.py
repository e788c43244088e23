"""The images of a split, decoded, augmented and normalised: one by one, or small ones a batch at a time from memory."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import default_collate

from ..errors import InputError
from .augment import Transform

__all__ = ["BATCHED", "MODES", "SMALL", "ImageDataset", "SmallImages", "decode_all", "decode_image"]

SMALL = 64  # pixels a side, up to which a split is decoded once and kept
BATCHED = {"shift", "flip", "cutout"}  # steps that SmallImages takes for a batch at once

MODES = {1: "L", 3: "RGB"}


class _Epochs(torch.utils.data.Dataset):
    """A dataset that draws anew each epoch.

    Indices beyond the length are further looks at the same images, with draws of their own.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on must see it change

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))  # Python's own way would not end: every index is one


class ImageDataset(_Epochs):
    """Decoded and transformed images of one split.

    Args:
        split: a split of `Splits`.
        transform: image and seed -> tensor.
        in_chans: 1 (grey) or 3 (RGB).
        seed: of the augmentation, which is a function of seed, epoch and index alone.
    """

    collate = staticmethod(default_collate)

    def __init__(self, split: Dataset, transform: Transform, in_chans: int = 3, seed: int = 0) -> None:
        super().__init__(seed)
        self.split = split
        self.transform = transform
        self.mode = MODES[in_chans]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.split[index % len(self.split)]
        seed = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0]
        image = decode_image(row["image"], self.mode, f"image {index} of split {self.split.split}")
        return self.transform(image, int(seed)), row["label"]


def _as_it_is(batch: Any) -> Any:
    return batch


class SmallImages(_Epochs):
    """Images of one size, all in memory, a batch at a time: for images so small that the rest would cost more.

    Args:
        pixels: (n, C, H, W), uint8.
        labels: (n,), class indices.
        names: steps of a policy, all of them in BATCHED.
        mean, std: a number a channel.
        seed: of the augmentation, which is a function of seed, epoch and index alone.
    """

    collate = staticmethod(_as_it_is)  # __getitems__ gives whole batches

    def __init__(self, pixels: Tensor, labels: Tensor, names: tuple[str, ...], mean, std, seed: int = 0) -> None:
        super().__init__(seed)
        self.pixels = pixels
        self.labels = labels
        self.names = names
        self.mean, self.std = (torch.tensor(value).view(-1, 1, 1) for value in (mean, std))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), normalised, and (B,): what a DataLoader asks for in the place of single items."""
        chosen = torch.tensor(indices) % len(self)
        images = self.pixels[chosen]
        draws = self._draws(indices) if self.names else torch.empty(0, 5)
        if "shift" in self.names:
            images = _shifted(images, draws[:, 0], draws[:, 1])
        if "flip" in self.names:
            images = torch.where(draws[:, 2].view(-1, 1, 1, 1) < 0.5, images.flip(-1), images)
        images = (images / 255 - self.mean) / self.std
        if "cutout" in self.names:
            images = _cut_out(images, draws[:, 3], draws[:, 4])
        return images, self.labels[chosen]

    def _draws(self, indices: list[int]) -> Tensor:
        """(B, 5), uniform in [0, 1)."""
        states = [np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(5) for index in indices]
        return torch.from_numpy(np.stack(states) / 2**32)


def _span(draws: Tensor, starts: int, length: int) -> Tensor:
    """(B, length): consecutive places, from one of `starts` on."""
    return (draws * starts).long()[:, None] + torch.arange(length)


def _shifted(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A random part, of the same size, of the images padded with black by an eighth."""
    height, width = images.shape[-2:]
    down, right = height // 8, width // 8
    padded = F.pad(images, [right, right, down, down])
    y, x = _span(rows, 2 * down + 1, height), _span(columns, 2 * right + 1, width)
    image = torch.arange(len(images)).view(-1, 1, 1)
    return padded[image, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _cut_out(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The images with a square of half the side at 0, the mean (https://arxiv.org/abs/1708.04552)."""
    height, width = images.shape[-2:]
    y, x = (
        torch.zeros(len(images), side, dtype=torch.bool).scatter_(
            1, _span(draws, side - side // 2 + 1, side // 2), True
        )
        for draws, side in ((rows, height), (columns, width))
    )
    return images.masked_fill((y[:, :, None] & x[:, None, :]).unsqueeze(1), 0.0)


def decode_all(split: Dataset, in_chans: int) -> Tensor | None:
    """All images of a split, (n, C, H, W), uint8; None if their sizes differ."""
    first, rows = None, []
    for index, image in enumerate(split["image"]):
        pixels = np.asarray(decode_image(image, MODES[in_chans], f"image {index} of split {split.split}"))
        first = pixels.shape if first is None else first
        if pixels.shape != first:
            return None
        rows.append(pixels)
    decoded = torch.from_numpy(np.stack(rows))
    return decoded.unsqueeze(1) if in_chans == 1 else decoded.permute(0, 3, 1, 2).contiguous()


def decode_image(image: dict | None, mode: str, where: str) -> Image.Image:
    """An undecoded image of a split, upright.

    Args:
        image: its bytes or path.
        mode: of PIL, 'L' or 'RGB'.
        where: what to call it in the error, where it has no path.

    Raises:
        InputError: it is empty or does not decode.
    """
    if image is None or not (image["bytes"] or image["path"]):
        raise InputError(f"{where} is empty: take it out of the dataset")
    try:
        with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode in ("I", "F"):
                raise ValueError("its pixels have 32 bits, and no known range: save it with 8 or 16 bits a channel")
            if upright.mode.startswith("I;16"):  # convert would clip, not scale
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")
            return upright.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{image['path'] or where} does not decode ({error}): mend it or take it out of the dataset"
        ) from error
