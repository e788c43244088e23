"""The forward pass that both versions of differential attention share."""

import torch
from torch import Tensor, nn

from .functional import differential_attention
from .kernels.layout import BranchDims

__all__ = ["DifferentialLayer"]


class DifferentialLayer(nn.Module):
    """The forward pass that both versions share; each projects its tokens, computes lambda and merges its heads."""

    fused_attn: bool
    qkv: nn.Linear
    attn_drop: nn.Dropout
    proj: nn.Linear
    proj_drop: nn.Dropout
    branch_dims: BranchDims
    num_heads: int
    head_dim: int
    scale: float
    lambda_init: Tensor

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def compute_lambda(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def head_norm_weight(self) -> Tensor | None:
        """(head width,), of a norm of each head's output, with all that the output is multiplied by; None: no norm."""
        return None

    def merge_heads(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.jit.ignore
    def set_lambda_init(self, value: float) -> None:
        """Set lambda_init in place; from now on it is part of the state dict (so copy the model for EMA after)."""
        self.lambda_init.fill_(value)
        self._non_persistent_buffers_set.discard("lambda_init")

    def attend(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """What goes into the output projection, (B, N, dim); arguments as in `forward`."""
        q, k, v = self.project_qkv(x)
        norm_weight = self.head_norm_weight()
        x = differential_attention(
            q,
            k,
            v,
            self.compute_lambda(x),
            self.branch_dims,
            self.scale,
            attn_mask=attn_mask,
            is_causal=is_causal,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            norm_weight=None if norm_weight is None else norm_weight.to(q.dtype),
            fused=self.fused_attn,
        )
        return self.merge_heads(x)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """
        Args:
            x: tokens, (B, N, dim).
            attn_mask: bool (True: may be seen) or additive, broadcastable to (B, H, N, N); the same for both maps.
            is_causal: a query sees no later key.

        Returns:
            (B, N, dim)
        """
        return self.proj_drop(self.proj(self.attend(x, attn_mask, is_causal)))
