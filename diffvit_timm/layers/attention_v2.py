"""Differential attention, version 2.

`Differential Transformer V2` - https://huggingface.co/blog/microsoft/diff-attn-v2
"""

import torch
from timm.layers import use_fused_attn
from torch import Tensor, nn

from .base import Version2
from .functional import additive_mask
from .kernels.packing import split_projection
from .token_layer import TokenLayer

__all__ = ["DifferentialAttentionV2"]

torch.fx.wrap("additive_mask")
torch.fx.wrap("split_projection")


class DifferentialAttentionV2(TokenLayer, Version2):
    """Multi-head differential self-attention, version 2.

    Each head has two queries over one key and one value, and no norm.
    `lambda = sigmoid(lambda_proj(x) + logit(lambda_init))` is one number per token and head. `lambda_init` is a buffer;
    with 0.5 this is the authors' layer. The rows of `qkv` are the queries, the keys and the values. In units of the
    head width, the queries of head i are at 2i (branch 1) and 2i + 1 (branch 2), as in the authors' layer.
    """

    # TorchScript reads the annotations of a class or, if it has none, those of its parents, which it does not resolve.
    lambda_init: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        lambda_init: float = 0.5,
        device=None,
        dtype=None,
    ) -> None:
        """
        Args:
            dim: width of the tokens.
            num_heads: number of heads, each with a pair of maps. A head is `dim / num_heads` wide.
            qkv_bias: whether to use a bias in the query, key and value projections.
            proj_bias: whether to use a bias in the output projection.
            attn_drop: dropout rate of the maps.
            proj_drop: dropout rate after the output projection.
            lambda_init: value of lambda if the output of lambda_proj is 0.

        Raises:
            ValueError: a width that num_heads does not divide, or a lambda_init outside (0, 1).
        """
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        self.require_sigmoid(lambda_init)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.branch_dims = None  # both branches read all channels of k
        self.scale = self.head_dim**-0.5
        self.fused_attn = use_fused_attn()
        self._lambda_start = float(lambda_init)

        self.qkv = nn.Linear(dim, dim * 4, bias=qkv_bias, **dd)
        self.lambda_proj = nn.Linear(dim, num_heads, bias=False, **dd)
        self.register_buffer("lambda_init", torch.empty((), device=device, dtype=torch.float32))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill lambda_init. The projections initialise themselves, or the model initialises them."""
        self.lambda_init.fill_(self._lambda_start)

    def split_qkv(
        self, qkv: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Split the projection into q, (B, H, N, 2 head widths), and k and v, (B, H, N, head width) each.

        The query of branch 1 comes first in q.
        """
        dim = qkv.shape[-1] // 4
        q, k, v = split_projection(qkv, 2 * dim, dim)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return q, k, v, additive_mask(k, attn_mask, is_causal)

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        """Merge the outputs of the heads, (B, H, N, head width), to (B, N, dim)."""
        return heads.transpose(1, 2).flatten(2)
