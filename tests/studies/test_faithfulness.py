"""Faithfulness: curves of every kind of heat map on the same images, and the area under them."""

import numpy as np
import pytest

from diffvit_timm.data.config import DatasetConfig
from diffvit_timm.data.loading import image_batches, mask_batches
from diffvit_timm.inspection.rollout import heat_maps
from diffvit_timm.studies.faithfulness import area_summary, measure_faithfulness

KINDS = ["last layer", "rollout", "for the prediction, by gradients", "random"]


def test_all_kinds_of_heat_maps_start_and_end_with_the_same_images(tiny_model, splits):
    found = measure_faithfulness(tiny_model(), splits.test.take(3), steps=4)
    assert list(found.curves) == ["deletion", "insertion"]
    for kinds in found.curves.values():
        assert list(kinds) == KINDS
        for curve in kinds.values():
            assert curve.shape == (3, 5)
            np.testing.assert_allclose(curve[:, [0, -1]], kinds["random"][:, [0, -1]], rtol=1e-5)
    deleted, inserted = found.curves["deletion"]["rollout"], found.curves["insertion"]["rollout"]
    np.testing.assert_allclose(deleted[:, 0], inserted[:, -1], rtol=1e-5)  # the whole image
    assert found.on_object == {}


def test_the_same_random_maps_are_drawn_every_time(tiny_model, splits):
    first, second = (measure_faithfulness(tiny_model(), splits.test.take(5), steps=2).curves for _ in range(2))
    for curve, kinds in first.items():
        for name, values in kinds.items():
            assert values.shape == (5, 3)
            np.testing.assert_array_equal(values, second[curve][name])


def test_images_with_masks_have_the_share_of_the_heat_on_their_object(tiny_model, digit_folder):
    test = DatasetConfig(f"{digit_folder}+clutter").load_test().images
    model = tiny_model(in_chans=1, img_size=40).eval()
    found = measure_faithfulness(model, test, steps=2)
    assert list(found.on_object) == KINDS
    (images,), (masks,) = image_batches(model, test), mask_batches(model, test)
    heat = heat_maps(model, images).rollout.double().repeat_interleave(8, 1).repeat_interleave(8, 2)
    expected = (heat * masks).sum((1, 2)) / heat.sum((1, 2))
    np.testing.assert_allclose(found.on_object["rollout"], expected.numpy(), rtol=1e-5)


def test_the_area_has_an_interval_unless_there_is_one_image():
    curves = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    summary = area_summary(curves)
    assert summary["area"] == pytest.approx(0.5)
    assert summary["half_interval"] == pytest.approx(12.706 * 0.5, rel=1e-4)  # Student's t with one degree of freedom
    assert summary["images"] == 2
    assert area_summary(curves[:1]) == {"area": 1.0, "half_interval": None, "images": 1}
