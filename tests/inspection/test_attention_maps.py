"""Captured maps are those that the layers use, and capturing does not change the model."""

import pytest
import torch
from timm.layers import DiffAttention
from timm.models.vision_transformer import ParallelScalingBlock
from vits import KINDS, explicit_maps, make_vit

from diffvit_timm.inspection.attention_maps import AttentionMaps, capture_attention, stochastic


def captured_maps(model, images):
    with capture_attention(model) as captured, torch.no_grad():
        model(images)
    return [layer.maps() for layer in captured]


def hooks_of(model):
    return [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def maps_of_timms_unfused_layers(model, images):
    """Return the maps of timm's explicit path, (B, H or 2 H, N, N) per layer."""
    seen = explicit_maps(model)
    with torch.no_grad():
        model(images)
    return seen


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}], ids=["", "qk_norm"])
def test_maps_of_plain_attention_are_those_of_timms_explicit_path(images, settings):
    model = make_vit("timm", **settings)
    maps = captured_maps(model, images)
    for ours, timms in zip(maps, maps_of_timms_unfused_layers(model, images), strict=True):
        torch.testing.assert_close(ours.map1, timms)
        assert ours.map2 is None
        assert ours.difference is ours.map1


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}], ids=["", "qk_norm"])
def test_maps_of_timms_differential_attention_are_those_of_its_explicit_path(images, settings):
    model = make_vit("timm_diff", **settings)
    maps = captured_maps(model, images)
    timms = maps_of_timms_unfused_layers(model, images)
    for ours, pairs, block in zip(maps, timms, model.blocks, strict=True):
        torch.testing.assert_close(ours.map1, pairs[:, 0::2])
        torch.testing.assert_close(ours.map2, pairs[:, 1::2])
        torch.testing.assert_close(ours.lam, block.attn._compute_lambda())


def test_maps_of_the_papers_layer_are_those_of_timms_with_its_weights(images):
    model = make_vit("paper", branch_dims=(8, 8))
    maps = captured_maps(model, images)
    for depth, block in enumerate(model.blocks):
        twin = DiffAttention(32, 2, qkv_bias=True, depth=depth)
        twin.load_state_dict(block.attn.state_dict(), strict=False)
        block.attn = twin
    for ours, pairs in zip(maps, maps_of_timms_unfused_layers(model, images), strict=True):
        torch.testing.assert_close(ours.map1, pairs[:, 0::2])
        torch.testing.assert_close(ours.map2, pairs[:, 1::2])


@pytest.mark.parametrize(("kind", "cut"), [("diff", 12), ("diff_v2", None)])
def test_maps_are_the_float64_formula(images, kind, cut):
    model = make_vit(kind)
    with capture_attention(model) as captured, torch.no_grad():
        model(images)
    layer, maps = captured[1].layer, captured[1].maps()
    rows = layer.qkv.double()(captured[1].tokens.double())
    if kind == "diff":
        q, k = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in rows.split(32, dim=-1)[:2])
        logits = [q[..., :cut] @ k[..., :cut].mT, q[..., cut:] @ k[..., cut:].mT]
        scale = 8**-0.5
    else:
        q, k, _ = rows.split([64, 32, 32], dim=-1)
        q, k = q.unflatten(-1, (2, 2, 16)), k.unflatten(-1, (2, 16)).transpose(1, 2)
        logits = [q[..., i, :].transpose(1, 2) @ k.mT for i in (0, 1)]
        scale = 16**-0.5
    for actual, expected in zip((maps.map1, maps.map2), logits, strict=True):
        torch.testing.assert_close(actual.double(), (expected * scale).softmax(dim=-1), atol=1e-5, rtol=1e-4)


