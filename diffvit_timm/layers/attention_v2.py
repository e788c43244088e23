"""Differential attention, version 2.

`Differential Transformer V2` - https://huggingface.co/blog/microsoft/diff-attn-v2
"""

import torch
from timm.layers import use_fused_attn
from torch import Tensor, nn

from .base import DifferentialLayer

__all__ = ["DifferentialAttentionV2"]


class DifferentialAttentionV2(DifferentialLayer):
    """Multi-head differential self-attention, version 2: two queries a head over one key and value, and no norm.

    `lambda = sigmoid(lambda_proj(x) + logit(lambda_init))`, a number a token and head; `lambda_init` is a buffer, and
    with 0.5 this is the authors' layer. Rows of `qkv`: the queries of head i at 2i (branch 1) and 2i + 1 (branch 2),
    as in theirs, then the keys, then the values.
    """

    lambda_init: Tensor  # TorchScript reads a class's own annotations, or else its parents', which it does not know

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
            num_heads: number of heads, each with a pair of maps; a head is `dim / num_heads` wide.
            qkv_bias, proj_bias: biases of the projections.
            attn_drop, proj_drop: dropout on the maps, and after the output projection.
            lambda_init: lambda where lambda_proj gives 0.

        Raises:
            ValueError: widths that do not divide, or a lambda_init that no sigmoid gives.
        """
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if dim % num_heads:
            raise ValueError(f"dim={dim} does not divide into num_heads={num_heads} heads of equal width")
        self._require_sigmoid(lambda_init)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.branch_dims = None  # both branches read all of k
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
        """Fill lambda_init (the projections initialise themselves, or the model does)."""
        self.lambda_init.fill_(self._lambda_start)

    @staticmethod
    def _require_sigmoid(lambda_init: float | str) -> None:
        if isinstance(lambda_init, str) or not 0 < lambda_init < 1:
            raise ValueError(f"lambda_init={lambda_init!r} must be between 0 and 1: V2's lambda is a sigmoid")

    @torch.jit.ignore
    def set_lambda_init(self, value: float) -> None:
        """As in `DifferentialLayer`.

        Raises:
            ValueError: a value that no sigmoid gives.
        """
        self._require_sigmoid(value)
        super().set_lambda_init(value)

    def compute_lambda(self, x: Tensor) -> Tensor:
        """lambda of tokens x (B, N, dim): (B, H, N, 1), float32."""
        logits = self.lambda_proj(x).float() + torch.logit(self.lambda_init.float())
        return torch.sigmoid(logits).transpose(1, 2).unsqueeze(-1)

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, N, 2 head widths), branch 1 first, k and v (B, H, N, head width) of tokens x (B, N, dim)."""
        dim = x.shape[-1]
        q, k, v = self.qkv(x).split([2 * dim, dim, dim], dim=-1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return q, k, v

    def merge_heads(self, x: Tensor) -> Tensor:
        """(B, H, N, head width) merged to (B, N, dim)."""
        return x.transpose(1, 2).flatten(2)
