"""Adapters of the attention classes that add a bias of relative positions to their logits."""

import math

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.beit import Attention as BeitAttention
from timm.models.swin_transformer import WindowAttention as SwinAttention
from timm.models.swin_transformer_v2 import WindowAttention as Swin2Attention
from timm.models.vision_transformer_relpos import RelPosAttention
from timm.models.vision_transformer_sam import Attention as SamAttention
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias
from torch import Tensor

from .projections import merge_heads, split_qkv
from .versions import AdaptedVersion1, AdaptedVersion2

__all__ = [
    "BeitAdapter",
    "DiffBeitAttention",
    "DiffBeitAttentionV2",
    "DiffRelPosAttention",
    "DiffRelPosAttentionV2",
    "DiffSamAttention",
    "DiffSamAttentionV2",
    "DiffSwin2Attention",
    "DiffSwin2AttentionV2",
    "DiffSwinAttention",
    "DiffSwinAttentionV2",
    "RelPosAdapter",
    "SamAdapter",
    "Swin2Adapter",
    "SwinAdapter",
]


def add_window_mask(bias: Tensor, mask: Tensor | None, windows: int) -> Tensor:
    """Add the mask of shifted windows to a bias.

    Args:
        bias: bias of the logits, (1, H, N, N).
        mask: mask, (windows of an image, N, N), or None.
        windows: number of windows of all images together.

    Returns:
        The bias, (1, H, N, N) without a mask and (windows, H, N, N) with one.
    """
    if mask is None:
        return bias
    per_image = bias + mask.unsqueeze(1)  # (windows of an image, H, N, N)
    return per_image.repeat(windows // mask.shape[0], 1, 1, 1)  # the windows of an image lie together


class BeitAdapter(BeitAttention):
    """timm's Attention of BEiT: only queries and values have a bias. The logits may have a relative position bias.

    That bias belongs to the layer, or all layers share one, or both are added.
    """

    def project_qkv(
        self, x: Tensor, shared_rel_pos_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        width = self.proj.in_features
        bias = None if self.q_bias is None else torch.cat((self.q_bias, self.k_bias, self.v_bias))
        q, k, v = split_qkv(F.linear(x, self.qkv.weight, bias), width, width // self.num_heads)
        logit_bias = shared_rel_pos_bias
        if self.relative_position_bias_table is not None:
            own = self._get_rel_pos_bias()  # (1, H, N, N)
            logit_bias = own if logit_bias is None else own + logit_bias
        return q, k, v, None if logit_bias is None else logit_bias.to(q.dtype)

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        return merge_heads(heads)

    def attend(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        q, k, v, bias = self.project_qkv(x, shared_rel_pos_bias)
        return self.merge_heads(self.mix(x, q, k, v, bias), x)

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        return self.proj_drop(self.proj(self.attend(x, shared_rel_pos_bias)))


class RelPosAdapter(RelPosAttention):
    """timm's RelPosAttention: a bias per layer, which an MLP or a table gives, or one that all layers share."""

    def project_qkv(
        self, x: Tensor, shared_rel_pos: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v = split_qkv(self.qkv(x), self.num_heads * self.head_dim, self.head_dim)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        logit_bias = shared_rel_pos
        if self.rel_pos is not None:
            logit_bias = self.rel_pos.get_bias()
        return q, k, v, None if logit_bias is None else logit_bias.to(q.dtype)

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        return merge_heads(heads)

    def attend(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        q, k, v, bias = self.project_qkv(x, shared_rel_pos)
        return self.merge_heads(self.mix(x, q, k, v, bias), x)

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        return self.proj_drop(self.proj(self.attend(x, shared_rel_pos)))


class SwinAdapter(SwinAttention):
    """timm's WindowAttention of Swin: x is (windows, N, dim), with a mask where the windows are shifted."""

    def project_qkv(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        width = self.proj.in_features
        q, k, v = split_qkv(self.qkv(x), width, width // self.num_heads)
        bias = add_window_mask(self._get_rel_pos_bias(), mask, x.shape[0])
        return q, k, v, bias.to(q.dtype)

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        return merge_heads(heads)

    def attend(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v, bias = self.project_qkv(x, mask)
        return self.merge_heads(self.mix(x, q, k, v, bias), x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.proj_drop(self.proj(self.attend(x, mask)))


class Swin2Adapter(Swin2Attention):
    """timm's WindowAttention of Swin v2: cosine attention with a scale per head, and a bias from an MLP."""

    scale: torch.jit.Final[float] = 1.0  # the keys contain the scale of their head

    def project_qkv(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        width = self.proj.in_features
        qkv_bias = None if self.q_bias is None else torch.cat((self.q_bias, self.k_bias, self.v_bias))
        q, k, v = split_qkv(F.linear(x, self.qkv.weight, qkv_bias), width, width // self.num_heads)
        scale = torch.clamp(self.logit_scale, max=math.log(1.0 / 0.01)).exp()  # (H, 1, 1)
        q, k = F.normalize(q, dim=-1).to(v.dtype), (F.normalize(k, dim=-1) * scale).to(v.dtype)
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)  # (relative positions, H)
        bias = table[self.relative_position_index.view(-1)].view(x.shape[1], x.shape[1], -1)  # (N, N, H)
        bias = 16 * torch.sigmoid(bias.permute(2, 0, 1).unsqueeze(0))  # (1, H, N, N)
        return q, k, v, add_window_mask(bias, mask, x.shape[0]).to(q.dtype)

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        return merge_heads(heads)

    def attend(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v, bias = self.project_qkv(x, mask)
        return self.merge_heads(self.mix(x, q, k, v, bias), x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.proj_drop(self.proj(self.attend(x, mask)))


class SamAdapter(SamAttention):
    """timm's Attention of SAM: x is an image or windows, (B, height, width, dim); the bias depends on the queries.

    The bias of both maps of a head is that of its first query.
    """

    def tokens(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        size = (x.shape[1], x.shape[2])
        q, k, v = split_qkv(self.qkv(x.flatten(1, 2)), self.proj.in_features, self.head_dim)
        q, k = self.q_norm(q), self.k_norm(k)
        bias: Tensor | None = None
        if self.use_rel_pos:
            first = q[:, :: q.shape[1] // self.num_heads].flatten(0, 1)  # (B * H, N, d)
            per_head = get_decomposed_rel_pos_bias(first, self.rel_pos_h, self.rel_pos_w, size, size)  # (B * H, N, N)
            bias = per_head.unflatten(0, (-1, self.num_heads)).to(q.dtype)  # (B, H, N, N)
        elif self.rope is not None:
            rope = self.rope.get_embed()
            q, k = apply_rot_embed_cat(q, rope), apply_rot_embed_cat(k, rope)
        return q.to(v.dtype), k.to(v.dtype), v, bias

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        return merge_heads(heads)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v, bias = self.project_qkv(x)
        return self.merge_heads(self.mix(self.tokens(x), q, k, v, bias), x)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(self.attend(x))).view(x.shape)


class DiffBeitAttention(BeitAdapter, AdaptedVersion1):
    """BEiT's Attention with differential attention, version 1."""


class DiffBeitAttentionV2(BeitAdapter, AdaptedVersion2):
    """BEiT's Attention with differential attention, version 2."""


class DiffRelPosAttention(RelPosAdapter, AdaptedVersion1):
    """RelPosAttention with differential attention, version 1."""


class DiffRelPosAttentionV2(RelPosAdapter, AdaptedVersion2):
    """RelPosAttention with differential attention, version 2."""


class DiffSamAttention(SamAdapter, AdaptedVersion1):
    """SAM's Attention with differential attention, version 1."""


class DiffSamAttentionV2(SamAdapter, AdaptedVersion2):
    """SAM's Attention with differential attention, version 2."""


class DiffSwinAttention(SwinAdapter, AdaptedVersion1):
    """Swin's WindowAttention with differential attention, version 1."""


class DiffSwinAttentionV2(SwinAdapter, AdaptedVersion2):
    """Swin's WindowAttention with differential attention, version 2."""


class DiffSwin2Attention(Swin2Adapter, AdaptedVersion1):
    """Swin v2's WindowAttention with differential attention, version 1."""


class DiffSwin2AttentionV2(Swin2Adapter, AdaptedVersion2):
    """Swin v2's WindowAttention with differential attention, version 2."""
