"""Differential attention against a plain float64 formula and against timm's own layer."""

import math

import pytest
import torch
from timm.layers import DiffAttention
from timm.utils import ModelEmaV2
from torch import nn

from diffvit_timm import (
    DifferentialAttention,
    DifferentialAttentionV2,
    differential_attention,
    differential_maps,
    lambda_init_schedule,
)
from diffvit_timm.layers.base import differential_layers


def formula(q, k, v, lam, branch_dims, scale, visible=None):
    """Compute equation 1 in float64, one query at a time. `visible` is a boolean mask, (B, H, N, N)."""
    q, k, v, lam = q.double(), k.double(), v.double(), lam.item()
    d1 = branch_dims[0]
    out = torch.zeros_like(v)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        keys = torch.arange(k.shape[2]) if visible is None else visible[b, h, i].nonzero()[:, 0]
        first = torch.softmax(k[b, h, keys, :d1] @ q[b, h, i, :d1] * scale, 0)
        second = torch.softmax(k[b, h, keys, d1:] @ q[b, h, i, d1:] * scale, 0)
        out[b, h, i] = (first - lam * second) @ v[b, h, keys]
    return out


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def inputs(n=9, dims=(8, 8), heads=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, heads, n, sum(dims), generator=generator) for _ in range(3))
    return q, k, v, torch.tensor(0.3)


def random_layer(**kwargs):
    torch.manual_seed(3)
    settings = dict(dim=48, num_heads=3, qkv_bias=True, depth=2)
    layer = DifferentialAttention(**{**settings, **kwargs})
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dims", [(8, 8), (12, 4), (5, 6), (1, 15)])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_both_paths_equal_the_papers_formula(fused, dims, n):
    q, k, v, lam = inputs(n, dims)
    out = differential_attention(q, k, v, lam, dims, 0.4, fused=fused)
    assert relative_error(out, formula(q, k, v, lam, dims, 0.4)) < 1e-5


@pytest.mark.parametrize("fused", [False, True])
def test_masks_hide_the_same_keys_from_both_maps(fused):
    q, k, v, lam = inputs()
    key_mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    key_mask[0, ..., 6:] = False
    per_head = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1)) > 0.4
    per_head |= torch.eye(9, dtype=torch.bool)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    for mask, is_causal, visible in [
        (key_mask, False, key_mask),
        (per_head, False, per_head),
        (torch.zeros(2, 3, 9, 9).masked_fill(~per_head, -math.inf), False, per_head),
        (None, True, causal),
        (per_head, True, per_head & causal),
        (causal, False, causal),
    ]:
        out = differential_attention(q, k, v, lam, (8, 8), 0.4, attn_mask=mask, is_causal=is_causal, fused=fused)
        expected = formula(q, k, v, lam, (8, 8), 0.4, visible=visible.expand(2, 3, 9, 9))
        assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize("dims", [(8, 8), (12, 4)])
def test_gradients_of_the_fused_path_equal_those_of_the_reference(dims):
    gradients = []
    for fused in (False, True):
        tensors = [t.requires_grad_() for t in inputs(dims=dims)]
        out = differential_attention(*tensors, dims, 0.4, fused=fused)
        out.square().sum().backward()
        gradients.append([t.grad for t in tensors])
    for reference, fused in zip(*gradients, strict=True):
        assert relative_error(fused, reference) < 1e-5


@pytest.mark.parametrize("fused", [True, False])
def test_a_float32_lambda_works_with_bfloat16_queries(fused):
    q, k, v, lam = inputs()
    exact = differential_attention(q, k, v, lam, (8, 8), 0.25)
    half = [tensor.bfloat16().requires_grad_() for tensor in (q, k, v)]
    out = differential_attention(*half, lam.requires_grad_(), (8, 8), 0.25, fused=fused)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert lam.grad.dtype == torch.float32
    assert relative_error(out, exact) < 2e-2


def test_torch_func_takes_gradients_through_a_layer():
    layer, x = random_layer(), torch.randn(2, 9, 48)
    parameters = dict(layer.named_parameters())

    def loss(values):
        return torch.func.functional_call(layer, values, (x,)).square().mean()

    loss(parameters).backward()
    for name, gradient in torch.func.grad(loss)(parameters).items():
        torch.testing.assert_close(gradient, parameters[name].grad, atol=1e-5, rtol=1e-4)


def test_each_map_is_a_softmax_over_the_keys():
    q, k, _, _ = inputs()
    map1, map2 = differential_maps(q, k, (12, 4), 0.4)
    for attention in (map1, map2):
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 9))
        assert (attention >= 0).all()


