"""Networks of one shape with several kinds of attention, and their relative speeds."""

import pytest
import torch

from diffvit_timm.studies.attention_speed import (
    PLAIN,
    TIMM,
    make_networks,
    reference_error,
    relative_kept_bytes,
    relative_speeds,
)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return make_networks("diffvit_micro_patch8_32", 32)


def test_the_networks_have_one_shape_and_their_own_attention(networks):
    assert list(networks) == [PLAIN, "Diff-ViT", "Diff-ViT, head norm", "Diff-ViT, version 2", TIMM]
    shapes = {(n.embed_dim, len(n.blocks), n.patch_embed.patch_size, n.num_classes) for n in networks.values()}
    assert len(shapes) == 1
    assert len({repr(network.blocks[0].attn) for network in networks.values()}) == 5


def test_the_fast_layers_agree_with_explicit_maps(networks):
    x = torch.randn(2, networks[PLAIN].in_chans, 32, 32)
    for name in ("Diff-ViT", "Diff-ViT, head norm", "Diff-ViT, version 2"):
        assert reference_error(networks[name], x) < 1e-5
    assert relative_kept_bytes(networks, x)[PLAIN] == 1.0


def test_speeds_are_medians_of_the_ratios_of_the_rounds():
    seconds = {PLAIN: [1.0, 10.0, 2.0], "ours": [2.0, 10.0, 4.0], TIMM: [4.0, 10.0, 8.0]}
    row = relative_speeds(seconds)["ours"]
    assert row == {"speed_of_plain": 0.5, "quartiles": [0.5, 0.75], "speed_of_timm": 2.0}
