"""Adapter of timm's block in which attention and MLP are parallel and share one projection of the tokens."""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor

from ..functional import additive_mask
from .projections import merge_heads, split_qkv
from .versions import AdaptedVersion1, AdaptedVersion2

__all__ = ["DiffParallelBlock", "DiffParallelBlockV2", "ParallelAdapter"]

torch.fx.wrap("additive_mask")


class ParallelAdapter(ParallelScalingBlock):
    """timm's ParallelScalingBlock. The whole block counts as the attention layer, with its norm, MLP and residual.

    `in_proj` has the rows of the MLP first, then those of queries, keys and values.
    """

    def tokens(self, x: Tensor) -> Tensor:
        return self.in_norm(x)

    def project_qkv(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        mlp = self.in_split[0]
        bias = None if self.in_proj.bias is None else self.in_proj.bias[mlp:]
        qkv = F.linear(self.in_norm(x), self.in_proj.weight[mlp:], bias)
        q, k, v = split_qkv(qkv, self.num_heads * self.head_dim, self.head_dim)
        return self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v, additive_mask(k, attn_mask, is_causal)

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        return merge_heads(heads)

    def attend(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        q, k, v, bias = self.project_qkv(x, attn_mask, is_causal)
        return self.merge_heads(self.mix(self.in_norm(x), q, k, v, bias), x)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        mlp = self.in_split[0]
        bias = self.mlp_bias if self.in_proj.bias is None else self.in_proj.bias[:mlp]
        hidden = self.mlp_drop(self.mlp_act(F.linear(self.in_norm(x), self.in_proj.weight[:mlp], bias)))
        out = self.attn_out_proj(self.attend(x, attn_mask, is_causal)) + self.mlp_out_proj(hidden)
        return x + self.drop_path(self.ls(out))


class DiffParallelBlock(ParallelAdapter, AdaptedVersion1):
    """ParallelScalingBlock with differential attention, version 1."""


class DiffParallelBlockV2(ParallelAdapter, AdaptedVersion2):
    """ParallelScalingBlock with differential attention, version 2."""
