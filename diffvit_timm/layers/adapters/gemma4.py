"""Adapter of the attention of Gemma 4's vision encoder."""

import torch
from timm.models.gemma4_vit import Gemma4Attention, apply_multidimensional_rope
from torch import Tensor

from ..functional import additive_mask
from .projections import merge_heads, split_heads
from .versions import AdaptedVersion1, AdaptedVersion2

__all__ = ["DiffGemma4Attention", "DiffGemma4AttentionV2", "Gemma4Adapter"]

torch.fx.wrap("additive_mask")


class Gemma4Adapter(Gemma4Attention):
    """timm's Gemma4Attention: norms of queries, keys and values, a rotary embedding per axis, optional clipping."""

    scale: torch.jit.Final[float] = 1.0  # queries and keys are normalised, and timm does not scale their products

    def project_qkv(
        self, x: Tensor, rope_cos: Tensor, rope_sin: Tensor, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q = self.q_norm(split_heads(self.q_proj(x), self.head_dim))
        k = self.k_norm(split_heads(self.k_proj(x), self.head_dim))
        v = self.v_norm(split_heads(self.v_proj(x), self.head_dim))
        q = apply_multidimensional_rope(q, rope_cos, rope_sin, ndim=2, unsqueeze_dim=1).to(v.dtype)
        k = apply_multidimensional_rope(k, rope_cos, rope_sin, ndim=2, unsqueeze_dim=1).to(v.dtype)
        if self.num_kv_groups > 1:  # grouped-query attention: several heads share their keys and values
            k = k.repeat_interleave(self.num_kv_groups, dim=1)
            v = v.repeat_interleave(self.num_kv_groups, dim=1)
        return q, k, v, additive_mask(k, attn_mask)

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        return merge_heads(heads)

    def attend(self, x: Tensor, rope_cos: Tensor, rope_sin: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        q, k, v, bias = self.project_qkv(x, rope_cos, rope_sin, attn_mask)
        return self.merge_heads(self.mix(x, q, k, v, bias), x)

    def forward(self, x: Tensor, rope_cos: Tensor, rope_sin: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return self.proj_drop(self.o_proj(self.attend(x, rope_cos, rope_sin, attn_mask)))


class DiffGemma4Attention(Gemma4Adapter, AdaptedVersion1):
    """Gemma4Attention with differential attention, version 1."""


class DiffGemma4AttentionV2(Gemma4Adapter, AdaptedVersion2):
    """Gemma4Attention with differential attention, version 2."""
