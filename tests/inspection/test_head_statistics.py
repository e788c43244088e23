"""Entropy, distance and prefix share where they are known."""

import math

import pytest
import torch
from vits import make_vit

from diffvit_timm.inspection.attention_maps import capture_attention
from diffvit_timm.inspection.head_statistics import attention_distance, attention_entropy, head_statistics, prefix_share


def test_uniform_attention_has_the_entropy_log_n_and_one_hot_none():
    uniform, one_hot = torch.full((2, 1, 6, 6), 1 / 6), torch.eye(6).expand(2, 1, 6, 6)
    entropy = attention_entropy(torch.cat([uniform, one_hot], dim=1))
    torch.testing.assert_close(entropy, torch.tensor([math.log(6), 0.0]))


def test_distance_is_in_pixels_between_the_centres_of_patches_of_any_shape():
    grid, patch = (2, 3), (8, 16)
    next_column = torch.eye(6).roll(1, dims=1)  # 0 looks at 1, 1 at 2, 2 at 3 (below and two back), ...
    attention = torch.stack([torch.eye(6), next_column])[None]
    step, back, last = 16.0, math.hypot(8, 32), math.hypot(8, 32)
    expected = (4 * step + back + last) / 6
    torch.testing.assert_close(attention_distance(attention, grid, patch), torch.tensor([0.0, expected]))


def test_prefix_tokens_have_no_place_and_their_share_is_counted():
    attention = torch.zeros(1, 1, 5, 5)
    attention[..., 0] = 0.25
    attention[..., 1:, 1:] = 0.75 * torch.eye(4).roll(1, dims=1)
    attention[..., 0, 0] = 1.0
    torch.testing.assert_close(prefix_share(attention, 1), torch.tensor([0.4]))
    expected = (2 * 10.0 + 2 * math.hypot(10, 10)) / 4
    torch.testing.assert_close(attention_distance(attention, (2, 2), (10, 10)), torch.tensor([expected]))


def test_a_patch_that_looks_at_prefix_tokens_alone_has_no_distance():
    attention = torch.zeros(1, 1, 3, 3)
    attention[0, 0] = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(attention_distance(attention, (1, 2), (4, 4)), torch.tensor([4.0]))


def test_statistics_have_a_number_a_layer_and_head(any_vit, images):
    model = any_vit(img_size=(16, 24), reg_tokens=2)
    with capture_attention(model) as captured, torch.no_grad():
        model(torch.randn(2, 3, 16, 24))
    statistics = head_statistics(captured)
    for values in statistics:
        assert values.shape == (3, 2)
    assert statistics.entropy.max() <= math.log(27) + 1e-5
    assert 0 < statistics.distance.max() < math.hypot(16, 24)
    maps = captured[1].maps()
    torch.testing.assert_close(statistics.prefix[1], maps.attended[..., :3].sum(-1).mean((0, 2)))


def test_branches_have_statistics_of_their_own_and_plain_attention_has_one(images):
    captured = {}
    for kind in ("diff", "plain"):
        model = make_vit(kind)
        with capture_attention(model) as captured[kind], torch.no_grad():
            model(images)
    first, second = (head_statistics(captured["diff"], which) for which in ("map1", "map2"))
    assert not torch.allclose(first.entropy, second.entropy)
    torch.testing.assert_close(head_statistics(captured["plain"]), head_statistics(captured["plain"], "map1"))
    with pytest.raises(ValueError, match="which='map2' is of differential attention"):
        head_statistics(captured["plain"], "map2")
