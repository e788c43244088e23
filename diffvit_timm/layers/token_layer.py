"""The forward pass of the layers that take tokens and masks, as timm's Attention does."""

import torch
from torch import Tensor, nn

from .base import DifferentialLayer
from .functional import cast_once
from .kernels.layout import Sizes
from .kernels.packed import attend_packed, takes_packed

__all__ = ["TokenLayer"]

# FX looks for this name in every module that calls the function.
torch.fx.wrap("cast_once")


class TokenLayer(DifferentialLayer):
    """A differential layer whose forward pass takes tokens and masks, as that of timm's Attention does.

    A subclass defines `split_qkv`, which makes the result of `project_qkv` from the projection.
    """

    head_dim: int
    qkv: nn.Linear
    proj: nn.Linear
    proj_drop: nn.Dropout

    def split_qkv(
        self, qkv: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Split the projection, (B, N, channels), into heads. The masks are those of `forward`."""
        raise NotImplementedError

    def project_qkv(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Project tokens x, (B, N, dim), to q, k and v, and combine the masks to the bias of the logits."""
        return self.split_qkv(self.qkv(x), attn_mask, is_causal)

    def attend(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compute the input of the output projection, (B, N, dim). The arguments are those of `forward`."""
        x = cast_once(x)
        qkv = self.qkv(x)
        if not torch.jit.is_scripting():
            merged = self.attend_packed(x, qkv) if attn_mask is None and not is_causal else None
            if merged is not None:
                return merged
        q, k, v, bias = self.split_qkv(qkv, attn_mask, is_causal)
        return self.merge_heads(self.mix(x, q, k, v, bias), x)

    @torch.jit.ignore
    def attend_packed(self, x: Tensor, qkv: Tensor) -> Tensor | None:
        """Compute `attend` without masks in one function of the projection, or return None where it cannot run."""
        vectors = self.lambda_vectors()
        has_dropout = self.training and self.attn_drop.p > 0
        if not self.fused_attn or has_dropout or not takes_packed(qkv, self.head_dim, vectors):
            return None
        q_width = self.head_dim * (1 if self.branch_dims else 2)
        sizes = Sizes(self.num_heads, qkv.shape[1], q_width, self.head_dim, self.branch_dims, self.scale)
        norm_weight = self.head_norm_weight()
        if norm_weight is not None:
            norm_weight = norm_weight.to(qkv.dtype)
        return attend_packed(qkv, vectors or (self.compute_lambda(x),), sizes, norm_weight)

    @torch.jit.ignore
    def lambda_vectors(self) -> tuple[Tensor, ...]:
        """Return the arguments of `vector_lambda` if lambda comes from vectors, otherwise nothing."""
        return ()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """
        Args:
            x: tokens, (B, N, dim).
            attn_mask: boolean mask (True: the key takes part) or additive mask, broadcastable to (B, H, N, N). Both
                maps use the same mask.
            is_causal: whether a query ignores the keys after it.

        Returns:
            The new tokens, (B, N, dim).
        """
        return self.proj_drop(self.proj(self.attend(x, attn_mask, is_causal)))
