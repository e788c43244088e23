"""Every conversion of the comparison can be made, and timm's attention gets the weights as timm would load them."""

import pytest
import timm
import torch
from timm.layers import DiffAttention

from diffvit_timm import from_vit
from diffvit_timm.layers.denoising import DenoisingAttention
from diffvit_timm.studies.conversions import (
    list_conversions,
    query_gradient_ratio,
    reason_against_contrast,
    reason_against_pairs,
    with_denoising_attention,
    with_timm_attention,
)

SHAPE = dict(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)


def plain_vit(**settings):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{**SHAPE, **settings}).eval()


@pytest.mark.parametrize(
    ("settings", "pairs"),
    [
        ({}, 2),
        ({"qkv_bias": False, "class_token": False, "global_pool": "avg"}, 2),
        ({"num_heads": 1}, 0),
        ({"class_token": False, "global_pool": "map"}, 2),
        ({"num_classes": 0}, 2),
    ],
    ids=str,
)
def test_every_conversion_keeps_the_shape_of_the_outputs_and_leaves_the_source_alone(settings, pairs):
    source = plain_vit(**settings)
    images = torch.randn(8, 3, 16, 16)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    conversions = list_conversions(source, [images[:4], images[4:]])
    assert sum(name.startswith("pairs") for name in conversions) == pairs
    with torch.no_grad():
        expected = source(images)
        for convert in conversions.values():
            assert convert()(images).shape == expected.shape
        torch.testing.assert_close(conversions["mirror, version 2"]()(images), expected, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


def test_the_reason_against_pairs_is_named():
    assert reason_against_pairs(plain_vit()) is None
    assert reason_against_pairs(plain_vit(num_heads=1)) == "the number of heads, 1, is odd"
    reason = reason_against_pairs(plain_vit(qk_norm=True))
    assert reason == "blocks.0.attn, of the class Attention, is not timm's Attention without norms and gate"


def test_contrast_is_left_out_with_its_reason_where_queries_are_normalised():
    normed, images = plain_vit(qk_norm=True), [torch.randn(2, 3, 16, 16)]
    assert reason_against_contrast(plain_vit()) is None
    assert "this Attention normalises them" in reason_against_contrast(normed)
    assert not [name for name in list_conversions(normed, images) if name.startswith("contrast")]
    assert len([name for name in list_conversions(plain_vit(), images) if name.startswith("contrast")]) == 2


@pytest.mark.parametrize("settings", [{}, {"qkv_bias": False}, {"proj_bias": False}], ids=str)
def test_timms_attention_is_the_one_of_create_model_with_the_same_weights(settings):
    source = plain_vit(**settings)
    model = with_timm_attention(source)
    expected = timm.create_model("vit_tiny_patch16_224", attn_layer="diff", **SHAPE, **settings).eval()
    missing, unexpected = expected.load_state_dict(source.state_dict(), strict=False)
    assert not unexpected
    assert all(".lambda_" in name or ".sub_norm." in name for name in missing)
    assert [type(block.attn) for block in model.blocks] == [DiffAttention, DiffAttention]
    expected.load_state_dict(model.state_dict())  # also its random lambdas
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(images), expected(images))
    assert type(source.blocks[0].attn) is timm.layers.Attention


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_denoising_attention_computes_its_formula(qkv_bias):
    torch.manual_seed(0)
    layer = DenoisingAttention(12, 3, qkv_bias=qkv_bias).double()
    layer.negative_scale.data = torch.tensor([0.5, 1.0, -2.0], dtype=torch.float64)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, q_negative, k, v, v_negative = layer.qkv(x).chunk(5, dim=-1)
    heads = []
    for head in range(3):
        own = slice(4 * head, 4 * head + 4)
        positive = (q[..., own] @ k[..., own].mT / 2).softmax(-1) @ v[..., own]
        negative = (-q_negative[..., own] @ k[..., own].mT / 2).softmax(-1) @ v_negative[..., own]
        heads.append(positive - layer.negative_scale[head] * negative)
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(heads, dim=-1)))


def test_denoising_attention_starts_as_the_source_and_a_copy_that_hardly_learns():
    source, images = plain_vit(), torch.randn(4, 3, 16, 16)
    model = with_denoising_attention(source)
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images), atol=1e-3, rtol=1e-3)
    width, depth = SHAPE["embed_dim"], SHAPE["depth"]
    more = depth * (2 * width * (width + 1) + SHAPE["num_heads"])
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in source.parameters()) + more
    assert query_gradient_ratio(model, images) < 1e-3


@pytest.mark.parametrize(
    ("name", "more"), [("vit_tiny_patch16_224", {}), ("vit_small_patch16_dinov3", dict(img_size=32))]
)
def test_the_gradients_of_both_queries_are_those_of_their_weights(name, more):
    torch.manual_seed(0)
    source = timm.create_model(name, **{**SHAPE, **more}).eval()
    images = torch.randn(4, 3, *source.patch_embed.img_size)
    # The two queries of a mirror get opposite gradients, whose sizes are in the ratio of lambda to 1.
    for lambda_init in (0.2, 0.5):
        model = from_vit(source, attn="diff_v2", lambda_init=lambda_init)
        assert query_gradient_ratio(model, images) == pytest.approx(lambda_init, rel=1e-3)
    assert query_gradient_ratio(from_vit(source, lambda_init=0.0), images) == 0.0
    assert query_gradient_ratio(timm.create_model(name, **{**SHAPE, **more, "num_classes": 0}), images) is None
