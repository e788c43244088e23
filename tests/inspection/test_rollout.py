"""Rollout and class relevance against their formulas, and in cases where the result is known."""

import numpy as np
import pytest
import torch
from vits import explicit_maps, make_vit

from diffvit_timm.inspection.attention_maps import AttentionMaps, capture_attention
from diffvit_timm.inspection.rollout import class_relevance, heat_maps, mixing, rollout


def captured_by(model, images):
    with capture_attention(model) as captured, torch.no_grad():
        model(images)
    return captured


def maps_of(difference):
    return AttentionMaps(torch.tensor(difference, dtype=torch.float32)[None])


def test_rollout_of_plain_attention_is_the_formula_of_the_paper_in_float64(images):
    captured = captured_by(make_vit("timm"), images)
    expected = np.eye(17)
    for layer in captured:
        mean = layer.maps().map1.double().mean(dim=1).numpy()
        expected = (0.5 * mean + 0.5 * np.eye(17)) @ expected
    np.testing.assert_allclose(rollout(captured).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("part", ["clamp", "positive", "negative", "abs"])
def test_rows_of_a_rollout_sum_to_one(any_vit, images, part):
    matrix = rollout(captured_by(any_vit(), images), part)
    assert matrix.shape == (3, 17, 17)
    assert matrix.min() >= 0
    torch.testing.assert_close(matrix.sum(-1), torch.ones(3, 17))


@pytest.mark.parametrize("part", ["clamp", "positive", "abs"])
def test_without_lambda_the_rollout_is_that_of_plain_attention(images, part):
    model = make_vit("diff")
    for layer in model.differential_layers():
        layer.set_lambda_init(0.0)
        for vector in (layer.lambda_q1, layer.lambda_k1, layer.lambda_q2, layer.lambda_k2):
            torch.nn.init.zeros_(vector)
    captured = captured_by(model, images)
    expected = torch.eye(17)
    for layer in captured:
        expected = (torch.eye(17) + layer.maps().map1.mean(dim=1)) / 2 @ expected
    torch.testing.assert_close(rollout(captured, part), expected)


def test_without_attention_the_rollout_is_the_identity(images):
    captured = captured_by(make_vit("diff"), images)
    torch.testing.assert_close(rollout(captured, residual=1.0), torch.eye(17).expand(3, -1, -1))


def test_identity_maps_give_the_identity(images):
    """The tokens are orthogonal and the logits large, so each token attends only to itself."""
    model = make_vit("timm", embed_dim=64, num_heads=1, pos_embed="none", class_token=False, global_pool="avg")
    with torch.no_grad():
        for block in model.blocks:
            block.norm1 = torch.nn.Identity()
            block.attn.qkv.weight.zero_()
            block.attn.qkv.bias.zero_()
            block.attn.qkv.weight[:64] = block.attn.qkv.weight[64:128] = 1e3 * torch.eye(64)
    tokens = torch.eye(64)[:16].expand(1, -1, -1)
    model.patch_embed.proj = torch.nn.Identity()
    model.patch_embed.forward = lambda x: tokens
    captured = captured_by(model, images[:1])
    torch.testing.assert_close(rollout(captured), torch.eye(16)[None])


def test_rollout_and_relevance_of_an_image_do_not_depend_on_its_batch(any_vit, images):
    model = any_vit()
    together, relevance = rollout(captured_by(model, images)), class_relevance(model, images)[0]
    for i in range(3):
        alone = images[i : i + 1]
        torch.testing.assert_close(rollout(captured_by(model, alone))[0], together[i], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(class_relevance(model, alone)[0][0], relevance[i], atol=1e-5, rtol=1e-4)


def test_the_parts_of_signed_maps():
    heads = maps_of([[[0.6, -0.2], [0.1, 0.3]], [[-0.4, 0.4], [0.1, 0.1]]])  # mean: [[.1, .1], [.1, .2]]
    torch.testing.assert_close(mixing(heads), torch.tensor([[[0.5, 0.5], [0.375, 0.625]]]))
    torch.testing.assert_close(mixing(heads, "positive"), torch.tensor([[[0.5, 0.5], [1 / 3, 2 / 3]]]))
    torch.testing.assert_close(mixing(heads, "negative"), torch.eye(2)[None])  # nothing negative: tokens stay
    mixed = maps_of([[[0.3, -0.1], [-0.2, 0.2]]])
    torch.testing.assert_close(mixing(mixed, "negative"), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
    torch.testing.assert_close(mixing(mixed, "abs"), torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))


def test_class_relevance_is_the_formula_of_the_paper_on_timms_explicit_path(images):
    model = make_vit("timm")
    targets = torch.tensor([4, 0, 2])
    relevance, logits, _ = class_relevance(model, images, targets)
    seen = explicit_maps(model)
    expected_logits = model(images)
    slopes = torch.autograd.grad(expected_logits.gather(1, targets[:, None]).sum(), seen)
    expected = torch.eye(17, dtype=torch.float64).expand(3, -1, -1)
    for attention, slope in zip(seen, slopes, strict=True):
        expected = expected + (attention * slope).double().clamp(min=0).mean(dim=1).detach() @ expected
    torch.testing.assert_close(relevance.double(), expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(logits, expected_logits.detach(), atol=1e-5, rtol=1e-5)


def test_without_targets_the_relevance_is_that_of_the_prediction(any_vit, images):
    model = any_vit()
    relevance, logits, _ = class_relevance(model, images)
    assert torch.equal(relevance, class_relevance(model, images, logits.argmax(-1))[0])
    other = (logits.argmax(-1) + 1) % 5
    assert not torch.allclose(relevance, class_relevance(model, images, other)[0])


def test_relevance_leaves_the_model_as_it_was(any_vit, images):
    model = any_vit(drop_path_rate=0.5, proj_drop_rate=0.5).train()
    model.set_grad_checkpointing(True)
    model.requires_grad_(False)
    first, second = class_relevance(model, images)[0], class_relevance(model, images)[0]
    assert torch.equal(first, second)
    assert model.training
    assert model.grad_checkpointing
    assert all(p.grad is None for p in model.parameters())
    with torch.inference_mode(False), torch.no_grad():
        torch.testing.assert_close(class_relevance(model, images)[0], first)


def test_heat_maps_have_one_value_per_patch(any_vit):
    model = any_vit(img_size=(16, 24), reg_tokens=2)
    heat = heat_maps(model, torch.randn(2, 3, 16, 24))
    for maps in (heat.last_layer, heat.rollout, heat.relevance):
        assert maps.shape == (2, 4, 6)
        assert maps.min() >= 0
    assert heat.logits.shape == (2, 5)


def test_heat_maps_of_many_images_are_those_of_each_image(any_vit):
    model, images = any_vit(), torch.randn(6, 3, 16, 16)
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    together = heat_maps(model, images, targets)
    for i in range(6):
        alone = heat_maps(model, images[i : i + 1], targets[i : i + 1])
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_[i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda captured: rollout(captured, residual=1.5), r"residual=1.5 must be in \[0, 1\]"),
        (lambda captured: rollout(captured, "largest"), "part='largest' is not known: choose one of 'clamp'"),
        (lambda captured: class_relevance(make_vit("diff", num_classes=0), torch.zeros(1, 3, 16, 16)), "has no head"),
    ],
)
def test_invalid_arguments_are_errors(images, call, message):
    captured = captured_by(make_vit("diff"), images)
    with pytest.raises(ValueError, match=message):
        call(captured)
