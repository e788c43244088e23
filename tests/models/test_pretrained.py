"""Models are found by any of their four forms, and a saved model comes back by timm's own loading."""

import json
import subprocess
import sys

import pytest
import timm
import torch

from diffvit_timm import from_vit
from diffvit_timm.errors import InputError
from diffvit_timm.models.pretrained import check_model, load_model, resolve_model_name, save_pretrained, short_names

# What from_vit and save_pretrained of version 0.1 wrote. Such files lie in run folders and in repositories on the Hub.
CONFIG_OF_VERSION_0_1 = {
    "architecture": "diffvit_base_patch16",
    "num_classes": 2,
    "num_features": 48,
    "global_pool": "token",
    "label_names": ["cat", "dog"],
    "model_args": {
        "img_size": [32, 32],
        "patch_size": [8, 8],
        "in_chans": 3,
        "global_pool": "token",
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "proj_bias": True,
        "class_token": True,
        "pos_embed": "learn",
        "no_embed_class": False,
        "reg_tokens": 0,
        "pre_norm": False,
        "final_norm": True,
        "fc_norm": False,
        "pool_include_prefix": False,
        "dynamic_img_size": False,
        "dynamic_img_pad": False,
        "norm_layer": "layernorm",
        "norm_eps": 1e-06,
        "act_layer": "gelu",
        "lambda_init": 0.125,
        "branch_dims": [10, 6],
    },
    "pretrained_cfg": {
        "tag": "augreg_in21k_ft_in1k",
        "custom_load": False,
        "input_size": [3, 32, 32],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "num_classes": 2,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    },
}


@pytest.fixture
def saved(tiny_model, tmp_path):
    """A model, the folder of its weights, and the run folder around it."""
    model = tiny_model(lambda_init=0.125).eval()
    save_pretrained(model, tmp_path / "run" / "best")
    return model, tmp_path / "run" / "best", tmp_path / "run"


def test_a_saved_model_comes_back_bit_equal_with_its_class_names(tmp_path):
    source = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=2
    )
    model = from_vit(source, lambda_init=0.125).eval()
    save_pretrained(model, tmp_path / "saved", label_names=["cat", "dog"])
    loaded = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    assert list(loaded.pretrained_cfg["label_names"]) == ["cat", "dog"]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]


