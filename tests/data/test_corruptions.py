"""Common corruptions: they grow with the severity, and depend only on the image."""

from importlib import metadata

import numpy as np
import pytest

from diffvit_timm.data import corruptions
from diffvit_timm.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from diffvit_timm.errors import InputError


def picture(side, channels=3, seed=0):
    """A smooth picture with a few edges, (side, side, channels)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y + rng.uniform(0, 6)) for _ in range(channels)]
    pixels = 110 + 60 * np.stack(waves, axis=-1) + 40 * (x > 0.5)[..., None]
    return pixels.round().astype(np.uint8)


def distance(pixels, corrupted):
    return np.sqrt(np.mean((pixels.astype(float) - corrupted) ** 2))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(28, 1), (32, 3), (96, 3), (224, 1)], ids=str)
def test_a_corruption_changes_the_image_and_keeps_its_form(corruption, shape):
    pixels = picture(*shape)
    before = pixels.copy()
    corrupted = corrupt(pixels, corruption, 3)
    assert corrupted.shape == pixels.shape
    assert corrupted.dtype == np.uint8
    assert distance(pixels, corrupted) > 0.5
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("side", [32, 128])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_grows_with_its_severity(corruption, side):
    pictures = [picture(side, seed=seed) for seed in range(4)]
    mild, middle, strong = (
        np.mean([distance(pixels, corrupt(pixels, corruption, severity)) for pixels in pictures])
        for severity in (1, 3, 5)
    )
    assert 0 < mild < middle < strong


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_draws_depend_only_on_the_image_the_corruption_and_the_severity(corruption):
    first, second = picture(32), picture(32, seed=1)
    alone = corrupt(first, corruption, 3)
    corrupt(second, corruption, 5)
    np.testing.assert_array_equal(corrupt(first, corruption, 3), alone)


def test_the_noise_of_two_images_and_of_two_severities_differs():
    flat, other = np.full((32, 32, 3), 128, np.uint8), np.full((32, 32, 3), 129, np.uint8)
    noises = [
        corrupt(pixels, "gaussian_noise", severity).astype(float) - pixels
        for pixels in (flat, other)
        for severity in (1, 5)
    ]
    for i, noise in enumerate(noises):
        for another in noises[:i]:
            assert abs(np.corrcoef(noise.ravel(), another.ravel())[0, 1]) < 0.1


def test_the_parameters_are_those_of_imagenet_c_and_for_small_images_those_of_cifar_10_c():
    for side, noise, share, added, factor in ((128, 0.18, 0.09, 0.3, 0.2), (64, 0.08, 0.03, 0.15, 0.4)):
        grey = np.full((side, side, 3), 128, np.uint8)
        assert (corrupt(grey, "gaussian_noise", 3) / 255).std() == pytest.approx(noise, rel=0.05)
        assert np.isin(corrupt(grey, "impulse_noise", 3), (0, 255)).mean() == pytest.approx(share, rel=0.05)
        assert (corrupt(grey, "brightness", 3) == round(128 + 255 * added)).all()
        pixels = picture(side)
        flatter = corrupt(pixels, "contrast", 3)
        assert flatter.mean() == pytest.approx(pixels.mean(), abs=4)
        for channel in range(3):
            assert flatter[..., channel].std() == pytest.approx(factor * pixels[..., channel].std(), rel=0.03)


def test_a_grey_image_is_corrupted_as_the_colour_image_of_the_same_greys():
    grey = picture(32, 1)
    for corruption in ("fog", "contrast", "defocus_blur"):
        corrupted = corrupt(grey, corruption, 5)
        assert corrupted.shape == (32, 32, 1)
        assert corrupted.std() > 0


def test_each_corruption_has_a_parameter_per_severity():
    assert SEVERITIES == (1, 2, 3, 4, 5)
    for row in CORRUPTIONS.values():
        assert len(row.large) == len(row.small) == 5


def test_a_corruption_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError, match="rain"):
        corrupt(picture(32), "rain", 1)


def test_albumentationsx_is_refused(monkeypatch):
    corruptions._pipeline.cache_clear()
    monkeypatch.setattr(metadata, "distribution", lambda name: name)
    with pytest.raises(InputError, match="AlbumentationsX"):
        corrupt(picture(32), "fog", 1)
