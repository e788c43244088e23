"""'contrast': how little it changes the output, how much of its attention is negative, and what it refuses."""

import pytest
import timm
import torch
from timm.models import save_for_hf

from diffvit_timm import conversion_report, differential_layers, from_vit
from diffvit_timm.conversion.calibration import fit_projections
from diffvit_timm.inspection.statistics import layer_statistics

SHAPE = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
IMAGES, OTHERS = torch.randn(2, 40, 3, 32, 32, generator=torch.Generator().manual_seed(0)).unbind()


def plain_vit(name="vit_tiny_patch16_224", **kwargs):
    """A plain ViT whose attention is far from uniform."""
    torch.manual_seed(0)
    source = timm.create_model(name, **{**SHAPE, **kwargs}).eval()
    for module in source.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.2)
    return source


def contrast(source, images=None, **kwargs):
    return from_vit(source, "contrast", images, attn="diff_v2", **kwargs)


def test_the_change_of_the_output_is_proportional_to_a_small_lambda():
    source = plain_vit().double()
    errors = []
    for lam in (2**-12, 2**-13):
        errors.append(conversion_report(source, contrast(source, lambda_init=lam), OTHERS).output_error)
    assert errors[0] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.02)


def test_the_negative_share_is_above_zero_and_at_most_that_of_maps_without_overlap():
    source = plain_vit()
    for lam in (0.05, 0.5):
        shares = layer_statistics(contrast(source, lambda_init=lam), OTHERS).negative_mass
        assert all(0.3 * lam / (1 + lam) < share < lam / (1 + lam) for share in shares)
    assert layer_statistics(from_vit(source, attn="diff_v2"), OTHERS).negative_mass == pytest.approx([0, 0], abs=1e-7)


def test_images_fit_the_output_projections_and_nothing_else():
    source = plain_vit()
    from_weights, fitted = contrast(source), contrast(source, (batch for batch in IMAGES.split(16)))
    errors = [conversion_report(source, model, OTHERS).output_error for model in (from_weights, fitted)]
    assert errors[1] < errors[0] < 0.5
    fit_projections(source, from_weights.eval(), IMAGES.split(16))
    for name, tensor in fitted.state_dict().items():
        assert torch.equal(tensor, from_weights.state_dict()[name]), name


def test_every_parameter_learns():
    model = contrast(plain_vit())
    model(OTHERS).square().sum().backward()
    assert [name for name, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_a_saved_network_loads_and_the_registered_variant_has_the_same_lambda(tmp_path):
    model = contrast(plain_vit("deit_tiny_patch16_224"), IMAGES)
    assert [layer.lambda_init.item() for layer in differential_layers(model)] == pytest.approx([0.04, 0.04])
    save_for_hf(model, tmp_path, safe_serialization=True)
    with torch.no_grad():
        loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert torch.equal(loaded(OTHERS), model(OTHERS))
    for settings, expected in (
        ({"conversion": "contrast"}, 0.04), ({"conversion": "contrast", "lambda_init": 0.1}, 0.1), ({}, 0.5)
    ):  # fmt: skip
        variant = timm.create_model("diffvit2_tiny_patch16", **SHAPE, **settings)
        assert variant.blocks[0].attn.lambda_init.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "settings", "kind"),
    [
        ("vit_tiny_patch16_224", dict(SHAPE, qk_norm=True), "Attention"),
        (
            "swinv2_tiny_window8_256",
            dict(img_size=64, embed_dim=24, depths=(1, 1), num_heads=(2, 2)),
            "WindowAttention",
        ),
    ],
)
def test_normalised_queries_are_refused_before_an_image_is_read(name, settings, kind):
    source = timm.create_model(name, **settings)
    unread = (pytest.fail("an image was read") for _ in range(1))
    message = rf"attn: conversion 'contrast' scales the queries, and this {kind} normalises them.*choose 'mirror'"
    with pytest.raises(ValueError, match=message):
        contrast(source, unread)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_heads=4, qk_norm=True), "conversion 'pairs' joins heads of timm's basic Attention, not of Attention"),
        (dict(num_heads=3), "conversion 'pairs' makes one head of two, and 3 heads do not pair"),
    ],
)
def test_heads_that_cannot_pair_are_refused_before_an_image_is_read(settings, message):
    unread = (pytest.fail("an image was read") for _ in range(1))
    with pytest.raises(ValueError, match=message):
        from_vit(plain_vit(**settings), "pairs", unread)


def test_other_misuse_is_refused():
    source = plain_vit()
    with pytest.raises(ValueError, match=r"lambda_init=1 must be between 0 and 1"):
        contrast(source, lambda_init=1)
    with pytest.raises(ValueError, match="images is empty"):
        contrast(source, [])
    with pytest.raises(ValueError, match=r"'contrast' is not one of attn='diff'"):
        from_vit(source, "contrast")
    with pytest.raises(ValueError, match=r"'mirror' does not use images: leave them out, or choose 'contrast'$"):
        from_vit(source, "mirror", IMAGES, attn="diff_v2")
    with pytest.raises(
        ValueError, match=r"'svd' does not use images: leave them out, or choose 'pairs' or 'calibrated'$"
    ):
        from_vit(source, "svd", IMAGES)
