"""Digits among distractors: the digit is whole, its mask is its ink, and the same seed gives the same images."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from diffvit_timm.data.clutter import clutter_splits
from diffvit_timm.data.config import DataConfig, DatasetConfig
from diffvit_timm.data.loading import evaluation_images, image_batches, mask_batches, training_images
from diffvit_timm.data.splits import Splits
from diffvit_timm.errors import InputError

DATA_CONFIG = dict(
    input_size=(1, 20, 20), interpolation="bilinear", mean=(0.0,), std=(1.0,), crop_pct=1.0, crop_mode="center"
)


def digit_pixels(count, side=12, seed=0):
    """Bright strokes on black, one picture per digit, (count, side, side)."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((count, side, side), np.uint8)
    for picture in pixels:
        row, column = rng.integers(2, side - 2, size=2)
        picture[row, 2:-2] = picture[2:-2, column] = rng.integers(1, 256)
    return pixels


def split_of(pixels, name="train"):
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(num_classes=3)})
    rows = {"image": [Image.fromarray(picture) for picture in pixels], "label": [i % 3 for i in range(len(pixels))]}
    return datasets.Dataset.from_dict(rows, split=datasets.NamedSplit(name)).cast(features)


@pytest.fixture(scope="module")
def digits():
    """12 train, 6 val and 8 test digits of 12 x 12 pixels."""
    return Splits(*(split_of(digit_pixels(n, seed=n), name) for n, name in ((12, "train"), (6, "val"), (8, "test"))),
                  class_names=["0", "1", "2"])  # fmt: skip


def read_mask(row):
    """Return which pixels are ink of the digit, (side, side)."""
    return np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])).convert("L")) > 0


def pixels_of(split):
    return [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in split["image"]]


def test_the_mask_is_the_ink_of_the_digit_which_is_whole(digits):
    cluttered = clutter_splits(digits, side=20, pieces=5, piece_side=4)
    for role in ("train", "val", "test"):
        split, before = getattr(cluttered, role), pixels_of(getattr(digits, role))
        assert split["label"] == getattr(digits, role)["label"]
        for row, image, digit in zip(split, pixels_of(split), before, strict=True):
            mask = read_mask(row)
            assert image.shape == mask.shape == (20, 20)
            assert mask.dtype == bool
            (top, left), ink = np.argwhere(mask).min(axis=0), digit > 0
            rows, columns = np.argwhere(ink).max(axis=0) - np.argwhere(ink).min(axis=0) + 1
            inside = digit[ink.any(axis=1)][:, ink.any(axis=0)]
            np.testing.assert_array_equal(mask[top : top + rows, left : left + columns], inside > 0)
            assert mask.sum() == ink.sum()
            assert (image[top : top + rows, left : left + columns] >= inside).all()
            assert ((image > 0) & ~mask).any()  # some distractor


def test_without_pieces_the_image_is_the_digit_alone(digits):
    for row, image in zip(*(lambda split: (split, pixels_of(split)))(clutter_splits(digits, 20, 0).test), strict=True):
        np.testing.assert_array_equal(image > 0, read_mask(row))


def test_the_pieces_are_of_other_digits_and_at_most_as_large_as_asked(digits):
    grey = np.stack([np.full((6, 6), 10 * (i + 1), np.uint8) for i in range(8)])
    splits = Splits(*[split_of(grey)] * 3, class_names=["0", "1", "2"])
    sources = set()
    for index, image in enumerate(pixels_of(clutter_splits(splits, side=40, pieces=1, piece_side=3).test)):
        values, counts = np.unique(image, return_counts=True)
        others = {int(value): int(count) for value, count in zip(values, counts, strict=True) if value}
        assert others.pop(10 * (index + 1)) <= 36
        assert all(count <= 9 for count in others.values())
        sources |= set(others)
    assert len(sources) > 2


def test_the_same_seed_gives_the_same_images_and_another_seed_and_split_other_ones(digits):
    same = Splits(digits.train, digits.train, digits.train, digits.class_names)
    first, again, other = (clutter_splits(same, 20, 3, 4, seed) for seed in (0, 0, 1))
    assert first.fingerprints == again.fingerprints
    assert len({*first.fingerprints.values(), *other.fingerprints.values()}) == 6


