"""Every adapter against timm's own layer and against a plain float64 formula."""

import copy
from functools import partial

import pytest
import torch
from timm.layers import Attention, AttentionRope, LayerNorm, RelPosBias, RelPosMlp, RotaryEmbeddingCat
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.gemma4_vit import Gemma4Attention
from timm.models.swin_transformer import WindowAttention as SwinAttention
from timm.models.swin_transformer_v2 import WindowAttention as Swin2Attention
from timm.models.vision_transformer import ParallelScalingBlock
from timm.models.vision_transformer_relpos import RelPosAttention
from timm.models.vision_transformer_sam import Attention as SamAttention
from torch import nn

from diffvit_timm.conversion.surgery import channel_freedom, make_layer
from diffvit_timm.conversion.weights import CONTRAST
from diffvit_timm.layers.adapters import ADAPTERS, adapter_of, plain_inputs
from diffvit_timm.layers.adapters.projections import input_projections, output_projection

DIM, HEADS, GRID = 48, 3, (4, 4)  # heads of 16 channels, 16 patches
NORM = partial(LayerNorm, eps=1e-5)


def random_bias(rows=1, tokens=16):
    return torch.randn(rows, HEADS, tokens, tokens, dtype=torch.float64)


def rope(per_head=False, half=False):
    table = RotaryEmbeddingCat(16, in_pixels=False, feat_shape=GRID, rotate_half=half).get_embed().double()
    return torch.stack([table * factor for factor in (1.0, 0.9, 1.1)]) if per_head else table  # (H,) patches, 2 d


def window_mask():
    mask = torch.zeros(2, 16, 16, dtype=torch.float64)  # two windows per image; the second hides half of its keys
    mask[1, :8, 8:], mask[1, 8:, :8] = -100, -100
    return mask


def axial_rope():
    angles = torch.linspace(0, 6, 16 * 16, dtype=torch.float64).view(1, 16, 16)  # (1, patches, d)
    return dict(rope_cos=angles.cos(), rope_sin=angles.sin())


def gemma(clip=None, **kwargs):
    layer = Gemma4Attention(DIM, HEADS, head_dim=16, use_clipped_linears=clip is not None, **kwargs)
    for part in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj) if clip else ():
        for name, bound in (("input_min", -clip), ("input_max", clip), ("output_min", -2 * clip)):
            getattr(part, name).fill_(bound)
    return layer


