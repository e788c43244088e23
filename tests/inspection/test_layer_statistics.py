"""lambda and negative attention mass, against the maps they come from."""

import pytest
import torch

from diffvit_timm.inspection.layer_statistics import layer_statistics


def explicit(model, images):
    """(lambda, negative mass) of each layer, one image, head and query at a time, in float64."""
    rows = []
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block in model.blocks:
        layer, tokens = block.attn, block.norm1(x)
        q, k, _ = (t.double() for t in layer.project_qkv(tokens))
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
def test_statistics_are_those_of_the_maps(tiny_model, attn):
    model, images = tiny_model(attn=attn, lambda_init=0.4).eval(), torch.randn(5, 3, 16, 16)
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight)
    with torch.inference_mode():
        expected = explicit(model, images)
    found = layer_statistics(model, [images[:2], images[2:]])
    assert found.lambdas == pytest.approx([lam for lam, _ in expected], rel=1e-5)
    assert found.negative_mass == pytest.approx([mass for _, mass in expected], rel=1e-4)
    assert all(0 < mass < 0.5 for mass in found.negative_mass)


def test_two_equal_maps_have_no_negative_mass_and_no_second_map_none_either(tiny_model):
    from diffvit_timm import from_vit

    images = torch.randn(2, 3, 16, 16)
    mirror = from_vit(tiny_model(attn="plain"), attn="diff_v2")
    assert layer_statistics(mirror, images).negative_mass == pytest.approx([0.0, 0.0], abs=1e-7)
    assert layer_statistics(from_vit(tiny_model(attn="plain"), lambda_init=0.0), images).negative_mass == [0.0, 0.0]


def test_a_plain_model_has_no_layers_to_measure(tiny_model):
    assert layer_statistics(tiny_model(attn="plain"), torch.randn(1, 3, 16, 16)).lambdas == []


def test_no_images_is_an_error_and_the_mode_comes_back(tiny_model):
    model = tiny_model().train()
    with pytest.raises(ValueError, match="empty"):
        layer_statistics(model, [])
    assert model.training