def test_a_permutation_of_the_tokens_permutes_the_output():
    layer, x = random_layer(), torch.randn(2, 9, 48)
    order = torch.randperm(9)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(qkv_bias=True),
        dict(qkv_bias=True, qk_norm=True, scale_norm=True),
        dict(dual_lambda=True, proj_bias=False),
    ],
)
def test_state_dicts_load_from_and_into_timms_layer_with_equal_outputs(kwargs):
    torch.manual_seed(0)
    theirs = DiffAttention(96, num_heads=3, depth=4, **kwargs)
    ours = DifferentialAttention(96, num_heads=3, depth=4, **kwargs)
    x = torch.randn(2, 17, 96)
    mask = torch.rand(2, 1, 17, 17) > 0.3
    mask |= torch.eye(17, dtype=torch.bool)
    for source, target in ((theirs, ours), (ours, theirs)):
        for parameter in source.parameters():
            nn.init.normal_(parameter, std=0.2)
        target.load_state_dict(source.state_dict(), strict=True)
        assert relative_error(ours(x), theirs(x)) < 1e-5
        assert relative_error(ours(x, attn_mask=mask), theirs(x, attn_mask=mask)) < 1e-5
        assert relative_error(ours(x, is_causal=True), theirs(x, is_causal=True)) < 1e-5


def test_the_schedule_starts_at_block_0_with_0_2():
    # Block 0 is l = 1 in the paper. With l = 0 it would be 0.8 - 0.6 exp(0.3) = -0.01.
    assert lambda_init_schedule(0) == pytest.approx(0.2)
    assert lambda_init_schedule(1) == pytest.approx(0.8 - 0.6 * math.exp(-0.3))
    assert DifferentialAttention(16, num_heads=1, depth=5).lambda_init.item() == pytest.approx(lambda_init_schedule(5))


