"""Layer classes among the arguments of a network are saved by name."""

import copy
import functools
import json

import pytest
import timm
import torch
from timm.layers import GluMlp, LayerNorm, RmsNorm, SwiGLUPacked
from timm.models import save_for_hf
from torch import nn

from diffvit_timm import from_vit
from diffvit_timm.errors import InputError
from diffvit_timm.models.layer_names import decode_layers, encode_layers
from diffvit_timm.models.pretrained import load_model, save_pretrained

# The arguments with which timm loads pathology models such as UNI2-h.
SWIGLU = dict(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, norm_layer=functools.partial(RmsNorm, eps=1e-5))
NAMES = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "norm_layer": {"layer": "RmsNorm", "eps": 1e-5}}
SMALL = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=3)
IMAGES = torch.randn(2, 3, 32, 32)


def test_classes_and_partials_are_written_by_name_and_read_again():
    assert encode_layers({**SWIGLU, "depth": 2, "pos_embed": "learn"}) == {**NAMES, "depth": 2, "pos_embed": "learn"}
    read = decode_layers({**NAMES, "pool_layer": "gelu", "weight_init": "Linear"})
    assert read["mlp_layer"] is SwiGLUPacked
    assert read["norm_layer"].func is RmsNorm
    assert read["norm_layer"].keywords == {"eps": 1e-5}
    assert (read["pool_layer"], read["weight_init"]) == ("gelu", "Linear")
    others = {"weight_init": nn.Linear}  # only arguments named *_layer are read again, so only they are written
    assert encode_layers(others) == others
    for layer in (nn.LayerNorm, LayerNorm, nn.GELU):
        assert decode_layers(encode_layers({"norm_layer": layer}))["norm_layer"] is layer
    copied = decode_layers(encode_layers({"mlp_layer": copy.deepcopy(SwiGLUPacked)}))["mlp_layer"]
    assert (copied.func, copied.keywords) == (SwiGLUPacked.func, SwiGLUPacked.keywords)


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
@pytest.mark.parametrize("save", [save_pretrained, functools.partial(save_for_hf, safe_serialization=True)])
def test_a_converted_network_with_swiglu_is_saved_and_loaded(attn, save, tmp_path):
    model = from_vit(timm.create_model("vit_tiny_patch16_224", **SMALL, **SWIGLU).eval(), attn=attn)
    save(model, str(tmp_path / "first"))
    assert json.loads((tmp_path / "first" / "config.json").read_text())["model_args"].items() >= NAMES.items()
    loaded = load_model(str(tmp_path / "first")).eval()
    assert isinstance(loaded.blocks[0].mlp, GluMlp)
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    save_pretrained(loaded, tmp_path / "second")
    assert torch.equal(load_model(str(tmp_path / "second")).eval()(IMAGES), model(IMAGES))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "diffvit_tiny_patch16"])
@pytest.mark.parametrize("arguments", [SWIGLU, NAMES], ids=["classes", "names"])
def test_a_plain_network_with_swiglu_is_saved_and_loaded_twice(name, arguments, tmp_path):
    twin = {"attn": "plain"} if name.startswith("diffvit") else {}
    model = load_model(name, pretrained=False, **twin, **SMALL, **arguments).eval()
    for folder in (tmp_path / "first", tmp_path / "second"):
        save_pretrained(model, folder)
        expected, model = model(IMAGES), load_model(str(folder)).eval()
        assert torch.equal(model(IMAGES), expected)


def test_a_layer_of_ones_own_is_refused_before_anything_is_written(tmp_path):
    class OwnNorm(nn.LayerNorm):
        pass

    model = timm.create_model("vit_tiny_patch16_224", norm_layer=OwnNorm, **SMALL)
    with pytest.raises(
        InputError, match=r"^`norm_layer=<class .*OwnNorm'>` cannot be saved in a config: pass a number"
    ):
        save_pretrained(model, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_only_layers_of_timm_and_torch_are_found_by_name():
    for name in ("os", "functional", "Module.__init__", "create_norm", 5, None):
        assert decode_layers({"mlp_layer": name}) == {"mlp_layer": name}
