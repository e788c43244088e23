"""Small ViTs with every supported kind of attention."""

import timm
import torch

import diffvit_timm  # noqa: F401

SHAPE = dict(img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=5)
KINDS = ("plain", "diff", "paper", "diff_v2", "timm", "timm_diff")


def make_vit(kind: str, **kwargs):
    """Return a model in evaluation mode, with the same weights every time and attention that is far from uniform."""
    torch.manual_seed(0)
    settings = {**SHAPE, **kwargs}
    if kind.startswith("timm"):
        attn = {"attn_layer": "diff"} if kind == "timm_diff" else {}
        model = timm.models.VisionTransformer(**settings, **attn)
    else:
        attn = {"attn": "diff", "head_norm": True, "lambda_init": "schedule"} if kind == "paper" else {"attn": kind}
        model = timm.create_model("diffvit_tiny_patch16", **settings, **attn)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(8)
    return model.eval()


def explicit_maps(model) -> list[torch.Tensor]:
    """Return a list that the next forward pass fills with the maps of timm's explicit (not fused) path.

    They are the inputs of the layers' dropout, (B, H, N, N) or (B, 2 H, N, N) per layer, and nodes of the graph.
    """
    seen = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    return seen
