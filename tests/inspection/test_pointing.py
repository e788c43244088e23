"""The share of the heat on an object, against shares worked out by hand."""

import pytest
import torch

from diffvit_timm.inspection.pointing import heat_on_masks


def test_the_share_is_that_of_the_pixels_of_each_patch_weighted_by_its_heat():
    heat = torch.tensor([[[1.0, 3.0], [0.0, 4.0]]])
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 2] = mask[0, 1, 3] = 1.0  # two of the four pixels of the patch with heat 3
    mask[0, 2, 0] = 1.0  # a pixel of the patch without heat
    assert heat_on_masks(heat, mask).tolist() == pytest.approx([3 * 2 / 4 / 8])


def test_an_even_map_has_the_share_of_the_area_and_heat_only_on_the_object_has_all():
    masks = torch.zeros(2, 6, 9)
    masks[:, 2:4, 3:6] = 1.0
    even, pointed = torch.full((3, 3), 0.2), torch.zeros(3, 3)
    pointed[1, 1] = 5.0
    shares = heat_on_masks(torch.stack([even, pointed]), masks)
    assert shares.tolist() == pytest.approx([1 / 9, 1.0])


def test_a_map_without_heat_has_no_share_and_negative_heat_is_refused():
    mask = torch.ones(1, 4, 4)
    assert heat_on_masks(torch.zeros(1, 2, 2), mask).tolist() == [0.0]
    with pytest.raises(ValueError, match=r"the least heat is -0\.5, but"):
        heat_on_masks(torch.tensor([[[1.0, -0.5]]]), mask)
