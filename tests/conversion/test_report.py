"""The figures of the report agree with a direct computation."""

import pytest
import timm
import torch

from diffvit_timm import conversion_report, differential_layers, from_vit

SHAPE = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3)


def pair(num_classes=5, **kwargs):
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **SHAPE).eval()
    for block in source.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return source, from_vit(source, **kwargs)


def test_the_figures_are_those_of_the_outputs():
    source, model = pair()
    images = torch.randn(40, 3, 32, 32)
    report = conversion_report(source, model, images)
    with torch.inference_mode():
        expected, actual = source(images).double(), model(images).double()
    probabilities = expected.softmax(-1)
    assert report.images == 40
    assert report.agreement == (expected.argmax(-1) == actual.argmax(-1)).double().mean().item()
    kl = (probabilities * (probabilities.log() - actual.softmax(-1).log())).sum(-1).mean().item()
    assert report.kl == pytest.approx(kl, rel=1e-6)
    assert report.output_error == pytest.approx(((actual - expected).norm() / expected.norm()).item(), rel=1e-6)
    assert report.lambdas == pytest.approx([a.compute_lambda(None).item() for a in differential_layers(model)])


def test_each_layer_is_compared_on_the_tokens_of_the_source():
    source, model = pair()
    images = torch.randn(20, 3, 32, 32)
    report = conversion_report(source, model, images)
    with torch.inference_mode():
        x = source.norm_pre(source._pos_embed(source.patch_embed(images)))
        for index, (plain, diff) in enumerate(zip(source.blocks, model.blocks, strict=True)):
            tokens = plain.norm1(x)
            out = plain.attn(tokens)
            error = (diff.attn(tokens) - out).norm() / out.norm()
            assert report.attention_error[index] == pytest.approx(error.item(), rel=1e-4)
            q, k, _, _ = diff.attn.project_qkv(tokens)
            tail = (q[..., 12:] @ k[..., 12:].mT * diff.attn.scale).double()
            tail = tail - tail.mean(-1, keepdim=True)
            assert report.tail_std[index] == pytest.approx(tail.square().mean().sqrt().item(), rel=1e-4)
            x = plain(x)


def test_a_first_branch_of_nearly_full_width_keeps_nearly_all_energy():
    source, model = pair(branch_dims=(15, 1), lambda_init=0.0)
    report = conversion_report(source, model, torch.randn(8, 3, 32, 32))
    assert min(report.energy_kept) > 0.98
    halves = conversion_report(source, pair(branch_dims=(8, 8), lambda_init=0.0)[1], torch.randn(8, 3, 32, 32))
    assert max(halves.energy_kept) < min(report.energy_kept)


def test_batches_give_the_report_of_the_whole():
    source, model = pair()
    images = torch.randn(21, 3, 32, 32)
    whole, batched = (conversion_report(source, model, x) for x in (images, images.split(5)))
    assert batched.summary() == pytest.approx(whole.summary(), rel=1e-4)
    assert batched.attention_error == pytest.approx(whole.attention_error, rel=1e-4)
    assert batched.tail_std == pytest.approx(whole.tail_std, rel=1e-4)


def test_a_network_without_a_head_has_an_output_error_but_no_classes_to_agree_on():
    report = conversion_report(*pair(num_classes=0), torch.randn(4, 3, 32, 32))
    assert report.agreement is None
    assert report.kl is None
    assert 0 < report.output_error < 1


def test_no_hook_is_left_behind_and_an_empty_batch_is_refused():
    source, model = pair()
    with pytest.raises(ValueError, match="empty"):
        conversion_report(source, model, [])
    with pytest.raises(RuntimeError):
        conversion_report(source, model, torch.randn(1, 7, 32, 32))
    with pytest.raises(ValueError, match=r"outputs of \(1, 5\) and \(1, 3\).*the same classes"):
        conversion_report(source, pair(num_classes=3)[1], torch.randn(1, 3, 32, 32))
    assert not any(block.attn._forward_hooks for block in source.blocks)


def test_the_printed_report_has_one_row_per_layer():
    text = str(conversion_report(*pair(branch_dims=(15, 1), lambda_init=0.0), torch.randn(4, 3, 32, 32)))
    assert len(text.splitlines()) == 2 + 2
    assert "top-1 agreement" in text


@pytest.mark.parametrize("num_classes", [5, 0])
def test_a_report_that_keeps_little_names_version_2(num_classes):
    images = torch.randn(40, 3, 32, 32)
    for settings, advised in (
        (dict(method="slice", branch_dims=(1, 15)), True),
        (dict(branch_dims=(15, 1), lambda_init=0.0), False),
        (dict(attn="diff_v2"), False),
    ):
        text = str(conversion_report(*pair(num_classes, **settings), images))
        assert ("Version 2 (attn=diff_v2) keeps all of it" in text) == advised