def test_rows_of_both_maps_sum_to_one_and_those_of_the_difference_to_one_minus_lambda(any_vit, images):
    for maps in captured_maps(any_vit(), images):
        ones = torch.ones(3, 2, 17)
        torch.testing.assert_close(maps.map1.sum(-1), ones)
        torch.testing.assert_close(maps.attended.sum(-1), ones)
        if maps.map2 is not None:
            torch.testing.assert_close(maps.map2.sum(-1), ones)
            lam = maps.lam.expand(3, 2, 17, 1)[..., 0]
            torch.testing.assert_close(maps.difference.sum(-1), ones - lam)


def test_logits_are_the_same_to_the_bit_and_no_hook_stays_behind(any_vit, images):
    model = any_vit()
    with torch.no_grad():
        expected = model(images)
        with capture_attention(model):
            assert torch.equal(model(images), expected)
    assert not hooks_of(model)


def test_hooks_are_gone_after_an_error_in_the_context(any_vit, images):
    model = any_vit()
    with pytest.raises(ZeroDivisionError), capture_attention(model):
        raise ZeroDivisionError
    assert not hooks_of(model)


def test_the_maps_of_an_image_do_not_depend_on_its_batch(any_vit, images):
    model = any_vit()
    together = captured_maps(model, images)
    for i in range(len(images)):
        for one, all_ in zip(captured_maps(model, images[i : i + 1]), together, strict=True):
            torch.testing.assert_close(one.difference[0], all_.difference[i], atol=1e-5, rtol=1e-4)


def test_the_last_of_several_forward_passes_is_kept(any_vit, images):
    model = any_vit()
    with capture_attention(model) as captured, torch.no_grad():
        with pytest.raises(ValueError, match="nothing is captured yet"):
            captured[0]
        model(images)
        model(images[:1])
        assert len(captured) == 3
        assert captured[0].maps().map1.shape == (1, 2, 17, 17)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "shape", "prefix", "grid", "reads_class_token"),
    [
        ({"reg_tokens": 3}, (16, 16), 4, (4, 4), True),
        ({"class_token": False, "global_pool": "avg"}, (16, 16), 0, (4, 4), False),
        ({"class_token": False, "reg_tokens": 2, "global_pool": "avg"}, (16, 16), 2, (4, 4), False),
        ({"global_pool": "avg"}, (16, 16), 1, (4, 4), False),
        ({"global_pool": "map"}, (16, 16), 1, (4, 4), False),
        ({"img_size": (16, 24)}, (16, 24), 1, (4, 6), True),
        ({"dynamic_img_size": True}, (24, 12), 1, (6, 3), True),
        ({"dynamic_img_size": True, "dynamic_img_pad": True}, (22, 11), 1, (6, 3), True),
        ({"num_classes": 0}, (16, 16), 1, (4, 4), True),
    ],
)
def test_prefix_tokens_pooling_and_image_shapes_are_understood(kind, settings, shape, prefix, grid, reads_class_token):
    model = make_vit(kind, **settings)
    with capture_attention(model) as captured, torch.no_grad():
        model(torch.randn(2, 3, *shape))
    maps = captured[-1].maps().map1
    assert captured.num_prefix_tokens == prefix
    assert captured.reads_class_token is reads_class_token
    rows = captured.output_rows(maps)
    expected = maps[..., 0, :] if reads_class_token else maps[..., prefix:, :].mean(-2)
    assert torch.equal(rows, expected)
    patches = captured.on_patches(rows)
    assert patches.shape == (2, 2, *grid)
    assert torch.equal(patches.flatten(-2), expected[..., prefix:])


def test_masks_and_causality_of_the_call_are_in_the_maps(any_vit, images):
    model = any_vit()
    mask = torch.ones(17, 17, dtype=torch.bool)
    mask[:, 5] = False
    with capture_attention(model) as captured, torch.no_grad():
        model.forward_features(images, attn_mask=mask)
        for layer in captured:
            maps = layer.maps()
            assert (maps.difference[..., 5] == 0).all()
            assert (maps.map1.sum(-1) - 1).abs().max() < 1e-5
        model.forward_features(images, is_causal=True)
        assert captured[0].maps().difference.triu(1).abs().max() == 0


