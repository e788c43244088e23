"""Calibration reads the images once, and keeps more of the source than a conversion from the weights only."""

import pytest
import timm
import torch

from diffvit_timm import conversion_report, differential_layers, from_vit
from diffvit_timm.conversion.calibration import FIT_RIDGE, RIDGE, UNIFORM_WEIGHT, fit_projections, logit_moments

SHAPE = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)


def source_with_outlier_channels():
    """A plain ViT whose tokens are far from white, as those of trained networks are."""
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", **SHAPE).eval()
    for block in source.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
        torch.nn.init.normal_(block.attn.qkv.bias, std=0.5)
        block.norm1.weight.data *= torch.logspace(-1, 1, 48)[torch.randperm(48)]
    return source


def test_the_moments_are_those_of_the_queries_and_of_the_keys_under_each_querys_map():
    source, images = source_with_outlier_channels(), torch.randn(6, 3, 32, 32)
    moments = logit_moments(source, images)
    with torch.inference_mode():
        x = source.norm_pre(source._pos_embed(source.patch_embed(images)))
        for block, (gram_q, gram_k) in zip(source.blocks, moments, strict=True):
            q, k, _ = block.attn.qkv(block.norm1(x)).double().reshape(6, 17, 3, 3, 16).unbind(2)
            maps = (torch.einsum("bnhd,bmhd->bhnm", q, k) / 4).softmax(-1)
            maps = (1 - UNIFORM_WEIGHT) * maps + UNIFORM_WEIGHT / 17
            # (B, N, M, H, d): keys m, centred for query n
            seen = k[:, None] - torch.einsum("bhnm,bmhd->bnhd", maps, k)[:, :, None]
            covariances = torch.einsum("bhnm,bnmhi,bnmhj->hij", maps, seen, seen)
            for gram, expected in ((gram_q, torch.einsum("bnhi,bnhj->hij", q, q)), (gram_k, covariances)):
                expected /= 6 * 17
                ridge = RIDGE * expected.diagonal(dim1=-2, dim2=-1).mean(-1)
                expected += ridge[:, None, None] * torch.eye(16)
                torch.testing.assert_close(gram, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
            x = block(x)


def test_batches_are_read_once_and_give_the_moments_of_the_whole():
    source, images = source_with_outlier_channels(), torch.randn(10, 3, 32, 32)
    whole = logit_moments(source, images)
    batched = logit_moments(source, (batch for batch in images.split(4)))  # a generator cannot be read twice
    for pair, other in zip(whole, batched, strict=True):
        torch.testing.assert_close(pair, other, rtol=1e-4, atol=1e-6)


def test_calibrated_keeps_more_of_the_logits_than_svd():
    source = source_with_outlier_channels()
    images, others = torch.randn(64, 3, 32, 32), torch.randn(32, 3, 32, 32)
    settings = dict(branch_dims=(8, 8), lambda_init=0.0)
    calibrated = conversion_report(source, from_vit(source, images=images, **settings), others)
    svd = conversion_report(source, from_vit(source, **settings), others)
    assert sum(calibrated.energy_kept) > sum(svd.energy_kept)
    assert calibrated.output_error < svd.output_error


def test_a_single_image_calibrates_without_losing_the_logits_of_others():
    source = source_with_outlier_channels()
    model = from_vit(source, images=torch.randn(1, 3, 32, 32))
    tokens = torch.randn(2, 9, 48)
    for plain, diff in zip(source.blocks, model.blocks, strict=True):
        q, k, _ = plain.attn.qkv(tokens).reshape(2, 9, 3, 3, 16).permute(2, 0, 3, 1, 4).unbind(0)
        expected = q @ k.mT * plain.attn.scale
        q, k, _, _ = diff.attn.project_qkv(tokens)
        actual = q @ k.mT * diff.attn.scale
        expected, actual = (logits - logits.mean(-1, keepdim=True) for logits in (expected, actual))
        assert (actual - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("bias", [True, False])
def test_the_projections_are_the_ridge_regression_of_the_sources_attention_output(bias):
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", **SHAPE, proj_bias=bias).eval()
    for block in source.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
    images = torch.randn(40, 3, 32, 32)
    model = from_vit(source, lambda_init=0.3, branch_dims=(8, 8)).eval()
    before = conversion_report(source, model, images).attention_error
    starts = [layer.proj.weight.detach().double() for layer in differential_layers(model)]
    inputs = []
    hooks = [block.attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in source.blocks]
    with torch.inference_mode():
        source(images)
    for hook in hooks:
        hook.remove()
    fit_projections(source, model, images.split(7))
    after = conversion_report(source, model, images).attention_error
    assert all(new < old for new, old in zip(after, before, strict=True))

    for layer, block, tokens, start in zip(differential_layers(model), source.blocks, inputs, starts, strict=True):
        with torch.inference_mode():
            x = layer.attend(tokens).flatten(0, 1).double()
            y = block.attn(tokens).flatten(0, 1).double()
        weight = FIT_RIDGE * x.square().sum(0).mean()
        ones = torch.ones(len(x), 1).double()
        x, start = (torch.cat([x, ones], 1), torch.cat([start.T, torch.zeros(1, 48)])) if bias else (x, start.T)
        # least squares with rows that pull towards the start; proj.bias starts at 0
        rows = torch.cat([x, weight.sqrt() * torch.eye(x.shape[1]).double()])
        expected = torch.linalg.lstsq(rows, torch.cat([y, weight.sqrt() * start])).solution
        torch.testing.assert_close(layer.proj.weight.detach(), expected[:48].T.float(), rtol=1e-3, atol=1e-4)
        if bias:
            torch.testing.assert_close(layer.proj.bias.detach(), expected[48].float(), rtol=1e-3, atol=1e-4)


def test_the_source_keeps_its_mode_and_no_hook_after_an_error():
    source = source_with_outlier_channels().train()
    with pytest.raises(RuntimeError):
        logit_moments(source, torch.randn(1, 7, 32, 32))
    assert source.training
    assert not any(block.attn._forward_pre_hooks for block in source.blocks)


def test_svd_refuses_images_and_calibrated_needs_them():
    source = source_with_outlier_channels()
    with pytest.raises(ValueError, match="empty"):
        from_vit(source, images=[])
    with pytest.raises(ValueError, match="'svd'"):
        from_vit(source, "svd", images=torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="'calibrated' needs images"):
        from_vit(source, "calibrated")
