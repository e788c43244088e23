"""Check that a network can be converted, and read the constructor arguments of a Diff-ViT of the same shape from it."""

import functools
from collections.abc import Callable
from typing import Any

from timm.layers import Attention, GELUTanh, GluMlp, LayerNorm, Mlp, PatchEmbed, QuickGELU, RmsNorm
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import nn

from ..layers.pos_embed import POS_EMBEDS_2D, PosEmbed2d

__all__ = ["check_source", "vit_args"]

# Methods of timm's VisionTransformer that define its forward pass. A Diff-ViT uses timm's own, so a subclass that
# overrides one of them cannot be converted.
FORWARD_METHODS = ("forward", "forward_features", "forward_head", "pool", "_pos_embed")

# timm's name of each activation, by the repr of the module, because the repr shows its settings.
ACTIVATIONS = {
    repr(act): name
    for act, name in (
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        (GELUTanh(), "gelu_tanh"),
        (QuickGELU(), "quick_gelu"),
        (nn.SiLU(), "silu"),
        (nn.ReLU(), "relu"),
    )
}


def check_source(source: nn.Module) -> None:
    """Check that every part of a network has an exact counterpart in a Diff-ViT.

    Raises:
        ValueError: the network cannot be converted; the message says why.
    """
    name = type(source).__name__
    reasons = {
        "Eva": "rotary or relative position embeddings act on its queries and keys",
        "Beit": "a relative position bias is added to its logits",
        "VisionTransformerRelPos": "a relative position bias is added to its logits",
        "SwinTransformer": "its attention is windowed and has a relative position bias",
    }
    # head_dist is the second head of a distilled DeiT.
    if not isinstance(source, VisionTransformer) or hasattr(source, "head_dist"):
        reason = reasons.get(name, "only timm's VisionTransformer is supported")
        raise ValueError(f"{name} cannot be converted: {reason}")
    for method in FORWARD_METHODS:
        if getattr(type(source), method) is not getattr(VisionTransformer, method):
            raise ValueError(f"{name} cannot be converted: it overrides {method} of timm's VisionTransformer")
    if type(source.patch_embed) is not PatchEmbed:
        raise ValueError(f"{name} cannot be converted: its patches come from a {type(source.patch_embed).__name__}")
    for step in _patch_postprocessing(source):
        if not isinstance(step, (nn.Identity, PosEmbed2d)):
            raise ValueError(f"{name} cannot be converted: a {type(step).__name__} follows its patches")
    head: Any = source.head
    if not isinstance(head, nn.Identity) and (type(head) is not nn.Linear or head.bias is None):
        raise ValueError(f"{name} cannot be converted: its head, a {type(head).__name__}, is not a Linear with a bias")
    for index, block in enumerate(source.blocks):
        attn: Any = getattr(block, "attn", None)
        if type(block) is not Block or type(attn) is not Attention:
            kind = f"{type(block).__name__} with {type(attn).__name__}"
            raise ValueError(f"{name} cannot be converted: block {index} is a {kind}, not timm's Block with Attention")
        if type(block.mlp) not in (Mlp, GluMlp) or type(block.norm1) not in (LayerNorm, nn.LayerNorm, RmsNorm):
            kind = f"{type(block.mlp).__name__} and {type(block.norm1).__name__}"
            raise ValueError(f"{name} cannot be converted: block {index} has an unsupported MLP or norm, {kind}")
        if repr(block.mlp.act) not in ACTIVATIONS:
            raise ValueError(
                f"{name} cannot be converted: the activation of block {index}, {block.mlp.act}, is not supported"
            )
        if not isinstance(block.mlp.norm, nn.Identity):
            raise ValueError(f"{name} cannot be converted: block {index} normalises within its MLP")
        if not isinstance(attn.q_norm, nn.Identity) or not isinstance(attn.k_norm, nn.Identity):
            raise ValueError(f"{name} cannot be converted: qk_norm normalises its queries and keys")
        if getattr(attn, "gate", None) is not None or not isinstance(attn.norm, nn.Identity):
            raise ValueError(f"{name} cannot be converted: block {index} gates or normalises its attention output")


def _patch_postprocessing(source: VisionTransformer) -> list[nn.Module]:
    """Return the modules after the patch projection: a norm, and possibly a two-dimensional position embedding."""
    norm = source.patch_embed.norm
    return [*norm] if isinstance(norm, nn.Sequential) else [norm]


def _pos_embed(source: VisionTransformer) -> str:
    """Return the `pos_embed` argument that gives the position embedding of `source`."""
    steps = [type(step) for step in _patch_postprocessing(source)]
    for name, kind in POS_EMBEDS_2D.items():
        if kind in steps:
            return name
    return "none" if source.pos_embed is None else "learn"


def _mlp_ratio(width: int, dim: int) -> float:
    """Return the ratio from which timm, which computes int(dim * ratio), gets this width."""
    ratio = width / dim
    return ratio if int(dim * ratio) == width else (width + 0.5) / dim


def vit_args(source: VisionTransformer) -> dict:
    """Read the constructor arguments of a network off its modules.

    Args:
        source: a network that passes `check_source`.

    Returns:
        Arguments of VisionTransformer and DiffVisionTransformer. All of them can be saved in a config, except the
        `mlp_layer` of a gated MLP, which is a callable.
    """
    block = source.blocks[0]
    drop_path = source.blocks[-1].drop_path1
    args: dict = dict(
        img_size=source.patch_embed.img_size,
        patch_size=source.patch_embed.patch_size,
        in_chans=source.in_chans,
        num_classes=getattr(source.head, "out_features", 0),  # num_classes is wrong if the head was replaced
        global_pool=source.global_pool,
        embed_dim=source.embed_dim,
        depth=len(source.blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=_mlp_ratio(block.mlp.fc1.out_features, source.embed_dim),
        qkv_bias=block.attn.qkv.bias is not None,
        proj_bias=block.attn.proj.bias is not None,
        init_values=None if isinstance(block.ls1, nn.Identity) else block.ls1.gamma.abs().mean().item() or 1e-5,
        class_token=source.has_class_token,
        pos_embed=_pos_embed(source),
        no_embed_class=source.no_embed_class,
        reg_tokens=source.num_reg_tokens,
        pre_norm=not isinstance(source.norm_pre, nn.Identity),
        final_norm=not all(isinstance(norm, nn.Identity) for norm in (source.norm, source.fc_norm)),
        fc_norm=not isinstance(source.fc_norm, nn.Identity),
        pool_include_prefix=source.pool_include_prefix,
        dynamic_img_size=source.dynamic_img_size,
        dynamic_img_pad=source.patch_embed.dynamic_img_pad,
        drop_rate=source.head_drop.p,
        pos_drop_rate=source.pos_drop.p,
        patch_drop_rate=getattr(source.patch_drop, "prob", 0.0),
        proj_drop_rate=block.attn.proj_drop.p,
        attn_drop_rate=block.attn.attn_drop.p,
        drop_path_rate=getattr(drop_path, "drop_prob", 0.0),
        norm_layer=type(block.norm1).__name__.lower(),
        norm_eps=block.norm1.eps,
        act_layer=ACTIVATIONS[repr(block.mlp.act)],
    )
    if isinstance(block.mlp, GluMlp):
        gated: Callable = GluMlp
        args["mlp_layer"] = functools.partial(gated, gate_last=block.mlp.gate_last)
    return args
