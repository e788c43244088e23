"""Layer-wise distillation brings attention outputs closer to the source's, and does not change lambda."""

import pytest
import timm
import torch

from diffvit_timm import conversion_report, distill_layers, from_vit
from diffvit_timm.errors import InputError


@pytest.fixture
def source():
    torch.manual_seed(0)
    shape = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
    model = timm.create_model("vit_tiny_patch16_224", **shape).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
    return model


def test_attention_outputs_on_other_images_come_closer_to_the_sources(source):
    images, others = torch.randn(96, 3, 32, 32), torch.randn(16, 3, 32, 32)
    model = from_vit(source, branch_dims=(8, 8), lambda_init=0.2)
    before = conversion_report(source, model, others)
    distill_layers(source, model, images, passes=8, lr=3e-3)
    after = conversion_report(source, model, others)
    assert all(new < 0.9 * old for new, old in zip(after.attention_error, before.attention_error, strict=True))
    assert after.output_error < before.output_error


def test_only_the_projections_of_the_attention_are_trained(source):
    model = from_vit(source).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    distill_layers(source, model, torch.randn(4, 3, 32, 32), passes=1)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    trained = {f"attn.{layer}.{kind}" for layer in ("qkv", "proj") for kind in ("weight", "bias")}
    assert {name.split(".", 2)[2] for name in changed} == trained
    assert all(torch.equal(tensor, kept[name]) for name, tensor in source.state_dict().items())
    assert all(p.grad is None for p in [*model.parameters(), *source.parameters()])
    assert model.training


def test_a_layer_that_was_exact_gets_its_weights_back(source):
    model, images = from_vit(source, attn="diff_v2"), torch.randn(8, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    distill_layers(source, model, images, passes=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_images_with_nan_are_refused_at_their_first_batch_and_no_weight_becomes_nan(source):
    model, read = from_vit(source), []

    class Images(list):
        def __iter__(self):
            for batch in super().__iter__():
                read.append(batch)
                yield batch

    images = Images([torch.randn(2, 3, 32, 32), torch.full((2, 3, 32, 32), torch.nan), torch.randn(2, 3, 32, 32)])
    with pytest.raises(InputError, match=r"^blocks\.0\.attn has NaN or infinite values on the `images`"):
        distill_layers(source, model, images)
    assert len(read) == 2
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_float16_is_refused(source):
    with pytest.raises(ValueError, match="a float16 model cannot learn"):
        distill_layers(source.half(), from_vit(source.half()), torch.randn(1, 3, 32, 32))


def test_frozen_layers_are_refused(source):
    with pytest.raises(ValueError, match="frozen layers cannot learn"):
        distill_layers(source, from_vit(source).requires_grad_(False), torch.randn(1, 3, 32, 32))


def test_no_images_is_an_error(source):
    with pytest.raises(ValueError, match="empty"):
        distill_layers(source, from_vit(source), [])
