"""Every family of transformers converts: exactly to version 2, and with all that timm's models can do."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from families import FAMILIES, make_family

from diffvit_timm import conversion_report, differential_layers, from_vit
from diffvit_timm.conversion.surgery import channel_freedom, is_rotary
from diffvit_timm.errors import InputError
from diffvit_timm.layers.adapters import check_layers
from diffvit_timm.layers.base import attention_kind
from diffvit_timm.models.generic import BASES, plain_name
from diffvit_timm.models.pretrained import load_model, save_pretrained

KINDS = ["diff", "diff_v2"]


def pictures(count=2, side=64, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def images_for(name, count=2):
    return pictures(count, FAMILIES[name][1].get("img_size", 64))


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_version_2_has_the_outputs_of_the_source_which_is_not_changed(family):
    source, x = make_family(family), images_for(family, 8)
    state = copy.deepcopy(source.state_dict())
    for lambda_init, most in ((0.3, 1e-5), (0.5, 1e-6)):
        model = from_vit(source, attn="diff_v2", lambda_init=lambda_init)
        with torch.no_grad():
            expected, actual = source(x), model(x)
        assert relative_error(actual, expected) < most
        assert torch.equal(actual.argmax(-1), expected.argmax(-1))
    exact = from_vit(source.double(), attn="diff_v2", lambda_init=0.5)
    with torch.no_grad():
        assert relative_error(exact(x.double()), source(x.double())) < 1e-10
    assert all(torch.equal(tensor, state[key]) for key, tensor in source.float().state_dict().items())
    assert type(model) is type(source)


@pytest.mark.parametrize("attn", KINDS)
def test_a_converted_network_trains_and_every_new_parameter_learns(family, attn):
    model = from_vit(make_family(family), attn=attn).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        out = model(images_for(family))
        (out if torch.is_tensor(out) else sum(out)).square().sum().backward()
        optimizer.step()
    for layer in differential_layers(model):
        for name, parameter in layer.named_parameters():
            if "lambda" in name or name.startswith(("qkv", "q_", "proj.weight")):
                assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("attn", KINDS)
def test_it_is_saved_and_loaded_by_name_with_equal_bits(family, attn, tmp_path):
    model, x = from_vit(make_family(family), attn=attn), images_for(family)
    save_pretrained(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    more = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7)  # a new head
    assert more(x)[0].shape[-1] == 7


def test_features_intermediates_and_gradient_checkpointing_work_as_in_the_source(family):
    source, x = make_family(family), images_for(family)
    model = from_vit(source, attn="diff_v2")
    with torch.no_grad():
        ours, timms = (net.forward_intermediates(x, intermediates_only=True) for net in (model, source))
    assert [t.shape for t in ours] == [t.shape for t in timms]
    assert all(relative_error(*pair) < 1e-5 for pair in zip(ours, timms, strict=True))
    expected = model(x)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.train()(x).shape, expected.shape)
    assert model.get_classifier() is not None
    # FSDP keeps the modules of these classes whole: each contains attention and MLP.
    whole = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    inside = {layer for block in whole for layer in differential_layers(block)}
    assert inside == set(differential_layers(model))
    assert all(any("mlp" in name for name, _ in block.named_modules()) for block in whole)


def test_it_can_be_scripted_if_its_source_can(family):
    source, x = make_family(family), images_for(family)
    with timm.layers.set_scriptable(True):
        try:
            torch.jit.script(source)
        except Exception:
            pytest.skip("timm's network cannot be scripted")
    model = from_vit(source, attn="diff_v2")
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def test_it_runs_in_half_precision(family):
    model = from_vit(make_family(family), attn="diff_v2").to(torch.bfloat16)
    with torch.no_grad():
        out = model(images_for(family).to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


def test_calibration_brings_the_output_of_every_layer_nearer_to_the_source(family):
    source, x = make_family(family), images_for(family, 24)
    errors = {}
    for method, images in (("slice", None), ("svd", None), ("calibrated", x)):
        errors[method] = conversion_report(source, from_vit(source, method, images), x).attention_error
    for calibrated, svd, cut in zip(errors["calibrated"], errors["svd"], errors["slice"], strict=True):
        assert calibrated < min(svd, cut)


def test_what_version_1_may_do_with_the_channels_is_known(family):
    source = make_family(family)
    freedoms = {channel_freedom(layer, is_rotary(source)) for layer in check_layers(source).values()}
    rotary = family in ("DINOv3", "EVA-02", "Perception Encoder", "ViT, rotary", "ViT, mixed rotary", "Gemma 4")
    normed = family in ("ViT, qk_norm, norms in the MLP and before the blocks", "Swin v2", "SAM")
    assert freedoms == {"pairs" if rotary else "channels" if normed else "rotation"}


def test_the_generic_architecture_takes_any_base():
    x = pictures()
    model = timm.create_model(
        "diffvit", base="vit_small_patch16_dinov3", attn="diff_v2", lambda_init=0.3, img_size=64,
        **{k: v for k, v in FAMILIES["DINOv3"][1].items() if k != "img_size"},
    )  # fmt: skip
    assert model(x).shape == (2, 5)
    assert [layer.lambda_init.item() for layer in differential_layers(model)] == pytest.approx([0.3, 0.3])
    assert model.pretrained_cfg["architecture"] == "diffvit"
    plain = timm.create_model("diffvit", base="vit_tiny_patch16_224", attn="plain", num_classes=3)
    assert plain.pretrained_cfg["architecture"] == "vit_tiny_patch16_224"
    features = timm.create_model("diffvit", base="vit_tiny_patch16_224", features_only=True, img_size=64)
    assert [tuple(t.shape) for t in features(x)] == [(2, 192, 4, 4)] * 3


@pytest.mark.parametrize("version", ["diffvit", "diffvit2"])
def test_popular_backbones_have_names_and_tags_of_their_own(version, tmp_path):
    tagged = f"{version}_small_patch16_dinov3.lvd1689m"
    assert tagged in timm.list_pretrained(f"{version}*")
    ours, theirs = (timm.models.get_pretrained_cfg(name) for name in (tagged, "vit_small_patch16_dinov3.lvd1689m"))
    for field in ("mean", "std", "crop_pct", "input_size"):
        assert getattr(ours, field) == getattr(theirs, field)
    assert plain_name(tagged) == "vit_small_patch16_dinov3.lvd1689m"
    model, x = timm.create_model(tagged, **FAMILIES["DINOv3"][1]).eval(), pictures()
    assert attention_kind(model) == ("diff" if version == "diffvit" else "diff_v2")
    save_pretrained(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert loaded.pretrained_cfg["architecture"] == f"{version}_small_patch16_dinov3"
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_the_plain_twin_of_a_named_backbone_is_saved_as_timms_own(tmp_path):
    twin = timm.create_model("diffvit_small_patch16_dinov3", attn="plain", **FAMILIES["DINOv3"][1])
    save_pretrained(twin, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "vit_small_patch16_dinov3"
    assert not {"attn", "base"} & config["model_args"].keys()


def test_every_named_backbone_is_known_to_timm_with_the_tags_of_its_plain_network():
    for name, base in BASES.items():
        tags = {tagged.split(".", 1)[1] for tagged in timm.list_pretrained(f"{name}.*")}
        assert tags == {tagged.split(".", 1)[1] for tagged in timm.list_pretrained(f"{base}.*")}
        assert timm.models.get_pretrained_cfg(name).tag == timm.models.get_pretrained_cfg(base).tag


def test_the_generic_architecture_refuses_a_missing_base_and_one_that_cannot_be_converted():
    with pytest.raises(ValueError, match="base is missing: pass the timm name of the plain network"):
        timm.create_model("diffvit")
    with pytest.raises(ValueError, match="ResNet cannot be converted"):
        timm.create_model("diffvit", base="test_resnet")


def test_weights_of_a_plain_network_are_converted_where_they_stand_for_the_base_and_refused_elsewhere(tmp_path):
    source, x = make_family("ViT"), pictures()
    torch.save(source.state_dict(), tmp_path / "plain.pth")
    file = dict(file=str(tmp_path / "plain.pth"), num_classes=5, custom_load=False)
    options = dict(base="vit_tiny_patch16_224", attn="diff_v2", pretrained=True, **FAMILIES["ViT"][1])
    converted = timm.create_model("diffvit", pretrained_cfg_overlay=file, **options).eval()
    with torch.no_grad():
        assert relative_error(converted(x), source(x)) < 1e-5
    with pytest.raises(RuntimeError, match="weights of a plain network: convert it with"):
        timm.create_model("diffvit", pretrained_cfg=file, **options)


@pytest.mark.filterwarnings("ignore:(?s).*(non-tuple sequence|non-contiguous):UserWarning")  # of timm's interpolation
def test_another_image_size_changes_a_saved_network_as_it_changes_the_plain_one(family, tmp_path):
    source = make_family(family)
    save_pretrained(from_vit(source, attn="diff_v2"), tmp_path)
    side = FAMILIES[family][1].get("img_size", 64) * 2
    if family == "SAM":
        with pytest.raises(InputError, match="size mismatch for pos_embed"):  # timm does not resize it either
            load_model(str(tmp_path), img_size=side)
        return
    larger = load_model(str(tmp_path), img_size=side).eval()
    if hasattr(source, "set_input_size"):
        source.set_input_size(img_size=side)
    x = pictures(side=side)
    with torch.no_grad():
        assert relative_error(larger(x), source(x)) < 1e-5


@pytest.mark.parametrize("name", ["diffvit_tiny_patch16", "diffvit"])
def test_a_file_of_plain_weights_does_not_fill_a_differential_network(name, tmp_path):
    np.savez(tmp_path / "plain.npz", kernel=np.zeros(3))
    options = {"base": "vit_tiny_patch16_224"} if name == "diffvit" else {}
    with pytest.raises(ValueError, match="has the weights of a plain network: load it into the plain network"):
        timm.create_model(name, checkpoint_path=str(tmp_path / "plain.npz"), **options)


@pytest.mark.parametrize("version", ["diffvit", "diffvit2"])
def test_networks_are_built_without_memory_like_timms(version):
    with torch.device("meta"):
        big = timm.create_model(f"{version}_7b_patch16_dinov3")
        small = timm.create_model(f"{version}_small_patch16_dinov3", **FAMILIES["DINOv3"][1])
    assert all(parameter.is_meta for parameter in big.parameters())
    assert sum(parameter.numel() for parameter in big.parameters()) > 6e9
    saved = timm.create_model(f"{version}_small_patch16_dinov3", **FAMILIES["DINOv3"][1]).eval()
    small = small.to_empty(device="cpu").eval()
    for module in small.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    small.load_state_dict(saved.state_dict())
    with torch.no_grad():
        assert torch.equal(small(pictures()), saved(pictures()))
