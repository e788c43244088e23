"""FLOPs of a forward pass against those counted by hand."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import diffvit_timm  # noqa: F401 (registers the models)
from diffvit_timm.layers.functional import differential_attention
from diffvit_timm.studies.conversions import with_denoising_attention
from diffvit_timm.studies.flops import forward_flops


@pytest.mark.parametrize(("attn", "per_block"), [("diff", 4), ("plain", 4), ("diff_v2", 5)])
def test_flops_equal_those_counted_by_hand(attn, per_block):
    model = timm.create_model(
        "diffvit_tiny_patch16", attn=attn, img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5
    )
    N, D = 17, 48
    maps = {"diff": 2, "plain": 2, "diff_v2": 3}[attn]  # products of N x N x D: the maps, and maps times values
    block = per_block * N * D * D + maps * N * N * D + 8 * N * D * D
    lambdas = 2 * N * D * 3 if attn == "diff_v2" else 0
    assert forward_flops(model) == 2 * (16 * D * 3 * 64 + 2 * block + lambdas + D * 5)


def test_flops_are_counted_with_the_channels_and_the_image_size_of_the_model():
    colour = timm.create_model("diffvit_nano", in_chans=3, img_size=32)
    grey = timm.create_model("diffvit_nano", img_size=32)
    tokens, width, patch = 64, grey.embed_dim, 4
    assert forward_flops(colour) - forward_flops(grey) == 2 * tokens * width * 2 * patch**2


def test_flops_include_attention_pooling():
    pooled, token = (timm.create_model("diffvit_nano", global_pool=pool) for pool in ("map", "token"))
    assert forward_flops(pooled) > forward_flops(token)


def test_counting_does_not_change_the_model(tiny_model):
    model = tiny_model().train()
    fused = [layer.fused_attn for layer in model.differential_layers()]
    forward_flops(model)
    assert model.training
    assert [layer.fused_attn for layer in model.differential_layers()] == fused


def test_an_image_of_another_size_has_its_own_flops():
    model = timm.create_model("diffvit_nano", dynamic_img_size=True)
    assert forward_flops(model, 32) == forward_flops(timm.create_model("diffvit_nano", img_size=32))
    assert forward_flops(model, (32, 28)) < forward_flops(model, 32)
    assert forward_flops(model) == forward_flops(model, 28)


def test_attention_that_no_flag_turns_off_is_counted():
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3)
    N, D = 17, 48
    more = 2 * N * D * D + 2 * N * N * D  # second queries and values, and the products of the second map
    assert forward_flops(with_denoising_attention(plain)) - forward_flops(plain) == 2 * 2 * more


class Attention(nn.Module):
    """A network that attends to the pixels of its image through one function, without a flag for explicit maps."""

    def __init__(self, attend, width):
        super().__init__()
        self.pretrained_cfg = {"input_size": (1, 4, 4)}
        self.attend = attend
        self.expand = nn.Linear(1, width)

    def forward(self, x):
        return self.attend(self.expand(x.flatten(2).transpose(1, 2)).unsqueeze(1))  # (B, 1, N, width)


@pytest.mark.parametrize("norm", [None, torch.ones(6)], ids=["attend", "attend_and_norm"])
def test_our_operators_are_counted_as_the_maps_that_they_do_not_store(norm):
    def attend(x, fused):
        with torch.set_grad_enabled(norm is None):  # with gradients the kernel has no norm
            return differential_attention(x, x, x, torch.tensor(0.5), (4, 2), 0.5, norm_weight=norm, fused=fused)

    fast, exact = (forward_flops(Attention(lambda x, fused=fused: attend(x, fused), 6)) for fused in (True, False))
    assert fast == exact == 2 * (16 * 6 + 16 * 16 * 6 + 16 * 16 * 6)


def test_our_operator_of_version_2_is_counted_with_both_queries():
    def attend(x):
        return differential_attention(torch.cat([x, x], dim=-1), x, x, torch.tensor(0.5), None, 0.5)

    with torch.enable_grad():
        assert forward_flops(Attention(attend, 6)) == 2 * (16 * 6 + 16 * 16 * (12 + 6))


def test_fused_attention_of_pytorch_is_counted():
    model = Attention(lambda x: F.scaled_dot_product_attention(x, x, x), 8)
    assert forward_flops(model) == 2 * (16 * 8 + 2 * 16 * 16 * 8)
