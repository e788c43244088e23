"""A stream has the stored training images in another order, without storing them."""

import pytest
import torch
from torch.utils.data import DataLoader

from diffvit_timm.data.augment import train_transform
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.images import ImageDataset
from diffvit_timm.data.stream import Stream, StreamedImages
from diffvit_timm.errors import InputError

CONFIG = dict(
    input_size=(3, 16, 16), interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0, crop_mode="center"
)


@pytest.fixture
def streamed(stream_folder):
    """36 training images, streamed with 20 per epoch; 30 test images, of which 3 are for validation."""
    return load_splits(str(stream_folder), stream=20)


def read(images, count, workers=0):
    """Return the images and labels of the first batches of 6."""
    loader = iter(DataLoader(images.rows, batch_size=6, collate_fn=images.collate, num_workers=workers))
    batches = [next(loader) for _ in range(count)]
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_only_the_training_images_are_streamed_and_a_tenth_of_the_test_split_is_for_validation(streamed, stream_folder):
    assert isinstance(streamed.train, Stream)
    assert len(streamed.train) == 20
    assert (len(streamed.val), len(streamed.test)) == (3, 27)
    assert streamed.class_names == load_splits(str(stream_folder)).class_names


def test_a_stream_has_the_stored_images_in_another_order_and_then_starts_again(streamed, stream_folder):
    plain = train_transform("none", CONFIG)
    images, labels = read(StreamedImages(streamed.train, plain), 12)
    stored = load_splits(str(stream_folder))
    wanted = [ImageDataset(split, plain) for split in (stored.train, stored.val)]
    pairs = sorted((x.sum().item(), y) for dataset in wanted for x, y in dataset)
    for half in (slice(0, 36), slice(36, 72)):
        seen = sorted(zip(images[half].sum(dim=(1, 2, 3)).tolist(), labels[half].tolist(), strict=True))
        assert seen == [(pytest.approx(x, abs=1e-3), y) for x, y in pairs]
    assert labels[:12].unique().numel() == 3  # the files are sorted by class


def test_order_and_augmentation_repeat_with_the_seed_and_differ_between_passes(streamed):
    crop = train_transform("crop+flip", CONFIG)
    first, again, other = (read(StreamedImages(streamed.train, crop, seed=s), 12)[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not any(torch.equal(a, b) for a in first[:36] for b in first[36:])


def test_the_same_number_of_workers_reads_the_same_stream_again(streamed):
    images = StreamedImages(streamed.train, train_transform("crop+flip", CONFIG))
    assert torch.equal(read(images, 4, workers=1)[0], read(images, 4, workers=1)[0])


def test_a_stream_without_test_images_is_refused(make_image_folder):
    with pytest.raises(InputError, match="has no test split"):
        load_splits(str(make_image_folder(train=4)), stream=4)
