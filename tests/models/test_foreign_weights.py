"""Weights that were not converted, or were made for another kind of layer, are refused by every route of timm."""

import json

import pytest
import timm
import torch
from families import FAMILIES, make_family
from timm.models import load_checkpoint, resume_checkpoint

from diffvit_timm import from_vit
from diffvit_timm.models.pretrained import save_pretrained

SMALL = dict(img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=3)
NOT_CONVERTED = "comes from plain attention and must be converted"
OTHER_KIND = "comes from another kind of differential layer"


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **SMALL).eval()


@pytest.fixture
def plain_file(plain, tmp_path):
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    return str(tmp_path / "plain.pth")


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_no_route_of_timm_loads_plain_weights_without_converting_them(plain, plain_file, attn):
    model = timm.create_model("diffvit_tiny_patch16", attn=attn, **SMALL)
    for load in (
        lambda: model.load_state_dict(plain.state_dict(), strict=False),
        lambda: load_checkpoint(model, plain_file, strict=False),
        lambda: resume_checkpoint(model, plain_file, log_info=False),
        lambda: timm.create_model("diffvit_tiny_patch16", attn=attn, checkpoint_path=plain_file, **SMALL),
        lambda: timm.create_model(
            "diffvit", base="vit_tiny_patch16_224", attn=attn, checkpoint_path=plain_file, **SMALL
        ),
    ):
        with pytest.raises(RuntimeError, match=rf"blocks\.0\.attn\.qkv\.weight {NOT_CONVERTED}"):
            load()


@pytest.mark.parametrize("name", ["diffvit2_tiny_patch16", "diffvit"])
def test_a_file_in_the_pretrained_config_is_converted(plain, plain_file, name):
    base = {"base": "vit_tiny_patch16_224", "attn": "diff_v2"} if name == "diffvit" else {}
    overlay = {"file": plain_file, "num_classes": 3, "input_size": (3, 32, 32)}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **base, **SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_weights_of_every_family_are_refused(family, attn):
    source = make_family(family)
    model = from_vit(source, attn=attn)
    with pytest.raises(RuntimeError, match=NOT_CONVERTED):
        model.load_state_dict(source.state_dict(), strict=False)
    model.load_state_dict(model.state_dict())


def test_weights_of_another_split_of_the_branches_are_refused(tiny_model):
    halves, uneven = tiny_model(branch_dims=(8, 8)), tiny_model(branch_dims=(12, 4))
    with pytest.raises(RuntimeError, match=rf"attn\.qkv\.weight {OTHER_KIND}: only one of the two has branch_widths"):
        uneven.load_state_dict(halves.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match=r"branch_dims is \(8, 8\) in this layer and \(12, 4\) in the checkpoint"):
        halves.load_state_dict(uneven.state_dict(), strict=False)


def test_a_saved_network_keeps_its_layer_if_the_defaults_of_its_variant_change(tmp_path):
    save_pretrained(timm.create_model("diffvit_nano"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    saved = config["model_args"]
    assert (saved["head_norm"], saved["lambda_init"], saved["branch_dims"]) == (False, "schedule", [8, 8])
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": {**saved, "head_norm": True}}))
    with pytest.raises(RuntimeError, match=r"missing.*sub_norm"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_weights_with_a_head_norm_say_how_to_load_them(tmp_path):
    save_pretrained(timm.create_model("diffvit_nano", head_norm=True), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_args"]["head_norm"]  # as before the default changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"unexpected.*; pass head_norm=True, because the checkpoint has a norm of"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True, head_norm=True)


def test_weights_with_and_without_a_head_norm_or_a_number_for_lambda_are_told_apart(tiny_model):
    paper = tiny_model(head_norm=True, lambda_init="schedule", branch_dims=(8, 8))
    converted = tiny_model(branch_dims=(8, 8))
    with pytest.raises(RuntimeError, match=rf"{OTHER_KIND}: only one of the two has lambda_init, sub_norm\.weight"):
        converted.load_state_dict(paper.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match=rf"{OTHER_KIND}: only one of the two has sub_norm\.weight"):
        paper.load_state_dict(converted.state_dict(), strict=False)


def test_weights_of_another_version_are_refused(tiny_model):
    first, second = tiny_model(), tiny_model(attn="diff_v2")
    for model, other in ((first, second), (second, first)):
        with pytest.raises(RuntimeError, match=rf"{OTHER_KIND}: .*lambda_proj\.weight"):
            model.load_state_dict(other.state_dict(), strict=False)


def test_weights_without_the_order_of_the_channels_are_refused():
    model = from_vit(make_family("EVA-02"))
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("channel_order")}
    with pytest.raises(RuntimeError, match=rf"{OTHER_KIND}: only one of the two has channel_order"):
        model.load_state_dict(weights, strict=False)


def test_weights_that_do_not_concern_the_projections_load_in_part(tiny_model):
    model = tiny_model()
    head = {"head.weight": torch.ones(3, 32), "blocks.0.attn.proj.bias": torch.ones(32)}
    lora = {"blocks.0.attn.qkv.lora_A.default.weight": torch.ones(2, 32)}
    result = model.load_state_dict(head | lora, strict=False)
    assert result.unexpected_keys == list(lora)
    assert model.head.weight.min() == model.blocks[0].attn.proj.bias.min() == 1