# For each case: the layer, its tokens before the 16 patches, and the other arguments of its forward pass.
CASES = {
    "Attention": lambda: (Attention(DIM, HEADS, qkv_bias=True), 1, {}),
    "Attention, qk_norm, scale norm, gate": lambda: (
        Attention(DIM, HEADS, qk_norm=True, scale_norm=True, gated=True, norm_layer=NORM), 1, {}
    ),
    "Attention, wide heads, mask": lambda: (
        Attention(DIM, HEADS, attn_head_dim=20, qkv_bias=True), 0, dict(attn_mask=random_bias())
    ),
    "AttentionRope": lambda: (AttentionRope(DIM, HEADS), 1, dict(rope=rope())),
    "AttentionRope, grouped queries, qk_norm, halves": lambda: (
        AttentionRope(
            DIM, HEADS, qkv_fused=False, num_kv_heads=1, qk_norm=True, norm_layer=NORM, rotate_half=True
        ), 1, dict(rope=rope(half=True))
    ),
    "AttentionRope, grouped queries": lambda: (
        AttentionRope(DIM, HEADS, qkv_fused=False, num_kv_heads=1), 1, dict(rope=rope())
    ),
    "AttentionRope, scale norm, gate": lambda: (
        AttentionRope(DIM, HEADS, scale_norm=True, gated=True, norm_layer=NORM), 1, dict(rope=rope())
    ),
    "EvaAttention": lambda: (EvaAttention(DIM, HEADS, scale_norm=False), 1, dict(rope=rope())),
    "EvaAttention, biases apart": lambda: (
        EvaAttention(DIM, HEADS, qkv_bias_separate=True, scale_norm=False), 1, dict(rope=rope())
    ),
    "EvaAttention, three projections, inner norm": lambda: (
        EvaAttention(DIM, HEADS, qkv_fused=False, norm_layer=NORM), 1, dict(rope=rope())
    ),
    "EvaAttention, embedding per head, halves, mask": lambda: (
        EvaAttention(DIM, HEADS, scale_norm=False, rotate_half=True), 1,
        dict(rope=rope(per_head=True, half=True), attn_mask=random_bias(tokens=17)),
    ),
    "EvaAttention, qk_norm, gate": lambda: (
        EvaAttention(DIM, HEADS, qk_norm=True, gated=True, norm_layer=NORM), 5, dict(rope=rope())
    ),
    "EvaAttention without embedding": lambda: (EvaAttention(DIM, HEADS, scale_norm=False), 1, {}),
    "BEiT, own bias": lambda: (BeitAttention(DIM, HEADS, qkv_bias=True, window_size=GRID), 1, {}),
    "BEiT, shared bias": lambda: (
        BeitAttention(DIM, HEADS, qkv_bias=True), 1, dict(shared_rel_pos_bias=random_bias(tokens=17))
    ),
    "BEiT, both": lambda: (
        BeitAttention(DIM, HEADS, window_size=GRID), 1, dict(shared_rel_pos_bias=random_bias(tokens=17))
    ),
    "RelPos, table": lambda: (
        RelPosAttention(DIM, HEADS, rel_pos_cls=partial(RelPosBias, window_size=GRID), qkv_bias=True), 0, {}
    ),
    "RelPos, MLP, qk_norm": lambda: (
        RelPosAttention(DIM, HEADS, rel_pos_cls=partial(RelPosMlp, window_size=GRID), qk_norm=True), 0, {}
    ),
    "RelPos, shared": lambda: (RelPosAttention(DIM, HEADS), 0, dict(shared_rel_pos=random_bias())),
    "Gemma 4": lambda: (gemma(), 0, axial_rope()),
    "Gemma 4, grouped queries, clipped, mask": lambda: (
        gemma(clip=0.7, num_kv_heads=1), 0, axial_rope() | dict(attn_mask=random_bias())
    ),
    "parallel block": lambda: (ParallelScalingBlock(DIM, HEADS, qkv_bias=True), 1, {}),
    "parallel block, qk_norm, mask, layer scale": lambda: (
        ParallelScalingBlock(DIM, HEADS, qk_norm=True, init_values=0.5, norm_layer=NORM), 0,
        dict(attn_mask=random_bias())
    ),
    "SAM": lambda: (SamAttention(DIM, HEADS, use_rel_pos=True, input_size=GRID), 0, {}),
    "SAM, rotary, qk_norm": lambda: (
        SamAttention(
            DIM, HEADS, qk_norm=True, rope=RotaryEmbeddingCat(16, in_pixels=False, feat_shape=GRID), norm_layer=NORM
        ), 0, {}
    ),
    "Swin": lambda: (SwinAttention(DIM, HEADS, window_size=4), 0, {}),
    "Swin, shifted windows": lambda: (SwinAttention(DIM, HEADS, window_size=4), 0, dict(mask=window_mask())),
    "Swin v2": lambda: (Swin2Attention(DIM, (4, 4), HEADS), 0, {}),
    "Swin v2, shifted windows": lambda: (Swin2Attention(DIM, (4, 4), HEADS), 0, dict(mask=window_mask())),
}  # fmt: skip


# Cases in which nothing acts on queries and keys after their projection.
ACTED_ON = ("Rope", "qk_norm", "Swin v2", "EvaAttention", "Gemma", "SAM")
NORMED = ("qk_norm", "Swin v2", "Gemma")  # cases whose queries and keys are normalised
ROTATABLE = [name for name in CASES if not any(word in name for word in ACTED_ON)]
ROTATABLE += ["EvaAttention without embedding"]


def make_case(name):
    """Make a layer in float64 whose attention is far from uniform, its tokens, and its other arguments."""
    torch.manual_seed(0)
    layer, prefix, kwargs = CASES[name]()
    for key, parameter in layer.named_parameters():
        if not key.startswith(("cpb_mlp", "rel_pos.mlp")):
            nn.init.normal_(parameter, std=0.3)
    for norm in (module for module in layer.modules() if isinstance(module, nn.LayerNorm)):
        norm.weight.data.uniform_(0.5, 1.5)
    if hasattr(layer, "num_prefix_tokens"):
        layer.num_prefix_tokens = prefix
    x = torch.randn(2, prefix + 16, DIM, dtype=torch.float64)
    return layer.double().eval(), x.view(2, *GRID, DIM) if isinstance(layer, SamAttention) else x, kwargs


def is_rotary(kwargs):
    return any(name.startswith("rope") for name in kwargs)


def projected(layer, x, kwargs):
    """The output of the output projection in the forward pass of a layer."""
    outputs = []
    hook = output_projection(layer).register_forward_hook(lambda _, args, output: outputs.append(output))
    layer(x, **kwargs)
    hook.remove()
    return outputs[0]