def test_digits_lie_everywhere_on_the_field(digits):
    squares = split_of(np.full((400, 12, 12), 255, np.uint8))
    cluttered = clutter_splits(Splits(digits.train, digits.val, squares, digits.class_names), side=20, pieces=0)
    assert np.any([read_mask(row) for row in cluttered.test], axis=0).all()
    assert not np.all([read_mask(row) for row in cluttered.test], axis=0)[:8].any()


def test_a_trainer_reads_the_images_from_memory_and_masks_stay_with_their_images(digits):
    cluttered = clutter_splits(digits, side=20, pieces=2)
    images = training_images(cluttered.train, "shift", DATA_CONFIG)
    assert images[0][0].shape == (1, 20, 20)
    for row, (image, label) in zip(cluttered.test, evaluation_images(cluttered.test, DATA_CONFIG), strict=True):
        assert (image[0].numpy()[read_mask(row)] > 0).all()
        assert label == row["label"]


@pytest.mark.parametrize("side", [20, 32])
def test_masks_are_resized_and_cropped_as_the_images_are(digits, tiny_model, side):
    cluttered = clutter_splits(digits, side=20, pieces=0)
    model = tiny_model(in_chans=1, img_size=side)
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_pct": 0.8, "mean": (0.0,), "std": (1.0,)}
    (images,), (masks,) = image_batches(model, cluttered.test), mask_batches(model, cluttered.test)
    assert masks.shape == (8, side, side)
    lit = images[:, 0] > 0.5  # where the digit is bright, and not in the halo that the interpolation makes
    assert lit.any()
    assert (masks[lit] > 0).all()
    assert (masks.flatten(1).amax(1) <= 1).all()


def test_a_digit_without_ink_and_a_split_of_one_digit_are_no_errors(digits):
    blank = split_of(np.zeros((2, 6, 6), np.uint8))
    cluttered = clutter_splits(Splits(blank, digits.val, split_of(digit_pixels(1)), digits.class_names), side=20)
    assert not read_mask(cluttered.train[0]).any()
    assert read_mask(cluttered.test[0]).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(pieces=-1), "`pieces=-1` must not be negative"),
        (dict(piece_side=0), "`piece_side=0` must be between 1 and `side=40`"),
        (dict(piece_side=41), "`piece_side=41` must be between 1 and `side=40`"),
        (
            dict(side=11),
            "`dataset` has images of 12 x 12 pixels, which do not fit on the field: take images of at most 11 x 11 "
            "pixels, or raise `side=11`",
        ),
    ],
)
def test_a_field_that_is_too_small_is_refused(digits, settings, message):
    with pytest.raises(InputError) as caught:
        clutter_splits(digits, **settings)
    assert str(caught.value) == message


def test_images_of_several_sizes_are_refused(splits):
    with pytest.raises(InputError, match="`dataset` has images of several sizes: clutter needs digits of one size"):
        clutter_splits(splits)


@pytest.fixture
def digit_folder(tmp_path):
    """Parquet files of 30 train and 6 test digits."""
    for name, count in (("train", 30), ("test", 6)):
        split_of(digit_pixels(count), name).to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    return tmp_path


def test_a_folder_with_clutter_is_a_dataset(digit_folder):
    digits, cluttered = DatasetConfig(str(digit_folder)).load(), DatasetConfig(f"{digit_folder}+clutter").load()
    assert cluttered.fingerprints == clutter_splits(digits).fingerprints
    assert cluttered.class_names == digits.class_names
    assert pixels_of(cluttered.val)[0].shape == (40, 40)


def test_a_stream_with_clutter_is_refused():
    with pytest.raises(InputError) as caught:
        DataConfig("clutter", stream=9)
    assert str(caught.value) == "`dataset=ylecun/mnist+clutter` needs stored images: leave out `stream`"


def test_a_folder_whose_own_name_ends_like_that_is_itself(digit_folder):
    folder = digit_folder.rename(digit_folder.with_name("digits+clutter"))
    assert pixels_of(DatasetConfig(str(folder)).load().test)[0].shape == (12, 12)
