"""The attention of every family can be captured under fused kernels, without a change of the logits."""

import sys
from pathlib import Path

import pytest
import torch

from diffvit_timm import capture_attention, differential_layers, from_vit
from diffvit_timm.inspection.attention_maps import has_heat_maps
from diffvit_timm.inspection.rollout import heat_maps
from diffvit_timm.inspection.statistics import head_statistics, layer_statistics

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from families import FAMILIES, make_family

WINDOWED = ("Swin", "Swin v2")


def images_for(name, count=2):
    side = FAMILIES[name][1].get("img_size", 64)
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_maps_of_plain_layers_are_those_of_timms_explicit_path(family):
    model, images, seen = make_family(family), images_for(family), []
    with capture_attention(model) as captured, torch.no_grad():
        model(images)
    maps = [layer.maps() for layer in captured]
    for layer in captured.attention_layers:
        layer.fused_attn = False
        layer.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(images)
    assert len(maps) == len(seen)
    for own, timms in zip(maps, seen, strict=True):
        torch.testing.assert_close(own.map1, timms, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attn", ["plain", "diff", "diff_v2"])
def test_logits_are_bit_identical_and_the_maps_times_the_values_are_the_layers_output(family, attn):
    model, images = make_family(family), images_for(family)
    model = model if attn == "plain" else from_vit(model, attn=attn)
    with torch.no_grad():
        expected = model(images)
        with capture_attention(model) as captured:
            assert torch.equal(model(images), expected)
        for layer in captured:
            maps, values = layer._maps_and_values()
            merged = captured_merge(layer, maps.difference @ values.float())
            torch.testing.assert_close(merged, layer.merged, atol=1e-4, rtol=1e-4)
            assert maps.map1.sum(-1).allclose(torch.ones(()), atol=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())


def captured_merge(layer, heads):
    from diffvit_timm.inspection.attention_maps import _merge_heads

    return _merge_heads(layer.layer, heads, layer.tokens)


def test_the_difference_of_version_2_is_one_minus_lambda_times_the_plain_map(family):
    source, images = make_family(family), images_for(family)
    model, maps = from_vit(source, attn="diff_v2", lambda_init=0.3), []
    for network in (source, model):
        with capture_attention(network) as captured, torch.no_grad():
            network(images)
        maps.append([layer.maps().difference for layer in captured])
    for plain, difference in zip(*maps, strict=True):
        torch.testing.assert_close(difference, 0.7 * plain, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("attn", ["plain", "diff"])
def test_heat_maps_have_the_grid_of_the_patches(family, attn):
    model, images = make_family(family), images_for(family)
    model = model if attn == "plain" else from_vit(model, attn=attn)
    if family in (*WINDOWED, "NaFlexViT"):
        assert not has_heat_maps(model)
        with pytest.raises(TypeError, match="within windows" if family in WINDOWED else "PatchEmbed"):
            heat_maps(model, images)
        return
    maps = heat_maps(model, images)
    grid = model.patch_embed.grid_size
    assert maps.last_layer.shape == maps.rollout.shape == maps.relevance.shape == (2, *grid)
    for heat in maps[:3]:
        assert torch.isfinite(heat).all()
        assert heat.std() > 0


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_statistics_know_every_layer(family, attn):
    model, images = from_vit(make_family(family), attn=attn, lambda_init=0.3), images_for(family)
    statistics = layer_statistics(model, images)
    assert statistics.lambdas == pytest.approx([0.3] * len(differential_layers(model)), abs=1e-6)
    assert all(0 <= mass < 0.5 for mass in statistics.negative_mass)
    if has_heat_maps(model):
        with capture_attention(model) as captured, torch.no_grad():
            model(images)
        assert head_statistics(captured).distance.shape == (len(captured), 3)
