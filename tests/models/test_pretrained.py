"""A saved model comes back by timm's own loading, with its class names."""

import pytest
import timm
import torch

from diffvit_timm import from_vit
from diffvit_timm.errors import InputError
from diffvit_timm.models.pretrained import load_model, save_pretrained, short_names


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
    with pytest.raises(InputError, match=f"--model local-dir:{tmp_path} cannot be made"):
        load_model(f"local-dir:{tmp_path}")


def test_two_folders_of_one_name_are_told_apart(tmp_path):
    for name in ("a/best", "b/best", "b/net"):
        (tmp_path / name).mkdir(parents=True)
    first, second, third = (str(tmp_path / name) for name in ("a/best", "b/best", "b/net"))
    assert short_names([first, second, third, "resnet50"]) == [first, second, "net", "resnet50"]
    with pytest.raises(InputError, match="--compare net net: one is named twice"):
        short_names(["net", "net"], "--compare")
