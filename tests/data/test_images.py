"""Small images from memory equal those that are decoded one by one, and their augmentation is reproducible."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from diffvit_timm.data.augment import eval_transform
from diffvit_timm.data.images import ImageDataset, SmallImages
from diffvit_timm.data.loading import evaluation_images, training_images
from diffvit_timm.data.sampler import RepeatedSampler
from diffvit_timm.errors import InputError

CONFIG = dict(
    input_size=(3, 32, 32), interpolation="bilinear", mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 0.125), crop_pct=1.0,
    crop_mode="center"
)  # fmt: skip


def split_of(*pictures):
    """Return a split of these arrays, with the classes 0, 1, 2, ..."""
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(num_classes=99)})
    rows = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(p) for p in pictures], "label": [*range(len(pictures))]}
    )
    return rows.cast(features)


@pytest.fixture
def small():
    """A split of 12 random images, 32 x 32."""
    rng = np.random.default_rng(0)
    return split_of(*rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_from_memory_equal_those_of_timms_transform(small, channels):
    config = {
        **CONFIG,
        "input_size": (channels, 32, 32),
        "mean": CONFIG["mean"][:channels],
        "std": CONFIG["std"][:channels],
    }
    kept, one_by_one = evaluation_images(small, config), ImageDataset(small, eval_transform(config), channels)
    assert isinstance(kept, SmallImages)
    for (image, label), (expected, expected_label) in zip(kept, one_by_one, strict=True):
        torch.testing.assert_close(image, expected, atol=1e-6, rtol=1e-6)
        assert label == expected_label


@pytest.mark.parametrize(
    "why", [{"policy": "flip+color"}, {"crop_pct": 0.9}, {"input_size": (3, 64, 64)}, {"input_size": (3, 96, 96)}]
)
def test_images_that_need_other_transforms_are_decoded_one_by_one(small, why):
    policy = why.pop("policy", "flip")
    dataset = training_images(small, policy, {**CONFIG, **why})
    assert isinstance(dataset, ImageDataset)
    assert dataset[0][0].shape[1:] == why.get("input_size", (3, 32, 32))[1:]


def test_images_of_several_sizes_are_decoded_one_by_one():
    split = split_of(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 40, 3), np.uint8))
    dataset = training_images(split, "shift", CONFIG)
    assert isinstance(dataset, ImageDataset)
    assert [image.shape for image, _ in dataset] == [(3, 32, 32)] * 2


def epoch_of(dataset, epoch, workers=0, indices=None):
    dataset.set_epoch(epoch)
    loader = DataLoader(dataset, batch_size=5, collate_fn=dataset.collate, num_workers=workers, sampler=indices)
    return torch.cat([images for images, _ in loader])


@pytest.mark.parametrize("policy", ["shift", "flip", "cutout", "shift+flip+cutout"])
def test_draws_depend_only_on_seed_epoch_and_index(small, policy):
    dataset = training_images(small, policy, CONFIG, seed=1)
    first = epoch_of(dataset, 0)
    assert torch.equal(first, epoch_of(dataset, 0, workers=2))
    assert torch.equal(first.flip(0), epoch_of(dataset, 0, indices=range(11, -1, -1)))
    assert not torch.equal(first, epoch_of(dataset, 1))
    assert not torch.equal(first, epoch_of(training_images(small, policy, CONFIG, seed=2), 0))


def augmented(pixels, policy, count=400):
    """Return `count` augmented copies of one image, in [0, 1]."""
    dataset = training_images(split_of(pixels), policy, {**CONFIG, "mean": (0.0,) * 3, "std": (1.0,) * 3})
    return dataset.__getitems__(range(count))[0]


def test_a_shift_moves_by_at_most_an_eighth_and_fills_with_black():
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[16, 16] = 255
    places = augmented(pixels, "shift").amax(1).nonzero()
    assert len(places) == 400
    for axis in (1, 2):
        assert set(places[:, axis].tolist()) == set(range(12, 21))
    assert augmented(np.full((32, 32, 3), 255, np.uint8), "shift").min() == 0


def test_a_flip_mirrors_about_half_of_the_images_and_changes_nothing_else():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    straight = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    views = augmented(pixels, "flip")
    mirrored = [torch.equal(view, straight.flip(-1)) for view in views]
    assert 0.4 < np.mean(mirrored) < 0.6
    assert all(one or torch.equal(view, straight) for one, view in zip(mirrored, views, strict=True))


def test_cutout_sets_a_square_of_half_the_side_to_the_mean():
    views = augmented(np.full((32, 32, 3), 255, np.uint8), "cutout")
    assert (views == 0).sum(dim=(1, 2, 3)).tolist() == [3 * 256] * 400
    for edge in (views[:, 0, 0], views[:, 0, -1], views[:, 0, :, 0], views[:, 0, :, -1]):
        assert (edge == 0).any()


def test_an_image_that_does_not_decode_is_named_before_any_training(small, monkeypatch):
    rows = small.to_dict()
    rows["image"][7]["bytes"] = b"no image"
    broken = datasets.Dataset.from_dict(rows, features=small.features)
    with pytest.raises(InputError, match=r"image 7 of split .* does not decode"):
        training_images(broken, "flip", CONFIG)


def test_copies_of_an_image_follow_each_other_and_differ(small):
    sampler = RepeatedSampler(12, repeats=3, seed=5)
    first = list(sampler)
    assert len(first) == len(sampler) == 12
    images = [index % 12 for index in first]
    assert [len(set(images[i : i + 3])) for i in (0, 3, 6, 9)] == [1] * 4
    assert len(set(images)) == 4
    assert len(set(first)) == 12
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    dataset = training_images(small, "shift+flip", CONFIG)
    copies = dataset.__getitems__(first[:3])[0]
    assert not torch.equal(copies[0], copies[1])


def test_an_epoch_is_complete_if_the_repeats_do_not_divide_the_number_of_images():
    assert len(list(RepeatedSampler(10, repeats=3))) == 10