def test_a_compiled_model_can_be_captured(images):
    model = make_vit("diff")
    expected = captured_maps(model, images)
    model.compile(backend="eager")
    with torch.no_grad():
        model(images)
    for ours, theirs in zip(captured_maps(model, images), expected, strict=True):
        assert torch.equal(ours.difference, theirs.difference)


def test_dropped_patches_do_not_fill_the_grid(images):
    model = make_vit("timm", patch_drop_rate=0.5).train()
    with capture_attention(model) as captured, torch.no_grad():
        model(images)
    with pytest.raises(ValueError, match=r"8 patches do not fill the grid of 4 x 4.*model.eval"):
        captured.on_patches(captured.output_rows(captured[0].maps().map1))


def test_unsupported_models_are_errors():
    with (
        pytest.raises(TypeError, match="the attention of a Linear cannot be captured: it has no self-attention layer"),
        capture_attention(torch.nn.Linear(2, 2)),
    ):
        pass
    from timm.models.nest import Attention as NestAttention

    with (
        pytest.raises(TypeError, match=r"1 is an Attention, and the class has no adapter"),
        capture_attention(torch.nn.Sequential(torch.nn.Linear(2, 2), NestAttention(4, 2))),
    ):
        pass
    fused = ParallelScalingBlock(4, 2, fuse_out_proj=True)
    with (
        pytest.raises(TypeError, match=r"ParallelScalingBlock, and its attention and MLP share one output projection"),
        capture_attention(torch.nn.Sequential(fused)),
    ):
        pass


def test_rows_of_zeros_become_the_identitys():
    matrix = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    assert torch.equal(stochastic(matrix), torch.tensor([[1.0, 0.0], [0.25, 0.75]]))


def test_attended_is_the_positive_part_of_the_difference():
    maps = AttentionMaps(torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[0.1, 0.9]]]]), torch.tensor(0.8))
    torch.testing.assert_close(maps.difference, torch.tensor([[[[0.42, -0.22]]]]))
    two = (tensor.expand(1, 1, 2, 2) for tensor in (maps.map1, maps.map2))
    expected = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    torch.testing.assert_close(AttentionMaps(*two, maps.lam).attended, expected)


@pytest.mark.parametrize("gated", [False, True])
def test_the_gradient_of_the_maps_is_that_of_the_explicit_graph(images, gated):
    """The reference is autograd through timm's explicit path, whose graph contains the maps."""
    from timm.layers import Attention

    torch.manual_seed(0)
    model = make_vit("timm")
    if gated:
        for block in model.blocks:
            block.attn = Attention(32, 2, qkv_bias=True, gated=True)
    with capture_attention(model) as captured:
        score = model(images)[:, 2].sum()
    gradients = torch.autograd.grad(score, [layer.merged for layer in captured])
    seen = explicit_maps(model)
    score = model(images)[:, 2].sum()
    expected = torch.autograd.grad(score, seen)
    for layer, gradient, truth in zip(captured, gradients, expected, strict=True):
        torch.testing.assert_close(layer.map_gradient(gradient)[1], truth, atol=1e-6, rtol=1e-3)


def test_the_gradient_of_a_differential_map_is_that_of_branch_1_in_timms_explicit_graph(images):
    model = make_vit("timm_diff")
    with capture_attention(model) as captured:
        score = model(images)[:, 2].sum()
    gradients = torch.autograd.grad(score, [layer.merged for layer in captured])
    seen = explicit_maps(model)
    pairs = torch.autograd.grad(model(images)[:, 2].sum(), seen)
    for layer, gradient, pair in zip(captured, gradients, pairs, strict=True):
        slope = layer.map_gradient(gradient)[1]
        torch.testing.assert_close(slope, pair[:, 0::2], atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(-slope * layer.maps().lam, pair[:, 1::2], atol=1e-6, rtol=1e-3)
