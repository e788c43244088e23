"""Augmentation depends only on seed, epoch and index; evaluation uses timm's transform."""

import pickle
from importlib import metadata

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy.stats import fisher_exact
from torch.utils.data import DataLoader

from diffvit_timm.data.augment import eval_transform, train_transform
from diffvit_timm.data.images import ImageDataset
from diffvit_timm.data.steps import STEPS, parse_policy
from diffvit_timm.errors import InputError

DATA_CONFIG = dict(
    input_size=(3, 32, 32), interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=0.9, crop_mode="center"
)
POLICIES = [*STEPS, "crop+flip+randaugment+erase"]


def noise(mode="RGB", size=(48, 40)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def epoch_of(dataset, epoch, **loader_kwargs):
    dataset.set_epoch(epoch)
    return torch.cat([images for images, _ in DataLoader(dataset, batch_size=5, **loader_kwargs)])


@pytest.mark.parametrize("policy", POLICIES)
def test_the_number_of_workers_does_not_change_the_training_images(splits, policy):
    dataset = ImageDataset(splits.train, train_transform(policy, DATA_CONFIG), seed=3)
    alone = epoch_of(dataset, 1, num_workers=0)
    assert torch.equal(alone, epoch_of(dataset, 1, num_workers=2))
    assert torch.equal(alone, epoch_of(dataset, 1, num_workers=0))


def test_persistent_workers_augment_differently_in_each_epoch(splits):
    dataset = ImageDataset(splits.train, train_transform("crop", DATA_CONFIG))
    expected = [epoch_of(dataset, epoch) for epoch in (0, 1)]
    loader = DataLoader(dataset, batch_size=5, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        assert torch.equal(torch.cat([images for images, _ in loader]), expected[epoch])


@pytest.mark.parametrize("policy", POLICIES)
def test_every_epoch_and_every_seed_augments_every_image_differently(splits, policy):
    transform = train_transform(policy, DATA_CONFIG)
    first = epoch_of(ImageDataset(splits.train, transform, seed=0), 0)
    for seed, epoch in ((0, 1), (1, 0)):
        other = epoch_of(ImageDataset(splits.train, transform, seed=seed), epoch)
        same = [torch.equal(a, b) for a, b in zip(first, other, strict=True)]
        assert not any(same) if "crop" in policy else np.mean(same) < 0.8  # a flip repeats with probability 1/2


def test_images_of_one_epoch_have_independent_draws(splits):
    same = splits.train.select([0] * 16)
    images = epoch_of(ImageDataset(same, train_transform("crop", DATA_CONFIG)), 0)
    assert len({image.numpy().tobytes() for image in images}) == 16


def two_colours():
    """Dark on the left, bright on the right: the bright side reveals a flip, its brightness a colour jitter."""
    pixels = np.full((64, 64, 3), 64, dtype=np.uint8)
    pixels[:, 32:] = 160
    return Image.fromarray(pixels)


def draws(policy, seeds=300):
    """Return three arrays with one entry per seed: whether the image was flipped, jittered and erased."""
    transform = train_transform(policy, DATA_CONFIG, crop_scale=1.0)
    rows = []
    for seed in range(seeds):
        image = transform(two_colours(), seed).mul(255).round().numpy()
        left, right = np.median(image[..., :4]), np.median(image[..., -4:])
        dark = min(left, right)
        rows.append((left > right, abs(dark - 64) > 0.5, len(np.unique(image)) > 30))
    return np.array(rows).T


def independent(first, second):
    """Return the p-value of Fisher's exact test; draws that share one random number give less than 1e-6."""
    return fisher_exact([[np.sum((first == a) & (second == b)) for b in (0, 1)] for a in (0, 1)]).pvalue


def test_flip_colour_jitter_and_erasing_are_independent():
    flipped, jittered, erased = draws("crop+flip+color+erase")
    assert 0.4 < flipped.mean() < 0.6
    assert 0.7 < jittered.mean() < 0.9
    assert 0.17 < erased.mean() < 0.33
    assert independent(flipped, jittered) > 0.01
    assert independent(flipped, erased) > 0.01
    assert independent(jittered, erased) > 0.01


def test_each_policy_has_the_effects_of_its_steps_and_no_others():
    for policy, changes in {
        "crop+flip": (True, False, False),
        "crop+flip+color": (True, True, False),
        "crop": (False,) * 3,
    }.items():
        assert tuple(column.any() for column in draws(policy, seeds=60)) == changes, policy


def test_crops_keep_at_least_the_requested_share_of_the_image():
    ramp = Image.fromarray(np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)).convert("RGB")

    def smallest_height(crop_scale):
        transform = train_transform("crop", DATA_CONFIG, crop_scale)
        return min(np.ptp(transform(ramp, seed).numpy()) for seed in range(100))

    # a crop of area s with an aspect ratio of 3:4 to 4:3 spans at least sqrt(3 s / 4) of the height
    assert smallest_height(0.9) > 0.75
    assert 0.15 < smallest_height(0.08) < 0.5


def test_evaluation_uses_exactly_timms_transform():
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg("deit_tiny_patch16_224.fb_in1k").to_dict()
    )
    image = noise(size=(300, 400))
    expected = timm.data.create_transform(**config, is_training=False)(image)
    for seed in (0, 1):
        assert torch.equal(eval_transform(config)(image, seed), expected)
        assert torch.equal(train_transform("none", config)(image, seed), expected)

    # by hand: resize the short side to 224 / 0.9, crop the centre, normalise with ImageNet's mean and std
    resized = image.resize((248, 330), Image.Resampling.BICUBIC)
    crop = resized.crop((12, 53, 236, 277))
    by_hand = (np.asarray(crop) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert expected.shape == (3, 224, 224)
    assert np.abs(expected.numpy() - by_hand.transpose(2, 0, 1)).max() < 1e-4


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_every_policy_gives_normalised_tensors_of_the_models_size_for_colour_and_grey(policy, mode, channels):
    config = {**DATA_CONFIG, "input_size": (channels, 24, 32), "mean": (0.5,) * channels, "std": (0.5,) * channels}
    image = train_transform(policy, config)(noise(mode), 0)
    assert image.shape == (channels, 24, 32)
    assert image.dtype == torch.float32
    assert -1.0 <= image.min() < -0.4
    assert 0.3 < image.max() <= 1.0


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("blur", r"^`augment=blur`: 'blur' is not known: choose none, or some of crop, shift, .*cutout$"),
        ("crop+none", "'none' is not known"),
        ("", "'' is not known"),
        ("flip+flip", r"^`augment=flip\+flip` names a step twice"),
        ("crop+shift", "both choose a part"),
    ],
)
def test_an_invalid_policy_is_refused_with_the_choices(policy, message):
    with pytest.raises(InputError, match=message):
        parse_policy(policy)


