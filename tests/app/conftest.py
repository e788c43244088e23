"""Fixtures: small networks of the explorer, and a photograph for them."""

import pytest
import torch
from PIL import Image

from diffvit_timm.app.network import load_networks
from diffvit_timm.models.pretrained import save_pretrained

SHAPES = {
    "first": {"attn": "diff_v2", "img_size": 32},
    "second": {"attn": "plain", "img_size": 48, "depth": 3, "num_heads": 4},
    "headless": {"attn": "diff", "num_classes": 0},
}


@pytest.fixture(scope="session")
def folders(tiny_model, tmp_path_factory):
    """The folders of three small networks by name: version 2, plain with other sizes, and version 1 without a head."""
    root = tmp_path_factory.mktemp("explored")
    for name, shape in SHAPES.items():
        model = tiny_model(**shape)
        with torch.no_grad():
            for block in model.blocks:
                block.attn.qkv.weight.mul_(8)  # attention that is far from uniform
        save_pretrained(model, root / name, ["cat", "dog", "<b>owl</b>"] if model.num_classes else None)
    return {name: str(root / name) for name in SHAPES}


@pytest.fixture(scope="session")
def networks(folders):
    return dict(zip(folders, load_networks(list(folders.values())), strict=True))


@pytest.fixture
def photo(tmp_path):
    """The path of a photograph of 60 x 40 pixels."""
    path = tmp_path / "photo.png"
    noise = torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(path)
    return path
