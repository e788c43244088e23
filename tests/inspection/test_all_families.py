"""The attention of every family can be captured under fused kernels, without a change of the logits."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffvit_timm import capture_attention, differential_layers, from_vit
from diffvit_timm.inspection.attention_maps import has_heat_maps, has_windows
from diffvit_timm.inspection.layout import patch_embedding, patch_grid
from diffvit_timm.inspection.rollout import heat_maps
from diffvit_timm.inspection.statistics import head_statistics, layer_statistics
from diffvit_timm.inspection.views import view_images

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from families import FAMILIES, TIMM_DIFFERENTIAL, make_family

WINDOWED = ("SAM", "Swin", "Swin v2")


# Each network, plain and converted. timm's own differential networks are not converted.
NETWORKS = [(name, attn) for name in FAMILIES for attn in ("plain", "diff", "diff_v2")]
NETWORKS += [(name, "plain") for name in TIMM_DIFFERENTIAL]


def make_network(name, attn):
    model = make_family(name)
    return model if attn == "plain" else from_vit(model, attn=attn)


def images_for(name, count=2):
    side = (FAMILIES | TIMM_DIFFERENTIAL)[name][1].get("img_size", 64)
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
        torch.testing.assert_close(own.map1, timms.view_as(own.map1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "attn"), NETWORKS)
def test_logits_are_bit_identical_and_the_maps_times_the_values_are_the_layers_output(name, attn):
    model, images = make_network(name, attn), images_for(name)
    with torch.no_grad():
        expected = model(images)
        with capture_attention(model) as captured:
            assert torch.equal(model(images), expected)
        for layer in captured:
            maps, values = layer._maps_and_values()
            merged = captured_merge(layer, maps.difference @ values.float())
            expected = layer.merged[..., : merged.shape[-1]]  # in vit_dpwee features of the MLP follow
            torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)
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


@pytest.mark.parametrize(("name", "attn"), NETWORKS)
def test_heat_maps_have_the_grid_of_the_patches(name, attn):
    model, images = make_network(name, attn), images_for(name)
    if name in WINDOWED:
        assert not has_heat_maps(model)
        with pytest.raises(TypeError, match="within windows"):
            heat_maps(model, images)
        return
    maps = heat_maps(model, images)
    grid = patch_grid(patch_embedding(model), images.shape[-2:])
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
    with capture_attention(model) as captured, torch.no_grad():
        model(images)
    distance = head_statistics(captured).distance
    assert distance.shape == (len(captured), max(layer.layer.num_heads for layer in captured))
    assert distance.max() <= images.shape[-1] * 2**0.5  # pixels


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_are_drawn_where_they_lie(name):
    model, inputs = make_family(name), {}
    blocks = {module.attn: module for module in model.modules() if hasattr(module, "attn")}
    for layer, block in blocks.items():
        block.register_forward_pre_hook(lambda _, args, layer=layer: inputs.update({layer: args[0]}))
    with capture_attention(model) as captured, torch.no_grad():
        model(images_for(name))
    for layer in captured:
        before = inputs[layer.layer]  # (B, rows, columns, dim)
        normed = before if name == "Swin v2" else blocks[layer.layer].norm1(before)
        tokens = layer.tokens.reshape(-1, layer.layout.places.shape[1], before.shape[-1])  # (B * windows, N, dim)
        placed = captured.output_attention(layer, tokens.transpose(1, 2).unsqueeze(2))  # each channel as a map
        torch.testing.assert_close(placed.permute(0, 2, 3, 1), normed)
    shifted = [any(block.shift_size) for block in blocks.values() if hasattr(block, "shift_size")]
    assert any(shifted) or name == "SAM"


@pytest.mark.parametrize("name", [*FAMILIES, *TIMM_DIFFERENTIAL])
def test_every_network_can_be_looked_at(name):
    model = make_family(name)
    rng = np.random.default_rng(0)
    view = view_images(model, "net", {"cat": Image.fromarray(rng.integers(0, 256, (80, 72, 3), dtype=np.uint8))})
    windowed = name in WINDOWED
    assert (view.rollout is None) == (view.relevance is None) == windowed == has_windows(model)
    for layer in view.maps:
        assert layer.attended.min() >= 0
        assert layer.map1.shape[0] == 1
        whole = layer.map1.sum((-1, -2))
        assert (whole <= 1.0001).all() if not windowed else (whole > 0).all()
