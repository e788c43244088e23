"""Denoising attention (DnA): a variant of differential attention in which each map has its own values.

It is used only for comparison: `attn='dna'` of the variants that train from scratch, and a conversion of its authors.

`DnA: Denoising Attention for Visual Tasks` - https://arxiv.org/abs/2606.27372
Reference implementation: https://github.com/rjccv/DnA
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import layer_repr
from .functional import additive_mask

__all__ = ["DenoisingAttention"]

torch.fx.wrap("additive_mask")  # FX looks for the name in every module that calls the function


class DenoisingAttention(nn.Module):
    """Multi-head self-attention with a positive query q+ and a negative query q- per head.

    Both use the same keys, and each has its own values: `softmax(q+ k^T s) v+ - c softmax(-q- k^T s) v-`. The negative
    map prefers keys that are unlike q-, hence the sign of its logits. s is 1 / sqrt(head width). Each head learns its
    scale c, which starts at 0.5. The layer has no norms.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        """
        Args:
            dim: width of the tokens, a multiple of num_heads.
            num_heads: number of heads.
            qkv_bias: whether to use a bias in the query, key and value projections.
            proj_bias: whether to use a bias in the output projection.
            attn_drop: dropout rate of the maps.
            proj_drop: dropout rate after the output projection.

        Raises:
            ValueError: a width that num_heads does not divide.
        """
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 5, bias=qkv_bias, **dd)  # q+, q-, k, v+ and v-
        self.negative_scale = nn.Parameter(torch.full((num_heads,), 0.5, **dd))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of the layer."""
        return layer_repr(self)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compute the new tokens, (B, N, dim). The arguments are those of timm's Attention; x is (B, N, dim)."""
        heads = self.qkv(x).unflatten(-1, (5, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (5, B, H, N, d)
        q, q_negative, k, v, v_negative = heads.unbind(0)
        bias = additive_mask(k, attn_mask, is_causal)
        dropout_p = self.attn_drop.p if self.training else 0.0
        positive = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout_p)
        negative = F.scaled_dot_product_attention(-q_negative, k, v_negative, attn_mask=bias, dropout_p=dropout_p)
        out = positive - self.negative_scale[:, None, None] * negative  # (B, H, N, d)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
