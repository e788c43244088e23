"""The batches of a training, on accelerate: shuffled epochs of stored images, or an endless stream."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.images import ImageDataset, SmallImages
from ..data.sampler import BalancedSampler, RepeatedSampler
from ..data.stream import StreamedImages
from ..errors import InputError
from .config import TrainConfig

__all__ = ["TrainingBatches", "evaluation_batches"]

Images = ImageDataset | SmallImages | StreamedImages


class TrainingBatches:
    """The batches of each epoch, of which every process gets its part.

    Args:
        images: images from `training_images`.
        config: batch size, workers, seed and repeated augmentation.
        accelerator: accelerator from `make_accelerator`.

    Attributes:
        per_epoch: number of updates per epoch.
        images_per_update: mean number of images per update, over all processes.

    Raises:
        InputError: fewer images than a batch, or a stream whose epoch has no batch.
    """

    def __init__(self, images: Images, config: TrainConfig, accelerator: Accelerator) -> None:
        self.images: Any = images
        self.is_stream = isinstance(images, StreamedImages)
        batch_size, workers, repeats = config.optim.batch_size, config.data.workers, config.data.repeated_augmentation
        if batch_size > len(images):
            raise InputError(f"`batch_size={batch_size}` is more than the {len(images)} training images")
        sampler: Any = None
        if repeats > 1:
            sampler = RepeatedSampler(len(images), repeats, config.run.data_seed)
        elif config.data.class_balance == "sampler" and not isinstance(images, StreamedImages):
            sampler = BalancedSampler(images.labels, config.run.data_seed)
        shuffle = sampler is None and not self.is_stream
        self.loader: Any = accelerator.prepare(
            _loader(images, batch_size, workers, sampler=sampler, shuffle=shuffle, persistent_workers=workers > 0)
        )
        total_batch = batch_size * accelerator.num_processes
        self.per_epoch = len(images) // total_batch if self.is_stream else len(self.loader)
        if not self.per_epoch:
            raise InputError(
                f"`stream={config.data.stream}` is less than `batch_size={batch_size}` on each of "
                f"{accelerator.num_processes} processes"
            )
        # The last batch of a stored epoch may be smaller; a stream only has whole batches.
        self.images_per_update = total_batch if self.is_stream else len(images) / self.per_epoch
        self.stream: Iterator | None = None  # batches of the stream, which goes on over the epochs

    def of_epoch(self, epoch: int, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the (images, labels) of an epoch after its first `done` batches.

        A stream continues where the last epoch ended, and does not end by itself.
        """
        if not self.is_stream:
            self.loader.set_epoch(epoch)  # the order
            self.images.set_epoch(epoch)  # the augmentation: accelerate forgets the dataset of a sharded sampler
            return self._skip(done)
        if self.stream is None:
            self.stream = self._skip(epoch * self.per_epoch + done)
        return self.stream

    def _skip(self, done: int) -> Iterator:
        return iter(skip_first_batches(self.loader, done) if done else self.loader)


def evaluation_batches(images: Images, config: TrainConfig, accelerator: Accelerator) -> Any:
    """Return a prepared DataLoader of images from `evaluation_images`, in their order."""
    return accelerator.prepare(_loader(images, config.optim.batch_size, config.data.workers))


def _loader(images: Any, batch_size: int, workers: int, **order: Any) -> DataLoader:
    return DataLoader(
        images.rows if isinstance(images, StreamedImages) else images,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=images.collate,
        worker_init_fn=_limit_cv2_threads,
        pin_memory=torch.cuda.is_available(),
        **order,
    )


def _limit_cv2_threads(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # a thread pool in each worker would only compete with the others for the cores
