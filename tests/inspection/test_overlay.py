"""The part of an image that a model sees, compared with where the pixels of an image end up."""

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform
from timm.layers import PatchEmbed

from diffvit_timm.inspection.overlay import patched_box, visible_box


def transform_of(**settings):
    return create_transform(**{"input_size": (3, 64, 64), "interpolation": "bicubic", **settings}, is_training=False)


@pytest.mark.parametrize("size", [(100, 150), (150, 100), (64, 64), (40, 40), (333, 77)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_a_dot_on_the_image_is_where_the_box_says(size, crop_pct, crop_mode):
    """The brightest pixel after the transform, mapped back by the box, is the dot."""
    transform = transform_of(crop_pct=crop_pct, crop_mode=crop_mode, mean=(0, 0, 0), std=(1, 1, 1))
    box = visible_box(size, transform)
    x, y = size[0] // 2 + 3, size[1] // 2 - 4
    pixels = np.zeros((size[1], size[0], 3))
    rows, columns = np.mgrid[: size[1], : size[0]]
    pixels += 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 50)[..., None]
    seen = transform(Image.fromarray(pixels.astype(np.uint8)))[0].numpy().astype(float)
    weights = seen.clip(0) ** 8  # the centre of the dot with sub-pixel accuracy
    j, i = (np.average(np.arange(64) + 0.5, weights=weights.sum(axis)) for axis in (0, 1))
    found = box.left + j / 64 * (box.right - box.left), box.top + i / 64 * (box.bottom - box.top)
    pixel = (box.right - box.left) / 64
    np.testing.assert_allclose(found, (x + 0.5, y + 0.5), atol=0.2 * max(1, pixel))


def test_without_a_crop_the_box_is_the_image():
    box = visible_box((80, 80), transform_of(crop_pct=1.0))
    np.testing.assert_allclose(box, (0, 0, 80, 80), atol=0.05)


def test_a_centre_crop_is_in_the_middle_and_padding_reaches_beyond_the_image():
    left, top, right, bottom = visible_box((200, 100), transform_of(crop_pct=0.8))
    np.testing.assert_allclose((left, top, right, bottom), (60, 10, 140, 90), atol=1.0)
    _, top, _, bottom = visible_box((200, 100), transform_of(crop_pct=1.0, crop_mode="border"))
    np.testing.assert_allclose((top, bottom), (-50, 150), atol=1.0)


@pytest.mark.parametrize(("pad", "covered"), [(False, 48), (True, 96)])
def test_pixels_that_no_patch_covers_are_not_in_the_box(pad, covered):
    embed = PatchEmbed(img_size=64, patch_size=48, dynamic_img_pad=pad)
    box = patched_box((128, 128), transform_of(crop_pct=1.0), embed)
    np.testing.assert_allclose(box, (0, 0, 2 * covered, 2 * covered), atol=0.2)


def test_the_box_is_right_for_inputs_that_are_not_square():
    left, top, right, bottom = visible_box((200, 100), transform_of(input_size=(3, 32, 64), crop_pct=1.0))
    np.testing.assert_allclose((left, top, right, bottom), (0, 0, 200, 100), atol=0.1)


def test_the_box_is_right_for_padding_with_a_colour():
    box = visible_box((200, 100), transform_of(crop_pct=1.0, crop_mode="border", mean=(0.5, 0.4, 0.3)))
    assert box.top < 0 < 100 < box.bottom


def test_an_image_that_becomes_a_line_is_an_error():
    with pytest.raises(ValueError, match="less than two pixels"):
        visible_box((2000, 40), transform_of(crop_pct=1.0, crop_mode="border"))
