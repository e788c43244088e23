"""Faithfulness: curves of every kind of heat map on the same images, and the area under them."""

import numpy as np
import pytest
import torch

from diffvit_timm.studies.faithfulness import area_summary, faithfulness_curves, measure_faithfulness

KINDS = ["last layer", "rollout", "for the prediction, by gradients", "random"]


def test_all_kinds_of_heat_maps_start_and_end_with_the_same_images(tiny_model):
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    curves = faithfulness_curves(tiny_model().eval(), images, 4, torch.Generator().manual_seed(0))
    assert list(curves) == ["deletion", "insertion"]
    for kinds in curves.values():
        assert list(kinds) == KINDS
        for curve in kinds.values():
            assert curve.shape == (3, 5)
            torch.testing.assert_close(curve[:, [0, -1]], kinds["random"][:, [0, -1]])
    deleted, inserted = curves["deletion"]["rollout"], curves["insertion"]["rollout"]
    torch.testing.assert_close(deleted[:, 0], inserted[:, -1])  # the whole image


def test_the_same_images_and_random_maps_are_drawn_every_time(tiny_model, splits):
    first, second = (measure_faithfulness(tiny_model(), splits.test, 5, steps=2) for _ in range(2))
    for curve, kinds in first.items():
        for name, values in kinds.items():
            assert values.shape == (5, 3)
            np.testing.assert_array_equal(values, second[curve][name])


def test_the_area_has_an_interval_unless_there_is_one_image():
    curves = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    summary = area_summary(curves)
    assert summary["area"] == pytest.approx(0.5)
    assert summary["half_interval"] == pytest.approx(12.706 * 0.5, rel=1e-4)  # Student's t with one degree of freedom
    assert summary["images"] == 2
    assert area_summary(curves[:1]) == {"area": 1.0, "half_interval": None, "images": 1}
