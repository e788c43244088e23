"""The gradients of queries, keys and values lie in the gradient of their projection, without a copy."""

import pytest
import timm
import torch

import diffvit_timm  # noqa: F401 (registers the models)
from diffvit_timm.layers.kernels import packing
from diffvit_timm.layers.kernels.packing import empty_gradients, split_projection


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_a_training_step_copies_no_gradient_of_a_projection(attn, monkeypatch):
    joined, places = packing._joined, []

    def record(parts):
        whole = joined(parts)
        places.append(whole.data_ptr() == parts[0].data_ptr())
        return whole

    monkeypatch.setattr(packing, "_joined", record)
    small = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
    model = timm.create_model("diffvit_tiny_patch16", attn=attn, **small)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert places == [True, True]


def test_gradients_that_lie_apart_are_joined_by_a_copy():
    projection = torch.randn(2, 5, 12, requires_grad=True)
    q, k, v = split_projection(projection, 6, 3)
    (q.sum() + 2 * k.sum() + 3 * v.square().sum()).backward()
    expected = torch.cat([torch.ones(2, 5, 6), torch.full((2, 5, 3), 2.0), 6 * projection[..., 9:].detach()], dim=-1)
    torch.testing.assert_close(projection.grad, expected)


def test_gradients_of_parts_in_another_order_are_not_taken_for_the_whole():
    grad_q, grad_k, grad_v = empty_gradients(*(torch.empty(2, 3, 5, 4) for _ in range(3)))
    for part, value in ((grad_q, 1.0), (grad_k, 2.0), (grad_v, 3.0)):
        part.fill_(value)
    merged = [t.transpose(1, 2).flatten(2) for t in (grad_k, grad_q, grad_v)]
    assert packing._joined(merged)[0, 0].tolist() == 12 * [2.0] + 12 * [1.0] + 12 * [3.0]


def test_the_split_has_second_derivatives():
    projection = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    q, k, v = split_projection(projection, 4, 4)
    (grad,) = torch.autograd.grad((q * k * v).sum(), projection, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), projection)
    assert second.abs().sum() > 0


def test_the_gradient_of_a_leaf_is_its_own_memory():
    projection, gradient = torch.randn(2, 5, 12, requires_grad=True), torch.ones(2, 5, 12)
    for _ in range(2):
        torch.cat(split_projection(projection, 6, 3), dim=-1).backward(gradient)
    assert gradient.unique().tolist() == [1.0]
    assert projection.grad.unique().tolist() == [2.0]
