"""The kinds of attention that are only for training from scratch: timm's gated attention, and DnA."""

import pytest
import timm
import torch
from torch import nn

import diffvit_timm
from diffvit_timm.errors import InputError
from diffvit_timm.layers.base import FROM_SCRATCH_ONLY, attention_kind
from diffvit_timm.layers.denoising import DenoisingAttention
from diffvit_timm.models.pretrained import load_model, save_pretrained
from diffvit_timm.training.model import check_source
from diffvit_timm.training.model_config import ModelConfig

ARMS = pytest.mark.parametrize("attn", FROM_SCRATCH_ONLY)


def nano(attn, **kwargs):
    torch.manual_seed(0)
    return timm.create_model("diffvit_nano", attn=attn, depth=2, num_classes=3, **kwargs)


def test_the_gated_layer_computes_the_same_as_timms_gated_attention():
    for block in nano("gated").blocks:
        theirs = timm.layers.Attention(32, 2, qkv_bias=True, gated=True)
        theirs.load_state_dict(block.attn.state_dict())
        tokens = torch.randn(2, 7, 32)
        assert torch.equal(block.attn(tokens), theirs(tokens))


def test_the_gated_layer_computes_its_formula_in_float64():
    layer, x = nano("gated").blocks[0].attn.double(), torch.randn(2, 5, 32, dtype=torch.float64)
    q, k, v = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=-1))
    heads = (q @ k.mT / 4).softmax(-1) @ v
    gate = 1 / (1 + torch.exp(-(x @ layer.gate.weight.T + layer.gate.bias)))
    torch.testing.assert_close(layer(x), layer.proj(heads.transpose(1, 2).flatten(2) * gate))


def test_the_layer_of_dna_is_denoising_attention_with_a_scale_of_one_half_per_head():
    for block in nano("dna").blocks:
        assert type(block.attn) is DenoisingAttention
        assert block.attn.negative_scale.tolist() == [0.5, 0.5]


@ARMS
def test_all_parameters_of_an_arm_get_gradients(attn):
    model = nano(attn)
    model(torch.randn(4, 1, 28, 28)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.named_parameters())


@ARMS
def test_an_arm_is_saved_and_loaded_by_its_name(attn, tmp_path):
    model, images = nano(attn).eval(), torch.randn(2, 1, 28, 28)
    save_pretrained(model, tmp_path, ["a", "b", "c"])
    again = load_model(str(tmp_path)).eval()
    assert torch.equal(again(images), model(images))
    assert attention_kind(again) == attn
    assert again.pretrained_cfg["architecture"] == "diffvit_nano"


def test_an_arm_differs_from_plain_attention_only_in_its_attention():
    plain = nano("plain").state_dict()
    for attn in FROM_SCRATCH_ONLY:
        own = nano(attn).state_dict()
        assert {key for key in own if ".attn." not in key} == {key for key in plain if ".attn." not in key}
        assert all(own[key].shape == plain[key].shape for key in own.keys() & plain.keys() if "attn.qkv" not in key)


@ARMS
@pytest.mark.parametrize("setting", [{"lambda_init": 0.2}, {"branch_dims": (8, 8)}, {"head_norm": False}])
def test_settings_of_differential_attention_are_refused(attn, setting):
    with pytest.raises(ValueError, match=f"is a setting of differential attention: leave it out for attn='{attn}'"):
        nano(attn, **setting)


@ARMS
def test_pretrained_weights_and_conversions_are_refused(attn):
    with pytest.raises(ValueError, match=f"is for differential attention: leave it out with attn='{attn}'"):
        nano(attn, conversion="svd")
    with pytest.raises(ValueError, match=f"a network with attn='{attn}' is not converted"):
        diffvit_timm.from_vit(nano(attn))
    with pytest.raises(ValueError, match=f"attn='{attn}' is not a conversion target"):
        diffvit_timm.from_vit(timm.create_model("vit_tiny_patch16_224", depth=1), attn=attn)
    for model, pretrained in (("diffvit_tiny_patch16.deit_in1k", True), ("vit_tiny_patch16_224", False)):
        with pytest.raises(InputError, match=f"^`attn={attn}` has no pretrained weights: pass `pretrained=False`"):
            check_source(ModelConfig(model, pretrained=pretrained, attn=attn))


@ARMS
def test_the_weights_of_another_attention_do_not_load(attn, tmp_path):
    save_pretrained(nano("plain"), tmp_path, ["a", "b", "c"])
    config = tmp_path / "config.json"
    (tmp_path / "SHA256SUMS").unlink(missing_ok=True)
    text = config.read_text().replace("vit_tiny_patch16_224", "diffvit_nano")
    config.write_text(text.replace('"model_args": {', f'"model_args": {{"attn": "{attn}", '))
    with pytest.raises((InputError, RuntimeError), match=f"attn='{attn}' has no pretrained weights"):
        load_model(str(tmp_path))


def test_dna_has_no_norms():
    with pytest.raises(ValueError, match="attn='dna' has no norms"):
        nano("dna", qk_norm=True)
    assert isinstance(nano("gated", qk_norm=True).blocks[0].attn.q_norm, nn.Module)


def test_dna_refuses_a_width_that_its_heads_do_not_divide():
    with pytest.raises(ValueError, match="dim=32 must be a multiple of num_heads=3"):
        DenoisingAttention(32, 3)