def test_the_order_of_the_names_in_a_policy_does_not_matter():
    assert parse_policy("none") == ()
    assert parse_policy("erase+flip+crop") == parse_policy("crop+erase+flip") == ("crop", "flip", "erase")


def test_without_a_crop_the_image_is_cropped_as_in_evaluation():
    image, flip = noise(size=(90, 60)), train_transform("flip", DATA_CONFIG)
    seen = eval_transform(DATA_CONFIG)(image, 0)
    views = [flip(image, seed) for seed in range(12)]
    same = [torch.allclose(view, seen, atol=1e-6) for view in views]
    mirrored = [torch.allclose(view, seen.flip(-1), atol=1e-6) for view in views]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert any(same)
    assert any(mirrored)


def test_a_shift_moves_the_image_by_at_most_an_eighth():
    config = {**DATA_CONFIG, "crop_pct": 1.0}
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[16, 16] = 255
    places = {
        tuple(np.argwhere(train_transform("shift", config)(Image.fromarray(pixels), s)[0].numpy())[0])
        for s in range(400)
    }
    rows, columns = ({place[axis] for place in places} for axis in (0, 1))
    assert rows == columns == set(range(12, 21))


def test_cutout_greys_a_square_of_half_the_side():
    transform = train_transform("cutout", {**DATA_CONFIG, "crop_pct": 1.0, "mean": (0.5,) * 3})
    for seed in range(8):
        changed = transform(Image.fromarray(np.full((32, 32, 3), 255, dtype=np.uint8)), seed)[0] < 0.4
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert changed.sum() == 256
        assert (np.ptp(rows), np.ptp(columns)) == (15, 15)


def test_the_agpl_fork_of_albumentations_is_refused_by_name(monkeypatch):
    real = metadata.distribution
    fork = lambda name: real("albumentations") if name.lower() == "albumentationsx" else real(name)  # noqa: E731
    monkeypatch.setattr(metadata, "distribution", fork)
    with pytest.raises(InputError, match=r"AGPL.*pip uninstall albumentationsx"):
        train_transform("crop", DATA_CONFIG)
    train_transform("none", DATA_CONFIG)  # does not need albumentations


@pytest.mark.parametrize("policy", POLICIES)
def test_transforms_can_be_pickled_for_loader_workers(policy):
    transform = pickle.loads(pickle.dumps(train_transform(policy, DATA_CONFIG)))
    assert torch.equal(transform(noise(), 3), train_transform(policy, DATA_CONFIG)(noise(), 3))