def project(layer, merged):
    """Project the merged heads, clipped as the inputs of a Gemma4ClippableLinear are."""
    if getattr(getattr(layer, "o_proj", None), "use_clipped", False):
        merged = merged.clamp(layer.o_proj.input_min, layer.o_proj.input_max)
    return output_projection(layer)(merged)


def formula(q, k, v, bias, scale):
    """softmax(scale q k^T + bias) v in float64, one query at a time."""
    bias = torch.zeros(1, 1, 1, 1, dtype=q.dtype) if bias is None else bias
    bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        out[b, h, i] = torch.softmax(k[b, h] @ q[b, h, i] * scale + bias[b, h, i], 0) @ v[b, h]
    return out


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", CASES)
def test_the_adapter_splits_timms_forward_pass_at_the_product_of_maps_and_values(name):
    layer, x, kwargs = make_case(name)
    q, k, v, bias, scale = plain_inputs(layer, (x,), kwargs)
    merged = adapter_of(layer).view.merge_heads(layer, formula(q, k, v, bias, scale), x)
    for fused in (True, False):
        layer.fused_attn = fused
        assert relative_error(project(layer, merged), projected(layer, x, kwargs)) < 1e-12


@pytest.mark.parametrize("lambda_init", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("name", CASES)
def test_version_2_computes_exactly_the_output_of_timms_layer(name, lambda_init):
    layer, x, kwargs = make_case(name)
    converted = make_layer(copy.deepcopy(layer), "diff_v2", lambda_init=lambda_init)
    for fused in (True, False):
        converted.fused_attn = fused
        assert relative_error(converted(x, **kwargs), layer(x, **kwargs)) < 2e-12


@pytest.mark.parametrize("name", [name for name in CASES if not any(word in name for word in NORMED)])
def test_contrast_subtracts_the_map_of_the_negative_query_and_adds_the_same_bias_to_both(name):
    layer, x, kwargs = make_case(name)
    converted = make_layer(copy.deepcopy(layer), "diff_v2", "contrast", lambda_init=0.25)
    q, k, v, bias, scale = plain_inputs(layer, (x,), kwargs)
    heads = (formula(q, k, v, bias, scale) - 0.25 * formula(CONTRAST * q, k, v, bias, scale)) / 0.75
    expected = project(layer, adapter_of(layer).view.merge_heads(layer, heads, x))
    for fused in (True, False):
        converted.fused_attn = fused
        assert relative_error(projected(converted, x, kwargs), expected) < 2e-12


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_of_version_2_has_a_gradient_within_two_steps(name):
    layer, x, kwargs = make_case(name)
    converted = make_layer(layer, "diff_v2")
    optimizer = torch.optim.SGD(converted.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        converted(x, **kwargs).square().sum().backward()
        optimizer.step()
    without = {key for key, parameter in converted.named_parameters() if not parameter.grad.abs().sum() > 0}
    assert without <= {"k_proj.bias"}  # it adds the same number to all logits of a query
    queries = input_projections(converted)[0].weight.grad
    queries = queries[converted.in_split[0] :] if hasattr(converted, "in_split") else queries  # after an MLP's rows
    second = queries[: 2 * output_projection(converted).in_features].unflatten(0, (HEADS, 2, -1))[:, 1]  # (H, d, dim)
    assert (second.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(
    ("name", "method"), [(name, "slice") for name in CASES] + [(name, "svd") for name in CASES if name not in ROTATABLE]
)
def test_version_1_is_the_difference_of_two_maps_of_timms_queries_and_keys(name, method):
    layer, x, kwargs = make_case(name)
    rotary = is_rotary(kwargs)
    converted = make_layer(copy.deepcopy(layer), "diff", method, lambda_init=0.3, rotary=rotary)
    d1, d2 = converted.branch_dims
    q, k, v, bias, scale = plain_inputs(layer, (x,), kwargs)
    order = getattr(converted, "channel_order", None)
    order = torch.arange(d1 + d2).repeat(HEADS, 1) if order is None else order.long()
    assert torch.equal(order.sort(dim=-1).values, torch.arange(d1 + d2).repeat(HEADS, 1))
    heads = []
    for channels in (order[:, :d1], order[:, d1:]):
        q_own, k_own = (torch.stack([t[:, h, :, c] for h, c in enumerate(channels)], 1) for t in (q, k))
        heads.append(formula(q_own, k_own, v, bias, scale))
    merged = adapter_of(layer).view.merge_heads(layer, (heads[0] - 0.3 * heads[1]) / 0.7, x)
    for fused in (True, False):
        converted.fused_attn = fused
        expected = project(layer, merged)
        assert relative_error(projected(converted, x, kwargs), expected) < 1e-7  # 0.3 and 0.7 are float32


@pytest.mark.parametrize("name", ROTATABLE)
def test_rotated_branches_have_all_logits_together_and_lose_less_than_channels_in_their_order(name):
    layer, x, kwargs = make_case(name)
    assert channel_freedom(layer, rotary=False) == "rotation"
    width = output_projection(layer).in_features // HEADS
    converted, cut = (
        make_layer(copy.deepcopy(layer), "diff", method, None, 0.0, (width - 4, 4), rotary=False)
        for method in ("svd", "slice")
    )
    together = [t.double() for t in converted.branches(x, **kwargs)[:2]]
    q, k, _, _, scale = plain_inputs(layer, (x,), kwargs)
    logits, expected = together[0] @ together[1].mT * converted.scale, q @ k.mT * scale
    centred = [t - t.mean(-1, keepdim=True) for t in (logits, expected)]
    assert relative_error(*centred) < 1e-10  # both branches together have all logits
    expected = layer(x, **kwargs)
    assert relative_error(converted(x, **kwargs), expected) < relative_error(cut(x, **kwargs), expected)


@pytest.mark.parametrize("half", [False, True])
def test_frequency_pairs_stay_together_and_the_strongest_are_in_branch_1(half):
    torch.manual_seed(0)
    layer = EvaAttention(DIM, HEADS, scale_norm=False, rotate_half=half)
    pairs = [(i, i + 8) for i in range(8)] if half else [(2 * i, 2 * i + 1) for i in range(8)]
    with torch.no_grad():
        nn.init.normal_(layer.qkv.weight, std=0.01)
        for h, strong in enumerate([(0, 3), (5, 6), (1, 7)]):  # two pairs of each head
            for pair in strong:
                for channel in pairs[pair]:
                    layer.qkv.weight[h * 16 + channel] *= 10
                    layer.qkv.weight[DIM + h * 16 + channel] *= 10
    converted = make_layer(layer, "diff", branch_dims=(4, 12))
    for h, strong in enumerate([(0, 3), (5, 6), (1, 7)]):
        assert sorted(converted.channel_order[h, :4].tolist()) == sorted(c for pair in strong for c in pairs[pair])
        both = converted.channel_order[h].reshape(8, 2).tolist()
        assert sorted(map(tuple, both)) == sorted(pairs)


def test_branches_that_would_cut_a_frequency_pair_are_refused():
    with pytest.raises(ValueError, match=r"branch_dims=\(11, 5\) must be even under a rotary embedding"):
        make_layer(EvaAttention(DIM, HEADS, scale_norm=False), "diff", branch_dims=(11, 5))


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
@pytest.mark.parametrize("name", CASES)
def test_scripted_layers_compute_the_same(name, attn):
    layer, x, kwargs = make_case(name)
    if name in ("Gemma 4", "SAM, rotary, qk_norm"):
        with pytest.raises(RuntimeError, match=r"has no attribute|redefine"):
            torch.jit.script(layer)
        pytest.skip("timm's own layer cannot be scripted")
    converted = make_layer(layer, attn, rotary=is_rotary(kwargs))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(converted)(x, **kwargs), converted(x, **kwargs))


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
@pytest.mark.parametrize("name", CASES)
def test_layers_can_be_copied_saved_and_cast(name, attn, tmp_path):
    layer, x, kwargs = make_case(name)
    converted = make_layer(copy.deepcopy(layer), attn, rotary=is_rotary(kwargs))
    again = make_layer(layer, attn, "slice" if attn == "diff" else "mirror", rotary=is_rotary(kwargs))
    again.load_state_dict(converted.state_dict())
    assert torch.equal(again(x, **kwargs), converted(x, **kwargs))
    torch.save(converted, tmp_path / "layer.pt")
    assert torch.equal(torch.load(tmp_path / "layer.pt", weights_only=False)(x, **kwargs), converted(x, **kwargs))
    kwargs = {key: value.bfloat16() if torch.is_tensor(value) else value for key, value in kwargs.items()}
    out = copy.deepcopy(converted).bfloat16()(x.bfloat16(), **kwargs)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


def test_plain_weights_do_not_load_into_version_1_unconverted():
    layer, _, _ = make_case("EvaAttention")
    with pytest.raises(RuntimeError, match=r"qkv.weight comes from plain attention and must be converted"):
        make_layer(copy.deepcopy(layer), "diff").load_state_dict(layer.state_dict(), strict=False)


def test_every_class_with_an_adapter_has_a_case():
    assert {type(make_case(name)[0]) for name in CASES} == set(ADAPTERS)
