"""CLIP's image tower as a timm ViT, which can be converted and put back into the CLIP model."""

import copy
from collections.abc import Iterable
from typing import Any

from timm.layers import QuickGELU
from timm.models import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from ..conversion.weights import METHODS
from ..models.from_vit import from_vit
from .clip import Clip

__all__ = ["convert_tower", "timm_tower"]


def timm_tower(clip: Clip) -> VisionTransformer:
    """Return the image tower of a CLIP model as timm's VisionTransformer.

    Its head is the projection into the joint space of images and text.

    Args:
        clip: CLIP model whose image tower is a ViT of open_clip, or a ViT of timm without a projection after its head.

    Raises:
        ValueError: the image tower is not such a ViT.
    """
    visual = clip.model.visual
    if isinstance(getattr(visual, "trunk", None), VisionTransformer):
        if len(visual.head):
            raise ValueError(f"{clip.name}: its timm tower has a projection of its own, which a ViT cannot hold")
        return visual.trunk
    if type(visual).__name__ != "VisionTransformer" or visual.attn_pool is not None or visual.pool_type != "tok":
        raise ValueError(
            f"{clip.name}: its image tower, a {type(visual).__name__}, is not a ViT that reads a class token"
        )
    block = visual.transformer.resblocks[0]
    width = visual.conv1.out_channels
    tower = VisionTransformer(
        img_size=visual.image_size,
        patch_size=visual.patch_size,
        num_classes=visual.output_dim,
        embed_dim=width,
        depth=len(visual.transformer.resblocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.c_fc.out_features / width,
        init_values=None if isinstance(block.ls_1, nn.Identity) else 1.0,
        pre_norm=not isinstance(visual.ln_pre, nn.Identity),
        norm_layer="layernorm",
        act_layer=QuickGELU if type(block.mlp.gelu).__name__ == "QuickGELU" else nn.GELU,
    )
    for norm in (module for module in tower.modules() if isinstance(module, nn.LayerNorm)):
        norm.eps = block.ln_1.eps
    # timm's filter translates the names of open_clip, except for those of LayerScale: ls_1 is ls1 in timm.
    weights = {f"visual.{name.replace('.ls_', '.ls')}": tensor for name, tensor in visual.state_dict().items()}
    if tower.patch_embed.proj.bias is not None:  # without pre_norm, timm's patch embedding has a bias; CLIP's has none
        weights["visual.conv1.bias"] = visual.conv1.weight.new_zeros(width)
    tower.load_state_dict(checkpoint_filter_fn(weights, tower))
    return tower.eval()


def convert_tower(clip: Clip, method: str | None = None, images: Tensor | Iterable[Tensor] | None = None) -> Clip:
    """Return a CLIP model whose image tower is a Diff-ViT with the converted weights.

    Args:
        clip: CLIP model. It is not changed, and shares its text tower with the result.
        method, images: as in `from_vit`; the methods of version 2 make a tower of version 2.

    Raises:
        ValueError: the image tower cannot be converted, with the reason.
    """
    attn = "diff_v2" if method in METHODS["diff_v2"] else "diff"
    tower = from_vit(timm_tower(clip), method, images, attn=attn).eval()
    # A shallow copy with its own table of modules, so that only the copy gets the new tower.
    model: Any = copy.copy(clip.model)
    model._modules = dict(clip.model._modules)
    model.visual = tower
    return Clip(model, clip.transform, clip.tokenize, f"{clip.name}, differential")
