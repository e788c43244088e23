"""Layers of zeros, dead heads, and images that say nothing convert without an error and without NaN."""

import json

import pytest
import timm
import torch

from diffvit_timm import conversion_report, distill_layers, from_vit
from diffvit_timm.conversion.calibration import logit_moments
from diffvit_timm.conversion.weights import READS_IMAGES
from diffvit_timm.errors import InputError

SHAPE = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=5)
METHODS = ("calibrated", "pairs", "svd", "slice", "mirror", "contrast")
IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def source(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{**SHAPE, **kwargs}).eval()


def zero_layer(model):
    for parameter in model.blocks[0].attn.parameters():
        torch.nn.init.zeros_(parameter)


def dead_heads(model):
    for rows in (slice(0, 24), slice(48, 60), slice(96, 120)):  # of the queries, keys and values
        torch.nn.init.zeros_(model.blocks[0].attn.qkv.weight[rows])


def equal_rows(model):
    torch.nn.init.ones_(model.blocks[0].attn.qkv.weight)


def zero_head(model):
    torch.nn.init.zeros_(model.head.weight)


def converted(plain, method, images):
    attn = "diff_v2" if method in ("mirror", "contrast") else "diff"
    return from_vit(plain, method, images if method in READS_IMAGES else None, attn=attn)


@pytest.mark.parametrize("spoil", [zero_layer, dead_heads, equal_rows, zero_head])
@pytest.mark.parametrize(
    ("method", "qk_norm"),
    # 'pairs' and 'contrast' refuse layers that normalise their queries and keys.
    [(method, False) for method in METHODS]
    + [(method, True) for method in METHODS if method not in ("pairs", "contrast")],
)
def test_a_degenerate_layer_converts_by_every_method_and_is_reported_and_distilled(spoil, method, qk_norm):
    plain = source(qk_norm=qk_norm)
    spoil(plain)
    model = converted(plain, method, IMAGES)
    report = conversion_report(plain, model, IMAGES)
    json.dumps(report.to_dict(), allow_nan=False)
    distill_layers(plain, model, IMAGES, passes=1)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    if spoil is zero_layer:
        assert report.attention_error[0] == 0
    if spoil is zero_head:
        assert report.output_error == 0


@pytest.mark.parametrize("method", READS_IMAGES)
@pytest.mark.parametrize("images", [IMAGES[:1], torch.zeros(3, 3, 32, 32)], ids=["one", "constant"])
def test_one_image_and_constant_images_calibrate_without_nan(method, images):
    model = converted(source(), method, images)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize("qk_norm", [False, True])
def test_heads_whose_keys_are_all_equal_are_converted_from_the_weights(qk_norm):
    plain = source(class_token=False, global_pool="avg", qk_norm=qk_norm)
    torch.nn.init.zeros_(plain.pos_embed)
    constant = torch.full((3, 3, 32, 32), 0.7)  # without positions all its tokens are equal
    for gram_q, gram_k in logit_moments(plain, constant):
        assert gram_q.abs().max() > 0
        assert gram_k.abs().max() == 0
    calibrated, svd = converted(plain, "calibrated", constant), converted(plain, "svd", None)
    for block, expected in zip(calibrated.blocks, svd.blocks, strict=True):
        assert torch.equal(block.attn.qkv.weight, expected.attn.qkv.weight)


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_values_that_are_not_finite_are_refused_with_the_layer(value):
    plain, model, broken = source(), from_vit(source()), torch.full((2, 3, 32, 32), value)
    message = r"^blocks\.0\.attn has NaN or infinite values on the `images`: check them, and the weights$"
    for use in (
        lambda: converted(plain, "calibrated", broken),
        lambda: converted(plain, "pairs", broken),
        lambda: converted(plain, "contrast", broken),
        lambda: distill_layers(plain, model, broken, passes=1),
    ):
        with pytest.raises(InputError, match=message):
            use()
    with pytest.raises(
        InputError, match=r"^the source has NaN or infinite values on the `images`: check them, and the weights$"
    ):
        conversion_report(plain, model, broken)
