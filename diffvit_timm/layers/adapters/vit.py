"""Adapters of the attention classes of timm's isotropic ViTs: Attention, AttentionRope and EvaAttention."""

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat, register_notrace_function
from timm.models.eva import EvaAttention
from torch import Tensor

from ..functional import additive_mask, cast_once
from .projections import merge_heads, split_heads, split_qkv
from .versions import AdaptedVersion1, AdaptedVersion2

__all__ = [
    "AttentionAdapter",
    "DiffEvaAttention",
    "DiffEvaAttentionV2",
    "DiffRopeAttention",
    "DiffRopeAttentionV2",
    "DiffVitAttention",
    "DiffVitAttentionV2",
    "EvaAdapter",
    "RopeAdapter",
]

torch.fx.wrap("additive_mask")
torch.fx.wrap("cast_once")


@torch.fx.wrap
@register_notrace_function
def rotate_patches(x: Tensor, rope: Tensor, num_prefix_tokens: int, half: bool) -> Tensor:
    """Apply a rotary position embedding to the patches, and not to the prefix tokens.

    Args:
        x: queries or keys, (B, H, N, d); (B, 2 H, N, d) for the queries of version 2.
        rope: sines and cosines of the patches, (patches, 2 d) or (..., 1 or H, patches, 2 d).
        num_prefix_tokens: number of tokens before the patches.
        half: whether channels i and i + d / 2 form a pair; otherwise neighbours do.
    """
    if rope.ndim > 2 and rope.shape[-3] > 1:  # an embedding per head, which both queries of a head share
        rope = rope.repeat_interleave(x.shape[1] // rope.shape[-3], dim=-3)
    prefix, patches = x[:, :, :num_prefix_tokens], x[:, :, num_prefix_tokens:]
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=half)], dim=2)


class AttentionAdapter(Attention):
    """timm.layers.Attention: one projection; optionally qk_norm, a norm before the output projection, and a gate."""

    def project_qkv(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v = split_qkv(self.qkv(x), self.attn_dim, self.head_dim)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)  # some norms return float32 under autocast
        return q, k, v, additive_mask(k, attn_mask, is_causal)

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        merged = self.norm(merge_heads(heads))
        return merged if self.gate is None else merged * self.gate(x).sigmoid()

    def attend(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x = cast_once(x)
        q, k, v, bias = self.project_qkv(x, attn_mask, is_causal)
        return self.merge_heads(self.mix(x, q, k, v, bias), x)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return self.proj_drop(self.proj(self.attend(x, attn_mask, is_causal)))


class RopeAdapter(AttentionRope):
    """timm.layers.AttentionRope: as Attention, with a rotary embedding, and optionally fewer keys than queries."""

    def project_qkv(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        if self.qkv is not None:
            q, k, v = split_qkv(self.qkv(x), self.attn_dim, self.head_dim)
        else:
            q = split_heads(self.q_proj(x), self.head_dim)
            k = split_heads(self.k_proj(x), self.head_dim)
            v = split_heads(self.v_proj(x), self.head_dim)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q = rotate_patches(q, rope, self.num_prefix_tokens, self.rotate_half)
            k = rotate_patches(k, rope, self.num_prefix_tokens, self.rotate_half)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if self.num_kv_groups > 1:  # grouped-query attention: several heads share their keys and values
            k = k.repeat_interleave(self.num_kv_groups, dim=1)
            v = v.repeat_interleave(self.num_kv_groups, dim=1)
        return q, k, v, additive_mask(k, attn_mask, is_causal)

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        merged = self.norm(merge_heads(heads))
        return merged if self.gate is None else merged * self.gate(x).sigmoid()

    def attend(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        x = cast_once(x)
        q, k, v, bias = self.project_qkv(x, rope, attn_mask, is_causal)
        return self.merge_heads(self.mix(x, q, k, v, bias), x)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        return self.proj_drop(self.proj(self.attend(x, rope, attn_mask, is_causal)))


class EvaAdapter(EvaAttention):
    """timm's EvaAttention: as AttentionRope, with biases of the queries and values only."""

    def project_qkv(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        if self.qkv is not None:
            if self.q_bias is None:
                qkv = self.qkv(x)
            else:
                qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))
            q, k, v = split_qkv(qkv, self.num_heads * self.head_dim, self.head_dim)
        else:
            q = split_heads(self.q_proj(x), self.head_dim)
            k = split_heads(self.k_proj(x), self.head_dim)
            v = split_heads(self.v_proj(x), self.head_dim)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q = rotate_patches(q, rope, self.num_prefix_tokens, self.rotate_half)
            k = rotate_patches(k, rope, self.num_prefix_tokens, self.rotate_half)
        q, k = q.to(v.dtype), k.to(v.dtype)
        return q, k, v, additive_mask(k, attn_mask, is_causal)

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        merged = self.norm(merge_heads(heads))
        return merged if self.gate is None else merged * self.gate(x).sigmoid()

    def attend(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        x = cast_once(x)
        q, k, v, bias = self.project_qkv(x, rope, attn_mask, is_causal)
        return self.merge_heads(self.mix(x, q, k, v, bias), x)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        return self.proj_drop(self.proj(self.attend(x, rope, attn_mask, is_causal)))


class DiffVitAttention(AttentionAdapter, AdaptedVersion1):
    """timm's Attention with differential attention, version 1."""


class DiffVitAttentionV2(AttentionAdapter, AdaptedVersion2):
    """timm's Attention with differential attention, version 2."""


class DiffRopeAttention(RopeAdapter, AdaptedVersion1):
    """timm's AttentionRope with differential attention, version 1."""


class DiffRopeAttentionV2(RopeAdapter, AdaptedVersion2):
    """timm's AttentionRope with differential attention, version 2."""


class DiffEvaAttention(EvaAdapter, AdaptedVersion1):
    """timm's EvaAttention with differential attention, version 1."""


class DiffEvaAttentionV2(EvaAdapter, AdaptedVersion2):
    """timm's EvaAttention with differential attention, version 2."""