def test_lambda_is_one_number_per_layer_by_equation_2():
    layer = random_layer()
    q1, k1, q2, k2 = (getattr(layer, name).double() for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"))
    expected = torch.exp(q1 @ k1) - torch.exp(q2 @ k2) + lambda_init_schedule(2)
    assert layer.compute_lambda(None).shape == ()
    assert layer.compute_lambda(None).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("value", [0.05, -0.2, "schedule"])
def test_lambda_init_survives_saving_and_loading(value, tmp_path):
    layer = random_layer(lambda_init=value)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    for other in (random_layer(lambda_init=0.7), random_layer(lambda_init="schedule")):
        state = torch.load(tmp_path / "layer.pt")
        if value == "schedule" and "lambda_init" in other.state_dict():
            with pytest.raises(RuntimeError, match="lambda_init"):
                other.load_state_dict(state)  # the number in the layer must not stay unnoticed
            continue
        other.load_state_dict(state)
        x = torch.randn(1, 5, 48)
        assert torch.equal(other(x), layer(x))
        assert other.state_dict().keys() == layer.state_dict().keys()


def test_setting_lambda_init_makes_it_part_of_the_state_dict():
    layer = random_layer(lambda_init="schedule")
    assert "lambda_init" not in layer.state_dict()
    layer.set_lambda_init(0.3)
    assert layer.state_dict()["lambda_init"].item() == pytest.approx(0.3)


def test_without_head_norm_the_output_is_the_formula_projected():
    layer, x = random_layer(head_norm=False, branch_dims=(12, 4)), torch.randn(2, 7, 48)
    q, k, v, _ = layer.project_qkv(x)
    out = formula(q, k, v, layer.compute_lambda(None), (12, 4), 8**-0.5).transpose(1, 2).flatten(2)
    expected = out @ layer.proj.weight.double().T + layer.proj.bias.double()
    assert relative_error(layer(x), expected) < 1e-5


@pytest.mark.parametrize("path", ["kernel", "kernel with gradients", "masked", "explicit maps"])
def test_the_head_norm_is_an_rms_norm_of_each_head_times_one_minus_lambda_init(path):
    layer, x = random_layer(), torch.randn(2, 7, 48)
    layer.fused_attn = path != "explicit maps"
    q, k, v, _ = layer.project_qkv(x)
    out = formula(q, k, v, layer.compute_lambda(None), (8, 8), 8**-0.5)
    out = out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.sub_norm.weight.double()
    out = (out * (1 - lambda_init_schedule(2))).transpose(1, 2).flatten(2)
    expected = out @ layer.proj.weight.double().T + layer.proj.bias.double()
    with torch.set_grad_enabled(path == "kernel with gradients"):
        actual = layer(x, attn_mask=torch.ones(7, 7, dtype=torch.bool) if path == "masked" else None)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("fused", [False, True])
def test_dropout_acts_in_training_only_and_keeps_the_mean(fused):
    layer, x = random_layer(attn_drop=0.5, head_norm=False), torch.randn(1, 6, 48)
    layer.fused_attn = fused
    expected = layer.eval()(x)
    assert torch.equal(layer(x), expected)
    layer.train()
    torch.manual_seed(0)
    draws = torch.cat([layer(x.expand(500, -1, -1)) for _ in range(8)])
    assert not torch.equal(draws[0], draws[1])
    assert relative_error(draws.mean(0), expected[0]) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_output_has_the_dtype_of_the_tokens_and_lambda_stays_float32(dtype):
    layer = DifferentialAttention(48, num_heads=3, dtype=dtype, lambda_init=0.05)
    assert layer(torch.randn(1, 5, 48, dtype=dtype)).dtype == dtype
    assert layer.lambda_q1.dtype == layer.lambda_init.dtype == torch.float32


def test_reset_parameters_initialises_a_layer_made_on_the_meta_device():
    layer = DifferentialAttention(48, num_heads=3, device="meta", lambda_init=0.05).to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.lambda_init.item() == pytest.approx(0.05)


def test_timms_hook_fills_the_schedule_after_loading_onto_the_meta_device():
    layer = DifferentialAttention(48, num_heads=3, device="meta", depth=2).to_empty(device="cpu")
    layer.load_state_dict(random_layer(qkv_bias=False).state_dict())
    layer.init_non_persistent_buffers()
    assert layer.lambda_init.item() == pytest.approx(lambda_init_schedule(2))


def test_weights_for_other_branch_widths_are_refused_though_every_shape_fits():
    wide, wider, halved = (random_layer(branch_dims=dims) for dims in ((12, 4), (14, 2), (8, 8)))
    with pytest.raises(RuntimeError, match=r"branch_dims is \(14, 2\) in this layer and \(12, 4\) in the checkpoint"):
        wider.load_state_dict(wide.state_dict())
    for source, target in ((wide, halved), (halved, wide)):
        with pytest.raises(RuntimeError, match="branch_widths"):
            target.load_state_dict(source.state_dict())


def test_averages_of_weights_keep_the_branch_widths():
    layer = random_layer(branch_dims=(12, 4))
    average = ModelEmaV2(layer, decay=0.9)
    for _ in range(3):
        average.update(layer)
    layer.load_state_dict(average.module.state_dict())


def test_weights_of_plain_attention_are_refused_also_with_strict_false():
    layer = random_layer()
    plain = {key: value for key, value in layer.state_dict().items() if key.startswith(("qkv", "proj"))}
    with pytest.raises(
        RuntimeError, match=r"qkv.weight comes from plain attention and must be converted: use from_vit"
    ):
        layer.load_state_dict(plain, strict=False)


@pytest.mark.parametrize("fused", [False, True])
def test_a_float32_mask_works_in_a_bfloat16_layer(fused):
    layer = random_layer().to(torch.bfloat16)
    layer.fused_attn = fused
    assert layer(torch.randn(1, 5, 48).bfloat16(), attn_mask=torch.zeros(5, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(dim=45, num_heads=3), "odd width 15"),
        (dict(dim=50, num_heads=3), "dim=50 must be a multiple of num_heads=3"),
        (dict(dim=48, num_heads=3, branch_dims=(8, 9)), "sum to 16"),
        (dict(dim=48, num_heads=3, branch_dims=(16, 0)), "positive"),
        (dict(dim=48, num_heads=3, branch_dims=(12, 4), qk_norm=True), "equal width"),
        (dict(dim=48, num_heads=3, lambda_init="paper"), "'schedule'"),
    ],
)
def test_invalid_settings_are_refused_with_their_values(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DifferentialAttention(**kwargs)


def test_a_head_of_odd_width_works_with_branch_dims():
    assert DifferentialAttention(45, num_heads=3, branch_dims=(8, 7))(torch.randn(1, 4, 45)).shape == (1, 4, 45)


def random_layer_v2(**kwargs):
    torch.manual_seed(3)
    layer = DifferentialAttentionV2(**{**dict(dim=48, num_heads=3, qkv_bias=True), **kwargs})
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def formula_v2(layer, x, visible=None):
    """Compute the authors' DiffAttnV2 in float64.

    It has 2H query heads over H keys and values. Output i is query head 2i minus lambda times query head 2i + 1.
    """
    x, heads, d = x.double(), layer.num_heads, layer.head_dim
    B, N, dim = x.shape
    rows = x @ layer.qkv.weight.double().T + layer.qkv.bias.double()
    q = rows[..., : 2 * dim].reshape(B, N, 2 * heads, d)
    k, v = rows[..., 2 * dim : 3 * dim].reshape(B, N, heads, d), rows[..., 3 * dim :].reshape(B, N, heads, d)
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k.repeat_interleave(2, dim=2)) * d**-0.5
    if visible is not None:
        logits = logits.masked_fill(~visible, -math.inf)
    out = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v.repeat_interleave(2, dim=2))
    start = layer.lambda_init.double()
    lam = torch.sigmoid(x @ layer.lambda_proj.weight.double().T + torch.log(start / (1 - start))).unsqueeze(-1)
    out = (out[:, :, 0::2] - lam * out[:, :, 1::2]).flatten(2)
    return out @ layer.proj.weight.double().T + layer.proj.bias.double()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("lambda_init", [0.5, 0.1])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_version_2_equals_the_authors_formula(fused, lambda_init, n):
    layer, x = random_layer_v2(lambda_init=lambda_init), torch.randn(2, n, 48)
    layer.fused_attn = fused
    assert relative_error(layer(x), formula_v2(layer, x)) < 1e-5


