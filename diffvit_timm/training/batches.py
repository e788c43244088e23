"""The batches of a training, on accelerate: epochs in an order of their own, or a stream without end."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.images import ImageDataset, SmallImages
from ..data.sampler import RepeatedSampler
from ..data.stream import StreamedImages
from ..errors import InputError
from .config import TrainConfig

__all__ = ["TrainingBatches", "evaluation_batches"]

Images = ImageDataset | SmallImages | StreamedImages


class TrainingBatches:
    """The batches of an epoch, this process's part of each.

    Args:
        images: of `training_images`.
        config: what to do.
        accelerator: of `make_accelerator`.

    Raises:
        InputError: fewer images than a batch, or a stream whose epoch has no batch.
    """

    def __init__(self, images: Images, config: TrainConfig, accelerator: Accelerator) -> None:
        self.images: Any = images
        self.streams = isinstance(images, StreamedImages)
        if config.batch_size > len(images):
            raise InputError(f"--batch-size {config.batch_size} is more than the {len(images)} training images")
        sampler = None
        if config.repeated_augmentation > 1:
            sampler = RepeatedSampler(len(images), config.repeated_augmentation, config.data_seed)
        shuffle = sampler is None and not self.streams
        self.loader: Any = accelerator.prepare(
            _loader(images, config, sampler=sampler, shuffle=shuffle, persistent_workers=config.workers > 0)
        )
        at_once = config.batch_size * accelerator.num_processes
        self.per_epoch = len(images) // at_once if self.streams else len(self.loader)
        if not self.per_epoch:
            raise InputError(
                f"--stream {config.stream} is less than --batch-size {config.batch_size} of each of "
                f"{accelerator.num_processes} processes"
            )
        # of all processes, on average: the last batch of an epoch may be a smaller one, a stream has none such
        self.images_an_update = at_once if self.streams else len(images) / self.per_epoch
        self.stream: Iterator | None = None  # the batches of a stream, from its first on

    def of_epoch(self, epoch: int, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of an epoch after its first `done`; a stream goes on from the last epoch's, and on."""
        if not self.streams:
            self.loader.set_epoch(epoch)  # the order
            self.images.set_epoch(epoch)  # the augmentation: accelerate forgets the dataset of a sharded sampler
            return self._from(done)
        if self.stream is None:
            self.stream = self._from(epoch * self.per_epoch + done)
        return self.stream

    def _from(self, done: int) -> Iterator:
        return iter(skip_first_batches(self.loader, done) if done else self.loader)


def evaluation_batches(images: Images, config: TrainConfig, accelerator: Accelerator) -> Any:
    """A prepared DataLoader of `evaluation_images`, in their order."""
    return accelerator.prepare(_loader(images, config))


def _loader(images: Any, config: TrainConfig, **order: Any) -> DataLoader:
    return DataLoader(
        images.rows if isinstance(images, StreamedImages) else images,
        batch_size=config.batch_size,
        num_workers=config.workers,
        collate_fn=images.collate,
        worker_init_fn=_limit_cv2_threads,
        pin_memory=torch.cuda.is_available(),
        **order,
    )


def _limit_cv2_threads(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # a pool of its own in each worker only fights the others for the cores
