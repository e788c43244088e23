"""timm's own differential attention (vit_dwee, vit_dlittle, vit_dpwee). Its maps can be captured; it is not converted.

`Differential Transformer` - https://arxiv.org/abs/2410.05258
"""

from typing import Any

from timm.layers import DiffAttention
from timm.models.vision_transformer import DiffParallelScalingBlock
from torch import Tensor

from ..base import Branches
from ..functional import additive_mask
from .projections import merge_heads

__all__ = ["TIMM_DIFFERENTIAL", "read_branches", "read_heads"]

TIMM_DIFFERENTIAL = (DiffAttention, DiffParallelScalingBlock)


def read_branches(layer: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Branches:
    """Compute queries, keys, values, lambda and bias of one of timm's differential layers.

    The arguments are those of `forward`.

    The two branches of a head are `layer.head_dim` wide each.
    """
    if isinstance(layer, DiffParallelScalingBlock):
        qkv = layer.in_proj(layer.in_norm(x))[..., layer.in_split[0] :]  # without the rows of the MLP
    else:
        qkv = layer.qkv(x)
    B, N, _ = qkv.shape
    q, k, v = qkv.reshape(B, N, 3, layer.num_heads, 2, layer.head_dim).permute(2, 0, 3, 1, 4, 5)  # (B, H, N, 2, d)
    q, k = layer.q_norm(q).flatten(-2), layer.k_norm(k).flatten(-2)  # (B, H, N, 2 d), branch 1 first
    return Branches(q, k, v.flatten(-2), layer._compute_lambda(), additive_mask(k, attn_mask, is_causal))


def read_heads(layer: Any, heads: Tensor) -> Tensor:
    """Turn the outputs of the heads, (B, H, N, 2 d), into the input of the output projection, (B, N, dim).

    In a DiffParallelScalingBlock the hidden features of the MLP follow in that input.
    """
    merged = merge_heads(layer.sub_norm(heads) * (1 - layer.lambda_init))
    return layer.norm(merged) if isinstance(layer, DiffAttention) else merged
