"""Statistics of attention where they are known, and against the maps that they come from."""

import math

import pytest
import torch
from vits import make_vit

from diffvit_timm.inspection.attention_maps import capture_attention
from diffvit_timm.inspection.statistics import (
    attention_distance,
    attention_entropy,
    head_statistics,
    layer_statistics,
    prefix_share,
)


def expected_statistics(model, images):
    """Return (lambda, negative mass) of each layer, computed per image and head in float64."""
    rows = []
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block in model.blocks:
        layer, tokens = block.attn, block.norm1(x)
        q, k, _ = (t.double() for t in layer.project_qkv(tokens)[:3])
        d = layer.head_dim
        d1 = d if layer.branch_dims is None else layer.branch_dims[0]
        q1, q2 = q[..., :d1], q[..., d1:]
        k1, k2 = (k, k) if layer.branch_dims is None else (k[..., :d1], k[..., d1:])
        lam = layer.compute_lambda(tokens).double()
        attention = (q1 @ k1.mT * layer.scale).softmax(-1) - lam * (q2 @ k2.mT * layer.scale).softmax(-1)
        shares = [-head[head < 0].sum().item() / head.abs().sum().item() for image in attention for head in image]
        rows.append((lam.mean().item(), sum(shares) / len(shares)))
        x = block(x)
    return rows


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_layer_statistics_are_those_of_the_maps(tiny_model, attn):
    model, images = tiny_model(attn=attn, lambda_init=0.4).eval(), torch.randn(5, 3, 16, 16)
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight)
    with torch.inference_mode():
        expected = expected_statistics(model, images)
    found = layer_statistics(model, [images[:2], images[2:]])
    assert found.lambdas == pytest.approx([lam for lam, _ in expected], rel=1e-5)
    assert found.negative_mass == pytest.approx([mass for _, mass in expected], rel=1e-4)
    assert all(0 < mass < 0.5 for mass in found.negative_mass)


def test_equal_maps_or_a_lambda_of_zero_have_no_negative_mass(tiny_model):
    from diffvit_timm import from_vit

    images = torch.randn(2, 3, 16, 16)
    mirror = from_vit(tiny_model(attn="plain"), attn="diff_v2")
    assert layer_statistics(mirror, images).negative_mass == pytest.approx([0.0, 0.0], abs=1e-7)
    assert layer_statistics(from_vit(tiny_model(attn="plain"), lambda_init=0.0), images).negative_mass == [0.0, 0.0]


def test_a_plain_model_has_no_layer_statistics(tiny_model):
    assert layer_statistics(tiny_model(attn="plain"), torch.randn(1, 3, 16, 16)).lambdas == []


def test_no_images_is_an_error_and_the_training_mode_is_restored(tiny_model):
    model = tiny_model().train()
    with pytest.raises(ValueError, match="empty"):
        layer_statistics(model, [])
    assert model.training


def test_uniform_attention_has_entropy_log_n_and_one_hot_attention_has_zero():
    uniform, one_hot = torch.full((2, 1, 6, 6), 1 / 6), torch.eye(6).expand(2, 1, 6, 6)
    entropy = attention_entropy(torch.cat([uniform, one_hot], dim=1))
    torch.testing.assert_close(entropy, torch.tensor([math.log(6), 0.0]))


def test_distance_is_in_pixels_between_the_centres_of_patches_of_any_shape():
    grid, patch = (2, 3), (8, 16)
    next_column = torch.eye(6).roll(1, dims=1)  # 0 attends to 1, 1 to 2, 2 to 3 (one row down, two columns back), ...
    attention = torch.stack([torch.eye(6), next_column])[None]
    step, back, last = 16.0, math.hypot(8, 32), math.hypot(8, 32)
    expected = (4 * step + back + last) / 6
    torch.testing.assert_close(attention_distance(attention, grid, patch), torch.tensor([0.0, expected]))


def test_prefix_tokens_do_not_count_for_the_distance_but_for_their_share():
    attention = torch.zeros(1, 1, 5, 5)
    attention[..., 0] = 0.25
    attention[..., 1:, 1:] = 0.75 * torch.eye(4).roll(1, dims=1)
    attention[..., 0, 0] = 1.0
    torch.testing.assert_close(prefix_share(attention, 1), torch.tensor([0.4]))
    expected = (2 * 10.0 + 2 * math.hypot(10, 10)) / 4
    torch.testing.assert_close(attention_distance(attention, (2, 2), (10, 10)), torch.tensor([expected]))


def test_a_patch_that_attends_only_to_prefix_tokens_has_no_distance():
    attention = torch.zeros(1, 1, 3, 3)
    attention[0, 0] = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(attention_distance(attention, (1, 2), (4, 4)), torch.tensor([4.0]))


def test_head_statistics_have_one_number_per_layer_and_head(any_vit, images):
    model = any_vit(img_size=(16, 24), reg_tokens=2)
    with capture_attention(model) as captured, torch.no_grad():
        model(torch.randn(2, 3, 16, 24))
    statistics = head_statistics(captured)
    for values in statistics:
        assert values.shape == (3, 2)
    assert statistics.entropy.max() <= math.log(27) + 1e-5
    assert 0 < statistics.distance.max() < math.hypot(16, 24)
    maps = captured[1].maps()
    torch.testing.assert_close(statistics.prefix[1], maps.attended[..., :3].sum(-1).mean((0, 2)))


def test_each_branch_has_its_statistics_and_plain_attention_has_only_map1(images):
    captured = {}
    for kind in ("diff", "plain"):
        model = make_vit(kind)
        with capture_attention(model) as captured[kind], torch.no_grad():
            model(images)
    first, second = (head_statistics(captured["diff"], which) for which in ("map1", "map2"))
    assert not torch.allclose(first.entropy, second.entropy)
    torch.testing.assert_close(head_statistics(captured["plain"]), head_statistics(captured["plain"], "map1"))
    with pytest.raises(ValueError, match="which='map2' needs differential attention"):
        head_statistics(captured["plain"], "map2")
