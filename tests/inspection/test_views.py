"""A view holds what one model attends to on images; its numbers are those of the captured attention."""

import numpy as np
import pytest
import torch
from PIL import Image
from vits import make_vit

from diffvit_timm.errors import InputError
from diffvit_timm.inspection.attention_maps import capture_attention
from diffvit_timm.inspection.views import output_maps, position_similarity, view_images


@pytest.fixture
def named_images():
    rng = np.random.default_rng(0)
    return {name: Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for name in ("cat", "dog")}


def test_the_maps_are_those_of_the_output_token(any_vit, images):
    model = any_vit()
    with capture_attention(model) as captured, torch.no_grad():
        model(images)
    maps = output_maps(captured)
    for own, layer in zip(maps, captured, strict=True):
        expected = layer.maps()
        np.testing.assert_array_equal(own.map1, expected.map1[:, :, 0, 1:].unflatten(-1, (4, 4)))
        np.testing.assert_array_equal(own.attended, expected.attended[:, :, 0, 1:].unflatten(-1, (4, 4)))
        assert (own.map2 is None) == (own.lam is None) == (expected.map2 is None)
        if own.map2 is not None:
            lam = own.lam[..., None, None]  # (B, H, 1, 1)
            np.testing.assert_allclose(own.map1 - lam * own.map2, own.difference, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "diff_v2"])
def test_images_are_viewed_one_by_one_and_keep_their_order(kind, named_images):
    model = make_vit(kind)
    both = view_images(model, "net", named_images)
    assert [picture.name for picture in both.pictures] == ["cat", "dog"]
    for index, (name, image) in enumerate(named_images.items()):
        one = view_images(model, "net", {name: image})
        for two, layer in zip(both.maps, one.maps, strict=True):
            np.testing.assert_array_equal(two.difference[index], layer.difference[0])
        np.testing.assert_array_equal(both.rollout[index], one.rollout[0])
        assert both.predictions[index] == one.predictions[0]


def test_a_model_without_a_head_has_no_relevance_and_no_predictions(named_images):
    view = view_images(make_vit("diff", num_classes=0), "net", named_images)
    assert view.relevance is None
    assert view.predictions == ["", ""]
    assert list(view.heat_maps()) == ["rollout"]


def test_an_image_that_is_too_narrow_is_named(named_images):
    model = make_vit("plain")
    model.pretrained_cfg.update(crop_mode="border")
    images = named_images | {"thin": Image.new("RGB", (1, 4000))}
    with pytest.raises(InputError, match="`images=thin` is too long and narrow for net"):
        view_images(model, "net", images)


@pytest.mark.parametrize("pos_embed", ["learn", "sincos"])
def test_position_embeddings_are_most_similar_to_themselves(pos_embed):
    similarity, grid = position_similarity(make_vit("diff", pos_embed=pos_embed))
    assert grid == (4, 4)
    assert similarity.shape == (16, 16)
    np.testing.assert_array_equal(similarity.argmax(axis=1), np.arange(16))
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-6)


def test_a_model_without_position_embeddings_has_no_similarity():
    assert position_similarity(make_vit("diff", pos_embed="none")) is None
