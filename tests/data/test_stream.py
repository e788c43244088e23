"""A stream has the stored training images in another order, without storing them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features
from datasets import Image as ImageFeature
from torch.utils.data import DataLoader

from diffvit_timm.data.augment import train_transform
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.images import ImageDataset
from diffvit_timm.data.stream import CheckedRows, Stream, StreamedImages
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


BAD_IMAGES = {
    "null": (None, "is empty"),
    "without bytes": ({"bytes": None, "path": None}, "is empty"),
    "no bytes": ({"bytes": b"", "path": None}, "is empty"),
    "no image": ({"bytes": b"hello", "path": None}, "does not decode (no format that Pillow reads)"),
    "truncated": ({"bytes": b"GIF89a\x10\0\x10\0", "path": None}, "does not decode ("),
    "no file": ({"bytes": None, "path": "nowhere.png"}, "does not decode ([Errno 2] "),
}


@pytest.fixture
def stream_with(stream_folder, tmp_path):
    """Function: kind of bad image and split -> the splits of a stream, and the start of the error that is expected."""

    def write(kind, split):
        bad, reason = BAD_IMAGES[kind]
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog", "owl"])})
        for path in sorted(stream_folder.glob("*.parquet")):
            rows = pq.read_table(path).to_pylist()
            if path.name.startswith(split):
                rows = [{**row, "image": bad} for row in rows]
            pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), tmp_path / path.name)
        return load_splits(str(tmp_path), stream=20), reason

    return write


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_of_a_stream_is_an_input_error_that_names_it(stream_with, kind):
    splits, reason = stream_with(kind, "train")
    images = StreamedImages(splits.train, train_transform("none", CONFIG))
    row = next(iter(splits.train.rows))  # without the shuffling, which waits for a thread
    with pytest.raises(InputError) as caught:
        images.collate([{**row, "position": 12}])
    name = "nowhere.png" if kind == "no file" else "image 12 of the stream"
    assert str(caught.value).startswith(f"{name} {reason}")


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_test_image_beside_a_stream_is_an_input_error_that_names_it(stream_with, kind):
    splits, reason = stream_with(kind, "test")
    with pytest.raises(InputError) as caught:
        ImageDataset(splits.test, train_transform("none", CONFIG))[0]
    name = "nowhere.png" if kind == "no file" else "image 0 of split test"
    assert str(caught.value).startswith(f"{name} {reason}")


@pytest.mark.parametrize("error", [pa.ArrowInvalid("Couldn't read\nthe footer is broken"), OSError()])
def test_a_damaged_file_of_a_stream_is_one_line(error):
    def rows():
        yield {"label": 1}
        raise error

    stream = iter(CheckedRows(rows()))
    assert next(stream) == {"label": 1}
    reason = "the footer is broken" if str(error) else "OSError"
    with pytest.raises(InputError) as caught:
        next(stream)
    text = f"the stream of training images cannot be read ({reason}): check its files and the network"
    assert str(caught.value) == text
    assert list(CheckedRows([{"label": 1}])) == [{"label": 1}]


def test_a_row_that_is_refused_keeps_its_message():
    def rows():
        raise InputError("row 7 has no label")
        yield

    with pytest.raises(InputError, match=r"^row 7 has no label$"):
        next(iter(CheckedRows(rows())))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_transform_is_not_blamed_on_the_files_of_a_stream(streamed, workers):
    def broken(image, seed):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        read(StreamedImages(streamed.train, broken), 1, workers)