@pytest.mark.parametrize("layer", [random_layer, random_layer_v2])
def test_an_empty_batch_gives_an_empty_output(layer):
    assert layer()(torch.empty(0, 5, 48)).shape == (0, 5, 48)


@pytest.mark.parametrize("fused", [False, True])
def test_version_2_applies_masks(fused):
    layer, x = random_layer_v2(), torch.randn(2, 9, 48)
    layer.fused_attn = fused
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    keys = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    keys[1, ..., 4:] = False
    assert relative_error(layer(x, is_causal=True), formula_v2(layer, x, causal)) < 1e-5
    assert relative_error(layer(x, attn_mask=keys), formula_v2(layer, x, keys)) < 1e-5


def test_gradients_of_version_2_agree_between_the_paths():
    gradients = []
    for fused in (False, True):
        layer, x = random_layer_v2(), torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(0))
        layer.fused_attn = fused
        layer(x).square().sum().backward()
        gradients.append([p.grad for p in layer.parameters()])
    for reference, fused in zip(*gradients, strict=True):
        assert relative_error(fused, reference) < 1e-5


def test_lambda_of_version_2_is_one_number_per_token_and_head_between_0_and_1():
    layer, x = random_layer_v2(lambda_init=0.2), torch.randn(2, 9, 48)
    lam = layer.compute_lambda(x)
    assert lam.shape == (2, 3, 9, 1)
    assert 0 < lam.min() < lam.max() < 1
    nn.init.zeros_(layer.lambda_proj.weight)
    torch.testing.assert_close(layer.compute_lambda(x), torch.full((2, 3, 9, 1), 0.2))
    layer.set_lambda_init(0.7)
    torch.testing.assert_close(layer.compute_lambda(x), torch.full((2, 3, 9, 1), 0.7))
    other = random_layer_v2()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_version_2_keeps_the_dtype_of_its_tokens(dtype):
    layer = DifferentialAttentionV2(48, num_heads=3, dtype=dtype)
    assert layer(torch.randn(1, 5, 48, dtype=dtype)).dtype == dtype
    assert layer.lambda_init.dtype == torch.float32


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(dim=50, num_heads=3), "dim=50 must be a multiple of num_heads=3"),
        (dict(dim=48, num_heads=3, lambda_init=1.0), "between 0 and 1"),
        (dict(dim=48, num_heads=3, lambda_init="schedule"), "between 0 and 1"),
    ],
)
def test_invalid_settings_of_version_2_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DifferentialAttentionV2(**kwargs)


@pytest.mark.parametrize("value", [0.0, 1.0, 1.5])
def test_version_2_refuses_a_later_lambda_init_outside_0_and_1(value):
    layer = DifferentialAttentionV2(16, num_heads=2)
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        layer.set_lambda_init(value)
    assert layer.lambda_init.item() == 0.5


def test_differential_layers_are_listed_in_the_order_of_the_modules():
    layers = [random_layer(), random_layer_v2(), random_layer()]
    model = nn.Sequential(layers[0], nn.ModuleDict({"attn": layers[1], "mlp": nn.Linear(48, 48)}), layers[2])
    assert differential_layers(model) == layers
    assert differential_layers(nn.Linear(48, 48)) == []