def test_another_number_of_classes_starts_a_new_head_and_keeps_the_rest(tmp_path):
    model = timm.create_model("diffvit_tiny_patch16", img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=2)
    save_pretrained(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    assert loaded.head.weight.shape == (3, 48)
    assert torch.equal(loaded.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_broken_file_of_a_saved_model_is_one_error(tmp_path, name):
    model = timm.create_model("diffvit_tiny_patch16", img_size=32, embed_dim=48, depth=1, num_heads=3)
    save_pretrained(model, tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"`model=local-dir:{tmp_path}` cannot be created"):
        load_model(f"local-dir:{tmp_path}")


def test_two_folders_of_one_name_are_told_apart(tmp_path):
    for name in ("a/best", "b/best", "b/net"):
        (tmp_path / name).mkdir(parents=True)
    first, second, third = (str(tmp_path / name) for name in ("a/best", "b/best", "b/net"))
    assert short_names([first, second, third, "resnet50"]) == [first, second, "net", "resnet50"]
    with pytest.raises(InputError, match="`compare=net net` names a model twice"):
        short_names(["net", "net"], "compare")


def test_a_name_stays_and_a_folder_stands_for_its_weights(saved, tmp_path, monkeypatch):
    _, weights, run = saved
    for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k", "hf-hub:timm/vit", "no_such_model"):
        assert resolve_model_name(name) == name
    for given in (weights, f"local-dir:{weights}", run, f"local-dir:{run}"):
        assert resolve_model_name(str(given)) == f"local-dir:{weights}"
    monkeypatch.chdir(tmp_path)
    assert resolve_model_name("run") == resolve_model_name("./run/") == "local-dir:run/best"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model_name("~/run") == f"local-dir:{weights}"


def test_a_model_of_timm_comes_before_a_folder_of_the_same_name(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(tiny_model(), "diffvit_nano")
    assert resolve_model_name("diffvit_nano") == "diffvit_nano"
    assert resolve_model_name("./diffvit_nano") == "local-dir:diffvit_nano"


@pytest.mark.parametrize("given", ["no/such/folder", "local-dir:nowhere", "~/nowhere", "s3://bucket/model", "hf-hub:"])
@pytest.mark.parametrize("use", [resolve_model_name, check_model, load_model])
def test_a_folder_that_does_not_exist_is_an_error_with_the_four_forms(given, use):
    with pytest.raises(InputError) as caught:
        use(given, parameter="teacher")
    assert str(caught.value) == (
        f"`teacher={given}` is neither a model name nor an existing folder: give a timm model name (with its tag), "
        "hf-hub:NAME, a folder of weights, or a run folder"
    )
    assert caught.value.parameter == "teacher"


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(InputError, match=f"`model={tmp_path}` is a folder without a model"):
        check_model(str(tmp_path))


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_folder_always_loads_its_weights(saved, pretrained):
    model, weights, run = saved
    x = torch.randn(2, 3, 16, 16)
    for given in (weights, f"local-dir:{weights}", run):
        assert torch.equal(load_model(str(given), pretrained).eval()(x), model(x))


def test_random_weights_for_a_folder_are_an_error(saved):
    _, weights, run = saved
    for given in (weights, f"local-dir:{weights}", run):
        check_model(str(given))
        with pytest.raises(InputError, match=r"^`pretrained=False`: `teacher=.* is a folder of weights, which always"):
            check_model(str(given), pretrained=False, parameter="teacher")


def test_from_vit_takes_a_run_folder(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=2)
    save_pretrained(source, tmp_path / "best")
    x = torch.randn(2, 3, 32, 32)
    expected = from_vit(source, attn="diff_v2").eval()(x)
    for given in (tmp_path, tmp_path / "best", f"local-dir:{tmp_path}/best"):
        assert torch.equal(from_vit(str(given), attn="diff_v2").eval()(x), expected)
    with pytest.raises(InputError, match="`source=vit_tinny` is not known to timm: did you mean"):
        from_vit("vit_tinny")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tinny_patch16_224", "is not known to timm: did you mean vit_tiny_patch16_224"),
        ("xyzzy", "is not known to timm: give a timm model name .*a run folder"),
        ("diffvit_tiny_patch16.deit", "has no such tag: choose one of diffvit_tiny_patch16.augreg_in21k, "),
        ("diffvit_nano.deit", "has no such tag: leave the tag out"),
        ("diffvit_nano", "has no pretrained weights: pass `pretrained=False`"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_alternatives(name, message):
    with pytest.raises(InputError, match=f"^`source={name}` {message}"):
        check_model(name, parameter="source", hint="pass `pretrained=False`")


def test_a_config_of_version_0_1_still_loads(tmp_path):
    source = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=2
    )
    model = from_vit(source, lambda_init=0.125, branch_dims=(10, 6)).eval()
    save_pretrained(model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_OF_VERSION_0_1))
    loaded = load_model(str(tmp_path)).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    assert list(loaded.pretrained_cfg["mean"]) == [0.5, 0.5, 0.5]
    assert list(loaded.pretrained_cfg["label_names"]) == ["cat", "dog"]


TWINS = {
    "diffvit_tiny_patch16": "vit_tiny_patch16_224",
    "diffvit_small_patch16_deit3": "deit3_small_patch16_224",
    "diffvit_base_patch16_clip_quickgelu": "vit_base_patch16_clip_quickgelu_224",
    "diffvit_nano": "vit_tiny_patch16_224",
    "diffvit_micro_patch4_32": "vit_tiny_patch16_224",
}


def test_timm_loads_plain_twins_without_this_package(tmp_path):
    for name, architecture in TWINS.items():
        size = {} if architecture == "vit_tiny_patch16_224" else dict(embed_dim=48, depth=2, num_heads=3)
        twin = timm.create_model(name, attn="plain", num_classes=3, **size).eval()
        save_pretrained(twin, tmp_path / name, ["a", "b", "c"])
        assert json.loads((tmp_path / name / "config.json").read_text())["architecture"] == architecture
        images = torch.randn(2, *twin.pretrained_cfg["input_size"])
        torch.save((images, twin(images).detach()), tmp_path / f"{name}.pt")
    code = """
import sys, timm, torch
for name in sys.argv[1:]:
    images, expected = torch.load(name + ".pt")
    model = timm.create_model("local-dir:" + name, pretrained=True).eval()
    assert torch.equal(model(images), expected), name
assert "diffvit_timm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, *TWINS], cwd=tmp_path, check=True)


def test_a_saved_plain_twin_converts_to_a_network_that_loads(tmp_path):
    twin = timm.create_model("diffvit_tiny_patch16.deit_in1k", attn="plain", embed_dim=48, depth=2, num_heads=3)
    save_pretrained(twin, tmp_path / "twin")
    plain = load_model(str(tmp_path / "twin"))
    model = from_vit(plain, attn="diff_v2").eval()
    save_pretrained(model, tmp_path / "converted")
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(load_model(str(tmp_path / "converted")).eval()(images), model(images))


@pytest.mark.parametrize("pos_embed", ["learn_2d", "sincos"])
def test_a_plain_twin_with_a_position_embedding_of_this_package_keeps_its_name(pos_embed, tmp_path):
    twin = timm.create_model("diffvit_nano", attn="plain", pos_embed=pos_embed).eval()
    save_pretrained(twin, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "diffvit_nano"
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(images), twin(images))
