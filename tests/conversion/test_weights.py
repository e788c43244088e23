"""Conversion keeps the logits of the source, and refuses networks that it cannot convert."""

from functools import partial

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import save_for_hf
from torch import nn

from diffvit_timm import convert_state_dict, differential_layers, from_vit, logit_rotation
from diffvit_timm.errors import InputError
from diffvit_timm.models.pretrained import save_pretrained

SHAPE = dict(img_size=32, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=5)


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def plain_vit(name="vit_tiny_patch16_224", spread=0.1, **kwargs):
    """A plain ViT whose attention is far from uniform, so that a loss of logits changes its output."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SHAPE, **kwargs}).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=spread)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=spread)
    return model


def logits_of(layer, x):
    """Logits of both branches together, (B, H, N, N), minus their mean over the keys, which no softmax notices."""
    q, k, _, _ = layer.project_qkv(x)
    logits = q @ k.mT * layer.scale
    return logits - logits.mean(-1, keepdim=True)


def plain_logits(attn, x):
    B, N, _ = x.shape
    q, k, _ = attn.qkv(x).reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    logits = q @ k.mT * attn.scale
    return logits - logits.mean(-1, keepdim=True)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    head_dim=st.sampled_from([2, 3, 8, 16, 32]),
    outlier=st.sampled_from([1.0, 30.0, 1000.0]),
    rank=st.integers(0, 32),
    bias=st.booleans(),
)
def test_rotating_a_head_keeps_its_logits_and_makes_no_nan(seed, head_dim, outlier, rank, bias):
    generator = torch.Generator().manual_seed(seed)
    heads, dim = 2, 40
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    rank = min(rank, head_dim)
    q_rows, k_rows = (draw(heads, head_dim, rank) @ draw(heads, rank, dim + 1) for _ in range(2))
    if not bias:
        q_rows[..., -1] = 0
    q_rows[..., 0] *= outlier
    k_rows = k_rows[..., :-1]
    k_rows[..., 0] *= outlier
    rotate_q, rotate_k = logit_rotation(q_rows @ q_rows.mT, k_rows @ k_rows.mT)
    tokens = draw(30, dim)
    with_one = torch.cat([tokens, torch.ones(30, 1, dtype=torch.float64)], -1)
    expected = (with_one @ q_rows.mT) @ (tokens @ k_rows.mT).mT
    actual = (with_one @ (rotate_q @ q_rows).mT) @ (tokens @ (rotate_k @ k_rows).mT).mT
    assert torch.isfinite(rotate_q).all()
    assert torch.isfinite(rotate_k).all()
    assert (actual - expected).norm() <= 1e-4 * expected.norm()


def test_the_first_channels_carry_the_most_that_any_can():
    torch.manual_seed(0)
    q_rows, k_rows = torch.randn(1, 16, 40, dtype=torch.float64), torch.randn(1, 16, 40, dtype=torch.float64)
    rotate_q, rotate_k = logit_rotation(q_rows @ q_rows.mT, k_rows @ k_rows.mT)
    q_rotated, k_rotated = rotate_q @ q_rows, rotate_k @ k_rows
    form = q_rows[0].T @ k_rows[0]  # the bilinear form of the head: logits of white tokens
    singular = torch.linalg.svdvals(form)
    for width in (1, 8, 12, 16):
        kept = q_rotated[0, :width].T @ k_rotated[0, :width]
        torch.testing.assert_close((form - kept).norm(), singular[width:].square().sum().sqrt(), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("method", ["svd", "slice"])
def test_the_two_branches_together_have_the_logits_of_the_source_at_the_same_scale(method):
    source = plain_vit()
    model = from_vit(source, method=method)
    x = torch.randn(2, 9, 48)
    for plain, diff in zip(source.blocks, model.blocks, strict=True):
        assert relative_error(logits_of(diff.attn, x), plain_logits(plain.attn, x)) < 1e-4


@pytest.mark.parametrize("kwargs", [dict(), dict(qkv_bias=False), dict(proj_bias=False)])
def test_with_lambda_0_and_a_second_branch_of_width_1_the_network_is_nearly_the_source(kwargs):
    source = plain_vit(spread=0.05, **kwargs)
    model = from_vit(source, lambda_init=0.0, branch_dims=(15, 1))
    x = torch.randn(4, 3, 32, 32)
    assert relative_error(model(x), source(x)) < 0.02


def test_a_head_of_low_rank_is_converted_without_any_loss():
    source = plain_vit()
    for block in source.blocks:
        with torch.no_grad():
            q, k, v = block.attn.qkv.weight.reshape(3, 3, 16, 48)
            mixing = torch.randn(3, 16, 8) @ torch.randn(3, 8, 16) * 0.1
            block.attn.qkv.weight.copy_(torch.stack([mixing @ q, k, v]).reshape(144, 48))
            block.attn.qkv.bias[:48] = (mixing @ block.attn.qkv.bias[:48].reshape(3, 16, 1)).flatten()
    model = from_vit(source, lambda_init=0.0, branch_dims=(8, 8))
    x = torch.randn(4, 3, 32, 32)
    assert relative_error(model(x), source(x)) < 1e-4


def test_svd_keeps_more_than_slice():
    source = plain_vit(embed_dim=96, spread=0.15)
    x = torch.randn(8, 3, 32, 32)
    errors = {
        m: relative_error(from_vit(source, method=m, branch_dims=(16, 16))(x), source(x)) for m in ("svd", "slice")
    }
    assert errors["svd"] < 0.7 * errors["slice"]


@pytest.mark.parametrize("lam", [0.0, 0.05, 0.3])
def test_lambda_starts_exactly_at_lambda_init_and_has_a_gradient(lam):
    model = from_vit(plain_vit(), lambda_init=lam)
    assert [a.compute_lambda(None).item() for a in differential_layers(model)] == pytest.approx([lam] * 2, abs=1e-7)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for layer in differential_layers(model):
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            assert getattr(layer, name).grad.abs().sum() > 0


def test_version_2_mirrors_the_source_exactly_and_every_new_parameter_learns():
    source, x = plain_vit(embed_dim=96, spread=0.15), torch.randn(8, 3, 32, 32)
    model = from_vit(source, attn="diff_v2")
    assert relative_error(model(x), source(x)) < 1e-6
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []
    for layer in differential_layers(model):
        queries = layer.qkv.weight.grad[: 2 * 96].reshape(3, 2, 32, 96)
        assert (queries[:, 1].flatten(1).norm(dim=1) > 0).all()
        assert (layer.lambda_proj.weight.grad.norm(dim=1) > 0).all()


@pytest.mark.parametrize("lam", [0.05, 0.3, 0.9])
def test_the_mirror_is_exact_for_any_lambda(lam):
    source, x = plain_vit(), torch.randn(4, 3, 32, 32)
    assert relative_error(from_vit(source, "mirror", attn="diff_v2", lambda_init=lam)(x), source(x)) < 1e-4


def test_a_mirror_at_lambda_one_half_is_exact_in_half_precision_weights_too():
    source = plain_vit()
    halved = plain_vit()
    halved.load_state_dict(source.half().state_dict())
    model = from_vit(source, attn="diff_v2").float()
    x = torch.randn(4, 3, 32, 32)
    assert relative_error(model(x), halved(x)) < 1e-6


def test_pairs_halve_the_heads_and_keep_the_map_of_the_first_of_each_pair():
    source = plain_vit(num_heads=4, embed_dim=64)
    model = from_vit(source, "pairs", lambda_init=0.0)
    assert [layer.num_heads for layer in differential_layers(model)] == [2, 2]
    with torch.no_grad():  # two heads with equal maps become one differential head without any loss
        for block in source.blocks:
            q, k, _ = block.attn.qkv.weight.reshape(3, 2, 2, 16, 64)
            q[:, 1], k[:, 1] = q[:, 0], k[:, 0]
            q, k, _ = block.attn.qkv.bias.reshape(3, 2, 2, 16)
            q[:, 1], k[:, 1] = q[:, 0], k[:, 0]
    x = torch.randn(4, 3, 32, 32)
    for lam in (0.0, 0.5):
        assert relative_error(from_vit(source, "pairs", lambda_init=lam)(x), source(x)) < 1e-5


def test_pairs_find_the_heads_whose_maps_are_alike():
    source, order = plain_vit(num_heads=4, embed_dim=64), [2, 0, 3, 1]
    with torch.no_grad():
        for block in source.blocks:
            for rows in (block.attn.qkv.weight, block.attn.qkv.bias):
                heads = rows.view(3, 4, 16, -1)
                heads[:2, 1::2] = heads[:2, 0::2]
                heads.copy_(heads[:, order])  # the twins are now (1, 3) and (0, 2)
    x = torch.randn(4, 3, 32, 32)
    assert relative_error(from_vit(source, "pairs", images=x, lambda_init=0.0)(x), source(x)) < 1e-5
    assert relative_error(from_vit(source, "pairs", lambda_init=0.0)(x), source(x)) > 1e-2  # neighbours


def test_pairs_are_refused_if_the_heads_do_not_pair():
    with pytest.raises(ValueError, match="3 heads do not pair"):
        from_vit(plain_vit(), "pairs")
    normed = plain_vit(num_heads=4, embed_dim=64, qk_norm=True)
    with pytest.raises(ValueError, match=r"blocks.0.attn: conversion 'pairs' joins heads of timm's basic Attention"):
        from_vit(normed, "pairs")


def test_uniform_maps_are_converted_exactly_under_any_lambda():
    source = plain_vit()
    with torch.no_grad():
        for block in source.blocks:
            block.attn.qkv.weight[:96] = 0  # uniform maps: both branches are the mean over the tokens
            block.attn.qkv.bias[:96] = 0
    x = torch.randn(2, 3, 32, 32)
    assert relative_error(from_vit(source, lambda_init=0.4)(x), source(x)) < 1e-5


FAMILIES = {
    "deit": dict(name="deit_tiny_patch16_224"),
    "augreg without a head": dict(name="vit_tiny_patch16_224", num_classes=0),
    "deit3": dict(name="deit3_small_patch16_224", init_values=0.5),
    "dinov2 with registers": dict(
        name="vit_small_patch14_reg4_dinov2", patch_size=14, img_size=28, num_classes=0, init_values=0.5
    ),
    "clip": dict(name="vit_base_patch16_clip_quickgelu_224"),
    "siglip": dict(name="vit_base_patch16_siglip_224", num_classes=0),
    "siglip with a head": dict(name="vit_base_patch16_siglip_gap_224"),
    "dino": dict(name="vit_small_patch16_224.dino", num_classes=0),
    "patch 8": dict(name="vit_small_patch16_224", patch_size=8),
    "average pooling": dict(name="vit_tiny_patch16_224", global_pool="avg"),
    "no class token": dict(name="vit_tiny_patch16_224", class_token=False, global_pool="avg"),
    "one channel, oblong": dict(name="vit_tiny_patch16_224", in_chans=1, img_size=(32, 48)),
    "learned two-dimensional position embedding": dict(name="diffvit_tiny_patch16", attn="plain", pos_embed="learn_2d"),
    "fixed two-dimensional position embedding": dict(name="diffvit_tiny_patch16", attn="plain", pos_embed="sincos"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_sources_converts_and_saves(family, tmp_path):
    source = plain_vit(spread=0.05, **FAMILIES[family])
    state = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    x = torch.randn(8, source.in_chans, *source.patch_embed.img_size)
    for kwargs, most in (
        (dict(lambda_init=0.0, branch_dims=(15, 1)), 0.03),
        (dict(lambda_init=0.0, branch_dims=(15, 1), images=x), 0.03),
        (dict(attn="diff_v2"), 1e-5),
    ):
        model = from_vit(source, **kwargs)
        assert relative_error(model(x), source(x)) < most
        assert all(torch.equal(tensor, state[key]) for key, tensor in source.state_dict().items())
        assert model.pretrained_cfg["mean"] == source.pretrained_cfg["mean"]
        save_for_hf(model, tmp_path, safe_serialization=True)
        assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))


def test_device_dtype_and_mode_are_the_sources():
    model = from_vit(plain_vit().to(torch.bfloat16).train())
    assert model.training
    assert model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert model.blocks[0].attn.lambda_q1.dtype == torch.float32


def test_a_vit_from_its_constructor_converts_and_cannot_be_saved_because_no_name_rebuilds_it(tmp_path):
    source, x = timm.models.VisionTransformer(**SHAPE, in_chans=1).eval(), torch.randn(2, 1, 32, 32)
    model = from_vit(source, attn="diff_v2")
    torch.testing.assert_close(model(x), source(x))
    with pytest.raises(InputError, match=r"built without timm\.create_model cannot be saved"):
        save_pretrained(model, tmp_path)


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("resnet18", dict(), "ResNet cannot be converted: it has no self-attention layer of timm"),
        ("vit_tiny_patch16_224", dict(attn_layer="diff"), "differential already: blocks.0.attn is a DiffAttention"),
        ("diffvit_tiny_patch16", dict(), "differential already: blocks.0.attn is a DifferentialAttention"),
        ("cait_xxs24_224", dict(), "blocks.0.attn is a TalkingHeadAttn, and it mixes its heads"),
        ("xcit_nano_12_p16_224", dict(), "blocks.0.attn is an XCA, and it attends over channels"),
        ("convit_tiny", dict(), "blocks.0.attn is a GPSA, and it adds a second map"),
        ("vit_dpwee_patch16_reg1_gap_256", dict(), "differential already: blocks.0 is a DiffParallelScalingBlock"),
        ("hiera_tiny_224", dict(), "is a MaskUnitAttention, and the class has no adapter"),
        ("twins_svt_small", dict(), "is a LocallyGroupedAttn, and the class has no adapter"),
    ],
)
def test_a_network_that_cannot_be_converted_is_refused_with_the_layer_and_the_reason(name, kwargs, reason):
    with torch.device("meta"):
        source = timm.create_model(name, **kwargs)
    with pytest.raises(ValueError, match=reason):
        from_vit(source)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(act_layer=partial(nn.GELU, approximate="tanh")),
        dict(act_layer="quick_gelu"),
        dict(norm_layer=partial(nn.LayerNorm, eps=1e-3)),
    ],
)
def test_activations_and_norms_keep_their_settings(kwargs):
    source, x = plain_vit(**kwargs), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(from_vit(source, attn="diff_v2")(x), source(x))


def test_a_subclass_keeps_its_own_forward_pass():
    class Squared(timm.models.VisionTransformer):
        def forward_features(self, x, attn_mask=None, is_causal=False):
            return super().forward_features(x).square()

    source, x = Squared(**SHAPE).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(from_vit(source, attn="diff_v2")(x), source(x))


def test_a_subclass_of_an_attention_layer_is_refused_because_its_forward_pass_is_unknown():
    class Squared(timm.layers.Attention):
        def forward(self, x, attn_mask=None, is_causal=False):
            return super().forward(x).square()

    source = timm.models.VisionTransformer(**SHAPE, attn_layer=Squared)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn is a Squared, and the class has no adapter"):
        from_vit(source)


def test_a_head_that_was_replaced_is_converted_as_it_is():
    source, x = plain_vit(), torch.randn(2, 3, 32, 32)
    for head, classes in ((nn.Linear(48, 7), 7), (nn.Linear(48, 7, bias=False), 7), (nn.Identity(), 0)):
        source.head = head
        model = from_vit(source, attn="diff_v2")
        torch.testing.assert_close(model(x), source(x))
        assert model.num_classes == classes


def test_an_mlp_width_that_timm_would_round_down_is_kept():
    source, x = plain_vit(embed_dim=176, num_heads=2, mlp_ratio=8 / 3), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(from_vit(source, attn="diff_v2")(x), source(x))


def test_a_layer_scale_of_zeros_stays_a_layer_scale():
    source, x = plain_vit(init_values=1.0), torch.randn(2, 3, 32, 32)
    for block in source.blocks:
        torch.nn.init.zeros_(block.ls1.gamma)
    torch.testing.assert_close(from_vit(source, attn="diff_v2")(x), source(x))


def test_the_modes_of_the_sources_modules_are_restored():
    source = plain_vit().train()
    source.blocks[0].eval()
    from_vit(source, images=torch.randn(4, 3, 32, 32))
    assert source.training
    assert source.blocks[1].training
    assert not source.blocks[0].attn.qkv.training


def test_arguments_of_create_model_are_for_a_source_given_by_name():
    with pytest.raises(ValueError, match="num_heads=4 is an argument of create_model: pass it there"):
        from_vit(plain_vit(), num_heads=4)


def test_img_size_resamples_the_position_embedding_as_timm_does(tmp_path):
    source, x = plain_vit(), torch.randn(2, 3, 64, 48)
    model = from_vit(source, attn="diff_v2", img_size=(64, 48))
    source.set_input_size(img_size=(64, 48))
    torch.testing.assert_close(model(x), source(x))
    save_for_hf(model, tmp_path)
    torch.testing.assert_close(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), source(x))


def test_a_loader_with_targets_calibrates_and_inputs_that_are_not_images_are_refused():
    source, images = plain_vit(), torch.randn(4, 3, 32, 32)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(4)), batch_size=2)
    rotated = [from_vit(source, images=given).blocks[0].attn.qkv.weight for given in (loader, images.split(2))]
    assert torch.equal(*rotated)
    for wrong in (images[0], images.to(torch.uint8)):
        with pytest.raises(ValueError, match=r"images must be normalised floats of shape \(n, C, H, W\)"):
            from_vit(source, images=wrong)


def test_settings_that_would_undo_the_conversion_are_refused():
    with pytest.raises(ValueError, match="head_norm=False"):
        from_vit(plain_vit(), head_norm=True)
    with pytest.raises(ValueError, match="lambda_init=1"):
        from_vit(plain_vit(), lambda_init=1.0)
    with pytest.raises(ValueError, match="lambda_init=1 must be below 1"):
        from_vit(plain_vit(), attn="diff_v2", lambda_init=1 - 1e-9)  # 1 in float32
    with pytest.raises(ValueError, match=r"conversion='slice' is an argument of create_model.*pass it as method"):
        from_vit(plain_vit(), conversion="slice")
    with pytest.raises(ValueError, match=r"conversion 'best'.*'svd'"):
        from_vit(plain_vit(), method="best")


def test_gated_mlps_keep_the_order_of_their_gate_and_dropout_is_carried_over():
    source = plain_vit(spread=0.05, mlp_layer=timm.layers.SwiGLUPacked, attn_drop_rate=0.2, drop_path_rate=0.1)
    model = from_vit(source, lambda_init=0.0, branch_dims=(15, 1))
    x = torch.randn(2, 3, 32, 32)
    assert relative_error(model(x), source(x)) < 0.03
    assert model.blocks[0].attn.attn_drop.p == 0.2
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)


@pytest.mark.parametrize("kwargs", [dict(qkv_bias=False), dict(scale_attn_norm=True), dict(proj_bias=False)])
def test_a_tensor_that_only_the_source_or_only_the_model_has_is_an_error(kwargs):
    model = timm.create_model("diffvit_tiny_patch16", **SHAPE, **kwargs)
    with pytest.raises(ValueError, match="only in one of source and model"):
        convert_state_dict(plain_vit().state_dict(), model)


def test_a_checkpoint_with_qk_norm_is_refused_by_the_filter_too():
    state = timm.create_model("vit_tiny_patch16_224", qk_norm=True, **SHAPE).state_dict()
    with pytest.raises(ValueError, match="qk_norm"):
        convert_state_dict(state, timm.create_model("diffvit_tiny_patch16", **SHAPE))


def test_the_callers_state_dict_is_not_changed():
    source = plain_vit()
    state = source.state_dict()
    keys = list(state)
    convert_state_dict(state, timm.create_model("diffvit_tiny_patch16", **SHAPE))
    assert list(state) == keys
