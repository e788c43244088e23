"""CLIP's image tower as a timm ViT gives the same features, before and after conversion."""

import dataclasses

import open_clip
import pytest
import timm
import torch

from diffvit_timm import differential_layers
from diffvit_timm.layers.base import attention_kind
from diffvit_timm.zero_shot.clip import Clip, load_clip
from diffvit_timm.zero_shot.tower import convert_tower, timm_tower

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}


def clip_of(quick_gelu=False, **vision):
    torch.manual_seed(0)
    model = open_clip.CLIP(24, {**VISION, **vision}, TEXT, quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms too
    return Clip(model, None, None, "small")


@pytest.mark.parametrize(
    "settings",
    [{}, {"quick_gelu": True}, {"image_size": (32, 16)}, {"no_ln_pre": True}, {"ls_init_value": 0.1}],
    ids=str,
)
def test_the_features_are_open_clips(settings):
    clip = clip_of(**settings)
    images = torch.randn(2, 3, *(settings.get("image_size") or (32, 32)))
    tower = timm_tower(clip)
    assert isinstance(tower, timm.models.VisionTransformer)
    with torch.no_grad():
        torch.testing.assert_close(tower(images), clip.model.encode_image(images), atol=1e-5, rtol=1e-4)


def test_a_mirrored_tower_gives_the_same_features_and_leaves_clip_as_it_was(clip_folder):
    clip = load_clip(str(clip_folder))
    before, images = clip.model.visual, torch.randn(2, 3, 16, 16)
    converted = convert_tower(clip, "mirror")
    assert clip.model.visual is before
    assert len(differential_layers(converted.model.visual)) == len(converted.model.visual.blocks)
    assert attention_kind(converted.model.visual) == "diff_v2"
    assert converted.model.transformer is clip.model.transformer
    with torch.no_grad():
        expected = clip.model.encode_image(images)
        torch.testing.assert_close(converted.model.encode_image(images), expected, atol=1e-5, rtol=1e-4)


def test_calibration_preserves_the_features_better_than_the_weights_do():
    clip, images = clip_of(), torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        expected = clip.model.encode_image(images)
        errors = [
            (convert_tower(clip, method, given).model.encode_image(images) - expected).norm().item()
            for method, given in (("slice", None), ("svd", None), ("calibrated", images))
        ]
    assert errors[2] < errors[1] < errors[0]


def test_towers_of_timm_are_used_as_they_are():
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": None}
    model = open_clip.CLIP(24, vision, TEXT).eval()
    clip = Clip(model, None, None, "timm's")
    assert timm_tower(clip) is model.visual.trunk
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        mirrored = convert_tower(clip, "mirror").model.encode_image(images)
        torch.testing.assert_close(mirrored, model.encode_image(images), atol=1e-5, rtol=1e-4)


def test_towers_that_are_not_vits_are_errors():
    resnet = open_clip.CLIP(24, {"layers": (1, 1, 1, 1), "width": 8, "image_size": 32, "head_width": 8}, TEXT)
    with pytest.raises(ValueError, match="RN: its image tower, a ModifiedResNet, is not a ViT"):
        timm_tower(dataclasses.replace(clip_of(), model=resnet, name="RN"))
    with pytest.raises(ValueError, match="is not a ViT that reads a class token"):
        timm_tower(clip_of(pool_type="avg"))
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear"}
    with pytest.raises(ValueError, match="has a projection of its own"):
        timm_tower(Clip(open_clip.CLIP(24, vision, TEXT), None, None, "projected"))
