"""Which networks can become a Diff-ViT, and the constructor arguments that give it their shape."""

import functools
from collections.abc import Callable
from typing import Any

from timm.layers import Attention, GELUTanh, GluMlp, LayerNorm, Mlp, PatchEmbed, QuickGELU, RmsNorm
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import nn

from ..layers.pos_embed import POS_EMBEDS_2D, PosEmbed2d

__all__ = ["check_source", "vit_args"]

# What a subclass of timm's VisionTransformer may do in a way of its own, which a Diff-ViT would not.
FORWARD = ("forward", "forward_features", "forward_head", "pool", "_pos_embed")

# timm's names of activations, by what a module says of itself: its settings count.
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
    """
    Raises:
        ValueError: a network that has no exact place in a Diff-ViT, with the reason.
    """
    name = type(source).__name__
    reasons = {
        "Eva": "rotary or relative position embeddings act on its queries and keys",
        "Beit": "a relative position bias is added to its logits",
        "VisionTransformerRelPos": "a relative position bias is added to its logits",
        "SwinTransformer": "its attention is windowed and has a relative position bias",
    }
    if not isinstance(source, VisionTransformer) or hasattr(source, "head_dist"):
        reason = reasons.get(name, "only timm's VisionTransformer is covered")
        raise ValueError(f"{name} cannot be converted: {reason}")
    if own := [method for method in FORWARD if getattr(type(source), method) is not getattr(VisionTransformer, method)]:
        raise ValueError(f"{name} cannot be converted: it has a {own[0]} of its own, not timm's")
    if type(source.patch_embed) is not PatchEmbed:
        raise ValueError(f"{name} cannot be converted: its patches come from a {type(source.patch_embed).__name__}")
    for step in _after_patches(source):
        if not isinstance(step, (nn.Identity, PosEmbed2d)):
            raise ValueError(f"{name} cannot be converted: a {type(step).__name__} follows its patches")
    head: Any = source.head
    if not isinstance(head, nn.Identity) and (type(head) is not nn.Linear or head.bias is None):
        raise ValueError(f"{name} cannot be converted: its head, a {type(head).__name__}, is no Linear with a bias")
    for index, block in enumerate(source.blocks):
        attn: Any = getattr(block, "attn", None)
        if type(block) is not Block or type(attn) is not Attention:
            kind = f"{type(block).__name__} with {type(attn).__name__}"
            raise ValueError(f"{name} cannot be converted: block {index} is a {kind}, not timm's Block with Attention")
        if type(block.mlp) not in (Mlp, GluMlp) or type(block.norm1) not in (LayerNorm, nn.LayerNorm, RmsNorm):
            kind = f"{type(block.mlp).__name__} and {type(block.norm1).__name__}"
            raise ValueError(f"{name} cannot be converted: block {index} has {kind}, not an MLP and a norm known here")
        if repr(block.mlp.act) not in ACTIVATIONS:
            raise ValueError(
                f"{name} cannot be converted: the activation of block {index}, {block.mlp.act}, is unknown"
            )
        if not isinstance(block.mlp.norm, nn.Identity):
            raise ValueError(f"{name} cannot be converted: block {index} normalises within its MLP")
        if not isinstance(attn.q_norm, nn.Identity) or not isinstance(attn.k_norm, nn.Identity):
            raise ValueError(f"{name} cannot be converted: qk_norm normalises its queries and keys")
        if getattr(attn, "gate", None) is not None or not isinstance(attn.norm, nn.Identity):
            raise ValueError(f"{name} cannot be converted: block {index} gates or normalises its attention output")


def _after_patches(source: VisionTransformer) -> list[nn.Module]:
    """What follows the projection of the patches: a norm, and our position embeddings of two dimensions."""
    norm = source.patch_embed.norm
    return [*norm] if isinstance(norm, nn.Sequential) else [norm]


def _pos_embed(source: VisionTransformer) -> str:
    steps = [type(step) for step in _after_patches(source)]
    of_two_dimensions = [name for name, kind in POS_EMBEDS_2D.items() if kind in steps]
    return of_two_dimensions[0] if of_two_dimensions else "none" if source.pos_embed is None else "learn"


def _mlp_ratio(width: int, dim: int) -> float:
    """The ratio of which timm, which cuts off the fraction, makes this width."""
    ratio = width / dim
    return ratio if int(dim * ratio) == width else (width + 0.5) / dim


def vit_args(source: VisionTransformer) -> dict:
    """Constructor arguments of `source`, read off its modules; all but a gated MLP can be saved."""
    block = source.blocks[0]
    drop_path = source.blocks[-1].drop_path1
    args: dict = dict(
        img_size=source.patch_embed.img_size,
        patch_size=source.patch_embed.patch_size,
        in_chans=source.in_chans,
        num_classes=getattr(source.head, "out_features", 0),  # a head that was exchanged left num_classes behind
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
