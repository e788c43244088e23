"""Datasets of images with masks: their layouts, and one clear error for what cannot be used."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffvit_timm.data.masks import IGNORED, MaskedImages, collate, decode_mask, load_masks
from diffvit_timm.errors import InputError

CONFIG = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def write_pairs(folder, splits=("train", "test"), count=3, extension="jpg"):
    """Write images of 12 x 10 pixels whose left half is class 1."""
    for split in splits:
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((10, 12), np.uint8)
            mask[:, :6] = 1
            mask[0, 0] = IGNORED
            Image.fromarray(np.stack(3 * [200 * mask], -1)).save(folder / split / "images" / f"{i}.{extension}")
            Image.fromarray(mask).save(folder / split / "masks" / f"{i}.png")
    return folder


def stored(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def test_a_folder_of_images_and_masks_is_paired_by_name(tmp_path):
    splits = load_masks(str(write_pairs(tmp_path)))
    assert (len(splits.train), len(splits.test), splits.class_names) == (3, 3, ["class 0", "class 1"])
    row = splits.train[2]
    assert [row[column]["path"].rsplit("/", 2)[1:] for column in ("image", "mask")] == [
        ["images", "2.jpg"], ["masks", "2.png"]
    ]  # fmt: skip


def test_the_validation_images_are_tested_without_a_test_split_and_names_come_from_a_file(tmp_path):
    write_pairs(tmp_path, ("training", "val"))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    splits = load_masks(str(tmp_path))
    assert (len(splits.test), splits.class_names) == (3, ["sky", "road", "car"])


@pytest.mark.parametrize(("column", "given"), [("annotation", "auto"), ("other", "other")])
def test_parquet_files_with_a_column_of_masks_are_read(tmp_path, column, given):
    rows = {"image": 2 * [stored(np.zeros((4, 6, 3), np.uint8))], column: 2 * [stored(np.eye(4, 6, dtype=np.uint8))]}
    data = Dataset.from_dict(rows, features=Features({name: ImageFeature() for name in rows}))
    for split in ("train", "test"):
        DatasetDict({split: data})[split].to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    splits = load_masks(str(tmp_path), mask_column=given)
    np.testing.assert_array_equal(decode_mask(splits.train[0]["mask"], "x"), np.eye(4, 6))


def test_an_image_is_normalised_and_a_mask_keeps_its_size(tmp_path):
    splits = load_masks(str(write_pairs(tmp_path, extension="png")))
    images, masks = collate([MaskedImages(splits.test, 2, CONFIG)[i] for i in range(2)])
    assert images.shape == (2, 3, 8, 8)
    assert [tuple(mask.shape) for mask in masks] == [(10, 12), (10, 12)]
    assert images[0, :, 4, 0].tolist() == pytest.approx(3 * [2 * 200 / 255 - 1], abs=0.02)
    assert masks[0].dtype == torch.int64
    assert masks[0].unique().tolist() == [0, 1, IGNORED]


def test_the_augmentation_depends_on_seed_epoch_and_index_only(tmp_path):
    splits = load_masks(str(write_pairs(tmp_path)))
    seeds = []
    images = MaskedImages(
        splits.train, 2, CONFIG, lambda image, mask, seed: seeds.append(seed) or (image, mask), seed=3
    )
    for epoch, index in ((0, 0), (0, 1), (1, 0), (0, 0)):
        images.epoch = epoch
        images[index]
    assert seeds[0] == seeds[3]
    assert len(set(seeds)) == 3


def test_a_palette_of_colours_gives_its_indices():
    image = Image.fromarray(np.array([[0, 7], [255, 3]], np.uint8), "L").convert("P")
    image.putpalette([i * 3 % 256 for i in range(768)])
    buffer = io.BytesIO()
    image.save(buffer, "png")
    np.testing.assert_array_equal(decode_mask({"bytes": buffer.getvalue(), "path": None}, "x"), [[0, 7], [255, 3]])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2, 3), np.uint8), "mask 5 has 3 channels: a mask has one"),
        (np.full((2, 2), 300, np.uint16), "mask 5 has the value 300: class indices go up to 254"),
    ],
)
def test_masks_that_are_no_class_indices_are_refused(array, message):
    with pytest.raises(InputError, match=message):
        decode_mask(stored(array), "mask 5")


def test_a_broken_mask_is_named(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "train" / "masks" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"train/masks/1\.png does not decode"):
        load_masks(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "train/masks/1.png").unlink(), "train/images has 1, which .*train/masks does not have"),
        (lambda f: (f / "train/images/1.jpg").unlink(), "train/masks has 1, which .*train/images does not have"),
        (
            lambda f: (f / "classes.txt").write_text("sky\n"),
            "classes.txt has 1 names, but the training masks have values",
        ),
        (lambda f: (f / "classes.txt").write_bytes(b"\xff\xfe"), "classes.txt is not UTF-8 text"),
        (
            lambda f: (f / "test").rename(f / "more"),
            r"has the splits \['train'\], but needs train, and test or validation",
        ),
        (lambda f: (f / "test/masks").rename(f / "test/labels"), "test has no folder masks"),
    ],
)
def test_folders_that_are_not_complete_are_refused(tmp_path, change, message):
    change(write_pairs(tmp_path))
    with pytest.raises(InputError, match=message):
        load_masks(str(tmp_path))


def test_a_folder_without_masks_is_refused(image_folder):
    with pytest.raises(
        InputError, match=r"has the image columns \['image'\], but needs one of images and one of masks"
    ):
        load_masks(str(image_folder))


def test_masks_of_one_value_are_refused(tmp_path):
    write_pairs(tmp_path)
    for path in tmp_path.glob("train/masks/*"):
        Image.fromarray(np.zeros((10, 12), np.uint8)).save(path)
    with pytest.raises(InputError, match="all training masks have only the value 0"):
        load_masks(str(tmp_path))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((9, 12), np.uint8), r"0\.png has \(12, 9\) pixels, but its image has \(12, 10\)"),
        (np.full((10, 12), 7, np.uint8), r"0\.png has the value 7, but there are only 2 classes"),
    ],
)
def test_a_mask_that_does_not_fit_its_image_or_the_classes_is_named(tmp_path, mask, message):
    splits = load_masks(str(write_pairs(tmp_path)))
    Image.fromarray(mask).save(tmp_path / "test" / "masks" / "0.png")
    with pytest.raises(InputError, match=message):
        MaskedImages(splits.test, 2, CONFIG)[0]
