"""Noise in labels and pixels: the requested amount, and the same every time."""

import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffvit_timm.data.config import DataConfig
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.noise import with_input_noise, with_label_noise
from diffvit_timm.training.recipe import _load_splits


def split_of(images, classes=4):
    rows = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, format="png")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    features = Features({"image": ImageFeature(decode=False), "label": ClassLabel(num_classes=classes)})
    labels = [i % classes for i in range(len(rows))]
    return Dataset.from_dict({"image": rows, "label": labels}, features=features)


def pixels(row):
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])), dtype=float)


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_exactly_the_requested_share_of_labels_is_wrong_and_all_other_classes_are_equally_likely(rate):
    split = split_of([Image.new("L", (2, 2))] * 1200)
    noisy = with_label_noise(split, rate)
    shifts = (np.array(noisy["label"]) - np.array(split["label"])) % 4
    assert (shifts > 0).mean() == rate
    if rate:
        np.testing.assert_allclose(np.bincount(shifts)[1:] / (rate * 1200), 1 / 3, atol=0.07)
    assert noisy.features == split.features
    assert noisy["label"] == with_label_noise(split, rate)["label"]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pixels_have_gaussian_noise_of_the_requested_deviation_and_grey_stays_grey(mode):
    split = split_of([Image.new(mode, (40, 40), "gray"), Image.new(mode, (30, 20), "red")])
    noisy = with_input_noise(split, 0.1)
    assert noisy[0]["label"] == 0
    assert noisy.features == split.features
    error = pixels(noisy[0]) - pixels(split[0])[..., 0].mean() if mode == "RGB" else pixels(noisy[0]) - pixels(split[0])
    assert error.ndim == 2  # the first image is grey in both modes
    assert abs(error.std() / 25.5 - 1) < 0.05
    assert abs(error.mean()) < 2
    assert pixels(noisy[1]).shape == pixels(split[1]).shape


def test_the_noise_of_an_image_depends_only_on_the_image():
    images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    noisy = with_input_noise(split_of(images), 0.2)
    turned = with_input_noise(split_of(images[::-1]), 0.2)
    for row, same in zip(noisy, reversed(list(turned)), strict=True):
        assert row["image"] == same["image"]
    differences = [pixels(noisy[i]) - pixels({"image": split_of(images)[i]["image"]}) for i in (0, 1)]
    assert not np.array_equal(*differences)


def test_a_training_gets_wrong_labels_in_train_and_validation_and_noise_in_all_images(image_folder):
    config = DataConfig(str(image_folder), label_noise=0.5, input_noise=0.3)
    clean, noisy = load_splits(str(image_folder)), _load_splits(config)
    changed = lambda name: np.mean(np.array(getattr(clean, name)["label"]) != getattr(noisy, name)["label"])  # noqa: E731
    assert (changed("train"), changed("val"), changed("test")) == (0.5, 0.5, 0.0)
    for name in ("train", "val", "test"):
        before, after = getattr(clean, name)[0]["image"], getattr(noisy, name)[0]["image"]
        difference = pixels({"image": after}) - np.asarray(Image.open(before["path"]), dtype=float)
        assert 0.15 < difference.std() / 255 < 0.35  # clipping reduces it
